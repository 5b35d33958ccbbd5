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

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::app::App;
use crate::audit::record::{Context, EventResource, Record};
use crate::caller::{Caller, Origin, PrincipalKind};
use crate::conditions;
use crate::error::{Error, Exception, Fault, Result};
use crate::key;
use crate::policy::{self, Policy};
use crate::registry::{self, Draft};
use crate::resource::Resource;
use crate::store::{Change, Commit, NewEvent};
use crate::wire::Form;

/// How often an operation whose rows were changed meanwhile is run again.
const RERUNS_MAX: usize = 4;

/// The service that an operation belongs to: its eventSource and its gRPC service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// KMS.
    Kms,
    /// CloudTrail.
    CloudTrail,
    /// The HSMs' operators.
    Hsm,
    /// What only the host may do.
    Admin,
}

impl Service {
    /// The record's eventSource.
    pub fn event_source(self) -> &'static str {
        match self {
            Service::Kms => "kms.amazonaws.com",
            Service::CloudTrail => "cloudtrail.amazonaws.com",
            Service::Hsm => "hsm.strongroom",
            Service::Admin => "admin.strongroom",
        }
    }

    /// The gRPC service's full name.
    pub fn grpc(self) -> &'static str {
        match self {
            Service::Kms => "strongroom.kms.v1.KeyManagementService",
            Service::CloudTrail => "strongroom.cloudtrail.v1.CloudTrailService",
            Service::Hsm => "strongroom.hsm.v1.HsmService",
            Service::Admin => "strongroom.admin.v1.AdminService",
        }
    }
}

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
    /// Longest that it may take, where that is not what the configuration says
    /// for all.
    const TIMEOUT: Option<Duration> = None;
    /// What the caller sends.
    type Request: Form + Default + Send + Sync + 'static;
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

    /// The encryption context, which policies may ask for.
    fn encryption_context(_request: &Self::Request) -> Option<&HashMap<String, String>> {
        None
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
    /// x-request-id, and the event's requestID.
    pub request_id: String,
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// The call's time, milliseconds since the epoch.
    pub now_ms: i64,
    /// What the conditions of policies see of the request.
    encryption_context: BTreeMap<String, String>,
    record: Record,
    drafts: Vec<Draft>,
    events: Vec<NewEvent>,
    afterwards: Vec<Afterwards>,
}

/// An effect outside the store, which waits until its event is durable.
type Afterwards = Box<dyn FnOnce(&App) + Send + Sync>;

impl Call {
    fn new(app: Arc<App>, caller: Caller, context: Context<'_>, deadline: Instant) -> Call {
        let now_ms = context.time_ms;
        let request_id = uuid::Uuid::new_v4().to_string();
        let record = Record::call(context, &caller, &request_id);
        Call {
            app,
            caller,
            request_id,
            deadline,
            now_ms,
            encryption_context: BTreeMap::new(),
            record,
            drafts: Vec::new(),
            events: Vec::new(),
            afterwards: Vec::new(),
        }
    }

    /// The Region that serves the call.
    pub fn region(&self) -> &str {
        &self.app.region
    }

