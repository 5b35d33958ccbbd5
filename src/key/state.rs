//! The state machine of a key: what may be done in which state.

use crate::error::{Error, Exception, Result};
use crate::proto::kms::KeyState;

/// What an operation asks of a key's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Cryptography, or the public key: the key is enabled.
    Use,
    /// A change of the key itself: it is not about to be deleted.
    Change,
    /// Enabling and disabling: it has its material.
    Switch,
    /// Cancelling a deletion: one is pending.
    PendingDeletion,
}

/// Whether a key in this state may be used so, in KMS's words.
pub fn check(stage: Stage, state: KeyState, arn: &str) -> Result<()> {
    let invalid = |what: &str| Err(Error::new(Exception::KmsInvalidState, format!("{arn} is {what}.")));
    match (stage, state) {
        (Stage::Use | Stage::Change | Stage::Switch, KeyState::Enabled)
        | (Stage::Change | Stage::Switch, KeyState::Disabled)
        | (Stage::Change, KeyState::PendingImport) => Ok(()),
        (Stage::PendingDeletion, KeyState::PendingDeletion | KeyState::PendingReplicaDeletion) => Ok(()),
        (Stage::PendingDeletion, _) => invalid("not pending deletion"),
        (Stage::Use, KeyState::Disabled) => {
            Err(Error::new(Exception::Disabled, format!("{arn} is disabled.")))
        }
        (_, KeyState::PendingDeletion) => invalid("pending deletion"),
        (_, KeyState::PendingReplicaDeletion) => invalid("pending replica deletion"),
        (_, KeyState::PendingImport) => invalid("pending import"),
        (_, KeyState::Creating) => invalid("creating"),
        (_, KeyState::Updating) => invalid("updating"),
        (_, KeyState::Unavailable) => invalid("unavailable"),
        (_, KeyState::Unspecified) => invalid("in no known state"),
    }
}
