//! The CloudTrail record (eventVersion 1.11) of one call or of something that
//! the daemon did by itself.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use uuid::{NoContext, Timestamp};

use crate::caller::{Caller, Origin, Principal, PrincipalKind};
use crate::error::{Error, Exception};
use crate::store::NewEvent;

/// eventVersion.
pub const EVENT_VERSION: &str = "1.11";
const ERROR_TEXT_BYTES_MAX: usize = 1024;
/// The usual record is shorter: its text is written without growing.
const USUAL_BYTES: usize = 2048;
/// userIdentity.type of a service.
const SERVICE: &str = "AWSService";
/// Who did what the service did by itself.
const INTERNAL: &str = "AWS Internal";

/// A record. Fields are CloudTrail's, in its order.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    event_version: &'static str,
    /// Who.
    pub user_identity: UserIdentity,
    #[serde(serialize_with = "seconds")]
    event_time: i64,
    event_source: &'static str,
    event_name: &'static str,
    aws_region: String,
    #[serde(rename = "sourceIPAddress")]
    source_ip_address: String,
    user_agent: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_message: Option<String>,
    /// The request without bytes and secrets; null where nothing is left.
    pub request_parameters: Option<Box<RawValue>>,
    /// The answer of a call that changes something, without bytes and secrets.
    pub response_elements: Option<Box<RawValue>>,
    /// What KMS adds: keyMaterialId, customKeyStoreId, …
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub additional_event_data: Map<String, Value>,
    #[serde(rename = "requestID", skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
    #[serde(rename = "eventID")]
    event_id: String,
    read_only: bool,
    /// The keys that the call named.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<EventResource>,
    event_type: EventType,
    management_event: bool,
    recipient_account_id: String,
    #[serde(rename = "sharedEventID", skip_serializing_if = "Option::is_none")]
    shared_event_id: Option<String>,
    /// What the daemon did by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_event_details: Option<Value>,
    event_category: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_details: Option<TlsDetails>,
}

/// Why there is a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum EventType {
    /// Somebody called.
    AwsApiCall,
    /// The daemon did something by itself.
    AwsServiceEvent,
}

/// A resource of a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EventResource {
    account_id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(rename = "ARN")]
    arn: String,
}

impl EventResource {
    /// A KMS key.
    pub fn key(account: &str, arn: &str) -> Self {
        EventResource { account_id: account.to_owned(), kind: "AWS::KMS::Key", arn: arn.to_owned() }
    }

    /// Its ARN.
    pub fn arn(&self) -> &str {
        &self.arn
    }
}

/// Who called.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UserIdentity {
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    principal_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    arn: Option<String>,
    /// Empty for a service.
    #[serde(skip_serializing_if = "String::is_empty")]
    account_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    access_key_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_name: Option<String>,
    /// SHA-256 of the client certificate, in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    credential_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_context: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    invoked_by: Option<Cow<'static, str>>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct TlsDetails {
    tls_version: String,
    cipher_suite: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_provided_host_header: Option<String>,
}

/// What a record says of every call, whatever it is.
pub struct Context<'a> {
    /// eventSource.
    pub source: &'static str,
    /// eventName.
    pub name: &'static str,
    /// awsRegion.
    pub region: &'a str,
    /// eventTime, milliseconds since the epoch.
    pub time_ms: i64,
    /// readOnly.
    pub read_only: bool,
}

/// What a call does in another Region than the one that was asked.
pub struct Elsewhere {
    /// eventName.
    pub name: &'static str,
    /// requestParameters.
    pub request: Option<Box<RawValue>>,
    /// responseElements.
    pub response: Option<Box<RawValue>>,
    /// Whether the service did it for the caller, rather than the caller.
    pub invoked: bool,
}

