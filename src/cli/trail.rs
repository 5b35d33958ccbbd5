//! `strongroom trail`: CloudTrail's operations, and the check of a trail's files.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Arg, ArgMatches, Command, value_parser};
use serde_json::{Value as Json, json};

use super::output::{self, Format, printable};
use super::schema::Service;
use super::values::message_from_json;
use super::{Failure, call, connection, json as aws_json, operation};
use crate::audit::trail::bucket::Buckets;
use crate::audit::trail::name::{organization_id, parse_arn};
use crate::audit::trail::verify::{Report, Subject, verify};
use crate::config::{S3Settings, TrailSettings};

const NAME: &str = "trail.name";
const ACCOUNT: &str = "trail.account";
const FOLDER: &str = "trail.folder";
const S3: &str = "trail.s3";
/// The exit code of a check that found something.
const FINDINGS: u8 = 1;

/// `trail`: an operation a command, and `verify`.
pub fn command() -> Command {
    operation::command(
        "trail",
        "Manage trails, in the AWS CLI's terms, and verify their files",
        Service::CloudTrail,
    )
    .subcommand(verify_command())
}

/// Runs the command that was matched.
///
/// # Errors
/// Any [`Failure`].
pub async fn run(matches: &ArgMatches) -> Result<ExitCode, Failure> {
    match matches.subcommand() {
        Some(("verify", matches)) => run_verify(matches).await,
        _ => operation::run(Service::CloudTrail, matches).await,
    }
}

fn verify_command() -> Command {
    Command::new("verify")
        .about("Verify a trail's files: which were changed, removed or added")
        .long_about(
            "Verify a trail's files: which were changed, removed or added. Follows the signed digests from \
             the newest back to the first, and reads every log file that they list. Exit code 1: there are findings.",
        )
        .arg(Arg::new(NAME).long("name").value_name("TEXT").required(true).help("The trail's name or ARN"))
        .arg(
            Arg::new(ACCOUNT)
                .long("account-id")
                .value_name("ID")
                .help("Of an organization trail: the account whose files are verified"),
        )
        .arg(
            Arg::new(FOLDER)
                .long("folder")
                .value_name("DIR")
                .value_parser(value_parser!(PathBuf))
                .help("The folder that the daemon has in trail.folder, or a copy of it"),
        )
        .arg(Arg::new(S3).long("s3-endpoint").value_name("URL").conflicts_with(FOLDER).help(
            "The S3 store [default: AWS_ENDPOINT_URL_S3, or AWS]; credentials as AWS's environment says",
        ))
        .arg(output::format_arg(&["table", "json"]))
}

async fn run_verify(matches: &ArgMatches) -> Result<ExitCode, Failure> {
    let name = matches.get_one::<String>(NAME).cloned().unwrap_or_default();
    let connection = connection::connect(matches).await?;
    let ask = async |operation: &str, request: Json| -> Result<Json, Failure> {
        let method = Service::CloudTrail.method(operation);
        let request = message_from_json(&method.input(), &request).map_err(Failure::Usage)?;
        Ok(aws_json::to_json(&call::unary(&connection, &method, request).await?))
    };
    let trail = ask("GetTrail", json!({ "Name": name })).await?;
    let keys = ask("ListPublicKeys", json!({ "StartTime": 0 })).await?;
    let subject = subject(&trail, matches.get_one::<String>(ACCOUNT))?;
    let region = subject.home.clone();
    let settings = TrailSettings {
        folder: matches.get_one::<PathBuf>(FOLDER).cloned(),
        s3: S3Settings { endpoint: matches.get_one::<String>(S3).cloned(), ..S3Settings::default() },
        ..TrailSettings::default()
    };
    let verified = verify(&Buckets::new(settings, region), &subject, &public_keys(&keys)).await;
    let report = verified.map_err(|error| Failure::Local(format!("the bucket cannot be read: {error}")))?;
    let text = match output::format(matches) {
        Format::Table => as_text(&report).into_bytes(),
        Format::Json | Format::Raw => output::lines(&json!({
            "Digests": report.digests,
            "LogFiles": report.files,
            "NotYetCovered": report.uncovered,
            "Findings": report.findings,
        })),
    };
    output::to_stdout(&text)?;
    Ok(if report.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FINDINGS) })
}

fn subject(answer: &Json, account: Option<&String>) -> Result<Subject, Failure> {
    let text =
        |member: &str| answer.pointer(&format!("/Trail/{member}")).and_then(Json::as_str).map(str::to_owned);
    let unreadable = || Failure::Local("the service's answer is no trail".to_owned());
    let (home, owner, name) =
        parse_arn(&text("TrailARN").ok_or_else(unreadable)?).map_err(|_| unreadable())?;
    let is_organization = answer.pointer("/Trail/IsOrganizationTrail") == Some(&Json::Bool(true));
    Ok(Subject {
        name,
        region: home.clone(),
        home,
        bucket: text("S3BucketName").ok_or_else(unreadable)?,
        prefix: text("S3KeyPrefix"),
        // Only the management account has an organization trail.
        organization: is_organization.then(|| organization_id(&owner)),
        account: account.cloned().unwrap_or(owner),
    })
}

fn public_keys(answer: &Json) -> BTreeMap<String, Vec<u8>> {
    let list = answer.get("PublicKeyList").and_then(Json::as_array).map(Vec::as_slice).unwrap_or_default();
    let text = |key: &Json, member: &str| key.get(member).and_then(Json::as_str).map(str::to_owned);
    let key = |key: &Json| Some((text(key, "Fingerprint")?, STANDARD.decode(text(key, "Value")?).ok()?));
    list.iter().filter_map(key).collect()
}

fn as_text(report: &Report) -> String {
    let Report { digests, files, uncovered, findings } = report;
    let counts = format!(
        "Digests: {digests} valid\nLog files: {files} valid, {uncovered} not yet covered by a digest\n"
    );
    match &findings[..] {
        [] => counts + "No findings: nothing was changed, removed or added.\n",
        findings => {
            let lines: String =
                findings.iter().map(|finding| format!("- {}\n", printable(finding))).collect();
            format!("{counts}{} findings:\n{lines}", findings.len())
        }
    }
}
