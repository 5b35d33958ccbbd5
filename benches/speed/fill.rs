//! Fixtures: a store with many keys, without the time that making each in the
//! HSM takes. Every row has its MAC and its event, as if the API had made it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use strongroom::app::Clock;
use strongroom::audit::record::{Context, Record};
use strongroom::config::{Config, Flags};
use strongroom::daemon;
use strongroom::hsm::{BackingId, Cluster, KeyRules, MemberState, Modules};
use strongroom::identity;
use strongroom::key::{BackingKey, Key};
use strongroom::registry::{CacheLimits, Draft, Held, Registry};
use strongroom::store::sqlite::SqliteStore;
use strongroom::store::{Commit, Kind, RowId, Store};
use tokio::time::Instant;

/// Keys whose rows share one commit.
const KEYS_PER_COMMIT: usize = 50;
/// Commits that are made at the same time.
const COMMITS_AT_ONCE: usize = 8;
/// Longest that anything here waits for the HSM.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Copies the first AES key of a stopped instance so often, and prints the id
/// of each copy. In a process of its own, as a module is initialised once in
/// each.
pub async fn keys(dir: &Path, count: usize) -> anyhow::Result<()> {
    let loaded = Config::load(Some(&dir.join("strongroom.toml")), &Flags::new())?;
    let config = &loaded.config;
    let store = Arc::new(SqliteStore::open(&config.data_dir, daemon::sqlite_options(config)).await?);
    let dynamic: Arc<dyn Store> = store.clone();
    let known = identity::read(&*dynamic).await?;
    let modules = Modules::new(config.modules.clone(), config.hsm.clone());
    let mut members = Vec::with_capacity(known.members.len());
    for member in known.members {
        let pin = config.pin(&member.pin)?;
        members.push((member, pin));
    }
    let cluster =
        Cluster::start(&modules, members, known.cluster.clone(), config.hsm.clone(), KeyRules::DEFAULT)?;
    let serving =
        |all: &Vec<strongroom::hsm::MemberHealth>| all.iter().all(|one| one.state == MemberState::Serving);
    tokio::time::timeout(TIMEOUT, cluster.watch().wait_for(serving)).await??;
    let registry =
        Registry::new(dynamic.clone(), cluster.clone(), known.cluster.mac_key(), CacheLimits { keys: 1 });
    let copier = Copier {
        registry: &registry,
        store: &*dynamic,
        region: &config.region,
        pattern: pattern(&registry, config, &daemon::account(&loaded)?).await?,
    };
    stream::iter(0..count.div_ceil(KEYS_PER_COMMIT))
        .map(|number| copier.commit(KEYS_PER_COMMIT.min(count - number * KEYS_PER_COMMIT)))
        .buffer_unordered(COMMITS_AT_ONCE)
        .try_for_each(|ids| async move {
            ids.iter().for_each(|id| println!("{id}"));
            Ok(())
        })
        .await?;
    cluster.shutdown().await;
    store.close().await?;
    Ok(())
}

struct Pattern {
    key: Held<Key>,
    backing: BackingKey,
}

async fn pattern(registry: &Registry, config: &Config, account: &str) -> anyhow::Result<Pattern> {
    let deadline = Instant::now() + TIMEOUT;
    let keys = registry.page::<Key>(&config.region, account, None, None, 1, deadline).await?;
    let key = keys.into_iter().next().context("the instance has no key to copy")?;
    let parent = Some(key.id.id.as_str());
    let backings = registry.page(&config.region, account, parent, None, 1, deadline).await?;
    let backing: Held<BackingKey> = backings.into_iter().next().context("the key has no material")?;
    Ok(Pattern { key, backing: backing.value })
}

struct Copier<'a> {
    registry: &'a Registry,
    store: &'a dyn Store,
    region: &'a str,
    pattern: Pattern,
}

impl Copier<'_> {
    async fn commit(&self, keys: usize) -> anyhow::Result<Vec<String>> {
        let (mut drafts, mut ids) = (Vec::with_capacity(keys * 2), Vec::with_capacity(keys));
        for _ in 0..keys {
            let id = uuid::Uuid::new_v4().to_string();
            let current = BackingId::random()?;
            let name = |kind, id: &str| RowId { kind, id: id.to_owned(), ..self.pattern.key.id.clone() };
            let key = Key { current: Some(current), ..self.pattern.key.value.clone() };
            let backing = BackingKey { key_id: id.clone(), uses_leased: 0, ..self.pattern.backing.clone() };
            drafts.push(Draft::insert(name(Kind::Key, &id), &key)?);
            drafts.push(Draft::insert(name(Kind::BackingKey, &current.to_string()), &backing)?);
            ids.push(id);
        }
        let changes = self.registry.seal(&drafts, Instant::now() + TIMEOUT).await?;
        let context = Context {
            source: "kms.amazonaws.com",
            name: "CreateKey",
            region: self.region,
            time_ms: Clock.now_ms(),
            read_only: false,
        };
        let details = serde_json::json!({ "keys": keys });
        let event = Record::service(context, &self.pattern.key.id.account, details).event()?;
        self.store.commit(Commit { changes, events: vec![event] }).await?;
        Ok(ids)
    }
}
