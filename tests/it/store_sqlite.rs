//! What is particular to the store on SQLite: its files, crashes, copies.

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::{ConnectOptions, SqliteConnection};
use strongroom::store::sqlite::{OpenError, SqliteOptions, SqliteStore, backup, restore};
use strongroom::store::{Change, Commit, Finding, Position, Row, Store, StoreError};
use tempfile::TempDir;
use tokio::sync::Mutex;

use crate::store::{Database, event, events_only, put, row, row_effects, row_id, verified};

/// Where the child of the crash test works.
const CRASH_FOLDER: &str = "STRONGROOM_TEST_CRASH_FOLDER";

pub struct SqliteDatabase {
    folder: TempDir,
    open: Mutex<Option<Arc<SqliteStore>>>,
}

impl Default for SqliteDatabase {
    fn default() -> Self {
        SqliteDatabase { folder: TempDir::new().unwrap(), open: Mutex::default() }
    }
}

#[async_trait::async_trait]
impl Database for SqliteDatabase {
    async fn open(&self) -> Arc<dyn Store> {
        let store = Arc::new(open(self.folder.path()).await);
        *self.open.lock().await = Some(store.clone());
        store
    }

    async fn close(&self) {
        if let Some(store) = self.open.lock().await.take() {
            store.close().await.unwrap();
        }
    }
}

async fn open(folder: &Path) -> SqliteStore {
    SqliteStore::open(folder, options()).await.unwrap()
}

async fn open_error(folder: &Path) -> OpenError {
    SqliteStore::open(folder, options()).await.expect_err("the folder was opened")
}

/// The machine's own free space is not what is tested.
fn options() -> SqliteOptions {
    SqliteOptions { min_free_bytes: 0, ..SqliteOptions::default() }
}

fn database(folder: &Path) -> PathBuf {
    folder.join("strongroom.sqlite")
}

async fn shell(folder: &Path) -> SqliteConnection {
    sqlx::sqlite::SqliteConnectOptions::new().filename(database(folder)).connect().await.unwrap()
}

/// What somebody with an SQL shell does while no daemon runs.
async fn tamper(folder: &Path, statement: &'static str) {
    let mut shell = shell(folder).await;
    let done = sqlx::query(statement).execute(&mut shell).await.unwrap();
    assert!(done.rows_affected() > 0, "{statement}");
    sqlx::Connection::close(shell).await.unwrap();
}

async fn fill(store: &dyn Store, count: u64) {
    for i in 0..count {
        store.commit(put(row(&format!("row-{i}"), 1))).await.unwrap();
    }
}

#[tokio::test]
async fn files_are_for_their_owner_only() {
    let parent = TempDir::new().unwrap();
    let folder = parent.path().join("a/b");
    let store = open(&folder).await;
    fill(&store, 1).await;
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder), 0o700);
    let mut names = HashSet::new();
    for entry in folder.read_dir().unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
        names.insert(path.file_name().unwrap().to_string_lossy().into_owned());
    }
    assert!(names.contains("strongroom.sqlite-wal"), "{names:?}");
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_second_daemon_is_refused() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path()).await;
    let error = open_error(folder.path()).await;
    assert!(
        matches!(&error, OpenError::Held { pid: Some(pid), .. } if *pid == std::process::id()),
        "{error}"
    );
    let text = error.to_string();
    assert!(text.contains(folder.path().to_str().unwrap()), "{text}");
    assert!(text.contains(&std::process::id().to_string()), "{text}");
    let backup = folder.path().join("backup");
    assert!(matches!(restore(&backup, folder.path(), true).await, Err(OpenError::Held { .. })));
    store.close().await.unwrap();
    open(folder.path()).await.close().await.unwrap();
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_left_alone() {
    let folder = TempDir::new().unwrap();
    open(folder.path()).await.close().await.unwrap();
    tamper(
        folder.path(),
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (4711, 'later', TRUE, x'00', 1)",
    )
    .await;
    let before = std::fs::read(database(folder.path())).unwrap();
    let error = open_error(folder.path()).await;
    assert!(matches!(error, OpenError::Newer { found: 4711, .. }), "{error}");
    assert_eq!(std::fs::read(database(folder.path())).unwrap(), before);
}

