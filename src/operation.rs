//! The heart: one operation of the API, and what is done around every one of
//! them, once: who may, which key, on the record.
//!
//! ```text
//! request → limits → resolve → authorise → run → seal → commit with its event → answer
//! ```
//!
//! * An operation is one `impl` of [`Operation`] and one line in
//!   [`crate::ops::Operations`].
//! * A key reaches the HSM only as [`Allowed<Key>`](Allowed), and only
//!   [`Call::allow`] makes one.
//! * [`Store::commit`](crate::store::Store::commit) is the only write: the
//!   changes and the event that explains them. What cannot be recorded is not
//!   answered.

use std::future::Future;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use serde_json::value::RawValue;
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::app::App;
use crate::audit::record::{Context, Elsewhere, EventResource, Record};
use crate::authority::{self, Question};
use crate::brakes::Group;
use crate::caller::{Caller, Origin};
use crate::conditions::{Brings, Brought, Facts};
use crate::error::{Error, Exception, Fault, Result};
use crate::policy::{self, Decision, Policy};
use crate::registry::{self, Draft, LoadedGrant, LoadedKey};
use crate::resource::Resource;
use crate::service::Service;
use crate::store::{Change, Commit, NewEvent, RowId};
use crate::wire::{Form, NOTHING, Received};

/// How often an operation whose rows were changed meanwhile is run again.
const RERUNS_MAX: usize = 4;

/// One operation of the API.
pub trait Operation: Send + Sync + 'static {
    /// The service that it belongs to.
    const SERVICE: Service;
    /// KMS's name: the rpc, the event's eventName.
    const NAME: &'static str;
    /// The IAM action that allows it, `kms:Encrypt`.
    const ACTION: &'static str;
    /// The event's readOnly; a read-only operation's answer is not recorded.
    const READ_ONLY: bool;
    /// Whether it uses a key, so that it shares KMS's quota of such operations;
    /// each other operation has its own.
    const CRYPTOGRAPHIC: bool = false;
    /// Longest that it may take, where that is not what the configuration says
    /// for all.
    const TIMEOUT: Option<Duration> = None;
    /// What the caller sends.
    type Request: Form + Brings + Default + Send + Sync + 'static;
    /// What the caller gets.
    type Response: Form + Send + 'static;
    /// What the operation acts on, and what authorises it.
    type On: Resource;

    /// States what KMS assumes where a member is absent, so that it is on the
    /// record too.
    fn defaults(_request: &mut Self::Request) {}

    /// What the request names.
    ///
    /// # Errors
    /// The exception for a request that names nothing.
    fn on(request: &Self::Request) -> Result<<Self::On as Resource>::Name>;

    /// Tells policies, through [`Call::know`] and [`Call::grants`], what they may
    /// ask for that neither the request's members (the option `condition` in
    /// `proto/`) nor the resource tell.
    fn prepare(
        _call: &mut Call,
        _request: &Self::Request,
        _on: &Self::On,
    ) -> impl Future<Output = Result<()>> + Send {
        async { Ok(()) }
    }

    /// Does it. Effects on the store go through `call` and become durable, with
    /// the event, after `run` and before the answer.
    ///
    /// # Errors
    /// KMS's exceptions; nothing is changed then.
    fn run(
        call: &mut Call,
        request: &Self::Request,
        on: Allowed<Self::On>,
    ) -> impl Future<Output = Result<Self::Response>> + Send;
}

/// A resource that the caller may use for one action. Only [`Call::allow`]
/// makes one.
#[derive(Debug)]
pub struct Allowed<R>(R);

impl<R> Allowed<R> {
    /// The resource.
    pub fn into_inner(self) -> R {
        self.0
    }
}

impl<R> Deref for Allowed<R> {
    type Target = R;

    fn deref(&self) -> &R {
        &self.0
    }
}

/// One call while it runs.
pub struct Call {
    /// Everything that serves calls.
    pub app: Arc<App>,
    /// Who calls.
    pub caller: Caller,
    /// The Region that is asked.
    region: Arc<str>,
    /// The IAM action that is asked for.
    pub(crate) action: &'static str,
    /// x-request-id, and the event's requestID.
    pub request_id: String,
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// The call's time, milliseconds since the epoch.
    pub now_ms: i64,
    /// The alias that the request named the key by which is authorised.
    pub(crate) request_alias: Option<String>,
    /// What the conditions of policies see of the request.
    request: Arc<dyn Brings + Send + Sync>,
    /// What they see besides.
    known: Vec<(String, String)>,
    /// The grant that is to be made.
    granting: Option<policy::Terms>,
    /// The grants whose tokens the request presents.
    presented: Vec<Arc<LoadedGrant>>,
    record: Record,
    drafts: Vec<Draft>,
    events: Vec<NewEvent>,
    afterwards: Vec<Afterwards>,
}

