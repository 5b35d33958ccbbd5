//! A cluster's wrapping key on its way from one HSM to another, never in the
//! clear: it leaves only under a public key that the security officer marked
//! TRUSTED.
//!
//! ```text
//! target: makes an RSA pair ── public key ──→ source: the SO imports it, TRUSTED
//! target: unwraps under its private key ←── RSA-OAEP ── source: the user wraps under it
//! ```

use std::sync::Arc;

use cryptoki_sys::*;
use metrics::Gauge;
use secrecy::SecretString;

use super::ceremony::{find_slot, refuse_used_token, unavailable};
use super::ckr::Failure;
use super::keys;
use super::module::Life;
use super::modules::Modules;
use super::session::{Handle, Mechanism, Session, Template};
use super::{BackingId, Hash, HsmError, TokenUri};

/// Modulus of the pair that a target makes.
const TRANSPORT_KEY_BITS: CK_ULONG = 3072;

/// CKA_LABEL of public keys that the security officer approves.
const TRANSPORT_KEY_LABEL: &str = "strongroom transport key";

/// The hash of OAEP that every HSM has; SoftHSM2 has no other.
const OAEP_HASH: Hash = Hash::Sha1;

/// A token, and how to log in to it as the crypto user.
#[derive(Debug, Clone)]
pub struct TokenAccess {
    /// A name of the configuration.
    pub module: String,
    /// The token.
    pub token: TokenUri,
    /// The crypto user's PIN.
    pub pin: SecretString,
}

/// Brings the wrapping key of `source`'s cluster to `target`, an initialised
/// token without keys of ours: it can then be registered as a member, and gets
/// all else from the store. The security officer of `source` approves by
/// `so_pin`. Blocks.
///
/// `modules` must not have members that serve, as tokens are logged out: it is
/// another process's, or another [`Modules`] of the same configuration.
///
/// Errors: [`HsmError::Unavailable`] where a token is not there or a PIN is
/// wrong, [`HsmError::Unsupported`] where the target has keys of ours already
/// or the source has none, [`HsmError::Device`] where an HSM fails.
pub fn bring_wrapping_key(
    modules: &Modules,
    source: &TokenAccess,
    so_pin: &SecretString,
    target: &TokenAccess,
) -> Result<BackingId, HsmError> {
    let target = Open::new(modules, target)?;
    target.log_in()?;
    refuse_used_token(&target.session)?;
    let pair = make_transport_pair(&target.session).map_err(device)?;
    let source = Open::new(modules, source)?;
    let trusted = source.import_trusted(so_pin, std::slice::from_ref(&pair.public))?;
    source.log_in()?;
    let wrapped = source.wrap_out(&trusted);
    source.remove(&trusted)?;
    let (id, blob) = wrapped?;
    target
        .session
        .unwrap(Mechanism::Oaep(OAEP_HASH), pair.private, &blob, &keys::wrapping_key_template(id))
        .map_err(device)?;
    Ok(id)
}

/// An RSA public key.
#[derive(Debug, Clone)]
struct PublicKey {
    modulus: Vec<u8>,
    exponent: Vec<u8>,
}

struct Pair {
    public: PublicKey,
    private: Handle,
}

/// A session on a token; the process is logged out of it at the end.
struct Open<'a> {
    access: &'a TokenAccess,
    session: Session,
    _life: Arc<Life>,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        // Where nobody was logged in that is what it says.
        let _ = self.session.log_out();
    }
}

impl<'a> Open<'a> {
    fn new(modules: &Modules, access: &'a TokenAccess) -> Result<Self, HsmError> {
        let life = modules.get(&access.module)?.life()?;
        let slot = find_slot(&life, &access.token)?;
        let session = Session::open(&life, slot, &Gauge::noop()).map_err(unavailable)?;
        Ok(Open { access, session, _life: life })
    }

    fn log_in(&self) -> Result<(), HsmError> {
        self.session.log_in(&self.access.pin).map_err(unavailable)
    }

    /// Has the security officer import public keys as TRUSTED, so that keys
    /// which leave under such only may leave under them.
    fn import_trusted(&self, so_pin: &SecretString, keys: &[PublicKey]) -> Result<Vec<BackingId>, HsmError> {
        self.session.log_in_so(so_pin).map_err(unavailable)?;
        let imported = keys
            .iter()
            .map(|key| {
                let id = BackingId::random()?;
                self.session.create(&trusted_template(id, key)).map_err(device)?;
                Ok(id)
            })
            .collect();
        self.session.log_out().map_err(unavailable)?;
        imported
    }

