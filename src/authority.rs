//! Whether a caller may do something, by all policies and grants of a running
//! daemon: what [`crate::policy`] must know is gathered here.
//!
//! Only what is read is gathered: condition keys that a policy names, and
//! grants where no policy allows.

use std::sync::Arc;

use tokio::time::Instant;

use crate::app::App;
use crate::caller::{Caller, PrincipalKind};
use crate::conditions::{Brings, Facts};
use crate::error::Result;
use crate::key::{Alias, arn};
use crate::policy::{self, Decision, Reason};
use crate::registry::{Held, LoadedGrant, LoadedKey};
use crate::resource::Resource;

/// KMS's largest number of aliases of a key, and the most that a condition sees.
const ALIASES_SEEN: u32 = 100;

/// Who asks, with everything that may decide but for the action and the resource.
pub struct Question<'a> {
    /// The daemon.
    pub app: &'a App,
    /// Who asks.
    pub caller: &'a Caller,
    /// The Region that is asked.
    pub region: &'a str,
    /// When, milliseconds since the epoch.
    pub now_ms: i64,
    /// Until when rows may be loaded.
    pub deadline: Instant,
    /// The request.
    pub request: &'a (dyn Brings + Send + Sync),
    /// Condition keys that neither request nor resource tell.
    pub known: Vec<(String, String)>,
    /// The grant that is to be made.
    pub granting: Option<&'a policy::Terms>,
    /// The grants whose tokens are presented.
    pub presented: &'a [Arc<LoadedGrant>],
}

impl Question<'_> {
    /// Adds a condition key that has a value.
    pub fn know(&mut self, key: &str, value: Option<String>) {
        self.known.extend(value.map(|value| (key.to_owned(), value)));
    }

    /// Decides, and tells the decision with what was asked.
    ///
    /// # Errors
    /// Where rows cannot be loaded: nothing is allowed then.
    pub async fn ask<R: Resource, T>(
        mut self,
        action: &str,
        resource: &R,
        tell: impl FnOnce(Decision<'_>, &policy::Request<'_>) -> T,
    ) -> Result<T> {
        let identity = &self.caller.principal.policies;
        let read = || {
            let identity = identity.iter().flat_map(|policy| policy.context_keys());
            resource.policy().into_iter().flat_map(policy::Policy::context_keys).chain(identity)
        };
        if let Some(key) = resource.key()
            && read().any(|asked| asked.eq_ignore_ascii_case("kms:ResourceAliases"))
        {
            let aliases = self.aliases(key).await?;
            self.known.extend(aliases.into_iter().map(|alias| ("kms:ResourceAliases".to_owned(), alias)));
        }
        let mut brought = Vec::new();
        if read().next().is_some() {
            brought = self.request.brings();
        }
        let facts = Facts {
            caller: self.caller,
            region: self.region,
            now_ms: self.now_ms,
            action,
            request: &brought,
            key: resource.key(),
            known: &self.known,
        };
        // The constraints of grants ask for it too.
        let source = self.caller.service.as_ref().map(|_| "aws:SourceArn");
        let context = facts.context(read().chain(source));
        let (arn, caller) = (resource.arn(), self.caller.arn());
        let request = request(self.caller, action, &arn, resource.account(), &caller, &context);
        let by_policies = policy::authorize(&request, resource.policy(), &[] as &[policy::Grant], identity);
        let (Decision::Denied(Reason::NoAllow(_)), Some(key)) = (by_policies, resource.key()) else {
            return Ok(tell(by_policies, &request));
        };
        let brought = self.request.brings();
        let request = policy::Request {
            encryption_context: brought.iter().find_map(|member| member.encryption_context(action)),
            granting: self.granting,
            ..request
        };
        if let Some(grants) = resource.own_grants() {
            return Ok(tell(policy::authorize(&request, resource.policy(), grants, identity), &request));
        }
        let grants = self.grants(key, &caller).await?;
        let grants: Vec<&policy::Grant> = grants.iter().map(|grant| &grant.grant).collect();
        Ok(tell(policy::authorize(&request, resource.policy(), &grants, identity), &request))
    }

    /// The key's grants that may be the caller's.
    async fn grants(&self, key: &LoadedKey, caller: &str) -> Result<Vec<Arc<LoadedGrant>>> {
        let principal = &*self.caller.principal;
        let presented = self.presented.iter().filter(|grant| {
            let of_key = &grant.held.id;
            (&of_key.region, &of_key.account) == (&key.held.id.region, &key.held.id.account)
                && grant.held.value.key_id == key.held.id.id
        });
        let mut grants: Vec<Arc<LoadedGrant>> = presented.cloned().collect();
        let root = arn::root_arn(&principal.account);
        let mut names = vec![caller, &principal.arn, &root];
        names.dedup();
        for name in names {
            let found = self.app.registry.grants(&key.held.id, name, self.deadline).await?;
            grants.extend(found.iter().cloned());
        }
        Ok(grants)
    }

    async fn aliases(&self, key: &LoadedKey) -> Result<Vec<String>> {
        let id = &key.held.id;
        let registry = &self.app.registry;
        let aliases: Vec<Held<Alias>> =
            registry.page(&id.region, &id.account, Some(&id.id), None, ALIASES_SEEN, self.deadline).await?;
        Ok(aliases.into_iter().map(|alias| alias.id.id).collect())
    }
}

/// The evaluator's question. `caller` is the caller's ARN.
pub fn request<'a>(
    who: &'a Caller,
    action: &'a str,
    resource: &'a str,
    account: Option<&'a str>,
    caller: &'a str,
    context: &'a policy::Context<'a>,
) -> policy::Request<'a> {
    let principal = &*who.principal;
    policy::Request {
        principal: policy::PrincipalRef {
            arn: caller,
            account: if principal.kind == PrincipalKind::Service { "" } else { &principal.account },
            kind: match principal.kind {
                PrincipalKind::Root => policy::CallerKind::Root,
                PrincipalKind::User => policy::CallerKind::User,
                PrincipalKind::Role => policy::CallerKind::RoleSession,
                PrincipalKind::Service => policy::CallerKind::Service,
            },
            role_arn: (principal.kind == PrincipalKind::Role).then_some(&principal.arn),
        },
        action,
        resource,
        resource_account: account.unwrap_or(&principal.account),
        context,
        encryption_context: None,
        granting: None,
    }
}