#[tokio::test]
async fn damage_is_noticed_at_start() {
    // The header of the file, and of a page in it.
    for place in [0_usize, 3 * 4096] {
        let folder = TempDir::new().unwrap();
        let store = open(folder.path()).await;
        fill(&store, 100).await;
        store.close().await.unwrap();
        let mut bytes = std::fs::read(database(folder.path())).unwrap();
        bytes[place..place + 2000].fill(0x5a);
        std::fs::write(database(folder.path()), bytes).unwrap();
        let error = open_error(folder.path()).await;
        assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
        assert!(error.to_string().contains("strongroom.sqlite"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_deleted_is_overwritten() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path()).await;
    // One that fits its page and one that needs overflow pages.
    let secrets = ["a-wrapped-key-0123456789".to_owned(), "another-wrapped-key-9876543210".repeat(400)];
    for (i, secret) in secrets.iter().enumerate() {
        let secret = Row { body: secret.clone(), ..row(&format!("secret-{i}"), 1) };
        store.commit(put(secret)).await.unwrap();
        let changed = Row { body: "replaced".into(), ..row(&format!("secret-{i}"), 2) };
        if i == 0 {
            store.commit(put(changed)).await.unwrap();
        }
    }
    fill(&store, 20).await;
    let holds = |text: &str| {
        folder.path().read_dir().unwrap().any(|entry| {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            bytes.windows(24).any(|window| window == &text.as_bytes()[..24])
        })
    };
    assert!(secrets.iter().all(|secret| holds(secret)), "the search finds what is there");
    for (i, expected) in [(0, 2), (1, 1)] {
        let delete = Change::Delete { id: row_id(&format!("secret-{i}")), expected };
        store.commit(Commit { changes: vec![delete], events: vec![event("deleted")] }).await.unwrap();
    }
    store.scrub().await.unwrap();
    assert!(!secrets.iter().any(|secret| holds(secret)));
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_fails_what_does_not_fit_and_nothing_else() {
    let folder = TempDir::new().unwrap();
    let limited = SqliteOptions { max_pages: Some(200), ..options() };
    let store = SqliteStore::open(folder.path(), limited).await.unwrap();
    let big = |i: u64| Row { body: "x".repeat(50_000), ..row(&format!("big-{i}"), 1) };
    let mut stored = Vec::new();
    let failed = loop {
        let i = stored.len() as u64;
        match store.commit(put(big(i))).await {
            Ok(position) => stored.push(position),
            Err(error) => break error,
        }
        assert!(i < 100, "the limit does not hold");
    };
    assert!(matches!(failed, StoreError::Full), "{failed}");
    assert!(!store.accepts_work());
    let failed_row = big(stored.len() as u64).id;
    assert_eq!(store.row(&failed_row).await.unwrap(), None);
    assert_eq!(store.end().borrow().sequence, stored.len() as u64);

    let room = Change::Delete { id: big(0).id, expected: 1 };
    let next = store.commit(Commit { changes: vec![room], events: vec![event("room")] }).await.unwrap();
    assert_eq!(next.sequence, stored.len() as u64 + 1, "no position was lost");
    store.commit(events_only(&["more"])).await.unwrap();
    let report = verified(&store).await;
    assert_eq!((report.events, report.findings), (next.sequence + 1, vec![]));
    store.close().await.unwrap();
}

#[tokio::test]
async fn below_the_mark_new_work_is_refused_and_begun_work_recorded() {
    let folder = TempDir::new().unwrap();
    let options = SqliteOptions { min_free_bytes: u64::MAX, ..options() };
    let store = SqliteStore::open(folder.path(), options).await.unwrap();
    assert!(!store.accepts_work());
    store.commit(events_only(&["begun"])).await.unwrap();
    store.close().await.unwrap();
    let store = open(folder.path()).await;
    assert!(store.accepts_work());
    store.close().await.unwrap();
}

/// Not a test: what `kill -9` hits. It prints each position that was answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crash_child() {
    let Some(folder) = std::env::var_os(CRASH_FOLDER) else { return };
    let store = Arc::new(open(Path::new(&folder)).await);
    let start = store.end().borrow().sequence;
    let workers = (0..4).map(|worker| {
        let store = store.clone();
        tokio::spawn(async move {
            for i in 0_u64.. {
                let id = format!("{start}-{worker}-{i}");
                let events = vec![event(&id)];
                let changes = vec![Change::Put(row(&id, 1)), Change::Put(row(&format!("{id}-second"), 1))];
                let position = store.commit(Commit { changes, events }).await.unwrap();
                println!("answered {} {id}", position.sequence);
            }
        })
    });
    futures::future::join_all(workers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_answered_is_lost_by_kill_9() {
    let folder = TempDir::new().unwrap();
    for round in 0..3 {
        let answered = {
            let folder = folder.path().to_owned();
            tokio::task::spawn_blocking(move || run_and_kill(&folder, 40 + round * 50)).await.unwrap()
        };
        let store = open(folder.path()).await;
        let report = verified(&store).await;
        assert_eq!(report.findings, vec![]);
        for (sequence, id) in &answered {
            let position = Position { writer: 1, sequence: *sequence };
            let found = store.events_at(&[position]).await.unwrap();
            assert_eq!(found.len(), 1, "event {position} was answered");
            assert_eq!(&found[0].id, id);
        }
        // An event and both its rows, or none of the three.
        let effects = row_effects(&store).await;
        let rows = effects.len() as u64;
        assert_eq!(rows, 2 * report.events);
        for id in effects.keys() {
            assert!(store.row(id).await.unwrap().is_some(), "{id}");
        }
        let stored = store.all_rows(strongroom::store::Kind::Key, None, u32::MAX).await.unwrap();
        assert_eq!(stored.len() as u64, rows);
        store.close().await.unwrap();
    }
}

/// Starts the child, reads `count` answers and kills it.
fn run_and_kill(folder: &Path, count: usize) -> Vec<(u64, String)> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["store_sqlite::crash_child", "--exact", "--nocapture"])
        .env(CRASH_FOLDER, folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut answered = Vec::new();
    for line in lines {
        // The test runner's own words may stand before the first one.
        if let Some((_, answer)) = line.split_once("answered ") {
            let (sequence, id) = answer.split_once(' ').unwrap();
            answered.push((sequence.parse().unwrap(), id.to_owned()));
        }
        if answered.len() == count {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(answered.len() >= count, "the child ended by itself");
    answered
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_load_restores_to_a_consistent_store() {
    let (folder, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let store = Arc::new(open(folder.path()).await);
    fill(store.as_ref(), 50).await;
    let stop = Arc::new(AtomicBool::new(false));
    let load = {
        let (store, stop) = (store.clone(), stop.clone());
        tokio::spawn(async move {
            for i in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let pair = ["left", "right"].map(|side| Change::Put(row(&format!("{side}-{i}"), 1)));
                let commit = Commit { changes: pair.into(), events: vec![event(&format!("pair-{i}"))] };
                store.commit(commit).await.unwrap();
            }
        })
    };
    let file = other.path().join("backup.sqlite");
    let mut end = store.end();
    for _ in 0..20 {
        end.changed().await.unwrap();
    }
    backup(folder.path(), &file).await.unwrap();
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let again = backup(folder.path(), &file).await;
    assert!(matches!(again, Err(OpenError::Exists { .. })), "a backup is not overwritten");
    stop.store(true, Ordering::Relaxed);
    load.await.unwrap();
    store.commit(events_only(&["after the backup"])).await.unwrap();
    let lost = *store.end().borrow();
    store.close().await.unwrap();

    let refused = restore(&file, folder.path(), false).await;
    assert!(matches!(refused, Err(OpenError::Exists { .. })));
    let report = restore(&file, folder.path(), true).await.unwrap();
    assert!(report.set_aside.is_some_and(|aside| aside.exists()));
    assert_eq!(report.writer, 2);
    assert_eq!(report.unread, Vec::<PathBuf>::new());

    let store = open(folder.path()).await;
    let restored = store.restored().expect("a restore is told of");
    assert_eq!(restored.follows, report.follows);
    assert!(restored.follows.unwrap() < lost);
    assert_eq!(*store.end().borrow(), Position { writer: 2, sequence: 0 });
    let position = store.commit(put(row("after", 1))).await.unwrap();
    assert_eq!(position, Position { writer: 2, sequence: 1 });
    let verified = verified(&store).await;
    assert_eq!(verified.findings, vec![]);
    assert_eq!(verified.last.unwrap().0, position);
    let rows = store.all_rows(strongroom::store::Kind::Key, None, u32::MAX).await.unwrap();
    let count = |side: &str| rows.iter().filter(|row| row.id.id.starts_with(side)).count();
    assert!(count("left") > 0);
    assert_eq!(count("left"), count("right"), "a commit is in the backup as a whole");
    assert_eq!(row_effects(&store).await.len(), rows.len());
    store.close().await.unwrap();
}

#[tokio::test]
async fn positions_are_not_used_twice_however_often_a_backup_is_restored() {
    let (folder, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let file = other.path().join("backup.sqlite");
    let store = open(folder.path()).await;
    fill(&store, 3).await;
    backup(folder.path(), &file).await.unwrap();
    store.close().await.unwrap();
    for writer in [2, 3] {
        restore(&file, folder.path(), true).await.unwrap();
        let store = open(folder.path()).await;
        let position = store.commit(events_only(&["x"])).await.unwrap();
        assert_eq!(position, Position { writer, sequence: 1 });
        assert_eq!(verified(&store).await.findings, vec![]);
        assert!(store.restored().is_some());
        store.close().await.unwrap();
        let store = open(folder.path()).await;
        assert!(store.restored().is_some(), "until it is acknowledged");
        store.acknowledge_restore().await.unwrap();
        assert_eq!(store.restored(), None);
        store.close().await.unwrap();
        let store = open(folder.path()).await;
        assert_eq!(store.restored(), None);
        assert_eq!(store.end().borrow().sequence, 1);
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn what_is_no_backup_is_refused_and_changes_nothing() {
    let (folder, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let store = open(folder.path()).await;
    fill(&store, 100).await;
    let good = other.path().join("good");
    backup(folder.path(), &good).await.unwrap();
    store.close().await.unwrap();

    let garbage = other.path().join("garbage");
    std::fs::write(&garbage, "not a database, but long enough to look like one").unwrap();
    let cut = other.path().join("cut");
    let bytes = std::fs::read(&good).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    let empty = other.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    for (file, corrupt) in [(&garbage, true), (&cut, true), (&empty, false)] {
        let error = restore(file, folder.path(), true).await.unwrap_err();
        assert_eq!(matches!(error, OpenError::Corrupt { .. }), corrupt, "{error}");
        assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
    }
    assert!(restore(&other.path().join("missing"), folder.path(), true).await.is_err());
    let store = open(folder.path()).await;
    assert_eq!(*store.end().borrow(), Position { writer: 1, sequence: 100 });
    store.close().await.unwrap();
    std::fs::write(folder.path().join("strongroom.sqlite.restoring"), "").unwrap();
    assert!(matches!(open_error(folder.path()).await, OpenError::Unfinished { .. }));
    restore(&good, folder.path(), true).await.unwrap();
    open(folder.path()).await.close().await.unwrap();
}

#[tokio::test]
async fn a_changed_log_is_noticed_and_the_event_named() {
    let missing = |from, to| Finding::Missing { writer: 1, from, to };
    let changed = |sequence: u64| Finding::Changed {
        position: Position { writer: 1, sequence },
        id: format!("put-row-{}-1", sequence - 1),
    };
    let at = "(1 << 48)";
    let cases: [(&'static str, Vec<Finding>); 6] = [
        ("UPDATE event SET record = '{}' WHERE position = (1 << 48) + 4", vec![changed(4)]),
        ("UPDATE event SET time_ms = time_ms + 1 WHERE position = (1 << 48) + 1", vec![changed(1)]),
        ("UPDATE event SET effects = '[]' WHERE position = (1 << 48) + 4", vec![changed(4)]),
        ("UPDATE event SET hash = zeroblob(32) WHERE position = (1 << 48) + 4", vec![changed(4), changed(5)]),
        ("DELETE FROM event WHERE position IN ((1 << 48) + 4, (1 << 48) + 5)", vec![missing(4, Some(5))]),
        ("DELETE FROM event WHERE position > (1 << 48) + 5", vec![missing(6, None)]),
    ];
    for (statement, findings) in cases {
        assert!(statement.contains(at));
        let folder = TempDir::new().unwrap();
        let store = open(folder.path()).await;
        fill(&store, 10).await;
        let end = *store.end().borrow();
        let hash = store.hash_at(end).await.unwrap().unwrap();
        let head = strongroom::store::SignedHead { position: end, hash, time_ms: 1, signature: vec![] };
        store.sign_head(head).await.unwrap();
        store.close().await.unwrap();
        tamper(folder.path(), statement).await;
        let store = open(folder.path()).await;
        assert_eq!(verified(&store).await.findings, findings, "{statement}");
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn events_removed_before_a_restore_are_missed() {
    let (folder, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let file = other.path().join("backup.sqlite");
    let store = open(folder.path()).await;
    fill(&store, 5).await;
    backup(folder.path(), &file).await.unwrap();
    store.close().await.unwrap();
    restore(&file, folder.path(), true).await.unwrap();
    let store = open(folder.path()).await;
    store.commit(events_only(&["x"])).await.unwrap();
    store.close().await.unwrap();
    tamper(folder.path(), "DELETE FROM event WHERE position BETWEEN (1 << 48) + 4 AND (1 << 48) + 5").await;
    let store = open(folder.path()).await;
    let missing = Finding::Missing { writer: 1, from: 4, to: Some(5) };
    assert_eq!(verified(&store).await.findings, [missing]);
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_nobody_waits_for_any_more_is_not_carried_out() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path()).await;
    // Another writer holds the database, so that the group before it waits.
    let mut shell = shell(folder.path()).await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut shell).await.unwrap();
    let first = store.commit(events_only(&["first"]));
    let mut first = std::pin::pin!(first);
    assert!(futures::poll!(&mut first).is_pending());
    tokio::time::sleep(Duration::from_millis(50)).await;
    {
        let mut dropped = std::pin::pin!(store.commit(events_only(&["dropped"])));
        assert!(futures::poll!(&mut dropped).is_pending());
    }
    sqlx::query("ROLLBACK").execute(&mut shell).await.unwrap();
    first.await.unwrap();
    store.commit(events_only(&["last"])).await.unwrap();
    let events = store.events(Position { writer: 1, sequence: 0 }, 10).await.unwrap();
    let ids: Vec<&str> = events.iter().map(|event| event.id.as_str()).collect();
    assert_eq!(ids, ["first", "last"]);
    drop(shell);
    store.close().await.unwrap();
}
