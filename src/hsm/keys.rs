//! Keys as objects: their attributes, making, wrapping and unwrapping them.
//!
//! Every attribute is stated, as the defaults of HSMs differ.

use cryptoki_sys::*;
use zeroize::Zeroizing;

use super::ckr::Failure;
use super::encode;
use super::session::{Handle, Mechanism, Session, Template};
use super::{BackingId, Curve, DataKeyPair, HsmError, Material, MlDsa, Use};

/// CKA_LABEL of the wrapping key.
pub(crate) const WRAPPING_KEY_LABEL: &str = "strongroom wrapping key";
/// CKA_LABEL of the rows' MAC key.
pub(crate) const MAC_KEY_LABEL: &str = "strongroom row MAC key";
/// CKA_LABEL of the key that signs heads.
pub(crate) const HEAD_KEY_LABEL: &str = "strongroom head key";
/// CKA_LABEL of every resident backing key.
pub(crate) const KEY_LABEL: &str = "strongroom key";

/// What a key's object is for.
#[derive(Clone, Copy)]
pub(crate) enum Form<'a> {
    /// A session object that can be wrapped once.
    Newborn,
    /// A session object for use.
    Loaded,
    /// A token object for use.
    Resident { id: BackingId, label: &'a str },
    /// A session object whose value is read: a data key pair, a shared secret.
    Readable,
}

/// A key that was just made: a secret key, or a pair.
pub(crate) struct Born {
    pub(crate) key: Handle,
    pub(crate) public: Option<Handle>,
}

/// Makes a key.
pub(crate) fn generate(
    session: &Session,
    material: Material,
    usage: Use,
    form: Form<'_>,
) -> Result<Born, Failure> {
    let (mechanism, public) = match material {
        Material::Aes256 => (CKM_AES_KEY_GEN, None),
        Material::Generic(_) => (CKM_GENERIC_SECRET_KEY_GEN, None),
        Material::Rsa(bits) => {
            let public = public_template(CKK_RSA, usage)
                .number(CKA_MODULUS_BITS, bits.into())
                .bytes(CKA_PUBLIC_EXPONENT, &[1, 0, 1]);
            (CKM_RSA_PKCS_KEY_PAIR_GEN, Some(public))
        }
        Material::Ec(curve) => {
            let parameters = encode::curve_parameters(curve)?;
            let public = public_template(CKK_EC, usage).bytes(CKA_EC_PARAMS, &parameters);
            (CKM_EC_KEY_PAIR_GEN, Some(public))
        }
        Material::Ed25519 => {
            let parameters = encode::ed25519_parameters()?;
            let public = public_template(CKK_EC_EDWARDS, usage).bytes(CKA_EC_PARAMS, &parameters);
            (CKM_EC_EDWARDS_KEY_PAIR_GEN, Some(public))
        }
        Material::MlDsa(set) => {
            let public =
                public_template(CKK_ML_DSA, usage).number(CKA_PARAMETER_SET, ml_dsa_parameter_set(set));
            (CKM_ML_DSA_KEY_PAIR_GEN, Some(public))
        }
    };
    let template = key_template(material, usage, form);
    let mechanism = Mechanism::Plain(mechanism);
    match public {
        Some(public) => {
            let (public, key) = session.generate_pair(mechanism, &public, &template)?;
            Ok(Born { key, public: Some(public) })
        }
        None => {
            let template = match secret_bytes(material) {
                Some(bytes) => template.number(CKA_VALUE_LEN, bytes),
                None => template,
            };
            Ok(Born { key: session.generate(mechanism, &template)?, public: None })
        }
    }
}

/// Makes a key in a session, wraps it once and destroys it: its blob, and the
/// DER SubjectPublicKeyInfo of a pair.
pub(crate) fn make_wrapped(
    session: &Session,
    wrapping_key: Handle,
    material: Material,
    usage: Use,
) -> Result<(Vec<u8>, Option<Vec<u8>>), Failure> {
    let born = generate(session, material, usage, Form::Newborn)?;
    let result = session
        .wrap(session.key_wrap(), wrapping_key, born.key)
        .and_then(|blob| Ok((blob, public_key(session, material, &born)?)));
    discard(session, &born)?;
    result
}

