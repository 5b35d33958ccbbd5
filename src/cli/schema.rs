//! What the commands know of the API, read from its descriptors at run time:
//! AWS's names, help texts from the comments, limits from the options.

use std::collections::HashMap;
use std::sync::LazyLock;

use prost_reflect::{
    Cardinality, DescriptorPool, DynamicMessage, EnumDescriptor, EnumValueDescriptor, FieldDescriptor,
    MessageDescriptor, MethodDescriptor, ServiceDescriptor, Value,
};

use crate::proto::DESCRIPTORS;

/// The tag of `FieldDescriptorProto.json_name` in a path of source info.
const JSON_NAME_TAG: i32 = 10;

/// The descriptors with their comments.
struct Schema {
    pool: DescriptorPool,
    /// Comments by file and path; an entry without text says that the element
    /// is written in the file at all.
    sources: HashMap<(String, Vec<i32>), String>,
}

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    #[expect(clippy::expect_used, reason = "the build made these bytes from proto/, and a test decodes them")]
    let pool = DescriptorPool::decode(DESCRIPTORS).expect("build.rs writes a valid descriptor set");
    let sources = pool
        .files()
        .flat_map(|file| {
            let locations =
                file.file_descriptor_proto().source_code_info.clone().unwrap_or_default().location;
            let name = file.name().to_owned();
            locations
                .into_iter()
                .map(move |l| ((name.clone(), l.path.clone()), paragraphs(l.leading_comments())))
        })
        .collect();
    Schema { pool, sources }
});

/// A service of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// The KMS operations.
    Kms,
    /// The event log.
    CloudTrail,
    /// Access keys.
    Iam,
    /// The HSMs.
    Hsm,
    /// What only the host may do.
    Admin,
}

impl Service {
    /// The service's descriptor.
    pub fn descriptor(self) -> ServiceDescriptor {
        let name = match self {
            Service::Kms => "strongroom.kms.v1.KeyManagementService",
            Service::CloudTrail => "strongroom.cloudtrail.v1.CloudTrailService",
            Service::Iam => "strongroom.iam.v1.IdentityService",
            Service::Hsm => "strongroom.hsm.v1.HsmService",
            Service::Admin => "strongroom.admin.v1.AdminService",
        };
        #[expect(clippy::expect_used, reason = "a test asks for each of the five services")]
        SCHEMA.pool.get_service_by_name(name).expect("proto/ defines the service")
    }

    /// The operations that answer with one message, by their name in kebab-case.
    pub fn operations(self) -> impl Iterator<Item = (String, MethodDescriptor)> {
        let methods: Vec<_> = self.descriptor().methods().collect();
        methods
            .into_iter()
            .filter(|method| !method.is_client_streaming() && !method.is_server_streaming())
            .map(|method| (kebab(method.name()), method))
    }

    /// The operation of this name, as the protos write it.
    pub fn method(self, name: &str) -> MethodDescriptor {
        #[expect(clippy::expect_used, reason = "called with constants; each caller's command has a test")]
        self.descriptor()
            .methods()
            .find(|method| method.name() == name)
            .expect("proto/ defines the operation")
    }

    /// The comment above the service.
    pub fn comment(self) -> String {
        let service = self.descriptor();
        comment(service.parent_file().name(), service.path())
    }
}

/// The comment above an operation.
pub fn method_comment(method: &MethodDescriptor) -> String {
    comment(method.parent_file().name(), method.path())
}

/// The comment above a field.
pub fn field_comment(field: &FieldDescriptor) -> String {
    comment(field.parent_file().name(), field.path())
}

/// A member's limits: `strongroom.options.v1.Constraint`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The member must be present.
    pub required: bool,
    /// Least length or value.
    pub min: Option<i64>,
    /// Greatest length or value.
    pub max: Option<i64>,
}

/// The limits that a field's option states.
pub fn limits(field: &FieldDescriptor) -> Limits {
    let Some(Value::Message(constraint)) = option(&field.options(), "strongroom.options.v1.is") else {
        return Limits::default();
    };
    let number = |name| {
        let present = constraint.has_field_by_name(name);
        constraint.get_field_by_name(name).filter(|_| present).and_then(|v| v.as_i64())
    };
    let required = constraint.get_field_by_name("required").and_then(|v| v.as_bool()).unwrap_or(false);
    Limits { required, min: number("min"), max: number("max") }
}

/// A member's name as AWS writes it: PascalCase, or the `json_name` that the
/// proto states where AWS differs (`AWSAccountId`).
pub fn aws_name(field: &FieldDescriptor) -> String {
    let mut path = field.path().to_vec();
    path.push(JSON_NAME_TAG);
    if SCHEMA.sources.contains_key(&(field.parent_file().name().to_owned(), path)) {
        return field.json_name().to_owned();
    }
    field.name().split('_').map(capitalised).collect()
}

/// The field of this name, written as AWS does, as the proto does or in kebab-case.
pub fn member(message: &MessageDescriptor, name: &str) -> Option<FieldDescriptor> {
    let plain = |name: &str| name.replace(['_', '-'], "").to_ascii_lowercase();
    let wanted = plain(name);
    message.fields().find(|field| plain(&aws_name(field)) == wanted || plain(field.name()) == wanted)
}

/// The names of a message's members, for an error's text.
pub fn member_names(message: &MessageDescriptor) -> String {
    message.fields().map(|field| aws_name(&field)).collect::<Vec<_>>().join(", ")
}

