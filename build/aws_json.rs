//! Writes the implementations of `crate::wire::json`'s traits: each message's
//! form in AWS JSON 1.1. Names are PascalCase, or the `json_name` that the proto
//! states where AWS differs (`AWSAccountId`, `trailList`).

use std::collections::HashSet;
use std::fmt::Write as _;

use heck::ToUpperCamelCase as _;
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor};

use super::{Error, event_name, messages, rust_path};

/// The tag of `FieldDescriptorProto.json_name` in a path of source info.
const JSON_NAME_TAG: i32 = 10;

/// The code for every message.
pub fn write(pool: &DescriptorPool) -> Result<String, Error> {
    let writer = Writer { pool, stated: stated_names(pool) };
    messages(pool).map(|message| writer.message(&message)).collect()
}

struct Writer<'a> {
    pool: &'a DescriptorPool,
    /// Files and paths of what is written out in the protos.
    stated: HashSet<(String, Vec<i32>)>,
}

/// A `json_name` is always there, stated or made up by the compiler: only the
/// source tells which.
fn stated_names(pool: &DescriptorPool) -> HashSet<(String, Vec<i32>)> {
    let places = |file: prost_reflect::FileDescriptor| {
        let info = file.file_descriptor_proto().source_code_info.clone().unwrap_or_default();
        let name = file.name().to_owned();
        info.location.into_iter().map(move |location| (name.clone(), location.path))
    };
    pool.files().flat_map(places).filter(|(_, path)| path.last() == Some(&JSON_NAME_TAG)).collect()
}

impl Writer<'_> {
    fn message(&self, message: &MessageDescriptor) -> Result<String, Error> {
        let path = rust_path(message.package_name(), message.name());
        let (mut reads, mut writes) = (String::new(), String::new());
        for field in message.fields() {
            let (rust, name) = (super::rust_field(&field), self.name(&field));
            let read = self.read(&field)?;
            writeln!(reads, "{name:?} => self.{rust} = {read},")?;
            writes.push_str(&self.write(&field, &name)?);
        }
        let has_body = message.fields().len() > 0 || self.flag(message.options(), "empty_structure");
        Ok(format!(
            "impl Json for {path} {{
             const HAS_BODY: bool = {has_body};
             #[allow(unused_variables, reason = \"not every message has members\")]
             fn read(&mut self, name: &str, value: Value, reader: &mut Reader) -> Result<()> {{
             match name {{ {reads} _ => {{}} }} Ok(()) }}
             fn write(&self) -> serde_json::Result<Vec<u8>> {{ serde_json::to_vec(&Aws(self)) }} }}
             impl Serialize for Aws<'_, {path}> {{
             fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {{
             #[allow(unused_mut, reason = \"not every message has members\")]
             let mut map = serializer.serialize_map(None)?; {writes} map.end() }} }}\n"
        ))
    }

    fn name(&self, field: &FieldDescriptor) -> String {
        let mut path = field.path().to_vec();
        path.push(JSON_NAME_TAG);
        if self.stated.contains(&(field.parent_file().name().to_owned(), path)) {
            return field.json_name().to_owned();
        }
        field.name().to_upper_camel_case()
    }

    /// An expression for the field's value from the JSON `value`.
    fn read(&self, field: &FieldDescriptor) -> Result<String, Error> {
        let place = event_name(self.pool, field);
        let one = |value: &str| -> Result<String, Error> {
            Ok(match field.kind() {
                Kind::String => format!("reader.text({value})?"),
                Kind::Bytes => format!("reader.bytes({value})?"),
                Kind::Bool => format!("reader.flag({value})?"),
                Kind::Int32 => format!("reader.integer({value})?"),
                Kind::Int64 => format!("reader.long({value})?"),
                Kind::Double => format!("reader.double({value})?"),
                Kind::Enum(each) => {
                    format!("reader.choice::<{}>({value})?", rust_path(each.package_name(), each.name()))
                }
                Kind::Message(inner) if inner.full_name() == "google.protobuf.Timestamp" => {
                    format!("reader.time({value})?")
                }
                Kind::Message(_) => format!("reader.message({place:?}, {value})?"),
                other => return Err(format!("{}: AWS JSON has no {other:?} here", field.full_name()).into()),
            })
        };
        if field.is_map() {
            return Ok("reader.map(value)?".to_owned());
        }
        if field.is_list() {
            let entry = match field.kind() {
                // An entry's place is the reader's own.
                Kind::Message(inner) if inner.full_name() != "google.protobuf.Timestamp" => {
                    "reader.object(entry)?".to_owned()
                }
                _ => one("entry")?,
            };
            return Ok(format!("reader.list({place:?}, value, |reader, entry| Ok({entry}))?"));
        }
        if !field.supports_presence() {
            return Err(format!("{} must be optional", field.full_name()).into());
        }
        Ok(format!("Some({})", one("value")?))
    }

    /// Statements that write the field as the member `name`.
    fn write(&self, field: &FieldDescriptor, name: &str) -> Result<String, Error> {
        let rust = super::rust_field(field);
        let one = match field.kind() {
            Kind::Bytes => "Base64(value)".to_owned(),
            Kind::Enum(each) => format!("{}::text_of(*value)", rust_path(each.package_name(), each.name())),
            Kind::Message(inner) if inner.full_name() == "google.protobuf.Timestamp" => {
                "EpochSeconds(value)".to_owned()
            }
            Kind::Message(_) if !field.is_map() => "Aws(value)".to_owned(),
            _ => "value".to_owned(),
        };
        let entry = |value: &str| format!("map.serialize_entry({name:?}, &{value})?;");
        Ok(if field.is_map() {
            format!("if !self.0.{rust}.is_empty() {{ {} }}", entry(&format!("Sorted(&self.0.{rust})")))
        } else if field.is_list() {
            let list = format!("self.0.{rust}.iter().map(|value| {one}).collect::<Vec<_>>()");
            let sent_empty = self.flag(field.options(), "sent_empty");
            format!("if {sent_empty} || !self.0.{rust}.is_empty() {{ {} }}", entry(&list))
        } else {
            format!("if let Some(value) = &self.0.{rust} {{ {} }}", entry(&one))
        })
    }

    fn flag(&self, options: DynamicMessage, option: &str) -> bool {
        self.pool
            .get_extension_by_name(&format!("strongroom.options.v1.{option}"))
            .is_some_and(|extension| options.get_extension(&extension).as_bool() == Some(true))
    }
}
