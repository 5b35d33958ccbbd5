//! What the Regions of a multi-Region key tell each other.
//!
//! ```text
//! in the primary key's Region                      in a replica key's Region
//! ReplicateKey, rotation, …  ── Message ─→ receive: the changes of its rows
//!                   receive  ←─ Message ── the end of the replica, an import into it
//! ```
//!
//! A message is plain data, without key material but for blobs that were
//! wrapped when the material was made, under the wrapping key that the Regions'
//! clusters share. The Regions are all in this process yet, and what a message
//! changes is committed together with what caused it: no set of keys is ever
//! half changed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::app::App;
use crate::error::{Error, Exception, Result};
use crate::hsm::{BackingId, Cluster};
use crate::jobs;
use crate::key::{
    BackingKey, DAY_MS, Deletion, Key, MultiRegion, REGIONS_MAX, Rotation, StoredHome, arn_of_key,
};
use crate::material;
use crate::operation::Call;
use crate::proto::kms::{KeyManagerType, KeySpec, KeyState, KeyUsageType, OriginType};
use crate::registry::{Draft, Held, from_store};
use crate::store::{Kind, NewEvent, RowId};
use crate::wire;

/// What one Region tells another about a multi-Region key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The Region that tells.
    pub from: String,
    /// The Region that is told.
    pub to: String,
    /// The key's account.
    pub account: String,
    /// The key's id, which it has in every Region.
    pub key_id: String,
    /// What.
    pub news: News,
}

/// What is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum News {
    /// By the primary key: a replica is to be made.
    Replicate {
        /// What it has in common with the primary key.
        shared: Shared,
        /// What it has for itself.
        own: Own,
    },
    /// By the primary key: the shared properties are these now.
    Synchronize(Shared),
    /// By a replica: it is deleted.
    Deleted,
    /// By a replica: imported material that is pending rotation has come, or gone.
    Pending {
        /// The material.
        material: BackingId,
        /// Whether it is there.
        is_there: bool,
    },
}

/// What the keys of a set have in common.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shared {
    #[serde(with = "wire::text")]
    spec: KeySpec,
    #[serde(with = "wire::text")]
    usage: KeyUsageType,
    #[serde(with = "wire::text")]
    origin: OriginType,
    set: MultiRegion,
    rotation: Option<Rotation>,
    rotations_on_demand: u32,
    current: Option<BackingId>,
    pending: Option<BackingId>,
    /// Versions of the material that are new to whom it is told, or changed.
    versions: Vec<Version>,
}

/// A version of the material.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// KeyMaterialId.
    pub id: BackingId,
    /// Its row in the Region that tells.
    pub row: BackingKey,
}

/// What a replica has for itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Own {
    /// The key policy.
    pub policy: String,
    /// Description.
    pub description: String,
    /// Tags.
    pub tags: BTreeMap<String, String>,
}

impl Shared {
    /// What a primary key shares. Material that was imported is imported into
    /// each Region by whoever has it: only its id goes there.
    pub fn of(key: &Key, versions: impl IntoIterator<Item = Version>) -> Result<Shared> {
        let set =
            key.multi_region.clone().ok_or_else(|| Error::internal("a key of no set shares nothing"))?;
        let is_imported = key.origin == OriginType::External;
        let told = |mut version: Version| {
            version.row.uses_leased = 0;
            if is_imported {
                version.row.home = StoredHome::Deleted;
                version.row.imported.iter_mut().for_each(|import| import.valid_to_ms = None);
            }
            version
        };
        Ok(Shared {
            spec: key.spec,
            usage: key.usage,
            origin: key.origin,
            set,
            rotation: key.rotation,
            rotations_on_demand: key.rotations_on_demand,
            current: key.current,
            pending: key.pending,
            versions: versions.into_iter().map(told).collect(),
        })
    }
}

