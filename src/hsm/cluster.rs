//! The HSMs as the rest of the daemon sees them.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use cryptoki_sys::{CKA_ID, CKO_PRIVATE_KEY, CKO_SECRET_KEY};
use parking_lot::Mutex;
use secrecy::SecretString;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::member::{Member, Parts, Step};
use super::meters::Function;
use super::modules::Modules;
use super::{
    BackingId, Capability, ClusterIdentity, ClusterSettings, Curve, DataKeyPair, Hash, Home, HsmError,
    KeyRef, KeyRules, Made, Material, MemberHealth, MemberSettings, MemberState, MemberStatus, Residence,
    Scheme, Sealed, Use,
};
use super::{keys, mechanism};

/// Most that [`Cluster::random`] gives at once, as KMS.
const RANDOM_BYTES_MAX: usize = 1024;

/// Members that serve the same keys.
///
/// Every call ends by its deadline. It goes to the member that serves, can do
/// it and has the shortest queue; where that member fails, another is asked,
/// unless the call's effect could then happen twice.
pub struct Cluster {
    members: Vec<Arc<Member>>,
    identity: Arc<ClusterIdentity>,
    settings: ClusterSettings,
    rules: KeyRules,
    health: Arc<watch::Sender<Vec<MemberHealth>>>,
    stop: CancellationToken,
    supervisors: Mutex<Vec<JoinHandle<()>>>,
}

impl Cluster {
    /// Starts the members on their modules, each with the crypto user's PIN;
    /// they attach in the background, and a token that is away may come
    /// later. Called within a tokio runtime, with the metrics recorder
    /// installed.
    ///
    /// Errors: a library that does not load, a token URI that is malformed, a
    /// member that names no module.
    pub fn start(
        modules: &Modules,
        members: Vec<(MemberSettings, SecretString)>,
        identity: ClusterIdentity,
        settings: ClusterSettings,
        rules: KeyRules,
    ) -> Result<Arc<Cluster>, HsmError> {
        let mut tokens = Vec::with_capacity(members.len());
        for (member, pin) in members {
            tokens.push((member.token.parse::<super::TokenUri>()?, modules.get(&member.module)?, pin));
        }
        let attaching = |token: &super::TokenUri| MemberHealth {
            uri: token.to_string(),
            state: MemberState::Attaching,
            reason: None,
        };
        let health =
            Arc::new(watch::Sender::new(tokens.iter().map(|(token, ..)| attaching(token)).collect()));
        let identity = Arc::new(identity);
        let mut members = Vec::with_capacity(tokens.len());
        for (index, (token, module, pin)) in tokens.into_iter().enumerate() {
            let (identity, settings, news) = (identity.clone(), settings.clone(), health.clone());
            let parts = Parts { token, index, module, pin, identity, settings, news };
            members.push(Arc::new(Member::start(parts)?));
        }
        let stop = CancellationToken::new();
        let supervise = |member: &Arc<Member>| tokio::spawn(member.clone().supervise(stop.clone()));
        let supervisors = Mutex::new(members.iter().map(supervise).collect());
        Ok(Arc::new(Cluster { members, identity, settings, rules, health, stop, supervisors }))
    }

