//! What keeps one principal from taking the service from the others: a share
//! of the calls that run, and a rate of denials.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use parking_lot::Mutex;

use crate::error::{Error, Exception, Result};

/// When a call that was not let in may be tried again.
const RETRY: Duration = Duration::from_millis(50);

/// How much of each.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most calls of one principal at a time.
    pub requests_per_principal_max: u32,
    /// Denials of one principal, after the burst.
    pub denials_per_second: NonZeroU32,
    /// Denials of one principal at once.
    pub denials_burst: NonZeroU32,
}

/// The brakes of a daemon; a reload replaces their limits.
pub struct Brakes {
    in_force: ArcSwap<InForce>,
    running: Mutex<HashMap<String, u32>>,
}

struct InForce {
    limits: Limits,
    denials: DefaultKeyedRateLimiter<String>,
}

impl Brakes {
    /// Brakes with these limits.
    pub fn new(limits: Limits) -> Self {
        Brakes { in_force: ArcSwap::from_pointee(InForce::new(limits)), running: Mutex::new(HashMap::new()) }
    }

    /// Puts other limits in force.
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

    /// Lets a principal's call in, if it has not too many running: one
    /// principal cannot take every session of the HSM from the others.
    ///
    /// # Errors
    /// ThrottlingException.
    pub fn admit(&self, principal: &str) -> Result<Admission<'_>> {
        let most = self.in_force.load().limits.requests_per_principal_max;
        let mut running = self.running.lock();
        let count = running.entry(principal.to_owned()).or_insert(0);
        if *count >= most {
            return Err(Error::new(
                Exception::Throttling,
                "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls.",
            )
            .retry_after(RETRY));
        }
        *count += 1;
        Ok(Admission { brakes: self, principal: principal.to_owned() })
    }
}

impl InForce {
    fn new(limits: Limits) -> Self {
        let quota = Quota::per_second(limits.denials_per_second).allow_burst(limits.denials_burst);
        InForce { limits, denials: RateLimiter::keyed(quota) }
    }
}

/// A call that was let in, until it is dropped.
pub struct Admission<'a> {
    brakes: &'a Brakes,
    principal: String,
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        let mut running = self.brakes.running.lock();
        if let Some(count) = running.get_mut(&self.principal) {
            *count -= 1;
            if *count == 0 {
                running.remove(&self.principal);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_principals_share_leaves_the_others_theirs() {
        let one = NonZeroU32::MIN;
        let limits =
            |most| Limits { requests_per_principal_max: most, denials_per_second: one, denials_burst: one };
        let brakes = Brakes::new(limits(2));
        let first = brakes.admit("greedy").unwrap();
        let _second = brakes.admit("greedy").unwrap();
        let refused = brakes.admit("greedy").err().unwrap();
        assert_eq!(refused.exception, Exception::Throttling);
        assert!(refused.retry_after.is_some());
        assert!(brakes.admit("light").is_ok());
        drop(first);
        assert!(brakes.admit("greedy").is_ok());
        brakes.set(limits(1));
        assert!(brakes.admit("greedy").is_err(), "one still runs");
    }
}
