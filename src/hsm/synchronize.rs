//! A member that comes to others which serve gets the resident keys that it
//! lacks before it does: those made while it was away, and those that somebody
//! deleted on it.

use std::collections::HashSet;
use std::sync::Arc;

use futures::future::BoxFuture;

use super::member::Member;
use super::replica::{destroy_on, install_on, list_on};
use super::{BackingId, Expected, HsmError, MemberState};

/// The resident keys of a cluster, as the store knows them.
pub trait Residents: Send + Sync {
    /// The names of all of them. An error says why they are not known now.
    fn all(&self) -> BoxFuture<'_, Result<HashSet<BackingId>, String>>;

    /// One of them, checked; None where it is none any more, or the store has no
    /// copy of it to bring it from.
    fn one(&self, id: BackingId) -> BoxFuture<'_, Result<Option<Expected>, String>>;
}

impl Member {
    /// Brings it what it lacks. What cannot be brought now it gets when it is
    /// asked for it; that keeps it from nothing.
    pub(super) async fn synchronize(self: &Arc<Self>, residents: &dyn Residents) {
        let missing = match self.missing(residents).await {
            Ok(missing) => missing,
            Err(reason) => {
                tracing::warn!(member = self.uri(), reason, "it serves without having been synchronized");
                return;
            }
        };
        let (mut brought, mut failed) = (0_u64, 0_u64);
        for id in missing {
            if self.state() != MemberState::Synchronizing {
                return;
            }
            match self.bring(residents, id).await {
                Ok(is_key) => brought += u64::from(is_key),
                Err(reason) => {
                    tracing::warn!(member = self.uri(), key = %id, reason, "a key is not brought now");
                    failed += 1;
                }
            }
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
