//! What a module and a token of it are worth to Strongroom, tried before anybody
//! relies on them: `strongroom hsm check`, and the tests of each vendor's module.
//!
//! What a member's [`SelfTest`] tries, and beside it what the daemon takes for
//! granted: that attributes are kept to, that sessions share their objects, that
//! a caller's fault is told from the HSM's. Everything is made under a label of its
//! own, and destroyed.

mod attributes;
mod limits;
mod sessions;
mod travel;

use std::sync::Arc;

use cryptoki_sys::*;
use metrics::Gauge;
use secrecy::SecretString;

use super::ceremony::{find_slot, unavailable};
use super::ckr::Failure;
use super::keys;
use super::module::Life;
use super::modules::Modules;
use super::selftest::SelfTest;
use super::session::{Handle, Mechanism, Session, Template};
use super::transport::TokenAccess;
use super::{BackingId, Capability, HsmError, Material, Residence};

/// CKA_LABEL of every token object that is made here.
const LABEL: &str = "strongroom check";

/// How much depends on a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// The daemon cannot use the HSM without it, or keys are not safe.
    Required,
    /// Something is not offered without it.
    Useful,
}

/// One thing that was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it is about.
    pub area: &'static str,
    /// What the HSM should do.
    pub what: String,
    /// How much depends on it.
    pub need: Need,
    /// More about it, or why not; None where it was not tried.
    pub result: Option<Result<String, String>>,
}

/// What a token's keys can be, and do.
#[derive(Debug, Clone)]
pub struct Conformance {
    /// Each capability with why it is not offered.
    pub capabilities: Vec<(Capability, Result<(), String>)>,
    /// How a kind of key lives, for those that can be made.
    pub residences: Vec<(Material, Residence)>,
}

impl Conformance {
    /// Why the token does not have a capability; None where it has it.
    pub fn lacks(&self, capability: Capability) -> Option<&str> {
        match self.capabilities.iter().find(|(known, _)| *known == capability) {
            Some((_, Ok(()))) => None,
            Some((_, Err(reason))) => Some(reason),
            None => Some("it is not known here"),
        }
    }

    /// How keys of a kind live.
    pub fn residence(&self, material: Material) -> Option<Residence> {
        self.residences.iter().find(|(known, _)| *known == material).map(|(_, residence)| *residence)
    }
}

/// Tries everything on a token, and tells each finding as soon as it is known.
/// With the security officer's PIN also what needs their approval. A wrong PIN is
/// not tried: it might lock the token. Blocks, for some seconds.
///
/// `modules` must not have members that serve, as the token is logged out.
///
/// # Errors
/// Where there is no such token, or nobody can log in.
pub fn check_conformance(
    modules: &Modules,
    token: &TokenAccess,
    so_pin: Option<&SecretString>,
    tell: &mut dyn FnMut(Finding),
) -> Result<Conformance, HsmError> {
    let life = modules.get(&token.module)?.life()?;
    let slot = find_slot(&life, &token.token)?;
    let session = Session::open(&life, slot, &Gauge::noop()).map_err(unavailable)?;
    session.log_in(&token.pin).map_err(unavailable)?;
    let _logged_in = LoggedIn(&session);
    let mut book = Book(tell);
    clean_up(&session).map_err(unavailable)?;
    let id = BackingId::random()?;
    let made = make_wrapping_key(&session, id);
    let note = made.as_ref().map(|_| String::new()).map_err(Clone::clone);
    book.write("wrapping key", "is made with its template", Need::Required, note);
    let Ok(wrapping_key) = made else { return Ok(nothing()) };
    let bench = Bench { life: &life, slot, session: &session, wrapping_key, token, so_pin };
    sessions::check(&bench, &mut book);
    attributes::check(&bench, &mut book);
    limits::check(&bench, &mut book);
    let test = SelfTest::run(&session, wrapping_key, &|| bench.open());
    // As the last: the security officer's login ends the user's.
    travel::check(&bench, &mut book);
    let cleaned = bench.log_in_again().and_then(|()| clean_up(&session));
    book.write("objects", "are destroyed", Need::Required, cleaned.map(|()| String::new()));
    Ok(conformance(&test))
}