/// The text by which AWS knows an enum value: the option where there is one,
/// else the value's name without the enum's prefix.
pub fn enum_text(value: &EnumValueDescriptor) -> String {
    if let Some(Value::String(text)) = option(&value.options(), "strongroom.options.v1.text") {
        return text;
    }
    let prefix = format!("{}_", kebab(value.parent_enum().name()).replace('-', "_").to_ascii_uppercase());
    value.name().strip_prefix(&prefix).unwrap_or(value.name()).to_owned()
}

/// The texts of an enum, without its UNSPECIFIED.
pub fn enum_texts(descriptor: &EnumDescriptor) -> Vec<String> {
    descriptor.values().filter(|value| value.number() != 0).map(|value| enum_text(&value)).collect()
}

/// The number of the value with this text, in any case.
pub fn enum_number(descriptor: &EnumDescriptor, text: &str) -> Option<i32> {
    descriptor
        .values()
        .filter(|value| value.number() != 0)
        .find(|value| enum_text(value).eq_ignore_ascii_case(text))
        .map(|value| value.number())
}

/// Whether the message is `google.protobuf.Timestamp`.
pub fn is_timestamp(message: &MessageDescriptor) -> bool {
    message.full_name() == "google.protobuf.Timestamp"
}

/// Whether a field is a list; a map is not.
pub fn is_list(field: &FieldDescriptor) -> bool {
    field.cardinality() == Cardinality::Repeated && !field.is_map()
}

/// CreateKey → create-key, key_id → key-id.
pub fn kebab(name: &str) -> String {
    let mut kebab = String::with_capacity(name.len() + 4);
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !kebab.is_empty() {
            kebab.push('-');
        }
        kebab.push(if letter == '_' { '-' } else { letter.to_ascii_lowercase() });
    }
    kebab
}

fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect()
}

fn comment(file: &str, path: &[i32]) -> String {
    SCHEMA.sources.get(&(file.to_owned(), path.to_vec())).cloned().unwrap_or_default()
}

/// A comment's text with its paragraphs kept and their lines joined.
fn paragraphs(comment: &str) -> String {
    let joined = |paragraph: &str| paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
    let lines: Vec<_> = comment.lines().map(str::trim).collect();
    let paragraphs: Vec<_> = lines.join("\n").split("\n\n").map(joined).collect();
    paragraphs.join("\n\n").trim().to_owned()
}

/// The value of one of our options, where it is stated.
fn option(options: &DynamicMessage, name: &str) -> Option<Value> {
    let extension = SCHEMA.pool.get_extension_by_name(name)?;
    options.has_extension(&extension).then(|| options.get_extension(&extension).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(name: &str) -> MessageDescriptor {
        SCHEMA.pool.get_message_by_name(name).unwrap()
    }

    #[test]
    fn every_service_is_there() {
        for service in [Service::Kms, Service::CloudTrail, Service::Iam, Service::Hsm, Service::Admin] {
            assert!(service.descriptor().methods().count() > 0);
            assert!(!service.comment().is_empty());
        }
    }

    #[test]
    fn names_are_those_of_aws() {
        let metadata = message("strongroom.kms.v1.KeyMetadata");
        let name = |field: &str| aws_name(&metadata.get_field_by_name(field).unwrap());
        assert_eq!(name("aws_account_id"), "AWSAccountId");
        assert_eq!(name("key_id"), "KeyId");
        assert_eq!(name("cloud_hsm_cluster_id"), "CloudHsmClusterId");
        assert_eq!(kebab("GenerateDataKeyPairWithoutPlaintext"), "generate-data-key-pair-without-plaintext");
        for name in ["KeyId", "key_id", "key-id", "keyid"] {
            assert_eq!(member(&metadata, name).unwrap().name(), "key_id");
        }
        assert_eq!(member(&metadata, "AWSAccountId").unwrap().name(), "aws_account_id");
    }

    #[test]
    fn enums_have_the_text_of_aws() {
        let of = |name: &str| enum_texts(&SCHEMA.pool.get_enum_by_name(name).unwrap());
        assert!(of("strongroom.kms.v1.KeySpec").contains(&"ECC_NIST_EDWARDS25519".to_owned()));
        assert!(of("strongroom.kms.v1.KeyState").contains(&"PendingDeletion".to_owned()));
        assert_eq!(of("strongroom.kms.v1.DataKeySpec"), ["AES_256", "AES_128"]);
        // No value keeps a prefix: it would be accepted and printed as no AWS tool writes it.
        for descriptor in SCHEMA.pool.all_enums().filter(|e| e.package_name().starts_with("strongroom.")) {
            let first = enum_texts(&descriptor).first().cloned().unwrap();
            assert!(descriptor.values().all(|value| value.name() != first), "{}", descriptor.full_name());
        }
    }

    #[test]
    fn a_comment_keeps_its_paragraphs_only() {
        assert_eq!(paragraphs(" One\n line.\n\n Another\n one.\n"), "One line.\n\nAnother one.");
        assert_eq!(paragraphs(""), "");
    }

    #[test]
    fn limits_come_from_the_options() {
        let request = message("strongroom.kms.v1.EncryptRequest");
        let of = |name: &str| limits(&request.get_field_by_name(name).unwrap());
        assert_eq!(of("plaintext"), Limits { required: true, min: Some(1), max: Some(4096) });
        assert_eq!(of("dry_run"), Limits::default());
    }
}
