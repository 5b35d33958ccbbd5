//! Whether the HSM keeps to what a key's attributes say.

use cryptoki_sys::*;

use super::{Bench, Book, LABEL, Need, refusal, wrong};
use crate::hsm::ckr::Failure;
use crate::hsm::keys::{self, Form};
use crate::hsm::session::{Handle, Mechanism, Session, Template};
use crate::hsm::{BackingId, Hash, Material, Use, mechanism};

const WRAPPING_KEY: &str = "wrapping key";
const KEYS: &str = "keys";

const SECRET: Material = Material::Generic(32);

pub(super) fn check(bench: &Bench<'_>, book: &mut Book<'_>) {
    use Need::{Required, Useful};
    let mut of_wrapping_key = |what, need, attempt: fn(&Bench<'_>) -> Result<(), Failure>| {
        book.try_it(bench, (WRAPPING_KEY, what, need), attempt);
    };
    of_wrapping_key("cannot be read", Required, |bench| unreadable(bench.session, bench.wrapping_key));
    of_wrapping_key("leaves under TRUSTED keys only", Required, stays);
    of_wrapping_key("wraps and unwraps keys", Required, round_trip);
    of_wrapping_key("unwraps to nothing that can be read", Required, unwraps_closed);
    of_wrapping_key("wraps as RFC 5649, as other vendors' HSMs", Useful, |bench| {
        standard_wrap(bench, b"strongroom check: a wrapped key.")
    });
    // SoftHSM2 2.6.1 writes the padded length.
    of_wrapping_key("keeps a length that is no multiple of 8 bytes", Useful, |bench| {
        standard_wrap(bench, b"strongroom check of wraps")
    });
    let mut of_keys = |what, need, attempt: fn(&Bench<'_>) -> Result<(), Failure>| {
        book.try_it(bench, (KEYS, what, need), attempt);
    };
    of_keys("cannot be read", Required, |bench| with_loaded(bench, Use::Mac, unreadable));
    of_keys("cannot be wrapped again", Required, |bench| {
        with_loaded(bench, Use::Mac, |session, key| {
            let wrapped = session.wrap(session.key_wrap(), bench.wrapping_key, key);
            refusal(wrapped, "a key with EXTRACTABLE=false was wrapped")
        })
    });
    of_keys("do what they are for and nothing else", Required, |bench| {
        with_loaded(bench, Use::Agree, |session, key| {
            let mac = mechanism::mac(session, key, Hash::Sha256, b"text");
            refusal(mac, "a key with SIGN=false made a MAC")
        })
    });
    of_keys("stay as they are made", Useful, |bench| {
        with_loaded(bench, Use::Mac, |session, key| {
            let label = Template::default().bytes(CKA_LABEL, b"another");
            refusal(session.set(key, &label), "a key with MODIFIABLE=false was changed")
        })
    });
    of_keys("are token objects where that is asked for", Required, resident);
}

fn unreadable(session: &Session, key: Handle) -> Result<(), Failure> {
    if session.attribute(key, CKA_SENSITIVE)?.as_slice() != [CK_TRUE] {
        return Err(wrong("CKA_SENSITIVE was not kept"));
    }
    refusal(session.attribute(key, CKA_VALUE), "CKA_VALUE was given out")
}

/// Under neither a public key nor a secret key of the user's own.
fn stays(bench: &Bench<'_>) -> Result<(), Failure> {
    let session = bench.session;
    let public = Template::default()
        .number(CKA_CLASS, CKO_PUBLIC_KEY)
        .number(CKA_KEY_TYPE, CKK_RSA)
        .flag(CKA_TOKEN, false)
        .flag(CKA_PRIVATE, false)
        .flag(CKA_WRAP, true)
        .number(CKA_MODULUS_BITS, 2048)
        .bytes(CKA_PUBLIC_EXPONENT, &[1, 0, 1]);
    let private = Template::default().flag(CKA_TOKEN, false).flag(CKA_PRIVATE, true);
    let pair = Mechanism::Plain(CKM_RSA_PKCS_KEY_PAIR_GEN);
    let (public, private) = session.generate_pair(pair, &public, &private)?;
    let by_pair = session.wrap(Mechanism::Oaep(Hash::Sha1), public, bench.wrapping_key);
    session.destroy(public)?;
    session.destroy(private)?;
    refusal(by_pair, "it was wrapped under a public key that is not TRUSTED")?;
    let secret = Template::default()
        .flag(CKA_TOKEN, false)
        .flag(CKA_PRIVATE, true)
        .flag(CKA_WRAP, true)
        .number(CKA_VALUE_LEN, 32);
    let secret = session.generate(Mechanism::Plain(CKM_AES_KEY_GEN), &secret)?;
    let by_secret = session.wrap(session.key_wrap(), secret, bench.wrapping_key);
    session.destroy(secret)?;
    refusal(by_secret, "it was wrapped under a secret key that is not TRUSTED")
}

