//! The ceiling of the HSM: SoftHSM2 called in this process, without a daemon.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsPssParams};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use strongroom::hsm::softhsm;

const LABEL: &str = "ceiling";
const PIN: &str = "87654321";
/// DER of the object identifier of P-256.
const P256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// The most of C_GenerateRandom here; KMS's is 1024.
const RANDOM_BYTES: usize = 32;

/// What the HSM does for a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    /// AES-256-GCM of so many bytes.
    Gcm(usize),
    EcdsaP256,
    RsaPss2048,
    HmacSha256,
    Random,
}

impl Function {
    /// Every one of them, with its name in tables.
    pub const ALL: [(&'static str, Function); 6] = [
        ("AES-256-GCM 32 B", Function::Gcm(32)),
        ("AES-256-GCM 4 KiB", Function::Gcm(4096)),
        ("ECDSA P-256", Function::EcdsaP256),
        ("RSA-2048 PSS", Function::RsaPss2048),
        ("HMAC-SHA256", Function::HmacSha256),
        ("C_GenerateRandom 32 B", Function::Random),
    ];
}

/// A session that calls any function.
pub struct User {
    session: Session,
    keys: Vec<(Function, Key)>,
}

impl User {
    pub fn call(&mut self, function: Function) -> anyhow::Result<()> {
        let key = self.keys.iter().find(|(known, _)| *known == function).context("no key for it")?.1;
        once(&self.session, function, key, &input(function))
    }
}

/// A token of this process.
pub struct Token {
    module: Pkcs11,
    slot: Slot,
    /// Logged in, and the owner of every session object.
    owner: Session,
}

/// A key of the token.
#[derive(Clone, Copy)]
pub struct Key(ObjectHandle);

impl Token {
    /// Makes a token in a folder.
    pub fn new(folder: &Path) -> anyhow::Result<Token> {
        let library = softhsm::library().context(softhsm::INSTALL_HINT)?;
        let configuration = folder.join("softhsm2.conf");
        softhsm::write_configuration(&configuration, &folder.join("tokens"))?;
        // SAFETY: called before any thread is started.
        unsafe { std::env::set_var(softhsm::CONFIGURATION_VARIABLE, &configuration) };
        softhsm::initialise_token(&library, LABEL, "12345678", PIN).map_err(anyhow::Error::from_boxed)?;
        let module = Pkcs11::new(library)?;
        module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))?;
        let mut slots = module.get_slots_with_token()?.into_iter();
        let ours =
            |slot: &Slot| module.get_token_info(*slot).is_ok_and(|token| token.label().trim() == LABEL);
        let slot = slots.find(ours).context("the token is not there")?;
        let owner = module.open_rw_session(slot)?;
        owner.login(UserType::User, Some(&AuthPin::new(PIN.into())))?;
        Ok(Token { module, slot, owner })
    }

    /// Makes a key for a function: a token object, or a session object.
    pub fn key(&self, function: Function, token: bool) -> anyhow::Result<Key> {
        let private = [Attribute::Token(token), Attribute::Private(true), Attribute::Sensitive(true)];
        let with = |more: &[Attribute]| [private.as_slice(), more].concat();
        let secret = |mechanism, more: &[Attribute]| self.owner.generate_key(&mechanism, &with(more));
        let pair = |mechanism, public: &[Attribute]| {
            let private = with(&[Attribute::Sign(true)]);
            self.owner.generate_key_pair(&mechanism, public, &private).map(|(_, key)| key)
        };
        let length = Attribute::ValueLen(32.into());
        Ok(Key(match function {
            Function::Gcm(_) => secret(Mechanism::AesKeyGen, &[length, Attribute::Encrypt(true)])?,
            Function::HmacSha256 => secret(Mechanism::GenericSecretKeyGen, &[length, Attribute::Sign(true)])?,
            Function::EcdsaP256 => pair(Mechanism::EccKeyPairGen, &[Attribute::EcParams(P256.to_vec())])?,
            Function::RsaPss2048 => {
                let public = [Attribute::ModulusBits(2048.into()), Attribute::PublicExponent(vec![1, 0, 1])];
                pair(Mechanism::RsaPkcsKeyPairGen, &public)?
            }
            // It has no key: any object will do.
            Function::Random => secret(Mechanism::AesKeyGen, &[length])?,
        }))
    }

    /// A session, with session objects for every function.
    pub fn user(&self) -> anyhow::Result<User> {
        let keys = Function::ALL.map(|(_, function)| Ok((function, self.key(function, false)?)));
        let keys = keys.into_iter().collect::<anyhow::Result<_>>()?;
        Ok(User { session: self.module.open_rw_session(self.slot)?, keys })
    }

    /// Calls per second of so many threads with a session each.
    pub fn rate(&self, function: Function, key: Key, threads: usize, time: Duration) -> anyhow::Result<f64> {
        let mut sessions = Vec::with_capacity(threads);
        for _ in 0..threads {
            sessions.push(self.module.open_rw_session(self.slot)?);
        }
        let began = Instant::now();
        let calls = std::thread::scope(|scope| {
            let work = |session: Session| scope.spawn(move || repeat(&session, function, key, began + time));
            let running: Vec<_> = sessions.into_iter().map(work).collect();
            running.into_iter().map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a panic"))?).sum()
        });
        let calls: anyhow::Result<u64> = calls;
        Ok(calls? as f64 / began.elapsed().as_secs_f64())
    }
}

fn repeat(session: &Session, function: Function, key: Key, end: Instant) -> anyhow::Result<u64> {
    let plaintext = input(function);
    let mut calls = 0;
    while Instant::now() < end {
        once(session, function, key, &plaintext)?;
        calls += 1;
    }
    Ok(calls)
}

fn input(function: Function) -> Vec<u8> {
    match function {
        Function::Gcm(bytes) => vec![7; bytes],
        _ => vec![7; 32],
    }
}

fn once(session: &Session, function: Function, key: Key, data: &[u8]) -> anyhow::Result<()> {
    match function {
        Function::Gcm(_) => {
            let mut iv = [7; 12];
            let parameters =
                GcmParams::new(&mut iv, b"an encryption context as canonical bytes", 128.into())?;
            session.encrypt(&Mechanism::AesGcm(parameters), key.0, data)?;
        }
        Function::EcdsaP256 => drop(session.sign(&Mechanism::Ecdsa, key.0, data)?),
        Function::RsaPss2048 => {
            let parameters = PkcsPssParams {
                hash_alg: MechanismType::SHA256,
                mgf: PkcsMgfType::MGF1_SHA256,
                s_len: 32.into(),
            };
            session.sign(&Mechanism::RsaPkcsPss(parameters), key.0, data)?;
        }
        Function::HmacSha256 => drop(session.sign(&Mechanism::Sha256Hmac, key.0, data)?),
        Function::Random => session.generate_random_slice(&mut [0; RANDOM_BYTES])?,
    }
    Ok(())
}
