//! Online backup, and putting a backup in place.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use sqlx::{ConnectOptions, Connection, SqliteConnection, query};

use super::folder::{FolderLock, sync_folder};
use super::{DATABASE_FILE, OpenError, now_ms, schema, sql, writer};
use crate::store::{Position, Writer};

/// The backup while it is checked. Where it lies in the folder, a restore has
/// not finished, and the folder is not opened.
const STAGING_FILE: &str = "strongroom.sqlite.restoring";
/// What SQLite puts beside a database.
const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// What a restore did, and what it cannot know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreReport {
    /// The number under which events are appended from now on.
    pub writer: u32,
    /// The last event of the backup, None where it has none. Events and
    /// changes after it are gone from the log.
    pub follows: Option<Position>,
    /// Where the database that was there is now.
    pub set_aside: Option<PathBuf>,
    /// Former databases of the folder that could not be read: if one of them
    /// was itself restored, its events may have the same positions as new ones.
    pub unread: Vec<PathBuf>,
}

/// Writes the database as it is at this moment to a new file (0600), also from
/// another process while the daemon works, which goes on writing meanwhile.
///
/// The daemon's journal grows until the backup is done, and
/// [`Store::scrub`](crate::store::Store::scrub) waits for it.
pub async fn backup(folder: &Path, to: &Path) -> Result<(), OpenError> {
    let file = folder.join(DATABASE_FILE);
    let mut db = connect_read_only(&file).await?;
    if schema::version(&mut db).await.map_err(|e| OpenError::database(&file, e))?.is_none() {
        return Err(OpenError::Foreign { file });
    }
    create_new(to)?;
    let copied = copy_into(&mut db, &file, to).await;
    if copied.is_err() {
        remove(to).map_err(|error| OpenError::Folder { folder: to.to_owned(), error })?;
    }
    copied
}

async fn copy_into(db: &mut SqliteConnection, file: &Path, to: &Path) -> Result<(), OpenError> {
    let io = |error| OpenError::Folder { folder: to.to_owned(), error };
    // Absolute, so that no name is taken for a URI.
    let absolute = std::path::absolute(to).map_err(io)?;
    let name = absolute.to_str().ok_or_else(|| io(io::ErrorKind::InvalidFilename.into()))?;
    query("VACUUM INTO ?").bind(name).execute(db).await.map_err(|e| OpenError::database(file, e))?;
    File::open(to).and_then(|file| file.sync_all()).map_err(io)?;
    absolute.parent().map_or(Ok(()), sync_folder).map_err(io)
}

/// Puts a backup in place of the folder's database.
///
/// Refused while a daemon has the folder, and where there is a database, unless
/// `force` moves that one aside. The backup is checked in full first, and stays
/// as it is. Events are from then on appended under a new writer number, so
/// that no position is used twice.
pub async fn restore(from: &Path, folder: &Path, force: bool) -> Result<RestoreReport, OpenError> {
    let _lock = FolderLock::take(folder)?;
    let database = folder.join(DATABASE_FILE);
    if database.exists() && !force {
        return Err(OpenError::Exists {
            file: database,
            remedy: "restore into an empty folder, or force the restore, which moves it aside",
        });
    }
    let (known, unread) = highest_writer(folder).await?;
    let staging = folder.join(STAGING_FILE);
    let io = |error| OpenError::Folder { folder: folder.to_owned(), error };
    remove_database(&staging).map_err(io)?;
    let prepared = match copy_file(from, &staging).await {
        Ok(()) => take_over(&staging, known).await,
        Err(error) => Err(OpenError::Folder { folder: from.to_owned(), error }),
    };
    let writer = match prepared {
        Ok(writer) => writer,
        Err(error) => {
            remove_database(&staging).map_err(io)?;
            return Err(naming(from, error));
        }
    };
    let set_aside = put_in_place(&staging, &database).and_then(|aside| {
        sync_folder(folder)?;
        Ok(aside)
    });
    Ok(RestoreReport {
        writer: writer.id,
        follows: writer.follows,
        set_aside: set_aside.map_err(io)?,
        unread,
    })
}

/// Refuses a folder in which a restore stopped half-way.
pub(super) fn refuse_unfinished(folder: &Path) -> Result<(), OpenError> {
    match folder.join(STAGING_FILE).exists() {
        true => Err(OpenError::Unfinished { folder: folder.to_owned() }),
        false => Ok(()),
    }
}