fn round_trip(bench: &Bench<'_>) -> Result<(), Failure> {
    with_loaded(bench, Use::Mac, |session, key| {
        mechanism::mac(session, key, Hash::Sha256, b"after a round trip").map(drop)
    })
}

/// Whoever has the PIN and a blob asks for an object that can be read.
fn unwraps_closed(bench: &Bench<'_>) -> Result<(), Failure> {
    let (blob, _) = keys::make_wrapped(bench.session, bench.wrapping_key, SECRET, Use::Mac)?;
    let template = keys::key_template(SECRET, Use::Mac, Form::Readable);
    match bench.session.unwrap(bench.session.key_wrap(), bench.wrapping_key, &blob, &template) {
        // It may as well give its own template the last word.
        Ok(key) => {
            let closed = unreadable(bench.session, key);
            bench.session.destroy(key)?;
            closed
        }
        other => refusal(other, "never"),
    }
}

/// Unwraps in software what the HSM wrapped, both keys known.
fn standard_wrap(bench: &Bench<'_>, value: &[u8]) -> Result<(), Failure> {
    use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrapPadded as _};
    const KEY: [u8; 32] = *b"strongroom check of key wrapping";
    let session = bench.session;
    let secret = |key_type, value: &[u8]| {
        Template::default()
            .number(CKA_CLASS, CKO_SECRET_KEY)
            .number(CKA_KEY_TYPE, key_type)
            .flag(CKA_TOKEN, false)
            .flag(CKA_PRIVATE, true)
            .flag(CKA_SENSITIVE, false)
            .flag(CKA_EXTRACTABLE, true)
            .flag(CKA_WRAP, true)
            .bytes(CKA_VALUE, value)
    };
    let by = session.create(&secret(CKK_AES, &KEY))?;
    let key = session.create(&secret(CKK_GENERIC_SECRET, value));
    let wrapped = key.and_then(|key| {
        let wrapped = session.wrap(session.key_wrap(), by, key);
        session.destroy(key)?;
        wrapped
    });
    session.destroy(by)?;
    let mut output = [0; 64];
    let known = AesKek::new(&AES_256, &KEY).map_err(|_| wrong("software"))?;
    match known.unwrap_with_padding(&wrapped?, &mut output) {
        Ok(unwrapped) if unwrapped == value => Ok(()),
        _ => Err(wrong("what it wraps is not RFC 5649")),
    }
}

/// A key that went through the wrapping key, as the daemon uses it.
fn with_loaded(
    bench: &Bench<'_>,
    usage: Use,
    attempt: impl FnOnce(&Session, Handle) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (session, wrapping_key) = (bench.session, bench.wrapping_key);
    let (blob, _) = keys::make_wrapped(session, wrapping_key, SECRET, usage)?;
    let key = keys::unwrap(session, wrapping_key, &blob, SECRET, usage, Form::Loaded)?;
    let done = attempt(session, key);
    session.destroy(key)?;
    done
}

/// From its blob into the token, found, used and destroyed.
fn resident(bench: &Bench<'_>) -> Result<(), Failure> {
    let (session, wrapping_key) = (bench.session, bench.wrapping_key);
    let (blob, _) = keys::make_wrapped(session, wrapping_key, SECRET, Use::Mac)?;
    let id = BackingId::random()?;
    let form = Form::Resident { id, label: LABEL };
    keys::unwrap(session, wrapping_key, &blob, SECRET, Use::Mac, form)?;
    let other = bench.open()?;
    let search = keys::search(id, SECRET);
    let found = other.find(&search)?;
    let [key] = found.as_slice() else { return Err(wrong("it is not found by its CKA_ID of 32 bytes")) };
    mechanism::mac(&other, *key, Hash::Sha256, b"in the token")?;
    unreadable(&other, *key)?;
    other.destroy(*key)?;
    if session.find(&search)?.is_empty() { Ok(()) } else { Err(wrong("it is there after it was destroyed")) }
}
