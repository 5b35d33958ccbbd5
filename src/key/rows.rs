//! The rows that describe keys, as JSON in the store.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::hsm::{BackingId, Blob, Home, KeyRef, Made, Material, Use};
use crate::proto::kms::{
    AlgorithmSpec, KeyManagerType, KeySpec, KeyState, KeyUsageType, MultiRegionKeyType, OriginType,
    RotationType, WrappingKeySpec,
};
use crate::wire;

/// A day in milliseconds.
pub const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// A KMS key. Its Region, account and id are the row's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// KeySpec.
    #[serde(with = "wire::text")]
    pub spec: KeySpec,
    /// KeyUsage.
    #[serde(with = "wire::text")]
    pub usage: KeyUsageType,
    /// KeyState.
    #[serde(with = "wire::text")]
    pub state: KeyState,
    /// Origin.
    #[serde(with = "wire::text")]
    pub origin: OriginType,
    /// KeyManager.
    #[serde(with = "wire::text")]
    pub manager: KeyManagerType,
    /// Description.
    pub description: String,
    /// CreationDate, milliseconds since the epoch.
    pub created_ms: i64,
    /// The scheduled deletion.
    pub deletion: Option<Deletion>,
    /// The key policy, JSON.
    pub policy: String,
    /// Tags.
    pub tags: BTreeMap<String, String>,
    /// The material that new work uses; none before the first import.
    pub current: Option<BackingId>,
    /// Imported material that becomes current by RotateKeyOnDemand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<BackingId>,
    /// When imported material expires; none while some of it is not there, and
    /// for other origins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expiration: Option<Expiration>,
    /// The automatic rotation, where it is enabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<Rotation>,
    /// Rotations on demand so far.
    #[serde(default)]
    pub rotations_on_demand: u32,
    /// CustomKeyStoreId; none for the default key store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom_key_store_id: Option<String>,
    /// What a multi-Region key knows of its set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multi_region: Option<MultiRegion>,
}

impl Key {
    /// Whether it is a multi-Region replica key, whose shared properties are its
    /// primary key's.
    pub fn is_replica(&self) -> bool {
        self.multi_region.as_ref().is_some_and(|set| !set.is_primary)
    }

    /// The Regions of its replicas; none of a key that is no primary.
    pub fn replicas(&self) -> impl Iterator<Item = &String> {
        self.multi_region.iter().filter(|set| set.is_primary).flat_map(|set| &set.replicas)
    }
}

/// Most Regions of one multi-Region key.
pub const REGIONS_MAX: usize = 32;

/// A multi-Region key and its related keys: MultiRegionConfiguration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MultiRegion {
    /// Whether this is the primary key.
    pub is_primary: bool,
    /// The primary key's Region.
    pub primary: String,
    /// The replica keys' Regions.
    pub replicas: BTreeSet<String>,
    /// Those of them into which imported material that is pending rotation is
    /// not imported yet. Only the primary key's is kept up to date.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub lacking: BTreeSet<String>,
}

impl MultiRegion {
    /// A primary key without replicas.
    pub fn primary(region: &str) -> Self {
        MultiRegion {
            is_primary: true,
            primary: region.to_owned(),
            replicas: BTreeSet::new(),
            lacking: BTreeSet::new(),
        }
    }

    /// MultiRegionKeyType.
    pub fn key_type(&self) -> MultiRegionKeyType {
        match self.is_primary {
            true => MultiRegionKeyType::Primary,
            false => MultiRegionKeyType::Replica,
        }
    }

    /// The same, as the key of this Region has it.
    pub fn seen_from(&self, region: &str) -> Self {
        MultiRegion { is_primary: self.primary == region, ..self.clone() }
    }
}

/// A deletion that was scheduled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    /// DeletionDate, milliseconds since the epoch; none while a multi-Region
    /// primary key waits for the end of its replicas.
    pub due_ms: Option<i64>,
    /// PendingWindowInDays.
    pub window_days: i32,
}

/// When the material of a key with imported material expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expiration {
    /// ValidTo of what expires first, milliseconds since the epoch; none where
    /// nothing does.
    pub valid_to_ms: Option<i64>,
}

/// The terms on which material was imported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    /// KeyMaterialDescription.
    pub description: Option<String>,
    /// ValidTo, milliseconds since the epoch; none where it does not expire.
    pub valid_to_ms: Option<i64>,
}

