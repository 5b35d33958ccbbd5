//! Key material that a caller brings: encrypted under a key pair whose private
//! half never leaves the HSM, unwrapped there, and wrapped once under the
//! cluster's wrapping key as any other.
//!
//! ```text
//! RSAES_OAEP        RSA(material)
//! RSA_AES_KEY_WRAP  RSA(AES key) ‖ KWP(material)      (CKM_RSA_AES_KEY_WRAP)
//! ```
//!
//! Three things pass through memory, and are zeroed: what is inside RSA where the
//! HSM lacks the hash; the private key of a curve, whose public key no HSM tells;
//! an HMAC key whose length the HSM does not tell.

use aws_lc_rs::encoding::{AsBigEndian, EcPrivateKeyBin};
use aws_lc_rs::signature::KeyPair as _;
use cryptoki_sys::*;
use zeroize::Zeroizing;

use super::ckr::Failure;
use super::keys::{self, Form};
use super::session::{Handle, Mechanism, Session, Template};
use super::{Curve, Hash, Home, HsmError, KeyRef, Material, Use, encode, mechanism};

/// How imported material is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wrapping {
    /// RSAES-OAEP (RFC 8017, 7.1) of the material, MGF1 with the same hash.
    Oaep(Hash),
    /// RSAES-OAEP of an AES key, and the material under that key (RFC 5649).
    AesKeyWrap(Hash),
}

impl Wrapping {
    /// The hash of its OAEP.
    pub fn hash(self) -> Hash {
        match self {
            Wrapping::Oaep(hash) | Wrapping::AesKeyWrap(hash) => hash,
        }
    }
}

/// Material that was imported.
pub struct Imported {
    /// Where it lives.
    pub home: Home,
    /// DER SubjectPublicKeyInfo of a key pair.
    pub public_key: Option<Vec<u8>>,
    /// What is the same for the same material and for no other, and tells
    /// nothing else of it: of a secret key something encrypted or authenticated
    /// with it. Who has it could try guesses: it is kept under a MAC only.
    pub check: Zeroizing<Vec<u8>>,
}

/// What an import is made from.
pub(crate) struct Order {
    /// The private key that it is encrypted to: a wrapped one.
    pub(crate) wrapper: KeyRef,
    pub(crate) wrapping: Wrapping,
    pub(crate) material: Material,
    pub(crate) usage: Use,
    pub(crate) encrypted: Vec<u8>,
}

impl Order {
    /// The length that a secret key must have.
    fn secret_bytes(&self) -> usize {
        match self.material {
            Material::Generic(bytes) => bytes.into(),
            _ => 32,
        }
    }
}

/// What an import gives.
pub(crate) struct Unwrapped {
    /// The material under the cluster's wrapping key.
    pub(crate) blob: Vec<u8>,
    /// DER SubjectPublicKeyInfo of a key pair.
    pub(crate) public_key: Option<Vec<u8>>,
    /// See [`Imported::check`].
    pub(crate) check: Zeroizing<Vec<u8>>,
}

/// How a member opens OAEP with a hash.
#[derive(Clone, Copy)]
pub(crate) struct Native {
    /// C_Decrypt knows the hash.
    pub(crate) decrypts: bool,
    /// C_UnwrapKey does.
    pub(crate) unwraps: bool,
}

/// Unwraps material, proves that it is of its kind, and wraps it under the
/// cluster's key: its blob, its public key and its check value.
pub(crate) fn import(
    session: &Session,
    wrapping_key: Handle,
    native: Native,
    order: &Order,
) -> Result<Unwrapped, Failure> {
    let Home::Wrapped { blob, .. } = &order.wrapper.home else {
        return Err(HsmError::Unsupported("an import to a resident key".to_owned()).into());
    };
    let bits = order.wrapper.material;
    let handle = keys::unwrap(session, wrapping_key, blob, bits, Use::Import, Form::Loaded)?;
    let wrapper = Temporary { session, handle };
    let parcel = Parcel::open(&wrapper, bits, native, order)?;
    let (newborn, public_key) = match order.material {
        Material::Aes256 | Material::Generic(_) => (secret(&parcel, wrapping_key, order)?, None),
        Material::Rsa(bits) => {
            let (newborn, public_key) = rsa(&parcel, bits, order)?;
            (newborn, Some(public_key))
        }
        Material::Ec(curve) => {
            let (newborn, public_key) = ec(&parcel, curve, order)?;
            (newborn, Some(public_key))
        }
        Material::Ed25519 | Material::MlDsa(_) => {
            return Err(HsmError::Unsupported(format!("to import {}", order.material)).into());
        }
    };
    let check = match &public_key {
        Some(public_key) => Zeroizing::new(public_key.clone()),
        None => check_value(&newborn, order.material)?,
    };
    let blob = session.wrap(session.key_wrap(), wrapping_key, newborn.handle)?;
    Ok(Unwrapped { blob, public_key, check })
}

