//! Restoring a wrapping key to a new HSM.

use aws_lc_rs::{aead, constant_time};
use cryptoki_sys::*;
use secrecy::SecretString;

use super::file::{Backup, Contribution, OAEP_HASHES, Request, RsaPublicKey};
use super::{BackupError, refused};
use crate::hsm::attachment::check_test_key;
use crate::hsm::ceremony::{refuse_used_token, unavailable};
use crate::hsm::ckr::Failure;
use crate::hsm::keys::{self, Form};
use crate::hsm::modules::Modules;
use crate::hsm::session::{Handle, Mechanism, Session, Template};
use crate::hsm::transport::{
    self, Open, Place, TRANSPORT_KEY_LABEL, TokenAccess, device, make_transport_pair, trusted_template,
};
use crate::hsm::{BackingId, Blob, ClusterIdentity, Hash, HsmError, encode, mechanism};

/// Bytes of a layer's IV.
const IV_BYTES: usize = 12;

/// A row of the store and its MAC by the cluster's key.
#[derive(Debug, Clone)]
pub struct SealedRow {
    /// What the MAC covers.
    pub message: Vec<u8>,
    /// HMAC-SHA-256.
    pub mac: Vec<u8>,
}

/// Makes the key pair in `target`, an initialised token without keys of ours,
/// that custodians encrypt their one-time keys to. Its security officer approves
/// by `so_pin`. What it unwraps is SENSITIVE and unextractable, so the HSM sees
/// to it. A pair of an earlier request is discarded. Blocks.
///
/// # Errors
/// [`BackupError::Refused`] where the token has keys of ours,
/// [`BackupError::Hsm`] where the HSM fails.
pub fn request_restore(
    modules: &Modules,
    target: &TokenAccess,
    so_pin: &SecretString,
    backup: &Backup,
) -> Result<Request, BackupError> {
    let token = Open::new(modules, target)?;
    token.log_in()?;
    let session = &token.session;
    refuse_used_token(session)?;
    discard_transport_keys(session).map_err(device)?;
    let id = BackingId::random()?;
    let unwrapped = Template::default().flag(CKA_SENSITIVE, true).flag(CKA_EXTRACTABLE, false);
    let pair = make_transport_pair(session, Place::Token, id, unwrapped).map_err(device)?;
    let public_key = encode::rsa_public_key(&pair.public.modulus, &pair.public.exponent)?;
    let public_key = RsaPublicKey::from_der(&public_key)?;
    let hash = working_oaep(session, pair.private, &public_key)?;
    session.log_out().map_err(unavailable)?;
    token.approve(so_pin, |session| {
        session.create(&trusted_template(Place::Token, id, &pair.public)).map(drop)
    })?;
    Ok(Request { backup: backup.fingerprint()?, token: target.token.to_string(), id, public_key, hash })
}

/// Brings the wrapping key to `target`, which made `request`, with the
/// contributions of enough custodians. The key must unwrap the cluster's test
/// key, and its MAC key must be the one that sealed `row`; else it does not stay.
/// Blocks.
///
/// # Errors
/// [`BackupError::Refused`] where the parts do not belong together or are too
/// few, [`BackupError::Hsm`] where the HSM fails.
pub fn restore(
    modules: &Modules,
    target: &TokenAccess,
    backup: &Backup,
    request: &Request,
    contributions: &[Contribution],
    row: Option<&SealedRow>,
) -> Result<BackingId, BackupError> {
    let chosen = choose(backup, request, contributions)?;
    let token = Open::new(modules, target)?;
    token.log_in()?;
    let session = &token.session;
    refuse_used_token(session)?;
    let bench = Bench { session, private: approved_pair(&token, request)?, hash: request.hash, backup };
    let wrapping_key = bench.peel(&chosen)?;
    if let Err(reason) = verify(session, wrapping_key, &backup.cluster, row) {
        session.destroy(wrapping_key).map_err(device)?;
        return Err(refused(format!("what was restored is not the cluster's wrapping key: {reason}")));
    }
    discard_transport_keys(session).map_err(device)?;
    Ok(backup.cluster.wrapping_key)
}

/// A contribution and its custodian's place in the backup.
type Chosen<'a> = (usize, &'a Contribution);

