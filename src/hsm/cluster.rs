//! The HSMs as the rest of the daemon sees them.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use secrecy::SecretString;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::attempts::Attempts;
use super::import::{self, Imported, Native, Order, Unwrapped, Wrapping};
use super::member::{Member, Parts, Step};
use super::meters::Function;
use super::modules::Modules;
use super::{
    Capability, ClusterIdentity, ClusterSettings, Curve, DataKeyPair, Hash, Home, HsmError, KeyRef, KeyRules,
    Material, MemberHealth, MemberSettings, MemberState, MemberStatus, Residence, Residents, Scheme, Sealed,
    TokenUri, Use,
};
use super::{keys, mechanism};

/// Most that [`Cluster::random`] gives at once, as KMS.
const RANDOM_BYTES_MAX: usize = 1024;

/// Members that serve the same keys.
///
/// Every call ends by its deadline. It goes to the member that serves, can do
/// it and has the fewest calls under way; where that member fails, another is asked,
/// unless the call's effect could then happen twice.
pub struct Cluster {
    modules: Arc<Modules>,
    members: ArcSwap<Vec<Arc<Member>>>,
    identity: Arc<ClusterIdentity>,
    settings: ClusterSettings,
    rules: KeyRules,
    health: Arc<watch::Sender<Vec<MemberHealth>>>,
    stop: CancellationToken,
    supervisors: Mutex<BTreeMap<String, Supervisor>>,
    /// Members so far, which names their threads.
    started: AtomicUsize,
    residents: Option<Arc<dyn Residents>>,
}

