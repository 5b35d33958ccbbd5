//! A backup of a cluster's wrapping key in the hands of several people: any M of
//! N custodians bring it to a new HSM, fewer do not, and it is in the clear
//! nowhere.
//!
//! ```text
//! old HSM:   a one-time AES key per custodian
//!            RSA-OAEP(custodian's public key, their one-time key)         N of these
//!            AES-GCM(key c, AES-GCM(key b, RFC 5649(key a, wrapping key)))
//!                                                     one for each M custodians
//! new HSM:   makes an RSA pair ── request ──→ each custodian
//! custodian: RSA-OAEP(new HSM's public key, their one-time key)     contribution
//! new HSM:   unwraps M one-time keys, takes the layers off, unwraps the wrapping key
//! ```
//!
//! A custodian sees their own one-time key and nothing else. The files are for
//! anybody's eyes: the backup is signed by the cluster's head key, a request is
//! known by its fingerprint, and a contribution is of use to one request only.

pub mod custodian;
mod file;
mod make;
mod restore;

pub use file::{
    Backup, CUSTODIANS_MAX, Contribution, Custodian, Fingerprint, Request, RsaPublicKey, THRESHOLD_MIN,
};
pub(super) use make::one_time_key;
pub use make::{Plan, back_up};
pub use restore::{SealedRow, request_restore, restore};

use super::HsmError;

/// Why a step of the ceremony was not done. No text holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A file is not what it should be, or was changed.
    #[error("{0}")]
    File(String),
    /// The step does not fit what was given.
    #[error("{0}")]
    Refused(String),
    /// The HSM did not do it.
    #[error(transparent)]
    Hsm(#[from] HsmError),
}

fn refused(reason: impl Into<String>) -> BackupError {
    BackupError::Refused(reason.into())
}