/// As many contributions as are needed, in the order of the backup's custodians.
fn choose<'a>(
    backup: &Backup,
    request: &Request,
    contributions: &'a [Contribution],
) -> Result<Vec<Chosen<'a>>, BackupError> {
    if request.backup != backup.fingerprint()? {
        return Err(refused("the request is for another backup"));
    }
    let fingerprint = request.fingerprint()?;
    let mut chosen: Vec<Chosen<'a>> = Vec::with_capacity(contributions.len());
    for contribution in contributions {
        let name = &contribution.custodian;
        if contribution.request != fingerprint {
            return Err(refused(format!("{name}'s contribution is for another request")));
        }
        let place = backup.custodians.iter().position(|custodian| custodian.name == *name);
        let place = place.ok_or_else(|| refused(format!("the backup has no custodian {name:?}")))?;
        if chosen.iter().any(|(other, _)| *other == place) {
            return Err(refused(format!("{name}'s contribution is there twice")));
        }
        chosen.push((place, contribution));
    }
    if chosen.len() < backup.threshold {
        return Err(refused(format!(
            "{} of {} custodians contributed; {} are needed",
            chosen.len(),
            backup.custodians.len(),
            backup.threshold
        )));
    }
    chosen.sort_by_key(|(place, _)| *place);
    chosen.truncate(backup.threshold);
    Ok(chosen)
}

/// The private half of the request's pair, if the security officer approved it.
fn approved_pair(token: &Open<'_>, request: &Request) -> Result<Handle, BackupError> {
    let find =
        |class| token.session.find(&transport::search(class, Place::Token, request.id)).map_err(unavailable);
    let (private, public) = (find(CKO_PRIVATE_KEY)?, find(CKO_PUBLIC_KEY)?);
    let (&[private], &[public]) = (private.as_slice(), public.as_slice()) else {
        return Err(refused(format!(
            "{} did not make this request, or made another since",
            token.access.token
        )));
    };
    let attribute = |attribute| token.session.attribute(public, attribute).map_err(device);
    if attribute(CKA_TRUSTED)?.as_slice() != [CK_TRUE]
        || attribute(CKA_MODULUS)?.as_slice() != request.public_key.modulus
    {
        return Err(refused(
            "the security officer did not approve the request's key: make the request again",
        ));
    }
    Ok(private)
}

struct Bench<'a> {
    session: &'a Session,
    private: Handle,
    hash: Hash,
    backup: &'a Backup,
}

impl Bench<'_> {
    /// Takes the layers off, the last custodian's first: the wrapping key.
    fn peel(&self, chosen: &[Chosen<'_>]) -> Result<Handle, BackupError> {
        let places = chosen.iter().map(|(place, _)| *place);
        let subset =
            self.backup.subsets.iter().find(|subset| subset.custodians.iter().copied().eq(places.clone()));
        let subset = subset.ok_or_else(|| refused("the backup is not for these custodians"))?;
        let (innermost, layers) = chosen.split_first().ok_or_else(|| refused("nobody contributed"))?;
        let mut wrapped = subset.wrapped.0.to_vec();
        for (_, contribution) in layers.iter().rev() {
            wrapped = self.take_off(contribution, &wrapped)?;
        }
        let (_, contribution) = innermost;
        let key = self.one_time_key(contribution, false)?;
        let template = keys::wrapping_key_template(self.backup.cluster.wrapping_key);
        let unwrapped = self.session.unwrap(self.session.key_wrap(), key, &wrapped, &template);
        self.session.destroy(key).map_err(device)?;
        unwrapped.map_err(|failure| does_not_fit(contribution, &failure))
    }

    /// What is inside a layer: still under another key.
    fn take_off(&self, contribution: &Contribution, wrapped: &[u8]) -> Result<Vec<u8>, BackupError> {
        let (iv, ciphertext) = wrapped
            .split_first_chunk::<IV_BYTES>()
            .ok_or_else(|| refused("a layer of the backup is cut off"))?;
        let key = self.one_time_key(contribution, true)?;
        let data = Backup::additional_data(self.backup.id);
        let inner = mechanism::decrypt_gcm(self.session, key, *iv, &data, ciphertext);
        self.session.destroy(key).map_err(device)?;
        Ok(inner.map_err(|failure| does_not_fit(contribution, &failure))?.to_vec())
    }

    fn one_time_key(&self, contribution: &Contribution, layer: bool) -> Result<Handle, BackupError> {
        let (wrapped, template) = (&contribution.wrapped_key.0, one_time_key(layer));
        self.session
            .unwrap(Mechanism::Oaep(self.hash), self.private, wrapped, &template)
            .map_err(|failure| does_not_fit(contribution, &failure))
    }
}

