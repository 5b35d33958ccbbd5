//! A PKCS#11 library and its lives.
//!
//! A [`Life`] lasts from one C_Initialize to C_Finalize. Sessions and handles
//! belong to a life, and every call first passes the life's gate: so no handle
//! is used after its life, and nothing is finalised while a call is in it.
//!
//! The functions are called through cryptoki-sys, not cryptoki: it lets
//! AES-GCM be two calls instead of three, says CKA_UNWRAP_TEMPLATE, and leaves
//! it to us when a session is closed.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cryptoki_sys::{
    CK_C_INITIALIZE_ARGS, CK_FUNCTION_LIST, CK_MECHANISM_TYPE, CK_RV, CK_SLOT_ID, CKF_OS_LOCKING_OK,
    CKM_AES_KEY_WRAP_PAD, CKR_CRYPTOKI_ALREADY_INITIALIZED, CKR_FUNCTION_NOT_SUPPORTED, CKR_OK,
};
use parking_lot::{Mutex, MutexGuard};

use super::ckr::Failure;
use super::{ClusterSettings, HsmError, ModuleSettings};

/// Fresh copies of a library that are loaded because calls hang in the old one.
const FRESH_COPIES_MAX: u32 = 3;

/// How often a closed gate is looked at until the calls in it have ended.
const GATE_POLL: Duration = Duration::from_millis(1);

/// INVARIANT: whoever initialises a module holds this: setting a variable of
/// the environment and reading it (C_Initialize) are one step.
static ENVIRONMENT: Mutex<()> = Mutex::new(());

/// The files loaded so far by this process. Loading one a second time would
/// give the same library again, so a second module gets a copy.
static LOADED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Runs `body` while the environment variables are set and nobody else of this
/// process sets any.
///
/// The variables stay as they are afterwards, as the library may read them late.
pub fn with_environment<T>(
    variables: &std::collections::BTreeMap<String, String>,
    body: impl FnOnce() -> T,
) -> T {
    let _environment = ENVIRONMENT.lock();
    for (name, value) in variables {
        if std::env::var_os(name).is_none_or(|present| present != value.as_str()) {
            // SAFETY: Rust code takes std's own lock; PKCS#11 libraries read
            // the environment in C_Initialize, which runs under ENVIRONMENT.
            unsafe { std::env::set_var(name, value) };
        }
    }
    body()
}

/// A configured PKCS#11 library.
pub(crate) struct Module {
    name: String,
    settings: ModuleSettings,
    drain: Duration,
    interval: Duration,
    /// Members that are attached through it, which another life disturbs.
    pub(crate) attached: AtomicUsize,
    state: Mutex<State>,
}

struct State {
    functions: &'static CK_FUNCTION_LIST,
    life: Option<Arc<Life>>,
    initialised: Option<Instant>,
    /// Why there is no life since then.
    failed: Option<HsmError>,
    copies: u32,
    /// Lives in which calls hang; when they return, the library is of use again.
    abandoned: Vec<Arc<Life>>,
}

impl Module {
    /// Loads the library, and initialises nothing yet.
    pub(crate) fn load(
        name: &str,
        settings: &ModuleSettings,
        limits: &ClusterSettings,
    ) -> Result<Module, HsmError> {
        let functions = load(&settings.library)?;
        Ok(Module {
            name: name.to_owned(),
            settings: settings.clone(),
            drain: Duration::from_millis(limits.call_timeout_ms),
            interval: Duration::from_millis(limits.reinitialize_interval_ms),
            attached: AtomicUsize::new(0),
            state: Mutex::new(State {
                functions,
                life: None,
                initialised: None,
                failed: None,
                copies: 0,
                abandoned: Vec::new(),
            }),
        })
    }

    /// The name in the configuration.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The present life; the first call begins one.
    pub(crate) fn life(&self) -> Result<Arc<Life>, HsmError> {
        let mut state = self.lock()?;
        match &state.life {
            Some(life) => Ok(life.clone()),
            None => self.initialise(&mut state),
        }
    }

