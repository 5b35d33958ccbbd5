//! What a member can do: each capability is tried with a fresh key, and what
//! comes out is checked in software. A token's own list of mechanisms is not
//! believed.

use std::collections::{HashMap, HashSet};

use aws_lc_rs::{aead, agreement, hmac, rsa, signature};
use spki::SubjectPublicKeyInfoRef;
use spki::der::Decode as _;

use super::ckr::Failure;
use super::import::{self, Native, Order, Wrapping};
use super::keys::{self, Form};
use super::session::{Handle, Session};
use super::{
    BackingId, Capability, Curve, Hash, Home, HsmError, KeyRef, Material, MlDsa, Residence, Scheme, Use,
};
use super::{encode, mechanism};

/// What every test works on.
const MESSAGE: &[u8] = b"strongroom self-test";

/// The sizes of KMS's HMAC keys, with their hash.
const HMACS: [(u16, Hash); 4] =
    [(28, Hash::Sha224), (32, Hash::Sha256), (48, Hash::Sha384), (64, Hash::Sha512)];

const CURVES: [Curve; 4] = [Curve::P256, Curve::P384, Curve::P521, Curve::Secp256k1];

/// KMS's RSA sizes; the first is tried, the others are taken to be like it, as
/// making keys of them takes seconds.
const RSA_BITS: [u16; 3] = [2048, 3072, 4096];

/// The result of a member's self-test.
pub(crate) struct SelfTest {
    results: Vec<(Capability, Result<(), String>)>,
    works: HashSet<Capability>,
    residences: HashMap<Material, Residence>,
    oaep_native: HashSet<Hash>,
    import_native: HashSet<Hash>,
}

impl SelfTest {
    /// Tries everything in `session`, and in others what may leave its session
    /// useless.
    pub(crate) fn run(
        session: &Session,
        wrapping_key: Handle,
        open: &dyn Fn() -> Result<Session, Failure>,
    ) -> SelfTest {
        let mut test = SelfTest {
            results: Vec::new(),
            works: HashSet::new(),
            residences: HashMap::new(),
            oaep_native: HashSet::new(),
            import_native: HashSet::new(),
        };
        let families = [
            SelfTest::try_aes,
            SelfTest::try_hmac,
            SelfTest::try_rsa,
            SelfTest::try_curves,
            SelfTest::try_ed25519,
            SelfTest::try_ml_dsa,
        ];
        for try_family in families {
            // What fails may leave its session useless: the next family has another.
            let own = open().ok();
            let session = own.as_ref().unwrap_or(session);
            try_family(&mut test, &Bench { session, wrapping_key, open });
        }
        test
    }

    /// Every capability with why it is not offered.
    pub(crate) fn results(&self) -> &[(Capability, Result<(), String>)] {
        &self.results
    }

    /// Whether the member can do it.
    pub(crate) fn works(&self, capability: Capability) -> bool {
        self.works.contains(&capability)
    }

    /// Whether OAEP's unpadding is done in the HSM.
    pub(crate) fn oaep_is_native(&self, hash: Hash) -> bool {
        self.oaep_native.contains(&hash)
    }

    /// Whether material that comes under OAEP is unwrapped in the HSM.
    pub(crate) fn import_is_native(&self, hash: Hash) -> bool {
        self.import_native.contains(&hash)
    }

    /// How keys of a kind live on the member, if it can make them.
    pub(crate) fn residence(&self, material: Material) -> Option<Residence> {
        self.residences.get(&material).copied()
    }

    fn record(&mut self, capability: Capability, result: Result<(), Failure>) {
        if result.is_ok() {
            self.works.insert(capability);
        }
        self.results.push((capability, result.map_err(|failure| failure.to_string())));
    }

    /// Records how keys of the material are made, for all `like` it too.
    fn record_make(&mut self, like: &[Material], key: &Result<TestKey<'_>, Failure>) {
        for material in like {
            if let Ok(key) = key {
                self.residences.insert(*material, key.residence);
            }
            self.record(Capability::Make(*material), key.as_ref().map(|_| ()).map_err(Clone::clone));
        }
    }

    fn try_aes(&mut self, bench: &Bench<'_>) {
        let key = bench.make(Material::Aes256, Use::Encrypt);
        self.record_make(&[Material::Aes256], &key);
        self.record(Capability::AesGcm, key.and_then(|key| check_gcm(bench, &key)));
    }

