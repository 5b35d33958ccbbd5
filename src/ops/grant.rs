//! Grants: the use of one key for one principal, beside its policy. A grant is
//! in force when CreateGrant has answered; its token says no more than that the
//! grant was seen.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::key::{bad_marker, marker, unmarked};
use super::prelude::*;
use crate::hsm::BackingId;
use crate::key::{Grant, arn, grant};
use crate::policy::{self, Constraints, GRANTS_WITH_CONTEXT, Terms};
use crate::registry::from_store;
use crate::resource::{GrantName, Retirable, no_grant};
use crate::store::Kind;

/// KMS's default and largest page of ListGrants.
const GRANTS_PAGE: i32 = 50;
const GRANTS_PAGE_MAX: i32 = 100;
/// Most pairs of an encryption context in a constraint.
const CONSTRAINT_PAIRS_MAX: usize = 8;
/// Rows that one call of ListRetirableGrants looks through; then the answer ends
/// and the next call goes on.
const SCANNED_MAX: u32 = 5_000;

/// Lets a principal use a key.
pub struct CreateGrant;

impl Operation for CreateGrant {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "CreateGrant";
    const ACTION: &'static str = "kms:CreateGrant";
    const READ_ONLY: bool = false;
    type Request = kms::CreateGrantRequest;
    type Response = kms::CreateGrantResponse;
    type On = Key;

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        by_key_id_only(&request.key_id)
    }

    async fn prepare(call: &mut Call, request: &Self::Request, _: &Key) -> Result<()> {
        let terms = terms(request)?;
        for (kind, given) in [
            ("EncryptionContextEquals", terms.constraints.encryption_context_equals.is_some()),
            ("EncryptionContextSubset", terms.constraints.encryption_context_subset.is_some()),
            ("SourceArn", terms.constraints.source_arn.is_some()),
        ] {
            if given {
                call.know("kms:GrantConstraintType", kind);
            }
        }
        call.grants(terms);
        Ok(())
    }

    async fn run(call: &mut Call, request: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        call.check(Stage::Use, &key)?;
        let new = Grant {
            key_id: key.held.id.id.clone(),
            terms: terms(request)?,
            retiring: retiring(request)?,
            name: request.name.clone(),
            issuing_account: arn::root_arn(call.account()),
            created_ms: call.now_ms,
        };
        fits(&key, &new.terms)?;
        let id = new.new_id(&BackingId::random().map_err(from_hsm)?.0);
        let id = RowId { kind: Kind::Grant, id, ..key.held.id.clone() };
        let existing = call.app.registry.grant(&key.held.id, &id.id, call.deadline).await?;
        if existing.is_none() {
            room(call, &key).await?;
        }
        call.dry_run(request.dry_run)?;
        if existing.is_none() {
            call.change(Draft::insert(id.clone(), &new)?);
        }
        let token = call.app.registry.new_token(&id, call.deadline).await?;
        Ok(kms::CreateGrantResponse { grant_token: Some(token), grant_id: Some(id.id) })
    }
}

/// Lists a key's grants.
pub struct ListGrants;

impl Operation for ListGrants {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "ListGrants";
    const ACTION: &'static str = "kms:ListGrants";
    const READ_ONLY: bool = true;
    type Request = kms::ListGrantsRequest;
    type Response = kms::ListGrantsResponse;
    type On = Key;

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        by_key_id_only(&request.key_id)
    }

    async fn run(call: &mut Call, request: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        let limit = page_limit(request.limit);
        let after = request.marker.as_deref().map(unmarked).transpose()?;
        let grantee = match (&request.grantee_principal, &request.grantee_service_principal) {
            (None, None) => None,
            (Some(name), None) | (None, Some(name)) => Some(principal(name)?),
            (Some(_), Some(_)) => return Err(both("GranteePrincipal", "GranteeServicePrincipal")),
        };
        let is_grantee = |value: &Grant| grantee.as_ref().is_none_or(|name| *name == value.terms.grantee);
        let registry = &call.app.registry;
        let mut found: Vec<Held<Grant>> = match (&request.grant_id, &grantee) {
            (Some(id), _) => {
                let grant = registry.grant(&key.held.id, id, call.deadline).await?;
                let grant = grant.ok_or_else(|| no_grant(id))?;
                Some(grant.held.clone()).filter(|held| is_grantee(&held.value)).into_iter().collect()
            }
            (None, Some(grantee)) => {
                let grants = registry.grants(&key.held.id, grantee, call.deadline).await?;
                let behind = |held: &&Held<Grant>| after.as_ref().is_none_or(|after| held.id.id > *after);
                let held = grants.iter().map(|grant| &grant.held).filter(|held| is_grantee(&held.value));
                held.filter(behind).take(limit + 1).cloned().collect()
            }
            (None, None) => {
                let of = &key.held.id;
                let (most, after) = (u32::try_from(limit + 1).unwrap_or(1), after.as_deref());
                registry.page(&of.region, &of.account, Some(&of.id), after, most, call.deadline).await?
            }
        };
        let next_marker = cut(&mut found, limit);
        Ok(kms::ListGrantsResponse {
            grants: found.iter().map(entry).collect(),
            truncated: Some(next_marker.is_some()),
            next_marker,
        })
    }
}

