//! What is done on a member: on a session thread, over new sessions and new
//! attachments where the old ones are spent, and whose fault a failure is.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Member, State, Step};
use crate::hsm::attachment::Attachment;
use crate::hsm::cache::{Entry, Loaded};
use crate::hsm::ckr::{Class, Failure, class};
use crate::hsm::crew::Bench;
use crate::hsm::keys::{self, Form};
use crate::hsm::meters::Function;
use crate::hsm::session::Session;
use crate::hsm::{Home, HsmError, KeyRef};

/// Attempts at one call, over new sessions and new attachments.
const ATTEMPTS_MAX: u32 = 3;

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

impl Member {
    /// Does something with a key on a session thread.
    pub(crate) async fn with_key<T: Send + 'static>(
        self: &Arc<Self>,
        function: Function,
        key: &KeyRef,
        deadline: tokio::time::Instant,
        step: &Step<T>,
    ) -> Result<T, HsmError> {
        let _under_way = self.under_way();
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
        let _under_way = self.under_way();
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
        let Some(attachment) = self.state.borrow().attachment().cloned() else { return Ok(()) };
        let Some(entry) = attachment.cache.remove(key.id) else { return Ok(()) };
        while Arc::strong_count(&entry) > 1 {
            if tokio::time::Instant::now() >= deadline {
                return Err(HsmError::Deadline);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
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
            State::Synchronizing(attachment) | State::Serving(attachment) => Some(Ok(attachment.clone())),
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
}

/// The thread's session on this attachment, opened if it has none.
pub(super) fn session<'a>(bench: &'a mut Bench, attachment: &Attachment) -> Result<&'a Session, Failure> {
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