    /// The caller's account.
    pub fn account(&self) -> &str {
        &self.caller.principal.account
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
    pub async fn allow<R: Resource>(&mut self, action: &str, name: R::Name) -> Result<Allowed<R>> {
        let resource = self.resolve::<R>(name).await?;
        self.authorise(action, resource)
    }

    /// Asks whether the caller may do this with a resource that is at hand.
    ///
    /// # Errors
    /// AccessDeniedException.
    pub fn authorise<R: Resource>(&self, action: &str, resource: R) -> Result<Allowed<R>> {
        if resource.host_only() {
            const WHO: &str =
                "only root or the daemon's own user may do this, over the Unix socket of its host";
            return if self.caller.is_host() { Ok(Allowed(resource)) } else { Err(self.denied(action, WHO)) };
        }
        let arn = resource.arn();
        let caller = self.caller.arn();
        let context = conditions::context(&self.caller, self.now_ms, &self.encryption_context);
        let request = self.question(action, &arn, resource.account(), &caller, &context);
        match policy::authorize(&request, resource.policy(), &self.caller.principal.policies) {
            policy::Decision::Allowed { .. } => Ok(Allowed(resource)),
            policy::Decision::Denied(reason) => {
                Err(Error::new(Exception::AccessDenied, reason.message(&request))
                    .with_detail(format!("{reason:?}")))
            }
        }
    }

    /// Whether the caller could not change this policy again, were it a new key's.
    pub fn locked_out_by(&self, policy: &Policy) -> bool {
        let arn = key::arn::key_arn(self.region(), self.account(), "new");
        let caller = self.caller.arn();
        let none = BTreeMap::new();
        let context = conditions::context(&self.caller, self.now_ms, &none);
        let request = self.question("kms:PutKeyPolicy", &arn, None, &caller, &context);
        policy::would_lock_out(policy, &request, &self.caller.principal.policies)
    }

    fn question<'a>(
        &'a self,
        action: &'a str,
        resource: &'a str,
        account: Option<&'a str>,
        caller: &'a str,
        context: &'a policy::Context<'a>,
    ) -> policy::Request<'a> {
        let principal = &*self.caller.principal;
        let is_role = principal.kind == PrincipalKind::Role;
        policy::Request {
            principal: policy::PrincipalRef {
                arn: caller,
                account: &principal.account,
                kind: match principal.kind {
                    PrincipalKind::Root => policy::CallerKind::Root,
                    PrincipalKind::User => policy::CallerKind::User,
                    PrincipalKind::Role => policy::CallerKind::RoleSession,
                },
                role_arn: is_role.then_some(&principal.arn),
            },
            action,
            resource,
            resource_account: account.unwrap_or(&principal.account),
            context,
        }
    }

    fn denied(&self, action: &str, why: &str) -> Error {
        let user = self.caller.arn();
        Error::new(
            Exception::AccessDenied,
            format!("User: {user} is not authorized to perform: {action} because {why}"),
        )
    }

    /// Tells policies the encryption context of what is authorised next.
    pub fn condition_on(&mut self, encryption_context: &HashMap<String, String>) {
        self.encryption_context =
            encryption_context.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
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

    /// Adds an event of the daemon's own to the commit.
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
            region: &self.app.region,
            time_ms: self.now_ms,
            read_only: false,
        };
        let mut record = Record::service(context, account, details);
        record.resources.extend(key.map(|arn| EventResource::key(account, arn)));
        self.events.push(record.event().map_err(|error| Error::internal(error.to_string()))?);
        Ok(())
    }

    /// Begins again after a conflict, or without effect after a failure.
    fn reset(&mut self) {
        self.drafts.clear();
        self.events.clear();
        self.afterwards.clear();
        self.record.resources.clear();
        self.record.additional_event_data.clear();
    }

    /// Puts a success on the record: in the caller's account, and in those of
    /// the other accounts whose keys were used.
    fn succeeded<O: Operation>(&mut self, response: &O::Response) -> Result<()> {
        if !O::READ_ONLY {
            self.record.response_elements = response.event().or_else(|| key_id(&self.record));
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

/// Executes an operation in a task of its own, which nothing that the client
/// does can stop: once it has begun, its event is committed in any case.
///
/// `request` is an error where the bytes were no message: that too is a call,
/// and on the record.
pub async fn execute<O: Operation>(
    app: Arc<App>,
    caller: Caller,
    request: Result<O::Request>,
    deadline: Instant,
) -> Answer<O::Response> {
    let context = Context {
        source: O::SERVICE.event_source(),
        name: O::NAME,
        region: &app.region,
        time_ms: app.clock.now_ms(),
        read_only: O::READ_ONLY,
    };
    let call = Call::new(app.clone(), caller, context, deadline);
    let request_id = call.request_id.clone();
    let task = app.tasks.spawn(perform::<O>(call, request));
    let result = task
        .await
        .unwrap_or_else(|error| Err(Error::internal(format!("the operation's task ended: {error}"))));
    Answer { request_id, result }
}

async fn perform<O: Operation>(mut call: Call, request: Result<O::Request>) -> Result<O::Response> {
    let began = std::time::Instant::now();
    let span = tracing::info_span!(
        "call",
        operation = O::NAME,
        request_id = %call.request_id,
        principal = %call.caller.principal.arn
    );
    let result = async {
        let result = admitted::<O>(&mut call, request).await;
        log(&result);
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

async fn admitted<O: Operation>(call: &mut Call, request: Result<O::Request>) -> Result<O::Response> {
    let app = call.app.clone();
    let admission = app.brakes.admit(&call.caller.principal.arn);
    match (request, admission) {
        (Err(error), _) => settle::<O>(call, Err(error)).await,
        (Ok(request), Err(error)) => {
            call.record.request_parameters = request.event();
            settle::<O>(call, Err(error)).await
        }
        (Ok(mut request), Ok(_admission)) => {
            O::defaults(&mut request);
            attempts::<O>(call, &request).await
        }
    }
}

/// Runs and commits, again where somebody else changed the same row.
async fn attempts<O: Operation>(call: &mut Call, request: &O::Request) -> Result<O::Response> {
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

async fn attempt<O: Operation>(call: &mut Call, request: &O::Request) -> Result<O::Response> {
    request.validate()?;
    if !call.app.store.accepts_work() {
        return Err(registry::full());
    }
    if let Some(context) = O::encryption_context(request) {
        call.condition_on(context);
    }
    let allowed = call.allow::<O::On>(O::ACTION, O::on(request)?).await?;
    within(call.deadline, O::run(call, request, allowed)).await
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

/// The responseElements of a change whose answer is empty: the key's ARN.
fn key_id(record: &Record) -> Option<Box<RawValue>> {
    let key = record.resources.first()?;
    serde_json::value::to_raw_value(&json!({ "keyId": key.arn() })).ok()
}

async fn within<T>(deadline: Instant, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout_at(deadline + GRACE, work).await.unwrap_or_else(|_| {
        Err(Error::new(Exception::DependencyTimeout, "The request was not done in time."))
    })
}

/// How long after its deadline a call may still end by itself, so that the
/// HSM's own answer to the deadline is the one that is reported.
const GRACE: Duration = Duration::from_millis(250);

fn log<T>(result: &Result<T>) {
    match result {
        Ok(_) => tracing::debug!("done"),
        Err(error) => {
            let detail = error.detail.as_deref().unwrap_or_default();
            match error.exception.fault() {
                Fault::Caller | Fault::Busy => tracing::debug!(%error, detail, "refused"),
                Fault::Hsm => tracing::warn!(%error, detail, "failed"),
                Fault::Service => tracing::error!(%error, detail, "failed"),
            }
        }
    }
}
