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

/// CKA_LABEL of the keys that wrapping keys travel under.
pub(super) const TRANSPORT_KEY_LABEL: &str = "strongroom transport key";

/// The hash of OAEP that every HSM has; SoftHSM2 has no other.
pub(super) const OAEP_HASH: Hash = Hash::Sha1;

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
    let approved = BackingId::random()?;
    let pair = make_transport_pair(&target.session, Place::Session, approved, keys::unwraps_closed());
    let pair = pair.map_err(device)?;
    let source = Open::new(modules, source)?;
    // An approval is for once: it goes with the session.
    source.approve(so_pin, |session| {
        session.create(&trusted_template(Place::Session, approved, &pair.public)).map(drop)
    })?;
    source.log_in()?;
    let (id, key) = source.wrapping_key()?;
    let under = source.one(&search(CKO_PUBLIC_KEY, Place::Session, approved))?;
    let blob = source.session.wrap(Mechanism::Oaep(OAEP_HASH), under, key).map_err(device)?;
    target
        .session
        .unwrap(Mechanism::Oaep(OAEP_HASH), pair.private, &blob, &keys::wrapping_key_template(id))
        .map_err(device)?;
    Ok(id)
}

/// An RSA public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PublicKey {
    pub(super) modulus: Vec<u8>,
    pub(super) exponent: Vec<u8>,
}

/// A pair that keys are brought under.
pub(super) struct Pair {
    pub(super) public: PublicKey,
    pub(super) private: Handle,
}

/// Where a key of a ceremony is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// It goes with the session.
    Session,
    /// It stays in the token.
    Token,
}

/// A session on a token; the process is logged out of it at the end.
pub(super) struct Open<'a> {
    pub(super) access: &'a TokenAccess,
    pub(super) session: Session,
    _life: Arc<Life>,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        // Where nobody was logged in that is what it says.
        let _ = self.session.log_out();
    }
}

impl<'a> Open<'a> {
    pub(super) fn new(modules: &Modules, access: &'a TokenAccess) -> Result<Self, HsmError> {
        let life = modules.get(&access.module)?.life()?;
        let slot = find_slot(&life, &access.token)?;
        let session = Session::open(&life, slot, &Gauge::noop()).map_err(unavailable)?;
        Ok(Open { access, session, _life: life })
    }

    pub(super) fn log_in(&self) -> Result<(), HsmError> {
        self.session.log_in(&self.access.pin).map_err(unavailable)
    }

    /// Does in the name of the security officer what only they can: marking keys
    /// TRUSTED, under which keys leave that leave under no other.
    ///
    /// Public session objects that are made here outlive the officer's login;
    /// handles of them may not.
    pub(super) fn approve(
        &self,
        so_pin: &SecretString,
        what: impl FnOnce(&Session) -> Result<(), Failure>,
    ) -> Result<(), HsmError> {
        self.session.log_in_so(so_pin).map_err(unavailable)?;
        let done = what(&self.session).map_err(device);
        let logged_out = self.session.log_out().map_err(unavailable);
        done.and(logged_out)
    }

    /// The one wrapping key of the token.
    pub(super) fn wrapping_key(&self) -> Result<(BackingId, Handle), HsmError> {
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

    /// The one object that a search finds.
    pub(super) fn one(&self, search: &Template) -> Result<Handle, HsmError> {
        match self.session.find(search).map_err(unavailable)?.as_slice() {
            [one] => Ok(*one),
            found => Err(HsmError::Device(format!("{} keys are where one was made", found.len()))),
        }
    }
}

/// What finds a key of a ceremony by its CKA_ID.
pub(super) fn search(class: CK_OBJECT_CLASS, place: Place, id: BackingId) -> Template {
    Template::default().number(CKA_CLASS, class).flag(CKA_TOKEN, place == Place::Token).bytes(CKA_ID, &id.0)
}

/// The attributes of a public key that the security officer marks TRUSTED.
pub(super) fn trusted_template(place: Place, id: BackingId, key: &PublicKey) -> Template {
    Template::default()
        .number(CKA_CLASS, CKO_PUBLIC_KEY)
        .number(CKA_KEY_TYPE, CKK_RSA)
        .flag(CKA_TOKEN, place == Place::Token)
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

/// A pair of which the private half can do nothing but unwrap, and that to
/// nothing but what `unwrapped` says.
pub(super) fn make_transport_pair(
    session: &Session,
    place: Place,
    id: BackingId,
    unwrapped: Template,
) -> Result<Pair, Failure> {
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
        .flag(CKA_TOKEN, place == Place::Token)
        .flag(CKA_PRIVATE, true)
        .flag(CKA_SENSITIVE, true)
        .flag(CKA_EXTRACTABLE, false)
        .flag(CKA_DECRYPT, false)
        .flag(CKA_SIGN, false)
        .flag(CKA_DERIVE, false)
        .flag(CKA_UNWRAP, true)
        .nested(CKA_UNWRAP_TEMPLATE, unwrapped)
        .bytes(CKA_ID, &id.0)
        .bytes(CKA_LABEL, TRANSPORT_KEY_LABEL.as_bytes());
    let (public, private) =
        session.generate_pair(Mechanism::Plain(CKM_RSA_PKCS_KEY_PAIR_GEN), &public, &private)?;
    let modulus = session.attribute(public, CKA_MODULUS)?.to_vec();
    let exponent = session.attribute(public, CKA_PUBLIC_EXPONENT)?.to_vec();
    session.destroy(public)?;
    Ok(Pair { public: PublicKey { modulus, exponent }, private })
}

pub(super) fn device(failure: Failure) -> HsmError {
    HsmError::Device(failure.to_string())
}
