//! Making a backup, on a member.

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rsa::{KeySize, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use cryptoki_sys::*;
use secrecy::SecretString;
use zeroize::Zeroizing;

use super::file::{self, Backup, Custodian, OAEP_HASHES, Oaep, RsaPublicKey, Subset};
use super::{BackupError, refused};
use crate::hsm::attachment::check_test_key;
use crate::hsm::ceremony::unavailable;
use crate::hsm::ckr::Failure;
use crate::hsm::keys::{self, Form};
use crate::hsm::modules::Modules;
use crate::hsm::session::{Handle, Mechanism, Session, Template};
use crate::hsm::transport::{self, Open, Place, PublicKey, TokenAccess, device, trusted_template};
use crate::hsm::{
    BackingId, ClusterIdentity, Curve, Hash, HsmError, Material, Scheme, Use, encode, mechanism,
};

/// CKA_LABEL of one-time keys.
const ONE_TIME_KEY_LABEL: &str = "strongroom one-time key";

/// Whose the backup is to be.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Names and keys.
    pub custodians: Vec<(String, RsaPublicKey)>,
    /// How many of them restore it.
    pub threshold: usize,
    /// When it is made, RFC 3339.
    pub made: String,
}

/// Makes a backup of the wrapping key that `member` has, which one of `known`
/// tells of: the backup and its file. The security officer approves by `so_pin`:
/// the one-time keys are TRUSTED, and so may carry the wrapping key out. All that
/// is made in the HSM goes with the session. Blocks.
///
/// `modules` must not have members that serve, as tokens are logged out.
///
/// # Errors
/// [`BackupError::Refused`] where the plan has too few or too many custodians or
/// the key is none of `known`, [`BackupError::Hsm`] where the HSM fails.
pub fn back_up(
    modules: &Modules,
    member: &TokenAccess,
    so_pin: &SecretString,
    plan: &Plan,
    known: &[ClusterIdentity],
) -> Result<(Backup, Vec<u8>), BackupError> {
    file::check_custodians(plan.custodians.iter().map(|(name, key)| (name, key)), plan.threshold)?;
    let ids = plan.custodians.iter().map(|_| BackingId::random()).collect::<Result<Vec<_>, _>>()?;
    let token = Open::new(modules, member)?;
    token.approve(so_pin, |session| {
        plan.custodians.iter().zip(&ids).try_for_each(|((_, key), id)| prepare(session, key, *id))
    })?;
    token.log_in()?;
    let (wrapping_key, cluster) = known_key(&token, known)?;
    let held = ids.iter().map(|id| Held::find(&token, *id)).collect::<Result<Vec<_>, _>>()?;
    let session = &token.session;
    let hash = working_oaep(session)?;
    let id = BackingId::random()?;
    let custodians = plan.custodians.iter().zip(&held).map(|((name, key), held)| {
        let wrapped =
            session.wrap(Mechanism::Oaep(hash), held.public_key, held.one_time_key).map_err(device)?;
        let wrapped_key = Oaep { hash, ciphertext: wrapped.into() };
        Ok(Custodian { name: name.clone(), public_key: key.clone(), wrapped_key })
    });
    let custodians = custodians.collect::<Result<Vec<_>, HsmError>>()?;
    let subsets = file::subsets(plan.custodians.len(), plan.threshold).into_iter().map(|custodians| {
        let keys = custodians.iter().filter_map(|place| held.get(*place)).map(|held| held.one_time_key);
        let wrapped = nest(session, wrapping_key, keys, &Backup::additional_data(id)).map_err(device)?;
        Ok(Subset { custodians, wrapped: wrapped.into() })
    });
    let subsets = subsets.collect::<Result<Vec<_>, HsmError>>()?;
    let backup =
        Backup { id, made: plan.made.clone(), cluster, threshold: plan.threshold, custodians, subsets };
    let file = backup.file(sign(&token, &backup)?)?;
    // What is not to be read later is found now.
    let read = Backup::read(&file)?;
    Ok((read, file))
}

/// What a custodian's part is made with.
struct Held {
    public_key: Handle,
    one_time_key: Handle,
}

impl Held {
    /// The officer's objects, as the user finds them.
    fn find(token: &Open<'_>, id: BackingId) -> Result<Held, HsmError> {
        Ok(Held {
            public_key: token.one(&transport::search(CKO_PUBLIC_KEY, Place::Session, id))?,
            one_time_key: token.one(&transport::search(CKO_SECRET_KEY, Place::Session, id))?,
        })
    }
}

/// As the security officer: a custodian's public key, and the one-time key that
/// leaves under it and no key that is not TRUSTED.
fn prepare(session: &Session, key: &RsaPublicKey, id: BackingId) -> Result<(), Failure> {
    let key = PublicKey { modulus: key.modulus.clone(), exponent: key.exponent.clone() };
    session.create(&trusted_template(Place::Session, id, &key))?;
    session.generate(Mechanism::Plain(CKM_AES_KEY_GEN), &one_time_key(id)).map(drop)
}

