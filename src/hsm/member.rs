//! A token of the cluster: its threads, its state, and how it is kept at work.
//!
//! ```text
//! callers ─→ workers' queue ─→ session threads ─┐
//!        ├─→ lane's queue ──→ create, destroy ──┼─→ the attachment's life
//!        └─→ keeper's queue → unwrap, find ─────┘
//! supervisor ─→ control thread: attach, probe, initialise again
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use secrecy::SecretString;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::attachment::{Attach, Attachment, NotAttached};
use super::cache::{Entry, Loaded};
use super::ckr::{Class, Failure, class};
use super::crew::{Bench, Crew};
use super::keys::{self, Form};
use super::meters::{Function, Meters};
use super::module::Module;
use super::selftest::SelfTest;
use super::session::{Handle, Session};
use super::{
    Capability, Cause, ClusterIdentity, ClusterSettings, Home, HsmError, KeyRef, MemberHealth, MemberState,
    MemberStatus, TokenUri,
};

/// Attempts at one call, over new sessions and new attachments.
const ATTEMPTS_MAX: u32 = 3;

/// How much longer a module is left alone between two lives while other members
/// serve through it.
const PATIENCE_WITH_OTHERS: u32 = 12;

/// What a call does on a session, with its key's handle; it may run twice.
pub(crate) type Step<T> = Arc<dyn Fn(&Session, Handle, &SelfTest) -> Result<T, Failure> + Send + Sync>;

/// A member of the cluster.
pub(crate) struct Member {
    token: TokenUri,
    uri: String,
    module: Arc<Module>,
    pin: Mutex<SecretString>,
    pin_name: String,
    identity: Arc<ClusterIdentity>,
    settings: ClusterSettings,
    meters: Meters,
    state: watch::Sender<State>,
    news: Arc<watch::Sender<Vec<MemberHealth>>>,
    workers: Crew,
    lane: Crew,
    keeper: Crew,
    control: Crew,
    kick: Notify,
    pin_refused: AtomicBool,
    hung: AtomicUsize,
    epoch: AtomicU64,
    self_test: Mutex<Option<Arc<SelfTest>>>,
    /// An operator took it out.
    maintenance: AtomicBool,
    /// A call got no answer in time, and none has got one since.
    slow: AtomicBool,
    /// Why the last try to attach failed.
    cause: Mutex<Option<Cause>>,
}

enum State {
    Attaching,
    Serving(Arc<Attachment>),
    Lost(String),
    Refused(String),
    Maintenance,
}

impl State {
    fn health(&self) -> (MemberState, Option<String>) {
        match self {
            State::Attaching => (MemberState::Attaching, None),
            State::Serving(_) => (MemberState::Serving, None),
            State::Lost(reason) => (MemberState::Lost, Some(reason.clone())),
            State::Refused(reason) => (MemberState::Refused, Some(reason.clone())),
            State::Maintenance => (MemberState::Maintenance, Some("an operator took it out".to_owned())),
        }
    }
}

/// Why a call on an attachment failed.
enum Trouble {
    /// For the caller.
    Final(HsmError),
    /// The key's handle is unknown while the token is well.
    Stale,
    /// The attachment is void; another may be there at once.
    Detached,
    /// The HSM failed though it is well: a token that came back meanwhile, a
    /// race in it, or a fault that stays. Trying again tells.
    Unexplained(HsmError),
}

impl From<HsmError> for Trouble {
    fn from(error: HsmError) -> Self {
        Trouble::Final(error)
    }
}

/// What a member is made of.
pub(crate) struct Parts {
    pub(crate) token: TokenUri,
    pub(crate) index: usize,
    pub(crate) module: Arc<Module>,
    pub(crate) pin: SecretString,
    pub(crate) pin_name: String,
    pub(crate) identity: Arc<ClusterIdentity>,
    pub(crate) settings: ClusterSettings,
    pub(crate) news: Arc<watch::Sender<Vec<MemberHealth>>>,
}

