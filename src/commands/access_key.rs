//! An access key of the AWS protocol, made from random bytes.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use base64::Engine as _;
use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

use crate::pki;

/// The file of the id in a folder that [`AccessKey::write`] has written.
const ID_FILE: &str = "access-key-id";
/// The file of the secret there.
pub const SECRET_FILE: &str = "secret-access-key";

/// An id and its secret.
#[derive(Debug, Clone)]
pub struct AccessKey {
    /// `AKIA…`, twenty letters and digits.
    pub id: String,
    /// Forty characters of base64.
    pub secret: SecretString,
}

impl AccessKey {
    /// Makes one.
    pub fn new() -> anyhow::Result<AccessKey> {
        const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        let letter = |byte: &u8| LETTERS.get(usize::from(byte % 32)).copied().map(char::from);
        let id = "AKIA".chars().chain(random::<16>()?.iter().filter_map(letter)).collect();
        let secret = base64::engine::general_purpose::STANDARD.encode(*random::<30>()?);
        Ok(AccessKey { id, secret: SecretString::from(secret) })
    }

    /// Writes it into a folder that has none yet.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        pki::write_new(&folder.join(ID_FILE), self.id.as_bytes(), 0o600)?;
        pki::write_new(&folder.join(SECRET_FILE), self.secret.expose_secret().as_bytes(), 0o600)?;
        Ok(())
    }

    /// Reads it from there.
    pub fn read(folder: &Path) -> anyhow::Result<AccessKey> {
        let read = |name| {
            let file = folder.join(name);
            fs::read_to_string(&file).with_context(|| file.display().to_string())
        };
        let secret = Zeroizing::new(read(SECRET_FILE)?);
        Ok(AccessKey { id: read(ID_FILE)?, secret: SecretString::from(secret.as_str()) })
    }
}

fn random<const BYTES: usize>() -> anyhow::Result<Zeroizing<[u8; BYTES]>> {
    let mut bytes = Zeroizing::new([0; BYTES]);
    aws_lc_rs::rand::fill(&mut *bytes).map_err(|_| anyhow::anyhow!("no random bytes for an access key"))?;
    Ok(bytes)
}
