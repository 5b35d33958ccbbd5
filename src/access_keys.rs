//! Access keys of the AWS protocol that are sealed in the store: CreateAccessKey
//! makes them, and a request's signature is checked with them from then on.
//!
//! The id tells the account, as AWS's ids do, so that a key's row is found by
//! its id alone. The secret is under an HSM key; it is opened at its first use
//! and kept with the cached row, which every change of the row drops.

use std::sync::Arc;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::app::App;
use crate::caller::Principal;
use crate::error::Result;
use crate::registry::{Held, Stored};
use crate::sealed::{self, Sealed};
use crate::store::{Kind, RowId};

const PREFIX: &str = "AKIA";
/// RFC 4648, base 32.
const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
/// Letters after the prefix, five bits each: the account's number, then the
/// random bits.
const ID_LETTERS: u32 = 16;
const RANDOM_BITS: u32 = 40;

/// An access key. Its account and id (`AKIA…`) are the row's.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AccessKey {
    /// The ARN of the principal that it is of.
    pub principal: String,
    /// Whether it signs anything.
    pub active: bool,
    /// CreateDate, milliseconds since the epoch.
    pub created_ms: i64,
    /// The secret access key.
    pub secret: Sealed,
}

impl Stored for AccessKey {
    const KIND: Kind = Kind::AccessKey;

    fn parent(&self) -> Option<String> {
        Some(self.principal.clone())
    }
}

/// An access key, ready for use.
#[derive(Debug)]
pub struct LoadedAccessKey {
    /// Its row.
    pub held: Held<AccessKey>,
    secret: OnceCell<SecretString>,
}

impl LoadedAccessKey {
    /// One whose secret was not asked for yet.
    pub fn new(held: Held<AccessKey>) -> Self {
        LoadedAccessKey { held, secret: OnceCell::new() }
    }

    async fn secret(&self, app: &App, deadline: Instant) -> Result<&SecretString> {
        let open = || sealed::unseal(app, &self.held.id, &self.held.value.secret, deadline);
        self.secret.get_or_try_init(open).await
    }
}

/// The principal and the secret of an access key that is active, and whose
/// principal the configuration has.
///
/// # Errors
/// The store's and the HSM's.
pub async fn find(app: &App, id: &str, deadline: Instant) -> Result<Option<(Arc<Principal>, SecretString)>> {
    let directory = app.directory.load();
    // Who guesses ids does not get as far as the store.
    let Some(row) = row_of(id).filter(|row| directory.account(&row.account).is_some()) else {
        return Ok(None);
    };
    let Some(key) = app.registry.access_key(&row, deadline).await? else { return Ok(None) };
    let principal = directory.principal(&key.held.value.principal).filter(|_| key.held.value.active);
    match principal {
        Some(principal) => Ok(Some((principal.clone(), key.secret(app, deadline).await?.clone()))),
        None => Ok(None),
    }
}

/// The row of an id, if it has the form of one.
pub fn row_of(id: &str) -> Option<RowId> {
    let letters = id.strip_prefix(PREFIX).filter(|letters| letters.len() == ID_LETTERS as usize)?;
    let bits = letters.bytes().try_fold(0_u128, |bits, letter| {
        let value = LETTERS.iter().position(|known| *known == letter)?;
        Some(bits << 5 | value as u128)
    })?;
    let account = format!("{:012}", bits >> RANDOM_BITS);
    crate::key::arn::is_account_id(&account).then(|| row(account, id.to_owned()))
}

/// The row of a new access key of an account; None where that is no account.
pub fn new_row(account: &str, random: [u8; 5]) -> Option<RowId> {
    let random = random.iter().fold(0_u128, |bits, byte| bits << 8 | u128::from(*byte));
    let bits = account.parse::<u128>().ok()? << RANDOM_BITS | random;
    let letter = |place: u32| LETTERS.get((bits >> (5 * place)) as usize & 31).copied().map(char::from);
    let letters = (0..ID_LETTERS).rev().filter_map(letter);
    Some(row(account.to_owned(), PREFIX.chars().chain(letters).collect()))
}

/// Access keys are an account's, in all Regions.
fn row(account: String, id: String) -> RowId {
    RowId { kind: Kind::AccessKey, region: String::new(), account, id }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_tells_its_account() {
        for account in ["000000000001", "111122223333", "999999999999"] {
            for random in [[0; 5], [0xff; 5], [1, 2, 3, 4, 5]] {
                let row = new_row(account, random).unwrap();
                assert_eq!((row.id.len(), row.account.as_str()), (20, account));
                assert_eq!(row_of(&row.id), Some(row));
            }
        }
        assert_ne!(new_row("111122223333", [0; 5]), new_row("111122223333", [0, 0, 0, 0, 1]));
    }

    #[test]
    fn what_is_no_id_has_no_row() {
        let last = format!("AKIA{}", "7".repeat(16));
        for id in ["", "AKIA", "111122223333", "AKIAIOSFODNN7EXAMPL", "AKIAaaaaaaaaaaaaaaaa", "AKIA1", &last]
        {
            assert_eq!(row_of(id), None, "{id}");
        }
    }
}