    fn try_hmac(&mut self, bench: &Bench<'_>) {
        for (bytes, hash) in HMACS {
            let material = Material::Generic(bytes);
            let key = bench.make(material, Use::Mac);
            self.record_make(&[material], &key);
            self.record(Capability::Mac(hash), key.and_then(|key| check_mac(bench, &key, hash)));
        }
    }

    fn try_rsa(&mut self, bench: &Bench<'_>) {
        let like = RSA_BITS.map(Material::Rsa);
        let Some(&tried) = like.first() else { return };
        // One pair, unwrapped once for each use.
        let pair = bench.make_blob(tried, Use::Sign);
        let key = match &pair {
            Ok(pair) => bench.load(pair, Use::Sign),
            Err(failure) => Err(failure.clone()),
        };
        self.record_make(&like, &key);
        for hash in [Hash::Sha256, Hash::Sha384, Hash::Sha512] {
            for scheme in [Scheme::RsaPss(hash), Scheme::RsaPkcs1(hash)] {
                let result = check_with(&key, |key| check_signature(bench.session, &key.subject(), scheme));
                for material in like {
                    self.record(Capability::Sign(material, scheme), result.clone());
                }
            }
        }
        self.try_oaep(bench, &pair);
        self.try_import(bench, &pair);
    }

    fn try_import(&mut self, bench: &Bench<'_>, pair: &Result<Pair, Failure>) {
        for hash in [Hash::Sha1, Hash::Sha256] {
            let decrypts = self.oaep_is_native(hash);
            let import = |unwraps| match pair {
                Ok(pair) => check_import(bench, pair, hash, Native { decrypts, unwraps }),
                Err(failure) => Err(failure.clone()),
            };
            let native = import(true);
            if native.is_ok() {
                self.import_native.insert(hash);
            }
            self.record(Capability::Import(hash), native.or_else(|_| import(false)));
        }
    }

    fn try_oaep(&mut self, bench: &Bench<'_>, pair: &Result<Pair, Failure>) {
        let key = match pair {
            Ok(pair) => bench.load(pair, Use::Encrypt),
            Err(failure) => Err(failure.clone()),
        };
        for hash in [Hash::Sha1, Hash::Sha256] {
            let native = check_with(&key, |key| check_oaep(&(bench.open)()?, &key.subject(), hash, true));
            if native.is_ok() {
                self.oaep_native.insert(hash);
            }
            let result = native.or_else(|_| {
                check_with(&key, |key| check_oaep(&(bench.open)()?, &key.subject(), hash, false))
            });
            self.record(Capability::OaepDecrypt(hash), result);
        }
    }

    fn try_curves(&mut self, bench: &Bench<'_>) {
        for curve in CURVES {
            let material = Material::Ec(curve);
            let pair = bench.make_blob(material, Use::Sign);
            let key = match &pair {
                Ok(pair) => bench.load(pair, Use::Sign),
                Err(failure) => Err(failure.clone()),
            };
            self.record_make(&[material], &key);
            let signed =
                check_with(&key, |key| check_signature(bench.session, &key.subject(), Scheme::Ecdsa));
            self.record(Capability::Sign(material, Scheme::Ecdsa), signed);
            // KMS has no key agreement on secp256k1.
            if curve != Curve::Secp256k1 {
                let agreed = pair
                    .and_then(|pair| bench.load(&pair, Use::Agree))
                    .and_then(|key| check_agreement(bench.session, &key.subject(), curve));
                self.record(Capability::Agree(curve), agreed);
            }
        }
    }

    fn try_ed25519(&mut self, bench: &Bench<'_>) {
        let key =
            bench.make(Material::Ed25519, Use::Sign).or_else(|_| bench.make_resident(Material::Ed25519));
        self.record_make(&[Material::Ed25519], &key);
        let signed = check_with(&key, |key| check_signature(bench.session, &key.subject(), Scheme::Ed25519));
        self.record(Capability::Sign(Material::Ed25519, Scheme::Ed25519), signed);
    }

    fn try_ml_dsa(&mut self, bench: &Bench<'_>) {
        for set in [MlDsa::MlDsa44, MlDsa::MlDsa65, MlDsa::MlDsa87] {
            let material = Material::MlDsa(set);
            let key = bench.make(material, Use::Sign).or_else(|_| bench.make_resident(material));
            self.record_make(&[material], &key);
            let signed =
                check_with(&key, |key| check_signature(bench.session, &key.subject(), Scheme::MlDsa));
            self.record(Capability::Sign(material, Scheme::MlDsa), signed);
        }
    }
}

