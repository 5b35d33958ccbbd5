//! The keys that sign digests: RSA in the HSM, wrapped in the store, one after
//! the other. Their public halves stay for as long as there are digests.

use std::time::Duration;

use der::Decode as _;
use sha2::{Digest as _, Sha256};
use spki::SubjectPublicKeyInfoRef;
use tokio::time::Instant;

use super::rows::DigestKey;
use crate::app::App;
use crate::error::{Error, Result};
use crate::hsm::{BackingId, Hash, KeyRef, Material, Scheme, Use};
use crate::key::{StoredHome, public};
use crate::registry::{Draft, Held, from_hsm, from_store};
use crate::store::{Commit, Kind, RowId};

const MATERIAL: Material = Material::Rsa(2048);
/// The hexadecimal digits of a fingerprint.
const FINGERPRINT_DIGITS: usize = 32;
/// Keys that are read at once, which are all there will ever be.
const KEYS_MAX: u32 = 10_000;
/// Longest that an HSM may take to make a key.
const MAKE_TIMEOUT: Duration = Duration::from_secs(60);

/// Every key, in the order of their times.
///
/// # Errors
/// When the store or the HSM fails.
pub async fn all(app: &App, deadline: Instant) -> Result<Vec<Held<DigestKey>>> {
    let mut keys: Vec<Held<DigestKey>> =
        app.registry.page(&app.region, "", None, None, KEYS_MAX, deadline).await?;
    // A key that was replaced within its first second comes before its successor.
    keys.sort_by_key(|key| (key.value.from_ms, key.value.until_ms));
    Ok(keys)
}

/// The key that signs a digest of this end; made where there is none, or where
/// the last one's time has passed.
///
/// # Errors
/// When the store or the HSM fails.
pub async fn in_force(app: &App, end_ms: i64) -> Result<Held<DigestKey>> {
    let _one_at_a_time = app.trails.making_key.lock().await;
    let deadline = Instant::now() + MAKE_TIMEOUT;
    let now_ms = app.clock.now_ms();
    let mut keys = all(app, deadline).await?;
    if keys.last().is_none_or(|last| last.value.until_ms <= now_ms) {
        let (drafts, made) = next(app, &keys, now_ms, deadline).await?;
        let details = serde_json::json!({ "fingerprint": made.id.id });
        let event = super::status::service_event(app, "CreateDigestKey", details)?;
        let changes = app.registry.seal(&drafts, deadline).await?;
        app.store.commit(Commit { changes, events: vec![event] }).await.map_err(from_store)?;
        keys.push(made);
    }
    let found = keys.iter().find(|key| key.value.from_ms <= end_ms && end_ms < key.value.until_ms);
    found.or(keys.first()).cloned().ok_or_else(|| Error::internal("there is no digest key"))
}

/// The key that comes after these, and the changes that make it so.
///
/// # Errors
/// When the HSM fails.
pub async fn next(
    app: &App,
    keys: &[Held<DigestKey>],
    now_ms: i64,
    deadline: Instant,
) -> Result<(Vec<Draft>, Held<DigestKey>)> {
    let id = BackingId::random().map_err(from_hsm)?;
    let cluster = app.key_stores.installation();
    let made = cluster.generate(id, MATERIAL, Use::Sign, deadline).await.map_err(from_hsm)?;
    let spki =
        made.public_key.ok_or_else(|| Error::internal("the HSM made a key pair without a public key"))?;
    let public_key = pkcs1(&spki)?;
    let home = StoredHome::of(&made.key.home);
    // Digests have whole seconds; the first one's time may have begun already.
    let from_ms = now_ms - now_ms.rem_euclid(1000);
    let lifetime_ms = i64::try_from(app.trails.settings.digest_key_lifetime.as_millis()).unwrap_or(i64::MAX);
    let value = DigestKey {
        id,
        home,
        public_key: public_key.clone().into(),
        from_ms,
        until_ms: from_ms.saturating_add(lifetime_ms),
    };
    let mut drafts = Vec::new();
    if let Some(last) = keys.last().filter(|last| last.value.until_ms > from_ms) {
        drafts.push(Draft::replace(last, &DigestKey { until_ms: from_ms, ..last.value.clone() })?);
    }
    let row = RowId {
        kind: Kind::DigestKey,
        region: app.region.to_string(),
        account: String::new(),
        id: fingerprint(&public_key),
    };
    drafts.push(Draft::insert(row.clone(), &value)?);
    Ok((drafts, Held { id: row, version: 1, value }))
}

/// A signature in hex over the SHA-256 of a text.
///
/// # Errors
/// When the HSM fails.
pub async fn sign(app: &App, key: &DigestKey, message: &str, deadline: Instant) -> Result<String> {
    let home = key.home.home().ok_or_else(|| Error::internal("a digest key that was deleted"))?;
    let reference = KeyRef { id: key.id, material: MATERIAL, usage: Use::Sign, home };
    let digest = public::digest(Hash::Sha256, message.as_bytes());
    let cluster = app.key_stores.installation();
    let scheme = Scheme::RsaPkcs1(Hash::Sha256);
    cluster.sign(&reference, scheme, &digest, deadline).await.map(hex::encode).map_err(from_hsm)
}

/// Whether a signature in hex fits a public key (DER RSAPublicKey).
pub fn verify(public_key: &[u8], message: &str, signature: &str) -> bool {
    use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
    let Ok(signature) = hex::decode(signature) else { return false };
    let key = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public_key);
    key.verify(message.as_bytes(), &signature).is_ok()
}

/// DER RSAPublicKey (RFC 8017, A.1.1) of a SubjectPublicKeyInfo.
fn pkcs1(spki: &[u8]) -> Result<Vec<u8>> {
    let parsed = SubjectPublicKeyInfoRef::from_der(spki).map_err(|error| {
        Error::internal(format!("the HSM made a public key that cannot be read: {error}"))
    })?;
    Ok(parsed.subject_public_key.raw_bytes().to_vec())
}

fn fingerprint(public_key: &[u8]) -> String {
    hex::encode(Sha256::digest(public_key)).chars().take(FINGERPRINT_DIGITS).collect()
}
