//! Where the daemon is and who we are: flags or STRONGROOM_* variables to a channel.

use std::fs;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, value_parser};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::Failure;

/// The longest that connecting and shaking hands may take.
const CONNECT_TIMEOUT_S: u64 = 10;
/// How often an idle connection is tried, so that a dead one is noticed.
const KEEP_ALIVE_INTERVAL_S: u64 = 20;
/// How long the answer to such a try may take.
const KEEP_ALIVE_TIMEOUT_S: u64 = 10;
/// The longest wait for an answer that may be asked for.
const TIMEOUT_LIMIT_S: u64 = 24 * 3600;
const DEFAULT_TIMEOUT_S: &str = "30";

const HEADING: &str = "Connection";
const ENDPOINT: &str = "endpoint";
const CA: &str = "ca";
const CERT: &str = "cert";
const KEY: &str = "key";
const REGION: &str = "region";
const TIMEOUT: &str = "timeout";

/// A channel to the daemon.
#[derive(Debug, Clone)]
pub struct Connection {
    /// The channel, connected.
    pub channel: Channel,
    /// The longest wait for an answer.
    pub timeout: Duration,
    /// The Region that is asked; none for the daemon's own.
    pub region: Option<AsciiMetadataValue>,
}

/// The flags of a connection, for a command and those below it.
pub fn args() -> Vec<Arg> {
    let arg =
        |name: &'static str, variable: Option<&'static str>, value: &'static str, help: &'static str| {
            let arg = Arg::new(id(name)).long(name).value_name(value).help(help);
            let arg = arg.global(true).help_heading(HEADING);
            match variable {
                Some(variable) => arg.env(variable),
                None => arg,
            }
        };
    vec![
        arg(ENDPOINT, Some(variable(ENDPOINT)), "URL", "The daemon: https://HOST:PORT or unix:/PATH"),
        arg(CA, Some(variable(CA)), "FILE", "The CA certificates that vouch for the daemon (PEM)"),
        arg(CERT, Some(variable(CERT)), "FILE", "Our client certificate and its chain (PEM)"),
        arg(KEY, Some(variable(KEY)), "FILE", "Our client certificate's private key (PEM)"),
        arg(REGION, None, "NAME", "The Region that is asked [default: the daemon's own]"),
        arg(TIMEOUT, None, "SECONDS", "The longest wait for an answer")
            .default_value(DEFAULT_TIMEOUT_S)
            .value_parser(value_parser!(u64).range(1..=TIMEOUT_LIMIT_S)),
    ]
}

/// The wait for an answer that the person asked for, where one was.
pub fn asked_timeout(matches: &ArgMatches) -> Option<Duration> {
    let asked = matches.value_source(&id(TIMEOUT)) == Some(ValueSource::CommandLine);
    asked.then(|| timeout(matches))
}

/// Connects.
///
/// # Errors
/// [`Failure::Settings`] names the flag or variable, the file and the remedy;
/// [`Failure::Connection`] the endpoint and the reason.
pub async fn connect(matches: &ArgMatches) -> Result<Connection, Failure> {
    let url = setting(matches, ENDPOINT).ok_or_else(|| {
        Failure::Settings(
            "no endpoint: set STRONGROOM_ENDPOINT or --endpoint to https://HOST:PORT or unix:/PATH \
             (`strongroom dev` writes a shell file `env` with this and the certificates: `. DIR/env`)"
                .to_owned(),
        )
    })?;
    let endpoint = endpoint(&url, matches)?;
    let region = region(matches)?;
    let limit = Duration::from_secs(CONNECT_TIMEOUT_S);
    let channel = match tokio::time::timeout(limit, endpoint.connect()).await {
        Ok(Ok(channel)) => channel,
        Ok(Err(error)) => return Err(Failure::Connection(unreachable(&url.text, &reasons(&error)))),
        Err(_) => {
            let reason = format!("no connection within {CONNECT_TIMEOUT_S} s");
            return Err(Failure::Connection(unreachable(&url.text, &reason)));
        }
    };
    Ok(Connection { channel, timeout: timeout(matches), region })
}

/// An error and what caused it, in one line.
pub fn reasons(error: &dyn std::error::Error) -> String {
    let mut texts = vec![error.to_string()];
    let mut source = error.source();
    while let Some(error) = source {
        let text = error.to_string();
        if !texts.iter().any(|known| known.contains(&text)) {
            texts.push(text);
        }
        source = error.source();
    }
    texts.join(": ")
}

/// A setting's text and where it comes from.
struct Setting {
    text: String,
    /// `--ca` or `STRONGROOM_CA`.
    origin: String,
}

fn setting(matches: &ArgMatches, name: &'static str) -> Option<Setting> {
    let text = matches.get_one::<String>(&id(name)).filter(|text| !text.is_empty())?.clone();
    let origin = match matches.value_source(&id(name)) {
        Some(ValueSource::EnvVariable) => variable(name).to_owned(),
        _ => format!("--{name}"),
    };
    Some(Setting { text, origin })
}

