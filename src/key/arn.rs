//! Amazon Resource Names, and the four ways in which a caller names a key.
//!
//! Parsing only: whether what is named exists is the resolver's question.

use std::fmt;

use crate::error::{Error, Exception, Result};

/// The longest alias name that KMS takes, `alias/` included.
pub const ALIAS_NAME_LIMIT_BYTES: usize = 256;

const ALIAS_PREFIX: &str = "alias/";

/// The parts of `arn:PARTITION:SERVICE:REGION:ACCOUNT:RESOURCE`.
///
/// Displayed, it is the text that it was parsed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Arn<'a> {
    /// `aws`, `aws-cn`, `aws-us-gov`.
    pub partition: &'a str,
    /// `kms`, `iam`.
    pub service: &'a str,
    /// Empty for a global service.
    pub region: &'a str,
    /// Twelve digits, or empty where the resource has no account.
    pub account: &'a str,
    /// All the rest, colons included: `key/1234abcd-…`.
    pub resource: &'a str,
}

impl<'a> Arn<'a> {
    /// Splits an ARN. None where it does not have six parts, or where
    /// partition, service or resource is empty.
    pub fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.splitn(6, ':');
        let arn = parts.next().filter(|first| *first == "arn").and_then(|_| {
            Some(Arn {
                partition: parts.next()?,
                service: parts.next()?,
                region: parts.next()?,
                account: parts.next()?,
                resource: parts.next()?,
            })
        })?;
        let complete = !arn.partition.is_empty() && !arn.service.is_empty() && !arn.resource.is_empty();
        complete.then_some(arn)
    }
}

impl fmt::Display for Arn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Arn { partition, service, region, account, resource } = self;
        write!(f, "arn:{partition}:{service}:{region}:{account}:{resource}")
    }
}

/// The ARN of an account's root.
pub fn root_arn(account: &str) -> String {
    format!("arn:aws:iam::{account}:root")
}

/// The ARN of a key.
pub fn key_arn(region: &str, account: &str, key_id: &str) -> String {
    let partition = partition_of(region);
    format!("arn:{partition}:kms:{region}:{account}:key/{key_id}")
}

/// The ARN of an alias, whose name begins with `alias/`.
pub fn alias_arn(region: &str, account: &str, alias: &str) -> String {
    let partition = partition_of(region);
    format!("arn:{partition}:kms:{region}:{account}:{alias}")
}

/// The partition of a Region, by AWS's naming of Regions.
pub fn partition_of(region: &str) -> &'static str {
    match region {
        _ if region.starts_with("cn-") => "aws-cn",
        _ if region.starts_with("us-gov-") => "aws-us-gov",
        _ => "aws",
    }
}

/// Whether this is an account id: twelve digits.
pub fn is_account_id(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether this has the form of a key id: a UUID with its dashes, or `mrk-` and
/// 32 hexadecimal digits for a multi-Region key.
pub fn is_key_id(text: &str) -> bool {
    match text.strip_prefix("mrk-") {
        Some(digits) => digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => {
            text.len() == 36
                && text.bytes().enumerate().all(|(at, byte)| match at {
                    8 | 13 | 18 | 23 => byte == b'-',
                    _ => byte.is_ascii_hexdigit(),
                })
        }
    }
}

/// Whether an alias may be created under this name: `alias/` and letters,
/// digits, `/`, `_` and `-`, at most [`ALIAS_NAME_LIMIT_BYTES`]. The reserved
/// `alias/aws/` is a valid name too; who may create it is another question.
pub fn is_alias_name(text: &str) -> bool {
    text.len() <= ALIAS_NAME_LIMIT_BYTES && alias_form(text) && !text.contains(':')
}

/// A key as a caller names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum KeyName {
    /// `1234abcd-12ab-34cd-56ef-1234567890ab`, in the caller's account.
    KeyId(String),
    /// A key of this Region, perhaps of another account.
    KeyArn {
        /// Twelve digits.
        account: String,
        /// The part after `key/`.
        key_id: String,
    },
    /// `alias/name`, in the caller's account.
    AliasName(String),
    /// An alias of this Region, perhaps of another account.
    AliasArn {
        /// Twelve digits.
        account: String,
        /// `alias/name`.
        alias: String,
    },
}

impl KeyName {
    /// Parses a KeyId member of a request to this Region.
    ///
    /// Errors, in KMS's words: NotFoundException `Invalid keyId 'x'` for what is
    /// neither key id nor alias, NotFoundException `Invalid arn us-west-2` for
    /// another Region's ARN, InvalidArnException for what begins as an ARN and
    /// is not one of a key or alias.
    pub fn parse(name: &str, region: &str) -> Result<KeyName> {
        if name.starts_with("arn:") {
            Self::parse_arn(name, region)
        } else if alias_form(name) {
            Ok(KeyName::AliasName(name.to_owned()))
        } else if is_key_id(name) {
            Ok(KeyName::KeyId(name.to_owned()))
        } else {
            Err(invalid_key_id(name))
        }
    }

    /// The ARN of what is named, in this Region; names without an account are
    /// in `own_account`.
    pub fn to_arn(&self, region: &str, own_account: &str) -> String {
        match self {
            KeyName::KeyId(key_id) => key_arn(region, own_account, key_id),
            KeyName::KeyArn { account, key_id } => key_arn(region, account, key_id),
            KeyName::AliasName(alias) => alias_arn(region, own_account, alias),
            KeyName::AliasArn { account, alias } => alias_arn(region, account, alias),
        }
    }

