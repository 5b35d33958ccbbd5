//! The layers of the configuration, and how they become one.
//!
//! ```text
//! defaults  <  file  <  environment (STRONGROOM_GRPC__ADDRESS)  <  flags
//! ```

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;

use figment::error::{Actual, Kind};
use figment::providers::{Format, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::de::DeserializeOwned;

use super::error::{ConfigError, Key, Problem};

/// Variables that start as the daemon's do, and are the clients' or the build's.
const OTHER_VARIABLES: [&str; 8] =
    ["ENDPOINT", "CA", "CERT", "KEY", "CONFIG", "SOFTHSM2_LIBRARY", "FIXTURE_DIR", "LOG"];
const PREFIX: &str = "STRONGROOM_";
/// More problems than this help nobody.
const PROBLEMS_MAX: usize = 100;

/// What the command line says: the layer above all others.
#[derive(Debug, Clone, Default)]
pub struct Flags(Dict);

impl Flags {
    /// No flags.
    pub fn new() -> Self {
        Self::default()
    }

    /// The value of a key such as `grpc.address`.
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        insert(&mut self.0, &Key::of(key).0, value.into());
        self
    }

    /// The path of a key; a relative one is relative to the current folder, as
    /// a command line's paths are.
    pub fn set_path(self, key: &str, path: &Path) -> std::io::Result<Self> {
        let path = std::path::absolute(path)?;
        Ok(self.set(key, path.to_string_lossy().into_owned()))
    }
}

/// All layers, merged.
pub(super) struct Layers {
    figment: Figment,
    merged: Dict,
    file: String,
}

impl Layers {
    /// Reads and merges; the problems are those of files and variables that
    /// cannot be read at all.
    pub fn read(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        flags: &Flags,
    ) -> Result<Self, ConfigError> {
        let mut figment = Figment::new();
        let mut name = "the configuration".to_owned();
        let mut problems = Vec::new();
        if let Some(path) = file {
            name = path.display().to_string();
            match read_file(path) {
                Ok(values) => figment = figment.merge(Layer { name: name.clone(), values }),
                Err(problem) => problems.push(problem),
            }
        }
        for (variable, value) in variables(environment) {
            let source = format!("environment variable {variable}");
            let path = split(&variable);
            let key = Key(path.clone()).to_string();
            match value.into_string() {
                Err(_) => problems.push(Problem::new(source, key, "is not UTF-8; write it in UTF-8")),
                Ok(text) if text.is_empty() => {
                    problems.push(Problem::new(source, key, "is empty; give a value or unset the variable"));
                }
                Ok(text) => {
                    let mut values = Dict::new();
                    insert(&mut values, &path, Value::from(text));
                    figment = figment.merge(Layer { name: source, values });
                }
            }
        }
        figment = figment.merge(Layer { name: "the command line".into(), values: flags.0.clone() });
        let merged = figment.extract::<Value>().ok().and_then(Value::into_dict).unwrap_or_default();
        if problems.is_empty() {
            Ok(Layers { figment, merged, file: name })
        } else {
            Err(ConfigError { problems })
        }
    }

    /// The configuration as `T`, with every problem of its form. With unknown
    /// keys alone it is given too, so that its meaning can be checked as well.
    pub fn extract<T: DeserializeOwned>(&self) -> (Option<T>, Vec<Problem>) {
        let mut rest = self.merged.clone();
        let mut problems = Vec::new();
        let mut sound = true;
        let mut cut_keys = BTreeSet::new();
        for key in secrets(&rest) {
            problems.push(Problem::new(self.source_of(&key), key.to_string(), SECRET));
            sound = false;
            cut(&mut rest, &key.0);
            cut_keys.insert(key);
        }
        // serde stops at the first problem: note it, cut it out, try again.
        while problems.len() < PROBLEMS_MAX {
            let layer = Layer { name: String::new(), values: rest.clone() };
            let error = match Figment::from(layer).extract_lossy::<T>() {
                Ok(value) => return (sound.then_some(value), problems),
                Err(error) => error,
            };
            let mut key = Key(error.path.clone());
            let at = key.clone();
            if let Kind::MissingField(name) = &error.kind {
                key = key.field(name);
            }
            sound &= matches!(error.kind, Kind::UnknownField(..));
            if !cut_keys.contains(&key) {
                let (text, remedy) = explain(&error.kind);
                problems.push(Problem { source: self.source_of(&key), key: key.to_string(), text, remedy });
            }
            match cut(&mut rest, &at.0) {
                Some(gone) => cut_keys.insert(gone),
                None => break,
            };
        }
        (None, problems)
    }