impl Member {
    /// Starts its threads; [`Member::supervise`] does the rest.
    pub(crate) fn start(parts: Parts) -> Result<Member, HsmError> {
        let Parts { token, index, module, pin, pin_name, identity, settings, news } = parts;
        let capacity = settings.queue_capacity as usize;
        let crew = |name: &str, threads| Crew::start(format!("hsm{index}-{name}"), threads, capacity);
        let uri = token.to_string();
        Ok(Member {
            workers: crew("session", settings.session_threads.max(1).into())?,
            lane: crew("lane", 1)?,
            keeper: crew("keeper", 1)?,
            control: crew("control", 1)?,
            meters: Meters::new(&uri),
            state: watch::Sender::new(State::Attaching),
            kick: Notify::new(),
            pin_refused: AtomicBool::new(false),
            hung: AtomicUsize::new(0),
            epoch: AtomicU64::new(0),
            self_test: Mutex::new(None),
            cause: Mutex::new(None),
            pin: Mutex::new(pin),
            pin_name,
            maintenance: AtomicBool::new(false),
            slow: AtomicBool::new(false),
            token,
            uri,
            module,
            identity,
            settings,
            news,
        })
    }

    /// RFC 7512 URI of its token.
    pub(crate) fn uri(&self) -> &str {
        &self.uri
    }

    /// How it is.
    pub(crate) fn state(&self) -> MemberState {
        self.state.borrow().health().0
    }

    /// Whether it can do something; None before its first self-test.
    pub(crate) fn can(&self, capability: Capability) -> Option<bool> {
        self.self_test.lock().as_ref().map(|test| test.works(capability))
    }

    /// The result of its self-test, once there is one.
    pub(crate) fn self_test(&self) -> Option<Arc<SelfTest>> {
        self.self_test.lock().clone()
    }

    /// Takes it out for maintenance, or brings it back.
    pub(crate) fn set_maintenance(&self, out: bool) {
        self.maintenance.store(out, Ordering::Release);
        self.kick.notify_one();
    }

    /// A call got no answer in time.
    pub(crate) fn mark_slow(&self) {
        if !self.slow.swap(true, Ordering::AcqRel) {
            tracing::warn!(member = self.uri, "it does not answer in time: others are asked first");
        }
    }

    /// Whether others should be asked first.
    pub(crate) fn is_slow(&self) -> bool {
        self.slow.load(Ordering::Acquire)
    }

    /// Whether a key's handle is at hand.
    pub(crate) fn has_loaded(&self, id: super::BackingId) -> bool {
        match &*self.state.borrow() {
            State::Serving(attachment) => attachment.cache.has_loaded(id),
            _ => false,
        }
    }

    /// Calls that wait for its session threads.
    pub(crate) fn waiting(&self) -> usize {
        self.workers.waiting()
    }

    /// What an operator sees.
    pub(crate) fn status(&self) -> MemberStatus {
        let current = self.state.borrow();
        let (state, reason) = current.health();
        let attachment = match &*current {
            State::Serving(attachment) => Some(attachment.clone()),
            _ => None,
        };
        drop(current);
        let info = attachment.as_ref().map(|attachment| attachment.info.clone()).unwrap_or_default();
        MemberStatus {
            uri: self.uri.clone(),
            module: self.module.name().to_owned(),
            pin: self.pin_name.clone(),
            state,
            reason,
            cause: *self.cause.lock(),
            model: info.model,
            manufacturer: info.manufacturer,
            firmware: info.firmware,
            threads: self.workers.threads(),
            queue_depth: self.workers.waiting(),
            loaded_keys: attachment.map_or(0, |attachment| attachment.cache.len()),
            epoch: self.epoch.load(Ordering::Acquire),
            self_test: self.self_test().map(|test| test.results().to_vec()).unwrap_or_default(),
        }
    }

