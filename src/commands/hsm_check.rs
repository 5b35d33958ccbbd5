//! `strongroom hsm check`: what an HSM is worth to Strongroom, before it is bought
//! or taken in. Makes keys under a label of its own, and destroys them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use secrecy::SecretString;
use serde_json::{Value as Json, json};

use super::hsm_bring::{access, secret, so_pin};
use crate::cli::{print_json, print_table};
use crate::config::{Config, Flags};
use crate::hsm::{
    ClusterSettings, Conformance, Finding, HsmError, ModuleSettings, Modules, Need, Residence, TokenAccess,
    check_conformance, list_tokens,
};
use crate::key::spec;
use crate::proto::kms::{KeySpec, KeyUsageType};
use crate::wire::Text;

/// The name of a module that is no configuration's.
const UNNAMED: &str = "library";

/// The options of `strongroom hsm check`.
#[derive(Debug, Clone, clap::Args)]
pub struct HsmCheckArgs {
    /// The module: a name of [modules], or the path of a PKCS#11 library, for
    /// which no configuration is needed.
    pub module: String,
    /// The configuration file; not read for the path of a library.
    #[arg(long, env = "STRONGROOM_CONFIG", default_value = "/etc/strongroom/strongroom.toml")]
    pub config: PathBuf,
    /// The token: its RFC 7512 URI, `pkcs11:token=LABEL;serial=SERIAL`; needed
    /// where the module has several.
    #[arg(long)]
    pub token: Option<String>,
    /// The crypto user's PIN, a name of [pins].
    #[arg(long, conflicts_with = "pin_file")]
    pub pin: Option<String>,
    /// A file with the crypto user's PIN; without this and --pin it is asked for at
    /// the terminal.
    #[arg(long)]
    pub pin_file: Option<PathBuf>,
    /// A file with the security officer's PIN, to try what needs their approval
    /// too.
    #[arg(long)]
    pub so_pin_file: Option<PathBuf>,
    /// Longest that a step may take in seconds; some HSMs make RSA-4096 keys for a
    /// minute.
    #[arg(long, default_value_t = 180)]
    pub step_timeout: u64,
    /// How the answer is printed.
    #[arg(short, long, value_parser = ["table", "json"], default_value = "table")]
    pub output: String,
}

/// Tries everything. Exit code 1: the daemon could not use the HSM, or keys would
/// not be safe in it. The daemon may run.
pub fn run(args: &HsmCheckArgs) -> anyhow::Result<ExitCode> {
    crate::hardening::harden();
    let (modules, token) = find(args)?;
    let so_pin = args.so_pin_file.as_ref().map(|file| so_pin(&Some(file.clone()), "")).transpose()?;
    eprintln!("{} of {} is tried; this takes a while", token.token, token.module);
    let report = attend(&modules, &token, so_pin, Duration::from_secs(args.step_timeout))?;
    match args.output.as_str() {
        "json" => print_json(&report.json())?,
        _ => report.print()?,
    }
    Ok(ExitCode::from(u8::from(!report.fits())))
}

/// The module and the token, and how to log in.
fn find(args: &HsmCheckArgs) -> anyhow::Result<(std::sync::Arc<Modules>, TokenAccess)> {
    let config = match args.module.contains('/') {
        true => None,
        false => Some(Config::load(Some(&args.config), &Flags::new())?.config),
    };
    let (modules, module) = match &config {
        None => (Modules::new(unnamed(&args.module), ClusterSettings::default()), UNNAMED.to_owned()),
        Some(config) => (Modules::new(config.modules.clone(), config.hsm.clone()), args.module.clone()),
    };
    let token = match &args.token {
        Some(token) => token.clone(),
        None => only_token(&modules, &module)?,
    };
    let access = match (&config, &args.pin) {
        (Some(config), Some(_)) => access(config, &token, &Some(module), &args.pin, "")?,
        (None, Some(_)) => {
            bail!("--pin is a name of the configuration: give --pin-file with a library's path")
        }
        _ => TokenAccess {
            module,
            pin: secret(&args.pin_file, &format!("PIN of the crypto user of {token}: "))
                .context("the crypto user's PIN: give --pin-file where there is no terminal")?,
            token: token.parse()?,
        },
    };
    Ok((modules, access))
}

fn unnamed(library: &str) -> BTreeMap<String, ModuleSettings> {
    let settings = ModuleSettings { library: Path::new(library).to_owned(), environment: BTreeMap::new() };
    [(UNNAMED.to_owned(), settings)].into()
}

fn only_token(modules: &Modules, module: &str) -> anyhow::Result<String> {
    let tokens = list_tokens(modules, module)?;
    match tokens.as_slice() {
        [one] => Ok(one.uri.to_string()),
        [] => bail!("the module has no initialised token: initialise one with the vendor's tool"),
        several => {
            let uris: Vec<String> = several.iter().map(|token| token.uri.to_string()).collect();
            bail!("--token: the module has several; say which: {}", uris.join(", "))
        }
    }
}

/// What was found.
struct Report {
    findings: Vec<Finding>,
    conformance: Option<Conformance>,
}

