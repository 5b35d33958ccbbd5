//! What keeps one principal from taking the service from the others: a share
//! of the calls that run, behind which its others wait, and a rate of denials;
//! and one account: KMS's request quotas, by group of operations, and its counts
//! of what there may be.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::error::{Error, Exception, Result};
use crate::key::spec;
use crate::proto::kms::KeySpec;
use crate::wire::Text as _;

/// When a call that was not let in may be tried again.
const RETRY: Duration = Duration::from_millis(50);

/// How much of each.
#[derive(Debug, Clone)]
pub struct Limits {
    /// What there may be.
    pub counts: Counts,
    /// How often an account may ask.
    pub quotas: Quotas,
    /// Most calls of one principal that run at a time.
    pub requests_per_principal_max: u32,
    /// Most of its calls that wait to run.
    pub requests_waiting_per_principal_max: u32,
    /// Denials of one principal, after the burst.
    pub denials_per_second: NonZeroU32,
    /// Denials of one principal at once.
    pub denials_burst: NonZeroU32,
}

/// How many things there may be: KMS's resource quotas.
#[derive(Debug, Clone, Copy)]
pub struct Counts {
    /// Keys of an account in a Region.
    pub keys_per_account_max: u64,
    /// Aliases of an account in a Region.
    pub aliases_per_account_max: u64,
    /// Aliases of a key.
    pub aliases_per_key_max: u64,
    /// Grants of a key.
    pub grants_per_key_max: u64,
}

/// How many requests a second an account may make in a Region: KMS's request
/// quotas. As many may come at once.
#[derive(Debug, Clone)]
pub struct Quotas {
    /// Cryptographic operations with symmetric keys, and random bytes, together.
    pub symmetric_per_second: NonZeroU32,
    /// Cryptographic operations with RSA keys, together.
    pub rsa_per_second: NonZeroU32,
    /// Cryptographic operations with elliptic curve keys, together.
    pub ecc_per_second: NonZeroU32,
    /// Cryptographic operations with ML-DSA and other such keys, together.
    pub ml_dsa_per_second: NonZeroU32,
    /// Cryptographic operations with the keys of one custom key store, together.
    pub custom_key_store_per_second: NonZeroU32,
    /// Each other operation.
    pub operation_per_second: NonZeroU32,
    /// Operations that have a quota of their own.
    pub operations: BTreeMap<String, NonZeroU32>,
}

/// What shares a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group<'a> {
    /// Cryptography with symmetric keys.
    Symmetric,
    /// Cryptography with RSA keys.
    Rsa,
    /// Cryptography with elliptic curve keys.
    Ecc,
    /// Cryptography with other key pairs.
    MlDsa,
    /// Cryptography with keys of this custom key store.
    CustomKeyStore(&'a String),
    /// One operation.
    Operation(&'static str),
}

impl Group<'_> {
    /// The group of cryptographic operations with such a key of AWS's own key
    /// store, or with none.
    pub fn of_key(key: Option<KeySpec>) -> Self {
        match key {
            Some(spec) if spec.text().starts_with("RSA_") => Group::Rsa,
            Some(KeySpec::SymmetricDefault) | None => Group::Symmetric,
            Some(spec) if !spec::mac_algorithms(spec).is_empty() => Group::Symmetric,
            Some(spec) if spec.text().starts_with("ML_") => Group::MlDsa,
            Some(_) => Group::Ecc,
        }
    }
}

/// The brakes of a daemon; a reload replaces their limits.
pub struct Brakes {
    in_force: ArcSwap<InForce>,
}

/// By account and Region.
type Regional = DefaultKeyedRateLimiter<(String, Arc<str>)>;

struct InForce {
    limits: Limits,
    /// Of each principal that calls.
    shares: Mutex<HashMap<String, Arc<Share>>>,
    denials: DefaultKeyedRateLimiter<String>,
    symmetric: Regional,
    rsa: Regional,
    ecc: Regional,
    ml_dsa: Regional,
    /// By store.
    custom_key_stores: DefaultKeyedRateLimiter<String>,
    /// For operations without a quota of their own: by these too.
    others: DefaultKeyedRateLimiter<((String, Arc<str>), &'static str)>,
    operations: HashMap<String, Regional>,
}

impl Brakes {
    /// Brakes with these limits.
    pub fn new(limits: Limits) -> Self {
        Brakes { in_force: ArcSwap::from_pointee(InForce::new(limits)) }
    }

    /// Puts other limits in force, for what comes from now on.
    pub fn set(&self, limits: Limits) {
        self.in_force.store(Arc::new(InForce::new(limits)));
    }

