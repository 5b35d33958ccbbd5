//! One PKCS#11 session, its functions in Rust's types.

use std::ffi::c_void;
use std::sync::Arc;

use cryptoki_sys::*;
use metrics::Gauge;
use secrecy::{ExposeSecret as _, SecretString};
use zeroize::{Zeroize as _, Zeroizing};

use super::Hash;
use super::ckr::Failure;
use super::module::Life;

/// An object's handle; of use in the life that gave it only.
pub(crate) type Handle = CK_OBJECT_HANDLE;

/// Random bytes asked for in one C_GenerateRandom: some HSMs refuse more.
const RANDOM_PIECE_BYTES: usize = 1024;

/// RFC 5649 (PKCS#11 3.0, 6.13.4).
const CKM_AES_KEY_WRAP_KWP: CK_MECHANISM_TYPE = 0x210B;

/// Handles taken by one C_FindObjects.
const FIND_PIECE: usize = 64;

/// Calls a function of the list of `$session`'s life.
macro_rules! call {
    ($life:expr, $function:ident ( $($argument:expr),* $(,)? )) => {
        $life.call(stringify!($function), |list| {
            // SAFETY: the pointers among the arguments are of live values of the
            // lengths that go with them; the life is open while the call lasts.
            list.$function.map(|function| unsafe { function($($argument),*) })
        })
    };
}

/// A session; closed when dropped.
pub(crate) struct Session {
    life: Arc<Life>,
    handle: CK_SESSION_HANDLE,
    key_wrap: CK_MECHANISM_TYPE,
    open: Gauge,
}

impl Session {
    /// Opens a read-write session: some HSMs know no other. `open` counts it.
    pub(crate) fn open(life: &Arc<Life>, slot: CK_SLOT_ID, open: &Gauge) -> Result<Session, Failure> {
        let mut handle = 0;
        let flags = CKF_SERIAL_SESSION | CKF_RW_SESSION;
        call!(life, C_OpenSession(slot, flags, std::ptr::null_mut(), None, &mut handle))?;
        open.increment(1);
        let key_wrap = life.key_wrap(slot, || key_wrap_of(life, slot));
        Ok(Session { life: life.clone(), handle, key_wrap, open: open.clone() })
    }

