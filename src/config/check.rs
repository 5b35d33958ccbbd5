//! What a value cannot show alone.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;

use serde::Serialize;

use super::error::{ConfigError, Key, Problem};
use super::layers::Layers;
use super::settings::{Config, TrailSettings};
use super::values::check_region;
use crate::hsm::TokenUri;
use crate::key::REGIONS_MAX;

/// The problems found so far.
pub(super) struct Report<'a> {
    layers: &'a Layers,
    problems: Vec<Problem>,
}

impl<'a> Report<'a> {
    pub fn new(layers: &'a Layers, problems: Vec<Problem>) -> Self {
        Report { layers, problems }
    }

    /// Notes what is wrong with the value of a key, and the remedy.
    pub fn add(&mut self, key: &Key, text: impl Into<String>, remedy: impl Into<String>) {
        let source = self.layers.source_of(key);
        self.problems.push(Problem {
            source,
            key: key.to_string(),
            text: text.into(),
            remedy: remedy.into(),
        });
    }

    /// Notes a problem that was found elsewhere.
    pub fn take(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    pub fn finish(self) -> Result<(), ConfigError> {
        if self.problems.is_empty() { Ok(()) } else { Err(ConfigError { problems: self.problems }) }
    }
}

/// Checks all but the accounts and the contents of files.
pub(super) fn settings(config: &Config, report: &mut Report<'_>) {
    names(config, report);
    numbers("limits", &config.limits, report);
    numbers("quotas", &config.quotas, report);
    numbers("quotas.operations", &config.quotas.operations, report);
    for name in config.quotas.operations.keys().filter(|name| !is_operation(name)) {
        let remedy = "write the name of an operation, such as CreateKey";
        report.add(&Key::of("quotas.operations").field(name), "is no operation", remedy);
    }
    numbers("hsm", &config.hsm, report);
    if config.store.commit_timeout_ms == 0 || config.store.commit_timeout_ms > TIME_MS_MAX {
        let key = Key::of("store.commit_timeout_ms");
        report.add(&key, "is out of range", format!("write a whole number from 1 to {TIME_MS_MAX}"));
    }
    if config.tls.client_cas.is_empty() {
        let key = Key::of("tls.client_cas");
        report.add(
            &key,
            "there is no CA for clients",
            "add a section [tls.client_cas.NAME] with file = \"PATH\"",
        );
    }
    regions(config, report);
    socket(config, report);
    if config.aws.plaintext && !config.aws.address.ip().is_loopback() {
        let text = "would let everybody on the network read what is sent";
        let remedy = "remove it, or let aws.address be a loopback address such as 127.0.0.1:8080";
        report.add(&Key::of("aws.plaintext"), text, remedy);
    }
    trail(&config.trail, report);
    super::rules::check(config, report);
    if config.insights.minute < MINUTE_MIN {
        report.add(&Key::of("insights.minute"), "is shorter than 100 ms", "write such as \"1m\"");
    }
    for (name, module) in &config.modules {
        if !module.library.is_file() {
            let key = Key::of("modules").field(name).field("library");
            let text = format!("there is no file {}", module.library.display());
            report.add(&key, text, "write the path of the PKCS#11 library, or install it");
        }
    }
    if let Err(error) = tracing_subscriber::EnvFilter::try_new(&config.log.filter) {
        let remedy =
            "write a level (error, warn, info, debug, trace) or directives such as info,strongroom=debug";
        report.add(&Key::of("log.filter"), format!("is not a filter ({error})"), remedy);
    }
}

/// Shorter minutes are more than there are numbers for.
const MINUTE_MIN: std::time::Duration = std::time::Duration::from_millis(100);
/// A year: longer times overflow what the clock can add, and are no limit.
const TIME_MS_MAX: u64 = 365 * 24 * 3_600_000;

/// In these sections every number is a limit, and 0 is none.
fn numbers(section: &str, settings: &impl Serialize, report: &mut Report<'_>) {
    let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(settings) else { return };
    for (name, value) in fields {
        let Some(number) = value.as_u64() else { continue };
        let most = if name.ends_with("_ms") { TIME_MS_MAX } else { u64::MAX };
        let key = Key::of(section).field(&name);
        if number == 0 {
            report.add(&key, "is 0, which is no limit", "write a whole number of at least 1");
        } else if number > most {
            report.add(&key, "is more than a year", format!("write a whole number from 1 to {most}"));
        }
    }
}

fn is_operation(name: &str) -> bool {
    let pool = prost_reflect::DescriptorPool::decode(crate::proto::DESCRIPTORS).ok();
    let of =
        |service: prost_reflect::ServiceDescriptor| service.methods().any(|method| method.name() == name);
    pool.is_some_and(|pool| pool.services().any(of))
}

/// Names of sections are used in the store's rows, metrics and logs.
fn names(config: &Config, report: &mut Report<'_>) {
    const NAME_BYTES_MAX: usize = 64;
    let sections = [
        ("tls.client_cas", config.tls.client_cas.keys().collect::<BTreeSet<_>>()),
        ("modules", config.modules.keys().collect()),
        ("rules", config.rules.keys().collect()),
        ("metric_filters", config.metric_filters.keys().collect()),
        ("targets", config.targets.keys().collect()),
        ("pins", config.pins.keys().collect()),
    ];
    for (section, names) in sections {
        for name in names {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
            if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(plain) {
                let remedy = "write letters, digits, hyphens and underscores, at most 64";
                report.add(&Key::of(section).field(name), "is not a name", remedy);
            }
        }
    }
}

fn regions(config: &Config, report: &mut Report<'_>) {
    let section = Key::of("regions");
    if config.regions.len() >= REGIONS_MAX {
        let text = format!("there are more than {} of them", REGIONS_MAX - 1);
        report.add(&section, text, "remove Regions");
    }
    let mut tokens = BTreeSet::new();
    for (name, settings) in &config.regions {
        let key = section.field(name);
        if let Err(text) = check_region(name) {
            report.add(&key, text, "write a Region's name, such as [regions.eu-central-1]");
        }
        if *name == config.region {
            report.add(&key, "is `region` already", "remove the section");
        }
        for member in &settings.members {
            let key = key.field("members");
            if !config.modules.contains_key(&member.module) {
                report.add(&key, format!("there is no module {}", member.module), "add it to [modules]");
            }
            if !config.pins.contains_key(&member.pin) {
                report.add(&key, "pin names none of [pins]", "write the name of a PIN, not the PIN");
            }
            match member.token.parse::<TokenUri>() {
                Err(error) => report.add(&key, error.to_string(), "write pkcs11:token=LABEL;serial=SERIAL"),
                Ok(token) if !tokens.insert(token.to_string()) => {
                    report.add(&key, format!("{token} is there twice"), "give each Region tokens of its own");
                }
                Ok(_) => (),
            }
        }
    }
}

fn socket(config: &Config, report: &mut Report<'_>) {
    let Some(path) = &config.grpc.unix_socket else { return };
    if path.as_os_str().as_bytes().len() > SOCKET_PATH_BYTES_MAX {
        let text =
            format!("is longer than {SOCKET_PATH_BYTES_MAX} bytes, more than a Unix socket's path may be");
        report.add(&Key::of("grpc.unix_socket"), text, "write a shorter path");
    }
}

/// The names of digests have whole seconds.
fn trail(settings: &TrailSettings, report: &mut Report<'_>) {
    let digest_ms = settings.digest_interval.as_millis();
    if digest_ms == 0 || !digest_ms.is_multiple_of(1_000) {
        report.add(
            &Key::of("trail.digest_interval"),
            "is not whole seconds, one or more",
            "write such as \"1h\"",
        );
    }
    if settings.file_bytes_max == 0 {
        report.add(&Key::of("trail.file_bytes_max"), "is 0", "write a whole number of at least 1");
    }
    if settings.s3.access_key_id.is_some() != settings.s3.secret_access_key_file.is_some() {
        let text = "access_key_id and secret_access_key_file belong together";
        report.add(&Key::of("trail.s3"), text, "write both or neither");
    }
    if settings.s3.object_lock_mode.is_some() != settings.s3.object_lock_days.is_some_and(|days| days > 0) {
        let text = "object_lock_mode and object_lock_days, of one or more, belong together";
        report.add(&Key::of("trail.s3"), text, "write both or neither");
    }
}

/// `sun_path` of sockaddr_un without its final zero (unix(7)).
pub const SOCKET_PATH_BYTES_MAX: usize = 107;