impl Record {
    /// The record of a call.
    pub fn call(context: Context<'_>, caller: &Caller, request_id: &str) -> Record {
        let tls_details = caller.tls.as_ref().map(|tls| TlsDetails {
            tls_version: tls.version.clone(),
            cipher_suite: tls.cipher_suite.clone(),
            client_provided_host_header: tls.host.clone(),
        });
        Record {
            source_ip_address: match (&caller.service, &caller.origin) {
                (Some(call), _) => call.service.clone(),
                (None, Origin::Tcp(address)) => address.ip().to_string(),
                (None, Origin::Unix { .. }) => "localhost".to_owned(),
            },
            user_agent: match &caller.service {
                Some(call) => call.service.clone(),
                None => caller.user_agent.clone().unwrap_or_default(),
            },
            request_id: Some(request_id.to_owned()),
            tls_details,
            ..Record::new(
                context,
                UserIdentity::of(caller),
                caller.principal.account.clone(),
                EventType::AwsApiCall,
            )
        }
    }

    /// The record of what the daemon did by itself, for one account.
    pub fn service(context: Context<'_>, account: &str, details: Value) -> Record {
        let identity = UserIdentity::internal(account);
        Record {
            service_event_details: Some(details),
            ..Record::new(context, identity, account.to_owned(), EventType::AwsServiceEvent)
        }
    }

    /// The record of a call that the daemon made itself, of one key, for its
    /// account.
    ///
    /// # Errors
    /// Where the ARN cannot be written.
    pub fn internal_call(context: Context<'_>, account: &str, arn: &str) -> serde_json::Result<Record> {
        let answer = serde_json::json!({ "keyId": arn });
        let identity = UserIdentity::internal(account);
        Ok(Record {
            response_elements: Some(serde_json::value::to_raw_value(&answer)?),
            request_id: Some(uuid::Uuid::new_v4().to_string()),
            resources: vec![EventResource::key(account, arn)],
            ..Record::new(context, identity, account.to_owned(), EventType::AwsApiCall)
        })
    }

    fn new(
        context: Context<'_>,
        user_identity: UserIdentity,
        account: String,
        event_type: EventType,
    ) -> Record {
        Record {
            event_version: EVENT_VERSION,
            user_identity,
            event_time: context.time_ms,
            event_source: context.source,
            event_name: context.name,
            aws_region: context.region.to_owned(),
            source_ip_address: INTERNAL.to_owned(),
            user_agent: INTERNAL.to_owned(),
            error_code: None,
            error_message: None,
            request_parameters: None,
            response_elements: None,
            additional_event_data: Map::new(),
            request_id: None,
            event_id: new_event_id(context.time_ms),
            read_only: context.read_only,
            resources: Vec::new(),
            event_type,
            management_event: true,
            recipient_account_id: account,
            shared_event_id: None,
            service_event_details: None,
            event_category: "Management",
            tls_details: None,
        }
    }

    /// eventID.
    pub fn event_id(&self) -> &str {
        &self.event_id
    }

    /// The same with an eventID that was made before.
    pub fn with_id(self, event_id: String) -> Record {
        Record { event_id, ..self }
    }

    /// Notes why the call failed.
    pub fn failed(&mut self, error: &Error) {
        self.error_code = Some(match error.exception {
            // CloudTrail writes this one without its ending.
            Exception::AccessDenied => "AccessDenied",
            other => other.name(),
        });
        if !error.message.is_empty() {
            self.error_message = Some(truncated(&error.message, ERROR_TEXT_BYTES_MAX).to_owned());
        }
        self.response_elements = None;
    }

    /// The records of the same call for the other accounts whose keys it used,
    /// with the caller as they may see it. All share one sharedEventID.
    pub fn shared(&mut self) -> Vec<Record> {
        let mut accounts: Vec<String> =
            self.resources.iter().map(|resource| resource.account_id.clone()).collect();
        accounts.sort();
        accounts.dedup();
        accounts.retain(|account| *account != self.recipient_account_id);
        if accounts.is_empty() {
            return Vec::new();
        }
        self.shared_event_id = Some(uuid::Uuid::new_v4().to_string());
        let copy = |account: String| Record {
            user_identity: self.user_identity.of_other_account(),
            event_id: new_event_id(self.event_time),
            recipient_account_id: account,
            ..self.clone()
        };
        accounts.into_iter().map(copy).collect()
    }