    /// AES key wrap with padding (RFC 5649), by the name that the token has for it.
    pub(crate) fn key_wrap(&self) -> Mechanism<'static> {
        Mechanism::Plain(self.key_wrap)
    }

    /// Logs the process in to the session's token as its user.
    pub(crate) fn log_in(&self, pin: &SecretString) -> Result<(), Failure> {
        let mut pin = Zeroizing::new(pin.expose_secret().as_bytes().to_vec());
        match call!(self.life, C_Login(self.handle, CKU_USER, pin.as_mut_ptr(), length(&pin))) {
            Err(Failure::Call { rv: CKR_USER_ALREADY_LOGGED_IN, .. }) => Ok(()),
            other => other,
        }
    }

    /// The same with a PIN that is not known to be right: a login of the process
    /// that is left of another connection does not stand for it.
    pub(crate) fn log_in_anew(&self, pin: &SecretString) -> Result<(), Failure> {
        let mut bytes = Zeroizing::new(pin.expose_secret().as_bytes().to_vec());
        match call!(self.life, C_Login(self.handle, CKU_USER, bytes.as_mut_ptr(), length(&bytes))) {
            Err(Failure::Call { rv: CKR_USER_ALREADY_LOGGED_IN, .. }) => {
                self.log_out()?;
                self.log_in(pin)
            }
            other => other,
        }
    }

    /// Logs the process in to the session's token as its security officer.
    pub(crate) fn log_in_so(&self, pin: &SecretString) -> Result<(), Failure> {
        let mut pin = Zeroizing::new(pin.expose_secret().as_bytes().to_vec());
        call!(self.life, C_Login(self.handle, CKU_SO, pin.as_mut_ptr(), length(&pin)))
    }

    /// Logs the process out of the session's token.
    pub(crate) fn log_out(&self) -> Result<(), Failure> {
        call!(self.life, C_Logout(self.handle))
    }

    /// Makes an object of what the template says.
    pub(crate) fn create(&self, template: &Template) -> Result<Handle, Failure> {
        let mut handle = 0;
        template.with(|attributes, count| {
            call!(self.life, C_CreateObject(self.handle, attributes, count, &mut handle))
        })?;
        Ok(handle)
    }

    /// The handles of the objects that the template fits.
    pub(crate) fn find(&self, template: &Template) -> Result<Vec<Handle>, Failure> {
        template
            .with(|attributes, count| call!(self.life, C_FindObjectsInit(self.handle, attributes, count)))?;
        let found = self.collect_found();
        let ended = call!(self.life, C_FindObjectsFinal(self.handle));
        let found = found?;
        ended.map(|()| found)
    }

    fn collect_found(&self) -> Result<Vec<Handle>, Failure> {
        let mut found = Vec::new();
        loop {
            let mut piece = [0; FIND_PIECE];
            let mut count: CK_ULONG = 0;
            let room = FIND_PIECE as CK_ULONG;
            call!(self.life, C_FindObjects(self.handle, piece.as_mut_ptr(), room, &mut count))?;
            if count == 0 {
                return Ok(found);
            }
            found.extend(piece.into_iter().take(count as usize));
        }
    }

    /// Makes a secret key.
    pub(crate) fn generate(&self, mechanism: Mechanism, template: &Template) -> Result<Handle, Failure> {
        let mut handle = 0;
        mechanism.with(|mechanism| {
            template.with(|attributes, count| {
                call!(self.life, C_GenerateKey(self.handle, mechanism, attributes, count, &mut handle))
            })
        })?;
        Ok(handle)
    }

    /// Makes a key pair: the public key's handle, then the private key's.
    pub(crate) fn generate_pair(
        &self,
        mechanism: Mechanism,
        public: &Template,
        private: &Template,
    ) -> Result<(Handle, Handle), Failure> {
        let (mut public_handle, mut private_handle) = (0, 0);
        mechanism.with(|mechanism| {
            public.with(|public, public_count| {
                private.with(|private, private_count| {
                    call!(
                        self.life,
                        C_GenerateKeyPair(
                            self.handle,
                            mechanism,
                            public,
                            public_count,
                            private,
                            private_count,
                            &mut public_handle,
                            &mut private_handle,
                        )
                    )
                })
            })
        })?;
        Ok((public_handle, private_handle))
    }

    /// `key`, encrypted under `by`.
    pub(crate) fn wrap(&self, mechanism: Mechanism, by: Handle, key: Handle) -> Result<Vec<u8>, Failure> {
        mechanism.with(|mechanism| {
            let mut size = 0;
            let none = std::ptr::null_mut();
            call!(self.life, C_WrapKey(self.handle, mechanism, by, key, none, &mut size))?;
            let mut blob = vec![0; size as usize];
            call!(self.life, C_WrapKey(self.handle, mechanism, by, key, blob.as_mut_ptr(), &mut size))?;
            blob.truncate(size as usize);
            Ok(blob)
        })
    }

    /// The key in `blob`, decrypted under `by`.
    pub(crate) fn unwrap(
        &self,
        mechanism: Mechanism,
        by: Handle,
        blob: &[u8],
        template: &Template,
    ) -> Result<Handle, Failure> {
        let mut handle = 0;
        let (bytes, size) = (blob.as_ptr().cast_mut(), length(blob));
        mechanism.with(|mechanism| {
            template.with(|attributes, count| {
                call!(
                    self.life,
                    C_UnwrapKey(self.handle, mechanism, by, bytes, size, attributes, count, &mut handle)
                )
            })
        })?;
        Ok(handle)
    }

    /// A key that is derived from `base`.
    pub(crate) fn derive(
        &self,
        mechanism: Mechanism,
        base: Handle,
        template: &Template,
    ) -> Result<Handle, Failure> {
        let mut handle = 0;
        mechanism.with(|mechanism| {
            template.with(|attributes, count| {
                call!(self.life, C_DeriveKey(self.handle, mechanism, base, attributes, count, &mut handle))
            })
        })?;
        Ok(handle)
    }

    /// Destroys an object.
    pub(crate) fn destroy(&self, object: Handle) -> Result<(), Failure> {
        call!(self.life, C_DestroyObject(self.handle, object))
    }

    /// An attribute's bytes, in the clear.
    pub(crate) fn attribute(
        &self,
        object: Handle,
        attribute: CK_ATTRIBUTE_TYPE,
    ) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let mut query = CK_ATTRIBUTE { type_: attribute, pValue: std::ptr::null_mut(), ulValueLen: 0 };
        call!(self.life, C_GetAttributeValue(self.handle, object, &mut query, 1))?;
        if query.ulValueLen == CK_UNAVAILABLE_INFORMATION {
            return Err(Failure::Call { function: "C_GetAttributeValue", rv: CKR_ATTRIBUTE_TYPE_INVALID });
        }
        let mut value = Zeroizing::new(vec![0; query.ulValueLen as usize]);
        query.pValue = value.as_mut_ptr().cast();
        call!(self.life, C_GetAttributeValue(self.handle, object, &mut query, 1))?;
        value.truncate(query.ulValueLen as usize);
        Ok(value)
    }

    /// Changes attributes of an object.
    pub(crate) fn set(&self, object: Handle, template: &Template) -> Result<(), Failure> {
        template.with(|attributes, count| {
            call!(self.life, C_SetAttributeValue(self.handle, object, attributes, count))
        })
    }

    /// Encrypts in one part; `size` is the most that comes out.
    pub(crate) fn encrypt(
        &self,
        mechanism: Mechanism,
        key: Handle,
        data: &[u8],
        size: usize,
    ) -> Result<Vec<u8>, Failure> {
        let mut output = vec![0; size];
        let mut size = length(&output);
        mechanism.with(|mechanism| {
            call!(self.life, C_EncryptInit(self.handle, mechanism, key))?;
            let (input, count) = (data.as_ptr().cast_mut(), length(data));
            call!(self.life, C_Encrypt(self.handle, input, count, output.as_mut_ptr(), &mut size))
        })?;
        output.truncate(size as usize);
        Ok(output)
    }

    /// Decrypts in one part; `size` is the most that comes out.
    pub(crate) fn decrypt(
        &self,
        mechanism: Mechanism,
        key: Handle,
        data: &[u8],
        size: usize,
    ) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let mut output = Zeroizing::new(vec![0; size]);
        let mut size = length(&output);
        mechanism.with(|mechanism| {
            call!(self.life, C_DecryptInit(self.handle, mechanism, key))?;
            let (input, count) = (data.as_ptr().cast_mut(), length(data));
            call!(self.life, C_Decrypt(self.handle, input, count, output.as_mut_ptr(), &mut size))
        })?;
        output.truncate(size as usize);
        Ok(output)
    }

    /// Signs, or makes a MAC, in one part; `size` is the most that comes out.
    pub(crate) fn sign(
        &self,
        mechanism: Mechanism,
        key: Handle,
        data: &[u8],
        size: usize,
    ) -> Result<Vec<u8>, Failure> {
        let mut output = vec![0; size];
        let mut size = length(&output);
        mechanism.with(|mechanism| {
            call!(self.life, C_SignInit(self.handle, mechanism, key))?;
            let (input, count) = (data.as_ptr().cast_mut(), length(data));
            call!(self.life, C_Sign(self.handle, input, count, output.as_mut_ptr(), &mut size))
        })?;
        output.truncate(size as usize);
        Ok(output)
    }

    /// Random bytes from the HSM.
    pub(crate) fn random(&self, bytes: usize) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let mut random = Zeroizing::new(vec![0; bytes]);
        for piece in random.chunks_mut(RANDOM_PIECE_BYTES) {
            let (start, count) = (piece.as_mut_ptr(), piece.len() as CK_ULONG);
            call!(self.life, C_GenerateRandom(self.handle, start, count))?;
        }
        Ok(random)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.open.decrement(1);
        match call!(self.life, C_CloseSession(self.handle)) {
            // With the life its sessions are gone.
            Ok(()) | Err(Failure::Closed) => {}
            Err(failure) => tracing::debug!("{failure}"),
        }
    }
}

