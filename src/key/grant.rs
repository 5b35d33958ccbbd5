//! Grants as rows, and their ids.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::policy::Terms;

/// Characters of a GrantId, which are hex.
const ID_CHARS: usize = 64;
/// Of these, the ones that follow from key and grantee.
const GROUP_CHARS: usize = 16;

/// A grant. Its Region and account are its key's, its GrantId is the row's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The KMS key's id.
    pub key_id: String,
    /// What it says.
    pub terms: Terms,
    /// Who may end it: an ARN, or a service's name.
    pub retiring: Option<String>,
    /// Name.
    pub name: Option<String>,
    /// IssuingAccount: the root ARN of the account that made it.
    pub issuing_account: String,
    /// CreationDate, milliseconds since the epoch.
    pub created_ms: i64,
}

impl Grant {
    /// The GrantId of a grant that is to be made. One with a name has the same id
    /// as every grant of the same name and contents: it is made once. One
    /// without a name gets `random`.
    pub fn new_id(&self, random: &[u8; 32]) -> String {
        let rest = match &self.name {
            None => hex::encode(random),
            Some(name) => {
                let contents = (&self.terms, &self.retiring, name, &self.issuing_account);
                // Maps and sets of text are always JSON, in the order of their keys.
                hex::encode(Sha256::digest(serde_json::to_vec(&contents).unwrap_or_default()))
            }
        };
        group(&self.key_id, &self.terms.grantee) + rest.get(..ID_CHARS - GROUP_CHARS).unwrap_or_default()
    }
}

/// What the GrantIds of a key and a grantee begin with, so that all of them are
/// found together.
pub fn group(key_id: &str, grantee: &str) -> String {
    let mut hash = hex::encode(Sha256::digest(format!("strongroom grants 1\n{key_id}\n{grantee}")));
    hash.truncate(GROUP_CHARS);
    hash
}

/// The group of a GrantId; None for what is none.
pub fn group_of(grant_id: &str) -> Option<&str> {
    let is_id = grant_id.len() == ID_CHARS && grant_id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_id { grant_id.get(..GROUP_CHARS) } else { None }
}