    /// Waits until this principal may be denied again: each denial has its
    /// event, but one principal's come no faster than the log should grow by
    /// them.
    pub async fn denial(&self, principal: &str) {
        let in_force = self.in_force.load_full();
        in_force.denials.until_key_ready(&principal.to_owned()).await;
    }

    /// What there may be.
    pub fn counts(&self) -> Counts {
        self.in_force.load().limits.counts
    }

    /// Takes one request out of an account's quota in a Region.
    ///
    /// # Errors
    /// ThrottlingException.
    pub fn request(&self, account: &str, region: &Arc<str>, group: Group<'_>) -> Result<()> {
        let in_force = self.in_force.load();
        let whose = (account.to_owned(), region.clone());
        let taken = match group {
            Group::Symmetric => in_force.symmetric.check_key(&whose),
            Group::Rsa => in_force.rsa.check_key(&whose),
            Group::Ecc => in_force.ecc.check_key(&whose),
            Group::MlDsa => in_force.ml_dsa.check_key(&whose),
            Group::CustomKeyStore(id) => in_force.custom_key_stores.check_key(id),
            Group::Operation(name) => match in_force.operations.get(name) {
                Some(own) => own.check_key(&whose),
                None => in_force.others.check_key(&(whose, name)),
            },
        };
        taken.map_err(|refused| throttled(refused.wait_time_from(DefaultClock::default().now())))
    }

    /// Lets a principal's call in, once it has not too many running: one
    /// principal cannot take every session of the HSM from the others. Its calls
    /// are let in as they came.
    ///
    /// # Errors
    /// ThrottlingException, at once where too many wait already, or at the
    /// deadline.
    pub async fn admit(&self, principal: &str, deadline: Instant) -> Result<Admission> {
        let in_force = self.in_force.load_full();
        let share = in_force.share(principal);
        let mut admission = Admission { share, in_force, principal: principal.to_owned(), _permit: None };
        let share = admission.share.clone();
        if let Ok(permit) = share.running.clone().try_acquire_owned() {
            admission._permit = Some(permit);
            return Ok(admission);
        }
        let most = admission.in_force.limits.requests_waiting_per_principal_max;
        let _waiting = share.wait(most).ok_or_else(|| throttled(RETRY))?;
        match timeout_at(deadline, share.running.clone().acquire_owned()).await {
            Ok(Ok(permit)) => admission._permit = Some(permit),
            Ok(Err(_)) | Err(_) => return Err(throttled(RETRY)),
        }
        Ok(admission)
    }
}

/// A principal's share of the calls.
struct Share {
    running: Arc<Semaphore>,
    waiting: AtomicU32,
}

impl Share {
    /// One more that waits, unless too many do.
    fn wait(&self, most: u32) -> Option<Waiting<'_>> {
        let more = |waiting| (waiting < most).then_some(waiting + 1);
        self.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(Waiting(self))
    }
}

/// Somebody waits, until it is dropped.
struct Waiting<'a>(&'a Share);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

impl InForce {
    fn share(&self, principal: &str) -> Arc<Share> {
        let mut shares = self.shares.lock();
        if let Some(share) = shares.get(principal) {
            return share.clone();
        }
        let most = usize::try_from(self.limits.requests_per_principal_max).unwrap_or(usize::MAX);
        let running = Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
        let share = Arc::new(Share { running, waiting: AtomicU32::new(0) });
        shares.insert(principal.to_owned(), share.clone());
        share
    }

    /// Forgets the share of a principal of whom nothing runs or waits.
    fn leave(&self, principal: &str) {
        let mut shares = self.shares.lock();
        // One is the map's, one is the leaver's.
        if shares.get(principal).is_some_and(|share| Arc::strong_count(share) <= 2) {
            shares.remove(principal);
        }
    }
}

impl InForce {
    fn new(limits: Limits) -> Self {
        let denials = Quota::per_second(limits.denials_per_second).allow_burst(limits.denials_burst);
        let of = |per_second| -> Regional { RateLimiter::keyed(Quota::per_second(per_second)) };
        let quotas = &limits.quotas;
        InForce {
            shares: Mutex::default(),
            denials: RateLimiter::keyed(denials),
            symmetric: of(quotas.symmetric_per_second),
            rsa: of(quotas.rsa_per_second),
            ecc: of(quotas.ecc_per_second),
            ml_dsa: of(quotas.ml_dsa_per_second),
            custom_key_stores: RateLimiter::keyed(Quota::per_second(quotas.custom_key_store_per_second)),
            others: RateLimiter::keyed(Quota::per_second(quotas.operation_per_second)),
            operations: quotas.operations.iter().map(|(name, own)| (name.clone(), of(*own))).collect(),
            limits,
        }
    }
}