    /// Finishes what is queued, ends the threads and logs out. Takes at most
    /// about `call_timeout_ms` where a call hangs.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        let supervisors = std::mem::take(&mut *self.supervisors.lock());
        for supervisor in supervisors {
            if let Err(error) = supervisor.await {
                tracing::warn!("a member's supervisor ended badly: {error}");
            }
        }
        let members = self.members.clone();
        let patience = Duration::from_millis(self.settings.call_timeout_ms);
        let ended =
            tokio::task::spawn_blocking(move || members.iter().for_each(|member| member.stop(patience)));
        if let Err(error) = ended.await {
            tracing::warn!("the members of a cluster were not ended well: {error}");
        }
    }

    /// What makes a token a member of this cluster, and the daemon's own keys.
    pub fn identity(&self) -> &ClusterIdentity {
        &self.identity
    }

    /// How it keeps its keys.
    pub fn rules(&self) -> KeyRules {
        self.rules
    }

    /// The health of each member, now and whenever it changes.
    pub fn watch(&self) -> watch::Receiver<Vec<MemberHealth>> {
        self.health.subscribe()
    }

    /// What an operator sees of each member.
    pub fn members(&self) -> Vec<MemberStatus> {
        self.members.iter().map(|member| member.status()).collect()
    }

    /// What at least one member was found able to do, whether it serves now or
    /// not. Empty until the first is attached.
    pub fn capabilities(&self) -> HashSet<Capability> {
        self.members
            .iter()
            .filter_map(|member| member.self_test())
            .flat_map(|test| {
                let works = test.results().iter().filter(|(_, result)| result.is_ok());
                works.map(|(capability, _)| *capability).collect::<Vec<_>>()
            })
            .collect()
    }

    /// How [`Cluster::generate`] will keep keys of a kind; None where no member
    /// was found able to make them.
    pub fn residence(&self, material: Material) -> Option<Residence> {
        let residences = self.members.iter().filter_map(|member| member.self_test()?.residence(material));
        let residence = residences.min_by_key(|residence| *residence == Residence::Resident)?;
        Some(if self.rules.resident { Residence::Resident } else { residence })
    }

    /// The operator's word that a refused member may log in again, with a new
    /// PIN where it is another one.
    pub fn retry_pin(&self, uri: &str, pin: Option<SecretString>) -> Result<(), HsmError> {
        let member = self.members.iter().find(|member| member.uri() == uri);
        let member = member.ok_or_else(|| HsmError::Unsupported(format!("{uri} is no member")))?;
        member.retry_pin(pin);
        Ok(())
    }

    /// Makes a backing key named `id`: wrapped where its kind can be, else as a
    /// token object.
    pub async fn generate(
        &self,
        id: BackingId,
        material: Material,
        usage: Use,
        deadline: Instant,
    ) -> Result<Made, HsmError> {
        let member = self.pick(Some(Capability::Make(material)), &[], deadline).await?;
        match self.residence(material) {
            None => Err(self.why_not(Some(Capability::Make(material)))),
            Some(Residence::Wrapped) => {
                let step: Step<_> = Arc::new(move |session, wrapping_key, _| {
                    keys::make_wrapped(session, wrapping_key, material, usage)
                });
                let capability = Capability::Make(material);
                let (blob, public_key) =
                    self.anywhere(Function::Generate, Some(capability), deadline, step).await?;
                let home = Home::Wrapped { by: self.identity.wrapping_key, blob: blob.into() };
                Ok(Made { key: KeyRef { id, material, usage, home }, public_key })
            }
            Some(Residence::Resident) => {
                let step: Step<_> =
                    Arc::new(move |session, _, _| keys::make_resident(session, id, material, usage));
                let public_key = member.without_key(Function::Generate, deadline, false, &step).await?;
                Ok(Made { key: KeyRef { id, material, usage, home: Home::Resident }, public_key })
            }
        }
    }

    /// AES-256-GCM under a random 96-bit IV.
    pub async fn encrypt_gcm(
        &self,
        key: &KeyRef,
        aad: &[u8],
        plaintext: &[u8],
        deadline: Instant,
    ) -> Result<Sealed, HsmError> {
        let (aad, plaintext) = (aad.to_vec(), Zeroizing::new(plaintext.to_vec()));
        let step: Step<_> =
            Arc::new(move |session, key, _| mechanism::encrypt_gcm(session, key, &aad, &plaintext));
        self.with_key(Function::Encrypt, Capability::AesGcm, key, deadline, step).await
    }

    /// Undoes [`Cluster::encrypt_gcm`]; [`HsmError::Input`] where the tag does
    /// not fit.
    pub async fn decrypt_gcm(
        &self,
        key: &KeyRef,
        iv: [u8; 12],
        aad: &[u8],
        ciphertext: &[u8],
        deadline: Instant,
    ) -> Result<Zeroizing<Vec<u8>>, HsmError> {
        let (aad, ciphertext) = (aad.to_vec(), ciphertext.to_vec());
        let step: Step<_> =
            Arc::new(move |session, key, _| mechanism::decrypt_gcm(session, key, iv, &aad, &ciphertext));
        self.with_key(Function::Decrypt, Capability::AesGcm, key, deadline, step).await
    }

    /// RSA-OAEP decryption (RFC 8017, 7.1.2) with an empty label;
    /// [`HsmError::Input`] for everything that is wrong with the ciphertext.
    pub async fn oaep_decrypt(
        &self,
        key: &KeyRef,
        hash: Hash,
        ciphertext: &[u8],
        deadline: Instant,
    ) -> Result<Zeroizing<Vec<u8>>, HsmError> {
        let (material, ciphertext) = (key.material, ciphertext.to_vec());
        let step: Step<_> = Arc::new(move |session, key, test| {
            let native = test.oaep_is_native(hash);
            mechanism::oaep_decrypt(session, key, material, hash, native, &ciphertext)
        });
        self.with_key(Function::Decrypt, Capability::OaepDecrypt(hash), key, deadline, step).await
    }

    /// A signature over a digest (RSA, ECDSA) or a message (Ed25519, ML-DSA);
    /// ECDSA's is DER.
    pub async fn sign(
        &self,
        key: &KeyRef,
        scheme: Scheme,
        input: &[u8],
        deadline: Instant,
    ) -> Result<Vec<u8>, HsmError> {
        let (material, input) = (key.material, input.to_vec());
        let step: Step<_> =
            Arc::new(move |session, key, _| mechanism::sign(session, key, material, scheme, &input));
        self.with_key(Function::Sign, Capability::Sign(material, scheme), key, deadline, step).await
    }

    /// HMAC (RFC 2104).
    pub async fn mac(
        &self,
        key: &KeyRef,
        hash: Hash,
        data: &[u8],
        deadline: Instant,
    ) -> Result<Vec<u8>, HsmError> {
        let data = Zeroizing::new(data.to_vec());
        let step: Step<_> = Arc::new(move |session, key, _| mechanism::mac(session, key, hash, &data));
        self.with_key(Function::Mac, Capability::Mac(hash), key, deadline, step).await
    }

    /// ECDH (SP 800-56A, 5.7.1.2): the x coordinate, as long as a field element.
    /// `peer` is an uncompressed SEC 1 point; [`HsmError::Input`] where the HSM
    /// does not take it.
    pub async fn agree(
        &self,
        key: &KeyRef,
        peer: &[u8],
        deadline: Instant,
    ) -> Result<Zeroizing<Vec<u8>>, HsmError> {
        let Material::Ec(curve) = key.material else {
            return Err(HsmError::Unsupported(format!("ECDH with a key of {:?}", key.material)));
        };
        check_point(curve, peer)?;
        let peer = peer.to_vec();
        let step: Step<_> = Arc::new(move |session, key, _| keys::agree(session, key, curve, &peer));
        self.with_key(Function::Agree, Capability::Agree(curve), key, deadline, step).await
    }

    /// Random bytes from an HSM, at most 1024.
    pub async fn random(&self, bytes: usize, deadline: Instant) -> Result<Zeroizing<Vec<u8>>, HsmError> {
        if bytes > RANDOM_BYTES_MAX {
            return Err(HsmError::Input);
        }
        let step: Step<_> = Arc::new(move |session, _, _| session.random(bytes));
        self.anywhere(Function::Random, None, deadline, step).await
    }

    /// A key pair that the HSM makes and gives away.
    pub async fn data_key_pair(
        &self,
        material: Material,
        deadline: Instant,
    ) -> Result<DataKeyPair, HsmError> {
        let step: Step<_> = Arc::new(move |session, _, _| keys::data_key_pair(session, material));
        self.anywhere(Function::DataKeyPair, Some(Capability::Make(material)), deadline, step).await
    }

    /// Destroys a key: a wrapped one leaves every cache, a resident one every
    /// token, after its last use has ended; one that is not there is destroyed.
    ///
    /// [`HsmError::Unavailable`] where a member did not answer, so that the key
    /// may be there still: to be called again.
    pub async fn destroy(&self, key: &KeyRef, deadline: Instant) -> Result<(), HsmError> {
        let mut result = Ok(());
        for member in &self.members {
            let destroyed = match member.forget(key, deadline).await {
                Ok(()) if key.home == Home::Resident => destroy_resident(member, key, deadline).await,
                other => other,
            };
            result = result.and(destroyed);
        }
        result
    }

    /// The ids of the resident backing keys on all members that serve.
    pub async fn inventory(&self, deadline: Instant) -> Result<Vec<BackingId>, HsmError> {
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
        let mut all = Vec::new();
        let serving = self.members.iter().filter(|member| member.state() == MemberState::Serving);
        for member in serving {
            all.extend(member.without_key(Function::Find, deadline, true, &step).await?);
        }
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    /// How many session objects live on the members that serve: loaded keys,
    /// and those about to be destroyed. It searches the HSM: for diagnosis.
    pub async fn session_objects(&self, deadline: Instant) -> Result<usize, HsmError> {
        let step: Step<_> =
            Arc::new(|session, _, _| Ok(session.find(&keys::search_session_objects())?.len()));
        let mut all = 0;
        for member in self.members.iter().filter(|member| member.state() == MemberState::Serving) {
            all += member.without_key(Function::Find, deadline, true, &step).await?;
        }
        Ok(all)
    }

    async fn with_key<T: Send + 'static>(
        &self,
        function: Function,
        capability: Capability,
        key: &KeyRef,
        deadline: Instant,
        step: Step<T>,
    ) -> Result<T, HsmError> {
        let mut tried = Vec::new();
        loop {
            let member = self.pick(Some(capability), &tried, deadline).await?;
            match member.with_key(function, key, deadline, &step).await {
                Err(error) if self.is_worth_another(&error, &member, &mut tried) => {}
                other => return other,
            }
        }
    }

    /// Does something whose effect may happen twice.
    async fn anywhere<T: Send + 'static>(
        &self,
        function: Function,
        capability: Option<Capability>,
        deadline: Instant,
        step: Step<T>,
    ) -> Result<T, HsmError> {
        let mut tried = Vec::new();
        loop {
            let member = self.pick(capability, &tried, deadline).await?;
            match member.without_key(function, deadline, true, &step).await {
                Err(error) if self.is_worth_another(&error, &member, &mut tried) => {}
                other => return other,
            }
        }
    }

    /// Whether another member might do better; notes the one that failed.
    fn is_worth_another(&self, error: &HsmError, member: &Arc<Member>, tried: &mut Vec<Arc<Member>>) -> bool {
        tried.push(member.clone());
        tried.len() < self.members.len()
            && matches!(
                error,
                HsmError::Unavailable(_) | HsmError::Busy | HsmError::Missing(_) | HsmError::Device(_)
            )
    }

    /// The member for a call: the one that serves and can do it with the
    /// shortest queue, or else one that is being attached.
    async fn pick(
        &self,
        capability: Option<Capability>,
        tried: &[Arc<Member>],
        deadline: Instant,
    ) -> Result<Arc<Member>, HsmError> {
        let mut health = self.health.subscribe();
        loop {
            health.borrow_and_update();
            let mut best: Option<(&Arc<Member>, usize)> = None;
            let mut hopeful = false;
            for member in &self.members {
                let untried = !tried.iter().any(|other| Arc::ptr_eq(other, member));
                let can = capability.is_none_or(|capability| member.can(capability).unwrap_or(true));
                match member.state() {
                    MemberState::Serving if untried && can => {
                        let waiting = member.waiting();
                        if best.is_none_or(|(_, least)| waiting < least) {
                            best = Some((member, waiting));
                        }
                    }
                    MemberState::Attaching if untried && can => hopeful = true,
                    _ => {}
                }
            }
            match best {
                Some((member, _)) => return Ok(member.clone()),
                None if !hopeful => return Err(self.why_not(capability)),
                None => {}
            }
            let changed = tokio::time::timeout_at(deadline, health.changed()).await;
            if changed.is_err() {
                return Err(HsmError::Deadline);
            }
        }
    }

    /// Why no member does it.
    fn why_not(&self, capability: Option<Capability>) -> HsmError {
        let cannot = |capability| self.members.iter().all(|member| member.can(capability) == Some(false));
        match capability {
            Some(capability) if cannot(capability) => HsmError::Unsupported(format!("{capability}")),
            _ => {
                let reasons: Vec<String> = self
                    .health
                    .borrow()
                    .iter()
                    .map(|member| {
                        let reason = member.reason.as_deref().unwrap_or("it failed");
                        format!("{}: {reason}", member.uri)
                    })
                    .collect();
                HsmError::Unavailable(reasons.join("; "))
            }
        }
    }
}

/// Without [`Cluster::shutdown`] the members at least are no longer looked after.
impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn destroy_resident(member: &Arc<Member>, key: &KeyRef, deadline: Instant) -> Result<(), HsmError> {
    let search = keys::search(key.id, key.material);
    let step: Step<_> = Arc::new(move |session, _, _| {
        session.find(&search)?.into_iter().try_for_each(|handle| session.destroy(handle))
    });
    member.without_key(Function::Destroy, deadline, true, &step).await
}

/// SEC 1, 2.3.3: 04, x, y.
fn check_point(curve: Curve, point: &[u8]) -> Result<(), HsmError> {
    match point.first() {
        Some(4) if point.len() == 1 + 2 * curve.field_bytes() => Ok(()),
        _ => Err(HsmError::Input),
    }
}
