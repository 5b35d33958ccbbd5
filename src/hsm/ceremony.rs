//! Making the keys of a new cluster on an empty token.

use std::sync::Arc;

use cryptoki_sys::{CKO_PRIVATE_KEY, CKO_SECRET_KEY};
use metrics::Gauge;
use secrecy::SecretString;

use super::ckr::Failure;
use super::keys::{self, Form};
use super::mechanism;
use super::module::Life;
use super::modules::Modules;
use super::session::{self, Handle, Session};
use super::{BackingId, Blob, ClusterIdentity, Curve, Hash, HsmError, Material, SystemKey, TokenUri, Use};

/// Makes the wrapping key, the rows' MAC key, the head key and the test key on
/// an initialised token that has none of ours. Blocks.
///
/// Errors: [`HsmError::Unavailable`] where the module or the token is not there
/// or the PIN is wrong, [`HsmError::Unsupported`] where the token has keys of
/// ours already, [`HsmError::Device`] where the HSM fails.
pub fn ceremony(
    modules: &Modules,
    module: &str,
    token: &TokenUri,
    pin: &SecretString,
) -> Result<ClusterIdentity, HsmError> {
    on_token(&modules.get(module)?.life()?, token, pin)
}

/// Refuses a token that has keys of ours, which may be another installation's.
/// Blocks.
///
/// Errors: [`HsmError::Unsupported`] for such a token, else as those of
/// [`ceremony`].
pub fn check_unused(
    modules: &Modules,
    module: &str,
    token: &TokenUri,
    pin: &SecretString,
) -> Result<(), HsmError> {
    refuse_used_token(&log_in(&modules.get(module)?.life()?, token, pin)?)
}

/// Destroys what a ceremony that did not end left on a token. Only for one of
/// which no store knows a key. Blocks.
///
/// Errors: as those of [`ceremony`].
pub fn discard_ceremony(
    modules: &Modules,
    module: &str,
    token: &TokenUri,
    pin: &SecretString,
) -> Result<(), HsmError> {
    let session = log_in(&modules.get(module)?.life()?, token, pin)?;
    for label in CEREMONY_LABELS {
        for class in [CKO_SECRET_KEY, CKO_PRIVATE_KEY] {
            for handle in session.find(&keys::search_label(class, label)).map_err(unavailable)? {
                session.destroy(handle).map_err(unavailable)?;
            }
        }
    }
    Ok(())
}

/// What a ceremony makes.
const CEREMONY_LABELS: [&str; 3] = [keys::WRAPPING_KEY_LABEL, keys::MAC_KEY_LABEL, keys::HEAD_KEY_LABEL];

fn log_in(life: &Arc<Life>, token: &TokenUri, pin: &SecretString) -> Result<Session, HsmError> {
    let slot = find_slot(life, token)?;
    let session = Session::open(life, slot, &Gauge::noop()).map_err(unavailable)?;
    session.log_in(pin).map_err(unavailable)?;
    Ok(session)
}

fn on_token(life: &Arc<Life>, token: &TokenUri, pin: &SecretString) -> Result<ClusterIdentity, HsmError> {
    let session = log_in(life, token, pin)?;
    refuse_used_token(&session)?;
    let mut made = Vec::new();
    let result = make(&session, &mut made).map_err(|failure| HsmError::Device(failure.to_string()));
    if result.is_err() {
        // Nothing half made stays, so that the ceremony can be held again.
        for handle in made {
            if let Err(failure) = session.destroy(handle) {
                tracing::warn!("an object of the failed ceremony stays on the token: {failure}");
            }
        }
    }
    result
}

pub(super) fn find_slot(life: &Life, token: &TokenUri) -> Result<cryptoki_sys::CK_SLOT_ID, HsmError> {
    for slot in session::slots(life).map_err(unavailable)? {
        let info = session::token_info(life, slot).map_err(unavailable)?;
        if info.label == token.label && info.serial == token.serial {
            return Ok(slot);
        }
    }
    Err(HsmError::Unavailable(format!("the module has no token {token}")))
}

pub(super) fn refuse_used_token(session: &Session) -> Result<(), HsmError> {
    for label in CEREMONY_LABELS.into_iter().chain([keys::KEY_LABEL]) {
        for class in [CKO_SECRET_KEY, CKO_PRIVATE_KEY] {
            if !session.find(&keys::search_label(class, label)).map_err(unavailable)?.is_empty() {
                return Err(HsmError::Unsupported(format!(
                    "the token has a {label} already: it belongs to a cluster; where that was a ceremony that did \
                     not end, initialise the token again"
                )));
            }
        }
    }
    Ok(())
}

/// Makes all keys; `made` are the token objects so far.
fn make(session: &Session, made: &mut Vec<Handle>) -> Result<ClusterIdentity, Failure> {
    let id = BackingId::random()?;
    let wrapping_key = keys::make_wrapping_key(session, id)?;
    made.push(wrapping_key);
    let (test_key, test_check) = make_test_key(session, wrapping_key)?;
    let mut resident = |material, usage, label| -> Result<_, Failure> {
        let id = BackingId::random()?;
        let (blob, public_key) = keys::make_wrapped(session, wrapping_key, material, usage)?;
        let form = Form::Resident { id, label };
        made.push(keys::unwrap(session, wrapping_key, &blob, material, usage, form)?);
        Ok((SystemKey { id, blob: blob.into() }, public_key))
    };
    let (mac_key, _) = resident(Material::Generic(32), Use::Mac, keys::MAC_KEY_LABEL)?;
    let (head_key, head_public_key) = resident(Material::Ec(Curve::P256), Use::Sign, keys::HEAD_KEY_LABEL)?;
    let head_public_key =
        head_public_key.ok_or_else(|| HsmError::Device("the head key has no public key".to_owned()))?;
    Ok(ClusterIdentity {
        wrapping_key: id,
        test_key,
        test_check,
        mac_key,
        head_key,
        head_public_key: head_public_key.into(),
    })
}

fn make_test_key(session: &Session, wrapping_key: Handle) -> Result<(Blob, Blob), Failure> {
    let material = Material::Generic(32);
    let (blob, _) = keys::make_wrapped(session, wrapping_key, material, Use::Mac)?;
    let key = keys::unwrap(session, wrapping_key, &blob, material, Use::Mac, Form::Loaded)?;
    let check = mechanism::mac(session, key, Hash::Sha256, ClusterIdentity::TEST_TEXT);
    session.destroy(key)?;
    Ok((blob.into(), check?.into()))
}

pub(super) fn unavailable(failure: Failure) -> HsmError {
    HsmError::Unavailable(failure.to_string())
}
