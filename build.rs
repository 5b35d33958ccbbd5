//! Compiles `proto/` and writes, from its descriptors and options, what every
//! message needs beyond its wire form: its limits, its forms in AWS JSON and in
//! a CloudTrail record, and a Debug output without secrets. Makes the tests'
//! SoftHSM2 tokens.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use heck::{ToLowerCamelCase, ToShoutySnakeCase};
use prost::Message as _;
use prost_reflect::{
    Cardinality, DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor,
    Value,
};

#[path = "build/aws_json.rs"]
mod aws_json;
#[path = "src/hsm/softhsm.rs"]
#[allow(dead_code, reason = "shared with the library, which uses more of it")]
mod softhsm;

/// Tokens that really differ: a copy of a token has its original's serial.
const FIXTURE_TOKENS: usize = 4;

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Error> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    println!("cargo:rerun-if-changed=src/store/migrations");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    protobuf(&out)?;
    softhsm_fixture(&out)
}

/// Makes ready-initialised SoftHSM2 token folders, `1/tokens` to `4/tokens`
/// (labels `strongroom-test-1` to `-4`, SO PIN 12345678, user PIN 87654321),
/// which each test copies. Without SoftHSM2 the variable stays empty.
fn softhsm_fixture(out: &Path) -> Result<(), Error> {
    println!("cargo:rerun-if-changed=src/hsm/softhsm.rs");
    println!("cargo:rerun-if-env-changed={}", softhsm::LIBRARY_VARIABLE);
    let Some(library) = softhsm::library() else {
        println!("cargo:warning=SoftHSM2 was not found, its tests will fail: {}", softhsm::INSTALL_HINT);
        println!("cargo:rustc-env=STRONGROOM_FIXTURE_DIR=");
        // What is not there counts as changed: the next build looks again.
        println!("cargo:rerun-if-changed=/libsofthsm2.so");
        return Ok(());
    };
    println!("cargo:rerun-if-changed={}", library.display());
    let folder = out.join("softhsm-fixture");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    for number in 1..=FIXTURE_TOKENS {
        fixture_token(&library, &folder.join(number.to_string()), number)?;
    }
    println!("cargo:rustc-env=STRONGROOM_FIXTURE_DIR={}", folder.display());
    Ok(())
}

fn fixture_token(library: &Path, folder: &Path, number: usize) -> Result<(), Error> {
    let configuration = folder.join("softhsm2.conf");
    softhsm::write_configuration(&configuration, &folder.join("tokens"))?;
    // SAFETY: the build script has one thread.
    unsafe { env::set_var(softhsm::CONFIGURATION_VARIABLE, &configuration) };
    softhsm::initialise_token(library, &format!("strongroom-test-{number}"), "12345678", "87654321")?;
    Ok(())
}

fn protobuf(out: &Path) -> Result<(), Error> {
    println!("cargo:rerun-if-changed=proto");
    let files: Vec<String> = ["options", "kms", "cloudtrail", "organizations", "iam", "hsm", "admin"]
        .iter()
        .map(|package| format!("strongroom/{package}/v1/{package}.proto"))
        .collect();
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true).open_files(&files)?;
    let set = compiler.encode_file_descriptor_set();
    fs::write(out.join("descriptors.bin"), &set)?;
    let pool = DescriptorPool::decode(set.as_slice())?;
    prost_build::Config::new()
        .skip_debug(["."])
        .enum_attribute(".", "#[derive(Debug)]")
        .include_file("messages.rs")
        .compile_fds(prost_types_set(&set)?)?;
    fs::write(out.join("forms.rs"), Forms::new(&pool)?.write()?)?;
    fs::write(out.join("json.rs"), aws_json::write(&pool)?)?;
    Ok(())
}

fn prost_types_set(set: &[u8]) -> Result<prost_types::FileDescriptorSet, Error> {
    Ok(prost_types::FileDescriptorSet::decode(set)?)
}