/// Lists the grants that a principal of the caller's account may retire.
pub struct ListRetirableGrants;

impl Operation for ListRetirableGrants {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "ListRetirableGrants";
    const ACTION: &'static str = "kms:ListRetirableGrants";
    const READ_ONLY: bool = true;
    type Request = kms::ListRetirableGrantsRequest;
    type Response = kms::ListRetirableGrantsResponse;
    type On = Account;

    fn on(_: &Self::Request) -> Result<()> {
        Ok(())
    }

    async fn run(call: &mut Call, request: &Self::Request, _: Allowed<Account>) -> Result<Self::Response> {
        let retiring = match (&request.retiring_principal, &request.retiring_service_principal) {
            (Some(name), None) | (None, Some(name)) => principal(name)?,
            (Some(_), Some(_)) => return Err(both("RetiringPrincipal", "RetiringServicePrincipal")),
            (None, None) => return Err(Error::validation("RetiringPrincipal is required.")),
        };
        if arn::Arn::parse(&retiring).is_some_and(|arn| arn.account != call.account()) {
            return Err(Error::new(
                Exception::InvalidArn,
                "The retiring principal must be one of the caller's own account.",
            ));
        }
        let limit = page_limit(request.limit);
        let mut after = match &request.marker {
            None => RowId {
                kind: Kind::Grant,
                region: call.region().to_owned(),
                account: String::new(),
                id: String::new(),
            },
            Some(marker) => position(call, &unmarked(marker)?)?,
        };
        let mut found: Vec<Held<Grant>> = Vec::new();
        let rows =
            call.app.store.all_rows(Kind::Grant, Some(&after), SCANNED_MAX).await.map_err(from_store)?;
        let mut truncated = rows.len() == SCANNED_MAX as usize;
        for row in rows.into_iter().take_while(|row| row.id.region == call.region()) {
            // Only what is listed is worth its MAC; what was not read is not listed.
            let is_retiring = serde_json::from_str::<Grant>(&row.body)
                .is_ok_and(|grant| grant.retiring.as_ref() == Some(&retiring));
            if is_retiring && found.len() == limit {
                truncated = true;
                break;
            }
            after = row.id.clone();
            if is_retiring {
                found.push(call.app.registry.open(row, call.deadline).await?);
            }
        }
        Ok(kms::ListRetirableGrantsResponse {
            grants: found.iter().map(entry).collect(),
            truncated: Some(truncated),
            next_marker: truncated.then(|| marker(&format!("{} {}", after.account, after.id))),
        })
    }
}

/// Ends a grant, by whom the grant allows to.
pub struct RetireGrant;

impl Operation for RetireGrant {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "RetireGrant";
    const ACTION: &'static str = "kms:RetireGrant";
    const READ_ONLY: bool = false;
    type Request = kms::RetireGrantRequest;
    type Response = kms::RetireGrantResponse;
    type On = Retirable;

    fn on(request: &Self::Request) -> Result<GrantName> {
        match (&request.grant_token, &request.key_id, &request.grant_id) {
            (Some(token), None, None) => Ok(GrantName::Token(token.clone())),
            (None, Some(key_id), Some(grant_id)) => {
                Ok(GrantName::Id { key_id: key_id.clone(), grant_id: grant_id.clone() })
            }
            _ => Err(Error::validation("Specify either GrantToken, or KeyId and GrantId.")),
        }
    }