    /// Ends `old` and begins a new life, unless another already did. Waits for
    /// the calls in it; where they hang, the library is abandoned for a fresh
    /// copy. `patience` stretches the least interval between two lives.
    pub(crate) fn renew(&self, old: &Arc<Life>, patience: u32) -> Result<Arc<Life>, HsmError> {
        let mut state = self.lock()?;
        if let Some(life) = state.life.clone()
            && !Arc::ptr_eq(&life, old)
        {
            return Ok(life);
        }
        if state.life.is_some() {
            self.check_interval(&state, patience)?;
            self.end(&mut state)?;
        }
        self.initialise(&mut state)
    }

    /// Ends the present life for good.
    pub(crate) fn finalise(&self) {
        let mut state = match self.lock() {
            Ok(state) => state,
            Err(error) => {
                tracing::warn!(module = self.name, "not finalised: {error}");
                return;
            }
        };
        for life in state.abandoned.drain(..).filter(|life| life.is_over()) {
            life.finalise();
        }
        if let Some(life) = state.life.take() {
            if life.close(self.drain) {
                life.finalise();
            } else {
                tracing::warn!(module = self.name, "not finalised: calls still hang in it");
            }
        }
    }

    /// INVARIANT: nobody waits for ever, whatever hangs while the state is held.
    fn lock(&self) -> Result<MutexGuard<'_, State>, HsmError> {
        let hangs = || HsmError::Unavailable(format!("module {}: its initialisation hangs", self.name));
        self.state.try_lock_for(self.drain).ok_or_else(hangs)
    }

    fn end(&self, state: &mut State) -> Result<(), HsmError> {
        let Some(life) = state.life.take() else { return Ok(()) };
        if life.close(self.drain) {
            life.finalise();
            return Ok(());
        }
        if let Some(place) = state.abandoned.iter().position(|life| life.is_over()) {
            let free = state.abandoned.swap_remove(place);
            free.finalise();
            tracing::warn!(
                module = self.name,
                "calls hang in the library: one in which none does is used again"
            );
            state.functions = free.functions;
            state.abandoned.push(life);
            return Ok(());
        }
        if state.copies >= FRESH_COPIES_MAX {
            state.life = Some(life);
            return Err(HsmError::Unavailable(format!(
                "calls hang in module {} and its library was replaced {FRESH_COPIES_MAX} times: restart the daemon",
                self.name
            )));
        }
        tracing::warn!(module = self.name, "calls hang in the library: it is abandoned for a fresh copy");
        state.copies += 1;
        state.functions = load_file(&private_copy(&self.settings.library)?)?;
        state.abandoned.push(life);
        Ok(())
    }

    fn initialise(&self, state: &mut State) -> Result<Arc<Life>, HsmError> {
        self.check_interval(state, 1).map_err(|early| state.failed.clone().unwrap_or(early))?;
        state.initialised = Some(Instant::now());
        let functions = state.functions;
        state.failed = with_environment(&self.settings.environment, || initialise(functions))
            .map_err(|failure| HsmError::Unavailable(format!("module {}: {failure}", self.name)))
            .err();
        if let Some(failed) = &state.failed {
            return Err(failed.clone());
        }
        let life = Arc::new(Life { functions, gate: Gate::default(), key_wraps: Mutex::default() });
        state.life = Some(life.clone());
        Ok(life)
    }

    fn check_interval(&self, state: &State, patience: u32) -> Result<(), HsmError> {
        let wait = self.interval.saturating_mul(patience);
        match state.initialised {
            Some(last) if last.elapsed() < wait => Err(HsmError::Unavailable(format!(
                "module {} was initialised less than {} ms ago",
                self.name,
                wait.as_millis()
            ))),
            _ => Ok(()),
        }
    }
}