/// Makes a pair that stays in the token: its DER SubjectPublicKeyInfo.
pub(crate) fn make_resident(
    session: &Session,
    id: BackingId,
    material: Material,
    usage: Use,
) -> Result<Option<Vec<u8>>, Failure> {
    let born = generate(session, material, usage, Form::Resident { id, label: KEY_LABEL })?;
    let public = public_key(session, material, &born);
    if public.is_err() {
        // Its maker will not know of it: nothing half made stays.
        session.destroy(born.key)?;
    }
    if let Some(handle) = born.public {
        session.destroy(handle)?;
    }
    public
}

/// Unwraps a blob as an object of the given form. VALUE_LEN is left out: the
/// blob has it.
pub(crate) fn unwrap(
    session: &Session,
    wrapping_key: Handle,
    blob: &[u8],
    material: Material,
    usage: Use,
    form: Form<'_>,
) -> Result<Handle, Failure> {
    session.unwrap(session.key_wrap(), wrapping_key, blob, &key_template(material, usage, form))
}

/// Makes the wrapping key, a token object.
///
/// CKA_UNWRAP_TEMPLATE is what keeps a blob closed to whoever has the PIN: it
/// unwraps to SENSITIVE and to nothing else. EXTRACTABLE together with
/// WRAP_WITH_TRUSTED lets it leave only under a key that the SO marked
/// TRUSTED, to a new member.
pub(crate) fn make_wrapping_key(session: &Session, id: BackingId) -> Result<Handle, Failure> {
    // Before MODIFIABLE, after which SoftHSM2 takes no attribute.
    let template = Template::default().number(CKA_VALUE_LEN, 32).and(wrapping_key_template(id));
    session.generate(Mechanism::Plain(CKM_AES_KEY_GEN), &template)
}

/// What a wrapping key is, where it is made and on every member that it comes to.
pub(crate) fn wrapping_key_template(id: BackingId) -> Template {
    wrapping_key_labelled(id, WRAPPING_KEY_LABEL)
}

/// The same for one that is no cluster's.
pub(crate) fn wrapping_key_labelled(id: BackingId, label: &str) -> Template {
    Template::default()
        .number(CKA_CLASS, CKO_SECRET_KEY)
        .number(CKA_KEY_TYPE, CKK_AES)
        .flag(CKA_TOKEN, true)
        .flag(CKA_PRIVATE, true)
        .flag(CKA_COPYABLE, false)
        .flag(CKA_SENSITIVE, true)
        .flag(CKA_EXTRACTABLE, true)
        .flag(CKA_WRAP_WITH_TRUSTED, true)
        .flag(CKA_WRAP, true)
        .flag(CKA_UNWRAP, true)
        .flag(CKA_ENCRYPT, false)
        .flag(CKA_DECRYPT, false)
        .flag(CKA_SIGN, false)
        .flag(CKA_VERIFY, false)
        .flag(CKA_DERIVE, false)
        .nested(CKA_UNWRAP_TEMPLATE, unwraps_closed())
        .bytes(CKA_ID, &id.0)
        .bytes(CKA_LABEL, label.as_bytes())
        .flag(CKA_MODIFIABLE, false)
}

/// CKA_UNWRAP_TEMPLATE of what unwraps our keys, and wrapping keys themselves.
pub(crate) fn unwraps_closed() -> Template {
    Template::default().flag(CKA_SENSITIVE, true).flag(CKA_WRAP_WITH_TRUSTED, true)
}

/// What finds a key's token object by its CKA_ID.
pub(crate) fn search(id: BackingId, material: Material) -> Template {
    Template::default()
        .number(CKA_CLASS, class_and_type(material).0)
        .flag(CKA_TOKEN, true)
        .bytes(CKA_ID, &id.0)
}

/// What finds all token objects with a label of ours, of either class.
pub(crate) fn search_label(class: CK_OBJECT_CLASS, label: &str) -> Template {
    Template::default().number(CKA_CLASS, class).flag(CKA_TOKEN, true).bytes(CKA_LABEL, label.as_bytes())
}

/// What finds every session object.
pub(crate) fn search_session_objects() -> Template {
    Template::default().flag(CKA_TOKEN, false)
}

/// Makes a pair, reads it and destroys it.
pub(crate) fn data_key_pair(session: &Session, material: Material) -> Result<DataKeyPair, Failure> {
    let born = generate(session, material, Use::Sign, Form::Readable)?;
    let result = read_pair(session, material, &born);
    discard(session, &born)?;
    result
}