/// What a primary key tells its replicas when something that they share has
/// changed: `key` as it is now, with what is new or changed of its material.
/// Nothing of other keys.
pub fn synchronize(id: &RowId, key: &Key, versions: Vec<Version>) -> Result<Vec<Message>> {
    let replicas: Vec<String> = key.replicas().cloned().collect();
    if replicas.is_empty() {
        return Ok(Vec::new());
    }
    let shared = Shared::of(key, versions)?;
    Ok(replicas.into_iter().map(|to| message(id, to, News::Synchronize(shared.clone()))).collect())
}

/// What a replica tells its primary key. Nothing of other keys.
pub fn report(id: &RowId, key: &Key, news: News) -> Option<Message> {
    let set = key.multi_region.as_ref().filter(|set| !set.is_primary)?;
    Some(message(id, set.primary.clone(), news))
}

/// A message of a key to the related key in another Region.
pub fn message(id: &RowId, to: String, news: News) -> Message {
    Message { from: id.region.clone(), to, account: id.account.clone(), key_id: id.id.clone(), news }
}

/// What messages lead to, for the commit of what caused them.
#[derive(Debug, Default)]
pub struct Delivered {
    /// The changes in all Regions that were told.
    pub drafts: Vec<Draft>,
    /// The keys that were synchronized, and the primary key they are of.
    synchronized: BTreeSet<RowId>,
}

/// Delivers messages, and those that they lead to.
///
/// # Errors
/// Why a Region cannot do what it is told; nothing is changed then.
pub async fn deliver(app: &App, messages: Vec<Message>, now_ms: i64, deadline: Instant) -> Result<Delivered> {
    let mut delivered = Delivered::default();
    let mut waiting = VecDeque::from(messages);
    while let Some(message) = waiting.pop_front() {
        let received = receive(app, &message, now_ms, deadline).await?;
        if !received.drafts.is_empty() && matches!(message.news, News::Synchronize(_) | News::Deleted) {
            delivered.synchronized.insert(message.row());
            if matches!(message.news, News::Synchronize(_)) {
                delivered.synchronized.insert(RowId { region: message.from.clone(), ..message.row() });
            }
        }
        delivered.drafts.extend(received.drafts);
        waiting.extend(received.messages);
    }
    Ok(delivered)
}

impl Delivered {
    /// Makes it part of a call.
    ///
    /// # Errors
    /// Where the events cannot be written.
    pub fn take_part(self, call: &mut Call) -> Result<()> {
        self.events(&call.app)?.into_iter().for_each(|event| call.append(event));
        self.drafts.into_iter().for_each(|draft| call.change(draft));
        Ok(())
    }

    /// Its events.
    ///
    /// # Errors
    /// Where they cannot be written.
    pub fn events(&self, app: &App) -> Result<Vec<NewEvent>> {
        self.synchronized.iter().map(|id| jobs::internal_call(app, SYNCHRONIZE, id)).collect()
    }
}

/// The event of a change of shared properties: in the primary key's Region, as
/// KMS has it, and in each Region whose key changed with it.
const SYNCHRONIZE: &str = "SynchronizeMultiRegionKey";

/// The primary key of a replica's set.
///
/// # Errors
/// The store's; the primary key of a set is always there.
pub async fn primary(app: &App, replica: &Held<Key>, deadline: Instant) -> Result<Held<Key>> {
    let set = replica.value.multi_region.as_ref();
    let region = set.map_or(&replica.id.region, |set| &set.primary).clone();
    let id = RowId { region, ..replica.id.clone() };
    let missing = || Error::internal(format!("{id} is missing"));
    held(app, &id, deadline).await?.ok_or_else(missing)
}

/// What a message leads to in the Region that is told.
#[derive(Default)]
struct Received {
    drafts: Vec<Draft>,
    messages: Vec<Message>,
}

