//! Where an answer goes and in which form.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgMatches};
use comfy_table::{Table, presets};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage, Value};
use serde_json::Value as Json;

use super::{Failure, json, notice, schema};

const FORMAT: &str = "output.format";
const FIELD: &str = "output.field";
const OUT: &str = "output.file";
const HEADING: &str = "Output";
/// What is printed to a file is for its owner alone: it may be a key.
const OWNER_ONLY: u32 = 0o600;

/// How an answer is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// AWS's JSON.
    Json,
    /// For people.
    Table,
    /// One member's own bytes.
    Raw,
}

/// `-o`, with these forms; the first is the default.
pub fn format_arg(forms: &'static [&'static str]) -> Arg {
    let default = forms.first().copied().unwrap_or("json");
    Arg::new(FORMAT)
        .short('o')
        .long("output")
        .value_name("FORM")
        .help_heading(HEADING)
        .help("The form of the answer")
        .default_value(default)
        .value_parser(PossibleValuesParser::new(forms))
}

/// The form that was asked for.
pub fn format(matches: &ArgMatches) -> Format {
    match matches.get_one::<String>(FORMAT).map(String::as_str) {
        Some("json") => Format::Json,
        Some("raw") => Format::Raw,
        _ => Format::Table,
    }
}

/// The flags of an operation's output.
pub fn args() -> Vec<Arg> {
    vec![
        format_arg(&["json", "table", "raw"]),
        Arg::new(FIELD).long("field").value_name("MEMBER").help_heading(HEADING).help(
            "Print this member of the answer only (KeyMetadata.KeyId); \
             bytes as base64, or as they are with -o raw",
        ),
        Arg::new(OUT)
            .long("out")
            .value_name("FILE")
            .help_heading(HEADING)
            .help("Write the answer to a file that its owner alone can read (mode 0600)"),
    ]
}

/// An answer's way out, checked and opened before the call is made.
pub struct Output {
    format: Format,
    /// The member to print, from the outermost; the whole answer where empty.
    path: Vec<FieldDescriptor>,
    to: Destination,
}

impl Output {
    /// Reads the flags of [`args`] for an answer of this type.
    ///
    /// # Errors
    /// [`Failure::Usage`] for a member that the answer does not have, or raw
    /// output of no member; [`Failure::Local`] for a file that cannot be written.
    pub fn prepare(matches: &ArgMatches, answer: &MessageDescriptor) -> Result<Self, Failure> {
        let format = format(matches);
        let path = match matches.get_one::<String>(FIELD) {
            Some(name) => member_path(answer, name)?,
            None => Vec::new(),
        };
        if format == Format::Raw && path.is_empty() {
            let members = schema::member_names(answer);
            return Err(Failure::Usage(format!("-o raw needs --field MEMBER, one of: {members}")));
        }
        let to = match matches.get_one::<String>(OUT) {
            Some(file) => Destination::File(OutFile::open(Path::new(file))?),
            None => Destination::Stdout,
        };
        Ok(Output { format, path, to })
    }

    /// Prints the answer.
    ///
    /// # Errors
    /// [`Failure::Local`] where the member is absent or writing fails,
    /// [`Failure::BrokenPipe`].
    pub fn print(self, answer: &DynamicMessage) -> Result<(), Failure> {
        let bytes = match self.path.split_last() {
            Some((field, outer)) => {
                let value = member(answer, outer, field).ok_or_else(|| {
                    Failure::Local(format!("the answer has no {}", schema::aws_name(field)))
                })?;
                value_bytes(self.format, &field.kind(), &value)
            }
            // As the AWS CLI: nothing for an answer without members.
            None if answer.descriptor().fields().len() == 0 => Vec::new(),
            None if self.format == Format::Table => tables(&json::to_json(answer)).into_bytes(),
            None => lines(&json::to_json(answer)),
        };
        match self.to {
            Destination::Stdout => to_stdout(&bytes),
            Destination::File(file) => file.write(&bytes),
        }
    }
}

/// JSON for people, with a newline at its end.
pub fn lines(json: &Json) -> Vec<u8> {
    // Display with `#` is the pretty form, which cannot fail for a Value.
    format!("{json:#}\n").into_bytes()
}

/// Writes to standard output and flushes it.
///
/// # Errors
/// [`Failure::BrokenPipe`], [`Failure::Local`].
pub fn to_stdout(bytes: &[u8]) -> Result<(), Failure> {
    write_out(&mut io::stdout(), bytes)
}