struct Bench<'a> {
    session: &'a Session,
    wrapping_key: Handle,
    open: &'a dyn Fn() -> Result<Session, Failure>,
}

/// A wrapped key.
struct Pair {
    material: Material,
    blob: Vec<u8>,
    public_key: Option<Vec<u8>>,
}

/// A key to try things with; destroyed when dropped.
struct TestKey<'a> {
    session: &'a Session,
    handle: Handle,
    material: Material,
    residence: Residence,
    public_key: Option<Vec<u8>>,
}

/// A private key and its public half, to check the one by the other.
pub(crate) struct Subject<'a> {
    pub(crate) handle: Handle,
    pub(crate) material: Material,
    pub(crate) public_key: Option<&'a [u8]>,
}

impl TestKey<'_> {
    fn subject(&self) -> Subject<'_> {
        Subject { handle: self.handle, material: self.material, public_key: self.public_key.as_deref() }
    }
}

impl Drop for TestKey<'_> {
    fn drop(&mut self) {
        if let Err(failure) = self.session.destroy(self.handle) {
            tracing::warn!("a self-test's key was not destroyed: {failure}");
        }
    }
}

impl<'a> Bench<'a> {
    fn make_blob(&self, material: Material, usage: Use) -> Result<Pair, Failure> {
        let (blob, public_key) = keys::make_wrapped(self.session, self.wrapping_key, material, usage)?;
        Ok(Pair { material, blob, public_key })
    }

    fn load(&self, pair: &Pair, usage: Use) -> Result<TestKey<'a>, Failure> {
        let Pair { material, blob, public_key } = pair;
        let handle = keys::unwrap(self.session, self.wrapping_key, blob, *material, usage, Form::Loaded)?;
        Ok(TestKey {
            session: self.session,
            handle,
            material: *material,
            residence: Residence::Wrapped,
            public_key: public_key.clone(),
        })
    }

    fn make(&self, material: Material, usage: Use) -> Result<TestKey<'a>, Failure> {
        self.load(&self.make_blob(material, usage)?, usage)
    }

    /// A key that is not wrapped: as a session object it shows the same as a
    /// token object, and leaves nothing behind.
    fn make_resident(&self, material: Material) -> Result<TestKey<'a>, Failure> {
        let born = keys::generate(self.session, material, Use::Sign, Form::Loaded)?;
        let mut key = TestKey {
            session: self.session,
            handle: born.key,
            material,
            residence: Residence::Resident,
            public_key: None,
        };
        key.public_key = keys::public_key(self.session, material, &born)?;
        if let Some(handle) = born.public {
            self.session.destroy(handle)?;
        }
        Ok(key)
    }
}

fn check_with<'a>(
    key: &Result<TestKey<'a>, Failure>,
    check: impl FnOnce(&TestKey<'a>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    match key {
        Ok(key) => check(key),
        Err(failure) => Err(failure.clone()),
    }
}

fn wrong(what: &str) -> Failure {
    HsmError::Device(format!("{what} came out wrong")).into()
}

/// Its key cannot be known in software: it must read back, and a changed tag
/// and changed AAD must not.
fn check_gcm(bench: &Bench<'_>, key: &TestKey<'_>) -> Result<(), Failure> {
    let sealed = mechanism::encrypt_gcm(bench.session, key.handle, b"aad", MESSAGE)?;
    if sealed.ciphertext.len() != MESSAGE.len() + aead::AES_256_GCM.tag_len() {
        return Err(wrong("AES-GCM's tag"));
    }
    let open = |session: &Session, aad: &[u8], ciphertext: &[u8]| {
        mechanism::decrypt_gcm(session, key.handle, sealed.iv, aad, ciphertext)
    };
    if open(bench.session, b"aad", &sealed.ciphertext)?.as_slice() != MESSAGE {
        return Err(wrong("AES-GCM"));
    }
    let mut changed = sealed.ciphertext.clone();
    if let Some(last) = changed.last_mut() {
        *last ^= 1;
    }
    match open(&(bench.open)()?, b"aad", &changed) {
        Err(Failure::Call { .. }) => Ok(()),
        _ => Err(wrong("AES-GCM's refusal of a wrong tag")),
    }
}

