//! The crypto user's PIN of a custom key store: under a key of the
//! installation's cluster, which is made for this and nothing else, and in the
//! clear only while a connection is made.

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::rows::SealedPassword;
use crate::app::App;
use crate::error::{Error, Result};
use crate::hsm::{BackingId, Blob, Home, KeyRef, Material, Use};
use crate::operation::Call;
use crate::registry::{Draft, Held, Stored, from_hsm, from_store};
use crate::store::{Kind, RowId};

/// The row of the key that seals PINs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PasswordKey {
    id: BackingId,
    by: BackingId,
    blob: Blob,
}

impl Stored for PasswordKey {
    const KIND: Kind = Kind::System;
}

impl PasswordKey {
    fn key(&self) -> KeyRef {
        let home = Home::Wrapped { by: self.by, blob: self.blob.0.clone() };
        KeyRef { id: self.id, material: Material::Aes256, usage: Use::Encrypt, home }
    }
}

/// Seals a PIN for the row of its key store. The first one makes the key, which
/// becomes durable with the call.
pub async fn seal(call: &mut Call, row: &RowId, password: &SecretString) -> Result<SealedPassword> {
    let key = match key(&call.app, call.deadline).await? {
        Some(key) => key,
        None => make_key(call).await?,
    };
    let cluster = call.app.key_stores.installation();
    let plaintext = password.expose_secret().as_bytes();
    let sealed = cluster.encrypt_gcm(&key, &aad(row), plaintext, call.deadline).await.map_err(from_hsm)?;
    Ok(SealedPassword { iv: sealed.iv.to_vec().into(), ciphertext: sealed.ciphertext.into() })
}

/// Opens a PIN for a connection.
pub async fn unseal(
    app: &App,
    row: &RowId,
    sealed: &SealedPassword,
    deadline: Instant,
) -> Result<SecretString> {
    let unreadable = || Error::internal(format!("the password of {row} cannot be read"));
    let key = key(app, deadline).await?.ok_or_else(unreadable)?;
    let iv: [u8; 12] = sealed.iv.0.as_ref().try_into().map_err(|_| unreadable())?;
    let cluster = app.key_stores.installation();
    let opened =
        cluster.decrypt_gcm(&key, iv, &aad(row), &sealed.ciphertext.0, deadline).await.map_err(from_hsm)?;
    let text = std::str::from_utf8(&opened).map_err(|_| unreadable())?;
    Ok(SecretString::from(text))
}

/// What binds a PIN to its key store.
fn aad(row: &RowId) -> Vec<u8> {
    format!("strongroom key store password 1\n{row}").into_bytes()
}

async fn key(app: &App, deadline: Instant) -> Result<Option<KeyRef>> {
    let Some(row) = app.store.row(&row_id()).await.map_err(from_store)? else { return Ok(None) };
    let held: Held<PasswordKey> = app.registry.open(row, deadline).await?;
    Ok(Some(held.value.key()))
}

/// Where two calls make it at once, one of them conflicts and runs again.
async fn make_key(call: &mut Call) -> Result<KeyRef> {
    let id = BackingId::random().map_err(from_hsm)?;
    let cluster = call.app.key_stores.installation();
    let made = cluster.generate(id, Material::Aes256, Use::Encrypt, call.deadline).await.map_err(from_hsm)?;
    let Home::Wrapped { by, blob } = made.key.home else {
        return Err(Error::internal("the key of the passwords was not wrapped"));
    };
    let value = PasswordKey { id, by, blob: Blob(blob) };
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
