//! `strongroom events tail`: StreamEvents, resumed when the stream breaks.
//!
//! The position is kept after its event is printed and before the next is
//! taken, so a stream that goes on from it misses nothing and repeats nothing.
//! Only a kill between the two repeats one event at the next start.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use prost_reflect::{DynamicMessage, MethodDescriptor, ReflectMessage, Value};
use tokio::signal::unix::{SignalKind, signal};
use tonic::Code;

use super::{line, record_line};
use crate::cli::output::{self, Format};
use crate::cli::schema::{self, Service};
use crate::cli::values::{self, Sources};
use crate::cli::{Failure, arguments, call, connection, notice};

const STREAM_EVENTS: &str = "StreamEvents";
const FROM_BEGINNING: &str = "events.from-beginning";
const POSITION_FILE: &str = "events.position-file";
const RECONNECT_LIMIT: &str = "events.reconnect-limit";
const DEFAULT_RECONNECT_LIMIT: &str = "1000";
/// The members of the request that this command sets itself.
const NOT_FLAGS: [&str; 2] = ["position", "start"];
/// Waits before connecting again: the first, and the longest.
const FIRST_WAIT_MS: u64 = 250;
const LONGEST_WAIT_MS: u64 = 15_000;
const INTERRUPTED: u8 = 130;

/// `tail`.
pub fn command() -> Command {
    let method = Service::CloudTrail.method(STREAM_EVENTS);
    Command::new("tail")
        .about(schema::method_comment(&method))
        .args(arguments::of_request(&method.input(), &NOT_FLAGS))
        .arg(
            Arg::new(FROM_BEGINNING)
                .long("from-beginning")
                .action(ArgAction::SetTrue)
                .help("Begin with the oldest event that the log still has, not with those from now on"),
        )
        .arg(
            Arg::new(POSITION_FILE)
                .long("position-file")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("Go on after the position in this file, and keep it there"),
        )
        .arg(
            Arg::new(RECONNECT_LIMIT)
                .long("reconnect-limit")
                .value_name("NUMBER")
                .default_value(DEFAULT_RECONNECT_LIMIT)
                .value_parser(value_parser!(u32))
                .help("How many times in a row to connect again in vain before giving up"),
        )
        .arg(output::format_arg(&["table", "json"]))
        .after_help("-o json prints one CloudTrail record a line.")
}

/// Prints events until it is interrupted.
///
/// # Errors
/// Any [`Failure`].
pub async fn run(matches: &ArgMatches) -> Result<ExitCode, Failure> {
    let mut stdout = io::stdout();
    let mut tail = Tail::new(matches, &mut stdout)?;
    // Both branches are only left where an event is printed and its position kept.
    tokio::select! {
        ended = tail.follow() => ended.map(|()| ExitCode::SUCCESS),
        interrupted = interrupted() => interrupted.map(|()| ExitCode::from(INTERRUPTED)),
    }
}

struct Tail<'a> {
    matches: &'a ArgMatches,
    out: &'a mut (dyn Write + Send),
    method: MethodDescriptor,
    /// The filters and the start; without a position.
    request: DynamicMessage,
    format: Format,
    /// The position of the last event that was printed.
    position: Option<String>,
    position_file: Option<PathBuf>,
    reconnect_limit: u32,
    /// Connections in a row that brought nothing.
    in_vain: u32,
}

impl<'a> Tail<'a> {
    fn new(matches: &'a ArgMatches, out: &'a mut (dyn Write + Send)) -> Result<Self, Failure> {
        let method = Service::CloudTrail.method(STREAM_EVENTS);
        let mut request = arguments::request(&method.input(), matches, &mut Sources::of_process())?;
        if matches.get_flag(FROM_BEGINNING) {
            set_start(&mut request, "TRIM_HORIZON")?;
        }
        let position_file = matches.get_one::<PathBuf>(POSITION_FILE).cloned();
        let position = match &position_file {
            Some(file) => read_position(file)?,
            None => None,
        };
        let reconnect_limit = matches.get_one(RECONNECT_LIMIT).copied().unwrap_or_default();
        let format = output::format(matches);
        Ok(Tail {
            matches,
            out,
            method,
            request,
            format,
            position,
            position_file,
            reconnect_limit,
            in_vain: 0,
        })
    }