impl Message {
    /// The row of the key that is told.
    fn row(&self) -> RowId {
        RowId {
            kind: Kind::Key,
            region: self.to.clone(),
            account: self.account.clone(),
            id: self.key_id.clone(),
        }
    }
}

async fn receive(app: &App, message: &Message, now_ms: i64, deadline: Instant) -> Result<Received> {
    let id = message.row();
    if let News::Replicate { shared, own } = &message.news {
        let drafts = replicate(app, &id, shared, own, now_ms).await?;
        return Ok(Received { drafts, messages: Vec::new() });
    }
    // What was deleted meanwhile has told so itself.
    let Some(key) = held(app, &id, deadline).await? else { return Ok(Received::default()) };
    match &message.news {
        News::Replicate { .. } => Ok(Received::default()),
        News::Synchronize(shared) => {
            Ok(Received { drafts: take_over(app, &key, shared, deadline).await?, messages: Vec::new() })
        }
        News::Deleted => lose(&key, &message.from, now_ms),
        News::Pending { material, is_there } => {
            let mut value = key.value.clone();
            let set = value.multi_region.as_mut().filter(|_| value.pending == Some(*material));
            let changed = set.is_some_and(|set| match is_there {
                true => set.lacking.remove(&message.from),
                false => set.lacking.insert(message.from.clone()),
            });
            let drafts = if changed { vec![Draft::replace(&key, &value)?] } else { Vec::new() };
            Ok(Received { drafts, messages: Vec::new() })
        }
    }
}

/// A replica, made.
async fn replicate(app: &App, id: &RowId, shared: &Shared, own: &Own, now_ms: i64) -> Result<Vec<Draft>> {
    let cluster = app.key_stores.default_of(&id.region).ok_or_else(|| unserved(&id.region))?;
    if app.store.row(id).await.map_err(from_store)?.is_some() {
        return Err(Error::new(Exception::AlreadyExists, format!("Key {} already exists", arn_of_key(id))));
    }
    if shared.set.replicas.len() >= REGIONS_MAX {
        return Err(Error::new(
            Exception::LimitExceeded,
            format!("{} is in as many Regions as a key may be in: {REGIONS_MAX}.", id.id),
        ));
    }
    room(app, id).await?;
    material::check_capability(cluster, shared.spec, shared.usage)?;
    let is_imported = shared.origin == OriginType::External;
    let key = Key {
        spec: shared.spec,
        usage: shared.usage,
        state: if is_imported { KeyState::PendingImport } else { KeyState::Enabled },
        origin: shared.origin,
        manager: KeyManagerType::Customer,
        description: own.description.clone(),
        created_ms: now_ms,
        deletion: None,
        policy: own.policy.clone(),
        tags: own.tags.clone(),
        current: shared.current,
        pending: shared.pending,
        expiration: None,
        rotation: shared.rotation,
        rotations_on_demand: shared.rotations_on_demand,
        custom_key_store_id: None,
        multi_region: Some(shared.set.seen_from(&id.region)),
    };
    let mut drafts = vec![Draft::insert(id.clone(), &key)?];
    for version in &shared.versions {
        check_wrapping(&id.region, cluster, &version.row)?;
        drafts.push(Draft::insert(version_row(id, version), &version.row)?);
    }
    Ok(drafts)
}