/// The request of a call whose bytes were no message.
struct Nothing;

impl Brings for Nothing {
    fn brings(&self) -> Vec<Brought<'_>> {
        Vec::new()
    }
}

/// An effect outside the store, which waits until its event is durable.
type Afterwards = Box<dyn FnOnce(&App) + Send + Sync>;

impl Call {
    fn new<O: Operation>(
        app: Arc<App>,
        region: Arc<str>,
        caller: Caller,
        context: Context<'_>,
        deadline: Instant,
    ) -> Call {
        let now_ms = context.time_ms;
        let request_id = uuid::Uuid::new_v4().to_string();
        let record = Record::call(context, &caller, &request_id);
        Call {
            app,
            caller,
            region,
            action: O::ACTION,
            request_id,
            deadline,
            now_ms,
            request_alias: None,
            request: Arc::new(Nothing),
            known: Vec::new(),
            granting: None,
            presented: Vec::new(),
            record,
            drafts: Vec::new(),
            events: Vec::new(),
            afterwards: Vec::new(),
        }
    }

    /// The Region that serves the call.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// The caller's account.
    pub fn account(&self) -> &str {
        &self.caller.principal.account
    }

    /// eventID of the call's own event.
    pub fn event_id(&self) -> &str {
        self.record.event_id()
    }

    /// Finds what a name means.
    pub async fn resolve<R: Resource>(&mut self, name: R::Name) -> Result<R> {
        let resource = R::resolve(self, name).await?;
        if let Some((account, arn)) = resource.recorded() {
            let entry = EventResource::key(account, arn);
            if !self.record.resources.contains(&entry) {
                self.record.resources.push(entry);
            }
        }
        if let Some(store) = resource.custom_key_store_id() {
            self.note("customKeyStoreId", store);
        }
        Ok(resource)
    }

    /// Finds what a name means and asks whether the caller may do this with it.
    ///
    /// # Errors
    /// AccessDeniedException, or what the name's resolution says.
    pub async fn allow<R: Resource>(&mut self, action: &'static str, name: R::Name) -> Result<Allowed<R>> {
        self.action = action;
        let resource = self.resolve::<R>(name).await?;
        self.authorise(action, resource).await
    }

    /// Asks whether the caller may do this with a resource that is at hand.
    ///
    /// # Errors
    /// AccessDeniedException.
    pub async fn authorise<R: Resource>(&self, action: &str, resource: R) -> Result<Allowed<R>> {
        self.authorise_in(self.region(), action, resource).await
    }

    /// The same for a resource of another Region.
    ///
    /// # Errors
    /// AccessDeniedException.
    pub async fn authorise_in<R: Resource>(
        &self,
        region: &str,
        action: &str,
        resource: R,
    ) -> Result<Allowed<R>> {
        if resource.host_only() {
            const WHO: &str =
                "only root or the daemon's own user may do this, over the Unix socket of its host";
            return if self.caller.is_host() { Ok(Allowed(resource)) } else { Err(self.denied(action, WHO)) };
        }
        let mut question = Question {
            app: &self.app,
            caller: &self.caller,
            region,
            now_ms: self.now_ms,
            deadline: self.deadline,
            request: &*self.request,
            known: self.known.clone(),
            granting: self.granting.as_ref(),
            presented: &self.presented,
        };
        question.know("kms:RequestAlias", self.request_alias.clone());
        let denied = |decision: Decision<'_>, request: &policy::Request<'_>| match decision {
            Decision::Allowed { .. } => {
                tracing::debug!(action, %decision, "authorised");
                None
            }
            Decision::Denied(reason) => Some(
                Error::new(Exception::AccessDenied, reason.message(request))
                    .with_detail(format!("{action} is {decision}")),
            ),
        };
        match question.ask(action, &resource, denied).await? {
            None => Ok(Allowed(resource)),
            Some(error) => Err(error),
        }
    }