fn does_not_fit(contribution: &Contribution, failure: &Failure) -> BackupError {
    refused(format!(
        "{}'s contribution is not what the backup needs: it is damaged, or its key is another ({failure})",
        contribution.custodian
    ))
}

/// A one-time key on the new HSM: it decrypts a layer, or unwraps the wrapping
/// key, to nothing that can be read; never both.
fn one_time_key(layer: bool) -> Template {
    let template = Template::default()
        .number(CKA_CLASS, CKO_SECRET_KEY)
        .number(CKA_KEY_TYPE, CKK_AES)
        .flag(CKA_TOKEN, false)
        .flag(CKA_PRIVATE, true)
        .flag(CKA_SENSITIVE, true)
        .flag(CKA_EXTRACTABLE, false)
        .flag(CKA_ENCRYPT, false)
        .flag(CKA_DECRYPT, layer)
        .flag(CKA_SIGN, false)
        .flag(CKA_VERIFY, false)
        .flag(CKA_DERIVE, false)
        .flag(CKA_WRAP, false)
        .flag(CKA_UNWRAP, !layer);
    match layer {
        true => template,
        false => template.nested(CKA_UNWRAP_TEMPLATE, keys::unwraps_closed()),
    }
    .flag(CKA_MODIFIABLE, false)
}

/// Whether the key is the cluster's: by its test key, and by a row of the store.
fn verify(
    session: &Session,
    wrapping_key: Handle,
    cluster: &ClusterIdentity,
    row: Option<&SealedRow>,
) -> Result<(), Failure> {
    check_test_key(session, wrapping_key, cluster)?;
    let Some(row) = row else { return Ok(()) };
    let key = cluster.mac_key();
    let blob = &cluster.mac_key.blob.0;
    let handle = keys::unwrap(session, wrapping_key, blob, key.material, key.usage, Form::Loaded)?;
    let mac = mechanism::mac(session, handle, Hash::Sha256, &row.message);
    session.destroy(handle)?;
    constant_time::verify_slices_are_equal(&mac?, &row.mac)
        .map_err(|_| HsmError::Device("the store's row was sealed by another key".to_owned()).into())
}

/// Destroys the pairs of requests: an approval is for once.
fn discard_transport_keys(session: &Session) -> Result<(), Failure> {
    for class in [CKO_PRIVATE_KEY, CKO_PUBLIC_KEY] {
        for handle in session.find(&keys::search_label(class, TRANSPORT_KEY_LABEL))? {
            session.destroy(handle)?;
        }
    }
    Ok(())
}

/// The first hash of OAEP under which the HSM unwraps what software encrypted.
fn working_oaep(session: &Session, private: Handle, public: &RsaPublicKey) -> Result<Hash, BackupError> {
    let mut reasons = Vec::new();
    for hash in OAEP_HASHES {
        match try_oaep(session, private, hash, &public.encrypt(hash, TRIAL_KEY)?) {
            Ok(()) => return Ok(hash),
            Err(failure) => reasons.push(format!("{hash}: {failure}")),
        }
    }
    Err(HsmError::Device(format!("it does not unwrap under RSA-OAEP ({})", reasons.join("; "))).into())
}

/// No secret: it only shows that the right key comes out.
const TRIAL_KEY: &[u8; 32] = b"strongroom transport key trial 1";

fn try_oaep(session: &Session, private: Handle, hash: Hash, encrypted: &Blob) -> Result<(), Failure> {
    const TEXT: &[u8] = b"trial";
    let wrong = || Failure::from(HsmError::Device("another key came out".to_owned()));
    let known = aead::UnboundKey::new(&aead::AES_256_GCM, TRIAL_KEY).map_err(|_| wrong())?;
    let mut sealed = TEXT.to_vec();
    let nonce = aead::Nonce::assume_unique_for_key([0; IV_BYTES]);
    aead::LessSafeKey::new(known)
        .seal_in_place_append_tag(nonce, aead::Aad::empty(), &mut sealed)
        .map_err(|_| wrong())?;
    let key = session.unwrap(Mechanism::Oaep(hash), private, &encrypted.0, &one_time_key(true))?;
    let opened = mechanism::decrypt_gcm(session, key, [0; IV_BYTES], b"", &sealed);
    session.destroy(key)?;
    if opened?.as_slice() == TEXT { Ok(()) } else { Err(wrong()) }
}
