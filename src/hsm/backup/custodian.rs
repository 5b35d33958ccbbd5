//! A custodian's part of a restore, done where there is neither daemon nor HSM.

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rsa::{OaepPrivateDecryptingKey, PrivateDecryptingKey};
use pkcs8::{EncryptedPrivateKeyInfoRef, SecretDocument};
use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

use super::file::{Backup, Contribution, Fingerprint, Request, RsaPublicKey, algorithm};
use super::{BackupError, refused};

/// Bytes of a one-time key.
const KEY_BYTES: usize = 32;

/// A custodian's private key.
pub struct PrivateKey {
    key: PrivateDecryptingKey,
    public_key: RsaPublicKey,
}

impl PrivateKey {
    /// Reads PEM: `PRIVATE KEY`, or `ENCRYPTED PRIVATE KEY` (PBES2) for which
    /// `passphrase` is asked.
    ///
    /// # Errors
    /// [`BackupError::Refused`], which says what can be read; or what
    /// `passphrase` says.
    pub fn from_pem(
        pem: &str,
        passphrase: impl FnOnce() -> Result<SecretString, BackupError>,
    ) -> Result<PrivateKey, BackupError> {
        let (label, document) = SecretDocument::from_pem(pem).map_err(|_| refused("it is no PEM"))?;
        let document = match label {
            "PRIVATE KEY" => document,
            "ENCRYPTED PRIVATE KEY" => EncryptedPrivateKeyInfoRef::try_from(document.as_bytes())
                .map_err(|_| refused("its encryption is not known here: openssl pkcs8 -topk8 -scrypt"))?
                .decrypt(passphrase()?.expose_secret())
                .map_err(|_| refused("the passphrase does not open it"))?,
            other => {
                return Err(refused(format!(
                    "it is a {other}: openssl pkcs8 -topk8 makes a PRIVATE KEY of it"
                )));
            }
        };
        let key = PrivateDecryptingKey::from_pkcs8(document.as_bytes())
            .map_err(|_| refused("it is no RSA private key"))?;
        let public_key = key.public_key().as_der().map_err(|_| refused("it is no RSA private key"))?;
        let public_key = RsaPublicKey::from_der(public_key.as_ref())?;
        Ok(PrivateKey { key, public_key })
    }
}

/// Re-encrypts the one-time key of whoever `key` belongs to, to the new HSM that
/// `request` is from. `fingerprint` is the request's, as the custodian heard it
/// from those who stand before that HSM: without it anybody could ask.
///
/// # Errors
/// [`BackupError::Refused`] where they do not belong together.
pub fn contribute(
    backup: &Backup,
    request: &Request,
    fingerprint: Fingerprint,
    key: &PrivateKey,
) -> Result<Contribution, BackupError> {
    if request.fingerprint()? != fingerprint {
        return Err(refused(
            "the request has another fingerprint than the one you were told: it is not the new HSM's, or was changed",
        ));
    }
    if request.backup != backup.fingerprint()? {
        return Err(refused("the request is for another backup"));
    }
    let custodian = backup
        .custodians
        .iter()
        .find(|custodian| custodian.public_key == key.public_key)
        .ok_or_else(|| refused("the key is of none of the backup's custodians"))?;
    let one_time_key = decrypt(key, custodian)?;
    Ok(Contribution {
        request: fingerprint,
        custodian: custodian.name.clone(),
        wrapped_key: request.public_key.encrypt(request.hash, &one_time_key)?,
    })
}

fn decrypt(key: &PrivateKey, custodian: &super::Custodian) -> Result<Zeroizing<Vec<u8>>, BackupError> {
    let failed = || refused("the private key does not open what the backup has for it");
    let private = OaepPrivateDecryptingKey::new(key.key.clone()).map_err(|_| failed())?;
    let mut plain = Zeroizing::new(vec![0; private.min_output_size()]);
    let wrapped = &custodian.wrapped_key;
    let one_time_key = private
        .decrypt(algorithm(wrapped.hash)?, &wrapped.ciphertext.0, &mut plain, None)
        .map_err(|_| failed())?;
    if one_time_key.len() != KEY_BYTES {
        return Err(failed());
    }
    Ok(Zeroizing::new(one_time_key.to_vec()))
}