/// What C_GetTokenInfo tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TokenInfo {
    pub(crate) label: String,
    pub(crate) serial: String,
    pub(crate) model: String,
    pub(crate) manufacturer: String,
    pub(crate) firmware: String,
}

/// The slots that hold a token.
pub(crate) fn slots(life: &Life) -> Result<Vec<CK_SLOT_ID>, Failure> {
    let mut count = 0;
    call!(life, C_GetSlotList(CK_TRUE, std::ptr::null_mut(), &mut count))?;
    let mut slots = vec![0; count as usize];
    call!(life, C_GetSlotList(CK_TRUE, slots.as_mut_ptr(), &mut count))?;
    slots.truncate(count as usize);
    Ok(slots)
}

/// Who the token in a slot is.
pub(crate) fn token_info(life: &Life, slot: CK_SLOT_ID) -> Result<TokenInfo, Failure> {
    let mut info = CK_TOKEN_INFO::default();
    call!(life, C_GetTokenInfo(slot, &mut info))?;
    let text = |padded: &[u8]| String::from_utf8_lossy(padded).trim_end_matches([' ', '\0']).to_owned();
    Ok(TokenInfo {
        label: text(&info.label),
        serial: text(&info.serialNumber),
        model: text(&info.model),
        manufacturer: text(&info.manufacturerID),
        firmware: format!("{}.{}", info.firmwareVersion.major, info.firmwareVersion.minor),
    })
}

