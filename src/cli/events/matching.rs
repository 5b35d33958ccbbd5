//! `strongroom events match`: what a rule's pattern would match, without a daemon.

use std::io::{self, BufRead as _};
use std::process::ExitCode;

use clap::{Arg, ArgGroup, ArgMatches, Command};
use serde_json::Value as Json;

use crate::audit::log_filter::LogFilter;
use crate::audit::pattern::Pattern;
use crate::audit::rules::event_of;
use crate::cli::{Failure, output};

const PATTERN: &str = "events.pattern";
const FILTER: &str = "events.filter";
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
                .help("An EventBridge event pattern, or file://FILE"),
        )
        .arg(
            Arg::new(FILTER)
                .long("filter-pattern")
                .value_name("TEXT")
                .help("A CloudWatch Logs filter pattern for JSON, or file://FILE"),
        )
        .group(ArgGroup::new("events.wanted").args([PATTERN, FILTER]).required(true))
}

type Wanted = Box<dyn Fn(&Json) -> bool>;

/// What the command line asks for.
fn wanted(matches: &ArgMatches) -> Result<Wanted, Failure> {
    let usage = |error| Failure::Usage(format!("{error}"));
    if let Some(given) = matches.get_one::<String>(FILTER) {
        let filter: LogFilter = text(given)?.trim().parse().map_err(usage)?;
        return Ok(Box::new(move |event| event.get("detail").is_some_and(|record| filter.matches(record))));
    }
    let given = matches.get_one::<String>(PATTERN).cloned().unwrap_or_default();
    let pattern: Pattern = text(&given)?.parse().map_err(usage)?;
    Ok(Box::new(move |event| pattern.matches(event)))
}

fn text(given: &str) -> Result<String, Failure> {
    match given.strip_prefix(FILE) {
        Some(path) => {
            std::fs::read_to_string(path).map_err(|error| Failure::Local(format!("{path}: {error}")))
        }
        None => Ok(given.to_owned()),
    }
}

/// Prints the lines that match.
///
/// # Errors
/// Any [`Failure`].
pub fn run(matches: &ArgMatches) -> Result<ExitCode, Failure> {
    let wanted = wanted(matches)?;
    for (number, line) in (1..).zip(io::stdin().lock().lines()) {
        let line = line.map_err(|error| Failure::Local(format!("standard input: {error}")))?;
        if line.trim().is_empty() {
            continue;
        }
        let json: Json = serde_json::from_str(&line).map_err(|error| {
            Failure::Usage(format!("line {number} of standard input is no JSON: {error}"))
        })?;
        let event = if json.get("detail").is_some() { json } else { event_of(json) };
        if wanted(&event) {
            output::to_stdout(format!("{line}\n").as_bytes())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