fn endpoint(url: &Setting, matches: &ArgMatches) -> Result<Endpoint, Failure> {
    let wrong = |reason: &str| {
        Failure::Settings(format!(
            "{}: '{}' is not an endpoint{reason}; write https://HOST:PORT or unix:/PATH",
            url.origin, url.text
        ))
    };
    let tls = url.text.starts_with("https://");
    if url.text.starts_with("http://") {
        return Err(wrong(" (the daemon speaks TLS only)"));
    }
    if !tls && !url.text.starts_with("unix:") {
        return Err(wrong(""));
    }
    let endpoint = Endpoint::from_shared(url.text.clone())
        .and_then(|endpoint| endpoint.user_agent(concat!("strongroom-cli/", env!("CARGO_PKG_VERSION"))))
        .map_err(|error| wrong(&format!(" ({})", reasons(&error))))?
        .connect_timeout(Duration::from_secs(CONNECT_TIMEOUT_S))
        .http2_keep_alive_interval(Duration::from_secs(KEEP_ALIVE_INTERVAL_S))
        .keep_alive_timeout(Duration::from_secs(KEEP_ALIVE_TIMEOUT_S));
    if !tls {
        return Ok(endpoint);
    }
    let (ca, cert, key) = (pem(matches, CA)?, pem(matches, CERT)?, pem(matches, KEY)?);
    let origins = format!("{}, {}", cert.origin, key.origin);
    let config = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(ca.text))
        .identity(Identity::from_pem(cert.text, key.text));
    endpoint.tls_config(config).map_err(|error| {
        Failure::Settings(format!(
            "the certificate and the key ({origins}) cannot be used together: {}; \
             is the key the certificate's own?",
            reasons(&error)
        ))
    })
}

/// The text of a PEM file that holds what it should.
fn pem(matches: &ArgMatches, name: &'static str) -> Result<Setting, Failure> {
    let what = match name {
        CA => "the CA certificates that vouch for the daemon",
        CERT => "our client certificate",
        _ => "our client certificate's private key",
    };
    let Setting { text: path, origin } = setting(matches, name).ok_or_else(|| {
        Failure::Settings(format!(
            "{} is not set: it names the PEM file with {what} (or use --{name}); \
             an https endpoint needs STRONGROOM_CA, STRONGROOM_CERT and STRONGROOM_KEY",
            variable(name)
        ))
    })?;
    let text = fs::read_to_string(&path)
        .map_err(|error| Failure::Settings(format!("{origin}: {path}, {what}, cannot be read: {error}")))?;
    let valid = match name {
        KEY => PrivateKeyDer::from_pem_slice(text.as_bytes()).is_ok(),
        _ => CertificateDer::pem_slice_iter(text.as_bytes()).next().is_some_and(|first| first.is_ok()),
    };
    let expected = if name == KEY { "an unencrypted PRIVATE KEY" } else { "a CERTIFICATE" };
    if !valid {
        return Err(Failure::Settings(format!("{origin}: {path} has no PEM block of {expected}")));
    }
    Ok(Setting { text, origin: format!("{origin}: {path}") })
}

fn region(matches: &ArgMatches) -> Result<Option<AsciiMetadataValue>, Failure> {
    let Some(name) = matches.get_one::<String>(&id(REGION)) else { return Ok(None) };
    let wrong = |_| Failure::Settings(format!("--region: '{name}' is no Region's name"));
    name.parse().map(Some).map_err(wrong)
}

fn timeout(matches: &ArgMatches) -> Duration {
    Duration::from_secs(matches.get_one(&id(TIMEOUT)).copied().unwrap_or(CONNECT_TIMEOUT_S))
}

fn unreachable(url: &str, reason: &str) -> String {
    let hint = match url.starts_with("unix:") {
        true => "is the daemon running, and may we open its socket?",
        false => "is the daemon running there, and are its CA and our certificate right?",
    };
    format!("{url} cannot be reached: {reason}; {hint}")
}

/// Ids are apart from those of the requests' members.
fn id(name: &str) -> String {
    format!("connection.{name}")
}

fn variable(name: &str) -> &'static str {
    match name {
        ENDPOINT => "STRONGROOM_ENDPOINT",
        CA => "STRONGROOM_CA",
        CERT => "STRONGROOM_CERT",
        _ => "STRONGROOM_KEY",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The failure of connecting with these flags; variables of the tests' own
    /// environment do not count.
    async fn failure(flags: &[&str]) -> String {
        let args = args().into_iter().map(|arg| arg.env(None::<&str>));
        let flags = std::iter::once("test").chain(flags.iter().copied());
        let matches = clap::Command::new("test").args(args).try_get_matches_from(flags).unwrap();
        connect(&matches).await.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn a_failure_names_the_setting_the_file_and_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let cert = file("cert.pem", &issued.cert.pem());
        let key = file("key.pem", &issued.signing_key.serialize_pem());
        let junk = file("junk.pem", "junk");
        let url = "https://127.0.0.1:1";

        assert!(failure(&[]).await.contains("STRONGROOM_ENDPOINT"));
        assert!(failure(&["--endpoint", "http://127.0.0.1:1"]).await.contains("TLS only"));
        assert!(failure(&["--endpoint", "127.0.0.1:1"]).await.contains("write https://HOST:PORT"));
        assert!(failure(&["--endpoint", url]).await.contains("STRONGROOM_CA is not set"));
        let no_key = failure(&["--endpoint", url, "--ca", &cert, "--cert", &cert]).await;
        assert!(no_key.contains("STRONGROOM_KEY is not set"), "{no_key}");
        let missing = failure(&["--endpoint", url, "--ca", "/no/such.pem"]).await;
        assert!(missing.contains("--ca: /no/such.pem") && missing.contains("No such file"), "{missing}");
        let wrong = failure(&["--endpoint", url, "--ca", &cert, "--cert", &cert, "--key", &junk]).await;
        assert!(wrong.contains("--key") && wrong.contains("PRIVATE KEY"), "{wrong}");
        let dead = failure(&["--endpoint", url, "--ca", &cert, "--cert", &cert, "--key", &key]).await;
        assert!(dead.contains(url) && dead.contains("refused"), "{dead}");
        let socket = failure(&["--endpoint", "unix:/no/such/socket"]).await;
        assert!(socket.contains("unix:/no/such/socket cannot be reached"), "{socket}");
    }
}
