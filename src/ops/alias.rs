//! Aliases. Each change of one needs the right to the alias (identity
//! policies) and to every key that it touches (key policies).

use super::key::Page;
use super::prelude::*;
use crate::key::{Alias, arn_of_alias};
use crate::store::Kind;

/// KMS's default and largest page of ListAliases.
const ALIASES_PAGE: i32 = 50;
const ALIASES_PAGE_MAX: i32 = 100;

/// Gives a key a name.
pub struct CreateAlias;

impl Operation for CreateAlias {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "CreateAlias";
    const ACTION: &'static str = "kms:CreateAlias";
    const READ_ONLY: bool = false;
    type Request = kms::CreateAliasRequest;
    type Response = kms::CreateAliasResponse;
    type On = AliasName;

    fn on(request: &Self::Request) -> Result<String> {
        name(&request.alias_name)
    }

    async fn run(
        call: &mut Call,
        request: &Self::Request,
        alias: Allowed<AliasName>,
    ) -> Result<Self::Response> {
        let key = target(call, Self::ACTION, &request.target_key_id).await?;
        call.check(Stage::Change, &key)?;
        if call.app.registry.alias(&alias.0, call.deadline).await?.is_some() {
            return Err(Error::new(
                Exception::AlreadyExists,
                format!("An alias with the name {} already exists", arn_of_alias(&alias.0)),
            ));
        }
        room(call, &alias, &key).await?;
        let value =
            Alias { target: key.held.id.id.clone(), created_ms: call.now_ms, updated_ms: call.now_ms };
        call.change(Draft::insert(alias.0.clone(), &value)?);
        Ok(kms::CreateAliasResponse {})
    }
}

/// Moves an alias to another key.
pub struct UpdateAlias;

impl Operation for UpdateAlias {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "UpdateAlias";
    const ACTION: &'static str = "kms:UpdateAlias";
    const READ_ONLY: bool = false;
    type Request = kms::UpdateAliasRequest;
    type Response = kms::UpdateAliasResponse;
    type On = AliasName;

    fn on(request: &Self::Request) -> Result<String> {
        name(&request.alias_name)
    }

    async fn run(
        call: &mut Call,
        request: &Self::Request,
        alias: Allowed<AliasName>,
    ) -> Result<Self::Response> {
        let held = existing(call, &alias).await?;
        let from = call.allow::<Key>(Self::ACTION, KeyRefName::NotAlias(held.value.target.clone())).await?;
        let to = target(call, Self::ACTION, &request.target_key_id).await?;
        call.check(Stage::Change, &to)?;
        if family(&from) != family(&to) {
            return Err(Error::validation(format!(
                "Alias {} must stay with keys of the same type and usage; {} is of another.",
                arn_of_alias(&alias.0),
                to.arn
            )));
        }
        if from.held.id != to.held.id {
            room_of_key(call, &to).await?;
        }
        let value = Alias { target: to.held.id.id.clone(), updated_ms: call.now_ms, ..held.value.clone() };
        call.change(Draft::replace(&held, &value)?);
        Ok(kms::UpdateAliasResponse {})
    }
}

/// Removes an alias.
pub struct DeleteAlias;

impl Operation for DeleteAlias {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "DeleteAlias";
    const ACTION: &'static str = "kms:DeleteAlias";
    const READ_ONLY: bool = false;
    type Request = kms::DeleteAliasRequest;
    type Response = kms::DeleteAliasResponse;
    type On = AliasName;

    fn on(request: &Self::Request) -> Result<String> {
        name(&request.alias_name)
    }

    async fn run(call: &mut Call, _: &Self::Request, alias: Allowed<AliasName>) -> Result<Self::Response> {
        let held = existing(call, &alias).await?;
        call.allow::<Key>(Self::ACTION, KeyRefName::NotAlias(held.value.target.clone())).await?;
        call.change(Draft::delete(&held));
        Ok(kms::DeleteAliasResponse {})
    }
}

/// Lists the account's aliases, or one key's.
pub struct ListAliases;

impl Operation for ListAliases {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "ListAliases";
    const ACTION: &'static str = "kms:ListAliases";
    const READ_ONLY: bool = true;
    type Request = kms::ListAliasesRequest;
    type Response = kms::ListAliasesResponse;
    type On = Account;