    fn parse_arn(text: &str, region: &str) -> Result<KeyName> {
        let invalid = || Error::new(Exception::InvalidArn, format!("Invalid arn {text}"));
        let arn = Arn::parse(text).filter(|arn| arn.service == "kms").ok_or_else(invalid)?;
        if arn.region.is_empty() || !is_account_id(arn.account) || arn.partition != partition_of(arn.region) {
            return Err(invalid());
        }
        if arn.region != region {
            return Err(Error::new(Exception::NotFound, format!("Invalid arn {}", arn.region)));
        }
        let account = arn.account.to_owned();
        match arn.resource.strip_prefix("key/") {
            Some(key_id) if is_key_id(key_id) => Ok(KeyName::KeyArn { account, key_id: key_id.to_owned() }),
            Some(key_id) => Err(invalid_key_id(key_id)),
            None if alias_form(arn.resource) => {
                Ok(KeyName::AliasArn { account, alias: arn.resource.to_owned() })
            }
            None => Err(invalid()),
        }
    }
}

/// What an alias looks like to KMS's model, which also lets colons through:
/// such an alias is not found, rather than not an alias.
fn alias_form(text: &str) -> bool {
    text.strip_prefix(ALIAS_PREFIX).is_some_and(|name| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b":/_-".contains(&byte);
        !name.is_empty() && name.bytes().all(allowed)
    })
}

fn invalid_key_id(text: &str) -> Error {
    Error::new(Exception::NotFound, format!("Invalid keyId '{text}'"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "1234abcd-12ab-34cd-56ef-1234567890ab";
    const MRK: &str = "mrk-1234abcd12ab34cd56ef1234567890ab";

    fn refusal(name: &str) -> String {
        KeyName::parse(name, "us-east-1").expect_err(name).to_string()
    }

    #[test]
    fn the_four_forms_of_a_name_are_told_apart() {
        let parse = |name: &str| KeyName::parse(name, "us-east-1").expect(name);
        let account = || "444455556666".to_owned();
        assert_eq!(parse(ID), KeyName::KeyId(ID.into()));
        assert_eq!(parse(MRK), KeyName::KeyId(MRK.into()));
        assert_eq!(parse("alias/a/b_c-1"), KeyName::AliasName("alias/a/b_c-1".into()));
        let arn = format!("arn:aws:kms:us-east-1:444455556666:key/{MRK}");
        assert_eq!(parse(&arn), KeyName::KeyArn { account: account(), key_id: MRK.into() });
        assert_eq!(
            parse("arn:aws:kms:us-east-1:444455556666:alias/x"),
            KeyName::AliasArn { account: account(), alias: "alias/x".into() }
        );
    }

    #[test]
    fn a_name_that_is_none_is_refused_in_kms_words() {
        for id in ["", "x", "1234abcd12ab34cd56ef1234567890ab", "mrk-1234", "alias/", "alias/a b", "key/x"] {
            assert_eq!(refusal(id), format!("NotFoundException: Invalid keyId '{id}'"));
        }
        let arn = |rest: &str| format!("arn:aws:kms:{rest}");
        assert_eq!(
            refusal(&arn("us-west-2:111122223333:alias/x")),
            "NotFoundException: Invalid arn us-west-2"
        );
        assert_eq!(refusal(&arn("us-east-1:111122223333:key/x")), "NotFoundException: Invalid keyId 'x'");
        for bad in [
            "arn:".to_owned(),
            arn("us-east-1:111122223333"),
            arn(&format!("us-east-1:1111:key/{ID}")),
            arn(&format!("us-east-1:111122223333:{ID}")),
            arn(&format!(":111122223333:key/{ID}")),
            format!("arn:aws:s3:us-east-1:111122223333:key/{ID}"),
            format!("arn:aws-cn:kms:us-east-1:111122223333:key/{ID}"),
        ] {
            assert_eq!(refusal(&bad), format!("InvalidArnException: Invalid arn {bad}"));
        }
    }

    #[test]
    fn a_new_alias_has_a_shorter_alphabet_than_a_looked_up_one() {
        assert!(is_alias_name("alias/x") && is_alias_name(&format!("alias/{}", "x".repeat(250))));
        for bad in ["x", "alias/", "alias/a:b", "alias/a b", &format!("alias/{}", "x".repeat(251))] {
            assert!(!is_alias_name(bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in any::<String>(), tail in "[a-z0-9:/-]{0,60}") {
            for name in [text.clone(), format!("arn:{text}"), format!("arn:aws:kms:{tail}")] {
                let _ = KeyName::parse(&name, "us-east-1");
                if let Some(arn) = Arn::parse(&name) {
                    prop_assert_eq!(arn.to_string(), name);
                }
            }
        }

        #[test]
        fn an_arn_survives_printing(parts in proptest::array::uniform4("[a-z0-9-]{1,12}"), rest in "\\PC{1,40}") {
            let [partition, service, region, account] = &parts;
            let arn = Arn { partition, service, region, account, resource: &rest };
            let text = arn.to_string();
            prop_assert_eq!(Arn::parse(&text), Some(arn));
        }

        #[test]
        fn a_name_survives_its_arn(uuid in any::<u128>(), alias in "alias/[a-zA-Z0-9:/_-]{1,40}", cn in any::<bool>()) {
            let region = if cn { "cn-north-1" } else { "us-east-1" };
            let account = "444455556666".to_owned();
            let key_id = format!("mrk-{uuid:032x}");
            for name in [
                KeyName::KeyArn { account: account.clone(), key_id },
                KeyName::AliasArn { account: account.clone(), alias },
            ] {
                let arn = name.to_arn(region, "111122223333");
                prop_assert_eq!(KeyName::parse(&arn, region).expect("its own ARN"), name);
            }
        }
    }
}
