//! Sessions: how many, and what they share.

use super::{Bench, Book, Need, refusal, wrong};
use crate::hsm::ckr::Failure;
use crate::hsm::keys::{self, Form};
use crate::hsm::mechanism;
use crate::hsm::session::Session;
use crate::hsm::{Hash, Material, Use};

const AREA: &str = "sessions";

/// What a member has open with two session threads: the anchor, the keeper, the
/// lane and theirs, and one more while it looks around.
const SESSIONS_NEEDED: usize = 6;

/// What 16 session threads come to.
const SESSIONS_TRIED: usize = 20;

const SECRET: Material = Material::Generic(32);

pub(super) fn check(bench: &Bench<'_>, book: &mut Book<'_>) {
    let mut required = |what: &str, attempt: fn(&Bench<'_>) -> Result<(), Failure>| {
        book.try_it(bench, (AREA, what, Need::Required), attempt);
    };
    required("share one login", shared_login);
    required("share session objects", shared_objects);
    required("take their objects along", objects_go);
    required("tell that somebody is logged in already", |bench| bench.log_in_again());
    book.write(AREA, &format!("are {SESSIONS_NEEDED} at once"), Need::Required, count(bench));
}

fn count(bench: &Bench<'_>) -> Result<String, Failure> {
    let mut open: Vec<Session> = Vec::new();
    while open.len() < SESSIONS_TRIED {
        match bench.open() {
            Ok(session) => open.push(session),
            // The one that everything is done in is open too.
            Err(failure) if open.len() + 1 < SESSIONS_NEEDED => {
                return Err(wrong(format!("after {}: {failure}", open.len() + 1)));
            }
            Err(_) => return Ok(format!("{} at most", open.len() + 1)),
        }
    }
    Ok(format!("more than {SESSIONS_TRIED}"))
}

fn shared_login(bench: &Bench<'_>) -> Result<(), Failure> {
    let other = bench.open()?;
    let key = keys::generate(&other, SECRET, Use::Mac, Form::Newborn)?.key;
    other.destroy(key)
}

fn shared_objects(bench: &Bench<'_>) -> Result<(), Failure> {
    let keeper = bench.open()?;
    let key = keys::generate(&keeper, SECRET, Use::Mac, Form::Newborn)?.key;
    let mac = mechanism::mac(bench.session, key, Hash::Sha256, b"from another session");
    keeper.destroy(key)?;
    mac.map(drop)
}

fn objects_go(bench: &Bench<'_>) -> Result<(), Failure> {
    let keeper = bench.open()?;
    let key = keys::generate(&keeper, SECRET, Use::Mac, Form::Newborn)?.key;
    drop(keeper);
    let trial = bench.open()?;
    refusal(
        mechanism::mac(&trial, key, Hash::Sha256, b"after its session"),
        "a session object is there after its session",
    )
}
