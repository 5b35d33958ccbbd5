//! A member's token while it is attached: found, logged in to, and known to be
//! the cluster's.

use std::sync::Arc;

use aws_lc_rs::constant_time;
use cryptoki_sys::{
    CK_RV, CK_SLOT_ID, CKR_PIN_EXPIRED, CKR_PIN_LOCKED, CKR_USER_ANOTHER_ALREADY_LOGGED_IN,
    CKR_USER_PIN_NOT_INITIALIZED, CKR_USER_TOO_MANY_TYPES,
};
use metrics::Gauge;
use parking_lot::Mutex;
use secrecy::SecretString;

use super::cache::{Garbage, KeyCache};
use super::ckr::{Class, Failure, class};
use super::keys::{self, Form};
use super::mechanism;
use super::module::Life;
use super::selftest::SelfTest;
use super::session::{self, Handle, Session, TokenInfo};
use super::{Cause, ClusterIdentity, Hash, Home, HsmError, KeyRef, Material, TokenUri, Use};

/// Why a token is not attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NotAttached {
    /// The module has no such token.
    Absent(String),
    /// It does not answer.
    Away(String),
    /// It is another, or wiped.
    Foreign(String),
    /// It does not take the PIN, which must not be tried again.
    Pin(Cause, String),
}

impl NotAttached {
    /// Its kind.
    pub(crate) fn cause(&self) -> Cause {
        match self {
            NotAttached::Absent(_) => Cause::Absent,
            NotAttached::Away(_) => Cause::Silent,
            NotAttached::Foreign(_) => Cause::Foreign,
            NotAttached::Pin(cause, _) => *cause,
        }
    }
}

/// An attached token. Its handles are void when it is dropped.
pub(crate) struct Attachment {
    pub(crate) epoch: u64,
    pub(crate) life: Arc<Life>,
    pub(crate) info: TokenInfo,
    pub(crate) identity: Arc<ClusterIdentity>,
    pub(crate) self_test: Arc<SelfTest>,
    pub(crate) cache: KeyCache,
    pub(crate) garbage: Arc<Garbage>,
    /// It does nothing but unwrap and destroy session objects, which go when it
    /// goes.
    pub(crate) keeper: Mutex<Session>,
    pub(crate) wrapping_key: Handle,
    /// Held from looking for an object until it is there, so that it comes once.
    installing: Mutex<()>,
    slot: CK_SLOT_ID,
    sessions: Gauge,
    /// Keeps the login, and probes.
    anchor: Mutex<Session>,
}

/// What it takes to attach a token.
pub(crate) struct Attach<'a> {
    pub(crate) epoch: u64,
    pub(crate) token: &'a TokenUri,
    pub(crate) pin: &'a SecretString,
    /// Whether the token has taken it before.
    pub(crate) pin_is_known: bool,
    pub(crate) identity: &'a Arc<ClusterIdentity>,
    /// The result of an earlier time.
    pub(crate) self_test: Option<Arc<SelfTest>>,
    pub(crate) cache_capacity: usize,
    pub(crate) sessions: Gauge,
}

impl Attach<'_> {
    /// Finds the token by label and serial, logs in once, checks that it is the
    /// cluster's, and tries what it can do.
    pub(crate) fn attach(self, life: &Arc<Life>) -> Result<Attachment, NotAttached> {
        let (slot, info) = find_token(life, self.token)?;
        let open = || Session::open(life, slot, &self.sessions);
        let anchor = open().map_err(away)?;
        match self.pin_is_known {
            true => anchor.log_in(self.pin),
            false => anchor.log_in_anew(self.pin),
        }
        .map_err(login_failed)?;
        let wrapping_key = self.verify(&anchor)?;
        let keeper = open().map_err(away)?;
        let self_test = match self.self_test {
            Some(result) => result,
            None => {
                let result = SelfTest::run(&open().map_err(away)?, wrapping_key, &open);
                // Of a token that went meanwhile it says nothing.
                check_test_key(&open().map_err(away)?, wrapping_key, self.identity).map_err(away)?;
                Arc::new(result)
            }
        };
        Ok(Attachment {
            epoch: self.epoch,
            life: life.clone(),
            info,
            identity: self.identity.clone(),
            self_test,
            cache: KeyCache::new(self.cache_capacity),
            garbage: Arc::default(),
            keeper: Mutex::new(keeper),
            wrapping_key,
            installing: Mutex::default(),
            slot,
            sessions: self.sessions,
            anchor: Mutex::new(anchor),
        })
    }

    /// Whether the token holds the cluster's keys: the wrapping key's handle.
    fn verify(&self, session: &Session) -> Result<Handle, NotAttached> {
        let identity = self.identity;
        let wrapping_key = match session
            .find(&keys::search(identity.wrapping_key, Material::Aes256))
            .map_err(away)?
            .as_slice()
        {
            [one] => *one,
            found => {
                return Err(NotAttached::Foreign(format!(
                    "the token has {} wrapping keys with the id {}: it was wiped, or is another's",
                    found.len(),
                    identity.wrapping_key
                )));
            }
        };
        match check_test_key(session, wrapping_key, identity) {
            Ok(()) => {}
            // It went while it was looked at.
            Err(failure) if failure.is_own_object() || !failure.is_judgement() => return Err(away(failure)),
            Err(failure) => {
                return Err(NotAttached::Foreign(format!(
                    "the token's wrapping key does not unwrap the cluster's test key: {failure}"
                )));
            }
        }
        // The daemon's own keys are brought from their blobs: a new member has none.
        for key in [identity.mac_key(), identity.head_key()] {
            if let Home::Resident { blob: Some(blob) } = &key.home {
                install(session, wrapping_key, identity, &key, blob).map_err(away)?;
            }
        }
        Ok(wrapping_key)
    }
}