    /// The record of what the same call did in another Region.
    pub fn elsewhere(&self, region: &str, what: Elsewhere) -> Record {
        let Elsewhere { name, request, response, invoked } = what;
        let mut record = Record {
            event_id: new_event_id(self.event_time),
            // It is the other Region's request: the caller's has one event.
            request_id: Some(uuid::Uuid::new_v4().to_string()),
            event_name: name,
            aws_region: region.to_owned(),
            request_parameters: request,
            response_elements: response,
            resources: Vec::new(),
            ..self.clone()
        };
        if invoked {
            record.source_ip_address = INTERNAL.to_owned();
            record.user_agent = INTERNAL.to_owned();
            record.tls_details = None;
            record.user_identity.invoked_by = Some(INTERNAL.into());
        }
        record
    }

    /// The event for the store.
    pub fn event(&self) -> serde_json::Result<NewEvent> {
        let mut record = Vec::with_capacity(USUAL_BYTES);
        serde_json::to_writer(&mut record, self)?;
        let record = String::from_utf8(record).map_err(serde::ser::Error::custom)?;
        Ok(NewEvent { id: self.event_id.clone(), time_ms: self.event_time, record })
    }
}

impl UserIdentity {
    /// The daemon itself.
    fn internal(account: &str) -> UserIdentity {
        UserIdentity {
            kind: None,
            principal_id: None,
            arn: None,
            account_id: account.to_owned(),
            access_key_id: None,
            user_name: None,
            credential_id: None,
            session_context: None,
            invoked_by: Some(INTERNAL.into()),
        }
    }

    /// What the owner of a key learns of a caller of another account.
    fn of_other_account(&self) -> UserIdentity {
        if self.kind == Some(SERVICE) {
            return self.clone();
        }
        UserIdentity {
            kind: Some("AWSAccount"),
            arn: None,
            access_key_id: None,
            user_name: None,
            credential_id: None,
            session_context: None,
            ..self.clone()
        }
    }

    fn of(caller: &Caller) -> UserIdentity {
        let principal = &*caller.principal;
        let own = caller.tls.as_ref().filter(|_| caller.via().is_none());
        let credential_id = own.and_then(|tls| tls.certificate_sha256.clone());
        let identity = |kind, user_name| UserIdentity {
            kind: Some(kind),
            principal_id: Some(principal.principal_id.clone()),
            arn: Some(principal.arn.clone()),
            account_id: principal.account.clone(),
            access_key_id: caller.access_key_id.clone(),
            user_name,
            credential_id: credential_id.clone(),
            session_context: None,
            invoked_by: caller.service.as_ref().map(|call| call.service.clone().into()),
        };
        match principal.kind {
            PrincipalKind::Service => UserIdentity {
                principal_id: None,
                arn: None,
                account_id: String::new(),
                access_key_id: None,
                credential_id: None,
                ..identity(SERVICE, None)
            },
            PrincipalKind::Root => identity("Root", None),
            PrincipalKind::User => identity("IAMUser", Some(principal.name.clone())),
            PrincipalKind::Role => {
                let session = caller.session_name();
                UserIdentity {
                    principal_id: Some(format!("{}:{session}", principal.principal_id)),
                    arn: Some(principal.session_arn(&session)),
                    session_context: Some(issuer(principal)),
                    ..identity("AssumedRole", None)
                }
            }
        }
    }
}

fn issuer(role: &Principal) -> Value {
    serde_json::json!({
        "sessionIssuer": {
            "type": "Role",
            "principalId": role.principal_id,
            "arn": role.arn,
            "accountId": role.account,
            "userName": role.name,
        }
    })
}

/// Version 7, which begins with the event's time: by that the history finds it,
/// without an entry for each id.
pub(super) fn new_event_id(time_ms: i64) -> String {
    let (second, rest) = (time_ms.div_euclid(1000), time_ms.rem_euclid(1000));
    let nanoseconds = u32::try_from(rest).unwrap_or(0) * 1_000_000;
    let time = Timestamp::from_unix(NoContext, u64::try_from(second).unwrap_or(0), nanoseconds);
    uuid::Uuid::new_v7(time).to_string()
}

fn seconds<S: serde::Serializer>(time_ms: &i64, serializer: S) -> Result<S::Ok, S::Error> {
    let time = jiff::Timestamp::from_second(time_ms.div_euclid(1000)).map_err(serde::ser::Error::custom)?;
    serializer.collect_str(&time.strftime("%Y-%m-%dT%H:%M:%SZ"))
}

/// The beginning of a text, in whole characters.
pub fn truncated(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}
