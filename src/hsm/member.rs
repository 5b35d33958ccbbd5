//! A token of the cluster: its threads, its state, and how it is kept at work.
//!
//! ```text
//! callers ─→ workers' queue ─→ session threads ─┐
//!        ├─→ lane's queue ──→ create, destroy ──┼─→ the attachment's life
//!        └─→ keeper's queue → unwrap, find ─────┘
//! supervisor ─→ control thread: attach, probe, initialise again
//! ```
//!
//! What is done on it is in [`calls`], how it is kept at work in [`care`].

mod calls;
mod care;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use secrecy::SecretString;
use tokio::sync::{Notify, watch};

use super::attachment::Attachment;
use super::ckr::Failure;
use super::crew::Crew;
use super::meters::Meters;
use super::module::Module;
use super::selftest::SelfTest;
use super::session::{Handle, Session};
use super::{
    Capability, Cause, ClusterIdentity, ClusterSettings, HsmError, MemberHealth, MemberState, MemberStatus,
    Residents, TokenUri,
};

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
    /// The keys that it must have.
    residents: Option<Arc<dyn Residents>>,
    workers: Crew,
    lane: Crew,
    keeper: Crew,
    control: Crew,
    kick: Notify,
    pin_refused: AtomicBool,
    /// The token has taken the PIN.
    pin_known: AtomicBool,
    hung: AtomicUsize,
    epoch: AtomicU64,
    self_test: Mutex<Option<Arc<SelfTest>>>,
    /// An operator took it out.
    maintenance: AtomicBool,
    /// A call got no answer in time, and none has got one since.
    slow: AtomicBool,
    /// From when on keys that it may lack can be brought to it.
    lacks: Mutex<Option<Instant>>,
    /// Why the last try to attach failed.
    cause: Mutex<Option<Cause>>,
    /// Calls that are under way on it.
    calls: AtomicUsize,
}

/// A call that is under way on a member, until it is dropped.
struct UnderWay<'a>(&'a AtomicUsize);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

enum State {
    Attaching,
    Synchronizing(Arc<Attachment>),
    Serving(Arc<Attachment>),
    Lost(String),
    Refused(String),
    Maintenance,
}

impl State {
    /// Where calls on it would go.
    fn attachment(&self) -> Option<&Arc<Attachment>> {
        match self {
            State::Synchronizing(attachment) | State::Serving(attachment) => Some(attachment),
            State::Attaching | State::Lost(_) | State::Refused(_) | State::Maintenance => None,
        }
    }

    fn health(&self) -> (MemberState, Option<String>) {
        match self {
            State::Attaching => (MemberState::Attaching, None),
            State::Synchronizing(_) => (MemberState::Synchronizing, None),
            State::Serving(_) => (MemberState::Serving, None),
            State::Lost(reason) => (MemberState::Lost, Some(reason.clone())),
            State::Refused(reason) => (MemberState::Refused, Some(reason.clone())),
            State::Maintenance => (MemberState::Maintenance, Some("an operator took it out".to_owned())),
        }
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
    pub(crate) residents: Option<Arc<dyn Residents>>,
}

impl Member {
    /// Starts its threads; [`Member::supervise`] does the rest.
    pub(crate) fn start(parts: Parts) -> Result<Member, HsmError> {
        let Parts { token, index, module, pin, pin_name, identity, settings, news, residents } = parts;
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
            pin_known: AtomicBool::new(false),
            hung: AtomicUsize::new(0),
            epoch: AtomicU64::new(0),
            self_test: Mutex::new(None),
            cause: Mutex::new(None),
            calls: AtomicUsize::new(0),
            pin: Mutex::new(pin),
            pin_name,
            maintenance: AtomicBool::new(false),
            slow: AtomicBool::new(false),
            lacks: Mutex::default(),
            token,
            uri,
            module,
            identity,
            settings,
            news,
            residents,
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
        self.state.borrow().attachment().is_some_and(|attachment| attachment.cache.has_loaded(id))
    }

    /// Calls that are under way on it, whether they wait for a session or for
    /// their key.
    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::Acquire)
    }

    fn under_way(&self) -> UnderWay<'_> {
        self.calls.fetch_add(1, Ordering::AcqRel);
        UnderWay(&self.calls)
    }

    /// What an operator sees.
    pub(crate) fn status(&self) -> MemberStatus {
        let current = self.state.borrow();
        let (state, reason) = current.health();
        let attachment = current.attachment().cloned();
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
}