/// A session object that is destroyed when it is dropped.
struct Temporary<'a> {
    session: &'a Session,
    handle: Handle,
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if let Err(failure) = self.session.destroy(self.handle) {
            // It goes with its session, which a failure ends.
            tracing::debug!("an object of an import was not destroyed: {failure}");
        }
    }
}

/// What the material is still wrapped in.
enum Parcel<'a> {
    Rsa { wrapper: &'a Temporary<'a>, bits: Material, hash: Hash, native: Native, data: &'a [u8] },
    Aes { key: Temporary<'a>, data: &'a [u8] },
}

impl<'a> Parcel<'a> {
    /// Takes off the layer that only carries an AES key, where there is one.
    fn open(
        wrapper: &'a Temporary<'a>,
        bits: Material,
        native: Native,
        order: &'a Order,
    ) -> Result<Parcel<'a>, Failure> {
        let hash = order.wrapping.hash();
        let outer = |data| Parcel::Rsa { wrapper, bits, hash, native, data };
        match order.wrapping {
            Wrapping::Oaep(_) => Ok(outer(&order.encrypted)),
            Wrapping::AesKeyWrap(_) => {
                let Material::Rsa(size) = bits else { return Err(HsmError::Input.into()) };
                let size = usize::from(size).div_ceil(8);
                let (key, data) = order.encrypted.split_at_checked(size).ok_or(HsmError::Input)?;
                // An AES key of another length opens nothing.
                Ok(Parcel::Aes { key: outer(key).unwrap(&keys::key_wrap_template())?, data })
            }
        }
    }

    fn session(&self) -> &'a Session {
        match self {
            Parcel::Rsa { wrapper, .. } => wrapper.session,
            Parcel::Aes { key, .. } => key.session,
        }
    }

    /// The material as an object.
    fn unwrap(&self, template: &Template) -> Result<Temporary<'a>, Failure> {
        let session = self.session();
        let handle = match self {
            Parcel::Rsa { wrapper, hash, native, data, .. } if native.unwraps => {
                session.unwrap(Mechanism::Oaep(*hash), wrapper.handle, data, template).map_err(of_input)?
            }
            Parcel::Rsa { .. } => {
                let value = self.reveal()?;
                session.create(&Template::default().bytes(CKA_VALUE, &value).and(template.clone()))?
            }
            Parcel::Aes { key, data } => {
                session.unwrap(session.key_wrap(), key.handle, data, template).map_err(of_input)?
            }
        };
        Ok(Temporary { session, handle })
    }

    /// The material's bytes.
    fn reveal(&self) -> Result<Zeroizing<Vec<u8>>, Failure> {
        match self {
            Parcel::Rsa { wrapper, bits, hash, native, data } => {
                let native = native.decrypts;
                mechanism::oaep_decrypt(wrapper.session, wrapper.handle, *bits, *hash, native, data)
            }
            Parcel::Aes { key, .. } => {
                let readable = keys::key_template(Material::Generic(0), Use::Mac, Form::Readable);
                let value = self.unwrap(&readable)?;
                key.session.attribute(value.handle, CKA_VALUE)
            }
        }
    }
}

/// An AES or HMAC key: of its kind if it has its length.
fn secret<'a>(parcel: &Parcel<'a>, wrapping_key: Handle, order: &Order) -> Result<Temporary<'a>, Failure> {
    let template = keys::key_template(order.material, order.usage, Form::Newborn);
    let newborn = parcel.unwrap(&template)?;
    match has_length(&newborn, wrapping_key, order)? {
        Some(true) => Ok(newborn),
        Some(false) => Err(HsmError::Unfit.into()),
        None => {
            drop(newborn);
            let value = parcel.reveal()?;
            if value.len() != order.secret_bytes() {
                return Err(HsmError::Unfit.into());
            }
            let template = Template::default().bytes(CKA_VALUE, &value).and(template);
            let session = parcel.session();
            Ok(Temporary { session, handle: session.create(&template)? })
        }
    }
}