    /// Does something with a key on a session thread.
    pub(crate) async fn with_key<T: Send + 'static>(
        self: &Arc<Self>,
        function: Function,
        key: &KeyRef,
        deadline: tokio::time::Instant,
        step: &Step<T>,
    ) -> Result<T, HsmError> {
        let mut last = HsmError::Missing(format!("{} is not on {}", key.id, self.uri));
        for _ in 0..ATTEMPTS_MAX {
            let attachment = self.attachment(deadline).await?;
            let entry = attachment.cache.entry(key.id);
            match self.use_key(function, &attachment, &entry, key, deadline, step).await {
                Ok(value) => return Ok(value),
                Err(Trouble::Final(error)) => {
                    if matches!(error, HsmError::Missing(_)) {
                        attachment.cache.remove_this(key.id, &entry);
                    }
                    return Err(error);
                }
                Err(Trouble::Stale) => attachment.cache.remove_this(key.id, &entry),
                Err(Trouble::Detached) => last = self.attached_again(),
                Err(Trouble::Unexplained(error)) => {
                    attachment.cache.remove_this(key.id, &entry);
                    last = error;
                }
            }
        }
        Err(last)
    }

    /// Does something without a key of a caller's: on a session thread, or in
    /// the lane where it creates or destroys.
    pub(crate) async fn without_key<T: Send + 'static>(
        self: &Arc<Self>,
        function: Function,
        deadline: tokio::time::Instant,
        repeatable: bool,
        step: &Step<T>,
    ) -> Result<T, HsmError> {
        let step = step.clone();
        let body = move |attachment: &Attachment, session: &Session| {
            step(session, attachment.wrapping_key, &attachment.self_test)
        };
        self.with_attachment(function, deadline, repeatable, Arc::new(body)).await
    }

    /// The same with the attachment at hand, for what may happen twice.
    pub(crate) async fn on_attachment<T: Send + 'static>(
        self: &Arc<Self>,
        function: Function,
        deadline: tokio::time::Instant,
        body: impl Fn(&Attachment, &Session) -> Result<T, Failure> + Send + Sync + 'static,
    ) -> Result<T, HsmError> {
        self.with_attachment(function, deadline, true, Arc::new(body)).await
    }

    async fn with_attachment<T: Send + 'static>(
        self: &Arc<Self>,
        function: Function,
        deadline: tokio::time::Instant,
        repeatable: bool,
        body: Arc<impl Fn(&Attachment, &Session) -> Result<T, Failure> + Send + Sync + 'static>,
    ) -> Result<T, HsmError> {
        let crew = if function.takes_lane() { &self.lane } else { &self.workers };
        let mut last = self.attached_again();
        for _ in 0..ATTEMPTS_MAX {
            let attachment = self.attachment(deadline).await?;
            let (member, body) = (self.clone(), body.clone());
            let result = crew
                .run(deadline, move |bench| {
                    member.perform(function, bench, &attachment, repeatable, |session| {
                        body(&attachment, session)
                    })
                })
                .await;
            match result {
                Ok(value) => return Ok(value),
                Err(Trouble::Final(error)) => return Err(error),
                Err(Trouble::Stale) => {
                    last = HsmError::Device("an object vanished while it was in use".to_owned());
                }
                Err(Trouble::Detached) => last = self.attached_again(),
                // SoftHSM2 sometimes fails to make a key while it unwraps another.
                Err(Trouble::Unexplained(error)) => last = error,
            }
            if !repeatable {
                break;
            }
        }
        Err(last)
    }

    fn attached_again(&self) -> HsmError {
        HsmError::Unavailable(format!("{} is being attached again", self.uri))
    }

    /// Forgets a key and waits until nobody uses it any more.
    pub(crate) async fn forget(&self, key: &KeyRef, deadline: tokio::time::Instant) -> Result<(), HsmError> {
        let attachment = match &*self.state.borrow() {
            State::Serving(attachment) => attachment.clone(),
            _ => return Ok(()),
        };
        let Some(entry) = attachment.cache.remove(key.id) else { return Ok(()) };
        while Arc::strong_count(&entry) > 1 {
            if tokio::time::Instant::now() >= deadline {
                return Err(HsmError::Deadline);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// An operator's new PIN, or the word that the old one is right now.
    pub(crate) fn retry_pin(&self, pin: Option<SecretString>) {
        if let Some(pin) = pin {
            *self.pin.lock() = pin;
        }
        self.pin_refused.store(false, Ordering::Release);
        self.kick.notify_one();
    }

    /// Keeps it at work until `stop`: attaches, probes, replaces threads that
    /// hang, and initialises the module again.
    pub(crate) async fn supervise(self: Arc<Self>, stop: CancellationToken) {
        let interval = Duration::from_millis(self.settings.probe_interval_ms.max(1));
        while !stop.is_cancelled() {
            self.round().await;
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.kick.notified() => {}
                () = tokio::time::sleep(interval) => {}
            }
        }
    }

    /// Finishes what is queued, ends the threads and drops the token.
    pub(crate) fn stop(&self, patience: Duration) {
        let until = Instant::now() + patience;
        for crew in [&self.workers, &self.lane, &self.keeper, &self.control] {
            if !crew.close(until.saturating_duration_since(Instant::now())) {
                tracing::warn!(member = self.uri, "a thread still hangs in the HSM");
            }
        }
        drop(self.change(None, State::Lost("the daemon is shutting down".to_owned())));
    }

    async fn use_key<T: Send + 'static>(
        self: &Arc<Self>,
        function: Function,
        attachment: &Arc<Attachment>,
        entry: &Arc<Entry>,
        key: &KeyRef,
        deadline: tokio::time::Instant,
        step: &Step<T>,
    ) -> Result<T, Trouble> {
        let handle = entry.handle(|| self.load(attachment, key, deadline)).await?;
        let (member, attachment, step) = (self.clone(), attachment.clone(), step.clone());
        // It goes along, so that the key's object outlives the call.
        let entry = entry.clone();
        let work = move |bench: &mut Bench| {
            let result = member.perform(function, bench, &attachment, true, |session| {
                step(session, handle, &attachment.self_test)
            });
            drop(entry);
            result
        };
        self.workers.run(deadline, work).await
    }

    /// Has the keeper unwrap or find a key.
    async fn load(
        self: &Arc<Self>,
        attachment: &Arc<Attachment>,
        key: &KeyRef,
        deadline: tokio::time::Instant,
    ) -> Result<Loaded, Trouble> {
        let (member, attachment, key) = (self.clone(), attachment.clone(), key.clone());
        let work = move |_: &mut Bench| {
            let begun = Instant::now();
            let keeper = attachment.keeper.lock();
            attachment.sweep(&keeper);
            let result = match load(&keeper, &attachment, &key) {
                Ok(loaded) => Ok(loaded),
                Err(failure) => Err(member.judge(&attachment, &failure, || attachment.canary(&keeper))),
            };
            member.count(Function::Load, &result, begun);
            result
        };
        self.keeper.run(deadline, work).await
    }

    /// Runs a step on the bench's session, on a new one if that is spent, and
    /// says whose fault a failure is.
    fn perform<T>(
        self: &Arc<Self>,
        function: Function,
        bench: &mut Bench,
        attachment: &Arc<Attachment>,
        repeatable: bool,
        step: impl Fn(&Session) -> Result<T, Failure>,
    ) -> Result<T, Trouble> {
        let begun = Instant::now();
        let mut result = self.attempt(bench, attachment, &step);
        if let Err((failure, Class::NewSession)) = &result
            && (repeatable || !matches!(failure, Failure::Call { function, .. } if creates(function)))
        {
            result = self.attempt(bench, attachment, &step);
        }
        let judge = |failure: &Failure| {
            self.judge(attachment, failure, || attachment.canary(&attachment.open_session()?))
        };
        let result = match result {
            Ok(value) => Ok(value),
            Err((failure, class)) => match judge(&failure) {
                // Blame the caller only for what fails twice, with a good canary between.
                Trouble::Final(HsmError::Input) if class == Class::Ambiguous && repeatable => {
                    self.attempt(bench, attachment, &step).map_err(|(again, _)| match again == failure {
                        true => Trouble::Final(HsmError::Input),
                        false => judge(&again),
                    })
                }
                trouble => Err(trouble),
            },
        };
        if result.is_ok() && self.is_slow() {
            self.slow.store(false, Ordering::Release);
        }
        self.count(function, &result, begun);
        result
    }

    fn attempt<T>(
        &self,
        bench: &mut Bench,
        attachment: &Arc<Attachment>,
        step: &impl Fn(&Session) -> Result<T, Failure>,
    ) -> Result<T, (Failure, Class)> {
        let result = match session(bench, attachment) {
            Ok(session) => step(session),
            Err(failure) => Err(failure),
        };
        result.map_err(|failure| {
            let class = match &failure {
                Failure::Call { function, rv } => {
                    // An error may leave an operation active in the session.
                    bench.session = None;
                    class(function, *rv)
                }
                Failure::Closed => Class::TokenGone,
                Failure::Ours(_) => Class::Caller,
            };
            (failure, class)
        })
    }

    /// What a failure means for its caller and for the member.
    fn judge(
        &self,
        attachment: &Attachment,
        failure: &Failure,
        canary: impl FnOnce() -> Result<(), Failure>,
    ) -> Trouble {
        let (function, rv) = match failure {
            Failure::Ours(error) => return Trouble::Final(error.clone()),
            Failure::Closed => {
                self.detach(attachment);
                return Trouble::Detached;
            }
            Failure::Call { function, rv } => (*function, *rv),
        };
        match class(function, rv) {
            Class::LogIn | Class::NewSession => {
                self.detach(attachment);
                Trouble::Detached
            }
            Class::TokenGone => Trouble::Final(self.lose(attachment, failure.to_string())),
            Class::Busy => Trouble::Final(HsmError::Busy),
            Class::Caller if failure.takes_input() => Trouble::Final(HsmError::Input),
            Class::Ambiguous => match canary() {
                Ok(()) if failure.is_own_object() => {
                    self.detach(attachment);
                    Trouble::Detached
                }
                Ok(()) if failure.is_unknown_object() => Trouble::Stale,
                Ok(()) if failure.takes_input() => Trouble::Final(HsmError::Input),
                Ok(()) => self.unexplained(failure),
                Err(Failure::Closed) => {
                    self.detach(attachment);
                    Trouble::Detached
                }
                Err(cause) if cause.is_busy() => Trouble::Final(HsmError::Busy),
                Err(cause) => {
                    Trouble::Final(self.lose(attachment, format!("{failure}; its canary: {cause}")))
                }
            },
            Class::Caller | Class::Operator | Class::Device => self.unexplained(failure),
        }
    }

    fn unexplained(&self, failure: &Failure) -> Trouble {
        tracing::warn!(member = self.uri, "{failure}");
        Trouble::Unexplained(HsmError::Device(failure.to_string()))
    }

    fn count<T>(&self, function: Function, result: &Result<T, Trouble>, begun: Instant) {
        let unit = match result {
            Ok(_) => Ok(()),
            Err(Trouble::Final(error) | Trouble::Unexplained(error)) => Err(error),
            Err(Trouble::Stale) => Err(&HsmError::Missing(String::new())),
            Err(Trouble::Detached) => Err(&HsmError::Unavailable(String::new())),
        };
        self.meters.call(function, unit, begun.elapsed());
    }

    /// The present attachment; waits while the token is being attached.
    async fn attachment(&self, deadline: tokio::time::Instant) -> Result<Arc<Attachment>, HsmError> {
        let present = |state: &State| match state {
            State::Attaching => None,
            State::Serving(attachment) => Some(Ok(attachment.clone())),
            State::Lost(reason) | State::Refused(reason) => {
                Some(Err(HsmError::Unavailable(format!("{}: {reason}", self.uri))))
            }
            State::Maintenance => {
                Some(Err(HsmError::Unavailable(format!("{}: an operator took it out", self.uri))))
            }
        };
        if let Some(found) = present(&self.state.borrow()) {
            return found;
        }
        let mut states = self.state.subscribe();
        let attached = states.wait_for(|state| present(state).is_some());
        match tokio::time::timeout_at(deadline, attached).await {
            Ok(Ok(state)) => present(&state).unwrap_or(Err(HsmError::Deadline)),
            Ok(Err(_)) | Err(_) => Err(HsmError::Deadline),
        }
    }

    /// The attachment is void, for no fault of the token's.
    fn detach(&self, attachment: &Attachment) {
        let old = self.change(Some(attachment.epoch), State::Attaching);
        self.let_go(old);
        self.kick.notify_one();
    }

    /// The token is gone: calls are refused until it is found again.
    fn lose(&self, attachment: &Attachment, reason: String) -> HsmError {
        let error = HsmError::Unavailable(format!("{}: {reason}", self.uri));
        tracing::warn!(member = self.uri, reason, "member lost");
        let old = self.change(Some(attachment.epoch), State::Lost(reason));
        self.let_go(old);
        self.kick.notify_one();
        error
    }

    /// Changes the state, if it is still that of the attachment `of`, and
    /// publishes it: the old one, whose drop calls the HSM.
    fn change(&self, of: Option<u64>, new: State) -> Option<State> {
        let mut old = None;
        let is_serving = matches!(new, State::Serving(_));
        let (health, reason) = new.health();
        self.state.send_if_modified(|state| {
            let epoch = match state {
                State::Serving(attachment) => Some(attachment.epoch),
                _ => None,
            };
            if of.is_some() && of != epoch {
                return false;
            }
            let was_serving = epoch.is_some();
            if is_serving && !was_serving {
                self.module.serving.fetch_add(1, Ordering::AcqRel);
            } else if was_serving && !is_serving {
                self.module.serving.fetch_sub(1, Ordering::AcqRel);
            }
            old = Some(std::mem::replace(state, new));
            self.meters.state(health);
            self.news.send_if_modified(|members| {
                match members.iter_mut().find(|member| member.uri == self.uri) {
                    Some(member) if member.state != health || member.reason != reason => {
                        member.state = health;
                        member.reason = reason;
                        true
                    }
                    _ => false,
                }
            });
            true
        });
        old
    }

    /// Drops an old state where it may block.
    fn let_go(&self, old: Option<State>) {
        if let Err(error) = self.control.push(move |_| drop(old)) {
            tracing::debug!(member = self.uri, "an old attachment was dropped in place: {error}");
        }
    }

    async fn round(self: &Arc<Self>) {
        self.meters.queue_depth(self.workers.waiting());
        self.replace_hung();
        if self.maintenance.load(Ordering::Acquire) {
            if self.state() != MemberState::Maintenance {
                tracing::info!(member = self.uri, "taken out for maintenance");
                let old = self.change(None, State::Maintenance);
                self.let_go(old);
            }
            return;
        }
        let serving = match &*self.state.borrow() {
            State::Serving(attachment) => Some(attachment.clone()),
            State::Refused(_) if self.pin_refused.load(Ordering::Acquire) => return,
            _ => None,
        };
        match serving {
            Some(attachment) => self.probe(attachment).await,
            None => self.attach().await,
        }
    }

    async fn probe(self: &Arc<Self>, attachment: Arc<Attachment>) {
        if attachment.life.is_closed() {
            self.detach(&attachment);
            return;
        }
        if attachment.garbage.len() > 0 {
            let attachment = attachment.clone();
            // Where the queue is full, the keeper sweeps anyway.
            let _ = self.keeper.push(move |_| attachment.sweep(&attachment.keeper.lock()));
        }
        if self.is_slow() {
            self.try_if_slow(&attachment);
        }
        let probed = attachment.clone();
        let result: Result<Result<(), Failure>, HsmError> =
            self.control.run(self.call_deadline(), move |_| Ok(probed.probe())).await;
        match result {
            Ok(Ok(())) => {}
            Ok(Err(Failure::Closed)) => self.detach(&attachment),
            Ok(Err(failure)) => drop(self.lose(&attachment, format!("its probe: {failure}"))),
            Err(error) => drop(self.lose(&attachment, format!("its probe: {error}"))),
        }
    }

    /// Has a session thread do something, as the probe's own thread would not
    /// see that the others hang.
    fn try_if_slow(self: &Arc<Self>, attachment: &Arc<Attachment>) {
        let (member, attachment) = (self.clone(), attachment.clone());
        // A full queue is slow too.
        let _ = self.workers.push(move |bench| {
            let result = session(bench, &attachment).and_then(|session| attachment.canary(session));
            if result.is_ok() {
                member.slow.store(false, Ordering::Release);
            }
        });
    }

    /// Attaches on the present life of the module, else on a new one.
    async fn attach(self: &Arc<Self>) {
        let member = self.clone();
        let result: Result<_, HsmError> =
            self.control.run(self.call_deadline(), move |_| Ok(member.attach_blocking())).await;
        let result = result.unwrap_or_else(|error| Err(NotAttached::Away(error.to_string())));
        *self.cause.lock() = result.as_ref().err().map(NotAttached::cause);
        let new = match result {
            Ok(attachment) => {
                tracing::info!(member = self.uri, epoch = attachment.epoch, "member serves");
                State::Serving(attachment)
            }
            Err(NotAttached::Absent(reason) | NotAttached::Away(reason)) => State::Lost(reason),
            Err(NotAttached::Foreign(reason) | NotAttached::Pin(_, reason)) => State::Refused(reason),
        };
        let old = self.change(None, new);
        self.log_change(old.as_ref());
        self.let_go(old);
    }

    fn log_change(&self, old: Option<&State>) {
        let (state, reason) = self.state.borrow().health();
        let before = old.map(State::health);
        if let Some(reason) = reason
            && before.is_none_or(|before| before != (state, Some(reason.clone())))
        {
            tracing::warn!(member = self.uri, reason, "member does not serve: {state:?}");
        }
    }

    fn attach_blocking(&self) -> Result<Arc<Attachment>, NotAttached> {
        let away = |error: HsmError| NotAttached::Away(error.to_string());
        let life = self.module.life().map_err(away)?;
        let hangs = self.hung.load(Ordering::Acquire) > self.settings.hung_calls_max.into();
        let first = match hangs {
            true => NotAttached::Away(format!("more than {} calls hang in it", self.settings.hung_calls_max)),
            false => match self.attach_on(&life) {
                Err(refused @ NotAttached::Pin(..)) => return Err(refused),
                Err(reason) => reason,
                Ok(attachment) => return Ok(attachment),
            },
        };
        let others = self.module.serving.load(Ordering::Acquire) > 0;
        let patience = if others { PATIENCE_WITH_OTHERS } else { 1 };
        let Ok(life) = self.module.renew(&life, patience) else { return Err(first) };
        self.hung.store(0, Ordering::Release);
        self.attach_on(&life)
    }

    fn attach_on(&self, life: &Arc<super::module::Life>) -> Result<Arc<Attachment>, NotAttached> {
        let pin = self.pin.lock().clone();
        let attach = Attach {
            epoch: self.epoch.fetch_add(1, Ordering::AcqRel) + 1,
            token: &self.token,
            pin: &pin,
            identity: &self.identity,
            self_test: self.self_test(),
            cache_capacity: self.settings.key_cache_capacity as usize,
            sessions: self.meters.sessions(),
        };
        let result = attach.attach(life);
        match &result {
            Ok(attachment) => *self.self_test.lock() = Some(attachment.self_test.clone()),
            Err(NotAttached::Pin(..)) => self.pin_refused.store(true, Ordering::Release),
            Err(_) => {}
        }
        result.map(Arc::new)
    }

    /// Gives up threads whose call hangs; with too many the member is lost, and
    /// without its keeper its keys are void.
    fn replace_hung(&self) {
        let limit = Duration::from_millis(self.settings.call_timeout_ms);
        let replace = |crew: &Crew| match crew.replace_hung(limit) {
            Ok(hung) => hung,
            Err(error) => {
                tracing::error!(member = self.uri, "a hung thread was not replaced: {error}");
                0
            }
        };
        let keeper = replace(&self.keeper);
        let others: usize = [&self.workers, &self.lane, &self.control].into_iter().map(replace).sum();
        if keeper + others == 0 {
            return;
        }
        let hung = self.hung.fetch_add(keeper + others, Ordering::AcqRel) + keeper + others;
        tracing::warn!(member = self.uri, hung, "calls hang in the HSM; their threads are given up");
        let serving = match &*self.state.borrow() {
            State::Serving(attachment) => Some(attachment.clone()),
            _ => None,
        };
        if let Some(attachment) = serving {
            if hung > self.settings.hung_calls_max.into() {
                drop(self.lose(&attachment, format!("{hung} calls hang in it")));
            } else if keeper > 0 {
                self.detach(&attachment);
            }
        }
    }

    fn call_deadline(&self) -> tokio::time::Instant {
        tokio::time::Instant::now() + Duration::from_millis(self.settings.call_timeout_ms)
    }
}

