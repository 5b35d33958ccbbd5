//! Sizes, the IV of AES-GCM, and what the HSM says to a wrong input.

use super::{Bench, Book, Need, wrong};
use crate::hsm::ckr::{Class, Failure, class};
use crate::hsm::keys::{self, Form};
use crate::hsm::session::{Handle, Mechanism, Session};
use crate::hsm::{Hash, Material, Scheme, Use, encode, mechanism};

/// KMS's longest plaintext, and its longest message to sign or authenticate.
const MESSAGE_BYTES_MAX: usize = 4096;
/// KMS's longest encryption context, as additional data.
const CONTEXT_BYTES_MAX: usize = 8192;
/// Bytes that KMS gives at once.
const RANDOM_BYTES_MAX: usize = 1024;

const GCM: &str = "AES-GCM";
const SIZES: &str = "sizes";
const FAULTS: &str = "faults";

pub(super) fn check(bench: &Bench<'_>, book: &mut Book<'_>) {
    use Need::{Required, Useful};
    book.try_it(bench, (GCM, "says which IV it used", Required), |bench| with_aes(bench.session, gcm_iv));
    for (what, bytes, aad) in [
        ("takes an empty plaintext", 0, 0),
        ("takes 4096 bytes", MESSAGE_BYTES_MAX, 0),
        ("takes 8192 bytes of additional data", 1, CONTEXT_BYTES_MAX),
    ] {
        book.try_it(bench, (GCM, what, Required), |bench| {
            with_aes(bench.session, |session, key| gcm_of(session, key, bytes, aad))
        });
    }
    book.try_it(bench, (SIZES, "HMAC of 4096 bytes", Required), |bench| hmac(bench.session));
    book.try_it(bench, (SIZES, "1024 random bytes", Required), |bench| random(bench.session));
    for (what, bits) in
        [("RSA-3072 is made, wrapped and signs", 3072), ("RSA-4096 is made, wrapped and signs", 4096)]
    {
        book.try_it(bench, (SIZES, what, Useful), |bench| rsa(bench, bits));
    }
    book.try_it(bench, (FAULTS, "a wrong AES-GCM tag is not taken for a broken HSM", Required), wrong_tag);
    book.try_it(
        bench,
        (FAULTS, "a wrong RSA ciphertext is not taken for a broken HSM", Required),
        wrong_oaep,
    );
    book.try_it(bench, (FAULTS, "a key that is gone is said to be gone", Required), gone);
    book.try_it(bench, (FAULTS, "a session goes on after a wrong input", Useful), goes_on);
}

fn with_aes<T>(
    session: &Session,
    attempt: impl FnOnce(&Session, Handle) -> Result<T, Failure>,
) -> Result<T, Failure> {
    // Its use is that of a key of KMS; it need not be wrapped here.
    let key = keys::generate(session, Material::Aes256, Use::Encrypt, Form::Loaded)?.key;
    let done = attempt(session, key);
    session.destroy(key)?;
    done
}

fn gcm_iv(session: &Session, key: Handle) -> Result<String, Failure> {
    let ours = [7; 12];
    let mut iv = ours;
    let sealed = session.encrypt(Mechanism::Gcm { iv: &mut iv, aad: b"" }, key, b"text", 20)?;
    let opened = mechanism::decrypt_gcm(session, key, iv, b"", &sealed)?;
    match opened.as_slice() == b"text" {
        true if iv == ours => Ok("ours".to_owned()),
        true => Ok("its own".to_owned()),
        false => Err(wrong("it does not read back")),
    }
}

fn gcm_of(session: &Session, key: Handle, bytes: usize, aad: usize) -> Result<(), Failure> {
    let (plaintext, aad) = (vec![0x5a; bytes], vec![0xa5; aad]);
    let sealed = mechanism::encrypt_gcm(session, key, &aad, &plaintext)?;
    let opened = mechanism::decrypt_gcm(session, key, sealed.iv, &aad, &sealed.ciphertext)?;
    if *opened == plaintext { Ok(()) } else { Err(wrong("it does not read back")) }
}

