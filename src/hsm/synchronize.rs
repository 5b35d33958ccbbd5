//! A member that comes to others which serve gets the resident keys that it
//! lacks before it does: those made while it was away, and those that somebody
//! deleted on it. One that serves gets those that it was not waited for beside
//! its work.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

use super::member::Member;
use super::replica::{destroy_on, install_on, list_on};
use super::{BackingId, Expected, HsmError};

/// The resident keys of a cluster, as the store knows them.
pub trait Residents: Send + Sync {
    /// The names of all of them. An error says why they are not known now.
    fn all(&self) -> BoxFuture<'_, Result<HashSet<BackingId>, String>>;

    /// One of them, checked; None where it is none any more, or the store has no
    /// copy of it to bring it from.
    fn one(&self, id: BackingId) -> BoxFuture<'_, Result<Option<Expected>, String>>;
}

/// How long after keys could not be brought they are tried again.
const RETRY: Duration = Duration::from_secs(60);

/// Keys in a row that a member does not take before the others are left for later.
const FAILED_MAX: u64 = 3;

impl Member {
    /// Brings it what it lacks, while it has this attachment. What cannot be
    /// brought now it gets later, or when it is asked for it; that keeps it from
    /// nothing.
    pub(super) async fn synchronize(self: &Arc<Self>, residents: &dyn Residents, epoch: u64) {
        let missing = match self.missing(residents).await {
            Ok(missing) => missing,
            Err(reason) => {
                tracing::warn!(member = self.uri(), reason, "it is not synchronized now");
                self.lacks_keys(RETRY);
                return;
            }
        };
        let (mut brought, mut failed, mut in_a_row) = (0_u64, 0_u64, 0_u64);
        for id in missing {
            if !self.is_attached(epoch) {
                return;
            }
            match self.bring(residents, id).await {
                Ok(is_key) => (brought, in_a_row) = (brought + u64::from(is_key), 0),
                Err(reason) => {
                    tracing::warn!(member = self.uri(), key = %id, reason, "a key is not brought now");
                    (failed, in_a_row) = (failed + 1, in_a_row + 1);
                    if in_a_row == FAILED_MAX {
                        break;
                    }
                }
            }
        }
        if failed > 0 {
            self.lacks_keys(RETRY);
        }
        for (result, count) in [("ok", brought), ("failed", failed)] {
            metrics::counter!("strongroom_hsm_synchronized_keys_total",
                "member" => self.uri().to_owned(), "result" => result)
            .increment(count);
        }
        if brought + failed > 0 {
            tracing::info!(member = self.uri(), brought, failed, "synchronized");
        }
    }

    async fn missing(self: &Arc<Self>, residents: &dyn Residents) -> Result<Vec<BackingId>, String> {
        let mut missing = residents.all().await?;
        let present = list_on(self, self.call_deadline()).await.map_err(|error| error.to_string())?;
        for id in present {
            missing.remove(&id);
        }
        Ok(missing.into_iter().collect())
    }

    /// Whether the key is there now, as it still is one.
    async fn bring(self: &Arc<Self>, residents: &dyn Residents, id: BackingId) -> Result<bool, String> {
        let text = |error: HsmError| error.to_string();
        let Some(expected) = residents.one(id).await? else { return Ok(false) };
        let proof = expected.proof();
        install_on(self, &expected.key, proof.as_ref(), self.call_deadline()).await.map_err(text)?;
        // Who deleted it meanwhile did not see this object.
        match residents.one(id).await? {
            Some(_) => Ok(true),
            None => destroy_on(self, &expected.key, self.call_deadline()).await.map(|()| false).map_err(text),
        }
    }
}
