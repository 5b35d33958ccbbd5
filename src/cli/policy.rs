//! `strongroom policy explain`.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::{ArgMatches, Command};
use serde_json::Value as Json;

use super::output::{self, Format};
use super::schema::{self, Service};
use super::values::Sources;
use super::{Failure, arguments, call, connection, json};

const EXPLAIN_ACCESS: &str = "ExplainAccess";
/// The exit code where access is denied.
const DENIED: u8 = 1;

/// `policy`, with `explain`.
pub fn command() -> Command {
    let method = Service::Admin.method(EXPLAIN_ACCESS);
    let explain = Command::new("explain")
        .about(schema::method_comment(&method))
        .after_long_help("Exit codes: 0 allowed, 1 denied; else as those of `strongroom admin`.")
        .args(arguments::of_request(&method.input(), &[]))
        .arg(output::format_arg(&["table", "json"]))
        .args(connection::args());
    Command::new("policy")
        .about("Who may do what, over the daemon's Unix socket")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(explain)
}

/// Asks and tells.
///
/// # Errors
/// Any [`Failure`].
pub async fn run(matches: &ArgMatches) -> Result<ExitCode, Failure> {
    let Some(("explain", matches)) = matches.subcommand() else {
        return Err(Failure::Usage("no command is named".to_owned()));
    };
    let method = Service::Admin.method(EXPLAIN_ACCESS);
    let request = arguments::request(&method.input(), matches, &mut Sources::of_process())?;
    let connection = connection::connect(matches).await?;
    let answer = json::to_json(&call::unary(&connection, &method, request).await?);
    match output::format(matches) {
        Format::Table => output::to_stdout(text(&answer).as_bytes())?,
        Format::Json | Format::Raw => output::to_stdout(&output::lines(&answer))?,
    }
    let allowed = answer.get("Allowed").and_then(Json::as_bool) == Some(true);
    Ok(if allowed { ExitCode::SUCCESS } else { ExitCode::from(DENIED) })
}

/// The decision, what the caller would be told, and the condition keys.
fn text(answer: &Json) -> String {
    let member = |name: &str| answer.get(name).and_then(Json::as_str);
    let mut text = String::new();
    for line in [member("Decision"), member("Message")].into_iter().flatten() {
        let _ = writeln!(text, "{line}");
    }
    for read in answer.get("ConditionKeys").and_then(Json::as_array).into_iter().flatten() {
        let key = read.get("Key").map(output::cell).unwrap_or_default();
        let values = read.get("Values").and_then(Json::as_array).map(Vec::as_slice).unwrap_or_default();
        let values: Vec<String> = values.iter().map(output::cell).collect();
        let _ = match values.is_empty() {
            true => writeln!(text, "  {key} is absent"),
            false => writeln!(text, "  {key} = {}", values.join(", ")),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::testing::Server;
    use tonic::Status;

    #[test]
    fn the_decision_comes_first_and_absent_keys_are_told() {
        let answer = json!({
            "Allowed": false,
            "Decision": "denied by statement 2 of the key policy",
            "Message": "User: x is not authorized",
            "ConditionKeys": [{"Key": "aws:SourceIp"}, {"Key": "aws:TagKeys", "Values": ["a", "b"]}],
        });
        assert_eq!(
            text(&answer),
            "denied by statement 2 of the key policy\nUser: x is not authorized\n  \
             aws:SourceIp is absent\n  aws:TagKeys = a, b\n"
        );
    }

    fn denies(_: &str, request: &Json) -> Vec<Result<Json, Status>> {
        vec![Ok(json!({"Allowed": request["Action"] == "kms:Encrypt"}))]
    }

    #[tokio::test]
    async fn a_denial_is_an_exit_code() {
        let server = Server::start(denies);
        for (action, expected) in [("kms:Encrypt", ExitCode::SUCCESS), ("kms:Decrypt", ExitCode::from(1))] {
            let line =
                ["explain", "--principal", "p", "--action", action, "--context", "a:b=c", "-o", "json"];
            let matches = server.matches(command(), &line);
            // ExitCode compares by its Debug form alone.
            assert_eq!(format!("{:?}", run(&matches).await.unwrap()), format!("{expected:?}"));
        }
        assert_eq!(server.calls()[0].1["Context"], json!({"a:b": "c"}));
    }
}