/// Whether a secret key has so many bytes, which no module checks; none where
/// that does not show. SoftHSM2 says 0 of what it unwrapped: an AES key shows
/// it by working, an HMAC key works with any length.
fn has_length(key: &Temporary<'_>, wrapping_key: Handle, order: &Order) -> Result<Option<bool>, Failure> {
    let expected = order.secret_bytes();
    let value = key.session.attribute(key.handle, CKA_VALUE_LEN)?;
    let told = value.as_slice().try_into().map_or(0, CK_ULONG::from_ne_bytes) as usize;
    if told != 0 {
        return Ok(Some(told == expected));
    }
    if order.material != Material::Aes256 {
        return Ok(None);
    }
    // RFC 5649 pads to 8 bytes: it tells other AES keys, and use tells the rest.
    let blob = key.session.wrap(key.session.key_wrap(), wrapping_key, key.handle)?;
    match check_value(key, order.material) {
        Ok(_) => Ok(Some(blob.len() == expected + 8)),
        Err(failure) if failure.is_judgement() => Ok(Some(false)),
        Err(failure) => Err(failure),
    }
}

/// An RSA key: of its kind if its modulus has its length. The HSM tells the
/// public key.
fn rsa<'a>(parcel: &Parcel<'a>, bits: u16, order: &Order) -> Result<(Temporary<'a>, Vec<u8>), Failure> {
    let newborn = parcel.unwrap(&keys::key_template(order.material, order.usage, Form::Newborn))?;
    let attribute = |attribute| newborn.session.attribute(newborn.handle, attribute);
    let (modulus, exponent) = (attribute(CKA_MODULUS)?, attribute(CKA_PUBLIC_EXPONENT)?);
    let significant = modulus.iter().skip_while(|byte| **byte == 0).count();
    let full = modulus.iter().find(|byte| **byte != 0).is_some_and(|byte| byte & 0x80 != 0);
    if significant * 8 != usize::from(bits) || !full {
        return Err(HsmError::Unfit.into());
    }
    let public_key = encode::rsa_public_key(&modulus, &exponent)?;
    Ok((newborn, public_key))
}

/// A key on a curve, from its PKCS #8: of its kind if it is on this curve.
fn ec<'a>(parcel: &Parcel<'a>, curve: Curve, order: &Order) -> Result<(Temporary<'a>, Vec<u8>), Failure> {
    let der = parcel.reveal()?;
    let unfit = |_| Failure::from(HsmError::Unfit);
    let pair = aws_lc_rs::signature::EcdsaKeyPair::from_pkcs8(encode::ecdsa(curve), &der).map_err(unfit)?;
    let scalar: EcPrivateKeyBin<'_> = pair.private_key().as_be_bytes().map_err(|_| HsmError::Unfit)?;
    let template = Template::default()
        .bytes(CKA_EC_PARAMS, &encode::curve_parameters(curve)?)
        .bytes(CKA_VALUE, scalar.as_ref())
        .and(keys::key_template(order.material, order.usage, Form::Newborn));
    let session = parcel.session();
    let newborn = Temporary { session, handle: session.create(&template)? };
    Ok((newborn, encode::ec_public_key(curve, pair.public_key().as_ref())?))
}

/// What check values are made of.
pub(crate) const CHECK_TEXT: &[u8; 32] = b"strongroom key check value 00001";

/// Something that the key makes of nothing secret.
fn check_value(key: &Temporary<'_>, material: Material) -> Result<Zeroizing<Vec<u8>>, Failure> {
    const TEXT: &[u8; 32] = CHECK_TEXT;
    let check = match material {
        Material::Generic(bytes) => {
            let hash = match bytes {
                28 => Hash::Sha224,
                48 => Hash::Sha384,
                64 => Hash::Sha512,
                _ => Hash::Sha256,
            };
            mechanism::mac(key.session, key.handle, hash, TEXT)?
        }
        _ => {
            // Always the same text under this IV, and nobody sees what comes out.
            let mut iv = [0; 12];
            let gcm = Mechanism::Gcm { iv: &mut iv, aad: TEXT };
            let check = key.session.encrypt(gcm, key.handle, TEXT, TEXT.len() + 16)?;
            if iv != [0; 12] {
                return Err(HsmError::Unsupported("imports, as the HSM chooses its IVs".to_owned()).into());
            }
            check
        }
    };
    Ok(Zeroizing::new(check))
}

/// A caller's material is to blame for what C_UnwrapKey says of it.
fn of_input(failure: Failure) -> Failure {
    match failure {
        Failure::Call { function: "C_UnwrapKey", rv } => {
            Failure::Call { function: Failure::UNWRAP_INPUT, rv }
        }
        other => other,
    }
}