    /// The layer that a value comes from; the file where none says it.
    pub fn source_of(&self, key: &Key) -> String {
        let (first, steps) = match key.0.split_first() {
            Some(split) => split,
            None => return self.file.clone(),
        };
        let value = steps.iter().try_fold(self.merged.get(first), |value, step| match value {
            Some(Value::Dict(_, dict)) => Some(dict.get(step)),
            Some(Value::Array(_, items)) => Some(step.parse().ok().and_then(|index: usize| items.get(index))),
            _ => None,
        });
        value
            .flatten()
            .and_then(|value| self.figment.get_metadata(value.tag()))
            .map_or_else(|| self.file.clone(), |metadata| metadata.name.clone().into_owned())
    }
}

/// One layer, with the name that errors call it by.
struct Layer {
    name: String,
    values: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

fn read_file(path: &Path) -> Result<Dict, Problem> {
    let source = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| {
        let text = format!(
            "cannot be read ({error}); give its path with --config, or make one with `strongroom init`"
        );
        Problem::new(source.clone(), String::new(), &text)
    })?;
    // Not the error's own Display, which quotes the line, and with it what may
    // be a PIN.
    Toml::from_str(&text).map_err(|error| {
        let place = error.span().map_or_else(String::new, |span| {
            let before = text.get(..span.start).unwrap_or_default();
            format!(" in line {}", before.matches('\n').count() + 1)
        });
        Problem {
            source,
            key: String::new(),
            text: format!("is not TOML{place}: {}", error.message().replace('\n', ", ")),
            remedy: "correct this line".into(),
        }
    })
}

/// The daemon's variables, in the order of their names.
fn variables(environment: impl IntoIterator<Item = (OsString, OsString)>) -> Vec<(String, OsString)> {
    let mut variables: Vec<_> = environment
        .into_iter()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .filter(|(name, _)| name.strip_prefix(PREFIX).is_some_and(is_ours))
        .collect();
    variables.sort();
    variables
}

fn is_ours(name: &str) -> bool {
    // Kubernetes sets these for a service that is called strongroom.
    let kubernetes = name == "PORT" || name.starts_with("PORT_") || name.starts_with("SERVICE_");
    !kubernetes && !OTHER_VARIABLES.contains(&name)
}

fn split(variable: &str) -> Vec<String> {
    variable.strip_prefix(PREFIX).unwrap_or(variable).split("__").map(str::to_lowercase).collect()
}

fn insert(dict: &mut Dict, path: &[String], value: Value) {
    match path {
        [] => {}
        [name] => {
            dict.insert(name.clone(), value);
        }
        [name, rest @ ..] => {
            let entry = dict.entry(name.clone()).or_insert_with(|| Value::from(Dict::new()));
            if !matches!(entry, Value::Dict(..)) {
                *entry = Value::from(Dict::new());
            }
            if let Value::Dict(_, inner) = entry {
                insert(inner, rest, value);
            }
        }
    }
}

/// Removes a value and says which; an element of a list takes the list with
/// it, so that no other element changes its place.
fn cut(dict: &mut Dict, path: &[String]) -> Option<Key> {
    fn remove(value: &mut Value, path: &[String]) -> bool {
        match (value, path) {
            (Value::Dict(_, dict), [name]) => dict.remove(name).is_some(),
            (Value::Dict(_, dict), [name, rest @ ..]) => {
                dict.get_mut(name).is_some_and(|value| remove(value, rest))
            }
            (Value::Array(_, items), [index, rest @ ..]) if !rest.is_empty() => index
                .parse()
                .ok()
                .and_then(|index: usize| items.get_mut(index))
                .is_some_and(|value| remove(value, rest)),
            _ => false,
        }
    }
    let mut root = Value::from(std::mem::take(dict));
    let gone =
        (1..=path.len()).rev().filter_map(|length| path.get(..length)).find(|path| remove(&mut root, path));
    *dict = root.into_dict().unwrap_or_default();
    gone.map(|path| Key(path.to_vec()))
}

const SECRET: &str = "is a secret in the configuration or the environment; take it out, change it where it was \
                      in use, and say in [pins.NAME] where the PIN comes from: file = \"PATH\", \
                      credential = \"NAME\" (systemd) or prompt = true";