fn hmac(session: &Session) -> Result<(), Failure> {
    let key = keys::generate(session, Material::Generic(32), Use::Mac, Form::Loaded)?.key;
    let mac = mechanism::mac(session, key, Hash::Sha256, &[0x5a; MESSAGE_BYTES_MAX]);
    session.destroy(key)?;
    mac.map(drop)
}

fn random(session: &Session) -> Result<(), Failure> {
    let (first, second) = (session.random(RANDOM_BYTES_MAX)?, session.random(RANDOM_BYTES_MAX)?);
    if *first == *second { Err(wrong("it gave the same bytes twice")) } else { Ok(()) }
}

fn rsa(bench: &Bench<'_>, bits: u16) -> Result<(), Failure> {
    let (session, wrapping_key, material) = (bench.session, bench.wrapping_key, Material::Rsa(bits));
    let (blob, public_key) = keys::make_wrapped(session, wrapping_key, material, Use::Sign)?;
    let handle = keys::unwrap(session, wrapping_key, &blob, material, Use::Sign, Form::Loaded)?;
    let subject = crate::hsm::selftest::Subject { handle, material, public_key: public_key.as_deref() };
    let signed = crate::hsm::selftest::check_signature(session, &subject, Scheme::RsaPss(Hash::Sha256));
    session.destroy(handle)?;
    signed
}

/// What the daemon makes of a failure that the caller is to blame for.
fn blame(result: Result<(), Failure>) -> Result<String, Failure> {
    match result {
        Ok(()) => Err(wrong("it was taken")),
        Err(Failure::Call { function, rv }) => {
            let failure = Failure::Call { function, rv };
            match class(function, rv) {
                Class::Caller => Ok(failure.to_string()),
                Class::Ambiguous => Ok(format!("{failure}, which may also be the HSM: its canary is asked")),
                _ => Err(failure),
            }
        }
        Err(failure) => Err(failure),
    }
}

fn wrong_tag(bench: &Bench<'_>) -> Result<String, Failure> {
    with_aes(bench.session, |session, key| {
        let sealed = mechanism::encrypt_gcm(session, key, b"", b"text")?;
        let mut changed = sealed.ciphertext;
        changed.iter_mut().for_each(|byte| *byte ^= 1);
        blame(mechanism::decrypt_gcm(&bench.open()?, key, sealed.iv, b"", &changed).map(drop))
    })
}

fn wrong_oaep(bench: &Bench<'_>) -> Result<String, Failure> {
    let (session, material) = (bench.session, Material::Rsa(2048));
    let born = keys::generate(session, material, Use::Encrypt, Form::Loaded)?;
    // Less than any modulus, and no padding of anything.
    let ciphertext = [[0; 128], [0x5a; 128]].concat();
    let trial = bench.open();
    let answer = trial.and_then(|trial| {
        mechanism::oaep_decrypt(&trial, born.key, material, Hash::Sha1, true, &ciphertext).map(drop)
    });
    session.destroy(born.key)?;
    born.public.map_or(Ok(()), |public| session.destroy(public))?;
    blame(answer)
}

fn gone(bench: &Bench<'_>) -> Result<String, Failure> {
    let key = keys::generate(bench.session, Material::Aes256, Use::Encrypt, Form::Loaded)?.key;
    bench.session.destroy(key)?;
    match mechanism::encrypt_gcm(&bench.open()?, key, b"", b"text") {
        Ok(_) => Err(wrong("it encrypts after it was destroyed")),
        Err(failure) if failure.is_unknown_object() => Ok(failure.to_string()),
        Err(failure) => Err(failure),
    }
}

fn goes_on(bench: &Bench<'_>) -> Result<(), Failure> {
    with_aes(bench.session, |_, key| {
        let trial = bench.open()?;
        let digest = encode::digest_of(Hash::Sha256, b"no ciphertext");
        if mechanism::decrypt_gcm(&trial, key, [0; 12], b"", digest.as_ref()).is_ok() {
            return Err(wrong("a wrong input was taken"));
        }
        mechanism::encrypt_gcm(&trial, key, b"", b"text").map(drop)
    })
}
