//! Mutual TLS: the daemon's own certificate, and the CAs whose clients it
//! believes; and TLS without a client's certificate, where a signature says who
//! calls.
//!
//! A [`TlsState`] is loaded whole or not at all and never changes; a reload
//! makes a new one. Open connections keep the TLS session they have, but their
//! client's chain is verified again, by [`TlsState::verify`], against the
//! state of the day.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
};
use sha2::{Digest, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use crate::caller::Credential;

/// The largest certificate, key or CA file.
const PEM_FILE_BYTES_MAX: u64 = 1 << 20;

/// The largest CRL file.
const CRL_FILE_BYTES_MAX: u64 = 64 << 20;

/// What the configuration says of TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// PEM: the daemon's certificate, then its intermediates.
    pub certificate: PathBuf,
    /// PEM: the private key of `certificate`.
    pub key: PathBuf,
    /// Whose clients are believed; at least one.
    pub client_cas: Vec<ClientCaSettings>,
}

/// One CA of `[tls.client_cas]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCaSettings {
    /// How principals refer to it.
    pub name: String,
    /// PEM: its certificates, each a trust anchor.
    pub file: PathBuf,
    /// PEM: the CRLs of the CA and of every intermediate below it. With a
    /// CRL file, a certificate whose status it does not tell is refused.
    pub crl: Option<PathBuf>,
    /// Whether a principal may be known by the CN of a certificate of this CA.
    pub common_names: bool,
}

/// Why TLS settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{file}: cannot be read: {reason}")]
    Read {
        /// The file.
        file: PathBuf,
        /// The system's words.
        reason: std::io::Error,
    },
    /// A file holds more than it may.
    #[error("{file}: larger than {bytes_max} bytes")]
    TooLarge {
        /// The file.
        file: PathBuf,
        /// The limit.
        bytes_max: u64,
    },
    /// A file does not hold what it should.
    #[error("{file}: {reason}")]
    Content {
        /// The file.
        file: PathBuf,
        /// What is wrong with it, and never a part of it.
        reason: String,
    },
    /// No CA, or two of one name.
    #[error("tls.client_cas: {0}")]
    ClientCas(String),
    /// rustls refuses the whole.
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
}

/// A verified client certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedClient {
    /// What it proves: its SAN URIs in their order, then its CN with each CA
    /// that vouches for it.
    pub credentials: Vec<Credential>,
    /// From when on it has to be verified again: the next end of a
    /// certificate or of a CRL.
    pub valid_until: UnixTime,
}

/// Why a client certificate is not believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientRefused {
    /// A word for the metric.
    pub reason: &'static str,
    /// A sentence for the client and the log.
    pub message: String,
}

impl fmt::Display for ClientRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ClientRefused {}

/// The TLS side of one configuration.
#[derive(Debug)]
pub struct TlsState {
    mutual: Arc<ServerConfig>,
    one_sided: Arc<ServerConfig>,
    clients: Arc<ClientVerifier>,
    not_after: UnixTime,
}

impl TlsState {
    /// Reads every file of `settings`.
    pub fn load(settings: &TlsSettings) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let clients = Arc::new(ClientVerifier::load(&settings.client_cas, &provider)?);
        let chain = certificates(&settings.certificate)?;
        let not_after = chain
            .first()
            .and_then(|leaf| end_of(leaf))
            .ok_or_else(|| content(&settings.certificate, "the first certificate cannot be parsed"))?;
        let (mutual, one_sided) = server_configs(settings, chain, clients.clone(), provider)?;
        Ok(TlsState { mutual: Arc::new(mutual), one_sided: Arc::new(one_sided), clients, not_after })
    }

    /// What a new handshake is made with whose client shows a certificate.
    pub fn mutual(&self) -> Arc<ServerConfig> {
        self.mutual.clone()
    }

    /// What a new handshake is made with whose client shows none.
    pub fn one_sided(&self) -> Arc<ServerConfig> {
        self.one_sided.clone()
    }

    /// When the daemon's own certificate ends.
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }

    /// Verifies a client's chain, leaf first, as at `now`.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<VerifiedClient, ClientRefused> {
        let Some((leaf, intermediates)) = chain.split_first() else {
            return Err(ClientRefused {
                reason: "certificate_missing",
                message: "The client sent no certificate.".to_owned(),
            });
        };
        let cas = self.clients.vouching(leaf, intermediates, now).map_err(|e| refused(&e))?;
        Ok(VerifiedClient {
            credentials: credentials(leaf, &cas)?,
            valid_until: valid_until(chain, &cas, now),
        })
    }
}

/// The SHA-256 of a certificate, in hex.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    hex::encode(Sha256::digest(certificate.as_ref()))
}