/// Keys whose values look like secrets. Their values are never printed.
fn secrets(root: &Dict) -> Vec<Key> {
    fn walk(key: &Key, value: &Value, found: &mut Vec<Key>) {
        match value {
            Value::Dict(_, dict) => {
                dict.iter().for_each(|(name, value)| walk(&key.field(name), value, found))
            }
            Value::Array(_, items) => {
                items.iter().enumerate().for_each(|(index, value)| walk(&key.index(index), value, found));
            }
            _ if is_secret(key) => found.push(key.clone()),
            _ => {}
        }
    }
    let mut found = Vec::new();
    root.iter().for_each(|(name, value)| walk(&Key::of(name), value, &mut found));
    found
}

fn is_secret(key: &Key) -> bool {
    match key.0.as_slice() {
        [section, _, field] if section == "pins" => {
            !["file", "credential", "prompt"].contains(&field.as_str())
        }
        [section, ..] if section == "pins" => true,
        // The name of one of [pins].
        [section, _, members, _, name] if section == "regions" && members == "members" && name == "pin" => {
            false
        }
        // Where an access key's secret is, not the secret.
        [.., name] if name == "secret_file" => false,
        [.., name] => {
            let name = name.to_lowercase().replace('-', "_");
            let word = |word: &str| name.split('_').any(|part| part == word);
            word("pin")
                || ["password", "passwd", "passphrase", "secret"].iter().any(|part| name.contains(part))
        }
        [] => false,
    }
}

/// What is wrong, and the remedy. Values are not quoted but for numbers and
/// choices.
fn explain(kind: &Kind) -> (String, String) {
    match kind {
        Kind::Message(text) => {
            let (text, remedy) = text.split_once("; ").unwrap_or((text, "correct the value"));
            (text.into(), remedy.into())
        }
        Kind::UnknownField(name, known) => {
            let remedy = match known.iter().find(|known| alike(known, name)) {
                Some(known) => format!("did you mean {known}?"),
                None => format!("remove it, or write one of {}", known.join(", ")),
            };
            ("unknown key".into(), remedy)
        }
        Kind::MissingField(name) if name == "tls" => (
            "is missing".into(),
            "add a section [tls] with certificate, key and client_cas; `strongroom init` makes one".into(),
        ),
        Kind::MissingField(_) => ("is missing".into(), "add it".into()),
        Kind::InvalidType(found, expected) => {
            (format!("is {}", actual(found)), format!("write {}", describe(expected)))
        }
        Kind::InvalidValue(found @ (Actual::Unsigned(_) | Actual::Signed(_)), expected) => {
            (format!("is out of range: {found}"), format!("write {}", describe(expected)))
        }
        Kind::UnknownVariant(found, known) => {
            (format!("is \"{found}\""), format!("write one of \"{}\"", known.join("\", \"")))
        }
        Kind::InvalidValue(_, expected) => {
            ("is not a value for this key".into(), format!("write {}", describe(expected)))
        }
        other => (other.to_string(), "correct the value".into()),
    }
}

/// Whether one is a slip of the other: one letter more, less, other or swapped.
fn alike(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let same_start = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let same_end = a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count();
    let longest = a.len().max(b.len());
    same_start + same_end + 2 >= longest && a.len().abs_diff(b.len()) <= 1 && longest > 3
}

fn actual(found: &Actual) -> &'static str {
    match found {
        Actual::Bool(_) => "true or false",
        Actual::Unsigned(_) | Actual::Signed(_) => "a number without quotes",
        Actual::Float(_) => "a number with a fraction",
        Actual::Char(_) | Actual::Str(_) | Actual::Bytes(_) => "a text",
        Actual::Seq => "a list",
        Actual::Map => "a section",
        _ => "something else",
    }
}

fn describe(expected: &str) -> String {
    match expected {
        "u16" => "a whole number from 0 to 65535".into(),
        "u32" => format!("a whole number from 0 to {}", u32::MAX),
        "u64" => "a whole number".into(),
        "a boolean" => "true or false".into(),
        "a string" | "path string" => "a text in quotes".into(),
        "a sequence" => "a list".into(),
        "a map" => "a section".into(),
        text if text.starts_with("struct ") => "a section".into(),
        text => text.into(),
    }
}
