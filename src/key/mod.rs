//! What a KMS key is: pure data and rules, without I/O.

pub mod arn;
mod ciphertext;
pub mod grant;
pub mod public;
mod rows;
pub mod spec;
mod state;

pub use ciphertext::{Ciphertext, Header};
pub use grant::Grant;
pub use rows::{
    Alias, BackingKey, DAY_MS, Deletion, Expiration, Import, ImportParameters, Key, MultiRegion, REGIONS_MAX,
    Rotated, Rotation, StoredHome,
};
pub use state::{Stage, check};

use crate::store::RowId;

/// A key's ARN, from its row.
pub fn arn_of_key(id: &RowId) -> String {
    arn::key_arn(&id.region, &id.account, &id.id)
}

/// The Region in a key's ARN.
pub fn region_of(arn: Option<&str>) -> Option<&str> {
    arn.and_then(arn::Arn::parse).map(|arn| arn.region)
}

/// An alias's ARN, from its row; the name begins with `alias/`.
pub fn arn_of_alias(id: &RowId) -> String {
    arn::alias_arn(&id.region, &id.account, &id.id)
}