fn read_pair(session: &Session, material: Material, born: &Born) -> Result<DataKeyPair, Failure> {
    let private = |attribute| session.attribute(born.key, attribute);
    let public = |attribute| match born.public {
        Some(handle) => session.attribute(handle, attribute),
        None => Err(missing_public_key()),
    };
    let private_key = match material {
        Material::Rsa(_) => {
            let mut parts = Vec::with_capacity(8);
            for attribute in [
                CKA_MODULUS,
                CKA_PUBLIC_EXPONENT,
                CKA_PRIVATE_EXPONENT,
                CKA_PRIME_1,
                CKA_PRIME_2,
                CKA_EXPONENT_1,
                CKA_EXPONENT_2,
                CKA_COEFFICIENT,
            ] {
                parts.push(private(attribute)?);
            }
            let parts: Vec<&[u8]> = parts.iter().map(|part| part.as_slice()).collect();
            let parts = parts.try_into().map_err(|_| missing_public_key())?;
            encode::rsa_private_key(parts)?
        }
        Material::Ec(curve) => {
            let point = encode::ec_point(&public(CKA_EC_POINT)?);
            encode::ec_private_key(curve, &private(CKA_VALUE)?, &point)?
        }
        Material::Ed25519 => {
            let point = encode::ec_point(&public(CKA_EC_POINT)?);
            encode::ed25519_private_key(&private(CKA_VALUE)?, &point)?
        }
        Material::Aes256 | Material::Generic(_) | Material::MlDsa(_) => {
            return Err(HsmError::Unsupported(format!("a data key pair of {material:?}")).into());
        }
    };
    let public_key = public_key(session, material, born)?.ok_or_else(missing_public_key)?;
    Ok(DataKeyPair { private_key, public_key })
}

/// CKM_ECDH1_DERIVE without a KDF: the x coordinate, as long as a field element.
pub(crate) fn agree(
    session: &Session,
    key: Handle,
    curve: Curve,
    peer: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let bytes = curve.field_bytes();
    let length = u16::try_from(bytes).map_err(|_| HsmError::Input)?;
    let template = key_template(Material::Generic(length), Use::Agree, Form::Readable)
        .number(CKA_VALUE_LEN, length.into());
    let secret = session.derive(Mechanism::Ecdh { peer }, key, &template)?;
    let value = session.attribute(secret, CKA_VALUE);
    session.destroy(secret)?;
    Ok(encode::fixed_length(&value?, bytes)?)
}

fn discard(session: &Session, born: &Born) -> Result<(), Failure> {
    let public = born.public.map_or(Ok(()), |handle| session.destroy(handle));
    session.destroy(born.key).and(public)
}

/// DER SubjectPublicKeyInfo of a pair.
pub(crate) fn public_key(
    session: &Session,
    material: Material,
    born: &Born,
) -> Result<Option<Vec<u8>>, Failure> {
    let Some(handle) = born.public else { return Ok(None) };
    let attribute = |attribute| session.attribute(handle, attribute);
    let key = match material {
        Material::Rsa(_) => {
            encode::rsa_public_key(&attribute(CKA_MODULUS)?, &attribute(CKA_PUBLIC_EXPONENT)?)
        }
        Material::Ec(curve) => encode::ec_public_key(curve, &encode::ec_point(&attribute(CKA_EC_POINT)?)),
        Material::Ed25519 => encode::ed25519_public_key(&encode::ec_point(&attribute(CKA_EC_POINT)?)),
        Material::MlDsa(set) => encode::ml_dsa_public_key(set, &attribute(CKA_VALUE)?),
        Material::Aes256 | Material::Generic(_) => return Ok(None),
    };
    Ok(Some(key?))
}

fn missing_public_key() -> Failure {
    HsmError::Device("the HSM gave no public key".to_owned()).into()
}