fn throttled(wait: Duration) -> Error {
    Error::new(
        Exception::Throttling,
        "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls.",
    )
    .retry_after(wait)
}

/// A call that was let in, until it is dropped.
pub struct Admission {
    _permit: Option<OwnedSemaphorePermit>,
    share: Arc<Share>,
    in_force: Arc<InForce>,
    principal: String,
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.in_force.leave(&self.principal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(most: u32) -> Limits {
        let (one, two) = (NonZeroU32::MIN, NonZeroU32::new(2).unwrap());
        Limits {
            requests_per_principal_max: most,
            requests_waiting_per_principal_max: 1,
            denials_per_second: one,
            denials_burst: one,
            counts: Counts {
                keys_per_account_max: 1,
                aliases_per_account_max: 1,
                aliases_per_key_max: 1,
                grants_per_key_max: 1,
            },
            quotas: Quotas {
                symmetric_per_second: two,
                rsa_per_second: one,
                ecc_per_second: one,
                ml_dsa_per_second: one,
                custom_key_store_per_second: one,
                operation_per_second: one,
                operations: [("CreateKey".to_owned(), two)].into(),
            },
        }
    }

    #[test]
    fn an_account_has_its_quota_of_each_group() {
        let brakes = Brakes::new(limits(9));
        let (home, west): (Arc<str>, Arc<str>) = ("us-east-1".into(), "eu-west-1".into());
        let ask = |account: &str, region, group| brakes.request(account, region, group);
        let one = |group| ask("111122223333", &home, group);
        let symmetric = Group::of_key(Some(KeySpec::Hmac256));
        assert!(one(symmetric).is_ok());
        assert!(one(Group::of_key(None)).is_ok());
        let refused = one(symmetric).unwrap_err();
        assert_eq!(refused.exception, Exception::Throttling);
        assert!(refused.retry_after.is_some_and(|wait| wait <= Duration::from_millis(500)));
        assert!(ask("444455556666", &home, symmetric).is_ok(), "another account's");
        assert!(ask("111122223333", &west, symmetric).is_ok(), "another Region's");
        for spec in [KeySpec::Rsa2048, KeySpec::EccNistP256, KeySpec::MlDsa65] {
            assert!(one(Group::of_key(Some(spec))).is_ok(), "{}", spec.text());
            assert!(one(Group::of_key(Some(spec))).is_err(), "{}", spec.text());
        }
        for name in ["CreateKey", "CreateKey", "CreateAlias", "DeleteAlias"] {
            assert!(one(Group::Operation(name)).is_ok(), "{name}");
        }
        for name in ["CreateKey", "CreateAlias"] {
            assert!(one(Group::Operation(name)).is_err(), "{name}");
            assert!(ask("111122223333", &west, Group::Operation(name)).is_ok(), "{name} in another Region");
        }
    }

    #[tokio::test]
    async fn one_principals_share_leaves_the_others_theirs() {
        let brakes = Brakes::new(limits(2));
        let in_a_while = || Instant::now() + Duration::from_secs(60);
        let soon = || Instant::now() + Duration::from_millis(50);
        let first = brakes.admit("greedy", in_a_while()).await.unwrap();
        let second = brakes.admit("greedy", in_a_while()).await.unwrap();
        let third = tokio::spawn(async move {
            let admission = brakes.admit("greedy", in_a_while()).await.map(drop);
            (brakes, admission)
        });
        tokio::task::yield_now().await;
        assert!(!third.is_finished(), "it waits");
        drop(first);
        let (brakes, admission) = third.await.unwrap();
        assert!(admission.is_ok());

        let first = brakes.admit("greedy", in_a_while()).await.unwrap();
        let late = brakes.admit("greedy", soon());
        let (late, too_many, other) = tokio::join!(
            late,
            async { brakes.admit("greedy", soon()).await.map(drop) },
            brakes.admit("light", in_a_while())
        );
        for refused in [late.map(drop), too_many] {
            let refused = refused.unwrap_err();
            assert_eq!(refused.exception, Exception::Throttling);
            assert!(refused.retry_after.is_some());
        }
        assert!(other.is_ok());
        drop((first, second, other));
        assert!(brakes.in_force.load().shares.lock().is_empty(), "nobody's share is kept");
        brakes.set(limits(1));
        let _only = brakes.admit("greedy", in_a_while()).await.unwrap();
        assert!(brakes.admit("greedy", soon()).await.is_err(), "one still runs");
    }
}