/// Writes the implementations of `crate::wire`'s traits.
struct Forms<'a> {
    pool: &'a DescriptorPool,
    patterns: BTreeMap<String, String>,
    code: String,
}

impl<'a> Forms<'a> {
    fn new(pool: &'a DescriptorPool) -> Result<Self, Error> {
        Ok(Forms { pool, patterns: BTreeMap::new(), code: String::new() })
    }

    fn write(mut self) -> Result<String, Error> {
        let pool = self.pool;
        for message in messages(pool) {
            self.message(&message)?;
        }
        for each in pool.all_enums().filter(|e| is_ours(e.package_name())) {
            self.text(&each)?;
        }
        for (pattern, name) in &self.patterns {
            let anchored = format!("^(?:{})$", rust_pattern(pattern));
            writeln!(
                self.code,
                "static {name}: Pattern = Pattern {{ text: {pattern:?}, compiled: LazyLock::new(|| Regex::new({anchored:?}).ok()) }};"
            )?;
        }
        Ok(self.code)
    }

    fn message(&mut self, message: &MessageDescriptor) -> Result<(), Error> {
        let path = rust_path(message.package_name(), message.name());
        let (mut checks, mut entries, mut brought) = (String::new(), String::new(), String::new());
        for field in message.fields() {
            self.check(&mut checks, &field)?;
            self.entry(&mut entries, &field)?;
            self.brought(&mut brought, &field)?;
        }
        writeln!(
            self.code,
            "impl Form for {path} {{ fn event(&self, aside: &Aside) -> Option<Box<RawValue>> {{ Event(self, aside).raw() }}
             #[allow(unused_variables, reason = \"not every message has limits\")]
             fn check(&self, at: &At<'_>, found: &mut Violations<'_>) {{ {checks} }} }}
             impl Serialize for Event<'_, {path}> {{
             fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {{
             #[allow(unused_mut, reason = \"not every message has members\")]
             let mut map = serializer.serialize_map(None)?; {entries} map.end() }} }}
             impl std::fmt::Debug for {path} {{
             fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {{ Event(self, &NOTHING).debug(f) }} }}"
        )?;
        if message.name().ends_with("Request") {
            self.brings(&path, message, &brought)?;
        }
        Ok(())
    }

    /// What a request brings to the conditions of policies.
    fn brings(&mut self, path: &str, message: &MessageDescriptor, brought: &str) -> Result<(), Error> {
        let tokens = match message.get_field_by_name("grant_tokens") {
            Some(_) => "fn grant_tokens(&self) -> &[String] { &self.grant_tokens }",
            None => "",
        };
        writeln!(
            self.code,
            "impl Brings for {path} {{ fn brings(&self) -> Vec<Brought<'_>> {{
             #[allow(unused_mut, reason = \"not every message has such members\")]
             let mut all = Vec::new(); {brought} all }} {tokens} }}"
        )?;
        Ok(())
    }

    /// What one field brings, if the option `condition` says so.
    fn brought(&self, code: &mut String, field: &FieldDescriptor) -> Result<(), Error> {
        let Some((key, action)) = self.condition(field) else { return Ok(()) };
        let text = |value: &str| match field.kind() {
            Kind::Enum(each) => {
                let path = rust_path(each.package_name(), each.name());
                format!("enum_text::<{path}>(*{value}, &NOTHING)")
            }
            Kind::String => format!("std::borrow::Cow::Borrowed({value}.as_str())"),
            Kind::Message(_) => format!("crate::conditions::time_text({value}).into()"),
            _ => format!("{value}.to_string().into()"),
        };
        let rust = rust_field(field);
        let is_tag = |kind: &Kind| matches!(kind, Kind::Message(message) if message.name() == "Tag");
        let (given, value) = if field.is_map() {
            (format!("!self.{rust}.is_empty()"), format!("BroughtValue::Map(&self.{rust})"))
        } else if field.is_list() && is_tag(&field.kind()) {
            (format!("!self.{rust}.is_empty()"), format!("BroughtValue::Tags(&self.{rust})"))
        } else if field.is_list() {
            let texts = format!("self.{rust}.iter().map(|value| {}).collect()", text("value"));
            (format!("!self.{rust}.is_empty()"), format!("BroughtValue::Texts({texts})"))
        } else {
            (format!("let Some(value) = &self.{rust}"), format!("BroughtValue::Text({})", text("value")))
        };
        writeln!(
            code,
            "if {given} {{ all.push(Brought {{ key: {key:?}, action: {action:?}, value: {value} }}); }}"
        )?;
        Ok(())
    }

    /// The condition key that a field brings, and to which action alone.
    fn condition(&self, field: &FieldDescriptor) -> Option<(String, Option<String>)> {
        let options = field.options();
        let extension = self.pool.get_extension_by_name("strongroom.options.v1.condition")?;
        let value = options.has_extension(&extension).then(|| options.get_extension(&extension))?;
        let text = |name: &str| {
            let message = value.as_message()?;
            let given = message.has_field_by_name(name).then(|| message.get_field_by_name(name)).flatten()?;
            given.as_str().map(str::to_owned)
        };
        Some((text("key")?, text("action")))
    }

    /// The limits of one field.
    fn check(&mut self, code: &mut String, field: &FieldDescriptor) -> Result<(), Error> {
        let limits = self.limits(field);
        let (rust, name) = (rust_field(field), event_name(self.pool, field));
        if let Some(exception) = self.refused(field) {
            let given = match field.kind() {
                _ if field.is_list() => format!("!self.{rust}.is_empty()"),
                Kind::Bool => format!("self.{rust} == Some(true)"),
                _ => format!("self.{rust}.is_some()"),
            };
            writeln!(code, "if {given} {{ found.refuse(&at.member({name:?}), Exception::{exception}); }}")?;
        }
        if field.is_map() {
            return Ok(());
        }
        if field.is_list() {
            let most = Limits { min: None, ..limits.clone() };
            let (length, at) =
                (format!("self.{rust}.len()"), format!("at.list({name:?}, self.{rust}.len())"));
            self.bounds(code, &most, "length", &length, &at)?;
            if limits.required || limits.min.is_some() {
                let (required, min) = (limits.required, limits.min.unwrap_or(0));
                let at = format!("&at.list({name:?}, 0)");
                writeln!(code, "if self.{rust}.is_empty() {{ found.empty_list({at}, {required}, {min}); }}")?;
            }
            let mut inner = String::new();
            self.value(
                &mut inner,
                field,
                &limits.each.as_deref().cloned().unwrap_or_default(),
                "at.entry(NAME, index)".replace("NAME", &format!("{name:?}")).as_str(),
            )?;
            if !inner.is_empty() {
                writeln!(code, "for (index, value) in self.{rust}.iter().enumerate() {{ {inner} }}")?;
            }
            return Ok(());
        }
        let mut inner = String::new();
        self.value(&mut inner, field, &limits, &format!("at.member({name:?})"))?;
        let absent =
            if limits.required { format!("found.null(&at.member({name:?}))") } else { "()".to_owned() };
        if limits.required || !inner.is_empty() {
            writeln!(
                code,
                "match &self.{rust} {{ None => {absent}, Some(value) => {{ let _ = value; {inner} }} }}"
            )?;
        }
        Ok(())
    }

    /// The limits of one value, `value`.
    fn value(
        &mut self,
        code: &mut String,
        field: &FieldDescriptor,
        limits: &Limits,
        at: &str,
    ) -> Result<(), Error> {
        match field.kind() {
            Kind::String => {
                let shown = if self.flag(field, "secret") { "hidden()" } else { "text(value)" };
                self.bounds(code, limits, "length", "value.chars().count()", &format!("{at}.{shown}"))?;
                if let Some(pattern) = &limits.pattern {
                    let next = format!("PATTERN_{}", self.patterns.len());
                    let name = self.patterns.entry(pattern.clone()).or_insert(next).clone();
                    writeln!(code, "found.pattern(|| {at}.{shown}, value, &{name});")?;
                }
            }
            Kind::Bytes => self.bounds(code, limits, "length", "value.len()", &format!("{at}.hidden()"))?,
            Kind::Int32 | Kind::Int64 => {
                self.bounds(code, limits, "value", "*value", &format!("{at}.text(&value.to_string())"))?;
            }
            Kind::Enum(each) => {
                let path = rust_path(each.package_name(), each.name());
                writeln!(code, "found.value_set::<{path}>(|| {at}, *value);")?;
            }
            Kind::Message(inner) if inner.package_name().starts_with("strongroom.") => {
                writeln!(code, "value.check(&{at}, found);")?;
            }
            _ => (),
        }
        Ok(())
    }

    fn bounds(
        &self,
        code: &mut String,
        limits: &Limits,
        what: &str,
        value: &str,
        at: &str,
    ) -> Result<(), Error> {
        for (bound, least) in [(limits.min, true), (limits.max, false)] {
            if let Some(bound) = bound {
                writeln!(code, "found.bound(|| {at}, {value} as i64, {bound}, {least}, {what:?});")?;
            }
        }
        Ok(())
    }

    /// One entry of the event form. Bytes and secrets have none.
    fn entry(&self, code: &mut String, field: &FieldDescriptor) -> Result<(), Error> {
        let (rust, name) = (rust_field(field), event_name(self.pool, field));
        if self.flag(field, "secret") || field.kind() == Kind::Bytes {
            return Ok(());
        }
        let wrap = |value: &str| match field.kind() {
            Kind::Enum(each) => {
                format!("enum_text::<{}>(*{value}, self.1)", rust_path(each.package_name(), each.name()))
            }
            Kind::Message(inner) if inner.full_name() == "google.protobuf.Timestamp" => {
                format!("EventTime({value})")
            }
            Kind::Message(_) => format!("Event({value}, self.1)"),
            _ => value.to_owned(),
        };
        if field.is_map() {
            writeln!(
                code,
                "if !self.0.{rust}.is_empty() {{ map.serialize_entry({name:?}, &Sorted(&self.0.{rust}))?; }}"
            )?;
        } else if field.cardinality() == Cardinality::Repeated {
            writeln!(
                code,
                "if !self.0.{rust}.is_empty() {{ map.serialize_entry({name:?}, &self.0.{rust}.iter().map(|value| {}).collect::<Vec<_>>())?; }}",
                wrap("value")
            )?;
        } else {
            writeln!(
                code,
                "if let Some(value) = &self.0.{rust} {{ map.serialize_entry({name:?}, &{})?; }}",
                wrap("value")
            )?;
        }
        Ok(())
    }

    /// An enum's texts, as AWS writes them.
    fn text(&mut self, each: &EnumDescriptor) -> Result<(), Error> {
        let path = rust_path(each.package_name(), each.name());
        let prefix = format!("{}_", each.name().to_shouty_snake_case());
        let extension =
            self.pool.get_extension_by_name("strongroom.options.v1.text").ok_or("no option text")?;
        let (mut names, mut texts) = (String::new(), String::new());
        for value in each.values().filter(|value| value.number() != 0) {
            let options = value.options();
            let text = match options.get_extension(&extension).as_str() {
                Some(text) if !text.is_empty() => text.to_owned(),
                _ => value
                    .name()
                    .strip_prefix(&prefix)
                    .ok_or_else(|| format!("{} lacks its prefix {prefix}", value.name()))?
                    .to_owned(),
            };
            write!(names, "{} => {text:?},", value.number())?;
            write!(texts, "({text:?}, {}),", value.number())?;
        }
        writeln!(
            self.code,
            "impl Text for {path} {{
             const TEXTS: &'static [(&'static str, i32)] = &[{texts}];
             fn text_of(number: i32) -> Option<&'static str> {{ Some(match number {{ {names} _ => return None }}) }}
             fn number(self) -> i32 {{ self as i32 }} }}"
        )?;
        Ok(())
    }

    fn limits(&self, field: &FieldDescriptor) -> Limits {
        let options = field.options();
        self.pool
            .get_extension_by_name("strongroom.options.v1.is")
            .filter(|extension| options.has_extension(extension))
            .and_then(|extension| options.get_extension(&extension).as_message().map(Limits::read))
            .unwrap_or_default()
    }

    /// The exception for a member that is not served.
    fn refused(&self, field: &FieldDescriptor) -> Option<String> {
        let options = field.options();
        let extension = self.pool.get_extension_by_name("strongroom.options.v1.refused")?;
        options
            .has_extension(&extension)
            .then(|| options.get_extension(&extension).as_str().map(str::to_owned))?
    }

    fn flag(&self, field: &FieldDescriptor, option: &str) -> bool {
        let options = field.options();
        self.pool
            .get_extension_by_name(&format!("strongroom.options.v1.{option}"))
            .is_some_and(|extension| options.get_extension(&extension).as_bool() == Some(true))
    }
}