    /// The wrapping key's id, and it under the first of the trusted keys.
    fn wrap_out(&self, trusted: &[BackingId]) -> Result<(BackingId, Vec<u8>), HsmError> {
        let (id, key) = self.wrapping_key()?;
        let under = trusted.first().ok_or_else(|| HsmError::Device("no key was imported".to_owned()))?;
        let blob =
            self.session.wrap(Mechanism::Oaep(OAEP_HASH), self.public_key(*under)?, key).map_err(device)?;
        Ok((id, blob))
    }

    /// The one wrapping key of the token.
    fn wrapping_key(&self) -> Result<(BackingId, Handle), HsmError> {
        let search = keys::search_label(CKO_SECRET_KEY, keys::WRAPPING_KEY_LABEL);
        let found = self.session.find(&search).map_err(unavailable)?;
        let [key] = found.as_slice() else {
            return Err(HsmError::Unsupported(format!(
                "{} has {} wrapping keys: it is no member of a cluster",
                self.access.token,
                found.len()
            )));
        };
        let id = self.session.attribute(*key, CKA_ID).map_err(device)?;
        let id =
            id.as_slice().try_into().map_err(|_| HsmError::Device("its CKA_ID is not ours".to_owned()))?;
        Ok((BackingId(id), *key))
    }

    fn public_key(&self, id: BackingId) -> Result<Handle, HsmError> {
        let search =
            Template::default().number(CKA_CLASS, CKO_PUBLIC_KEY).flag(CKA_TOKEN, true).bytes(CKA_ID, &id.0);
        let found = self.session.find(&search).map_err(unavailable)?;
        found.first().copied().ok_or_else(|| HsmError::Device("an imported key is not there".to_owned()))
    }

    /// Removes imported public keys: an approval is for once.
    fn remove(&self, trusted: &[BackingId]) -> Result<(), HsmError> {
        for id in trusted {
            self.session.destroy(self.public_key(*id)?).map_err(device)?;
        }
        Ok(())
    }
}

fn trusted_template(id: BackingId, key: &PublicKey) -> Template {
    Template::default()
        .number(CKA_CLASS, CKO_PUBLIC_KEY)
        .number(CKA_KEY_TYPE, CKK_RSA)
        .flag(CKA_TOKEN, true)
        .flag(CKA_PRIVATE, false)
        .flag(CKA_TRUSTED, true)
        .flag(CKA_WRAP, true)
        .flag(CKA_ENCRYPT, false)
        .flag(CKA_VERIFY, false)
        .bytes(CKA_MODULUS, &key.modulus)
        .bytes(CKA_PUBLIC_EXPONENT, &key.exponent)
        .bytes(CKA_ID, &id.0)
        .bytes(CKA_LABEL, TRANSPORT_KEY_LABEL.as_bytes())
}

/// A pair of which the private half can do nothing but unwrap, and goes with
/// the session.
fn make_transport_pair(session: &Session) -> Result<Pair, Failure> {
    let public = Template::default()
        .number(CKA_CLASS, CKO_PUBLIC_KEY)
        .number(CKA_KEY_TYPE, CKK_RSA)
        .flag(CKA_TOKEN, false)
        .flag(CKA_PRIVATE, false)
        .flag(CKA_ENCRYPT, false)
        .flag(CKA_VERIFY, false)
        .flag(CKA_WRAP, true)
        .number(CKA_MODULUS_BITS, TRANSPORT_KEY_BITS)
        .bytes(CKA_PUBLIC_EXPONENT, &[1, 0, 1]);
    let private = Template::default()
        .number(CKA_CLASS, CKO_PRIVATE_KEY)
        .number(CKA_KEY_TYPE, CKK_RSA)
        .flag(CKA_TOKEN, false)
        .flag(CKA_PRIVATE, true)
        .flag(CKA_SENSITIVE, true)
        .flag(CKA_EXTRACTABLE, false)
        .flag(CKA_DECRYPT, false)
        .flag(CKA_SIGN, false)
        .flag(CKA_DERIVE, false)
        .flag(CKA_UNWRAP, true);
    let (public, private) =
        session.generate_pair(Mechanism::Plain(CKM_RSA_PKCS_KEY_PAIR_GEN), &public, &private)?;
    let modulus = session.attribute(public, CKA_MODULUS)?.to_vec();
    let exponent = session.attribute(public, CKA_PUBLIC_EXPONENT)?.to_vec();
    Ok(Pair { public: PublicKey { modulus, exponent }, private })
}

fn device(failure: Failure) -> HsmError {
    HsmError::Device(failure.to_string())
}
