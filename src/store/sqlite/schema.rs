//! Opening the database's file: settings, schema version, integrity.

use std::path::Path;
use std::time::{Duration, Instant};

use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, SqliteConnection, query_scalar};

use super::{OpenError, sql};

static MIGRATIONS: Migrator = sqlx::migrate!("src/store/migrations/sqlite");

/// How long a connection waits for another's lock.
pub(super) const BUSY_TIMEOUT_MS: u64 = 5_000;
/// How long the check at start may take; a log of many gigabytes is checked in
/// part then, and in full by [`check_fully`].
const START_CHECK_TIMEOUT_MS: u64 = 1_000;
/// SQLite's virtual machine instructions between two looks at the clock.
const PROGRESS_STEPS: i32 = 1_000;

/// What every connection to the store has.
pub(super) fn options(file: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(false)
        .busy_timeout(Duration::from_millis(BUSY_TIMEOUT_MS))
        .foreign_keys(false)
        .disable_statement_logging()
}

/// What makes and migrates the schema.
pub(super) fn migration_options(file: &Path) -> SqliteConnectOptions {
    options(file).journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full)
}

/// The schema's version in the database: None where it has no schema of ours.
pub(super) async fn version(db: &mut SqliteConnection) -> sqlx::Result<Option<i64>> {
    let ours: i64 = query_scalar("SELECT count(*) FROM sqlite_master WHERE name = '_sqlx_migrations'")
        .fetch_one(&mut *db)
        .await?;
    match ours {
        0 => Ok(None),
        _ => query_scalar("SELECT max(version) FROM _sqlx_migrations").fetch_one(db).await,
    }
}

/// Refuses a schema that a newer Strongroom made.
pub(super) async fn refuse_newer(db: &mut SqliteConnection, file: &Path) -> Result<Option<i64>, OpenError> {
    let found = version(db).await.map_err(|e| OpenError::database(file, e))?;
    let known = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0);
    match found {
        Some(found) if found > known => Err(OpenError::Newer { file: file.to_owned(), found, known }),
        _ => Ok(found),
    }
}

/// Brings the schema to this Strongroom's version.
pub(super) async fn migrate(db: &mut SqliteConnection, file: &Path) -> Result<(), OpenError> {
    refuse_newer(db, file).await?;
    // Not run(): the future of its Acquire is not Send for every lifetime, and
    // sqlx keeps this one for that case.
    MIGRATIONS
        .run_direct(None, db, false)
        .await
        .map_err(|error| OpenError::Database { file: file.to_owned(), error: error.to_string() })
}

/// Looks for damage for a bounded time, the rows before the log.
pub(super) async fn check_quickly(db: &mut SqliteConnection, file: &Path) -> Result<(), OpenError> {
    let deadline = Instant::now() + Duration::from_millis(START_CHECK_TIMEOUT_MS);
    let database = |e| OpenError::database(file, e);
    db.lock_handle()
        .await
        .map_err(database)?
        .set_progress_handler(PROGRESS_STEPS, move || Instant::now() < deadline);
    let found = query_scalar::<_, String>("PRAGMA quick_check(10)").fetch_all(&mut *db).await;
    db.lock_handle().await.map_err(database)?.remove_progress_handler();
    match found {
        // Primary result code 9: SQLITE_INTERRUPT, our deadline.
        Err(error) if sql::result_code(&error) == Some(9) => {
            tracing::warn!(file = %file.display(), "the database is large: only a part of it was checked at start");
            Ok(())
        }
        found => verdict(file, found.map_err(database)?),
    }
}

/// Looks for damage everywhere, indexes included; takes as long as it takes.
pub(super) async fn check_fully(db: &mut SqliteConnection, file: &Path) -> Result<(), OpenError> {
    let found = query_scalar::<_, String>("PRAGMA integrity_check(10)").fetch_all(db).await;
    verdict(file, found.map_err(|e| OpenError::database(file, e))?)
}

fn verdict(file: &Path, findings: Vec<String>) -> Result<(), OpenError> {
    match findings.as_slice() {
        [one] if one == "ok" => Ok(()),
        _ => Err(OpenError::Corrupt { file: file.to_owned(), what: findings.join("; ") }),
    }
}