/// The shared properties, taken over by a key that is there.
async fn take_over(app: &App, key: &Held<Key>, shared: &Shared, deadline: Instant) -> Result<Vec<Draft>> {
    let mut value = key.value.clone();
    let mut versions: Vec<Held<BackingKey>> = app.registry.of_key(&key.id, deadline).await?;
    let mut drafts = Vec::new();
    if let Some(gone) = value.pending.filter(|id| Some(*id) != shared.pending && Some(*id) != shared.current)
    {
        let place = versions.iter().position(|version| version.id.id == gone.to_string());
        drafts.extend(place.map(|place| Draft::delete(&versions.remove(place))));
    }
    for version in &shared.versions {
        match versions.iter_mut().find(|known| known.id.id == version.id.to_string()) {
            Some(known) if known.value.rotated == version.row.rotated => (),
            Some(known) => {
                known.value.rotated = version.row.rotated;
                drafts.push(Draft::replace(known, &known.value)?);
            }
            None => {
                let cluster = app.key_stores.default_of(&key.id.region);
                check_wrapping(
                    &key.id.region,
                    cluster.ok_or_else(|| unserved(&key.id.region))?,
                    &version.row,
                )?;
                let place = version_row(&key.id, version);
                drafts.push(Draft::insert(place.clone(), &version.row)?);
                versions.push(Held { id: place, version: 1, value: version.row.clone() });
            }
        }
    }
    value.multi_region = Some(shared.set.seen_from(&key.id.region));
    value.rotation = shared.rotation;
    value.rotations_on_demand = shared.rotations_on_demand;
    value.current = shared.current;
    value.pending = shared.pending;
    if value.origin == OriginType::External {
        material::settle_import(&mut value, &versions);
    }
    if value != key.value {
        drafts.push(Draft::replace(key, &value)?);
    }
    Ok(drafts)
}

/// A primary key that has a replica less. One that waits for that to be deleted
/// is deleted after its waiting period, which begins with the end of the last.
fn lose(key: &Held<Key>, region: &str, now_ms: i64) -> Result<Received> {
    let mut value = key.value.clone();
    let Some(set) = &mut value.multi_region else { return Ok(Received::default()) };
    set.replicas.remove(region);
    set.lacking.remove(region);
    if value.state == KeyState::PendingReplicaDeletion && set.replicas.is_empty() {
        value.state = KeyState::PendingDeletion;
        value.deletion = value.deletion.map(|deletion| Deletion {
            due_ms: Some(now_ms + i64::from(deletion.window_days) * DAY_MS),
            ..deletion
        });
    }
    let messages = synchronize(&key.id, &value, Vec::new())?;
    Ok(Received { drafts: vec![Draft::replace(key, &value)?], messages })
}

/// Whether the Region's HSMs can unwrap what was wrapped in another.
fn check_wrapping(region: &str, cluster: &Cluster, row: &BackingKey) -> Result<()> {
    match &row.home {
        StoredHome::Wrapped { by, .. } if *by == cluster.identity().wrapping_key => Ok(()),
        StoredHome::Deleted => Ok(()),
        StoredHome::Wrapped { .. } => Err(Error::new(
            Exception::UnsupportedOperation,
            format!(
                "The HSMs of {region} do not share the wrapping key of this key's material: bring it to them with `strongroom hsm bring`."
            ),
        )),
        StoredHome::Resident { .. } => Err(Error::new(
            Exception::UnsupportedOperation,
            "The key's material is an object of its HSM, which cannot be in another Region.",
        )),
    }
}

async fn room(app: &App, id: &RowId) -> Result<()> {
    let most = app.brakes.counts().keys_per_account_max;
    match app.registry.count(Kind::Key, &id.region, &id.account, None).await? >= most {
        true => Err(Error::new(
            Exception::LimitExceeded,
            format!(
                "Account {} has as many keys in {} as an account may have: {most}.",
                id.account, id.region
            ),
        )),
        false => Ok(()),
    }
}

async fn held(app: &App, id: &RowId, deadline: Instant) -> Result<Option<Held<Key>>> {
    match app.store.row(id).await.map_err(from_store)? {
        Some(row) => Ok(Some(app.registry.open(row, deadline).await?)),
        None => Ok(None),
    }
}

fn version_row(key: &RowId, version: &Version) -> RowId {
    RowId { kind: Kind::BackingKey, id: version.id.to_string(), ..key.clone() }
}

