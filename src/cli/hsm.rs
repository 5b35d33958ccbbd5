//! `strongroom hsm list` and `strongroom hsm cluster`.

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

/// The operations on clusters by the names of their commands.
const CLUSTER_COMMANDS: [(&str, &str); 4] = [
    ("create", "CreateCluster"),
    ("initialize", "InitializeCluster"),
    ("describe", "DescribeClusters"),
    ("delete", "DeleteCluster"),
];

/// `cluster`.
pub fn cluster_command() -> Command {
    let command =
        |(name, method): (&str, &str)| operation::operation(name.to_owned(), &Service::Hsm.method(method));
    Command::new("cluster")
        .about("Register clusters of HSMs for custom key stores")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .args(connection::args())
        .subcommands(CLUSTER_COMMANDS.into_iter().map(command))
}

/// Calls the operation on clusters that was matched.
///
/// # Errors
/// Any [`Failure`].
pub async fn run_cluster(matches: &ArgMatches) -> Result<ExitCode, Failure> {
    let named = matches.subcommand().and_then(|(name, matches)| {
        let (_, method) = CLUSTER_COMMANDS.iter().find(|(command, _)| *command == name)?;
        Some((method, matches))
    });
    let (method, matches) = named.ok_or_else(|| Failure::Usage("no operation is named".to_owned()))?;
    operation::call_method(&Service::Hsm.method(method), matches).await
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
    fn every_operation_on_clusters_has_a_command() {
        for (name, _) in CLUSTER_COMMANDS {
            assert!(cluster_command().find_subcommand(name).is_some(), "{name}");
        }
        let line =
            "cluster create --members Module=m,Token=pkcs11:token=a;serial=b --trust-anchor-certificate c";
        let matches = cluster_command().try_get_matches_from(line.split(' ')).unwrap();
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