    /// Whether the caller could not change this policy again, were it that of
    /// the key of this ARN.
    pub fn locked_out_by(&self, policy: &Policy, arn: &str, key: Option<&LoadedKey>) -> bool {
        let caller = self.caller.arn();
        let brought = self.request.brings();
        let action = "kms:PutKeyPolicy";
        let facts = Facts {
            caller: &self.caller,
            region: self.region(),
            now_ms: self.now_ms,
            action,
            request: &brought,
            key,
            known: &self.known,
        };
        let policies = &self.caller.principal.policies;
        let read = policies.iter().flat_map(|policy| policy.context_keys());
        let context = facts.context(policy.context_keys().chain(read));
        let account = key.map(|key| key.held.id.account.as_str());
        let request = authority::request(&self.caller, action, arn, account, &caller, &context);
        policy::would_lock_out(policy, &request, policies)
    }

    fn denied(&self, action: &str, why: &str) -> Error {
        let user = self.caller.arn();
        Error::new(
            Exception::AccessDenied,
            format!("User: {user} is not authorized to perform: {action} because {why}"),
        )
    }

    /// Tells policies a condition key of what is authorised from here on.
    pub fn know(&mut self, key: &str, value: impl Into<String>) {
        self.known.push((key.to_owned(), value.into()));
    }

    /// Tells grants which grant is to be made.
    pub fn grants(&mut self, terms: policy::Terms) {
        self.granting = Some(terms);
    }

    /// Ends a call that was only a trial, after its checks and before its effect.
    ///
    /// # Errors
    /// DryRunOperationException where `dry_run` is set.
    pub fn dry_run(&self, dry_run: Option<bool>) -> Result<()> {
        match dry_run {
            Some(true) => Err(Error::new(
                Exception::DryRunOperation,
                "The request would have succeeded, but the DryRun option is set.",
            )),
            Some(false) | None => Ok(()),
        }
    }

    /// Makes a change durable together with the event.
    pub fn change(&mut self, draft: Draft) {
        self.drafts.push(draft);
    }

    /// Has something happen in the daemon once the event is durable.
    pub fn afterwards(&mut self, effect: impl FnOnce(&App) + Send + Sync + 'static) {
        self.afterwards.push(Box::new(effect));
    }

    /// Notes something in the event's additionalEventData.
    pub fn note(&mut self, name: &str, value: impl Into<Value>) {
        self.record.additional_event_data.insert(name.to_owned(), value.into());
    }

    /// Names a key in the event's resources that no `allow` named.
    pub fn names(&mut self, account: &str, arn: &str) {
        self.record.resources.push(EventResource::key(account, arn));
    }

    /// Records in another Region what the call does there to a key, as an
    /// event of the same caller.
    ///
    /// # Errors
    /// Where the record cannot be written.
    pub fn also_in(&mut self, id: &RowId, elsewhere: Elsewhere) -> Result<()> {
        let arn = crate::key::arn_of_key(id);
        let mut record = self.record.elsewhere(&id.region, elsewhere);
        record.resources = vec![EventResource::key(&id.account, &arn)];
        record.response_elements = named(record.response_elements.take(), &record);
        self.events.push(record.event().map_err(|error| Error::internal(error.to_string()))?);
        Ok(())
    }

    /// Adds an event of the daemon's own to the commit: in the key's Region,
    /// where it is of a key.
    pub fn service_event(
        &mut self,
        name: &'static str,
        account: &str,
        details: Value,
        key: Option<&str>,
    ) -> Result<()> {
        let context = Context {
            source: Service::Kms.event_source(),
            name,
            region: crate::key::region_of(key).unwrap_or(&self.region),
            time_ms: self.now_ms,
            read_only: false,
        };
        let mut record = Record::service(context, account, details);
        record.resources.extend(key.map(|arn| EventResource::key(account, arn)));
        self.events.push(record.event().map_err(|error| Error::internal(error.to_string()))?);
        Ok(())
    }

    /// Adds an event that is not the call's own to the commit.
    pub fn append(&mut self, event: NewEvent) {
        self.events.push(event);
    }

    /// Begins again after a conflict, or without effect after a failure.
    fn reset(&mut self) {
        self.drafts.clear();
        self.events.clear();
        self.afterwards.clear();
        self.record.resources.clear();
        self.record.additional_event_data.clear();
        self.known.clear();
        self.granting = None;
        self.presented.clear();
    }

    /// Puts a success on the record: in the caller's account, and in those of
    /// the other accounts whose keys were used.
    fn succeeded<O: Operation>(&mut self, response: &O::Response) -> Result<()> {
        if !O::READ_ONLY {
            self.record.response_elements = named(response.event(&NOTHING), &self.record);
        }
        for copy in self.record.shared() {
            self.events.push(copy.event().map_err(|error| Error::internal(error.to_string()))?);
        }
        Ok(())
    }

