//! Grants: loaded by key and grantee, and named by tokens.
//!
//! A grant token is text that names a grant, with a MAC by the HSM: who has one
//! was given it by CreateGrant. It is stored nowhere.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::time::Instant;

use super::{Held, Registry, from_hsm, from_store};
use crate::error::{Error, Exception, Result};
use crate::hsm::{BackingId, Hash};
use crate::key::{self, grant};
use crate::policy;
use crate::store::{Kind, RowId};

/// Grants that are read at a time.
const PAGE: u32 = 500;
/// SHA-256.
const MAC_BYTES: usize = 32;
/// Keeps a token's MAC apart from every row's.
const TOKEN_DOMAIN: &str = "strongroom grant token 1";

/// A grant, ready for use.
#[derive(Debug)]
pub struct LoadedGrant {
    /// Its row.
    pub held: Held<key::Grant>,
    /// The same, ready to be evaluated.
    pub grant: policy::Grant,
}

impl Registry {
    /// The grants of a key for one grantee.
    pub async fn grants(
        &self,
        key: &RowId,
        grantee: &str,
        deadline: Instant,
    ) -> Result<Arc<Vec<Arc<LoadedGrant>>>> {
        let group = RowId { kind: Kind::Grant, id: grant::group(&key.id, grantee), ..key.clone() };
        self.group(group, deadline).await
    }

    /// A key's grant by its id.
    pub async fn grant(&self, key: &RowId, id: &str, deadline: Instant) -> Result<Option<Arc<LoadedGrant>>> {
        let Some(group) = grant::group_of(id) else { return Ok(None) };
        let group = RowId { kind: Kind::Grant, id: group.to_owned(), ..key.clone() };
        let of_key = |grant: &&Arc<LoadedGrant>| grant.held.id.id == id && grant.held.value.key_id == key.id;
        Ok(self.group(group, deadline).await?.iter().find(of_key).cloned())
    }

    /// A new token of a grant; no two are the same.
    pub async fn new_token(&self, grant: &RowId, deadline: Instant) -> Result<String> {
        let nonce = BackingId::random().map_err(from_hsm)?;
        let mut token = format!("{}\n{}\n{}\n{nonce}", grant.region, grant.account, grant.id).into_bytes();
        let mac = self.token_mac(&token, deadline).await?;
        token.extend_from_slice(&mac);
        Ok(URL_SAFE_NO_PAD.encode(token))
    }

    /// The grant that a token names.
    ///
    /// # Errors
    /// InvalidGrantTokenException for what CreateGrant did not make, or whose
    /// grant has ended.
    pub async fn by_token(&self, token: &str, deadline: Instant) -> Result<Arc<LoadedGrant>> {
        let row = match self.tokens.get(token) {
            Some(row) => row,
            None => {
                let row = self.read_token(token, deadline).await?;
                self.tokens.insert(token.to_owned(), row.clone());
                row
            }
        };
        let group = grant::group_of(&row.id).ok_or_else(invalid_token)?;
        let group = RowId { id: group.to_owned(), ..row.clone() };
        let grants = self.group(group, deadline).await?;
        grants.iter().find(|grant| grant.held.id == row).cloned().ok_or_else(invalid_token)
    }

    async fn read_token(&self, token: &str, deadline: Instant) -> Result<RowId> {
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| invalid_token())?;
        let (text, mac) = bytes
            .split_last_chunk::<MAC_BYTES>()
            .filter(|(text, _)| !text.is_empty())
            .ok_or_else(invalid_token)?;
        let expected = self.token_mac(text, deadline).await?;
        aws_lc_rs::constant_time::verify_slices_are_equal(&expected, mac).map_err(|_| invalid_token())?;
        let text = std::str::from_utf8(text).map_err(|_| invalid_token())?;
        let mut parts = text.split('\n').map(str::to_owned);
        match (parts.next(), parts.next(), parts.next()) {
            (Some(region), Some(account), Some(id)) => Ok(RowId { kind: Kind::Grant, region, account, id }),
            _ => Err(invalid_token()),
        }
    }

    async fn token_mac(&self, text: &[u8], deadline: Instant) -> Result<Vec<u8>> {
        let input = [TOKEN_DOMAIN.as_bytes(), b"\n", text].concat();
        self.hsm.mac(&self.mac_key, Hash::Sha256, &input, deadline).await.map_err(from_hsm)
    }

    /// The grants whose ids begin with this one.
    async fn group(&self, group: RowId, deadline: Instant) -> Result<Arc<Vec<Arc<LoadedGrant>>>> {
        if let Some(grants) = self.grants.get(&group) {
            return Ok(grants);
        }
        let before = *self.generation.read();
        let mut grants: Vec<Arc<LoadedGrant>> = Vec::new();
        loop {
            let after = grants.last().map_or(group.id.as_str(), |last| last.held.id.id.as_str());
            let rows = self.store.rows(Kind::Grant, &group.region, &group.account, None, Some(after), PAGE);
            let rows = rows.await.map_err(from_store)?;
            let full = rows.len() == PAGE as usize;
            let ours =
                rows.into_iter().take_while(|row| row.id.id.starts_with(&group.id)).collect::<Vec<_>>();
            let more = full && ours.len() == PAGE as usize;
            for held in self.open_all(ours, deadline).await? {
                grants.push(Arc::new(load(held)?));
            }
            if !more {
                break;
            }
        }
        let grants = Arc::new(grants);
        if *self.generation.read() == before {
            self.grants.insert(group, grants.clone());
        }
        Ok(grants)
    }
}

fn load(held: Held<key::Grant>) -> Result<LoadedGrant> {
    let grant = policy::Grant::new(held.id.id.clone(), held.value.terms.clone());
    let grant =
        grant.ok_or_else(|| Error::internal(format!("the grantee of {} is no principal", held.id)))?;
    Ok(LoadedGrant { held, grant })
}

fn invalid_token() -> Error {
    Error::new(Exception::InvalidGrantToken, "The grant token is not valid: no grant has it.")
}
