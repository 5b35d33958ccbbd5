//! Where a trail's files go: a bucket of an S3-compatible store, or a folder.

use std::collections::BTreeMap;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt as _;
use object_store::aws::AmazonS3;
use object_store::path::Path;
use object_store::{Attribute, Attributes, ObjectStore, ObjectStoreExt as _, PutOptions};
use tokio::fs;
use tokio::io::AsyncWriteExt as _;

use super::s3;
use crate::config::TrailSettings;

/// In a folder an object's metadata is a file beside it.
const METADATA_SUFFIX: &str = ".metadata";
/// A file that is not yet whole.
const PARTIAL_SUFFIX: &str = ".partial";

/// An object's user metadata (`x-amz-meta-…`).
pub type Metadata = BTreeMap<String, String>;

/// Why a bucket did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    /// There is no such bucket.
    #[error("the bucket {0} does not exist")]
    NoBucket(String),
    /// The store said something else, or nothing.
    #[error("{0}")]
    Failed(String),
}

/// The store that the configuration names.
#[derive(Debug, Clone)]
pub struct Buckets {
    settings: TrailSettings,
    region: String,
}

impl Buckets {
    /// `region` is the daemon's, for a store that names none.
    pub fn new(settings: TrailSettings, region: String) -> Buckets {
        Buckets { settings, region }
    }

    /// A bucket, whose objects are encrypted by this key of the store's.
    ///
    /// # Errors
    /// [`BucketError::Failed`] where the settings make no client.
    pub fn open(&self, name: &str, kms_key_id: Option<&str>) -> Result<Bucket, BucketError> {
        if let Some(folder) = &self.settings.folder {
            return Ok(Bucket { name: name.to_owned(), place: Place::Folder(folder.join(name)) });
        }
        let s3 = s3::client(&self.settings.s3, &self.region, name, kms_key_id)?;
        Ok(Bucket { name: name.to_owned(), place: Place::S3(Arc::new(s3)) })
    }
}

/// An object.
#[derive(Debug, Clone)]
pub struct Object {
    /// Its content.
    pub bytes: Bytes,
    /// Its user metadata.
    pub metadata: Metadata,
}

/// One bucket.
#[derive(Debug, Clone)]
pub struct Bucket {
    name: String,
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    S3(Arc<AmazonS3>),
    Folder(PathBuf),
}

impl Bucket {
    /// Writes an object, in place of one of the same key. Done, it is durable.
    ///
    /// # Errors
    /// Any [`BucketError`]; it may have been written all the same.
    pub async fn put(&self, key: &str, bytes: Bytes, metadata: &Metadata) -> Result<(), BucketError> {
        match &self.place {
            Place::S3(s3) => {
                let mut attributes: Attributes = metadata
                    .iter()
                    .map(|(name, value)| (Attribute::Metadata(name.clone().into()), value.clone()))
                    .collect();
                attributes.insert(Attribute::ContentType, "application/json".into());
                attributes.insert(Attribute::ContentEncoding, "gzip".into());
                let options = PutOptions { attributes, ..PutOptions::default() };
                s3.put_opts(&path(key)?, bytes.into(), options).await.map_err(|error| self.failed(&error))?;
                Ok(())
            }
            Place::Folder(folder) => {
                let file = folder.join(key);
                if !metadata.is_empty() {
                    let text =
                        serde_json::to_vec(metadata).map_err(|e| BucketError::Failed(e.to_string()))?;
                    write(&suffixed(&file, METADATA_SUFFIX), &text).await?;
                }
                write(&file, &bytes).await
            }
        }
    }

    /// Reads an object; none where there is none of the key.
    ///
    /// # Errors
    /// Any [`BucketError`].
    pub async fn get(&self, key: &str) -> Result<Option<Object>, BucketError> {
        match &self.place {
            Place::S3(s3) => {
                let found = match s3.get(&path(key)?).await {
                    Ok(found) => found,
                    Err(error) => {
                        return match self.failed(&error) {
                            BucketError::Failed(_) if is_missing(&error) => Ok(None),
                            other => Err(other),
                        };
                    }
                };
                let metadata = found
                    .attributes
                    .iter()
                    .filter_map(|(name, value)| match name {
                        Attribute::Metadata(name) => Some((name.to_string(), value.to_string())),
                        _ => None,
                    })
                    .collect();
                let bytes = found.bytes().await.map_err(|error| self.failed(&error))?;
                Ok(Some(Object { bytes, metadata }))
            }
            Place::Folder(folder) => {
                let file = folder.join(key);
                let Some(bytes) = read(&file).await? else { return Ok(None) };
                let metadata = match read(&suffixed(&file, METADATA_SUFFIX)).await? {
                    Some(text) => serde_json::from_slice(&text).unwrap_or_default(),
                    None => Metadata::new(),
                };
                Ok(Some(Object { bytes: bytes.into(), metadata }))
            }
        }
    }