/// Writes to what stands for standard output and flushes it.
///
/// # Errors
/// As [`to_stdout`].
pub fn write_out(out: &mut dyn Write, bytes: &[u8]) -> Result<(), Failure> {
    out.write_all(bytes).and_then(|()| out.flush()).map_err(Failure::of_output)
}

/// A JSON object as tables: one for its own members (those of inner structures
/// by their path), and one for each list of structures.
pub fn tables(json: &Json) -> String {
    let mut members = Vec::new();
    let mut lists = Vec::new();
    flatten("", json, &mut members, &mut lists);
    let mut texts = Vec::new();
    if !members.is_empty() {
        let rows = members.into_iter().map(|(name, value)| vec![name, value]).collect();
        texts.push(table(&["Member".to_owned(), "Value".to_owned()], rows));
    }
    for (name, values) in lists {
        let alone = texts.is_empty();
        let text = list_table(&values);
        texts.push(if alone { text } else { format!("{name}\n{text}") });
    }
    texts.iter().map(|text| format!("{text}\n")).collect()
}

/// A table with these columns.
pub fn table(header: &[String], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED).set_header(header);
    table.add_rows(rows.into_iter().map(|row| row.into_iter().map(|cell| printable(&cell))));
    table.trim_fmt()
}

/// The text without what would steer a terminal: others choose aliases' and
/// principals' names.
pub fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter.is_control() {
            true => printable.extend(letter.escape_default()),
            false => printable.push(letter),
        }
    }
    printable
}

/// Replaces a file as a whole: a reader sees the old content or the new.
///
/// # Errors
/// [`Failure::Local`] with the file's name.
pub fn replace_file(path: &Path, content: &[u8]) -> Result<(), Failure> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(OWNER_ONLY)
        .open(&new)
        .and_then(|mut file| file.write_all(content))
        .and_then(|()| fs::rename(&new, path));
    written.map_err(|error| unwritable(path, &error))
}

enum Destination {
    Stdout,
    File(OutFile),
}

/// A file that is open before the call is made, so that no answer is lost for
/// want of a place; what is in it stays until there is an answer.
struct OutFile {
    file: File,
    path: PathBuf,
    /// Made by us, and nothing written yet.
    empty: bool,
}

impl OutFile {
    fn open(path: &Path) -> Result<Self, Failure> {
        let open = |new: bool| {
            OpenOptions::new().write(true).create_new(new).mode(OWNER_ONLY).open(path).map(|file| (file, new))
        };
        let (file, empty) = open(true)
            .or_else(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => open(false),
                _ => Err(error),
            })
            .map_err(|error| unwritable(path, &error))?;
        Ok(OutFile { file, path: path.to_owned(), empty })
    }

    fn write(mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.empty = false;
        self.replace(bytes).map_err(|error| unwritable(&self.path, &error))
    }

    fn replace(&mut self, bytes: &[u8]) -> io::Result<()> {
        // A pipe or a device has neither a length nor an owner of ours.
        if self.file.metadata()?.is_file() {
            self.file.set_permissions(Permissions::from_mode(OWNER_ONLY))?;
            self.file.set_len(0)?;
        }
        self.file.write_all(bytes)
    }
}

impl Drop for OutFile {
    /// A call that failed leaves no empty file.
    fn drop(&mut self) {
        if self.empty
            && let Err(error) = fs::remove_file(&self.path)
        {
            notice(&format_args!("{} cannot be removed: {error}", self.path.display()));
        }
    }
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    Failure::Local(format!("{} cannot be written: {error}", path.display()))
}

/// The fields that a path like `KeyMetadata.KeyId` names.
fn member_path(answer: &MessageDescriptor, name: &str) -> Result<Vec<FieldDescriptor>, Failure> {
    let mut path: Vec<FieldDescriptor> = Vec::new();
    let mut message = Some(answer.clone());
    for part in name.split('.') {
        let within = message.as_ref();
        let field = within.and_then(|message| schema::member(message, part)).ok_or_else(|| {
            let members = within.map(schema::member_names).unwrap_or_default();
            Failure::Usage(format!("--field: the answer has no {part}; its members: {members}"))
        })?;
        message = match field.kind() {
            Kind::Message(inner) if !schema::is_list(&field) && !field.is_map() => Some(inner),
            _ => None,
        };
        path.push(field);
    }
    Ok(path)
}

fn member(answer: &DynamicMessage, outer: &[FieldDescriptor], field: &FieldDescriptor) -> Option<Value> {
    let mut message = answer.clone();
    for field in outer {
        message = message.get_field(field).as_message()?.clone();
    }
    message.has_field(field).then(|| message.get_field(field).into_owned())
}