/// The process is logged out at the end.
struct LoggedIn<'a>(&'a Session);

impl Drop for LoggedIn<'_> {
    fn drop(&mut self) {
        // Where nobody is logged in any more that is what it says.
        let _ = self.0.log_out();
    }
}

#[derive(Clone, Copy)]
struct Bench<'a> {
    life: &'a Arc<Life>,
    slot: CK_SLOT_ID,
    session: &'a Session,
    wrapping_key: Handle,
    token: &'a TokenAccess,
    so_pin: Option<&'a SecretString>,
}

impl Bench<'_> {
    fn open(&self) -> Result<Session, Failure> {
        Session::open(self.life, self.slot, &Gauge::noop())
    }

    fn log_in_again(&self) -> Result<(), Failure> {
        self.session.log_in(&self.token.pin)
    }
}

/// Where findings are written.
struct Book<'a>(&'a mut dyn FnMut(Finding));

impl Book<'_> {
    fn write(&mut self, area: &'static str, what: &str, need: Need, result: Result<String, Failure>) {
        let result = Some(result.map_err(|failure| failure.to_string()));
        (self.0)(Finding { area, what: what.to_owned(), need, result });
    }

    /// Tries something in a session of its own, which it may leave useless.
    fn try_it<T: Note>(
        &mut self,
        bench: &Bench<'_>,
        (area, what, need): (&'static str, &str, Need),
        attempt: impl FnOnce(&Bench<'_>) -> Result<T, Failure>,
    ) {
        let result = bench.open().and_then(|session| attempt(&Bench { session: &session, ..*bench }));
        self.write(area, what, need, result.map(Note::note));
    }

    fn leave_out(&mut self, area: &'static str, what: &str, need: Need) {
        (self.0)(Finding { area, what: what.to_owned(), need, result: None });
    }
}

/// What there is to say about what works.
trait Note {
    fn note(self) -> String;
}

impl Note for () {
    fn note(self) -> String {
        String::new()
    }
}

impl Note for String {
    fn note(self) -> String {
        self
    }
}

fn wrong(what: impl Into<String>) -> Failure {
    HsmError::Device(what.into()).into()
}

/// Whether the HSM refused, as it should; a token that is gone refuses nothing.
fn refusal<T>(result: Result<T, Failure>, otherwise: &str) -> Result<(), Failure> {
    match result {
        Ok(_) => Err(wrong(otherwise)),
        Err(failure) if failure.is_judgement() => Ok(()),
        Err(failure) => Err(failure),
    }
}

fn make_wrapping_key(session: &Session, id: BackingId) -> Result<Handle, Failure> {
    let template = Template::default().number(CKA_VALUE_LEN, 32).and(keys::wrapping_key_labelled(id, LABEL));
    session.generate(Mechanism::Plain(CKM_AES_KEY_GEN), &template)
}

/// Destroys what this check, or one before it, made in the token.
fn clean_up(session: &Session) -> Result<(), Failure> {
    for class in [CKO_SECRET_KEY, CKO_PRIVATE_KEY, CKO_PUBLIC_KEY] {
        for handle in session.find(&keys::search_label(class, LABEL))? {
            session.destroy(handle)?;
        }
    }
    Ok(())
}

fn conformance(test: &SelfTest) -> Conformance {
    let capabilities = test.results().to_vec();
    let residences = capabilities.iter().filter_map(|(capability, _)| match capability {
        Capability::Make(material) => Some((*material, test.residence(*material)?)),
        _ => None,
    });
    Conformance { residences: residences.collect(), capabilities }
}

fn nothing() -> Conformance {
    Conformance { capabilities: Vec::new(), residences: Vec::new() }
}
