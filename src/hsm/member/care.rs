//! How a member is kept at work: attached, probed, rid of threads that hang,
//! attached again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use secrecy::SecretString;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::calls::session;
use super::{Member, State};
use crate::hsm::attachment::{Attach, Attachment, NotAttached};
use crate::hsm::ckr::Failure;
use crate::hsm::crew::Crew;
use crate::hsm::module::Life;
use crate::hsm::{HsmError, MemberHealth, MemberState};

/// How much longer a module is left alone between two lives while other members
/// serve through it.
const PATIENCE_WITH_OTHERS: u32 = 12;

impl Member {
    /// An operator's new PIN, or the word that the old one is right now.
    pub(crate) fn retry_pin(&self, pin: Option<SecretString>) {
        if let Some(pin) = pin {
            *self.pin.lock() = pin;
            self.pin_known.store(false, Ordering::Release);
        }
        self.pin_refused.store(false, Ordering::Release);
        self.kick.notify_one();
    }

    /// Keeps it at work until `stop`: attaches, probes, replaces threads that
    /// hang, and initialises the module again.
    pub(crate) async fn supervise(self: Arc<Self>, stop: CancellationToken) {
        let interval = Duration::from_millis(self.settings.probe_interval_ms.max(1));
        // Beside the rounds, which see whether it answers meanwhile.
        let mut synchronizing = JoinSet::new();
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.round() => {}
            }
            while let Some(ended) = synchronizing.try_join_next() {
                if let Err(error) = ended {
                    tracing::error!(member = self.uri, %error, "its synchronization ended");
                }
            }
            if synchronizing.is_empty() && self.is_to_synchronize() {
                synchronizing.spawn(self.clone().become_whole());
            }
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

    /// The attachment is void, for no fault of the token's.
    pub(super) fn detach(&self, attachment: &Attachment) {
        let old = self.change(Some(attachment.epoch), State::Attaching);
        self.let_go(old);
        self.kick.notify_one();
    }

    /// The token is gone: calls are refused until it is found again.
    pub(super) fn lose(&self, attachment: &Attachment, reason: String) -> HsmError {
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
        let is_attached = new.attachment().is_some();
        let (health, reason) = new.health();
        self.state.send_if_modified(|state| {
            let epoch = state.attachment().map(|attachment| attachment.epoch);
            if of.is_some() && of != epoch {
                return false;
            }
            let was_attached = epoch.is_some();
            if is_attached && !was_attached {
                self.module.attached.fetch_add(1, Ordering::AcqRel);
            } else if was_attached && !is_attached {
                self.module.attached.fetch_sub(1, Ordering::AcqRel);
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
        if self.state() == MemberState::Refused && self.pin_refused.load(Ordering::Acquire) {
            return;
        }
        let attached = self.state.borrow().attachment().cloned();
        match attached {
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
            Ok(attachment) => return self.enter(attachment),
            Err(NotAttached::Absent(reason) | NotAttached::Away(reason)) => State::Lost(reason),
            Err(NotAttached::Foreign(reason) | NotAttached::Pin(_, reason)) => State::Refused(reason),
        };
        let old = self.change(None, new);
        self.log_change(old.as_ref());
        self.let_go(old);
    }

    /// Goes to work; while others do it, only with all the keys that it must have.
    fn enter(&self, attachment: Arc<Attachment>) {
        let epoch = attachment.epoch;
        let waits = self.residents.is_some() && self.others_serve();
        let new = match waits {
            true => State::Synchronizing(attachment),
            false => State::Serving(attachment),
        };
        let old = self.change(None, new);
        self.let_go(old);
        if !waits {
            // Who could bring it now what it lacks may only be coming.
            self.lacks_keys(Duration::ZERO);
            tracing::info!(member = self.uri, epoch, "member serves");
        }
    }

    /// Synchronizes it, and has it serve if it waited for that.
    async fn become_whole(self: Arc<Self>) {
        let attachment = self.state.borrow().attachment().cloned();
        let (Some(attachment), Some(residents)) = (attachment, &self.residents) else { return };
        let epoch = attachment.epoch;
        *self.lacks.lock() = None;
        self.synchronize(&**residents, epoch).await;
        if self.state() == MemberState::Synchronizing
            && self.change(Some(epoch), State::Serving(attachment)).is_some()
        {
            tracing::info!(member = self.uri, epoch, "member serves");
        }
        // It may have been attached again meanwhile.
        self.kick.notify_one();
    }

    /// A key was made and is not known to be on it. It is brought when the store
    /// has the key for certain, if nobody asks for it before.
    pub(in crate::hsm) fn lacks_a_key(&self) {
        self.lacks_keys(Duration::from_millis(self.settings.call_timeout_ms));
    }

    /// It may lack keys, which can be brought after `wait`.
    pub(in crate::hsm) fn lacks_keys(&self, wait: Duration) {
        let then = Instant::now() + wait;
        let mut lacks = self.lacks.lock();
        *lacks = Some(lacks.map_or(then, |earlier| earlier.min(then)));
    }

    /// Whether it has this attachment still.
    pub(in crate::hsm) fn is_attached(&self, epoch: u64) -> bool {
        self.state.borrow().attachment().is_some_and(|attachment| attachment.epoch == epoch)
    }

    /// Whether it is to be synchronized now.
    fn is_to_synchronize(&self) -> bool {
        match self.state() {
            MemberState::Synchronizing => true,
            MemberState::Serving => {
                let is_due = self.lacks.lock().is_some_and(|then| then <= Instant::now());
                is_due && self.residents.is_some() && !self.is_slow()
            }
            _ => false,
        }
    }

    fn others_serve(&self) -> bool {
        let serves = |member: &MemberHealth| member.uri != self.uri && member.state == MemberState::Serving;
        self.news.borrow().iter().any(serves)
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
        let others = self.module.attached.load(Ordering::Acquire) > 0;
        let patience = if others { PATIENCE_WITH_OTHERS } else { 1 };
        let Ok(life) = self.module.renew(&life, patience) else { return Err(first) };
        self.hung.store(0, Ordering::Release);
        self.attach_on(&life)
    }

    fn attach_on(&self, life: &Arc<Life>) -> Result<Arc<Attachment>, NotAttached> {
        let pin = self.pin.lock().clone();
        let attach = Attach {
            epoch: self.epoch.fetch_add(1, Ordering::AcqRel) + 1,
            token: &self.token,
            pin: &pin,
            pin_is_known: self.pin_known.load(Ordering::Acquire),
            identity: &self.identity,
            self_test: self.self_test(),
            cache_capacity: self.settings.key_cache_capacity as usize,
            sessions: self.meters.sessions(),
        };
        let result = attach.attach(life);
        match &result {
            Ok(attachment) => {
                self.pin_known.store(true, Ordering::Release);
                // One that was given up for its slowness may end after another.
                self.self_test.lock().get_or_insert_with(|| attachment.self_test.clone());
            }
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
        let attached = self.state.borrow().attachment().cloned();
        if let Some(attachment) = attached {
            if hung > self.settings.hung_calls_max.into() {
                drop(self.lose(&attachment, format!("{hung} calls hang in it")));
            } else if keeper > 0 {
                self.detach(&attachment);
            }
        }
    }

    /// When a call that begins now is given up.
    pub(in crate::hsm) fn call_deadline(&self) -> tokio::time::Instant {
        tokio::time::Instant::now() + Duration::from_millis(self.settings.call_timeout_ms)
    }
}