fn check_mac(bench: &Bench<'_>, key: &TestKey<'_>, hash: Hash) -> Result<(), Failure> {
    let mac = mechanism::mac(bench.session, key.handle, hash, MESSAGE)?;
    if mac.len() != hash.bytes() {
        return Err(wrong("HMAC"));
    }
    // A second key whose value is known shows that it is HMAC and not something else.
    let Material::Generic(bytes) = key.material else { return Err(wrong("HMAC")) };
    let known = keys::generate(bench.session, Material::Generic(bytes), Use::Mac, Form::Readable)?.key;
    let result = mechanism::mac(bench.session, known, hash, MESSAGE)
        .and_then(|mac| Ok((mac, bench.session.attribute(known, cryptoki_sys::CKA_VALUE)?)));
    bench.session.destroy(known)?;
    let (mac, value) = result?;
    let algorithm = match hash {
        Hash::Sha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
        Hash::Sha224 => hmac::HMAC_SHA224,
        Hash::Sha256 => hmac::HMAC_SHA256,
        Hash::Sha384 => hmac::HMAC_SHA384,
        Hash::Sha512 => hmac::HMAC_SHA512,
    };
    hmac::verify(&hmac::Key::new(algorithm, &value), MESSAGE, &mac).map_err(|_| wrong("HMAC"))
}

pub(crate) fn check_signature(session: &Session, key: &Subject<'_>, scheme: Scheme) -> Result<(), Failure> {
    let (hash, algorithm): (Option<Hash>, &dyn signature::VerificationAlgorithm) =
        match (scheme, key.material) {
            (Scheme::RsaPss(Hash::Sha256), _) => (Some(Hash::Sha256), &signature::RSA_PSS_2048_8192_SHA256),
            (Scheme::RsaPss(Hash::Sha384), _) => (Some(Hash::Sha384), &signature::RSA_PSS_2048_8192_SHA384),
            (Scheme::RsaPss(Hash::Sha512), _) => (Some(Hash::Sha512), &signature::RSA_PSS_2048_8192_SHA512),
            (Scheme::RsaPkcs1(Hash::Sha256), _) => {
                (Some(Hash::Sha256), &signature::RSA_PKCS1_2048_8192_SHA256)
            }
            (Scheme::RsaPkcs1(Hash::Sha384), _) => {
                (Some(Hash::Sha384), &signature::RSA_PKCS1_2048_8192_SHA384)
            }
            (Scheme::RsaPkcs1(Hash::Sha512), _) => {
                (Some(Hash::Sha512), &signature::RSA_PKCS1_2048_8192_SHA512)
            }
            (Scheme::Ecdsa, Material::Ec(Curve::P256)) => {
                (Some(Hash::Sha256), &signature::ECDSA_P256_SHA256_ASN1)
            }
            (Scheme::Ecdsa, Material::Ec(Curve::P384)) => {
                (Some(Hash::Sha384), &signature::ECDSA_P384_SHA384_ASN1)
            }
            (Scheme::Ecdsa, Material::Ec(Curve::P521)) => {
                (Some(Hash::Sha512), &signature::ECDSA_P521_SHA512_ASN1)
            }
            (Scheme::Ecdsa, Material::Ec(Curve::Secp256k1)) => {
                (Some(Hash::Sha256), &signature::ECDSA_P256K1_SHA256_ASN1)
            }
            (Scheme::Ed25519, _) => (None, &signature::ED25519),
            (Scheme::MlDsa, Material::MlDsa(MlDsa::MlDsa44)) => (None, &signature::ML_DSA_44),
            (Scheme::MlDsa, Material::MlDsa(MlDsa::MlDsa65)) => (None, &signature::ML_DSA_65),
            (Scheme::MlDsa, Material::MlDsa(MlDsa::MlDsa87)) => (None, &signature::ML_DSA_87),
            _ => return Err(HsmError::Unsupported(format!("{scheme:?}")).into()),
        };
    let input = hash.map_or(MESSAGE.to_vec(), |hash| encode::digest_of(hash, MESSAGE).as_ref().to_vec());
    let made = mechanism::sign(session, key.handle, key.material, scheme, &input)?;
    let public_key = bare_public_key(key)?;
    signature::UnparsedPublicKey::new(algorithm, &public_key)
        .verify(MESSAGE, &made)
        .map_err(|_| wrong("the signature"))
}

