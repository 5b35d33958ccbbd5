//! Which events a trail delivers: CloudTrail's basic and advanced event
//! selectors.
//!
//! KMS's operations are management events, as in AWS. As an addition the
//! cryptographic ones can be selected as data events of `AWS::KMS::Key` too,
//! so that a trail may deliver those of some keys only.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{Error, Exception, Result};

/// The resource type whose data events there are.
pub const KEY_TYPE: &str = "AWS::KMS::Key";
/// The category of PutAuditEvents' events.
const ACTIVITY: &str = "ActivityAuditLog";
const SELECTORS_MAX: usize = 5;
const DATA_RESOURCES_MAX: usize = 250;
const CONDITIONS_MAX: usize = 500;
/// The sources that basic selectors may exclude.
const EXCLUDABLE: [&str; 2] = ["kms.amazonaws.com", "rdsdata.amazonaws.com"];
/// The operations on keys that count as data events too.
const CRYPTOGRAPHIC: [&str; 13] = [
    "Decrypt",
    "DeriveSharedSecret",
    "Encrypt",
    "GenerateDataKey",
    "GenerateDataKeyPair",
    "GenerateDataKeyPairWithoutPlaintext",
    "GenerateDataKeyWithoutPlaintext",
    "GenerateMac",
    "GenerateRandom",
    "ReEncrypt",
    "Sign",
    "Verify",
    "VerifyMac",
];

/// What a trail selects: basic or advanced selectors, never both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selectors {
    /// An event that one of them selects.
    Basic(Vec<Basic>),
    /// Likewise.
    Advanced(Vec<Advanced>),
}

/// CloudTrail's own: every management event.
impl Default for Selectors {
    fn default() -> Self {
        Selectors::Basic(vec![Basic::default()])
    }
}

/// EventSelector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Basic {
    /// readOnly, where ReadWriteType is not All.
    pub read_only: Option<bool>,
    /// IncludeManagementEvents.
    pub management: bool,
    /// ARN prefixes of the keys whose data events are selected.
    pub keys: Vec<String>,
    /// ExcludeManagementEventSources.
    pub excluded_sources: Vec<String>,
}

impl Default for Basic {
    fn default() -> Self {
        Basic { read_only: None, management: true, keys: Vec::new(), excluded_sources: Vec::new() }
    }
}

/// AdvancedEventSelector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advanced {
    /// For people.
    pub name: Option<String>,
    /// All of them must hold.
    pub fields: Vec<FieldSelector>,
}

/// AdvancedFieldSelector: the value equals, begins or ends with one of these,
/// and with none of those.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldSelector {
    /// `eventName`, `resources.ARN`, …
    pub field: String,
    #[allow(missing_docs, reason = "CloudTrail's own names")]
    pub equals: Vec<String>,
    #[allow(missing_docs, reason = "CloudTrail's own names")]
    pub starts_with: Vec<String>,
    #[allow(missing_docs, reason = "CloudTrail's own names")]
    pub ends_with: Vec<String>,
    #[allow(missing_docs, reason = "CloudTrail's own names")]
    pub not_equals: Vec<String>,
    #[allow(missing_docs, reason = "CloudTrail's own names")]
    pub not_starts_with: Vec<String>,
    #[allow(missing_docs, reason = "CloudTrail's own names")]
    pub not_ends_with: Vec<String>,
}

/// InsightType.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InsightType {
    /// ApiCallRateInsight.
    CallRate,
    /// ApiErrorRateInsight.
    ErrorRate,
}

/// InsightSelector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InsightSelector {
    /// InsightType.
    pub kind: InsightType,
    /// Of management events.
    pub management: bool,
    /// Of data events.
    pub data: bool,
}

impl InsightSelector {
    /// Whether it selects Insights of this kind, of data events or of others.
    pub fn selects(&self, kind: InsightType, is_data: bool) -> bool {
        self.kind == kind && if is_data { self.data } else { self.management }
    }

    /// Whether it selects an Insights record.
    fn selects_record(&self, record: &Seen<'_>) -> bool {
        let details = &record.insight_details;
        let kind = match details.insight_type.as_ref() {
            "ApiErrorRateInsight" => InsightType::ErrorRate,
            _ => InsightType::CallRate,
        };
        self.selects(kind, is_cryptographic(&details.event_source, &details.event_name))
    }
}