    async fn run(call: &mut Call, request: &Self::Request, on: Allowed<Retirable>) -> Result<Self::Response> {
        call.note("grantId", on.grant.held.id.id.clone());
        call.dry_run(request.dry_run)?;
        call.change(Draft::delete(&on.grant.held));
        Ok(kms::RetireGrantResponse {})
    }
}

/// Ends a grant, by whom the key's policy allows to.
pub struct RevokeGrant;

impl Operation for RevokeGrant {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "RevokeGrant";
    const ACTION: &'static str = "kms:RevokeGrant";
    const READ_ONLY: bool = false;
    type Request = kms::RevokeGrantRequest;
    type Response = kms::RevokeGrantResponse;
    type On = Key;

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        by_key_id_only(&request.key_id)
    }

    async fn run(call: &mut Call, request: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        let id = given(&request.grant_id)?;
        let grant = call.app.registry.grant(&key.held.id, id, call.deadline).await?;
        let grant = grant.ok_or_else(|| no_grant(id))?;
        call.dry_run(request.dry_run)?;
        call.change(Draft::delete(&grant.held));
        Ok(kms::RevokeGrantResponse {})
    }
}

/// What the grant that is asked for says.
fn terms(request: &kms::CreateGrantRequest) -> Result<Terms> {
    let grantee = match (&request.grantee_principal, &request.grantee_service_principal) {
        (Some(name), None) | (None, Some(name)) => principal(name)?,
        (Some(_), Some(_)) => return Err(both("GranteePrincipal", "GranteeServicePrincipal")),
        (None, None) => return Err(Error::validation("GranteePrincipal is required.")),
    };
    let text = |number: &i32| choice(Some(*number), kms::GrantOperation::Unspecified).text().to_owned();
    let operations: BTreeSet<String> = request.operations.iter().map(text).collect();
    let given = request.constraints.clone().unwrap_or_default();
    let constraints = Constraints {
        encryption_context_equals: pairs(&given.encryption_context_equals)?,
        encryption_context_subset: pairs(&given.encryption_context_subset)?,
        source_arn: given.source_arn,
    };
    let retires = request.retiring_principal.is_some() || request.retiring_service_principal.is_some();
    if request.grantee_service_principal.is_some() && !(constraints.source_arn.is_some() && retires) {
        return Err(Error::validation(
            "A grant to a GranteeServicePrincipal needs the constraint SourceArn, and a RetiringPrincipal or a RetiringServicePrincipal.",
        ));
    }
    Ok(Terms { grantee, operations, constraints })
}

fn retiring(request: &kms::CreateGrantRequest) -> Result<Option<String>> {
    match (&request.retiring_principal, &request.retiring_service_principal) {
        (None, None) => Ok(None),
        (Some(name), None) | (None, Some(name)) => principal(name).map(Some),
        (Some(_), Some(_)) => Err(both("RetiringPrincipal", "RetiringServicePrincipal")),
    }
}

/// A principal's name in the one form in which grants keep it.
fn principal(name: &str) -> Result<String> {
    let terms = |name: &str| Terms {
        grantee: name.to_owned(),
        operations: BTreeSet::new(),
        constraints: Constraints::default(),
    };
    let name = if arn::is_account_id(name) { arn::root_arn(name) } else { name.to_owned() };
    match policy::Grant::new(String::new(), terms(&name)) {
        Some(_) => Ok(name),
        None => Err(Error::new(Exception::InvalidArn, format!("{name} is not the ARN of a principal."))),
    }
}

fn pairs(of: &HashMap<String, String>) -> Result<Option<BTreeMap<String, String>>> {
    if of.len() > CONSTRAINT_PAIRS_MAX {
        return Err(Error::validation(format!(
            "A grant constraint has at most {CONSTRAINT_PAIRS_MAX} pairs of an encryption context."
        )));
    }
    Ok((!of.is_empty()).then(|| of.clone().into_iter().collect()))
}