/// The officer can make no private object; nobody else's session sees this one.
pub(in crate::hsm) fn one_time_key(id: BackingId) -> Template {
    Template::default()
        .number(CKA_CLASS, CKO_SECRET_KEY)
        .number(CKA_KEY_TYPE, CKK_AES)
        .number(CKA_VALUE_LEN, 32)
        .flag(CKA_TOKEN, false)
        .flag(CKA_PRIVATE, false)
        .flag(CKA_SENSITIVE, true)
        .flag(CKA_EXTRACTABLE, true)
        .flag(CKA_WRAP_WITH_TRUSTED, true)
        .flag(CKA_TRUSTED, true)
        .flag(CKA_WRAP, true)
        .flag(CKA_ENCRYPT, true)
        // What it wraps it cannot open: that would be the key in the clear.
        .flag(CKA_UNWRAP, false)
        .flag(CKA_DECRYPT, false)
        .flag(CKA_SIGN, false)
        .flag(CKA_VERIFY, false)
        .flag(CKA_DERIVE, false)
        .bytes(CKA_ID, &id.0)
        .bytes(CKA_LABEL, ONE_TIME_KEY_LABEL.as_bytes())
        .flag(CKA_MODIFIABLE, false)
}

/// The token's wrapping key, and the cluster whose it is.
fn known_key(token: &Open<'_>, known: &[ClusterIdentity]) -> Result<(Handle, ClusterIdentity), BackupError> {
    let (id, wrapping_key) = token.wrapping_key()?;
    let cluster = known.iter().find(|cluster| cluster.wrapping_key == id).ok_or_else(|| {
        refused(format!("the store knows no cluster with the wrapping key {id} of {}", token.access.token))
    })?;
    check_test_key(&token.session, wrapping_key, cluster).map_err(device)?;
    Ok((wrapping_key, cluster.clone()))
}

/// The wrapping key under the first key, that under the second, and so on.
fn nest(
    session: &Session,
    wrapping_key: Handle,
    mut keys: impl Iterator<Item = Handle>,
    additional_data: &[u8],
) -> Result<Vec<u8>, Failure> {
    let innermost = keys.next().ok_or_else(|| HsmError::Device("no custodian".to_owned()))?;
    let wrapped = session.wrap(session.key_wrap(), innermost, wrapping_key)?;
    keys.try_fold(wrapped, |inner, key| {
        let sealed = mechanism::encrypt_gcm(session, key, additional_data, &inner)?;
        Ok([sealed.iv.as_slice(), &sealed.ciphertext].concat())
    })
}

/// The first hash of OAEP under which the HSM wraps what software unwraps.
fn working_oaep(session: &Session) -> Result<Hash, BackupError> {
    let failed = || refused("RSA in software failed");
    let private = PrivateDecryptingKey::generate(KeySize::Rsa3072).map_err(|_| failed())?;
    let public = private.public_key().as_der().map_err(|_| failed())?.as_ref().to_vec();
    let private = OaepPrivateDecryptingKey::new(private).map_err(|_| failed())?;
    let mut reasons = Vec::new();
    for hash in OAEP_HASHES {
        match try_oaep(session, &RsaPublicKey::from_der(&public)?, &private, hash) {
            Ok(()) => return Ok(hash),
            Err(failure) => reasons.push(format!("{hash}: {failure}")),
        }
    }
    Err(HsmError::Device(format!("it does not wrap under RSA-OAEP ({})", reasons.join("; "))).into())
}

fn try_oaep(
    session: &Session,
    public: &RsaPublicKey,
    private: &OaepPrivateDecryptingKey,
    hash: Hash,
) -> Result<(), Failure> {
    let wrong = || Failure::from(HsmError::Device("another key came out".to_owned()));
    let public = Template::default()
        .number(CKA_CLASS, CKO_PUBLIC_KEY)
        .number(CKA_KEY_TYPE, CKK_RSA)
        .flag(CKA_TOKEN, false)
        .flag(CKA_PRIVATE, false)
        .flag(CKA_WRAP, true)
        .bytes(CKA_MODULUS, &public.modulus)
        .bytes(CKA_PUBLIC_EXPONENT, &public.exponent);
    let public = session.create(&public)?;
    // Used for nothing else, and so in the clear.
    let key = keys::generate(session, Material::Aes256, Use::Encrypt, Form::Readable)?.key;
    let value = session.attribute(key, CKA_VALUE);
    let wrapped = session.wrap(Mechanism::Oaep(hash), public, key);
    session.destroy(key)?;
    session.destroy(public)?;
    let mut plain = Zeroizing::new(vec![0; private.min_output_size()]);
    let algorithm = file::algorithm(hash).map_err(|_| wrong())?;
    let unwrapped = private.decrypt(algorithm, &wrapped?, &mut plain, None).map_err(|_| wrong())?;
    if unwrapped == value?.as_slice() { Ok(()) } else { Err(wrong()) }
}

/// The head key's signature.
fn sign(token: &Open<'_>, backup: &Backup) -> Result<Vec<u8>, BackupError> {
    let head = backup.cluster.head_key();
    let found = token.session.find(&keys::search(head.id, head.material)).map_err(unavailable)?;
    let handle = found.first().ok_or_else(|| refused("the member has no head key: has it served yet?"))?;
    let digest = encode::digest_of(Hash::Sha256, &backup.message()?);
    let material = Material::Ec(Curve::P256);
    Ok(mechanism::sign(&token.session, *handle, material, Scheme::Ecdsa, digest.as_ref()).map_err(device)?)
}
