//! What makes this installation itself: the keys of its own in the HSMs, and
//! the tokens that have them. Made once, by the ceremony of `strongroom hsm
//! init`; never because it was not found.

use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::error::Error;
use crate::hsm::{ClusterIdentity, MemberSettings};
use crate::registry::{Draft, Held, Registry, Stored, from_store};
use crate::store::{Kind, Row, RowId, Store};

const CHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// The row.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Installation {
    /// The keys.
    pub cluster: ClusterIdentity,
    /// The tokens.
    pub members: Vec<MemberSettings>,
    /// The URIs of those that an operator took out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub maintenance: Vec<String>,
}

impl Installation {
    /// The keys.
    pub fn cluster(&self) -> &ClusterIdentity {
        &self.cluster
    }
}

impl Stored for Installation {
    const KIND: Kind = Kind::System;
}

/// What the row says.
pub struct Identity {
    /// The keys.
    pub cluster: ClusterIdentity,
    /// The tokens.
    pub members: Vec<MemberSettings>,
    /// The URIs of those that an operator took out.
    pub maintenance: Vec<String>,
    /// The row itself, for [`check`].
    pub row: Row,
}

/// Reads the identity, before there is an HSM to check it.
///
/// # Errors
/// What to do when there is none.
pub async fn read(store: &dyn Store) -> anyhow::Result<Identity> {
    let row = store.row(&id()).await?.context(
        "the data folder knows no HSM yet: hold the ceremony first, `strongroom hsm init --config FILE --token URI`",
    )?;
    let Installation { cluster, members, maintenance } =
        serde_json::from_str(&row.body).context("the row of the HSM cluster cannot be read")?;
    Ok(Identity { cluster, members, maintenance, row })
}

/// The row as a running daemon changes it.
///
/// # Errors
/// Where the store or the HSMs do not answer.
pub async fn held(registry: &Registry, deadline: Instant) -> crate::error::Result<Held<Installation>> {
    let row = registry.store().row(&id()).await.map_err(from_store)?;
    let row = row.ok_or_else(|| Error::internal("the store has no row of the HSM cluster"))?;
    registry.open(row, deadline).await
}

/// Whether a data folder has an identity.
pub async fn exists(store: &dyn Store) -> anyhow::Result<bool> {
    Ok(store.row(&id()).await?.is_some())
}

/// Checks the row's MAC with the HSM that it names.
///
/// # Errors
/// When it was changed by somebody else.
pub async fn check(registry: &Registry, row: &Row) -> anyhow::Result<()> {
    if !registry.is_sealed(row, Instant::now() + CHECK_TIMEOUT).await? {
        bail!("the row of the HSM cluster was changed from outside: its MAC does not fit; restore a backup");
    }
    Ok(())
}

/// The change that makes the identity known.
pub fn draft(cluster: ClusterIdentity, members: Vec<MemberSettings>) -> crate::error::Result<Draft> {
    Draft::insert(id(), &Installation { cluster, members, maintenance: Vec::new() })
}

fn id() -> RowId {
    RowId { kind: Kind::System, region: String::new(), account: String::new(), id: "cluster".to_owned() }
}
