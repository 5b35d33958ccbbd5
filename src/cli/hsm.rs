//! `strongroom hsm list`, and the commands on clusters and members.

use std::process::ExitCode;

use clap::{ArgMatches, Command};
use serde_json::Value as Json;

use super::output::{self, Format};
use super::schema::{self, Service};
use super::values::Sources;
use super::{Failure, arguments, call, connection, json, operation};

const LIST_MEMBERS: &str = "ListMembers";
/// The members of a Member that the table shows, and the titles of their columns.
const COLUMNS: [(&str, &str); 9] = [
    ("State", "State"),
    ("Uri", "URI"),
    ("Module", "Module"),
    ("Model", "Model"),
    ("FirmwareVersion", "Firmware"),
    ("SessionThreads", "Threads"),
    ("QueueDepth", "Queue"),
    ("LoadedKeys", "Keys"),
    ("Reason", "Reason"),
];

/// `list`.
pub fn list_command() -> Command {
    let method = Service::Hsm.method(LIST_MEMBERS);
    Command::new("list")
        .about(schema::method_comment(&method))
        .args(arguments::of_request(&method.input(), &[]))
        .arg(output::format_arg(&["table", "json"]))
        .args(connection::args())
}

/// Lists the members.
///
/// # Errors
/// Any [`Failure`].
pub async fn run_list(matches: &ArgMatches) -> Result<ExitCode, Failure> {
    let method = Service::Hsm.method(LIST_MEMBERS);
    let request = arguments::request(&method.input(), matches, &mut Sources::of_process())?;
    let connection = connection::connect(matches).await?;
    let members = json::to_json(&call::unary(&connection, &method, request).await?);
    match output::format(matches) {
        Format::Table => output::to_stdout(table(&members).as_bytes())?,
        Format::Json | Format::Raw => output::to_stdout(&output::lines(&members))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Operations on one kind of thing, by the names of their commands.
struct Group {
    name: &'static str,
    about: &'static str,
    commands: &'static [(&'static str, &'static str)],
}

const GROUPS: [Group; 2] = [
    Group {
        name: "cluster",
        about: "Register clusters of HSMs for custom key stores",
        commands: &[
            ("create", "CreateCluster"),
            ("initialize", "InitializeCluster"),
            ("describe", "DescribeClusters"),
            ("delete", "DeleteCluster"),
        ],
    },
    Group {
        name: "member",
        about: "Change the members of a cluster while it is in use",
        commands: &[
            ("tokens", "ListTokens"),
            ("add", "AddMember"),
            ("remove", "RemoveMember"),
            ("replace", "ReplaceMember"),
            ("begin-maintenance", "BeginMaintenance"),
            ("end-maintenance", "EndMaintenance"),
            (CHECK, CHECK_MEMBER),
        ],
    },
];

/// It asks again until all keys are compared.
const CHECK: &str = "check";
const CHECK_MEMBER: &str = "CheckMember";

/// The commands of groups of operations.
pub fn group_commands() -> impl Iterator<Item = Command> {
    GROUPS.iter().map(|group| {
        Command::new(group.name)
            .about(group.about)
            .subcommand_required(true)
            .arg_required_else_help(true)
            .args(connection::args())
            .subcommands(
                group.commands.iter().map(|(name, method)| {
                    operation::operation((*name).to_owned(), &Service::Hsm.method(method))
                }),
            )
    })
}

/// Whether [`group_commands`] has it.
pub fn is_group(name: &str) -> bool {
    GROUPS.iter().any(|group| group.name == name)
}

/// Calls the operation of a group that was matched.
///
/// # Errors
/// Any [`Failure`].
pub async fn run_group(name: &str, matches: &ArgMatches) -> Result<ExitCode, Failure> {
    let group = GROUPS.iter().find(|group| group.name == name);
    let named = matches.subcommand().and_then(|(name, matches)| {
        let (_, method) = group?.commands.iter().find(|(command, _)| *command == name)?;
        Some((*method, matches))
    });
    match named {
        None => Err(Failure::Usage("no operation is named".to_owned())),
        Some((CHECK_MEMBER, matches)) => run_check(matches).await,
        Some((method, matches)) => operation::call_method(&Service::Hsm.method(method), matches).await,
    }
}

/// Compares page after page, with progress on standard error; prints what was
/// found. Exit code 1: something was found and is not repaired.
async fn run_check(matches: &ArgMatches) -> Result<ExitCode, Failure> {
    let method = Service::Hsm.method(CHECK_MEMBER);
    let mut request = arguments::request(&method.input(), matches, &mut Sources::of_process())?;
    let connection = connection::connect(matches).await?;
    let mut findings = Vec::new();
    loop {
        let answer = json::to_json(&call::unary(&connection, &method, request.clone()).await?);
        let count = |name: &str| answer.get(name).and_then(Json::as_i64).unwrap_or_default();
        eprintln!("compared {} of {} keys", count("Compared"), count("Expected"));
        findings.extend(answer.get("Findings").and_then(Json::as_array).cloned().unwrap_or_default());
        match answer.get("NextMarker").and_then(Json::as_str) {
            None => break,
            Some(marker) => {
                request.set_field_by_name("marker", prost_reflect::Value::String(marker.to_owned()));
            }
        }
    }
    let is_left = |finding: &Json| finding.get("Repaired").and_then(Json::as_bool) != Some(true);
    let left = findings.iter().any(is_left);
    output::to_stdout(&output::lines(&serde_json::json!({ "Findings": findings })))?;
    Ok(ExitCode::from(u8::from(left)))
}

fn table(answer: &Json) -> String {
    let members = answer.get("Members").and_then(Json::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut header: Vec<String> = COLUMNS.iter().map(|(_, title)| (*title).to_owned()).collect();
    header.push("Algorithms".to_owned());
    let row = |member: &Json| {
        let mut cells: Vec<String> =
            COLUMNS.iter().map(|(name, _)| output::cell(member.get(name).unwrap_or(&Json::Null))).collect();
        cells.push(algorithms(member));
        cells
    };
    format!("{}\n", output::table(&header, members.iter().map(row).collect()))
}

/// `31 of 33`: the algorithms that work, of those that were tried.
fn algorithms(member: &Json) -> String {
    let all = member.get("Mechanisms").and_then(Json::as_array).map(Vec::as_slice).unwrap_or_default();
    let works = |mechanism: &&Json| mechanism.get("Works").and_then(Json::as_bool) == Some(true);
    format!("{} of {}", all.iter().filter(works).count(), all.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_operation_on_the_hsms_has_a_command() {
        let grouped = GROUPS.iter().flat_map(|group| group.commands.iter().map(|(_, method)| *method));
        let mut commands: Vec<&str> = grouped.chain([LIST_MEMBERS]).collect();
        commands.sort_unstable();
        let mut methods: Vec<String> =
            Service::Hsm.operations().map(|(_, method)| method.name().to_owned()).collect();
        methods.sort_unstable();
        assert_eq!(commands, methods);
        for group in group_commands() {
            assert!(is_group(group.get_name()));
            group.debug_assert();
        }
        let line =
            "cluster create --members Module=m,Token=pkcs11:token=a;serial=b --trust-anchor-certificate c";
        let command = group_commands().find(|command| command.get_name() == "cluster").unwrap();
        let matches = command.try_get_matches_from(line.split(' ')).unwrap();
        let (_, matches) = matches.subcommand().unwrap();
        let method = Service::Hsm.method("CreateCluster");
        let request = arguments::request(&method.input(), matches, &mut Sources::of_process()).unwrap();
        let member = json!({"Module": "m", "Token": "pkcs11:token=a;serial=b"});
        assert_eq!(json::to_json(&request)["Members"], json!([member]));
    }

    #[test]
    fn members_are_a_table() {
        let message = crate::cli::values::message_from_json(
            &Service::Hsm.method(LIST_MEMBERS).output(),
            &json!({"Members": [{
                "Uri": "pkcs11:token=a", "State": "LOST", "Reason": "gone\u{1b}[2J", "QueueDepth": 0,
                "Mechanisms": [{"Algorithm": "ECDH", "Works": true}, {"Algorithm": "ML_DSA_44", "Works": false}],
            }]}),
        );
        let table = table(&json::to_json(&message.unwrap()));
        for text in ["pkcs11:token=a", "LOST", "1 of 2", "Queue", "┆ 0 "] {
            assert!(table.contains(text), "{text} in {table}");
        }
        assert!(!table.contains('\u{1b}'), "what others wrote does not steer the terminal");
        assert!(!table.contains("null"));
    }
}