    /// The keys below a folder, sorted.
    ///
    /// # Errors
    /// Any [`BucketError`].
    pub async fn list(&self, folder: &str) -> Result<Vec<String>, BucketError> {
        let mut keys = match &self.place {
            Place::S3(s3) => {
                let found = s3.list(Some(&path(folder.trim_end_matches('/'))?));
                found
                    .map_ok(|object| object.location.to_string())
                    .try_collect::<Vec<_>>()
                    .await
                    .map_err(|error| self.failed(&error))?
            }
            Place::Folder(root) => {
                let (root, below) = (root.clone(), root.join(folder));
                let walk = move || walk(&root, &below);
                tokio::task::spawn_blocking(walk).await.map_err(|e| BucketError::Failed(e.to_string()))??
            }
        };
        keys.sort();
        Ok(keys)
    }

    /// Whether the bucket is there. A store that does not answer may have it.
    ///
    /// # Errors
    /// [`BucketError::NoBucket`].
    pub async fn check(&self) -> Result<(), BucketError> {
        match &self.place {
            Place::S3(_) => match self.list("AWSLogs/strongroom-asks-for-the-bucket/").await {
                Err(BucketError::NoBucket(name)) => Err(BucketError::NoBucket(name)),
                Err(BucketError::Failed(error)) => {
                    tracing::warn!(bucket = self.name, error, "whether the bucket is there is not known");
                    Ok(())
                }
                Ok(_) => Ok(()),
            },
            // Made with its first file.
            Place::Folder(_) => Ok(()),
        }
    }

    fn failed(&self, error: &object_store::Error) -> BucketError {
        let told = told(error);
        match told.contains("NoSuchBucket") {
            true => BucketError::NoBucket(self.name.clone()),
            false => BucketError::Failed(told),
        }
    }
}

fn is_missing(error: &object_store::Error) -> bool {
    matches!(error, object_store::Error::NotFound { .. })
}

/// An error with its causes, in one line.
pub(super) fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn path(key: &str) -> Result<Path, BucketError> {
    Path::parse(key).map_err(|error| BucketError::Failed(error.to_string()))
}

fn suffixed(file: &FilePath, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn io(file: &FilePath) -> impl Fn(std::io::Error) -> BucketError {
    let file = file.display().to_string();
    move |error| BucketError::Failed(format!("{file}: {error}"))
}

/// Writes a file whole or not at all, and durably: it, its name, its folders.
async fn write(file: &FilePath, bytes: &[u8]) -> Result<(), BucketError> {
    let folder = file.parent().unwrap_or(FilePath::new("/"));
    fs::create_dir_all(folder).await.map_err(io(folder))?;
    let partial = suffixed(file, PARTIAL_SUFFIX);
    let mut open = fs::File::create(&partial).await.map_err(io(&partial))?;
    open.write_all(bytes).await.map_err(io(&partial))?;
    open.sync_all().await.map_err(io(&partial))?;
    fs::rename(&partial, file).await.map_err(io(file))?;
    let opened = fs::File::open(folder).await.map_err(io(folder))?;
    opened.sync_all().await.map_err(io(folder))
}

async fn read(file: &FilePath) -> Result<Option<Vec<u8>>, BucketError> {
    match fs::read(file).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io(file)(error)),
    }
}

fn walk(root: &FilePath, folder: &FilePath) -> Result<Vec<String>, BucketError> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io(folder)(error)),
    };
    let mut keys = Vec::new();
    for entry in entries {
        let path = entry.map_err(io(folder))?.path();
        if path.is_dir() {
            keys.extend(walk(root, &path)?);
            continue;
        }
        let name = path.to_string_lossy();
        if name.ends_with(METADATA_SUFFIX) || name.ends_with(PARTIAL_SUFFIX) {
            continue;
        }
        keys.extend(path.strip_prefix(root).ok().map(|key| key.to_string_lossy().into_owned()));
    }
    Ok(keys)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_keeps_objects_with_their_metadata() {
        let folder = tempfile::tempdir().unwrap();
        let settings = TrailSettings { folder: Some(folder.path().to_owned()), ..TrailSettings::default() };
        let bucket = Buckets::new(settings, "us-east-1".into()).open("bucket", None).unwrap();
        bucket.check().await.unwrap();
        assert!(bucket.get("a/b.json.gz").await.unwrap().is_none());
        assert_eq!(bucket.list("a/").await.unwrap(), Vec::<String>::new());
        let metadata = Metadata::from([("signature".to_owned(), "00".to_owned())]);
        bucket.put("a/c.json.gz", Bytes::from_static(b"two"), &Metadata::new()).await.unwrap();
        for content in ["old", "one"] {
            bucket.put("a/b.json.gz", content.into(), &metadata).await.unwrap();
        }
        let found = bucket.get("a/b.json.gz").await.unwrap().unwrap();
        assert_eq!((&found.bytes[..], &found.metadata), (&b"one"[..], &metadata));
        assert_eq!(bucket.list("a/").await.unwrap(), ["a/b.json.gz", "a/c.json.gz"]);
    }
}