/// The two configurations: mutual, for HTTP/2; and one-sided, for HTTP/1.1 too.
fn server_configs(
    settings: &TlsSettings,
    chain: Vec<CertificateDer<'static>>,
    clients: Arc<ClientVerifier>,
    provider: Arc<CryptoProvider>,
) -> Result<(ServerConfig, ServerConfig), TlsError> {
    let key = PrivateKeyDer::from_pem_slice(&read(&settings.key, PEM_FILE_BYTES_MAX)?).map_err(|_| {
        content(&settings.key, "holds no private key in PEM (PKCS#8, PKCS#1 or SEC1, unencrypted)")
    })?;
    let misfit = |e| content(&settings.key, &format!("does not fit {}: {e}", settings.certificate.display()));
    // All that rustls offers for TLS 1.2 is ECDHE with an AEAD.
    let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
    let builder = || ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(&versions);
    let mutual = builder()?.with_client_cert_verifier(clients);
    let mutual = mutual.with_single_cert(chain.clone(), key.clone_key()).map_err(misfit)?;
    let one_sided = builder()?.with_no_client_auth().with_single_cert(chain, key).map_err(misfit)?;
    Ok((finished(mutual, &[b"h2"]), finished(one_sided, &[b"h2", b"http/1.1"])))
}

fn finished(mut config: ServerConfig, protocols: &[&[u8]]) -> ServerConfig {
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    // No resumption: each connection proves its client's key anew, and no
    // ticket keeps an old session's secrets alive.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config
}

/// One named CA.
#[derive(Debug)]
struct ClientCa {
    name: String,
    common_names: bool,
    verifier: Arc<dyn ClientCertVerifier>,
    /// The ends of its CRLs.
    crl_ends: Vec<UnixTime>,
}

impl ClientCa {
    fn load(settings: &ClientCaSettings, provider: &Arc<CryptoProvider>) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&settings.file)? {
            if end_of(&certificate).is_some_and(|end| end <= UnixTime::now()) {
                tracing::warn!(ca = %settings.name, file = %settings.file.display(), "a CA certificate has expired");
            }
            roots.add(certificate).map_err(|e| content(&settings.file, &e.to_string()))?;
        }
        let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let mut crl_ends = Vec::new();
        if let Some(file) = &settings.crl {
            let crls = revocation_lists(file)?;
            crl_ends = crls.iter().filter_map(|crl| end_of_crl(crl)).collect();
            // webpki's own defaults do the rest: the whole chain is checked,
            // and an unknown status is refused.
            builder = builder.with_crls(crls).enforce_revocation_expiration();
        }
        let blamed = settings.crl.as_ref().unwrap_or(&settings.file);
        let verifier = builder.build().map_err(|e| content(blamed, &e.to_string()))?;
        Ok(ClientCa { name: settings.name.clone(), common_names: settings.common_names, verifier, crl_ends })
    }
}

/// The CAs of `[tls.client_cas]`, each with its own CRLs.
#[derive(Debug)]
struct ClientVerifier {
    /// The first one and the rest: there is always one.
    first: ClientCa,
    others: Vec<ClientCa>,
    hints: Vec<DistinguishedName>,
}

impl ClientVerifier {
    fn load(settings: &[ClientCaSettings], provider: &Arc<CryptoProvider>) -> Result<Self, TlsError> {
        for (index, ca) in settings.iter().enumerate() {
            if settings.iter().take(index).any(|other| other.name == ca.name) {
                return Err(TlsError::ClientCas(format!("two CAs have the name `{}`", ca.name)));
            }
        }
        let mut cas = settings
            .iter()
            .map(|ca| ClientCa::load(ca, provider))
            .collect::<Result<Vec<_>, _>>()?
            .into_iter();
        let first = cas.next().ok_or_else(|| TlsError::ClientCas("at least one CA is needed".to_owned()))?;
        let others: Vec<_> = cas.collect();
        let hints = std::iter::once(&first)
            .chain(&others)
            .flat_map(|ca| ca.verifier.root_hint_subjects().to_vec())
            .collect();
        Ok(ClientVerifier { first, others, hints })
    }

    fn cas(&self) -> impl Iterator<Item = &ClientCa> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// The CAs that vouch for a certificate, at least one. One CA that says
    /// `revoked`, or cannot tell though it has a CRL, overrules the others.
    fn vouching(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Vec<&ClientCa>, rustls::Error> {
        let mut vouching = Vec::new();
        let mut failure = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        for ca in self.cas() {
            match ca.verifier.verify_client_cert(leaf, intermediates, now) {
                Ok(_) => vouching.push(ca),
                Err(error) if concerns_revocation(&error) => return Err(error),
                Err(error) if is_unknown_issuer(&error) => {}
                Err(error) => failure = error,
            }
        }
        if vouching.is_empty() { Err(failure) } else { Ok(vouching) }
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.vouching(end_entity, intermediates, now).map(|_| ClientCertVerified::assertion())
    }

    // The possession of the key is proved the same way for every CA.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.first.verifier.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.first.verifier.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.first.verifier.supported_verify_schemes()
    }
}

fn is_unknown_issuer(error: &rustls::Error) -> bool {
    matches!(error, rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))
}