/// Whether the key can do what the grant is for.
fn fits(key: &Key, terms: &Terms) -> Result<()> {
    let (spec, usage) = (key.held.value.spec, key.held.value.usage);
    let symmetric = spec == kms::KeySpec::SymmetricDefault;
    let asymmetric = !symmetric && spec::mac_algorithms(spec).is_empty();
    for operation in &terms.operations {
        let possible = match operation.as_str() {
            "CreateGrant" | "DescribeKey" | "RetireGrant" => true,
            "Decrypt" | "Encrypt" | "ReEncryptFrom" | "ReEncryptTo" => {
                usage == kms::KeyUsageType::EncryptDecrypt
            }
            "GetPublicKey" => asymmetric,
            "Sign" | "Verify" => usage == kms::KeyUsageType::SignVerify,
            "GenerateMac" | "VerifyMac" => usage == kms::KeyUsageType::GenerateVerifyMac,
            "DeriveSharedSecret" => usage == kms::KeyUsageType::KeyAgreement,
            "Encapsulate" | "Decapsulate" => usage == kms::KeyUsageType::EncapsulateDecapsulate,
            _ => symmetric,
        };
        if !possible {
            return Err(Error::validation(format!(
                "The operation {operation} is not one of a {} key for {}.",
                spec.text(),
                usage.text()
            )));
        }
    }
    let in_context =
        |operation: &String| GRANTS_WITH_CONTEXT.contains(&operation.as_str()) || operation == "CreateGrant";
    let constrainable = symmetric && terms.operations.iter().any(in_context);
    if !(constrainable || terms.constraints.is_free()) {
        return Err(Error::validation(
            "Encryption context constraints need a symmetric encryption key and an operation with an encryption context.",
        ));
    }
    Ok(())
}

async fn room(call: &Call, key: &Key) -> Result<()> {
    let (of, most) = (&key.held.id, call.app.brakes.counts().grants_per_key_max);
    let count = call.app.registry.count(Kind::Grant, &of.region, &of.account, Some(&of.id)).await?;
    match count >= most {
        true => Err(Error::new(
            Exception::LimitExceeded,
            format!("{} has as many grants as a key may have: {most}.", key.arn),
        )),
        false => Ok(()),
    }
}

fn entry(held: &Held<Grant>) -> kms::GrantListEntry {
    let Grant { terms, retiring, name, issuing_account, .. } = &held.value;
    let service = |name: &String| (!name.starts_with("arn:")).then(|| name.clone());
    let number = |text: &String| kms::GrantOperation::from_text(text).map(|operation| operation as i32);
    let map = |pairs: &Option<BTreeMap<String, String>>| -> HashMap<String, String> {
        pairs.clone().unwrap_or_default().into_iter().collect()
    };
    let constraints = (terms.constraints != Constraints::default()).then(|| kms::GrantConstraints {
        encryption_context_subset: map(&terms.constraints.encryption_context_subset),
        encryption_context_equals: map(&terms.constraints.encryption_context_equals),
        source_arn: terms.constraints.source_arn.clone(),
    });
    let key = RowId { kind: Kind::Key, id: held.value.key_id.clone(), ..held.id.clone() };
    kms::GrantListEntry {
        key_id: Some(crate::key::arn_of_key(&key)),
        grant_id: Some(held.id.id.clone()),
        name: name.clone(),
        creation_date: Some(timestamp(held.value.created_ms)),
        grantee_principal: Some(terms.grantee.clone()),
        retiring_principal: retiring.clone(),
        issuing_account: Some(issuing_account.clone()),
        operations: terms.operations.iter().filter_map(number).collect(),
        constraints,
        grantee_service_principal: service(&terms.grantee),
        retiring_service_principal: retiring.as_ref().and_then(service),
    }
}

fn page_limit(limit: Option<i32>) -> usize {
    usize::try_from(limit.unwrap_or(GRANTS_PAGE).min(GRANTS_PAGE_MAX)).unwrap_or(1)
}

/// Leaves a page; what follows it is found by the marker.
fn cut(found: &mut Vec<Held<Grant>>, limit: usize) -> Option<String> {
    let more = found.len() > limit;
    found.truncate(limit);
    found.last().filter(|_| more).map(|last| marker(&last.id.id))
}

/// Where a page of ListRetirableGrants ended.
fn position(call: &Call, marker: &str) -> Result<RowId> {
    let (account, id) = marker
        .split_once(' ')
        .filter(|(account, id)| arn::is_account_id(account) && grant::group_of(id).is_some())
        .ok_or_else(bad_marker)?;
    Ok(RowId {
        kind: Kind::Grant,
        region: call.region().to_owned(),
        account: account.to_owned(),
        id: id.to_owned(),
    })
}

fn both(one: &str, other: &str) -> Error {
    Error::validation(format!("Specify either {one} or {other}, not both."))
}