/// What trails look at of a record; empty where it says nothing.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Seen<'a> {
    #[serde(borrow)]
    event_category: Cow<'a, str>,
    #[serde(borrow)]
    event_source: Cow<'a, str>,
    #[serde(borrow)]
    event_name: Cow<'a, str>,
    #[serde(borrow)]
    event_type: Cow<'a, str>,
    #[serde(deserialize_with = "text_or_none")]
    error_code: Cow<'a, str>,
    read_only: Option<bool>,
    /// Whose record it is.
    #[serde(borrow)]
    pub recipient_account_id: Cow<'a, str>,
    /// Where it was done.
    #[serde(borrow)]
    pub aws_region: Cow<'a, str>,
    #[serde(borrow)]
    user_identity: SeenIdentity<'a>,
    #[serde(borrow)]
    resources: Vec<SeenResource<'a>>,
    #[serde(borrow)]
    insight_details: SeenInsight<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SeenIdentity<'a> {
    #[serde(borrow)]
    arn: Cow<'a, str>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SeenResource<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(rename = "ARN", borrow)]
    arn: Cow<'a, str>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SeenInsight<'a> {
    #[serde(borrow)]
    insight_type: Cow<'a, str>,
    #[serde(borrow)]
    event_source: Cow<'a, str>,
    #[serde(borrow)]
    event_name: Cow<'a, str>,
}

impl<'a> Seen<'a> {
    /// Reads a record.
    ///
    /// # Errors
    /// KMSInternalException for what is no record: nobody but us writes them.
    pub fn read(record: &'a str) -> Result<Seen<'a>> {
        serde_json::from_str(record)
            .map_err(|error| Error::internal(format!("an event cannot be read: {error}")))
    }

    /// Whether it is one of Insights'.
    pub fn is_insight(&self) -> bool {
        self.event_category == "Insight"
    }

    fn is_data(&self) -> bool {
        is_cryptographic(&self.event_source, &self.event_name)
    }

    fn arns(&self) -> impl Iterator<Item = &str> + Clone {
        self.resources.iter().map(|resource| resource.arn.as_ref())
    }
}

/// PutAuditEvents once took an errorCode that is no text: such an event is
/// delivered, and does not hold up those behind it.
fn text_or_none<'a, 'de, D: Deserializer<'de>>(from: D) -> Result<Cow<'a, str>, D::Error> {
    let value = serde_json::Value::deserialize(from)?;
    Ok(value.as_str().unwrap_or_default().to_owned().into())
}

/// Whether an Insights record is to be delivered.
pub fn select_insight(selectors: &[InsightSelector], record: &Seen<'_>) -> bool {
    selectors.iter().any(|selector| selector.selects_record(record))
}

impl Selectors {
    /// Whether they say something else than the default.
    pub fn is_custom(&self) -> bool {
        *self != Selectors::default()
    }

    /// CloudTrail's rules for them.
    ///
    /// # Errors
    /// InvalidEventSelectorsException.
    pub fn check(&self) -> Result<()> {
        match self {
            Selectors::Basic(all) => check_basic(all),
            Selectors::Advanced(all) => check_advanced(all),
        }
    }

    /// Whether a record is to be delivered.
    pub fn select(&self, record: &Seen<'_>) -> bool {
        match self {
            Selectors::Basic(all) => all.iter().any(|selector| selector.selects(record)),
            Selectors::Advanced(all) => all.iter().any(|selector| selector.selects(record)),
        }
    }
}

impl Basic {
    fn selects(&self, record: &Seen<'_>) -> bool {
        let excluded = || self.excluded_sources.iter().any(|source| *source == record.event_source);
        self.read_only.is_none_or(|read_only| record.read_only == Some(read_only))
            && (self.management && !excluded()
                || record.is_data() && record.arns().any(|arn| self.names(arn)))
    }