pub(crate) fn check_oaep(
    session: &Session,
    key: &Subject<'_>,
    hash: Hash,
    native: bool,
) -> Result<(), Failure> {
    let ciphertext = encrypt_oaep(key.public_key, hash, MESSAGE)?;
    let plain = mechanism::oaep_decrypt(session, key.handle, key.material, hash, native, &ciphertext)?;
    if plain.as_slice() == MESSAGE { Ok(()) } else { Err(wrong("OAEP decryption")) }
}

/// A secret whose value is known, unwrapped and tried.
fn check_import(bench: &Bench<'_>, pair: &Pair, hash: Hash, native: Native) -> Result<(), Failure> {
    const VALUE: [u8; 32] = *b"strongroom self-test of imports.";
    let by = BackingId([0; 32]);
    let home = Home::Wrapped { by, blob: pair.blob.clone().into() };
    let order = Order {
        wrapper: KeyRef { id: by, material: pair.material, usage: Use::Import, home },
        wrapping: Wrapping::Oaep(hash),
        material: Material::Aes256,
        usage: Use::Encrypt,
        encrypted: encrypt_oaep(pair.public_key.as_deref(), hash, &VALUE)?,
    };
    let check = import::import(&(bench.open)()?, bench.wrapping_key, native, &order)?.check;
    let known = aead::UnboundKey::new(&aead::AES_256_GCM, &VALUE).map(aead::LessSafeKey::new);
    let (nonce, aad) = (aead::Nonce::assume_unique_for_key([0; 12]), aead::Aad::from(import::CHECK_TEXT));
    let mut expected = import::CHECK_TEXT.to_vec();
    let sealed = known.and_then(|known| known.seal_in_place_append_tag(nonce, aad, &mut expected));
    if sealed.is_ok() && expected == check.as_slice() { Ok(()) } else { Err(wrong("the import")) }
}

/// RSA-OAEP encryption in software.
fn encrypt_oaep(spki: Option<&[u8]>, hash: Hash, message: &[u8]) -> Result<Vec<u8>, Failure> {
    let spki = spki.ok_or_else(|| wrong("the public key"))?;
    let algorithm = match hash {
        Hash::Sha1 => &rsa::OAEP_SHA1_MGF1SHA1,
        Hash::Sha256 => &rsa::OAEP_SHA256_MGF1SHA256,
        _ => return Err(HsmError::Unsupported(format!("OAEP with {hash:?}")).into()),
    };
    let public = rsa::PublicEncryptingKey::from_der(spki).map_err(|_| wrong("the public key"))?;
    let public = rsa::OaepPublicEncryptingKey::new(public).map_err(|_| wrong("the public key"))?;
    let mut ciphertext = vec![0; public.ciphertext_size()];
    public.encrypt(algorithm, message, &mut ciphertext, None).map_err(|_| wrong("encryption"))?;
    Ok(ciphertext)
}

pub(crate) fn check_agreement(session: &Session, key: &Subject<'_>, curve: Curve) -> Result<(), Failure> {
    let algorithm = match curve {
        Curve::P256 => &agreement::ECDH_P256,
        Curve::P384 => &agreement::ECDH_P384,
        Curve::P521 => &agreement::ECDH_P521,
        Curve::Secp256k1 => return Err(HsmError::Unsupported("ECDH on secp256k1".to_owned()).into()),
    };
    let ours = agreement::PrivateKey::generate(algorithm).map_err(|_| wrong("a key"))?;
    let our_point = ours.compute_public_key().map_err(|_| wrong("a key"))?;
    let secret = keys::agree(session, key.handle, curve, our_point.as_ref())?;
    let point = bare_public_key(key)?;
    let peer = agreement::UnparsedPublicKey::new(algorithm, &point);
    agreement::agree(&ours, peer, wrong("ECDH"), |expected| {
        if expected == secret.as_slice() { Ok(()) } else { Err(wrong("ECDH")) }
    })
}

/// The key in a SubjectPublicKeyInfo.
fn bare_public_key(key: &Subject<'_>) -> Result<Vec<u8>, Failure> {
    let spki = key.public_key.ok_or_else(|| wrong("the public key"))?;
    let spki = SubjectPublicKeyInfoRef::from_der(spki).map_err(HsmError::from)?;
    Ok(spki.subject_public_key.raw_bytes().to_vec())
}