    /// Streams, and connects again when the stream breaks. The first connection
    /// must succeed: what is wrong with it is more likely the command line.
    async fn follow(&mut self) -> Result<(), Failure> {
        let mut stood = false;
        loop {
            let begin = Instant::now();
            let broken = match self.stream(&mut stood).await {
                Ok(()) => Failure::Connection("the daemon ended the stream".to_owned()),
                Err(failure) => failure,
            };
            if !stood || !is_passing(&broken) {
                return Err(broken);
            }
            if begin.elapsed() >= Duration::from_millis(LONGEST_WAIT_MS) {
                self.in_vain = 0;
            }
            if self.in_vain >= self.reconnect_limit {
                return Err(broken);
            }
            let wait = wait(self.in_vain, &broken);
            self.in_vain += 1;
            notice(&format_args!("{broken}\nConnecting again in {:.2} s.", wait.as_secs_f64()));
            if self.position.is_none() && !self.matches.get_flag(FROM_BEGINNING) {
                notice(&"No event came before the break: events during it may be missing.");
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// Prints what one connection brings. `stood` becomes true with the answer's headers.
    async fn stream(&mut self, stood: &mut bool) -> Result<(), Failure> {
        let mut request = self.request.clone();
        if let Some(position) = &self.position {
            request.set_field_by_name("position", Value::String(position.clone()));
            request.clear_field_by_name("start");
        }
        let connection = connection::connect(self.matches).await?;
        let mut events = call::stream(&connection, &self.method, request).await?;
        *stood = true;
        while let Some(answer) =
            events.message().await.map_err(|status| call::failure(&self.method, &status))?
        {
            self.take(answer)?;
            self.in_vain = 0;
        }
        Ok(())
    }

    /// Prints an event, then keeps its position. An answer without an event
    /// only moves the position.
    fn take(&mut self, mut answer: DynamicMessage) -> Result<(), Failure> {
        if let Some(Value::Message(event)) = answer.take_field_by_name("event") {
            let line = if self.format == Format::Json { record_line(&event) } else { line(&event) };
            output::write_out(self.out, format!("{line}\n").as_bytes())?;
        }
        let Some(Value::String(position)) = answer.take_field_by_name("position") else { return Ok(()) };
        if let Some(file) = &self.position_file {
            output::replace_file(file, format!("{position}\n").as_bytes())?;
        }
        self.position = Some(position);
        Ok(())
    }
}

fn set_start(request: &mut DynamicMessage, start: &str) -> Result<(), Failure> {
    let member = serde_json::json!({ "Start": start });
    let start = values::message_from_json(&request.descriptor(), &member).map_err(Failure::Usage)?;
    for (field, value) in start.fields() {
        request.set_field(&field, value.clone());
    }
    Ok(())
}

/// The position in the file; none where there is no file yet.
fn read_position(file: &PathBuf) -> Result<Option<String>, Failure> {
    let unusable = |reason: &dyn std::fmt::Display| {
        Failure::Local(format!("--position-file: {} {reason}; remove it to begin anew", file.display()))
    };
    match fs::read_to_string(file) {
        Ok(text) if text.trim().is_empty() => Err(unusable(&"is empty")),
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unusable(&format_args!("cannot be read: {error}"))),
    }
}

/// Whether the same request may succeed later.
fn is_passing(failure: &Failure) -> bool {
    match failure {
        Failure::Connection(_) => true,
        Failure::Service(error) => match error.status {
            Code::Unavailable
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Internal
            | Code::Unknown => true,
            Code::Ok
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::DataLoss
            | Code::Unauthenticated => false,
        },
        Failure::Usage(_) | Failure::Settings(_) | Failure::Local(_) | Failure::BrokenPipe => false,
    }
}

/// Twice as long each time, up to a limit, and never before the service says so.
fn wait(in_vain: u32, failure: &Failure) -> Duration {
    let doubled = FIRST_WAIT_MS.saturating_mul(1_u64.checked_shl(in_vain).unwrap_or(u64::MAX));
    let own = Duration::from_millis(doubled.min(LONGEST_WAIT_MS));
    match failure {
        Failure::Service(error) => own.max(error.retry_after.unwrap_or_default()),
        _ => own,
    }
}

/// Waits for SIGINT or SIGTERM.
async fn interrupted() -> Result<(), Failure> {
    let listen = |kind| signal(kind).map_err(|e| Failure::Local(format!("signals cannot be awaited: {e}")));
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing::{Server, event};
    use serde_json::{Value as Json, json};
    use tonic::Status;

    /// A log of seven events whose stream breaks after three; one who has them
    /// all is refused, which ends the test.
    fn seven_events(_: &str, request: &Json) -> Vec<Result<Json, Status>> {
        let have = match (&request["Position"], &request["Start"]) {
            (Json::String(position), Json::Null) => position.parse().unwrap(),
            (Json::Null, Json::String(start)) if start == "TRIM_HORIZON" => 0,
            _ => return vec![Err(Status::invalid_argument("a position or a start"))],
        };
        let answer = |n: u32| json!({"Position": n.to_string(), "Event": event(&format!("E{n}"))});
        match have {
            7 => vec![Err(Status::permission_denied("enough"))],
            have => {
                let events = (have + 1..=7).take(3).map(answer).map(Ok);
                events.chain([Err(Status::unavailable("break"))]).collect()
            }
        }
    }

    #[tokio::test]
    async fn a_broken_stream_goes_on_without_missing_or_repeating() {
        let server = Server::start(seven_events);
        let file = server.path("position");
        let line = ["tail", "--from-beginning", "--failed", "-o", "json", "--position-file", &file];
        let matches = server.matches(crate::cli::events_command(), &line);
        let mut out = Vec::new();
        let matches = matches.subcommand_matches("tail").unwrap();
        let ended = Tail::new(matches, &mut out).unwrap().follow().await.unwrap_err();

        assert!(ended.to_string().contains("PermissionDenied"), "{ended}");
        let lines: Vec<_> = (1..=7).map(|n| format!("{{\"eventName\":\"E{n}\"}}\n")).collect();
        assert_eq!(String::from_utf8(out).unwrap(), lines.concat());
        assert_eq!(fs::read_to_string(&file).unwrap(), "7\n");
        let calls = server.calls();
        assert_eq!(calls.len(), 4);
        assert!(calls.iter().all(|(_, request)| request["Failed"] == true), "each call has the filters");

        // The next start goes on from the file.
        let mut out = Vec::new();
        let again = Tail::new(matches, &mut out).unwrap().follow().await;
        assert!(again.is_err() && out.is_empty());
        assert_eq!(server.calls()[4].1["Position"], "7");
    }

    #[tokio::test]
    async fn a_first_connection_that_fails_is_not_tried_again() {
        let server = Server::start(|_, _| vec![Err(Status::unavailable("no"))]);
        let matches = server.matches(crate::cli::events_command(), &["tail"]);
        let mut out = Vec::new();
        let ended = Tail::new(matches.subcommand_matches("tail").unwrap(), &mut out).unwrap().follow().await;
        assert!(ended.is_err());
        assert_eq!(server.calls().len(), 1);
    }

    #[test]
    fn waits_grow_up_to_their_limit_and_obey_the_service() {
        let broken = Failure::Connection(String::new());
        let waits: Vec<_> = [0, 1, 2, 6, 63, 64, u32::MAX].map(|n| wait(n, &broken).as_millis()).into();
        assert_eq!(waits, [250, 500, 1000, 15_000, 15_000, 15_000, 15_000]);
        let status = <Status as tonic_types::StatusExt>::with_error_details(
            Code::ResourceExhausted,
            "",
            tonic_types::ErrorDetails::with_retry_info(Some(Duration::from_secs(60))),
        );
        let busy = call::failure(&Service::CloudTrail.method(STREAM_EVENTS), &status);
        assert_eq!(wait(0, &busy), Duration::from_secs(60));
        assert!(is_passing(&busy));
    }

    #[test]
    fn a_position_file_is_read_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("position");
        assert!(read_position(&file).unwrap().is_none());
        output::replace_file(&file, b"w1:7\n").unwrap();
        assert_eq!(read_position(&file).unwrap().as_deref(), Some("w1:7"));
        // Beginning anew by itself would repeat or miss events.
        std::fs::write(&file, "").unwrap();
        assert!(read_position(&file).unwrap_err().to_string().contains("is empty"));
    }
}
