//! Secrets that the daemon has to know: the PINs of custom key stores, and access
//! keys. They are in the store under a key of the installation's cluster, which
//! is made for this and nothing else.

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::app::App;
use crate::error::{Error, Result};
use crate::hsm::{BackingId, Blob, Home, KeyRef, Material, Use};
use crate::operation::Call;
use crate::registry::{Draft, Held, Stored, from_hsm, from_store};
use crate::store::{Kind, RowId};

/// A secret under an HSM key of the daemon's own: AES-256-GCM, bound to its row.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sealed {
    /// 12 bytes.
    pub iv: Blob,
    /// Ciphertext, then the 16-byte tag.
    pub ciphertext: Blob,
}

/// The row of the key that seals.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SealingKey {
    id: BackingId,
    by: BackingId,
    blob: Blob,
}

impl Stored for SealingKey {
    const KIND: Kind = Kind::System;
}

impl SealingKey {
    fn key(&self) -> KeyRef {
        let home = Home::Wrapped { by: self.by, blob: self.blob.0.clone() };
        KeyRef { id: self.id, material: Material::Aes256, usage: Use::Encrypt, home }
    }
}

/// Seals a secret for its row. The first one makes the key, which becomes durable
/// with the call.
///
/// # Errors
/// The store's and the HSM's.
pub async fn seal(call: &mut Call, row: &RowId, secret: &SecretString) -> Result<Sealed> {
    let key = match key(&call.app, call.deadline).await? {
        Some(key) => key,
        None => make_key(call).await?,
    };
    let cluster = call.app.key_stores.installation();
    let plaintext = secret.expose_secret().as_bytes();
    let sealed = cluster.encrypt_gcm(&key, &aad(row), plaintext, call.deadline).await.map_err(from_hsm)?;
    Ok(Sealed { iv: sealed.iv.to_vec().into(), ciphertext: sealed.ciphertext.into() })
}

/// Opens the secret of a row.
///
/// # Errors
/// The store's and the HSM's.
pub async fn unseal(app: &App, row: &RowId, sealed: &Sealed, deadline: Instant) -> Result<SecretString> {
    let unreadable = || Error::internal(format!("the secret of {row} cannot be read"));
    let key = key(app, deadline).await?.ok_or_else(unreadable)?;
    let iv: [u8; 12] = sealed.iv.0.as_ref().try_into().map_err(|_| unreadable())?;
    let cluster = app.key_stores.installation();
    let opened =
        cluster.decrypt_gcm(&key, iv, &aad(row), &sealed.ciphertext.0, deadline).await.map_err(from_hsm)?;
    let text = std::str::from_utf8(&opened).map_err(|_| unreadable())?;
    Ok(SecretString::from(text))
}

/// What binds a secret to its row.
fn aad(row: &RowId) -> Vec<u8> {
    let what = match row.kind {
        Kind::KeyStore => "key store password",
        other => other.as_str(),
    };
    format!("strongroom {what} 1\n{row}").into_bytes()
}

async fn key(app: &App, deadline: Instant) -> Result<Option<KeyRef>> {
    let Some(row) = app.store.row(&row_id()).await.map_err(from_store)? else { return Ok(None) };
    let held: Held<SealingKey> = app.registry.open(row, deadline).await?;
    Ok(Some(held.value.key()))
}

/// Where two calls make it at once, one of them conflicts and runs again.
async fn make_key(call: &mut Call) -> Result<KeyRef> {
    let id = BackingId::random().map_err(from_hsm)?;
    let cluster = call.app.key_stores.installation();
    let made = cluster.generate(id, Material::Aes256, Use::Encrypt, call.deadline).await.map_err(from_hsm)?;
    let Home::Wrapped { by, blob } = made.key.home else {
        return Err(Error::internal("the key that seals secrets was not wrapped"));
    };
    let value = SealingKey { id, by, blob: Blob(blob) };
    call.change(Draft::insert(row_id(), &value)?);
    let details = serde_json::json!({ "key": id.to_string() });
    let account = call.app.account.clone();
    call.service_event("CreatePasswordKey", &account, details, None)?;
    Ok(value.key())
}

fn row_id() -> RowId {
    RowId {
        kind: Kind::System,
        region: String::new(),
        account: String::new(),
        id: "key-store-password-key".to_owned(),
    }
}
