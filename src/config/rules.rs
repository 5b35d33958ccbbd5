//! `[rules.NAME]` and `[targets.NAME]`: which events go where at once.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::check::Report;
use super::error::Key;
use super::settings::Config;
use super::values;
use crate::audit::log_filter::{LogFilter, Selector};
use crate::audit::pattern::Pattern;

/// `[rules.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleSettings {
    /// An EventBridge event pattern: JSON. Required.
    pub event_pattern: String,
    /// The names of `[targets]` that get the events. Required.
    pub targets: Vec<String>,
    /// Whether it is in force. Default `true`.
    #[serde(default = "yes")]
    pub enabled: bool,
}

/// `[metric_filters.NAME]`: exactly one of two patterns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricFilterSettings {
    /// An EventBridge event pattern: JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_pattern: Option<String>,
    /// A CloudWatch Logs filter pattern: `{ $.eventName = "DisableKey" }`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter_pattern: Option<String>,
    /// The counter's labels, and the selectors of their values in the record:
    /// `{ user = "$.userIdentity.arn" }`. Default: none.
    #[serde(default)]
    pub dimensions: BTreeMap<String, String>,
}

/// `[targets.NAME]`: exactly one of four kinds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetSettings {
    /// EventBridge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_bus: Option<EventBusSettings>,
    /// CloudWatch Logs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_stream: Option<LogStreamSettings>,
    /// CloudEvents over HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<WebhookSettings>,
    /// A file of this host, an event per line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// How long a delivery that fails is tried again. Default `"24h"`.
    #[serde(default = "a_day", with = "values::interval")]
    pub retry_for: Duration,
    /// Where what cannot be delivered is written. Default:
    /// `dead-letters/NAME.jsonl` in `data_dir`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letter_file: Option<PathBuf>,
}

/// `[targets.NAME.event_bus]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventBusSettings {
    /// The bus's name or ARN. Default `default`.
    #[serde(default = "default_bus")]
    pub name: String,
    /// What the events' sources begin with in place of `aws`, which AWS does not
    /// take from its customers. Default: `strongroom` for AWS, `aws` for another
    /// endpoint.
    #[serde(default)]
    pub source_prefix: Option<String>,
    /// Where it is.
    #[serde(flatten)]
    pub aws: AwsTargetSettings,
}

/// `[targets.NAME.log_stream]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogStreamSettings {
    /// The log group. Required; it must be there.
    pub group: String,
    /// The log stream. Default `strongroom`; it is made when it is not there.
    #[serde(default = "default_stream")]
    pub name: String,
    /// Where it is.
    #[serde(flatten)]
    pub aws: AwsTargetSettings,
}

/// Where one of AWS's services is. What is absent is as AWS's environment says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AwsTargetSettings {
    /// The service's URL. Default: AWS_ENDPOINT_URL_EVENTBRIDGE or
    /// AWS_ENDPOINT_URL_CLOUDWATCH_LOGS, AWS_ENDPOINT_URL, or AWS.
    pub endpoint: Option<String>,
    /// Its Region. Default: AWS_REGION, AWS_DEFAULT_REGION, or the daemon's.
    pub region: Option<String>,
    /// The access key's id; only with `secret_access_key_file`.
    pub access_key_id: Option<String>,
    /// A file with the secret access key.
    pub secret_access_key_file: Option<PathBuf>,
}

/// `[targets.NAME.webhook]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookSettings {
    /// Where events are posted. Required.
    pub url: String,
    /// A file with the secret that signs them: `whsec_` and Base64, as Standard
    /// Webhooks has it. Default: they are not signed.
    #[serde(default)]
    pub secret_file: Option<PathBuf>,
    /// CAs beside the system's: PEM. Default: none.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
}

impl TargetSettings {
    /// Every path of a target.
    pub(super) fn paths(&mut self) -> Vec<&mut PathBuf> {
        let mut paths: Vec<&mut PathBuf> = self.file.iter_mut().chain(&mut self.dead_letter_file).collect();
        paths.extend(self.event_bus.as_mut().and_then(|bus| bus.aws.secret_access_key_file.as_mut()));
        paths.extend(self.log_stream.as_mut().and_then(|stream| stream.aws.secret_access_key_file.as_mut()));
        if let Some(hook) = &mut self.webhook {
            paths.extend(hook.secret_file.iter_mut().chain(&mut hook.ca_file));
        }
        paths
    }

