//! How a wrapping key comes to the HSM, and leaves it: to another, or to
//! custodians.

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rsa::{KeySize, PrivateDecryptingKey};
use cryptoki_sys::*;

use super::{Bench, Book, LABEL, Need, clean_up, make_wrapping_key, wrong};
use crate::hsm::backup::{RsaPublicKey, one_time_key};
use crate::hsm::ckr::Failure;
use crate::hsm::keys;
use crate::hsm::session::{Handle, Mechanism, Session};
use crate::hsm::transport::{OAEP_HASH, Place, PublicKey, make_transport_pair, search, trusted_template};
use crate::hsm::{BackingId, Material, encode};

const AREA: &str = "wrapping key";
const COMES: &str = "comes from another HSM, under RSA-OAEP";
const LEAVES: &str = "leaves to another HSM, as the security officer approves";
const BACKUP: &str = "is backed up to custodians, as the security officer approves";

pub(super) fn check(bench: &Bench<'_>, book: &mut Book<'_>) {
    book.try_it(bench, (AREA, COMES, Need::Required), comes);
    let Some(so_pin) = bench.so_pin else {
        book.leave_out(AREA, LEAVES, Need::Useful);
        book.leave_out(AREA, BACKUP, Need::Useful);
        return;
    };
    let approved = BackingId::random().map_err(Failure::from).and_then(|id| {
        let public = software_key()?;
        bench.session.log_out()?;
        bench.session.log_in_so(so_pin)?;
        let made = bench.session.create(&trusted_template(Place::Session, id, &public)).map(drop);
        let one_time = bench.session.generate(Mechanism::Plain(CKM_AES_KEY_GEN), &one_time_key(id)).map(drop);
        bench.session.log_out()?;
        bench.log_in_again()?;
        Ok((id, made, one_time))
    });
    match approved {
        Ok((id, made, one_time)) => {
            let under_public = |session: &Session, by, key| session.wrap(Mechanism::Oaep(OAEP_HASH), by, key);
            // A one-time key leaves under a custodian's key that is TRUSTED too.
            let both = made.clone().and(one_time);
            book.try_it(bench, (AREA, LEAVES, Need::Useful), |bench| {
                made.and_then(|()| leaves(bench, id, CKO_PUBLIC_KEY, under_public))
            });
            let under_secret = |session: &Session, by, key| session.wrap(session.key_wrap(), by, key);
            book.try_it(bench, (AREA, BACKUP, Need::Useful), |bench| {
                both.and_then(|()| leaves(bench, id, CKO_SECRET_KEY, under_secret))
            });
        }
        Err(failure) => {
            book.write(AREA, LEAVES, Need::Useful, Err(failure.clone()));
            book.write(AREA, BACKUP, Need::Useful, Err(failure));
        }
    }
}

/// As a target of `hsm bring`, the source being software.
fn comes(bench: &Bench<'_>) -> Result<(), Failure> {
    const KEY: &[u8; 32] = b"strongroom check of wrapping key";
    let session = bench.session;
    let id = BackingId::random()?;
    let pair = make_transport_pair(session, Place::Session, id, keys::unwraps_closed())?;
    let spki = encode::rsa_public_key(&pair.public.modulus, &pair.public.exponent)?;
    let public = RsaPublicKey::from_der(&spki).map_err(|error| wrong(error.to_string()))?;
    let encrypted = public.encrypt(OAEP_HASH, KEY).map_err(|error| wrong(error.to_string()))?;
    let template = keys::wrapping_key_labelled(id, LABEL);
    let come = session.unwrap(Mechanism::Oaep(OAEP_HASH), pair.private, &encrypted.0, &template);
    session.destroy(pair.private)?;
    session.destroy(come?)
}

/// Whether the wrapping key goes under the officer's key; another than that of
/// before, whose handle the logout may have voided.
fn leaves(
    bench: &Bench<'_>,
    id: BackingId,
    class: CK_OBJECT_CLASS,
    wrap: impl FnOnce(&Session, Handle, Handle) -> Result<Vec<u8>, Failure>,
) -> Result<(), Failure> {
    let session = bench.session;
    let found = session.find(&search(class, Place::Session, id))?;
    let [by] = found.as_slice() else { return Err(wrong("what the security officer made is not there")) };
    clean_up(session)?;
    let own = BackingId::random()?;
    make_wrapping_key(session, own)?;
    let found = session.find(&keys::search(own, Material::Aes256))?;
    let [key] = found.as_slice() else { return Err(wrong("the wrapping key is not found")) };
    let wrapped = wrap(session, *by, *key);
    session.destroy(*by)?;
    wrapped.map(drop)
}

fn software_key() -> Result<PublicKey, Failure> {
    let failed = || wrong("RSA in software");
    let key = PrivateDecryptingKey::generate(KeySize::Rsa3072).map_err(|_| failed())?.public_key();
    let der = key.as_der().map_err(|_| failed())?;
    let key = RsaPublicKey::from_der(der.as_ref()).map_err(|_| failed())?;
    Ok(PublicKey { modulus: key.modulus, exponent: key.exponent })
}