fn value_bytes(format: Format, kind: &Kind, value: &Value) -> Vec<u8> {
    match (format, value) {
        (Format::Raw, Value::Bytes(bytes)) => bytes.to_vec(),
        (Format::Raw, Value::String(text)) => text.clone().into_bytes(),
        _ => match json::value_to_json(kind, value) {
            Json::String(text) => format!("{text}\n").into_bytes(),
            json => lines(&json),
        },
    }
}

/// An object's members by their path, and its lists of structures apart.
fn flatten(
    path: &str,
    json: &Json,
    members: &mut Vec<(String, String)>,
    lists: &mut Vec<(String, Vec<Json>)>,
) {
    match json {
        Json::Object(object) => {
            for (name, value) in object {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flatten(&path, value, members, lists);
            }
        }
        Json::Array(values) if values.iter().all(Json::is_object) => {
            lists.push((path.to_owned(), values.clone()));
        }
        value => members.push((path.to_owned(), cell(value))),
    }
}

fn list_table(values: &[Json]) -> String {
    let objects: Vec<_> = values.iter().filter_map(Json::as_object).collect();
    let mut columns: Vec<String> = Vec::new();
    for name in objects.iter().flat_map(|object| object.keys()) {
        if !columns.contains(name) {
            columns.push(name.clone());
        }
    }
    if columns.is_empty() {
        return "(none)".to_owned();
    }
    let row = |object: &&serde_json::Map<String, Json>| {
        columns.iter().map(|column| object.get(column).map(cell).unwrap_or_default()).collect()
    };
    table(&columns, objects.iter().map(row).collect())
}

/// A value in one line; nothing for null.
pub fn cell(value: &Json) -> String {
    match value {
        Json::Null => String::new(),
        Json::String(text) => text.clone(),
        Json::Array(values) => values.iter().map(cell).collect::<Vec<_>>().join(", "),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::schema::Service;
    use serde_json::json;

    fn file_mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_file_is_for_its_owner_and_keeps_its_content_until_there_is_an_answer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        drop(OutFile::open(&path).unwrap());
        assert!(!path.exists(), "no empty file is left");

        fs::write(&path, "a long old content").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        drop(OutFile::open(&path).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"a long old content");
        OutFile::open(&path).unwrap().write(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(file_mode(&path), 0o600);

        let fresh = folder.path().join("fresh");
        OutFile::open(&fresh).unwrap().write(b"x").unwrap();
        assert_eq!(file_mode(&fresh), 0o600);
        assert!(OutFile::open(Path::new("/no/such/folder/key")).is_err());
        OutFile::open(Path::new("/dev/null")).unwrap().write(b"x").unwrap();
    }

    #[test]
    fn a_member_is_found_by_its_path() {
        let answer = Service::Kms.method("CreateKey").output();
        let names = |path: &str| -> Vec<String> {
            member_path(&answer, path).unwrap().iter().map(schema::aws_name).collect()
        };
        assert_eq!(names("KeyMetadata.AWSAccountId"), ["KeyMetadata", "AWSAccountId"]);
        assert_eq!(names("key-metadata.key-id"), ["KeyMetadata", "KeyId"]);
        let unknown = member_path(&answer, "KeyMetadata.Colour").err().unwrap().to_string();
        assert!(unknown.contains("no Colour") && unknown.contains("KeyId"), "{unknown}");
        assert!(member_path(&answer, "KeyMetadata.KeyId.More").is_err());
    }

    #[test]
    fn structures_are_tables() {
        let text = tables(&json!({
            "Keys": [{"KeyId": "k1", "KeyArn": "a1"}, {"KeyId": "k2\u{7}"}],
            "Truncated": false,
            "KeyMetadata": {"SigningAlgorithms": ["A", "B"]},
        }));
        for part in ["KeyMetadata.SigningAlgorithms", "A, B", "Truncated", "k1", "a1", "k2\\u{7}", "Keys\n"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert_eq!(tables(&json!({"Keys": []})), "(none)\n");
    }

    #[test]
    fn a_closed_pipe_is_told_from_other_errors() {
        struct Closed(io::ErrorKind);
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(self.0.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let write = |kind| write_out(&mut Closed(kind), b"x").unwrap_err();
        assert!(matches!(write(io::ErrorKind::BrokenPipe), Failure::BrokenPipe));
        assert!(matches!(write(io::ErrorKind::StorageFull), Failure::Local(_)));
    }
}