/// A wrapping key for an import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportParameters {
    /// The KMS key's id.
    pub key_id: String,
    /// WrappingAlgorithm.
    #[serde(with = "wire::text")]
    pub algorithm: AlgorithmSpec,
    /// WrappingKeySpec.
    #[serde(with = "wire::text")]
    pub spec: WrappingKeySpec,
    /// ParametersValidTo, milliseconds since the epoch.
    pub valid_to_ms: i64,
    /// The private key.
    pub home: StoredHome,
}

/// The automatic rotation of a key's material.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// RotationPeriodInDays.
    pub period_days: i32,
    /// NextRotationDate, milliseconds since the epoch.
    pub next_ms: i64,
}

impl Rotation {
    /// A rotation whose period begins now.
    pub fn from_now(period_days: i32, now_ms: i64) -> Self {
        Rotation { period_days, next_ms: now_ms + i64::from(period_days) * DAY_MS }
    }
}

/// How a version of the material became the current one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotated {
    /// RotationDate, milliseconds since the epoch.
    pub at_ms: i64,
    /// RotationType.
    #[serde(with = "wire::text")]
    pub by: RotationType,
}

/// One version of a key's material. Its id in hex is the row's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackingKey {
    /// The KMS key's id.
    pub key_id: String,
    /// The KMS key's spec, from which its kind of material follows.
    #[serde(with = "wire::text")]
    pub spec: KeySpec,
    /// The KMS key's usage.
    #[serde(with = "wire::text")]
    pub usage: KeyUsageType,
    /// Where it lives.
    pub home: StoredHome,
    /// DER SubjectPublicKeyInfo of a key pair.
    pub public_key: Option<Blob>,
    /// When it was made, milliseconds since the epoch.
    pub created_ms: i64,
    /// Uses with a random IV in this Region that were leased so far (NIST SP
    /// 800-38D, 8.3).
    pub uses_leased: u64,
    /// The terms of its import; none where the HSM made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imported: Option<Import>,
    /// The rotation that made it current; none for a key's first material.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotated: Option<Rotated>,
}

/// [`Home`] as it is in a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoredHome {
    /// Wrapped under a wrapping key.
    Wrapped {
        /// CKA_ID of the wrapping key.
        by: BackingId,
        /// What C_WrapKey returned.
        blob: Blob,
    },
    /// A token object.
    Resident {
        /// The same key wrapped, for a kind that can be.
        blob: Option<Blob>,
    },
    /// It was imported, and deleted or has expired: it may be imported again.
    Deleted,
}

impl StoredHome {
    /// The row's form.
    pub fn of(home: &Home) -> Self {
        match home {
            Home::Wrapped { by, blob } => StoredHome::Wrapped { by: *by, blob: Blob(blob.clone()) },
            Home::Resident { blob } => StoredHome::Resident { blob: blob.clone().map(Blob) },
        }
    }

    /// Where it is; none where it is deleted.
    pub fn home(&self) -> Option<Home> {
        match self {
            StoredHome::Wrapped { by, blob } => Some(Home::Wrapped { by: *by, blob: blob.0.clone() }),
            StoredHome::Resident { blob } => {
                Some(Home::Resident { blob: blob.as_ref().map(|blob| blob.0.clone()) })
            }
            StoredHome::Deleted => None,
        }
    }
}

impl StoredHome {
    /// Whether it is a token object.
    pub fn is_resident(&self) -> bool {
        matches!(self, StoredHome::Resident { .. })
    }
}

/// An alias. Its name is the row's id, its key the row's parent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alias {
    /// TargetKeyId.
    pub target: String,
    /// CreationDate, milliseconds since the epoch.
    pub created_ms: i64,
    /// LastUpdatedDate, milliseconds since the epoch.
    pub updated_ms: i64,
}

impl BackingKey {
    /// The row of a backing key that was just made.
    pub fn new(key_id: &str, key: &Key, made: &Made, created_ms: i64) -> Self {
        let home = StoredHome::of(&made.key.home);
        let public_key = made.public_key.clone().map(Blob::from);
        BackingKey {
            key_id: key_id.to_owned(),
            spec: key.spec,
            usage: key.usage,
            home,
            public_key,
            created_ms,
            uses_leased: 0,
            imported: None,
            rotated: None,
        }
    }

    /// What the HSM must know of it; none where it is deleted, or the row makes
    /// no sense.
    pub fn key_ref(&self, id: BackingId) -> Option<KeyRef> {
        let material: Material = super::spec::material(self.spec)?;
        let usage: Use = super::spec::hsm_use(self.usage)?;
        Some(KeyRef { id, material, usage, home: self.home.home()? })
    }
}