/// The exception for a Region that this installation does not have.
pub fn unserved(region: &str) -> Error {
    Error::new(
        Exception::UnsupportedOperation,
        format!("Region {region} is not served here: its operator adds it as [regions.{region}]."),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hsm::Blob;
    use crate::key::Import;

    fn key(origin: OriginType) -> Key {
        Key {
            spec: KeySpec::SymmetricDefault,
            usage: KeyUsageType::EncryptDecrypt,
            state: KeyState::Enabled,
            origin,
            manager: KeyManagerType::Customer,
            description: "the primary's own".into(),
            created_ms: 1,
            deletion: None,
            policy: "the primary's own".into(),
            tags: BTreeMap::new(),
            current: Some(BackingId([1; 32])),
            pending: None,
            expiration: None,
            rotation: Some(Rotation { period_days: 90, next_ms: 7 }),
            rotations_on_demand: 2,
            custom_key_store_id: None,
            multi_region: Some(MultiRegion {
                replicas: ["eu-west-1".to_owned(), "eu-west-2".to_owned()].into(),
                ..MultiRegion::primary("us-east-1")
            }),
        }
    }

    fn version(key: &Key) -> Version {
        let row = BackingKey {
            key_id: "mrk-1".into(),
            spec: key.spec,
            usage: key.usage,
            home: StoredHome::Wrapped { by: BackingId([2; 32]), blob: Blob::from(vec![3; 40]) },
            public_key: None,
            created_ms: 1,
            uses_leased: 1 << 16,
            imported: (key.origin == OriginType::External)
                .then(|| Import { description: Some("d".into()), valid_to_ms: Some(9) }),
            rotated: None,
        };
        Version { id: BackingId([1; 32]), row }
    }

    fn id() -> RowId {
        RowId {
            kind: Kind::Key,
            region: "us-east-1".into(),
            account: "111122223333".into(),
            id: "mrk-1".into(),
        }
    }

    #[test]
    fn a_message_survives_the_way_between_regions() {
        let key = key(OriginType::AwsKms);
        let messages = synchronize(&id(), &key, vec![version(&key)]).unwrap();
        let to: Vec<&str> = messages.iter().map(|message| message.to.as_str()).collect();
        assert_eq!(to, ["eu-west-1", "eu-west-2"]);
        for message in messages {
            let text = serde_json::to_string(&message).unwrap();
            assert!(!text.contains("the primary's own"), "{text}");
            assert_eq!(serde_json::from_str::<Message>(&text).unwrap(), message);
        }
    }

    #[test]
    fn a_region_counts_its_own_uses_and_gets_no_imported_material() {
        for (origin, travels) in [(OriginType::AwsKms, true), (OriginType::External, false)] {
            let key = key(origin);
            let shared = Shared::of(&key, [version(&key)]).unwrap();
            let told = &shared.versions[0].row;
            assert_eq!(told.uses_leased, 0);
            assert_eq!(matches!(told.home, StoredHome::Wrapped { .. }), travels, "{told:?}");
            assert_eq!(told.imported.as_ref().and_then(|import| import.valid_to_ms), None);
        }
    }

    #[test]
    fn the_last_replicas_end_begins_the_primarys_waiting_period() {
        let mut value = key(OriginType::AwsKms);
        value.state = KeyState::PendingReplicaDeletion;
        value.deletion = Some(Deletion { due_ms: None, window_days: 7 });
        let mut held = Held { id: id(), version: 3, value };
        for (region, due_ms) in [("eu-west-1", None), ("eu-west-2", Some(100 + 7 * DAY_MS))] {
            let received = lose(&held, region, 100).unwrap();
            let [Draft::Put(row)] = &received.drafts[..] else { panic!("{:?}", received.drafts) };
            assert_eq!(row.due_ms, due_ms, "after {region}");
            held.value = serde_json::from_str(&row.body).unwrap();
            assert_eq!(received.messages.len(), held.value.replicas().count());
        }
        assert_eq!(held.value.state, KeyState::PendingDeletion);
    }
}