/// All that a token says about itself.
pub(crate) fn raw_token_info(life: &Life, slot: CK_SLOT_ID) -> Result<CK_TOKEN_INFO, Failure> {
    let mut info = CK_TOKEN_INFO::default();
    call!(life, C_GetTokenInfo(slot, &mut info))?;
    Ok(info)
}

/// The mechanisms that a token lists.
pub(crate) fn mechanisms(life: &Life, slot: CK_SLOT_ID) -> Result<Vec<CK_MECHANISM_TYPE>, Failure> {
    let mut count = 0;
    call!(life, C_GetMechanismList(slot, std::ptr::null_mut(), &mut count))?;
    let mut list = vec![0; count as usize];
    call!(life, C_GetMechanismList(slot, list.as_mut_ptr(), &mut count))?;
    list.truncate(count as usize);
    Ok(list)
}

/// CKM_AES_KEY_WRAP_KWP where a token lists it. SoftHSM2 has it as
/// CKM_AES_KEY_WRAP_PAD, which PKCS#11 2.40 had and others pad differently by.
fn key_wrap_of(life: &Life, slot: CK_SLOT_ID) -> Option<CK_MECHANISM_TYPE> {
    let listed = mechanisms(life, slot).ok()?;
    Some(if listed.contains(&CKM_AES_KEY_WRAP_KWP) { CKM_AES_KEY_WRAP_KWP } else { CKM_AES_KEY_WRAP_PAD })
}

/// A mechanism with its parameters.
pub(crate) enum Mechanism<'a> {
    /// One without parameters.
    Plain(CK_MECHANISM_TYPE),
    /// AES-GCM with a 128-bit tag; an HSM may write its own IV.
    Gcm { iv: &'a mut [u8; 12], aad: &'a [u8] },
    /// RSA-OAEP, MGF1 with the same hash, empty label.
    Oaep(Hash),
    /// RSA-PSS on a digest, MGF1 with the same hash, salt as long as it.
    Pss(Hash),
    /// ECDH without a key derivation function.
    Ecdh { peer: &'a [u8] },
}

impl Mechanism<'_> {
    fn with<T>(self, body: impl FnOnce(*mut CK_MECHANISM) -> T) -> T {
        fn give<P, T>(
            mechanism: CK_MECHANISM_TYPE,
            parameters: &mut P,
            body: impl FnOnce(*mut CK_MECHANISM) -> T,
        ) -> T {
            let pointer: *mut P = parameters;
            let size = size_of::<P>() as CK_ULONG;
            body(&mut CK_MECHANISM { mechanism, pParameter: pointer.cast::<c_void>(), ulParameterLen: size })
        }
        match self {
            Mechanism::Plain(mechanism) => {
                body(&mut CK_MECHANISM { mechanism, pParameter: std::ptr::null_mut(), ulParameterLen: 0 })
            }
            Mechanism::Gcm { iv, aad } => {
                let mut parameters = CK_GCM_PARAMS {
                    pIv: iv.as_mut_ptr(),
                    ulIvLen: iv.len() as CK_ULONG,
                    ulIvBits: iv.len() as CK_ULONG * 8,
                    pAAD: aad.as_ptr().cast_mut(),
                    ulAADLen: length(aad),
                    ulTagBits: 128,
                };
                give(CKM_AES_GCM, &mut parameters, body)
            }
            Mechanism::Oaep(hash) => {
                let (hash, mgf) = hash_mechanisms(hash);
                let mut parameters = CK_RSA_PKCS_OAEP_PARAMS {
                    hashAlg: hash,
                    mgf,
                    source: CKZ_DATA_SPECIFIED,
                    pSourceData: std::ptr::null_mut(),
                    ulSourceDataLen: 0,
                };
                give(CKM_RSA_PKCS_OAEP, &mut parameters, body)
            }
            Mechanism::Pss(hash) => {
                let salt = hash.bytes() as CK_ULONG;
                let (hash, mgf) = hash_mechanisms(hash);
                let mut parameters = CK_RSA_PKCS_PSS_PARAMS { hashAlg: hash, mgf, sLen: salt };
                give(CKM_RSA_PKCS_PSS, &mut parameters, body)
            }
            Mechanism::Ecdh { peer } => {
                let mut parameters = CK_ECDH1_DERIVE_PARAMS {
                    kdf: CKD_NULL,
                    ulSharedDataLen: 0,
                    pSharedData: std::ptr::null_mut(),
                    ulPublicDataLen: length(peer),
                    pPublicData: peer.as_ptr().cast_mut(),
                };
                give(CKM_ECDH1_DERIVE, &mut parameters, body)
            }
        }
    }
}