    fn names(&self, arn: &str) -> bool {
        self.keys.iter().any(|prefix| arn.starts_with(prefix.as_str()))
    }
}

impl Advanced {
    /// A cryptographic operation is an event of both categories; what others
    /// put into the log is of its own.
    fn selects(&self, record: &Seen<'_>) -> bool {
        let categories = match record.event_category.as_ref() {
            ACTIVITY => [Some(ACTIVITY), None],
            _ => [Some("Management"), record.is_data().then_some("Data")],
        };
        let all = |category: &str| self.fields.iter().all(|field| field.holds(record, category));
        categories.into_iter().flatten().any(all)
    }
}

impl FieldSelector {
    fn holds(&self, record: &Seen<'_>, category: &str) -> bool {
        match self.field.as_str() {
            "eventCategory" => self.passes(category),
            "readOnly" => {
                self.passes(record.read_only.map_or("", |value| if value { "true" } else { "false" }))
            }
            "resources.type" => {
                self.passes_any(record.resources.iter().map(|resource| resource.kind.as_ref()))
            }
            "resources.ARN" => self.passes_any(record.arns()),
            "userIdentity.arn" => self.passes(&record.user_identity.arn),
            "eventSource" => self.passes(&record.event_source),
            "eventName" => self.passes(&record.event_name),
            "eventType" => self.passes(&record.event_type),
            "errorCode" => self.passes(&record.error_code),
            // A session that began in the console: there is none here.
            _ => self.passes("false"),
        }
    }

    fn passes(&self, value: &str) -> bool {
        self.wanted(value) && !self.unwanted(value)
    }

    /// Of several resources one must be wanted, and none unwanted.
    fn passes_any<'a>(&self, values: impl Iterator<Item = &'a str> + Clone) -> bool {
        let none_is_asked =
            self.equals.is_empty() && self.starts_with.is_empty() && self.ends_with.is_empty();
        (none_is_asked || values.clone().any(|value| self.wanted(value)))
            && !values.clone().any(|value| self.unwanted(value))
    }

    fn wanted(&self, value: &str) -> bool {
        let none_is_asked =
            self.equals.is_empty() && self.starts_with.is_empty() && self.ends_with.is_empty();
        none_is_asked || matches(&self.equals, &self.starts_with, &self.ends_with, value)
    }

    fn unwanted(&self, value: &str) -> bool {
        matches(&self.not_equals, &self.not_starts_with, &self.not_ends_with, value)
    }

    fn conditions(&self) -> usize {
        let lists = [
            &self.equals,
            &self.starts_with,
            &self.ends_with,
            &self.not_equals,
            &self.not_starts_with,
            &self.not_ends_with,
        ];
        lists.into_iter().map(Vec::len).sum()
    }

    fn only_equals(&self) -> bool {
        self.conditions() == self.equals.len()
    }
}

fn matches(equals: &[String], starts: &[String], ends: &[String], value: &str) -> bool {
    equals.iter().any(|other| value == other)
        || starts.iter().any(|start| value.starts_with(start.as_str()))
        || ends.iter().any(|end| value.ends_with(end.as_str()))
}

/// Whether an operation counts as a data event too.
pub fn is_cryptographic(source: &str, name: &str) -> bool {
    source == "kms.amazonaws.com" && CRYPTOGRAPHIC.contains(&name)
}

fn refused(why: impl Into<std::borrow::Cow<'static, str>>) -> Result<()> {
    Err(Error::new(Exception::InvalidEventSelectors, why))
}

fn check_basic(all: &[Basic]) -> Result<()> {
    if all.is_empty() || all.len() > SELECTORS_MAX {
        return refused("A trail has 1 to 5 event selectors.");
    }
    if all.iter().map(|selector| selector.keys.len()).sum::<usize>() > DATA_RESOURCES_MAX {
        return refused("The total number of allowed data resources is 250.");
    }
    for selector in all {
        let unknown = selector.excluded_sources.iter().find(|source| !EXCLUDABLE.contains(&source.as_str()));
        if let Some(source) = unknown {
            return refused(format!(
                "ExcludeManagementEventSources takes kms.amazonaws.com and rdsdata.amazonaws.com, not {source}."
            ));
        }
        if !selector.management && !selector.excluded_sources.is_empty() {
            return refused("ExcludeManagementEventSources needs IncludeManagementEvents.");
        }
        if !selector.management && selector.keys.is_empty() {
            return refused("An event selector must include management events or have data resources.");
        }
        if let Some(arn) = selector.keys.iter().find(|arn| !arn.starts_with("arn:")) {
            return refused(format!(
                "A data resource of {KEY_TYPE} is a key's ARN or its beginning, not {arn}."
            ));
        }
    }
    Ok(())
}

