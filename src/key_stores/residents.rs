//! The keys that are token objects of a cluster, as the store knows them: what
//! its members are compared with, and what they get again.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::app::App;
use crate::error::{Error, Result};
use crate::hsm::{BackingId, Expected, Home, Residents};
use crate::key::{BackingKey, Key};
use crate::registry::{Held, from_store};
use crate::store::{Kind, Row};

const ROWS_PAGE: u32 = 500;
/// Longest that one key waits for the store or the installation's cluster.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// The rows of the resident keys of a custom key store, or of the installation's
/// cluster, by the names of their objects. Whether one is genuine is seen when it
/// is opened.
///
/// # Errors
/// Where the store does not answer.
pub async fn resident_rows(app: &App, key_store: Option<&str>) -> Result<BTreeMap<String, Row>> {
    let key_stores = &app.key_stores;
    // A Region may have HSMs of its own.
    let is_here = |row: &Row| {
        let cluster = key_stores.default_of(&row.id.region);
        key_store.is_some() || cluster.is_some_and(|cluster| Arc::ptr_eq(cluster, key_stores.installation()))
    };
    let is_in = |row: &Row| {
        let key: Option<Key> = serde_json::from_str(&row.body).ok();
        key.is_some_and(|key| key.custom_key_store_id.as_deref() == key_store) && is_here(row)
    };
    let keys = rows(app, Kind::Key, is_in).await?;
    let keys: HashSet<String> = keys.into_iter().map(|row| row.id.id).collect();
    let is_resident = |row: &Row| {
        let backing: Option<BackingKey> = serde_json::from_str(&row.body).ok();
        backing.is_some_and(|backing| backing.home.is_resident() && keys.contains(&backing.key_id))
    };
    let rows = rows(app, Kind::BackingKey, is_resident).await?;
    Ok(rows.into_iter().map(|row| (row.id.id.clone(), row)).collect())
}

/// The rows of a kind that are wanted: no others are held.
///
/// # Errors
/// Where the store does not answer.
pub async fn rows(app: &App, kind: Kind, is_wanted: impl Fn(&Row) -> bool) -> Result<Vec<Row>> {
    let (mut wanted, mut after) = (Vec::new(), None);
    loop {
        let page = app.store.all_rows(kind, after.as_ref(), ROWS_PAGE).await.map_err(from_store)?;
        let Some(last) = page.last() else { return Ok(wanted) };
        after = Some(last.id.clone());
        wanted.extend(page.into_iter().filter(&is_wanted));
    }
}

/// What a member's object must be, by a key's row.
///
/// # Errors
/// KMSInternalException: the row makes no sense.
pub fn expected(held: &Held<BackingKey>) -> Result<Expected> {
    let makes_no_sense = || Error::internal(format!("row {} makes no sense", held.id));
    let id: BackingId = held.id.id.parse().map_err(|_| makes_no_sense())?;
    let key = held.value.key_ref(id).ok_or_else(makes_no_sense)?;
    Ok(Expected { key, public_key: held.value.public_key.as_ref().map(|key| key.0.to_vec()) })
}

/// The keys of a custom key store. The daemon holds the clusters, so it is not
/// held by what they have.
pub fn of_key_store(app: &Arc<App>, region: &str, id: &str) -> Arc<dyn Residents> {
    Arc::new(OfKeyStore { app: Arc::downgrade(app), region: region.to_owned(), id: id.to_owned() })
}

struct OfKeyStore {
    app: Weak<App>,
    region: String,
    id: String,
}

impl OfKeyStore {
    fn app(&self) -> Result<Arc<App>, String> {
        self.app.upgrade().ok_or_else(|| "the daemon is stopping".to_owned())
    }
}

impl Residents for OfKeyStore {
    fn all(&self) -> BoxFuture<'_, Result<HashSet<BackingId>, String>> {
        Box::pin(async {
            let rows = resident_rows(&*self.app()?, Some(&self.id)).await.map_err(text)?;
            Ok(rows.keys().filter_map(|id| id.parse().ok()).collect())
        })
    }

    fn one(&self, id: BackingId) -> BoxFuture<'_, Result<Option<Expected>, String>> {
        Box::pin(async move {
            let app = self.app()?;
            let row = app.store.find(Kind::BackingKey, &self.region, &id.to_string()).await;
            let Some(row) = row.map_err(|error| text(from_store(error)))? else { return Ok(None) };
            let held = app.registry.open(row, Instant::now() + STEP_TIMEOUT).await.map_err(text)?;
            let expected = expected(&held).map_err(text)?;
            Ok(matches!(expected.key.home, Home::Resident { blob: Some(_) }).then_some(expected))
        })
    }
}

fn text(error: Error) -> String {
    error.detail.unwrap_or_else(|| error.message.into_owned())
}
