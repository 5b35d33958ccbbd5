//! `strongroom events verify`: the check of the log's chain.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgMatches, Command};
use prost_reflect::DynamicMessage;
use serde_json::Value as Json;

use crate::cli::output::{self, Format, printable};
use crate::cli::schema::{self, Service};
use crate::cli::values::Sources;
use crate::cli::{Failure, arguments, call, connection, json, notice};

const VERIFY_EVENTS: &str = "VerifyEvents";
const WRITE_HEAD: &str = "events.write-head";
/// A long log takes longer to check than another operation to answer.
const VERIFY_TIMEOUT_S: u64 = 3600;
const FINDINGS: u8 = 1;

/// `verify`.
pub fn command() -> Command {
    let method = Service::CloudTrail.method(VERIFY_EVENTS);
    Command::new("verify")
        .about(schema::method_comment(&method))
        .args(arguments::of_request(&method.input(), &[]))
        .arg(
            Arg::new(WRITE_HEAD)
                .long("write-head")
                .value_name("FILE")
                .help("Keep the log's head in this file, to be given to --expected-head (file://FILE) later"),
        )
        .arg(output::format_arg(&["table", "json"]))
        .after_help(format!(
            "Exit code {FINDINGS}: there are findings; the head is not written then. \
             Unless --timeout says otherwise, the answer may take {VERIFY_TIMEOUT_S} s."
        ))
}

/// Verifies, prints what was found, and exits with 1 where anything does not fit.
///
/// # Errors
/// Any [`Failure`].
pub async fn run(matches: &ArgMatches) -> Result<ExitCode, Failure> {
    let method = Service::CloudTrail.method(VERIFY_EVENTS);
    let mut request = arguments::request(&method.input(), matches, &mut Sources::of_process())?;
    trim(&mut request, "expected_head");
    let mut connection = connection::connect(matches).await?;
    connection.timeout = connection::asked_timeout(matches).unwrap_or(Duration::from_secs(VERIFY_TIMEOUT_S));
    let answer = call::unary(&connection, &method, request).await?;
    let findings = findings(&answer);
    match output::format(matches) {
        Format::Json => output::to_stdout(&output::lines(&as_json(&answer, &findings)))?,
        _ => output::to_stdout(as_text(&answer, &findings).as_bytes())?,
    }
    if !findings.is_empty() {
        return Ok(ExitCode::from(FINDINGS));
    }
    if let Some(file) = matches.get_one::<String>(WRITE_HEAD) {
        write_head(&answer, Path::new(file))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A head that comes from a file ends with a newline.
fn trim(request: &mut DynamicMessage, name: &str) {
    if request.has_field_by_name(name)
        && let Some(text) = request.get_field_by_name_mut(name).and_then(|value| value.as_string_mut())
    {
        *text = text.trim().to_owned();
    }
}

fn write_head(answer: &DynamicMessage, file: &Path) -> Result<(), Failure> {
    let head = answer.get_field_by_name("head").and_then(|head| head.as_str().map(str::to_owned));
    match head.filter(|head| !head.is_empty()) {
        Some(head) => output::replace_file(file, format!("{head}\n").as_bytes()),
        None => {
            notice(&format_args!("The log has no signed head yet; {} is not written.", file.display()));
            Ok(())
        }
    }
}

fn findings(answer: &DynamicMessage) -> Vec<String> {
    let findings = answer.get_field_by_name("findings");
    let findings = findings.as_ref().and_then(|findings| findings.as_list()).unwrap_or_default();
    findings.iter().filter_map(|finding| finding.as_str().map(str::to_owned)).collect()
}

/// The answer, its findings also where there are none.
fn as_json(answer: &DynamicMessage, findings: &[String]) -> Json {
    let mut json = json::to_json(answer);
    if let Json::Object(members) = &mut json {
        members.insert("Findings".to_owned(), findings.into());
    }
    json
}

/// A member a line, then the findings.
fn as_text(answer: &DynamicMessage, findings: &[String]) -> String {
    let mut text = String::new();
    if let Json::Object(members) = json::to_json(answer) {
        for (name, value) in members.iter().filter(|(name, _)| *name != "Findings") {
            text += &match output::cell(value) {
                pem if pem.contains('\n') => format!("{name}:\n{}\n", pem.trim_end()),
                value => format!("{:<16} {}\n", format!("{name}:"), printable(&value)),
            };
        }
    }
    match findings {
        [] => text + "No findings: the log is whole.\n",
        findings => {
            let lines: String =
                findings.iter().map(|finding| format!("- {}\n", printable(finding))).collect();
            format!("{text}{} findings:\n{lines}", findings.len())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::values::message_from_json;
    use serde_json::json;

    #[test]
    fn counts_head_and_findings_are_printed() {
        let output = Service::CloudTrail.method(VERIFY_EVENTS).output();
        let answer =
            json!({"Events": 7, "UnsignedEvents": 0, "Head": "7:ab", "Findings": ["row 3 differs\u{1b}"]});
        let answer = message_from_json(&output, &answer).unwrap();
        let findings = findings(&answer);
        assert_eq!(
            as_text(&answer, &findings),
            "Events:          7\nUnsignedEvents:  0\nHead:            7:ab\n1 findings:\n- row 3 differs\\u{1b}\n"
        );
        assert!(as_text(&answer, &[]).ends_with("No findings: the log is whole.\n"));
        assert_eq!(as_json(&DynamicMessage::new(output), &[]), json!({"Findings": []}));
    }

    #[test]
    fn a_head_from_a_file_is_trimmed() {
        let input = Service::CloudTrail.method(VERIFY_EVENTS).input();
        let mut request = message_from_json(&input, &json!({"ExpectedHead": "7:ab\n"})).unwrap();
        trim(&mut request, "expected_head");
        assert_eq!(json::to_json(&request), json!({"ExpectedHead": "7:ab"}));
        let mut empty = DynamicMessage::new(input);
        trim(&mut empty, "expected_head");
        assert_eq!(json::to_json(&empty), json!({}));
    }
}