fn hash_mechanisms(hash: Hash) -> (CK_MECHANISM_TYPE, CK_RSA_PKCS_MGF_TYPE) {
    match hash {
        Hash::Sha1 => (CKM_SHA_1, CKG_MGF1_SHA1),
        Hash::Sha224 => (CKM_SHA224, CKG_MGF1_SHA224),
        Hash::Sha256 => (CKM_SHA256, CKG_MGF1_SHA256),
        Hash::Sha384 => (CKM_SHA384, CKG_MGF1_SHA384),
        Hash::Sha512 => (CKM_SHA512, CKG_MGF1_SHA512),
    }
}

/// Attributes of an object.
#[derive(Clone, Default)]
pub(crate) struct Template(Vec<(CK_ATTRIBUTE_TYPE, Value)>);

#[derive(Clone)]
enum Value {
    Bytes(Vec<u8>),
    Nested(Template),
}

impl Template {
    /// One more attribute: a truth.
    pub(crate) fn flag(self, attribute: CK_ATTRIBUTE_TYPE, value: bool) -> Self {
        self.bytes(attribute, &[CK_BBOOL::from(value)])
    }

    /// One more attribute: a number.
    pub(crate) fn number(self, attribute: CK_ATTRIBUTE_TYPE, value: CK_ULONG) -> Self {
        self.bytes(attribute, &value.to_ne_bytes())
    }

    /// One more attribute: bytes or text.
    pub(crate) fn bytes(mut self, attribute: CK_ATTRIBUTE_TYPE, value: &[u8]) -> Self {
        self.0.push((attribute, Value::Bytes(value.to_vec())));
        self
    }

    /// These attributes, then those.
    pub(crate) fn and(mut self, other: Template) -> Self {
        self.0.extend(other.0);
        self
    }

    /// One more attribute: a template.
    pub(crate) fn nested(mut self, attribute: CK_ATTRIBUTE_TYPE, value: Template) -> Self {
        self.0.push((attribute, Value::Nested(value)));
        self
    }

    fn with<T>(&self, body: impl FnOnce(*mut CK_ATTRIBUTE, CK_ULONG) -> T) -> T {
        // INVARIANT: `nested` outlives `attributes`, which points into it.
        let mut nested: Vec<Vec<CK_ATTRIBUTE>> = Vec::new();
        let mut attributes: Vec<CK_ATTRIBUTE> = self
            .0
            .iter()
            .map(|(attribute, value)| match value {
                Value::Bytes(bytes) => raw(*attribute, bytes),
                Value::Nested(template) => {
                    let inner: Vec<CK_ATTRIBUTE> = template
                        .0
                        .iter()
                        .filter_map(|(attribute, value)| match value {
                            Value::Bytes(bytes) => Some(raw(*attribute, bytes)),
                            // PKCS#11 knows no deeper nesting.
                            Value::Nested(_) => None,
                        })
                        .collect();
                    let whole = CK_ATTRIBUTE {
                        type_: *attribute,
                        pValue: inner.as_ptr().cast_mut().cast::<c_void>(),
                        ulValueLen: size_of_val(inner.as_slice()) as CK_ULONG,
                    };
                    nested.push(inner);
                    whole
                }
            })
            .collect();
        let count = attributes.len() as CK_ULONG;
        let result = body(attributes.as_mut_ptr(), count);
        drop(nested);
        result
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        if let Value::Bytes(bytes) = self {
            bytes.zeroize();
        }
    }
}

fn raw(attribute: CK_ATTRIBUTE_TYPE, bytes: &[u8]) -> CK_ATTRIBUTE {
    CK_ATTRIBUTE {
        type_: attribute,
        pValue: bytes.as_ptr().cast_mut().cast::<c_void>(),
        ulValueLen: length(bytes),
    }
}

fn length(bytes: &[u8]) -> CK_ULONG {
    bytes.len() as CK_ULONG
}