impl Attachment {
    /// Another session on the token.
    pub(crate) fn open_session(&self) -> Result<Session, Failure> {
        Session::open(&self.life, self.slot, &self.sessions)
    }

    /// Whether the token is there and does its work: asks for its info, and uses
    /// a token object, which session objects would hide the loss of.
    pub(crate) fn probe(&self) -> Result<(), Failure> {
        let info = session::token_info(&self.life, self.slot)?;
        if info != self.info {
            return Err(HsmError::Device("another token is in its slot".to_owned()).into());
        }
        let mut anchor = self.anchor.lock();
        let Err(first) = self.canary(&anchor) else { return Ok(()) };
        if !matches!(&first, Failure::Call { function, rv } if class(function, *rv) == Class::NewSession) {
            return Err(first);
        }
        *anchor = self.open_session()?;
        self.canary(&anchor)
    }

    /// Unwraps the test key under the wrapping key and checks what it makes.
    pub(crate) fn canary(&self, session: &Session) -> Result<(), Failure> {
        check_test_key(session, self.wrapping_key, &self.identity)
    }

    /// A resident key's object, which is unwrapped where there is none.
    pub(crate) fn install(&self, session: &Session, key: &KeyRef, blob: &[u8]) -> Result<Handle, Failure> {
        let _installing = self.installing.lock();
        install(session, self.wrapping_key, &self.identity, key, blob)
    }

    /// Destroys what nobody uses any more. Only the keeper's thread calls it.
    pub(crate) fn sweep(&self, keeper: &Session) {
        for handle in self.garbage.take() {
            if let Err(failure) = keeper.destroy(handle)
                && failure != Failure::Closed
            {
                tracing::warn!(token = self.info.label, "an unused key was not destroyed: {failure}");
            }
        }
    }
}

fn install(
    session: &Session,
    wrapping_key: Handle,
    identity: &ClusterIdentity,
    key: &KeyRef,
    blob: &[u8],
) -> Result<Handle, Failure> {
    if let Some(present) = session.find(&keys::search(key.id, key.material))?.first() {
        return Ok(*present);
    }
    let label = match key.id {
        id if id == identity.mac_key.id => keys::MAC_KEY_LABEL,
        id if id == identity.head_key.id => keys::HEAD_KEY_LABEL,
        _ => keys::KEY_LABEL,
    };
    keys::unwrap(session, wrapping_key, blob, key.material, key.usage, Form::Resident { id: key.id, label })
}

fn find_token(life: &Arc<Life>, token: &TokenUri) -> Result<(CK_SLOT_ID, TokenInfo), NotAttached> {
    let mut trouble = None;
    for slot in session::slots(life).map_err(away)? {
        match session::token_info(life, slot) {
            Ok(info) if info.label == token.label && info.serial == token.serial => return Ok((slot, info)),
            Ok(_) => {}
            Err(failure) => trouble = Some(failure),
        }
    }
    Err(match trouble {
        Some(failure) => away(failure),
        None => NotAttached::Absent(format!("the module has no token {token}")),
    })
}

/// Whether a wrapping key is the cluster's.
pub(super) fn check_test_key(
    session: &Session,
    wrapping_key: Handle,
    identity: &ClusterIdentity,
) -> Result<(), Failure> {
    let material = Material::Generic(32);
    let key = keys::unwrap(session, wrapping_key, &identity.test_key.0, material, Use::Mac, Form::Loaded)?;
    let mac = mechanism::mac(session, key, Hash::Sha256, ClusterIdentity::TEST_TEXT);
    session.destroy(key)?;
    constant_time::verify_slices_are_equal(&mac?, &identity.test_check.0)
        .map_err(|_| HsmError::Device("the test key is another".to_owned()).into())
}

fn away(failure: Failure) -> NotAttached {
    NotAttached::Away(failure.to_string())
}

fn login_failed(failure: Failure) -> NotAttached {
    match &failure {
        Failure::Call { function, rv } if class(function, *rv) == Class::Operator => {
            NotAttached::Pin(pin_cause(*rv), format!("{failure}; the PIN is not tried again by itself"))
        }
        _ => away(failure),
    }
}

fn pin_cause(rv: CK_RV) -> Cause {
    match rv {
        CKR_PIN_LOCKED | CKR_PIN_EXPIRED => Cause::LockedPin,
        CKR_USER_PIN_NOT_INITIALIZED => Cause::NoUser,
        CKR_USER_ANOTHER_ALREADY_LOGGED_IN | CKR_USER_TOO_MANY_TYPES => Cause::UserLoggedIn,
        _ => Cause::WrongPin,
    }
}