fn concerns_revocation(error: &rustls::Error) -> bool {
    use CertificateError::{
        ExpiredRevocationList, ExpiredRevocationListContext, Revoked, UnknownRevocationStatus,
    };
    matches!(
        error,
        rustls::Error::InvalidCertRevocationList(_)
            | rustls::Error::InvalidCertificate(
                Revoked
                    | UnknownRevocationStatus
                    | ExpiredRevocationList
                    | ExpiredRevocationListContext { .. }
            )
    )
}

/// An error of webpki in the words of a client and of a metric.
fn refused(error: &rustls::Error) -> ClientRefused {
    use CertificateError as E;
    let (reason, text) = match error {
        rustls::Error::InvalidCertificate(reason) => match reason {
            E::Revoked => ("certificate_revoked", "is revoked"),
            E::Expired | E::ExpiredContext { .. } => ("certificate_expired", "has expired"),
            E::NotValidYet | E::NotValidYetContext { .. } => {
                ("certificate_not_yet_valid", "is not valid yet")
            }
            E::UnknownIssuer => ("certificate_unknown_issuer", "was not issued by a CA that is trusted here"),
            E::UnknownRevocationStatus => {
                ("revocation_unknown", "has a revocation status that no configured CRL tells")
            }
            E::ExpiredRevocationList | E::ExpiredRevocationListContext { .. } => {
                ("crl_expired", "cannot be checked: the CRL of its CA has expired")
            }
            E::InvalidPurpose | E::InvalidPurposeContext { .. } => {
                ("certificate_purpose", "is not for TLS clients")
            }
            _ => ("certificate_invalid", "is not valid"),
        },
        rustls::Error::InvalidCertRevocationList(_) => {
            ("crl_invalid", "cannot be checked: the CRL of its CA is not valid")
        }
        _ => ("certificate_invalid", "is not valid"),
    };
    ClientRefused { reason, message: format!("The client certificate {text}.") }
}

/// What a verified certificate proves.
fn credentials(leaf: &CertificateDer<'_>, cas: &[&ClientCa]) -> Result<Vec<Credential>, ClientRefused> {
    let unreadable = || ClientRefused {
        reason: "certificate_invalid",
        message: "The client certificate cannot be parsed.".to_owned(),
    };
    let (_, certificate) = X509Certificate::from_der(leaf).map_err(|_| unreadable())?;
    let names = certificate.subject_alternative_name().map_err(|_| unreadable())?;
    let mut credentials: Vec<_> = names
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(Credential::Uri((*uri).to_owned())),
            _ => None,
        })
        .collect();
    let mut common_names = certificate.subject().iter_common_name();
    // A subject with two CNs could be read in two ways, so neither counts.
    if let (Some(cn), None) = (common_names.next(), common_names.next())
        && let Ok(cn) = cn.as_str()
    {
        credentials.extend(
            cas.iter()
                .filter(|ca| ca.common_names)
                .map(|ca| Credential::CommonName { ca: ca.name.clone(), cn: cn.to_owned() }),
        );
    }
    Ok(credentials)
}

/// The first end after `now` of anything that the verification rested on.
fn valid_until(chain: &[CertificateDer<'_>], cas: &[&ClientCa], now: UnixTime) -> UnixTime {
    let certificates = chain.iter().filter_map(|certificate| end_of(certificate));
    let crls = cas.iter().flat_map(|ca| ca.crl_ends.iter().copied());
    certificates.chain(crls).filter(|end| *end > now).min().unwrap_or(now)
}

/// The first second in which a certificate is no longer valid.
fn end_of(certificate: &[u8]) -> Option<UnixTime> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    after(certificate.validity().not_after.timestamp())
}

fn end_of_crl(crl: &[u8]) -> Option<UnixTime> {
    let (_, crl) = CertificateRevocationList::from_der(crl).ok()?;
    after(crl.next_update()?.timestamp())
}

fn after(seconds: i64) -> Option<UnixTime> {
    let seconds = u64::try_from(seconds).ok()?.checked_add(1)?;
    Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    pem_items(file, PEM_FILE_BYTES_MAX, "certificate")
}

fn revocation_lists(file: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    pem_items(file, CRL_FILE_BYTES_MAX, "CRL")
}

/// Every item of one kind in a PEM file; at least one.
fn pem_items<T: PemObject>(file: &Path, bytes_max: u64, kind: &str) -> Result<Vec<T>, TlsError> {
    let text = read(file, bytes_max)?;
    let items = T::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| content(file, "is not valid PEM"))?;
    if items.is_empty() {
        return Err(content(file, &format!("holds no {kind} in PEM")));
    }
    Ok(items)
}

fn read(file: &Path, bytes_max: u64) -> Result<Vec<u8>, TlsError> {
    use std::io::Read;
    let failed = |reason| TlsError::Read { file: file.to_owned(), reason };
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).map_err(failed)?;
    opened.take(bytes_max + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > bytes_max {
        return Err(TlsError::TooLarge { file: file.to_owned(), bytes_max });
    }
    Ok(bytes)
}

fn content(file: &Path, reason: &str) -> TlsError {
    TlsError::Content { file: file.to_owned(), reason: reason.to_owned() }
}