/// The thread's session on this attachment, opened if it has none.
fn session<'a>(bench: &'a mut Bench, attachment: &Attachment) -> Result<&'a Session, Failure> {
    let current = bench.session.take().filter(|(epoch, _)| *epoch == attachment.epoch);
    let current = match current {
        Some(current) => current,
        None => (attachment.epoch, attachment.open_session()?),
    };
    Ok(&bench.session.insert(current).1)
}

/// Whether repeating the function could make or destroy something twice.
fn creates(function: &str) -> bool {
    matches!(function, "C_GenerateKey" | "C_GenerateKeyPair" | "C_UnwrapKey" | "C_DestroyObject")
}

fn load(keeper: &Session, attachment: &Attachment, key: &KeyRef) -> Result<Loaded, Failure> {
    match &key.home {
        Home::Wrapped { by, .. } if *by != attachment.identity.wrapping_key => {
            Err(HsmError::Missing(format!("{} is wrapped under {by}, which is not here", key.id)).into())
        }
        Home::Wrapped { blob, .. } => {
            let by = attachment.wrapping_key;
            let handle = keys::unwrap(keeper, by, blob, key.material, key.usage, Form::Loaded)?;
            Ok(Loaded::unwrapped(handle, &attachment.garbage))
        }
        Home::Resident { blob } => {
            let search = keys::search(key.id, key.material);
            let mut found = keeper.find(&search)?;
            if found.is_empty() {
                // A token that went away finds nothing: believe it only while it is well.
                attachment.canary(keeper)?;
                if let Some(blob) = blob {
                    // It was deleted by somebody, or made while the member was away.
                    tracing::info!(token = attachment.info.label, key = %key.id, "bringing back a key's object");
                    return Ok(Loaded::resident(attachment.install(keeper, key, blob)?));
                }
                found = keeper.find(&search)?;
            }
            match (found.as_slice(), blob) {
                // Several come of two daemons that brought it at once: they are the same key.
                ([handle], _) | ([handle, ..], Some(_)) => Ok(Loaded::resident(*handle)),
                ([], _) => Err(HsmError::Missing(format!("{} is not on the token", key.id)).into()),
                (several, None) => {
                    Err(HsmError::Device(format!("{} objects have the id {}", several.len(), key.id)).into())
                }
            }
        }
    }
}
