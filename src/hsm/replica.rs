//! Keys on several members: made so that they outlive one, compared with the
//! store, and brought back.
//!
//! A key is made as a session object, wrapped once and destroyed. A resident
//! one is then unwrapped onto each member, and its blob kept: so a member that
//! was away, was wiped or lost the object gets it again when it next needs it.

use cryptoki_sys::{CKA_ID, CKO_PRIVATE_KEY, CKO_SECRET_KEY};
use futures::stream::{FuturesUnordered, StreamExt as _};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

use super::ckr::Failure;
use super::cluster::Cluster;
use super::keys::{self, Form};
use super::mechanism;
use super::member::{Member, Step};
use super::meters::Function;
use super::selftest::{self, SelfTest, Subject};
use super::session::{Handle, Session};
use super::{
    BackingId, Capability, CopyState, Expected, Hash, Home, HsmError, KeyRef, Made, Material, Residence,
    Scheme, Sealed, Use,
};

/// What a copy of a secret key is tried with.
const MESSAGE: &[u8] = b"strongroom copy 1";

impl Cluster {
    /// Makes a backing key named `id`: wrapped, or as a token object on every
    /// member that serves.
    ///
    /// Errors: [`HsmError::Unsupported`] where no member can make it, or it
    /// cannot be on as many members as the cluster requires;
    /// [`HsmError::Unavailable`] where too few members took it, and then it is
    /// on none.
    pub async fn generate(
        &self,
        id: BackingId,
        material: Material,
        usage: Use,
        deadline: Instant,
    ) -> Result<Made, HsmError> {
        let capability = Some(Capability::Make(material));
        // Waits for the first member, which tells what is possible.
        let (member, _) = self.pick(capability, None, &[], deadline).await?;
        match (self.residence(material), self.least_residence(material)) {
            (Some(Residence::Wrapped), _) => {
                let step: Step<_> = Arc::new(move |session, wrapping_key, _| {
                    keys::make_wrapped(session, wrapping_key, material, usage)
                });
                let (blob, public_key) =
                    self.anywhere(Function::Generate, capability, deadline, step).await?;
                let home = Home::Wrapped { by: self.identity().wrapping_key, blob: blob.into() };
                Ok(Made { key: KeyRef { id, material, usage, home }, public_key })
            }
            (Some(Residence::Resident), Some(Residence::Wrapped)) => {
                self.generate_copies(id, material, usage, deadline).await
            }
            (Some(Residence::Resident), _) => {
                self.check_single_copy(material)?;
                let step: Step<_> =
                    Arc::new(move |session, _, _| keys::make_resident(session, id, material, usage));
                let public_key = member.without_key(Function::Generate, deadline, false, &step).await?;
                let home = Home::Resident { blob: None };
                Ok(Made { key: KeyRef { id, material, usage, home }, public_key })
            }
            (None, _) => Err(self.why_not(capability)),
        }
    }

    /// Members that a token object must be on before its key is used.
    pub fn required_copies(&self) -> usize {
        match self.rules().replicates_itself {
            true => 1,
            false => usize::from(self.rules().required_copies).max(1),
        }
    }

    /// Destroys a key: a wrapped one leaves every cache, a resident one every
    /// token, after its last use has ended; one that is not there is destroyed.
    ///
    /// [`HsmError::Unavailable`] where a member did not answer, so that the key
    /// may be there still: to be called again.
    pub async fn destroy(&self, key: &KeyRef, deadline: Instant) -> Result<(), HsmError> {
        let mut result = Ok(());
        for member in self.all().iter() {
            let destroyed = match member.forget(key, deadline).await {
                Ok(()) if key.home.is_resident() => destroy_on(member, key, deadline).await,
                other => other,
            };
            result = result.and(destroyed);
        }
        result
    }