/// A library between C_Initialize and C_Finalize.
pub(crate) struct Life {
    functions: &'static CK_FUNCTION_LIST,
    gate: Gate,
    /// The mechanism that wraps keys on the token in a slot.
    key_wraps: Mutex<BTreeMap<CK_SLOT_ID, CK_MECHANISM_TYPE>>,
}

impl Life {
    /// Whether the life has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.gate.calls.load(Ordering::Acquire) & CLOSED != 0
    }

    /// Whether it has ended and no call is in it.
    fn is_over(&self) -> bool {
        self.gate.calls.load(Ordering::Acquire) == CLOSED
    }

    /// The mechanism that wraps keys on the token in a slot: `ask` is called until
    /// it tells.
    pub(crate) fn key_wrap(
        &self,
        slot: CK_SLOT_ID,
        ask: impl FnOnce() -> Option<CK_MECHANISM_TYPE>,
    ) -> CK_MECHANISM_TYPE {
        if let Some(known) = self.key_wraps.lock().get(&slot) {
            return *known;
        }
        let told = ask();
        if let Some(mechanism) = told {
            self.key_wraps.lock().insert(slot, mechanism);
        }
        told.unwrap_or(CKM_AES_KEY_WRAP_PAD)
    }

    /// Calls a function, unless the life has ended.
    pub(crate) fn call(
        &self,
        function: &'static str,
        body: impl FnOnce(&CK_FUNCTION_LIST) -> Option<CK_RV>,
    ) -> Result<(), Failure> {
        let _pass = self.gate.enter().ok_or(Failure::Closed)?;
        check(function, body(self.functions))
    }

    /// Lets nobody in any more, and waits until all are out.
    fn close(&self, patience: Duration) -> bool {
        self.gate.calls.fetch_or(CLOSED, Ordering::AcqRel);
        let until = Instant::now() + patience;
        while !self.is_over() {
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(GATE_POLL);
        }
        true
    }

    /// INVARIANT: the gate is closed and empty: a call in flight during
    /// C_Finalize is undefined behaviour.
    fn finalise(&self) {
        // SAFETY: the list is a loaded library's; the argument must be null.
        let rv = self.functions.C_Finalize.map(|finalise| unsafe { finalise(std::ptr::null_mut()) });
        if let Err(failure) = check("C_Finalize", rv) {
            tracing::warn!("{failure}");
        }
    }
}

/// Set in [`Gate::calls`] when nobody may enter any more.
const CLOSED: usize = 1 << (usize::BITS - 1);

/// Counts the calls in a library.
#[derive(Default)]
struct Gate {
    calls: AtomicUsize,
}

struct Pass<'a>(&'a Gate);

impl Gate {
    fn enter(&self) -> Option<Pass<'_>> {
        let pass = Pass(self);
        let before = self.calls.fetch_add(1, Ordering::AcqRel);
        (before & CLOSED == 0).then_some(pass)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::AcqRel);
    }
}

fn check(function: &'static str, rv: Option<CK_RV>) -> Result<(), Failure> {
    match rv.unwrap_or(CKR_FUNCTION_NOT_SUPPORTED) {
        CKR_OK => Ok(()),
        rv => Err(Failure::Call { function, rv }),
    }
}

fn initialise(functions: &CK_FUNCTION_LIST) -> Result<(), Failure> {
    let mut arguments = CK_C_INITIALIZE_ARGS { flags: CKF_OS_LOCKING_OK, ..Default::default() };
    let pointer: *mut CK_C_INITIALIZE_ARGS = &mut arguments;
    // SAFETY: the list is a loaded library's; the arguments outlive the call.
    let begin = || functions.C_Initialize.map(|call| unsafe { call(pointer.cast::<c_void>()) });
    let mut rv = begin();
    if rv == Some(CKR_CRYPTOKI_ALREADY_INITIALIZED) {
        // Its last C_Finalize failed. Nobody else of this process has the library.
        // SAFETY: as above; no life of it is open, so no call is in it.
        if let Some(finalise) = functions.C_Finalize {
            unsafe { finalise(std::ptr::null_mut()) };
        }
        rv = begin();
    }
    check("C_Initialize", rv)
}