    fn kinds(&self) -> usize {
        let kinds = [
            self.event_bus.is_some(),
            self.log_stream.is_some(),
            self.webhook.is_some(),
            self.file.is_some(),
        ];
        kinds.into_iter().filter(|is_there| *is_there).count()
    }

    fn aws(&self) -> Option<&AwsTargetSettings> {
        let stream = || self.log_stream.as_ref().map(|stream| &stream.aws);
        self.event_bus.as_ref().map(|bus| &bus.aws).or_else(stream)
    }

    /// The files that must be there.
    fn secrets(&self) -> impl Iterator<Item = &PathBuf> {
        let hook = self.webhook.as_ref();
        let of_hook = hook.into_iter().flat_map(|hook| hook.secret_file.iter().chain(&hook.ca_file));
        of_hook.chain(self.aws().and_then(|aws| aws.secret_access_key_file.as_ref()))
    }
}

/// Checks what each rule and each target says.
pub(super) fn check(config: &Config, report: &mut Report<'_>) {
    for (name, rule) in &config.rules {
        let key = Key::of("rules").field(name);
        if let Err(error) = rule.event_pattern.parse::<Pattern>() {
            report.add(&key.field("event_pattern"), error.to_string(), "write an EventBridge event pattern");
        }
        if rule.targets.is_empty() {
            report.add(&key.field("targets"), "is empty", "name a section of [targets]");
        }
        for target in rule.targets.iter().filter(|target| !config.targets.contains_key(*target)) {
            let remedy = format!("add a section [targets.{target}]");
            report.add(&key.field("targets"), format!("there is no target {target}"), remedy);
        }
    }
    for (name, filter) in &config.metric_filters {
        metric_filter(&Key::of("metric_filters").field(name), filter, report);
    }
    for (name, target) in &config.targets {
        let key = Key::of("targets").field(name);
        if target.kinds() != 1 {
            let remedy = "write exactly one of event_bus, log_stream, webhook and file";
            report.add(&key, "is not one target", remedy);
        }
        let aws = target.aws();
        if aws.is_some_and(|aws| aws.access_key_id.is_some() != aws.secret_access_key_file.is_some()) {
            report.add(
                &key,
                "access_key_id and secret_access_key_file belong together",
                "write both or neither",
            );
        }
        if let Some(hook) = &target.webhook
            && !hook.url.starts_with("https://")
            && !hook.url.starts_with("http://")
        {
            report.add(&key.field("webhook").field("url"), "is not a URL", "write https://…");
        }
        for file in target.secrets() {
            if let Err(error) = std::fs::File::open(file) {
                report.add(
                    &key,
                    format!("{}: {error}", file.display()),
                    "write the path of a file that can be read",
                );
            }
        }
    }
}

/// Names of labels are Prometheus's.
fn metric_filter(key: &Key, filter: &MetricFilterSettings, report: &mut Report<'_>) {
    let problem = match (&filter.event_pattern, &filter.filter_pattern) {
        (Some(pattern), None) => pattern.parse::<Pattern>().err().map(|error| error.to_string()),
        (None, Some(pattern)) => pattern.parse::<LogFilter>().err().map(|error| error.to_string()),
        _ => Some("is not one pattern".to_owned()),
    };
    if let Some(problem) = problem {
        report.add(key, problem, "write exactly one of event_pattern and filter_pattern");
    }
    for (name, selector) in &filter.dimensions {
        let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic());
        if !first || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            report.add(key, format!("{name} is no label's name"), "write letters, digits and underscores");
        }
        if let Err(error) = selector.parse::<Selector>() {
            report.add(key, error.to_string(), "write a selector such as $.userIdentity.arn");
        }
    }
}

fn yes() -> bool {
    true
}

fn a_day() -> Duration {
    Duration::from_secs(24 * 3600)
}

fn default_bus() -> String {
    "default".into()
}

fn default_stream() -> String {
    "strongroom".into()
}