fn check_advanced(all: &[Advanced]) -> Result<()> {
    if all.is_empty() {
        return refused("A trail has at least one advanced event selector.");
    }
    if all.iter().flat_map(|selector| &selector.fields).map(FieldSelector::conditions).sum::<usize>()
        > CONDITIONS_MAX
    {
        return refused("A trail has at most 500 conditions across all advanced event selectors.");
    }
    all.iter().try_for_each(Advanced::check)
}

impl Advanced {
    fn check(&self) -> Result<()> {
        let mut names: Vec<&str> = self.fields.iter().map(|field| field.field.as_str()).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair.first() == pair.last()) {
            return refused("Each field can be used once in an advanced event selector.");
        }
        let named = |name: &str| self.fields.iter().find(|field| field.field == name);
        let equal = |name: &str| named(name).map(|field| field.equals.as_slice()).unwrap_or_default();
        let category = match equal("eventCategory") {
            [category] if ["Management", "Data", ACTIVITY].contains(&category.as_str()) => category,
            _ => return refused("eventCategory must equal one of Management, Data and ActivityAuditLog."),
        };
        if category == "Data" && equal("resources.type") != [KEY_TYPE] {
            return refused(format!("Data events are those of resources.type {KEY_TYPE}."));
        }
        self.fields.iter().try_for_each(|field| field.check(category == "Data"))
    }
}