/// Loads a library, or a copy of it where this process has loaded it before.
fn load(library: &Path) -> Result<&'static CK_FUNCTION_LIST, HsmError> {
    let file = library
        .canonicalize()
        .map_err(|error| HsmError::Unavailable(format!("library {}: {error}", library.display())))?;
    let mut loaded = LOADED.lock();
    if loaded.contains(&file) {
        return load_file(&private_copy(&file)?);
    }
    let functions = load_file(&file)?;
    loaded.push(file);
    Ok(functions)
}

/// The library is never unloaded: an abandoned call may still run in it, and
/// some libraries do not survive it.
fn load_file(file: &Path) -> Result<&'static CK_FUNCTION_LIST, HsmError> {
    let unavailable = |reason: String| HsmError::Unavailable(format!("library {}: {reason}", file.display()));
    // SAFETY: the operator names a PKCS#11 library in the configuration.
    let library =
        unsafe { cryptoki_sys::Pkcs11::new(file) }.map_err(|error| unavailable(error.to_string()))?;
    let library = Box::leak(Box::new(library));
    if let Err(error) = &library.C_GetFunctionList {
        return Err(unavailable(format!("C_GetFunctionList: {error}")));
    }
    let mut list: *mut CK_FUNCTION_LIST = std::ptr::null_mut();
    // SAFETY: the symbol is there (checked above); the list is the library's, static.
    let rv = unsafe { library.C_GetFunctionList(&mut list) };
    check("C_GetFunctionList", Some(rv)).map_err(|failure| unavailable(failure.to_string()))?;
    // SAFETY: after CKR_OK it points at a list that lives as long as the library.
    unsafe { list.as_ref() }.ok_or_else(|| unavailable("C_GetFunctionList gave none".to_owned()))
}

/// A copy of a library in memory, which the loader takes for another library.
#[cfg(target_os = "linux")]
pub fn private_copy(library: &Path) -> Result<PathBuf, HsmError> {
    use std::io::Write as _;
    use std::os::fd::{AsRawFd as _, IntoRawFd as _};
    let failed = |what: &str, error: std::io::Error| {
        HsmError::Unavailable(format!("copying library {}: {what}: {error}", library.display()))
    };
    let bytes = std::fs::read(library).map_err(|error| failed("reading it", error))?;
    let memory = rustix::fs::memfd_create("pkcs11", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(|error| failed("memfd_create", error.into()))?;
    let mut file = std::fs::File::from(memory);
    file.write_all(&bytes).map_err(|error| failed("writing it", error))?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    // It stays open as long as the library stays loaded: for ever. A closed
    // number would be used again, and the loader compares names.
    let _open = file.into_raw_fd();
    Ok(path)
}

/// A copy of a library in a file, which the loader takes for another library.
#[cfg(not(target_os = "linux"))]
pub fn private_copy(library: &Path) -> Result<PathBuf, HsmError> {
    let path = std::env::temp_dir().join(format!("strongroom-{}.pkcs11", uuid::Uuid::new_v4()));
    std::fs::copy(library, &path)
        .map_err(|error| HsmError::Unavailable(format!("copying library {}: {error}", library.display())))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_gate_lets_nobody_in_and_waits_for_those_inside() {
        let gate = Gate::default();
        let inside = gate.enter();
        assert!(inside.is_some());
        gate.calls.fetch_or(CLOSED, Ordering::AcqRel);
        assert!(gate.enter().is_none());
        assert_ne!(gate.calls.load(Ordering::Acquire), CLOSED, "one is still inside");
        drop(inside);
        assert_eq!(gate.calls.load(Ordering::Acquire), CLOSED);
    }
}