/// The API's messages.
fn messages(pool: &DescriptorPool) -> impl Iterator<Item = MessageDescriptor> {
    pool.all_messages().filter(|message| is_ours(message.package_name()) && !message.is_map_entry())
}

fn is_ours(package: &str) -> bool {
    package.starts_with("strongroom.") && package != "strongroom.options.v1"
}

/// `strongroom.options.v1.Constraint`.
#[derive(Clone, Default)]
struct Limits {
    required: bool,
    min: Option<i64>,
    max: Option<i64>,
    pattern: Option<String>,
    each: Option<Box<Limits>>,
}

impl Limits {
    fn read(message: &DynamicMessage) -> Self {
        let value = |name: &str| {
            message
                .has_field_by_name(name)
                .then(|| message.get_field_by_name(name))
                .flatten()
                .map(|v| v.into_owned())
        };
        Limits {
            required: value("required").and_then(|v| v.as_bool()).unwrap_or(false),
            min: value("min").and_then(|v| v.as_i64()),
            max: value("max").and_then(|v| v.as_i64()),
            pattern: value("pattern").and_then(|v| v.as_str().map(str::to_owned)),
            each: value("each").and_then(|v| match v {
                Value::Message(each) => Some(Box::new(Limits::read(&each))),
                _ => None,
            }),
        }
    }
}

