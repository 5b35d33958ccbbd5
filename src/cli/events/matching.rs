//! `strongroom events match`: what a rule's pattern would match, without a daemon.

use std::io::{self, BufRead as _};
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};
use serde_json::Value as Json;

use crate::audit::pattern::Pattern;
use crate::audit::rules::event_of;
use crate::cli::{Failure, output};

const PATTERN: &str = "events.pattern";
const FILE: &str = "file://";

/// `match`.
pub fn command() -> Command {
    Command::new("match")
        .about("Print the events of standard input that an event pattern matches")
        .long_about(
            "Print the events of standard input that an event pattern matches, to try a rule before it is in \
             force. An event is a line of JSON: an event as EventBridge has it (with a detail), or a record \
             as `strongroom events lookup -o json` and log files have it.",
        )
        .arg(
            Arg::new(PATTERN)
                .long("event-pattern")
                .value_name("JSON")
                .required(true)
                .help("The pattern, or file://FILE"),
        )
}

/// Prints the lines that match.
///
/// # Errors
/// Any [`Failure`].
pub fn run(matches: &ArgMatches) -> Result<ExitCode, Failure> {
    let given = matches.get_one::<String>(PATTERN).cloned().unwrap_or_default();
    let text = match given.strip_prefix(FILE) {
        Some(path) => {
            std::fs::read_to_string(path).map_err(|error| Failure::Local(format!("{path}: {error}")))?
        }
        None => given,
    };
    let pattern: Pattern =
        text.parse().map_err(|error| Failure::Usage(format!("--event-pattern: {error}")))?;
    for (number, line) in (1..).zip(io::stdin().lock().lines()) {
        let line = line.map_err(|error| Failure::Local(format!("standard input: {error}")))?;
        if line.trim().is_empty() {
            continue;
        }
        let json: Json = serde_json::from_str(&line).map_err(|error| {
            Failure::Usage(format!("line {number} of standard input is no JSON: {error}"))
        })?;
        let event = if json.get("detail").is_some() { json } else { event_of(json) };
        if pattern.matches(&event) {
            output::to_stdout(format!("{line}\n").as_bytes())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