    fn on(_: &Self::Request) -> Result<()> {
        Ok(())
    }

    async fn run(call: &mut Call, request: &Self::Request, _: Allowed<Account>) -> Result<Self::Response> {
        let key = match &request.key_id {
            Some(given) => Some(call.resolve::<Key>(KeyRefName::NotAlias(given.clone())).await?),
            None => None,
        };
        if key.as_ref().is_some_and(|key| key.held.id.account != call.account()) {
            return Err(Error::new(
                Exception::InvalidArn,
                "ListAliases lists the aliases of the caller's own account.",
            ));
        }
        let parent = key.as_ref().map(|key| key.held.id.id.as_str());
        let limit = request.limit.unwrap_or(ALIASES_PAGE).min(ALIASES_PAGE_MAX);
        let page: Page<Alias> = Page::read(call, parent, limit, &request.marker).await?;
        Ok(kms::ListAliasesResponse {
            aliases: page.rows.iter().map(entry).collect(),
            truncated: Some(page.next.is_some()),
            next_marker: page.next,
        })
    }
}

fn entry(held: &Held<Alias>) -> kms::AliasListEntry {
    kms::AliasListEntry {
        alias_name: Some(held.id.id.clone()),
        alias_arn: Some(arn_of_alias(&held.id)),
        target_key_id: Some(held.value.target.clone()),
        creation_date: Some(timestamp(held.value.created_ms)),
        last_updated_date: Some(timestamp(held.value.updated_ms)),
    }
}

/// An alias name that a customer may use.
fn name(name: &Option<String>) -> Result<String> {
    let name = given(name)?;
    let Some(rest) = name.strip_prefix("alias/") else { return Err(Error::validation("Invalid identifier")) };
    if rest.is_empty() || rest.starts_with("aws/") {
        return Err(Error::new(
            Exception::InvalidAliasName,
            "The alias name must have a name after alias/ that does not begin with aws/, which is reserved.",
        ));
    }
    if rest.contains(':') {
        return Err(Error::validation(format!("{rest} contains invalid characters for an alias")));
    }
    Ok(name.clone())
}

async fn existing(call: &Call, alias: &AliasName) -> Result<Held<Alias>> {
    let held = call.app.registry.alias(&alias.0, call.deadline).await?;
    held.map(|held| (*held).clone()).ok_or_else(|| {
        Error::new(Exception::NotFound, format!("Alias {} is not found.", arn_of_alias(&alias.0)))
    })
}

/// The key that an alias is to point to: in the caller's own account, as no
/// policy can allow another's to be named so.
async fn target(call: &mut Call, action: &'static str, id: &Option<String>) -> Result<Allowed<Key>> {
    let id = given(id)?;
    if id.starts_with("alias/") || id.contains(":alias/") {
        return Err(Error::validation("Aliases must refer to keys. Not aliases"));
    }
    let key = call.allow::<Key>(action, KeyRefName::NotAlias(id.clone())).await?;
    Ok(key)
}

/// Whether there may be one more alias.
async fn room(call: &Call, alias: &AliasName, key: &Key) -> Result<()> {
    let (of, most) = (&alias.0, call.app.brakes.counts().aliases_per_account_max);
    let count = call.app.registry.count(Kind::Alias, &of.region, &of.account, None).await?;
    match count >= most {
        true => Err(Error::new(
            Exception::LimitExceeded,
            format!("Account {} has as many aliases as an account may have: {most}.", of.account),
        )),
        false => room_of_key(call, key).await,
    }
}

async fn room_of_key(call: &Call, key: &Key) -> Result<()> {
    let (of, most) = (&key.held.id, call.app.brakes.counts().aliases_per_key_max);
    let count = call.app.registry.count(Kind::Alias, &of.region, &of.account, Some(&of.id)).await?;
    match count >= most {
        true => Err(Error::new(
            Exception::LimitExceeded,
            format!("{} has as many aliases as a key may have: {most}.", key.arn),
        )),
        false => Ok(()),
    }
}

/// What two keys must share for an alias to move from one to the other.
fn family(key: &Key) -> (kms::KeyUsageType, bool) {
    (key.held.value.usage, key.held.value.spec == kms::KeySpec::SymmetricDefault)
}
