//! What a record can be looked up by.

use serde::Deserialize;

use crate::proto::kms::KeyLastUsageTrackingOperation;
use crate::wire::Text as _;

/// CloudTrail's lookup attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Attribute {
    /// The record's eventID.
    EventId,
    /// `Encrypt`.
    EventName,
    /// `true` or `false`.
    ReadOnly,
    /// See [`Attributes::username`].
    Username,
    /// `AWS::KMS::Key`.
    ResourceType,
    /// The resource's ARN, or what stands in it behind `key/`.
    ResourceName,
    /// `kms.amazonaws.com`.
    EventSource,
    /// The access key of the caller.
    AccessKeyId,
    /// The ARN of a key with which cryptography was done, for GetKeyLastUsage;
    /// callers of LookupEvents cannot ask for it.
    KeyUse,
}

impl Attribute {
    /// The number in the index; 0 stands for all events.
    pub(super) fn code(self) -> i64 {
        match self {
            Attribute::EventId => 1,
            Attribute::EventName => 2,
            Attribute::ReadOnly => 3,
            Attribute::Username => 4,
            Attribute::ResourceType => 5,
            Attribute::ResourceName => 6,
            Attribute::EventSource => 7,
            Attribute::AccessKeyId => 8,
            Attribute::KeyUse => 9,
        }
    }
}

/// What a record says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// recipientAccountId; see [`insights_of`] for Insights, which are apart.
    pub account: String,
    /// awsRegion.
    pub region: String,
    /// The caller's name: userName of a user, the session's name of an assumed
    /// role, `root` for the root; empty where there is none.
    pub username: String,
    /// What it is found by; a value may be there more than once.
    pub values: Vec<(Attribute, String)>,
}

/// What the Insights of an account are found under, apart from its other events.
pub fn insights_of(account: &str) -> String {
    format!("insights/{account}")
}

