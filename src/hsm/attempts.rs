//! A call that fails because of its member is tried on another, within the
//! caller's deadline.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::cluster::Cluster;
use super::member::Member;
use super::meters::Function;
use super::{Capability, HsmError, KeyRef, MemberState};

/// How much longer a call that makes a key waits for one member.
const LANE_PATIENCE: u64 = 10;

impl Cluster {
    /// How long a call of this kind waits for one member while there are others.
    pub(super) fn patience(&self, function: Function) -> Duration {
        let longer = if function.takes_lane() { LANE_PATIENCE } else { 1 };
        Duration::from_millis(self.failover_timeout_ms().saturating_mul(longer))
    }
}

/// The attempts at one call, each on another member.
pub(super) struct Attempts<'a> {
    cluster: &'a Cluster,
    patience: Duration,
    capability: Option<Capability>,
    key: Option<&'a KeyRef>,
    deadline: Instant,
    tried: Vec<Arc<Member>>,
    /// One that was not waited for to the end, for what may be done twice.
    late: Option<Arc<Member>>,
    may_repeat: bool,
    last: Option<HsmError>,
}

impl<'a> Attempts<'a> {
    /// Before the first; it is tried until the deadline.
    pub(super) fn new(
        cluster: &'a Cluster,
        function: Function,
        capability: Option<Capability>,
        key: Option<&'a KeyRef>,
        deadline: Instant,
    ) -> Self {
        let patience = cluster.patience(function);
        let may_repeat = !function.takes_lane();
        let (tried, late, last) = (Vec::new(), None, None);
        Attempts { cluster, patience, capability, key, deadline, tried, late, may_repeat, last }
    }

    /// The next member, and until when it is waited for: to the end where there
    /// is no other. Where all are slow, as on a machine that stood still, one is
    /// asked again.
    pub(super) async fn next(&mut self) -> Result<(Arc<Member>, Instant), HsmError> {
        match self.cluster.pick(self.capability, self.key, &self.tried, self.deadline).await {
            Ok((member, 0)) => Ok((member, self.deadline)),
            Ok((member, _)) => Ok((member, self.deadline.min(Instant::now() + self.patience))),
            Err(error) => match self.late.take() {
                Some(member) if member.state() == MemberState::Serving => Ok((member, self.deadline)),
                _ => Err(self.last.take().unwrap_or(error)),
            },
        }
    }

    /// The call's result, unless another member might do better.
    pub(super) fn settle<T>(
        &mut self,
        member: Arc<Member>,
        until: Instant,
        result: Result<T, HsmError>,
    ) -> Option<Result<T, HsmError>> {
        let error = match result {
            Err(HsmError::Deadline) if until < self.deadline => {
                member.mark_slow();
                if self.may_repeat {
                    self.late.get_or_insert_with(|| member.clone());
                }
                HsmError::Deadline
            }
            Err(
                error @ (HsmError::Unavailable(_)
                | HsmError::Busy
                | HsmError::Missing(_)
                | HsmError::Device(_)),
            ) => error,
            other => return Some(other),
        };
        self.tried.push(member);
        self.last = Some(error);
        None
    }
}