    /// The ids of the resident backing keys on all members that serve.
    pub async fn inventory(&self, deadline: Instant) -> Result<Vec<BackingId>, HsmError> {
        let mut all = Vec::new();
        for member in self.attached() {
            all.extend(list_on(&member, deadline).await?);
        }
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    /// The ids of the resident backing keys on one member.
    ///
    /// Errors: it is no member, or does not serve.
    pub async fn inventory_of(&self, uri: &str, deadline: Instant) -> Result<Vec<BackingId>, HsmError> {
        list_on(&self.member(uri)?, deadline).await
    }

    /// Compares a key's object on one member with the key.
    ///
    /// Errors: it is no member, or does not serve.
    pub async fn compare(
        &self,
        uri: &str,
        expected: &Expected,
        deadline: Instant,
    ) -> Result<CopyState, HsmError> {
        let member = self.member(uri)?;
        let expected = expected.clone();
        let step: Step<_> = Arc::new(move |session, wrapping_key, test| {
            let found = session.find(&keys::search(expected.key.id, expected.key.material))?;
            match found.as_slice() {
                [] => Ok(CopyState::Missing),
                [handle] => match is_the_key(session, wrapping_key, test, *handle, &expected) {
                    Ok(()) => Ok(CopyState::Good),
                    Err(failure) if failure.is_judgement() => Ok(CopyState::Differing),
                    Err(failure) => Err(failure),
                },
                _ => Ok(CopyState::Differing),
            }
        });
        member.without_key(Function::Find, deadline, true, &step).await
    }

    /// Brings a key's object to one member, in the place of one that is not the
    /// key.
    ///
    /// Errors: [`HsmError::Unsupported`] where the key has no blob to bring it
    /// from; it is no member, or does not serve.
    pub async fn repair(
        &self,
        uri: &str,
        expected: &Expected,
        state: CopyState,
        deadline: Instant,
    ) -> Result<(), HsmError> {
        let member = self.member(uri)?;
        let Home::Resident { blob: Some(_) } = &expected.key.home else {
            return Err(HsmError::Unsupported(format!(
                "{} has no copy in the store to bring it from: {} cannot be wrapped",
                expected.key.id, expected.key.material
            )));
        };
        if state == CopyState::Differing {
            member.forget(&expected.key, deadline).await?;
            destroy_on(&member, &expected.key, deadline).await?;
        }
        let proof = expected.proof();
        install_on(&member, &expected.key, proof.as_ref(), deadline).await
    }

    /// Destroys an object of ours that no key has, on one member.
    ///
    /// Errors: it is no member, or does not serve.
    pub async fn remove_orphan(&self, uri: &str, id: BackingId, deadline: Instant) -> Result<(), HsmError> {
        let step: Step<_> = Arc::new(move |session, _, _| {
            for class in [CKO_SECRET_KEY, CKO_PRIVATE_KEY] {
                let search = keys::search_label(class, keys::KEY_LABEL).bytes(CKA_ID, &id.0);
                session.find(&search)?.into_iter().try_for_each(|handle| session.destroy(handle))?;
            }
            Ok(())
        });
        self.member(uri)?.without_key(Function::Destroy, deadline, true, &step).await
    }

    async fn generate_copies(
        &self,
        id: BackingId,
        material: Material,
        usage: Use,
        deadline: Instant,
    ) -> Result<Made, HsmError> {
        let capability = Some(Capability::Make(material));
        let step: Step<_> = Arc::new(move |session, wrapping_key, _| {
            let (blob, public_key) = keys::make_wrapped(session, wrapping_key, material, usage)?;
            let proof = match &public_key {
                Some(public_key) => Proof::PublicKey(public_key.clone()),
                None => prove_secret(session, wrapping_key, &blob, material, usage)?,
            };
            Ok((blob, public_key, proof))
        });
        let (blob, public_key, proof) = self.anywhere(Function::Generate, capability, deadline, step).await?;
        let key = KeyRef { id, material, usage, home: Home::Resident { blob: Some(blob.into()) } };
        let (members, required) = (self.attached(), self.required_copies());
        let (copies, failed) = self.install_on_all(&members, &key, &proof, required, deadline).await;
        if copies.len() >= required {
            let has_it = |member: &&Arc<Member>| copies.iter().any(|copy| Arc::ptr_eq(copy, member));
            self.all().iter().filter(|member| !has_it(member)).for_each(|member| member.lacks_a_key());
            return Ok(Made { key, public_key });
        }
        if let Err(error) = self.destroy(&key, deadline).await {
            tracing::warn!(key = %id, "copies of a key that was not made may be left: {error}");
        }
        Err(HsmError::Unavailable(format!(
            "a key must be on {required} members before it is used, and came to {} of {}: {}",
            copies.len(),
            self.all().len(),
            failed.join("; ")
        )))
    }

    /// Brings a key to members: on which it is, and why not on others. Once
    /// enough have it, one that is known not to answer in time is not waited for.
    async fn install_on_all(
        &self,
        members: &[Arc<Member>],
        key: &KeyRef,
        proof: &Proof,
        required: usize,
        deadline: Instant,
    ) -> (Vec<Arc<Member>>, Vec<String>) {
        let install = |member: &Arc<Member>| {
            let member = member.clone();
            async move { (install_on(&member, key, Some(proof), deadline).await, member) }
        };
        let mut installs: FuturesUnordered<_> = members.iter().map(install).collect();
        let mut waited_for: Vec<&Arc<Member>> = members.iter().collect();
        let (mut copies, mut failed, mut until) = (Vec::new(), Vec::new(), deadline);
        let slice = Duration::from_millis(self.failover_timeout_ms());
        while copies.len() < required || !waited_for.iter().all(|member| member.is_slow()) {
            let next = tokio::time::timeout_at(until.min(Instant::now() + slice), installs.next());
            match next.await {
                Ok(Some((result, member))) => {
                    waited_for.retain(|other| !Arc::ptr_eq(other, &member));
                    match result {
                        Ok(()) => copies.push(member),
                        Err(error) => failed.push(format!("{}: {error}", member.uri())),
                    }
                    if copies.len() == required {
                        until = until.min(Instant::now() + self.patience(Function::Install));
                    }
                }
                Ok(None) => break,
                Err(_) if Instant::now() >= until => break,
                Err(_) => {}
            }
        }
        for member in waited_for {
            member.mark_slow();
            failed.push(format!("{}: it does not answer in time", member.uri()));
        }
        (copies, failed)
    }

    /// Whether a key may be made that no other member can be given.
    fn check_single_copy(&self, material: Material) -> Result<(), HsmError> {
        let required = self.required_copies();
        if required > 1 && !self.rules().allow_single_copy {
            return Err(HsmError::Unsupported(format!(
                "{material} keys cannot be wrapped by these HSMs and so not be brought to another, while this cluster \
                 requires each key on {required} members; allow_single_copy permits keys on one member only"
            )));
        }
        if required > 1 {
            metrics::counter!("strongroom_hsm_single_copy_keys_total").increment(1);
        }
        Ok(())
    }
}

impl Expected {
    /// What a copy of it is tried with, where the store has it.
    pub(super) fn proof(&self) -> Option<Proof> {
        self.public_key.clone().map(Proof::PublicKey)
    }
}

/// By what a copy of a key is known.
#[derive(Clone)]
pub(super) enum Proof {
    /// DER SubjectPublicKeyInfo.
    PublicKey(Vec<u8>),
    /// What the AES key made of [`MESSAGE`].
    Sealed(Sealed),
    /// The HMAC key's code over [`MESSAGE`].
    Mac(Vec<u8>),
}

pub(super) async fn install_on(
    member: &Arc<Member>,
    key: &KeyRef,
    proof: Option<&Proof>,
    deadline: Instant,
) -> Result<(), HsmError> {
    let (key, proof) = (key.clone(), proof.cloned());
    member
        .on_attachment(Function::Install, deadline, move |attachment, session| {
            let Home::Resident { blob: Some(blob) } = &key.home else { return Ok(()) };
            let handle = attachment.install(session, &key, blob)?;
            match &proof {
                Some(proof) => check_copy(session, &attachment.self_test, handle, &key, proof),
                None => Ok(()),
            }
        })
        .await
}

pub(super) async fn destroy_on(
    member: &Arc<Member>,
    key: &KeyRef,
    deadline: Instant,
) -> Result<(), HsmError> {
    let search = keys::search(key.id, key.material);
    let step: Step<_> = Arc::new(move |session, _, _| {
        session.find(&search)?.into_iter().try_for_each(|handle| session.destroy(handle))
    });
    member.without_key(Function::Destroy, deadline, true, &step).await
}

pub(super) async fn list_on(member: &Arc<Member>, deadline: Instant) -> Result<Vec<BackingId>, HsmError> {
    let step: Step<_> = Arc::new(|session, _, _| {
        let mut ids = Vec::new();
        for class in [CKO_SECRET_KEY, CKO_PRIVATE_KEY] {
            for handle in session.find(&keys::search_label(class, keys::KEY_LABEL))? {
                match session.attribute(handle, CKA_ID)?.as_slice().try_into() {
                    Ok(id) => ids.push(BackingId(id)),
                    Err(_) => tracing::warn!("a key labelled as ours has a CKA_ID that is not"),
                }
            }
        }
        Ok(ids)
    });
    member.without_key(Function::Find, deadline, true, &step).await
}

/// Whether an object is the key: by its public key, or by what the copy in the
/// store makes.
fn is_the_key(
    session: &Session,
    wrapping_key: Handle,
    test: &SelfTest,
    handle: Handle,
    expected: &Expected,
) -> Result<(), Failure> {
    let key = &expected.key;
    let proof = match (&expected.public_key, &key.home) {
        (Some(public_key), _) => Proof::PublicKey(public_key.clone()),
        (None, Home::Resident { blob: Some(blob) }) => {
            prove_secret(session, wrapping_key, blob, key.material, key.usage)?
        }
        // Nothing is known of it but its name.
        (None, _) => return Ok(()),
    };
    check_copy(session, test, handle, key, &proof)
}

/// What a wrapped secret key makes.
fn prove_secret(
    session: &Session,
    wrapping_key: Handle,
    blob: &[u8],
    material: Material,
    usage: Use,
) -> Result<Proof, Failure> {
    let key = keys::unwrap(session, wrapping_key, blob, material, usage, Form::Loaded)?;
    let proof = match material {
        Material::Aes256 => mechanism::encrypt_gcm(session, key, b"", MESSAGE).map(Proof::Sealed),
        _ => mechanism::mac(session, key, hash_of(material), MESSAGE).map(Proof::Mac),
    };
    session.destroy(key)?;
    proof
}

fn check_copy(
    session: &Session,
    test: &SelfTest,
    handle: Handle,
    key: &KeyRef,
    proof: &Proof,
) -> Result<(), Failure> {
    let other = || Failure::from(HsmError::Device(format!("the copy of {} is another key", key.id)));
    match proof {
        Proof::Sealed(sealed) => {
            let opened = mechanism::decrypt_gcm(session, handle, sealed.iv, b"", &sealed.ciphertext)?;
            if opened.as_slice() == MESSAGE { Ok(()) } else { Err(other()) }
        }
        Proof::Mac(expected) => {
            let mac = mechanism::mac(session, handle, hash_of(key.material), MESSAGE)?;
            if mac == *expected { Ok(()) } else { Err(other()) }
        }
        Proof::PublicKey(public_key) => {
            let subject = Subject { handle, material: key.material, public_key: Some(public_key) };
            match (key.usage, key.material) {
                (Use::Agree, Material::Ec(curve)) => selftest::check_agreement(session, &subject, curve),
                (Use::Encrypt, _) => {
                    let native = test.oaep_is_native(Hash::Sha256);
                    selftest::check_oaep(session, &subject, Hash::Sha256, native)
                }
                (_, material) => selftest::check_signature(session, &subject, scheme_of(material)),
            }
        }
    }
}

fn hash_of(material: Material) -> Hash {
    match material {
        Material::Generic(28) => Hash::Sha224,
        Material::Generic(48) => Hash::Sha384,
        Material::Generic(64) => Hash::Sha512,
        _ => Hash::Sha256,
    }
}

fn scheme_of(material: Material) -> Scheme {
    match material {
        Material::Ec(_) => Scheme::Ecdsa,
        Material::Ed25519 => Scheme::Ed25519,
        Material::MlDsa(_) => Scheme::MlDsa,
        _ => Scheme::RsaPkcs1(Hash::Sha256),
    }
}