/// Reads a CloudTrail record; None where it is no record.
pub fn attributes(record: &str) -> Option<Attributes> {
    let mut record: Record = serde_json::from_str(record).ok()?;
    if let Some(details) = record.insight_details.take() {
        record.event_name = details.event_name;
        record.event_source = details.event_source;
        record.recipient_account_id = insights_of(&record.recipient_account_id);
    }
    let username = record.user_identity.username();
    let is_use =
        record.error_code.is_none() && KeyLastUsageTrackingOperation::from_text(&record.event_name).is_some();
    let mut values = vec![
        (Attribute::EventId, record.event_id),
        (Attribute::EventName, record.event_name),
        (Attribute::EventSource, record.event_source),
        (Attribute::Username, username.clone()),
    ];
    values.extend(record.read_only.map(|read_only| (Attribute::ReadOnly, read_only.to_string())));
    values.extend(record.user_identity.access_key_id.map(|id| (Attribute::AccessKeyId, id)));
    for resource in record.resources.unwrap_or_default() {
        values.extend(resource.kind.map(|kind| (Attribute::ResourceType, kind)));
        let arn = resource.arn.unwrap_or_default();
        values.extend(is_use.then(|| (Attribute::KeyUse, arn.clone())));
        if let Some((_, key_id)) = arn.split_once(":key/") {
            values.push((Attribute::ResourceName, key_id.to_owned()));
        }
        values.push((Attribute::ResourceName, arn));
    }
    values.retain(|(_, value)| !value.is_empty());
    Some(Attributes { account: record.recipient_account_id, region: record.aws_region, username, values })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    #[serde(rename = "eventID")]
    event_id: String,
    #[serde(default)]
    event_name: String,
    error_code: Option<String>,
    #[serde(default)]
    event_source: String,
    aws_region: String,
    recipient_account_id: String,
    read_only: Option<bool>,
    #[serde(default)]
    user_identity: UserIdentity,
    resources: Option<Vec<Resource>>,
    insight_details: Option<InsightDetails>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct InsightDetails {
    event_source: String,
    event_name: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct UserIdentity {
    #[serde(rename = "type")]
    kind: Option<String>,
    principal_id: Option<String>,
    user_name: Option<String>,
    access_key_id: Option<String>,
}

impl UserIdentity {
    fn username(&self) -> String {
        let session = || self.principal_id.as_deref()?.split_once(':').map(|(_, session)| session);
        let name = match (self.user_name.as_deref(), self.kind.as_deref()) {
            (Some(name), _) => Some(name),
            (None, Some("AssumedRole")) => session(),
            (None, Some("Root")) => Some("root"),
            (None, _) => None,
        };
        name.unwrap_or_default().to_owned()
    }
}

#[derive(Deserialize)]
struct Resource {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(rename = "ARN")]
    arn: Option<String>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn values(record: serde_json::Value) -> (String, Vec<(Attribute, String)>) {
        let found = attributes(&record.to_string()).unwrap();
        (found.username, found.values)
    }

    #[test]
    fn a_record_is_found_by_what_it_says() {
        let (username, values) = values(serde_json::json!({
            "eventVersion": "1.11", "eventID": "e-1", "eventName": "ReEncrypt",
            "eventSource": "kms.amazonaws.com", "awsRegion": "us-east-1",
            "recipientAccountId": "111122223333", "readOnly": true,
            "userIdentity": {"type": "AssumedRole", "principalId": "AROAX:session", "accessKeyId": "ASIA1"},
            "resources": [
                {"accountId": "111122223333", "type": "AWS::KMS::Key", "ARN": "arn:aws:kms:us-east-1:111122223333:key/k1"},
                {"ARN": "arn:aws:kms:us-east-1:111122223333:alias/a"},
            ],
        }));
        assert_eq!(username, "session");
        let wanted = [
            (Attribute::EventId, "e-1"),
            (Attribute::EventName, "ReEncrypt"),
            (Attribute::EventSource, "kms.amazonaws.com"),
            (Attribute::Username, "session"),
            (Attribute::ReadOnly, "true"),
            (Attribute::AccessKeyId, "ASIA1"),
            (Attribute::ResourceType, "AWS::KMS::Key"),
            (Attribute::KeyUse, "arn:aws:kms:us-east-1:111122223333:key/k1"),
            (Attribute::ResourceName, "k1"),
            (Attribute::ResourceName, "arn:aws:kms:us-east-1:111122223333:key/k1"),
            (Attribute::KeyUse, "arn:aws:kms:us-east-1:111122223333:alias/a"),
            (Attribute::ResourceName, "arn:aws:kms:us-east-1:111122223333:alias/a"),
        ];
        assert_eq!(values, wanted.map(|(attribute, value)| (attribute, value.to_owned())));
    }

    #[test]
    fn what_a_service_does_by_itself_has_no_caller() {
        let (username, values) = values(serde_json::json!({
            "eventID": "e-2", "eventName": "DeleteKey", "eventSource": "kms.amazonaws.com",
            "awsRegion": "us-east-1", "recipientAccountId": "111122223333", "readOnly": false,
            "userIdentity": {"accountId": "111122223333", "invokedBy": "AWS Internal"}, "resources": null,
        }));
        assert_eq!(username, "");
        assert!(!values.iter().any(|(attribute, _)| *attribute == Attribute::Username));
        assert!(values.contains(&(Attribute::ReadOnly, "false".into())));
    }

    #[test]
    fn only_cryptography_that_succeeded_is_a_use() {
        let uses = |name: &str, error: Option<&str>| {
            let (_, values) = values(serde_json::json!({
                "eventID": "e", "eventName": name, "eventSource": "kms.amazonaws.com", "errorCode": error,
                "awsRegion": "us-east-1", "recipientAccountId": "111122223333", "resources": [{"ARN": "k"}],
            }));
            values.contains(&(Attribute::KeyUse, "k".into()))
        };
        assert!(uses("Sign", None));
        assert!(!uses("Sign", Some("DisabledException")));
        assert!(!uses("DescribeKey", None));
    }

    #[test]
    fn insights_are_apart() {
        let record = serde_json::json!({
            "eventID": "e", "awsRegion": "us-east-1", "recipientAccountId": "111122223333",
            "insightDetails": {"eventName": "Decrypt", "eventSource": "kms.amazonaws.com"},
        });
        let found = attributes(&record.to_string()).unwrap();
        assert_eq!(found.account, "insights/111122223333");
        assert!(found.values.contains(&(Attribute::EventName, "Decrypt".into())));
    }

    #[test]
    fn no_record_is_no_failure() {
        assert_eq!(attributes("{"), None);
    }
}