fn class_and_type(material: Material) -> (CK_OBJECT_CLASS, CK_KEY_TYPE) {
    match material {
        Material::Aes256 => (CKO_SECRET_KEY, CKK_AES),
        Material::Generic(_) => (CKO_SECRET_KEY, CKK_GENERIC_SECRET),
        Material::Rsa(_) => (CKO_PRIVATE_KEY, CKK_RSA),
        Material::Ec(_) => (CKO_PRIVATE_KEY, CKK_EC),
        Material::Ed25519 => (CKO_PRIVATE_KEY, CKK_EC_EDWARDS),
        Material::MlDsa(_) => (CKO_PRIVATE_KEY, CKK_ML_DSA),
    }
}

fn secret_bytes(material: Material) -> Option<CK_ULONG> {
    match material {
        Material::Aes256 => Some(32),
        Material::Generic(bytes) => Some(bytes.into()),
        _ => None,
    }
}

/// The attributes of a secret or private key.
pub(crate) fn key_template(material: Material, usage: Use, form: Form<'_>) -> Template {
    let (class, key_type) = class_and_type(material);
    let secret = class == CKO_SECRET_KEY;
    let (token, sensitive, extractable) = match form {
        Form::Newborn => (false, true, true),
        Form::Loaded => (false, true, false),
        Form::Resident { .. } => (true, true, false),
        Form::Readable => (false, false, true),
    };
    let mut template = Template::default()
        .number(CKA_CLASS, class)
        .number(CKA_KEY_TYPE, key_type)
        .flag(CKA_TOKEN, token)
        .flag(CKA_PRIVATE, true)
        .flag(CKA_SENSITIVE, sensitive)
        .flag(CKA_EXTRACTABLE, extractable)
        // A key with this cannot be wrapped under ours, which is not trusted.
        .flag(CKA_WRAP_WITH_TRUSTED, matches!(form, Form::Loaded | Form::Resident { .. }))
        .flag(CKA_DECRYPT, matches!(usage, Use::Encrypt | Use::Import))
        .flag(CKA_SIGN, matches!(usage, Use::Sign | Use::Mac))
        .flag(CKA_DERIVE, usage == Use::Agree && !secret)
        .flag(CKA_UNWRAP, usage == Use::Import);
    if secret {
        template = template
            .flag(CKA_ENCRYPT, usage == Use::Encrypt)
            .flag(CKA_VERIFY, usage == Use::Mac)
            .flag(CKA_WRAP, false);
    }
    if let Form::Resident { id, label } = form {
        template = template.bytes(CKA_ID, &id.0).bytes(CKA_LABEL, label.as_bytes());
    }
    match form {
        // It is destroyed as soon as it is read.
        Form::Readable => template,
        // Last: SoftHSM2 takes attributes in their order, and none after this one.
        _ => template.flag(CKA_MODIFIABLE, false),
    }
}

/// The attributes of an AES key that another key comes wrapped in.
pub(crate) fn key_wrap_template() -> Template {
    Template::default()
        .number(CKA_CLASS, CKO_SECRET_KEY)
        .number(CKA_KEY_TYPE, CKK_AES)
        .flag(CKA_TOKEN, false)
        .flag(CKA_PRIVATE, true)
        .flag(CKA_SENSITIVE, true)
        .flag(CKA_EXTRACTABLE, false)
        .flag(CKA_ENCRYPT, false)
        .flag(CKA_DECRYPT, false)
        .flag(CKA_SIGN, false)
        .flag(CKA_VERIFY, false)
        .flag(CKA_DERIVE, false)
        .flag(CKA_WRAP, false)
        .flag(CKA_UNWRAP, true)
        .flag(CKA_MODIFIABLE, false)
}

/// A pair's public half is read and destroyed; it is used nowhere.
fn public_template(key_type: CK_KEY_TYPE, usage: Use) -> Template {
    Template::default()
        .number(CKA_CLASS, CKO_PUBLIC_KEY)
        .number(CKA_KEY_TYPE, key_type)
        .flag(CKA_TOKEN, false)
        .flag(CKA_PRIVATE, false)
        .flag(CKA_ENCRYPT, usage == Use::Encrypt)
        .flag(CKA_VERIFY, usage == Use::Sign)
        .flag(CKA_WRAP, false)
}

fn ml_dsa_parameter_set(set: MlDsa) -> CK_ULONG {
    match set {
        MlDsa::MlDsa44 => CKP_ML_DSA_44,
        MlDsa::MlDsa65 => CKP_ML_DSA_65,
        MlDsa::MlDsa87 => CKP_ML_DSA_87,
    }
}