/// Checks the copy and gives it its new writer.
async fn take_over(staging: &Path, known: u32) -> Result<Writer, OpenError> {
    let database = |error| OpenError::database(staging, error);
    let mut db = schema::options(staging).connect().await.map_err(database)?;
    if schema::refuse_newer(&mut db, staging).await?.is_none() {
        return Err(OpenError::Foreign { file: staging.to_owned() });
    }
    schema::check_fully(&mut db, staging).await?;
    let last = sql::writers(&mut db).await.map_err(database)?.pop();
    let last = last.ok_or_else(|| OpenError::Foreign { file: staging.to_owned() })?;
    let follows = writer::log_end(&mut db, last).await.map_err(database)?.last_event();
    let now_ms = now_ms();
    let id = known.max(last.id) + 1;
    if id > sql::WRITER_MAX {
        return Err(OpenError::WritersUsedUp { file: staging.to_owned() });
    }
    let writer = Writer { id, follows, restored_ms: Some(now_ms) };
    sql::insert_writer(&mut db, writer, now_ms).await.map_err(database)?;
    db.close().await.map_err(database)?;
    Ok(writer)
}

/// Moves the old database aside, its journal with it, and the new one in.
fn put_in_place(staging: &Path, database: &Path) -> io::Result<Option<PathBuf>> {
    let aside = beside(database, &format!(".replaced-{}", now_ms()));
    let there = database.exists();
    for companion in COMPANIONS {
        rename_if_there(&beside(database, companion), &beside(&aside, companion))?;
    }
    rename_if_there(database, &aside)?;
    // The staging file is the mark of an unfinished restore: the last to go.
    fs::rename(staging, database)?;
    Ok(there.then_some(aside))
}

/// The highest writer number in the folder's databases, the ones set aside
/// included, and the databases that could not be read.
async fn highest_writer(folder: &Path) -> Result<(u32, Vec<PathBuf>), OpenError> {
    let (mut highest, mut unread) = (0, Vec::new());
    for file in databases(folder).map_err(|error| OpenError::Folder { folder: folder.to_owned(), error })? {
        match writers_of(&file).await {
            Ok(last) => highest = highest.max(last),
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "a former database cannot be read");
                unread.push(file);
            }
        }
    }
    Ok((highest, unread))
}

async fn writers_of(file: &Path) -> Result<u32, OpenError> {
    let mut db = connect_read_only(file).await?;
    let writers = sql::writers(&mut db).await.map_err(|e| OpenError::database(file, e))?;
    Ok(writers.last().map_or(0, |writer| writer.id))
}

fn databases(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let companion = COMPANIONS.iter().any(|companion| name.ends_with(companion));
        if name.starts_with(DATABASE_FILE) && !name.starts_with(STAGING_FILE) && !companion {
            found.push(path);
        }
    }
    Ok(found)
}

pub(super) async fn connect_read_only(file: &Path) -> Result<SqliteConnection, OpenError> {
    schema::options(file).read_only(true).connect().await.map_err(|e| OpenError::database(file, e))
}

async fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    let (from, to) = (from.to_owned(), to.to_owned());
    let copy = tokio::task::spawn_blocking(move || {
        let mut source = File::open(from)?;
        let mut target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
        io::copy(&mut source, &mut target)?;
        target.sync_all()
    });
    copy.await.map_err(io::Error::other)?
}

/// The message names the file that the operator gave, not our copy of it.
fn naming(from: &Path, error: OpenError) -> OpenError {
    let file = from.to_owned();
    match error {
        OpenError::Newer { found, known, .. } => OpenError::Newer { file, found, known },
        OpenError::Corrupt { what, .. } => OpenError::Corrupt { file, what },
        OpenError::Database { error, .. } => OpenError::Database { file, error },
        OpenError::Foreign { .. } => OpenError::Foreign { file },
        OpenError::WritersUsedUp { .. } => OpenError::WritersUsedUp { file },
        other => other,
    }
}

fn create_new(path: &Path) -> Result<(), OpenError> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(OpenError::Exists { file: path.to_owned(), remedy: "name a new file" })
        }
        Err(error) => Err(OpenError::Folder { folder: path.to_owned(), error }),
    }
}

/// `path` with `suffix` appended to its name.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Removes a database and what SQLite put beside it.
pub(crate) fn remove_database(database: &Path) -> io::Result<()> {
    COMPANIONS.iter().try_for_each(|companion| remove(&beside(database, companion)))?;
    remove(database)
}