    /// Puts a failure on the record; a denial no faster than the log should
    /// grow by one principal's denials.
    async fn failed(&mut self, error: &Error) {
        self.drafts.clear();
        self.events.clear();
        self.afterwards.clear();
        self.record.failed(error);
        if error.exception == Exception::AccessDenied {
            let principal = &self.caller.principal.arn;
            // Past its deadline it is denied all the same.
            let _ = tokio::time::timeout_at(self.deadline, self.app.brakes.denial(principal)).await;
        }
    }

    /// Makes the call's changes and its events durable.
    async fn commit(&mut self, changes: Vec<Change>) -> Result<()> {
        let mut events = vec![self.record.event().map_err(|error| Error::internal(error.to_string()))?];
        events.append(&mut self.events);
        let began = std::time::Instant::now();
        let result = self.app.store.commit(Commit { changes, events }).await;
        metrics::histogram!("strongroom_commit_seconds").record(began.elapsed());
        self.app.registry.forget(&self.drafts);
        result.map_err(registry::from_store)?;
        self.afterwards.drain(..).for_each(|effect| effect(&self.app));
        Ok(())
    }
}

impl Caller {
    fn is_host(&self) -> bool {
        match self.origin {
            Origin::Unix { uid, .. } => uid == 0 || uid == rustix::process::geteuid().as_raw(),
            Origin::Tcp(_) => false,
        }
    }
}

/// What a caller gets: the answer or the exception, with the request's id.
pub struct Answer<T> {
    /// x-request-id.
    pub request_id: String,
    /// The result.
    pub result: Result<T>,
}

/// Executes an operation in a Region, in a task of its own, which nothing that
/// the client does can stop: once it has begun, its event is committed in any
/// case.
///
/// `request` is an error where the bytes were no message: that too is a call,
/// and on the record.
pub async fn execute<O: Operation>(
    app: Arc<App>,
    region: Arc<str>,
    caller: Caller,
    request: Result<Received<O::Request>>,
    deadline: Instant,
) -> Answer<O::Response> {
    let context = Context {
        source: O::SERVICE.event_source(),
        name: O::NAME,
        region: &region,
        time_ms: app.clock.now_ms(),
        read_only: O::READ_ONLY,
    };
    // It is moved from task to task, and is large.
    let call = Box::new(Call::new::<O>(app.clone(), region.clone(), caller, context, deadline));
    let request_id = call.request_id.clone();
    let task = app.tasks.spawn(perform::<O>(call, request));
    let result = task
        .await
        .unwrap_or_else(|error| Err(Error::internal(format!("the operation's task ended: {error}"))));
    Answer { request_id, result }
}

async fn perform<O: Operation>(
    mut call: Box<Call>,
    request: Result<Received<O::Request>>,
) -> Result<O::Response> {
    let began = std::time::Instant::now();
    // Not made unless somebody looks so closely: it costs as much as the policies.
    let span = tracing::debug_span!(
        "call",
        operation = O::NAME,
        request_id = %call.request_id,
        principal = %call.caller.principal.arn
    );
    let result = async {
        let result = admitted::<O>(&mut call, request).await;
        log(O::NAME, &call, &result);
        result
    }
    .instrument(span)
    .await;
    let outcome = result.as_ref().err().map_or("OK", |error| error.exception.name());
    metrics::counter!("strongroom_operations_total", "operation" => O::NAME, "result" => outcome)
        .increment(1);
    metrics::histogram!("strongroom_operation_seconds", "operation" => O::NAME).record(began.elapsed());
    result
}

async fn admitted<O: Operation>(
    call: &mut Call,
    request: Result<Received<O::Request>>,
) -> Result<O::Response> {
    let app = call.app.clone();
    let admission = app.brakes.admit(&call.caller.principal.arn, call.deadline).await;
    match (request, admission) {
        (Err(error), _) => settle::<O>(call, Err(error)).await,
        (Ok(request), Err(error)) => {
            call.record.request_parameters = request.event();
            settle::<O>(call, Err(error)).await
        }
        (Ok(mut request), Ok(_admission)) => {
            O::defaults(&mut request.message);
            let request = Arc::new(request);
            call.request = request.clone();
            attempts::<O>(call, &request).await
        }
    }
}