/// What looks after a member.
struct Supervisor {
    stop: CancellationToken,
    task: JoinHandle<()>,
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
        modules: &Arc<Modules>,
        members: Vec<(MemberSettings, SecretString)>,
        identity: ClusterIdentity,
        settings: ClusterSettings,
        rules: KeyRules,
    ) -> Result<Arc<Cluster>, HsmError> {
        Cluster::start_synchronized(modules, members, identity, settings, rules, None)
    }

    /// The same; a member that comes to others which serve gets those of the
    /// resident keys that it lacks before it serves.
    ///
    /// Errors: as those of [`Cluster::start`].
    pub fn start_synchronized(
        modules: &Arc<Modules>,
        members: Vec<(MemberSettings, SecretString)>,
        identity: ClusterIdentity,
        settings: ClusterSettings,
        rules: KeyRules,
        residents: Option<Arc<dyn Residents>>,
    ) -> Result<Arc<Cluster>, HsmError> {
        let cluster = Arc::new(Cluster {
            modules: modules.clone(),
            members: ArcSwap::default(),
            identity: Arc::new(identity),
            settings,
            rules,
            health: Arc::default(),
            stop: CancellationToken::new(),
            supervisors: Mutex::default(),
            started: AtomicUsize::new(0),
            residents,
        });
        for (member, pin) in members {
            cluster.add_member(&member, pin)?;
        }
        Ok(cluster)
    }

    /// Takes a token in, which is attached in the background: it serves when it
    /// is known to hold the cluster's wrapping key.
    ///
    /// Errors: a library that does not load, a token URI that is malformed or
    /// is a member's already, a module that there is not.
    pub fn add_member(&self, settings: &MemberSettings, pin: SecretString) -> Result<(), HsmError> {
        let token: TokenUri = settings.token.parse()?;
        let uri = token.to_string();
        let module = self.modules.get(&settings.module)?;
        let mut supervisors = self.supervisors.lock();
        if supervisors.contains_key(&uri) {
            return Err(HsmError::Unsupported(format!("{uri} is a member already")));
        }
        let (identity, news) = (self.identity.clone(), self.health.clone());
        let index = self.started.fetch_add(1, Ordering::Relaxed);
        let pin_name = settings.pin.clone();
        let settings = self.settings.clone();
        let residents = self.residents.clone();
        let parts = Parts { token, index, module, pin, pin_name, identity, settings, news, residents };
        let member = Arc::new(Member::start(parts)?);
        self.health.send_modify(|members| {
            members.push(MemberHealth { uri: uri.clone(), state: MemberState::Attaching, reason: None });
        });
        let mut members = Vec::clone(&self.members.load());
        members.push(member.clone());
        self.members.store(Arc::new(members));
        let stop = self.stop.child_token();
        let task = tokio::spawn(member.supervise(stop.clone()));
        supervisors.insert(uri, Supervisor { stop, task });
        Ok(())
    }

    /// Lets a member go, after what it has been asked to do is done. Takes at
    /// most about `call_timeout_ms` where a call hangs.
    ///
    /// Errors: it is no member.
    pub async fn remove_member(&self, uri: &str) -> Result<(), HsmError> {
        let member = self.member(uri)?;
        let supervisor = {
            let mut supervisors = self.supervisors.lock();
            let kept = self.members.load().iter().filter(|other| other.uri() != uri).cloned().collect();
            self.members.store(Arc::new(kept));
            self.health.send_modify(|members| members.retain(|member| member.uri != uri));
            supervisors.remove(uri)
        };
        self.end(vec![member], supervisor.into_iter().collect()).await;
        Ok(())
    }

    /// Takes a member out for maintenance, or brings it back.
    ///
    /// Errors: it is no member.
    pub fn set_maintenance(&self, uri: &str, out: bool) -> Result<(), HsmError> {
        self.member(uri)?.set_maintenance(out);
        Ok(())
    }

    /// Finishes what is queued, ends the threads and logs out. Takes at most
    /// about `call_timeout_ms` where a call hangs.
    pub async fn shutdown(&self) {
        let supervisors = std::mem::take(&mut *self.supervisors.lock());
        self.stop.cancel();
        self.end(Vec::clone(&self.members.load()), supervisors.into_values().collect()).await;
    }

    async fn end(&self, members: Vec<Arc<Member>>, supervisors: Vec<Supervisor>) {
        for supervisor in supervisors {
            supervisor.stop.cancel();
            if let Err(error) = supervisor.task.await {
                tracing::warn!("a member's supervisor ended badly: {error}");
            }
        }
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

    /// How long a call waits for one member before another is asked.
    pub(super) fn failover_timeout_ms(&self) -> u64 {
        self.settings.failover_timeout_ms
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
        self.members.load().iter().map(|member| member.status()).collect()
    }

    /// What at least one member was found able to do, whether it serves now or
    /// not. Empty until the first is attached.
    pub fn capabilities(&self) -> HashSet<Capability> {
        self.members
            .load()
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
        let residence = self.least_residence(material)?;
        Some(if self.rules.resident { Residence::Resident } else { residence })
    }

    /// Wrapped where some member can wrap such keys.
    pub(super) fn least_residence(&self, material: Material) -> Option<Residence> {
        let members = self.members.load();
        let residences = members.iter().filter_map(|member| member.self_test()?.residence(material));
        residences.min_by_key(|residence| *residence == Residence::Resident)
    }

    /// The operator's word that a refused member may log in again, with a new
    /// PIN where it is another one.
    pub fn retry_pin(&self, uri: &str, pin: Option<SecretString>) -> Result<(), HsmError> {
        self.member(uri)?.retry_pin(pin);
        Ok(())
    }

    /// A member by its URI.
    pub(super) fn member(&self, uri: &str) -> Result<Arc<Member>, HsmError> {
        let members = self.members.load();
        let member = members.iter().find(|member| member.uri() == uri).cloned();
        member.ok_or_else(|| HsmError::Unsupported(format!("{uri} is no member")))
    }

    /// The members.
    pub(super) fn all(&self) -> Arc<Vec<Arc<Member>>> {
        self.members.load_full()
    }

    /// Those that serve now, or will when they have the keys that they lack.
    pub(super) fn attached(&self) -> Vec<Arc<Member>> {
        let is = |member: &&Arc<Member>| {
            matches!(member.state(), MemberState::Serving | MemberState::Synchronizing)
        };
        self.members.load().iter().filter(is).cloned().collect()
    }

    /// Unwraps key material that a caller encrypted to `wrapper`, a key made for
    /// [`Use::Import`]; [`HsmError::Input`] where it does not decrypt,
    /// [`HsmError::Unfit`] where it is of another kind.
    pub async fn import(
        &self,
        wrapper: &KeyRef,
        wrapping: Wrapping,
        material: Material,
        usage: Use,
        encrypted: &[u8],
        deadline: Instant,
    ) -> Result<Imported, HsmError> {
        let order =
            Order { wrapper: wrapper.clone(), wrapping, material, usage, encrypted: encrypted.to_vec() };
        let hash = wrapping.hash();
        let step: Step<_> = Arc::new(move |session, wrapping_key, test| {
            let native = Native { decrypts: test.oaep_is_native(hash), unwraps: test.import_is_native(hash) };
            import::import(session, wrapping_key, native, &order)
        });
        let capability = Some(Capability::Import(hash));
        let Unwrapped { blob, public_key, check } =
            self.anywhere(Function::Import, capability, deadline, step).await?;
        let home = Home::Wrapped { by: self.identity.wrapping_key, blob: blob.into() };
        Ok(Imported { home, public_key, check })
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

    /// How many session objects live on the members that serve: loaded keys,
    /// and those about to be destroyed. It searches the HSM: for diagnosis.
    pub async fn session_objects(&self, deadline: Instant) -> Result<usize, HsmError> {
        let step: Step<_> =
            Arc::new(|session, _, _| Ok(session.find(&keys::search_session_objects())?.len()));
        let mut all = 0;
        for member in self.attached() {
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
        let mut attempt = Attempts::new(self, function, Some(capability), Some(key), deadline);
        loop {
            let (member, until) = attempt.next().await?;
            let result = member.with_key(function, key, until, &step).await;
            if let Some(result) = attempt.settle(member, until, result) {
                return result;
            }
        }
    }

    /// Does something whose effect may happen twice.
    pub(super) async fn anywhere<T: Send + 'static>(
        &self,
        function: Function,
        capability: Option<Capability>,
        deadline: Instant,
        step: Step<T>,
    ) -> Result<T, HsmError> {
        let mut attempt = Attempts::new(self, function, capability, None, deadline);
        loop {
            let (member, until) = attempt.next().await?;
            let result = member.without_key(function, until, true, &step).await;
            if let Some(result) = attempt.settle(member, until, result) {
                return result;
            }
        }
    }

    /// The member for a call: the one that serves and can do it with the
    /// fewest calls, or else one that is being attached; with how many others
    /// there are.
    pub(super) async fn pick(
        &self,
        capability: Option<Capability>,
        key: Option<&KeyRef>,
        tried: &[Arc<Member>],
        deadline: Instant,
    ) -> Result<(Arc<Member>, usize), HsmError> {
        // An object that no blob brings to others: ask first who has it.
        let only = key.filter(|key| matches!(key.home, Home::Resident { blob: None }));
        let mut health = self.health.subscribe();
        loop {
            health.borrow_and_update();
            let members = self.members.load();
            let mut best = None;
            let (mut candidates, mut hopeful) = (0, false);
            for member in members.iter() {
                let untried = !tried.iter().any(|other| Arc::ptr_eq(other, member));
                let can = capability.is_none_or(|capability| member.can(capability).unwrap_or(true));
                match member.state() {
                    // What it lacks still, it gets when it is asked for it.
                    state @ (MemberState::Serving | MemberState::Synchronizing) if untried && can => {
                        let absent = only.is_some_and(|key| !member.has_loaded(key.id));
                        let early = state == MemberState::Synchronizing;
                        let rank = (early, member.is_slow(), absent, member.calls());
                        candidates += 1;
                        if best.as_ref().is_none_or(|(_, least)| rank < *least) {
                            best = Some((member.clone(), rank));
                        }
                    }
                    MemberState::Attaching if untried && can => hopeful = true,
                    _ => {}
                }
            }
            drop(members);
            match best {
                Some((member, _)) => return Ok((member, candidates - 1)),
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
    pub(super) fn why_not(&self, capability: Option<Capability>) -> HsmError {
        let cannot =
            |capability| self.members.load().iter().all(|member| member.can(capability) == Some(false));
        match capability {
            Some(capability) if cannot(capability) => {
                HsmError::Unsupported(format!("no member of the cluster offers {capability}"))
            }
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
                HsmError::Unavailable(format!("no member of the cluster serves: {}", reasons.join("; ")))
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

/// SEC 1, 2.3.3: 04, x, y.
fn check_point(curve: Curve, point: &[u8]) -> Result<(), HsmError> {
    match point.first() {
        Some(4) if point.len() == 1 + 2 * curve.field_bytes() => Ok(()),
        _ => Err(HsmError::Input),
    }
}