fn event_name(pool: &DescriptorPool, field: &FieldDescriptor) -> String {
    let options = field.options();
    pool.get_extension_by_name("strongroom.options.v1.event_name")
        .filter(|extension| options.has_extension(extension))
        .and_then(|extension| options.get_extension(&extension).as_str().map(str::to_owned))
        .unwrap_or_else(|| field.name().to_lower_camel_case())
}

/// The name of a member where Rust has the word itself: `r#type`.
fn rust_field(field: &FieldDescriptor) -> String {
    match field.name() {
        "type" => "r#type".to_owned(),
        name => name.to_owned(),
    }
}

/// `strongroom.kms.v1` + `KeySpec` → `crate::proto::strongroom::kms::v1::KeySpec`.
fn rust_path(package: &str, name: &str) -> String {
    format!("crate::proto::{}::{name}", package.replace('.', "::"))
}

/// The service model's patterns are Java's: `\u0009` is `\x{0009}` here.
fn rust_pattern(pattern: &str) -> String {
    let mut rest = pattern;
    let mut rust = String::new();
    while let Some((before, after)) = rest.split_once("\\u") {
        let (digits, tail) = after.split_at(after.len().min(4));
        rust.push_str(before);
        rust.push_str(&format!("\\x{{{digits}}}"));
        rest = tail;
    }
    rust + rest
}