/// Has a thread of its own try it all: a call that hangs cannot be ended.
fn attend(
    modules: &std::sync::Arc<Modules>,
    token: &TokenAccess,
    so_pin: Option<SecretString>,
    step_timeout: Duration,
) -> anyhow::Result<Report> {
    enum Said {
        Finding(Finding),
        End(Result<Conformance, HsmError>),
    }
    let (say, hear) = mpsc::channel();
    let (modules, token) = (modules.clone(), token.clone());
    std::thread::spawn(move || {
        let mut tell = |finding| {
            // Where nobody hears it any more, the process ends.
            let _ = say.send(Said::Finding(finding));
        };
        let end = check_conformance(&modules, &token, so_pin.as_ref(), &mut tell);
        modules.finalise();
        let _ = say.send(Said::End(end));
    });
    let mut report = Report { findings: Vec::new(), conformance: None };
    loop {
        match hear.recv_timeout(step_timeout) {
            Ok(Said::Finding(finding)) => report.findings.push(finding),
            Ok(Said::End(end)) => {
                report.conformance = Some(end?);
                return Ok(report);
            }
            Err(RecvTimeoutError::Timeout) => {
                let reason = format!("nothing came back for {} s: it hangs", step_timeout.as_secs());
                report.findings.push(Finding {
                    area: "calls",
                    what: "come back".to_owned(),
                    need: Need::Required,
                    result: Some(Err(reason)),
                });
                return Ok(report);
            }
            Err(RecvTimeoutError::Disconnected) => bail!("the check ended early"),
        }
    }
}

/// A kind of KMS key, and why there are none of it on the HSM.
struct Kind {
    spec: KeySpec,
    usage: KeyUsageType,
    lives: Option<Residence>,
    lacks: Vec<String>,
}

impl Report {
    /// Whether the daemon can use the HSM.
    fn fits(&self) -> bool {
        let fails =
            |finding: &Finding| finding.need == Need::Required && !matches!(finding.result, Some(Ok(_)));
        self.conformance.is_some()
            && !self.findings.iter().any(fails)
            && self.kinds().iter().any(|kind| kind.lacks.is_empty())
    }

    fn kinds(&self) -> Vec<Kind> {
        let Some(conformance) = &self.conformance else { return Vec::new() };
        let mut kinds = Vec::new();
        for spec in every::<KeySpec>() {
            for usage in every::<KeyUsageType>() {
                let allowed = spec::usage(spec, Some(usage)).is_ok();
                let Some(needs) = spec::needs(spec, usage).filter(|_| allowed) else { continue };
                let lacks = needs
                    .into_iter()
                    .filter_map(|need| conformance.lacks(need).map(|reason| format!("{need}: {reason}")));
                let lives = spec::material(spec).and_then(|material| conformance.residence(material));
                kinds.push(Kind { spec, usage, lives, lacks: lacks.collect() });
            }
        }
        kinds
    }

    fn json(&self) -> Json {
        let findings = self.findings.iter().map(|finding| {
            json!({
                "Area": finding.area,
                "What": finding.what,
                "Required": finding.need == Need::Required,
                "Works": finding.result.as_ref().map(Result::is_ok),
                "Note": note(finding),
            })
        });
        let kinds = self.kinds().into_iter().map(|kind| {
            json!({
                "KeySpec": kind.spec.text(),
                "KeyUsage": kind.usage.text(),
                "Works": kind.lacks.is_empty(),
                "Wrapped": kind.lives.map(|lives| lives == Residence::Wrapped),
                "Lacks": kind.lacks,
            })
        });
        json!({
            "Fits": self.fits(),
            "Findings": findings.collect::<Vec<_>>(),
            "KeySpecs": kinds.collect::<Vec<_>>(),
        })
    }

    fn print(&self) -> anyhow::Result<()> {
        let findings = self.findings.iter().map(|finding| {
            let works = match (&finding.result, finding.need) {
                (None, _) => "not tried",
                (Some(Ok(_)), _) => "yes",
                (Some(Err(_)), Need::Required) => "NO",
                (Some(Err(_)), Need::Useful) => "no",
            };
            vec![finding.area.to_owned(), finding.what.clone(), works.to_owned(), note(finding)]
        });
        print_table(&["What the daemon needs", "", "", "Note"], findings.collect())?;
        let kinds = self.kinds().into_iter().map(|kind| {
            let (works, note) = match (kind.lacks.is_empty(), kind.lives) {
                (true, Some(Residence::Resident)) => {
                    ("yes", "a token object that cannot be wrapped: it is on one HSM alone".to_owned())
                }
                (true, _) => ("yes", operations(kind.usage).to_owned()),
                (false, _) => ("no", several(&kind.lacks)),
            };
            vec![kind.spec.text().to_owned(), kind.usage.text().to_owned(), works.to_owned(), note]
        });
        print_table(&["KeySpec", "KeyUsage", "", "Operations, or why not"], kinds.collect())?;
        println!("{}", if self.fits() { "The daemon can use it." } else { "The daemon cannot use it." });
        Ok(())
    }
}

/// The first reason; the others are in the JSON.
fn several(reasons: &[String]) -> String {
    match reasons {
        [] => String::new(),
        [one] => one.clone(),
        [first, others @ ..] => format!("{first}; and {} more", others.len()),
    }
}

fn every<T: Text>() -> impl Iterator<Item = T> {
    T::TEXTS.iter().filter_map(|(_, number)| T::try_from(*number).ok())
}

fn note(finding: &Finding) -> String {
    match &finding.result {
        Some(Ok(note) | Err(note)) => note.clone(),
        None => "it needs the security officer's PIN: --so-pin-file".to_owned(),
    }
}

/// What a key of a usage is for, beside CreateKey, rotation and the like.
fn operations(usage: KeyUsageType) -> &'static str {
    match usage {
        KeyUsageType::EncryptDecrypt => {
            "Encrypt, Decrypt, ReEncrypt; GenerateDataKey… with SYMMETRIC_DEFAULT"
        }
        KeyUsageType::SignVerify => "Sign, Verify",
        KeyUsageType::GenerateVerifyMac => "GenerateMac, VerifyMac",
        KeyUsageType::KeyAgreement => "DeriveSharedSecret",
        KeyUsageType::EncapsulateDecapsulate | KeyUsageType::Unspecified => "",
    }
}