impl FieldSelector {
    fn check(&self, of_data: bool) -> Result<()> {
        let name = self.field.as_str();
        if self.conditions() == 0 {
            return refused(format!("The field selector for {name} has no operator."));
        }
        let known = match name {
            "eventCategory"
            | "readOnly"
            | "eventName"
            | "eventSource"
            | "eventType"
            | "userIdentity.arn"
            | "sessionCredentialFromConsole"
            | "errorCode" => true,
            "resources.type" | "resources.ARN" => of_data,
            _ => false,
        };
        if !known {
            return refused(format!("{name} is not a field that can be selected here."));
        }
        let exact = ["eventCategory", "readOnly", "resources.type", "sessionCredentialFromConsole"];
        if exact.contains(&name) && !self.only_equals() {
            return refused(format!("{name} takes the operator Equals only."));
        }
        if name == "readOnly" && !self.equals.iter().all(|value| value == "true" || value == "false") {
            return refused("readOnly equals true or false.");
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use serde_json::json;

    use super::*;

    const ARN: &str = "arn:aws:kms:us-east-1:111122223333:key/a";

    fn record(name: &str, source: &str, read_only: bool) -> String {
        let record = json!({
            "eventName": name, "eventSource": source, "readOnly": read_only, "eventType": "AwsApiCall",
            "userIdentity": {"arn": "arn:aws:iam::111122223333:user/alice"},
            "resources": [{"type": KEY_TYPE, "ARN": ARN}],
        });
        record.to_string()
    }

    fn encrypt() -> String {
        record("Encrypt", "kms.amazonaws.com", true)
    }

    fn create() -> String {
        record("CreateKey", "kms.amazonaws.com", false)
    }

    fn start() -> String {
        record("StartLogging", "cloudtrail.amazonaws.com", false)
    }

    /// Which of Encrypt, CreateKey and StartLogging are selected.
    fn selected(selectors: &Selectors) -> [bool; 3] {
        selectors.check().unwrap();
        [encrypt(), create(), start()].map(|record| selectors.select(&Seen::read(&record).unwrap()))
    }

    #[test]
    fn basic_selectors_select_by_access_source_and_key() {
        let basic = |basic: Basic| Selectors::Basic(vec![basic]);
        assert_eq!(selected(&Selectors::default()), [true, true, true]);
        assert_eq!(
            selected(&basic(Basic { read_only: Some(true), ..Basic::default() })),
            [true, false, false]
        );
        assert_eq!(
            selected(&basic(Basic { read_only: Some(false), ..Basic::default() })),
            [false, true, true]
        );
        let excluded_sources = vec!["kms.amazonaws.com".to_owned()];
        assert_eq!(selected(&basic(Basic { excluded_sources, ..Basic::default() })), [false, false, true]);
        let of_key = |arn: &str| Basic { management: false, keys: vec![arn.to_owned()], ..Basic::default() };
        assert_eq!(selected(&basic(of_key(ARN))), [true, false, false]);
        assert_eq!(selected(&basic(of_key("arn:aws:kms:us-east-1:111122223333:key/b"))), [false; 3]);
        let two = [of_key(ARN), Basic { read_only: Some(false), ..Basic::default() }];
        assert_eq!(selected(&Selectors::Basic(two.to_vec())), [true, true, true]);
    }

    fn field(field: &str, equals: &[&str]) -> FieldSelector {
        let equals = equals.iter().map(|text| (*text).to_owned()).collect();
        FieldSelector { field: field.to_owned(), equals, ..FieldSelector::default() }
    }

    fn advanced(fields: Vec<FieldSelector>) -> Selectors {
        Selectors::Advanced(vec![Advanced { name: None, fields }])
    }

    #[test]
    fn advanced_selectors_have_all_operators() {
        let management = || field("eventCategory", &["Management"]);
        let text = |text: &str| vec![text.to_owned()];
        let with = |selector: FieldSelector| selected(&advanced(vec![management(), selector]));
        let name = || FieldSelector { field: "eventName".into(), ..FieldSelector::default() };
        assert_eq!(selected(&advanced(vec![management()])), [true; 3]);
        assert_eq!(with(field("eventName", &["Encrypt", "CreateKey"])), [true, true, false]);
        assert_eq!(with(FieldSelector { starts_with: text("Cre"), ..name() }), [false, true, false]);
        assert_eq!(with(FieldSelector { ends_with: text("ing"), ..name() }), [false, false, true]);
        assert_eq!(with(FieldSelector { not_equals: text("Encrypt"), ..name() }), [false, true, true]);
        assert_eq!(with(FieldSelector { not_starts_with: text("Cre"), ..name() }), [true, false, true]);
        assert_eq!(with(FieldSelector { not_ends_with: text("ing"), ..name() }), [true, true, false]);
        let both = FieldSelector { starts_with: text("C"), not_ends_with: text("Key"), ..name() };
        assert_eq!(with(both), [false; 3]);
        assert_eq!(with(field("readOnly", &["false"])), [false, true, true]);
        assert_eq!(with(field("userIdentity.arn", &["arn:aws:iam::111122223333:user/bob"])), [false; 3]);
        let data = || vec![field("eventCategory", &["Data"]), field("resources.type", &[KEY_TYPE])];
        assert_eq!(selected(&advanced(data())), [true, false, false]);
        let other = FieldSelector {
            not_equals: text(ARN),
            field: "resources.ARN".into(),
            ..FieldSelector::default()
        };
        assert_eq!(selected(&advanced([data(), vec![other]].concat())), [false; 3]);
    }

    #[test]
    fn an_error_code_that_is_no_text_is_none() {
        for record in [r#"{"errorCode":null}"#, r#"{"errorCode":5}"#, r#"{"errorCode":{"a":[1]}}"#] {
            assert!(Selectors::default().select(&Seen::read(record).unwrap()), "{record}");
        }
        let denied =
            advanced(vec![field("eventCategory", &["Management"]), field("errorCode", &["AccessDenied"])]);
        assert!(denied.select(&Seen::read(r#"{"errorCode":"AccessDenied"}"#).unwrap()));
        assert!(!denied.select(&Seen::read(r#"{"errorCode":5}"#).unwrap()));
    }

    #[test]
    fn what_cloudtrail_refuses_is_refused() {
        let management = || field("eventCategory", &["Management"]);
        for bad in [
            Selectors::Basic(vec![]),
            Selectors::Basic(vec![Basic::default(); 6]),
            Selectors::Basic(vec![Basic { management: false, ..Basic::default() }]),
            Selectors::Basic(vec![Basic {
                excluded_sources: vec!["s3.amazonaws.com".into()],
                ..Basic::default()
            }]),
            Selectors::Basic(vec![Basic { keys: vec!["key".into()], ..Basic::default() }]),
            Selectors::Advanced(vec![]),
            advanced(vec![]),
            advanced(vec![field("eventName", &["Encrypt"])]),
            advanced(vec![field("eventCategory", &["Data"])]),
            advanced(vec![management(), management()]),
            advanced(vec![management(), field("colour", &["red"])]),
            advanced(vec![management(), field("readOnly", &["yes"])]),
            advanced(vec![management(), field("eventName", &[])]),
            advanced(vec![management(), field("resources.ARN", &[ARN])]),
        ] {
            assert_eq!(bad.check().unwrap_err().exception, Exception::InvalidEventSelectors, "{bad:?}");
        }
    }
}