/// Runs and commits, again where somebody else changed the same row.
async fn attempts<O: Operation>(call: &mut Call, request: &Received<O::Request>) -> Result<O::Response> {
    call.record.request_parameters = request.event();
    for _ in 0..RERUNS_MAX {
        let result = attempt::<O>(call, request).await;
        if matches!(&result, Err(error) if registry::is_conflict(error)) {
            call.reset();
            continue;
        }
        let settled = settle::<O>(call, result).await;
        if matches!(&settled, Err(error) if registry::is_conflict(error)) {
            call.reset();
            continue;
        }
        return settled;
    }
    settle::<O>(call, Err(registry::conflict())).await
}

async fn attempt<O: Operation>(call: &mut Call, request: &Received<O::Request>) -> Result<O::Response> {
    request.validate()?;
    let request = &request.message;
    if !call.app.store.accepts_work() {
        return Err(registry::full());
    }
    for token in request.grant_tokens() {
        let grant = call.app.registry.by_token(token, call.deadline).await?;
        call.presented.push(grant);
    }
    let on = call.resolve::<O::On>(O::on(request)?).await?;
    O::prepare(call, request, &on).await?;
    let allowed = call.authorise(O::ACTION, on).await?;
    // Those who operate the HSMs and the host have no quotas.
    if O::SERVICE.aws().is_some() {
        let key = allowed.key().map(|key| &key.held.value).filter(|_| O::CRYPTOGRAPHIC);
        let group = match O::CRYPTOGRAPHIC {
            true => Group::of_key(key.map(|key| key.spec)),
            false => Group::Operation(O::NAME),
        };
        // A custom key store's quota comes besides, as with KMS.
        let store = key.and_then(|key| key.custom_key_store_id.as_ref()).map(Group::CustomKeyStore);
        for group in [Some(group), store].into_iter().flatten() {
            call.app.brakes.request(&call.caller.principal.account, &call.region, group)?;
        }
    }
    // Its future is large, and the task that holds it is moved before it runs.
    within(call.deadline, Box::pin(O::run(call, request, allowed))).await
}

/// Puts the outcome on the record. Only then is it the outcome.
async fn settle<O: Operation>(call: &mut Call, result: Result<O::Response>) -> Result<O::Response> {
    let (result, changes) = match result {
        Ok(response) => match call.app.registry.seal(&call.drafts, call.deadline).await {
            Ok(changes) => (Ok(response), changes),
            // What cannot be sealed does not happen: that is the outcome.
            Err(error) => (Err(error), Vec::new()),
        },
        Err(error) => (Err(error), Vec::new()),
    };
    match &result {
        Ok(response) => call.succeeded::<O>(response)?,
        Err(error) => call.failed(error).await,
    }
    match call.commit(changes).await {
        Ok(()) => result,
        Err(error) if registry::is_conflict(&error) => Err(error),
        Err(error) => {
            call.app.unrecorded.note(O::NAME);
            Err(internal(error))
        }
    }
}

/// Whatever it was: no answer without its event.
fn internal(error: Error) -> Error {
    let detail = error.detail.unwrap_or_else(|| error.message.into_owned());
    Error::internal(format!("the event could not be recorded: {detail}"))
}

/// The responseElements of a change: the answer, with the key's ARN where it does
/// not name the key.
fn named(answer: Option<Box<RawValue>>, record: &Record) -> Option<Box<RawValue>> {
    let Some(key) = record.resources.first() else { return answer };
    let mut members: serde_json::Map<String, Value> = match &answer {
        Some(named) if named.get().contains("\"keyId\":") => return answer,
        Some(answer) => serde_json::from_str(answer.get()).ok()?,
        None => serde_json::Map::new(),
    };
    members.insert("keyId".to_owned(), key.arn().into());
    serde_json::value::to_raw_value(&members).ok()
}

async fn within<T>(deadline: Instant, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout_at(deadline + GRACE, work).await.unwrap_or_else(|_| {
        Err(Error::new(Exception::DependencyTimeout, "The request was not done in time."))
    })
}

/// How long after its deadline a call may still end by itself, so that the
/// HSM's own answer to the deadline is the one that is reported.
const GRACE: Duration = Duration::from_millis(250);

fn log<T>(operation: &str, call: &Call, result: &Result<T>) {
    let Err(error) = result else { return tracing::debug!("done") };
    let detail = error.detail.as_deref().unwrap_or_default();
    let (request_id, principal) = (&call.request_id, &call.caller.principal.arn);
    match error.exception.fault() {
        Fault::Caller | Fault::Busy => tracing::debug!(%error, detail, "refused"),
        Fault::Hsm => tracing::warn!(operation, request_id, principal, %error, detail, "failed"),
        Fault::Service => tracing::error!(operation, request_id, principal, %error, detail, "failed"),
    }
}
