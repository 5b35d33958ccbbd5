//! Who may do what, and why: the same decision as around every operation, made
//! for somebody else and told.

use std::collections::HashMap;
use std::sync::Arc;

use super::admin::anywhere;
use super::prelude::*;
use crate::authority::Question;
use crate::caller::{Caller, Origin, Principal, TlsDetails};
use crate::conditions::{Brings, Brought, Value};
use crate::key::arn::{Arn, KeyName};
use crate::policy::{self, Decision};
use crate::proto::admin;
use crate::registry::LoadedKey;
use crate::store::Kind;

const ENCRYPTION_CONTEXT: &str = "kms:EncryptionContext:";

/// Tells whether a principal may do something, and what decides.
pub struct ExplainAccess;

impl Operation for ExplainAccess {
    const SERVICE: Service = Service::Admin;
    const NAME: &'static str = "ExplainAccess";
    const ACTION: &'static str = "strongroom:ExplainAccess";
    const READ_ONLY: bool = true;
    type Request = admin::ExplainAccessRequest;
    type Response = admin::ExplainAccessResponse;
    type On = Host;

    fn on(_: &Self::Request) -> Result<()> {
        Ok(())
    }

    async fn run(call: &mut Call, request: &Self::Request, _: Allowed<Host>) -> Result<Self::Response> {
        let caller = caller(call, given(&request.principal)?)?;
        let context = Stated::new(&request.context);
        let mut question = Question {
            app: &call.app,
            caller: &caller,
            region: call.region(),
            now_ms: call.now_ms,
            deadline: call.deadline,
            request: &context,
            known: context.others.clone(),
            granting: None,
            presented: &[],
        };
        let action = given(&request.action)?;
        let Some(name) = &request.key_id else {
            if request.policy.is_some() {
                return Err(Error::validation("A Policy to try needs a KeyId."));
            }
            return question
                .ask(action, &Account, |decision, asked| answer(decision, asked, None, &caller))
                .await;
        };
        let (mut key, alias) = key(call, &caller, name).await?;
        question.know("kms:RequestAlias", alias);
        if let Some(text) = &request.policy {
            let policy = crate::conditions::key_policy(text)?;
            key = Arc::new(LoadedKey { held: key.held.clone(), arn: key.arn.clone(), policy });
        }
        question.ask(action, &key, |decision, asked| answer(decision, asked, Some(&key), &caller)).await
    }
}

/// The condition keys that the request states.
struct Stated {
    encryption_context: HashMap<String, String>,
    others: Vec<(String, String)>,
}

impl Stated {
    fn new(context: &HashMap<String, String>) -> Stated {
        let mut stated = Stated { encryption_context: HashMap::new(), others: Vec::new() };
        for (key, value) in context {
            let name = key
                .split_at_checked(ENCRYPTION_CONTEXT.len())
                .filter(|(family, _)| family.eq_ignore_ascii_case(ENCRYPTION_CONTEXT));
            match name {
                Some((_, name)) => drop(stated.encryption_context.insert(name.to_owned(), value.clone())),
                None => stated.others.push((key.clone(), value.clone())),
            }
        }
        stated
    }
}

impl Brings for Stated {
    fn brings(&self) -> Vec<Brought<'_>> {
        let value = Value::Map(&self.encryption_context);
        vec![Brought { key: "kms:EncryptionContext", action: None, value }]
    }
}

/// A caller over TLS who is this principal.
fn caller(call: &Call, arn: &str) -> Result<Caller> {
    let directory = call.app.directory.load();
    let session = Arn::parse(arn).filter(|arn| arn.service == "sts").and_then(|parsed| {
        let (role, session) = parsed.resource.strip_prefix("assumed-role/")?.split_once('/')?;
        Some((format!("arn:aws:iam::{}:role/{role}", parsed.account), session.to_owned()))
    });
    let (name, session) = session.unwrap_or_else(|| (arn.to_owned(), "explained".to_owned()));
    let principal = directory.principal(&name).cloned().or_else(|| root(&directory, &name));
    let principal = principal.ok_or_else(|| {
        Error::new(Exception::NotFound, format!("There is no principal {name} in the configuration."))
    })?;
    let tls = TlsDetails {
        version: "TLSv1.3".to_owned(),
        cipher_suite: String::new(),
        host: None,
        // A session's name.
        certificate_sha256: Some(session),
    };
    Ok(Caller {
        principal,
        service: None,
        origin: Origin::Unix { uid: 0, pid: None },
        tls: Some(tls),
        user_agent: None,
        access_key_id: None,
    })
}

/// The root of an account, which need not be named.
fn root(directory: &crate::config::Directory, arn: &str) -> Option<Arc<Principal>> {
    let parsed = Arn::parse(arn).filter(|arn| arn.service == "iam" && arn.resource == "root")?;
    directory.account(parsed.account)?;
    Some(Arc::new(Principal::root(parsed.account)))
}

/// The key, and the alias that names it: of the principal's account where no ARN
/// says which.
async fn key(call: &Call, caller: &Caller, name: &str) -> Result<(Key, Option<String>)> {
    let (account, alias) = match KeyName::parse(name, call.region())? {
        KeyName::KeyId(_) | KeyName::KeyArn { .. } => return Ok((anywhere(call, name).await?, None)),
        KeyName::AliasName(alias) => (caller.principal.account.clone(), alias),
        KeyName::AliasArn { account, alias } => (account, alias),
    };
    let row = RowId { kind: Kind::Alias, region: call.region().to_owned(), account, id: alias.clone() };
    let found = call.app.registry.alias(&row, call.deadline).await?;
    let found = found.ok_or_else(|| {
        Error::new(Exception::NotFound, format!("Alias {} is not found.", crate::key::arn_of_alias(&row)))
    })?;
    let id = RowId { kind: Kind::Key, id: found.value.target.clone(), ..row };
    Ok((anywhere(call, &crate::key::arn_of_key(&id)).await?, Some(alias)))
}

fn answer(
    decision: Decision<'_>,
    asked: &policy::Request<'_>,
    key: Option<&Key>,
    caller: &Caller,
) -> admin::ExplainAccessResponse {
    let identity = caller.principal.policies.iter().flat_map(|policy| policy.context_keys());
    let mut read: Vec<&str> =
        key.into_iter().flat_map(|key| key.policy.context_keys()).chain(identity).collect();
    read.sort_unstable();
    read.dedup();
    let condition_key = |name: &&str| admin::ConditionKey {
        key: Some((*name).to_owned()),
        values: asked.context.values(name).map(str::to_owned).collect(),
    };
    admin::ExplainAccessResponse {
        allowed: Some(decision.is_allowed()),
        decision: Some(decision.to_string()),
        message: match decision {
            Decision::Allowed { .. } => None,
            Decision::Denied(reason) => Some(reason.message(asked)),
        },
        condition_keys: read.iter().map(condition_key).collect(),
    }
}
