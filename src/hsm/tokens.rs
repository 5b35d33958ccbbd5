//! The tokens that a module shows, as an operator looks for one to register.

use cryptoki_sys::*;

use super::ckr::Failure;
use super::module::Life;
use super::modules::Modules;
use super::{HsmError, TokenUri, session};

/// A token in a slot of a module.
#[derive(Debug, Clone)]
pub struct TokenListing {
    /// Its label and serial; the RFC 7512 URI.
    pub uri: TokenUri,
    /// Its model.
    pub model: String,
    /// Its manufacturer.
    pub manufacturer: String,
    /// Its firmware version.
    pub firmware: String,
    /// The names of its flags, without CKF_.
    pub flags: Vec<&'static str>,
    /// Free memory for private objects in bytes, where it tells.
    pub free_private_bytes: Option<u64>,
    /// Sessions of this process, where it tells.
    pub sessions: Option<u64>,
    /// Most sessions, where there is a most.
    pub sessions_max: Option<u64>,
    /// The mechanisms that it lists, by their numbers; whether they work the
    /// self-test of a member says.
    pub mechanisms: Vec<u64>,
}

/// The initialised tokens of a module. Blocks.
///
/// Errors: [`HsmError::Unavailable`] where the library or a slot does not answer.
pub fn list_tokens(modules: &Modules, module: &str) -> Result<Vec<TokenListing>, HsmError> {
    let life = modules.get(module)?.life()?;
    let slots = session::slots(&life).map_err(unavailable)?;
    let mut tokens = Vec::new();
    for slot in slots {
        let info = session::raw_token_info(&life, slot).map_err(unavailable)?;
        if info.flags & CKF_TOKEN_INITIALIZED != 0 {
            tokens.push(listing(&life, slot, &info)?);
        }
    }
    Ok(tokens)
}

fn listing(life: &Life, slot: CK_SLOT_ID, info: &CK_TOKEN_INFO) -> Result<TokenListing, HsmError> {
    let token = session::token_info(life, slot).map_err(unavailable)?;
    let known = |value: CK_ULONG| (value != CK_UNAVAILABLE_INFORMATION).then_some(value);
    let limited = |value: CK_ULONG| known(value).filter(|value| *value != CK_EFFECTIVELY_INFINITE);
    Ok(TokenListing {
        uri: TokenUri { label: token.label, serial: token.serial },
        model: token.model,
        manufacturer: token.manufacturer,
        firmware: token.firmware,
        flags: FLAGS.iter().filter(|(flag, _)| info.flags & flag != 0).map(|(_, name)| *name).collect(),
        free_private_bytes: known(info.ulFreePrivateMemory),
        sessions: known(info.ulSessionCount),
        sessions_max: limited(info.ulMaxSessionCount),
        mechanisms: session::mechanisms(life, slot).map_err(unavailable)?,
    })
}

/// Those that an operator acts on.
const FLAGS: [(CK_FLAGS, &str); 12] = [
    (CKF_RNG, "RNG"),
    (CKF_WRITE_PROTECTED, "WRITE_PROTECTED"),
    (CKF_LOGIN_REQUIRED, "LOGIN_REQUIRED"),
    (CKF_USER_PIN_INITIALIZED, "USER_PIN_INITIALIZED"),
    (CKF_PROTECTED_AUTHENTICATION_PATH, "PROTECTED_AUTHENTICATION_PATH"),
    (CKF_USER_PIN_COUNT_LOW, "USER_PIN_COUNT_LOW"),
    (CKF_USER_PIN_FINAL_TRY, "USER_PIN_FINAL_TRY"),
    (CKF_USER_PIN_LOCKED, "USER_PIN_LOCKED"),
    (CKF_USER_PIN_TO_BE_CHANGED, "USER_PIN_TO_BE_CHANGED"),
    (CKF_SO_PIN_COUNT_LOW, "SO_PIN_COUNT_LOW"),
    (CKF_SO_PIN_LOCKED, "SO_PIN_LOCKED"),
    (CKF_ERROR_STATE, "ERROR_STATE"),
];

fn unavailable(failure: Failure) -> HsmError {
    HsmError::Unavailable(failure.to_string())
}
