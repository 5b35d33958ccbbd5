//! The contract suite: what every [`Store`] must do. An implementation joins
//! with a [`Database`] and one line of [`contract!`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use strongroom::store::{
    ChainReport, Change, Commit, Effect, Finding, Kind, NewEvent, Position, Row, RowId, SignedHead, Store,
    StoreError, verify_chain,
};

/// An empty database of a test's own that can be opened again and again.
#[async_trait::async_trait]
pub trait Database: Default + Send + Sync {
    async fn open(&self) -> Arc<dyn Store>;
    /// Ends what `open` began, as a daemon that stops.
    async fn close(&self);
}

/// One test per rule of the contract.
macro_rules! contract {
    ($database:ty: $($rule:ident),* $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $rule() {
            let database = <$database>::default();
            super::$rule(&database).await;
            crate::store::Database::close(&database).await;
        })*
    };
}

mod sqlite {
    use crate::store_sqlite::SqliteDatabase;

    contract!(
        SqliteDatabase: one_conflict_fails_alone,
        a_commit_is_all_or_nothing,
        versions_are_compared,
        commits_without_events_stay_where_the_log_ends,
        rows_come_in_pages,
        rows_are_found_in_any_account,
        what_is_due_comes_longest_due_first,
        the_log_goes_on_after_a_restart,
        events_are_read_by_position,
        the_log_remembers_what_rows_became,
        signed_heads_are_compared_with_the_log,
        a_closed_store_says_so,
    );
}

pub fn row_id(id: &str) -> RowId {
    named(Kind::Key, "us-east-1", "111122223333", id)
}

pub fn named(kind: Kind, region: &str, account: &str, id: &str) -> RowId {
    RowId { kind, region: region.into(), account: account.into(), id: id.into() }
}

pub fn row(id: &str, version: u64) -> Row {
    row_of(row_id(id), version)
}

pub fn row_of(id: RowId, version: u64) -> Row {
    let body = format!("{{\"id\":\"{}\",\"version\":{version}}}", id.id);
    Row { id, parent: None, due_ms: None, version, body, mac: vec![version as u8; 32] }
}

pub fn event(id: &str) -> NewEvent {
    NewEvent { id: id.into(), time_ms: 1_700_000_000_000, record: format!("{{\"eventID\":\"{id}\"}}") }
}

pub fn put(row: Row) -> Commit {
    let event = event(&format!("put-{}-{}", row.id.id, row.version));
    Commit { changes: vec![Change::Put(row)], events: vec![event] }
}

fn just(change: Change) -> Commit {
    Commit { changes: vec![change], events: vec![] }
}

pub fn events_only(ids: &[&str]) -> Commit {
    Commit { changes: vec![], events: ids.iter().map(|id| event(id)).collect() }
}

/// The chain's report, with every signature taken for good.
pub async fn verified(store: &dyn Store) -> ChainReport {
    verify_chain(store, None, &mut |_| Ok(()), &mut |_| ()).await.unwrap()
}

/// What the log says of each row: its latest version and its MAC in hex.
pub async fn row_effects(store: &dyn Store) -> HashMap<RowId, (u64, String)> {
    let mut rows = HashMap::new();
    let mut keep = |effect: Effect| drop(rows.insert(effect.row, (effect.version, effect.mac)));
    verify_chain(store, None, &mut |_| Ok(()), &mut keep).await.unwrap();
    rows
}

const WRITER_1: Position = Position { writer: 1, sequence: 0 };

async fn one_conflict_fails_alone(database: &impl Database) {
    let store = database.open().await;
    store.commit(put(row("taken", 1))).await.unwrap();
    let commits = (0..100).map(|i| {
        let store = store.clone();
        let row = if i % 10 == 3 { row("taken", 1) } else { row(&format!("row-{i}"), 1) };
        let commit = Commit {
            changes: vec![Change::Put(row)],
            events: vec![event(&format!("{i}-a")), event(&format!("{i}-b"))],
        };
        tokio::spawn(async move { (i, store.commit(commit).await) })
    });
    let mut last_of = HashMap::new();
    for done in futures::future::join_all(commits).await {
        match done.unwrap() {
            (i, Err(StoreError::Conflict(id))) => {
                assert_eq!(i % 10, 3, "{i} had no conflict");
                assert_eq!(id, row_id("taken"));
            }
            (i, Ok(position)) => {
                assert_ne!(i % 10, 3, "{i} was a conflict");
                last_of.insert(i, position);
            }
            (_, Err(other)) => panic!("{other}"),
        }
    }
    let events = store.events(WRITER_1, 1_000).await.unwrap();
    let sequences: Vec<u64> = events.iter().map(|event| event.position.sequence).collect();
    assert_eq!(sequences, (1..=181).collect::<Vec<u64>>(), "dense and in order");
    let at: HashMap<Position, &str> =
        events.iter().map(|event| (event.position, event.id.as_str())).collect();
    for (i, last) in last_of {
        assert_eq!(at[&last], format!("{i}-b"), "the answer names the commit's last event");
        assert_eq!(at[&Position { sequence: last.sequence - 1, ..last }], format!("{i}-a"));
        assert!(store.row(&row_id(&format!("row-{i}"))).await.unwrap().is_some());
    }
    assert_eq!(store.row(&row_id("row-3")).await.unwrap(), None);
    assert_eq!(store.end().borrow().sequence, 181);
    assert_eq!(verified(store.as_ref()).await.findings, vec![]);
}

async fn a_commit_is_all_or_nothing(database: &impl Database) {
    let store = database.open().await;
    store.commit(put(row("there", 1))).await.unwrap();
    let half = Commit {
        changes: vec![Change::Put(row("new", 1)), Change::Put(row("there", 2)), Change::Put(row("there", 2))],
        events: vec![event("never")],
    };
    let error = store.commit(half).await.unwrap_err();
    assert!(matches!(error, StoreError::Conflict(id) if id == row_id("there")));
    assert_eq!(store.row(&row_id("new")).await.unwrap(), None);
    assert_eq!(store.row(&row_id("there")).await.unwrap().unwrap(), row("there", 1));
    assert_eq!(store.events(WRITER_1, 10).await.unwrap().len(), 1);
}

async fn versions_are_compared(database: &impl Database) {
    let store = database.open().await;
    let conflicts = async |change| {
        let done = store.commit(just(change)).await;
        assert!(matches!(done, Err(StoreError::Conflict(_))), "{done:?}");
    };
    let delete = |expected| Change::Delete { id: row_id("a"), expected };
    conflicts(Change::Put(row("a", 2))).await;
    conflicts(delete(1)).await;
    store.commit(put(row("a", 1))).await.unwrap();
    conflicts(Change::Put(row("a", 1))).await;
    conflicts(Change::Put(row("a", 3))).await;
    let mut second = row("a", 2);
    second.parent = Some("parent".into());
    second.due_ms = Some(-5);
    store.commit(put(second.clone())).await.unwrap();
    assert_eq!(store.row(&row_id("a")).await.unwrap().unwrap(), second);
    conflicts(Change::Put(row("a", 2))).await;
    conflicts(delete(1)).await;
    store.commit(just(delete(2))).await.unwrap();
    assert_eq!(store.row(&row_id("a")).await.unwrap(), None);
    store.commit(put(row("a", 1))).await.unwrap();
    let zero = store.commit(just(Change::Put(row("b", 0)))).await;
    assert!(matches!(zero, Err(StoreError::Failed(_))), "{zero:?}");
    let huge = store.commit(just(Change::Put(row("b", u64::MAX)))).await;
    assert!(matches!(huge, Err(StoreError::Failed(_))), "{huge:?}");
}

async fn commits_without_events_stay_where_the_log_ends(database: &impl Database) {
    let store = database.open().await;
    assert_eq!(*store.end().borrow(), WRITER_1);
    assert_eq!(store.commit(just(Change::Put(row("a", 1)))).await.unwrap(), WRITER_1);
    let mut end = store.end();
    end.mark_unchanged();
    let position = store.commit(events_only(&["x", "y"])).await.unwrap();
    assert_eq!(position.sequence, 2);
    end.changed().await.unwrap();
    assert_eq!(*end.borrow(), position);
    assert_eq!(store.commit(just(Change::Put(row("a", 2)))).await.unwrap(), position);
    assert_eq!(store.commit(Commit::default()).await.unwrap(), position);
}

async fn rows_come_in_pages(database: &impl Database) {
    let store = database.open().await;
    let mut all = Vec::new();
    for (region, account) in
        [("eu-west-1", "222222222222"), ("us-east-1", "111122223333"), ("us-east-1", "3")]
    {
        for i in 0..7 {
            let mut row = row_of(named(Kind::Alias, region, account, &format!("alias/{i}")), 1);
            row.parent = Some(if i % 2 == 0 { "even".into() } else { "odd".into() });
            all.push(row);
        }
    }
    let changes = all.iter().rev().cloned().map(Change::Put).collect();
    store.commit(Commit { changes, events: vec![] }).await.unwrap();
    store.commit(just(Change::Put(row("alias/0", 1)))).await.unwrap();

    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = store.all_rows(Kind::Alias, after.as_ref(), 4).await.unwrap();
        let Some(last) = page.last() else { break };
        assert!(page.len() <= 4);
        after = Some(last.id.clone());
        found.extend(page);
    }
    assert_eq!(found, all, "every Region and account, in the order of the names");

    let ids = |rows: Vec<Row>| rows.into_iter().map(|row| row.id.id).collect::<Vec<_>>();
    let rows = async |parent, after, limit| {
        ids(store.rows(Kind::Alias, "us-east-1", "111122223333", parent, after, limit).await.unwrap())
    };
    assert_eq!(rows(None, None, 3).await, ["alias/0", "alias/1", "alias/2"]);
    assert_eq!(rows(None, Some("alias/4"), 3).await, ["alias/5", "alias/6"]);
    assert_eq!(rows(Some("odd"), None, 2).await, ["alias/1", "alias/3"]);
    assert_eq!(rows(Some("odd"), Some("alias/3"), 2).await, ["alias/5"]);
    assert_eq!(rows(Some("none"), None, 2).await, Vec::<String>::new());
}

async fn rows_are_found_in_any_account(database: &impl Database) {
    let store = database.open().await;
    let here = row_of(named(Kind::Key, "us-east-1", "999999999999", "k"), 1);
    let elsewhere = row_of(named(Kind::Key, "eu-west-1", "111122223333", "k"), 1);
    store.commit(put(here.clone())).await.unwrap();
    store.commit(put(elsewhere)).await.unwrap();
    assert_eq!(store.find(Kind::Key, "us-east-1", "k").await.unwrap(), Some(here));
    assert_eq!(store.find(Kind::Key, "us-east-1", "l").await.unwrap(), None);
    assert_eq!(store.find(Kind::Alias, "us-east-1", "k").await.unwrap(), None);
}

async fn what_is_due_comes_longest_due_first(database: &impl Database) {
    let store = database.open().await;
    for (id, due_ms) in [("late", Some(30)), ("early", Some(10)), ("never", None), ("now", Some(20))] {
        store.commit(put(Row { due_ms, ..row(id, 1) })).await.unwrap();
    }
    let other = Row { due_ms: Some(1), ..row_of(named(Kind::Intent, "us-east-1", "1", "other"), 1) };
    store.commit(put(other)).await.unwrap();
    let due = async |now_ms, limit| {
        let rows = store.due(Kind::Key, now_ms, limit).await.unwrap();
        rows.into_iter().map(|row| row.id.id).collect::<Vec<_>>()
    };
    assert_eq!(due(20, 10).await, ["early", "now"]);
    assert_eq!(due(9, 10).await, Vec::<String>::new());
    assert_eq!(due(100, 2).await, ["early", "now"]);
    store.commit(put(row("early", 2))).await.unwrap();
    assert_eq!(due(100, 10).await, ["now", "late"], "cancelled");
}

async fn the_log_goes_on_after_a_restart(database: &impl Database) {
    for round in 1..=3_u64 {
        let store = database.open().await;
        assert_eq!(store.end().borrow().sequence, 2 * (round - 1));
        store.commit(put(row("a", round))).await.unwrap();
        let position = store.commit(events_only(&["x"])).await.unwrap();
        assert_eq!(position, Position { writer: 1, sequence: 2 * round });
        drop(store);
        database.close().await;
    }
    let store = database.open().await;
    let report = verified(store.as_ref()).await;
    assert_eq!((report.events, report.findings), (6, vec![]));
    let last = report.last.unwrap();
    assert_eq!(last.0.sequence, 6);
    assert_eq!(store.hash_at(last.0).await.unwrap(), Some(last.1));
}

async fn events_are_read_by_position(database: &impl Database) {
    let store = database.open().await;
    store.commit(events_only(&["a", "b", "c", "d"])).await.unwrap();
    let at = |sequence| Position { writer: 1, sequence };
    let ids = |events: Vec<strongroom::store::StoredEvent>| {
        events.into_iter().map(|event| event.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(store.events(at(1), 2).await.unwrap()), ["b", "c"]);
    assert_eq!(ids(store.events(at(4), 2).await.unwrap()), Vec::<String>::new());
    assert_eq!(
        ids(store.events(Position { writer: 0, sequence: 0 }, 2).await.unwrap()),
        Vec::<String>::new()
    );
    let asked = [at(4), at(9), at(1), Position { writer: 2, sequence: 1 }, at(3)];
    assert_eq!(ids(store.events_at(&asked).await.unwrap()), ["d", "a", "c"]);
    assert_eq!(store.hash_at(at(5)).await.unwrap(), None);
    let first = &store.events(at(0), 1).await.unwrap()[0];
    assert_eq!((first.time_ms, first.record.as_ref()), (1_700_000_000_000, "{\"eventID\":\"a\"}"));
    assert_eq!(first.hash, first.expected_hash(&[0; 32]));
    store.ping().await.unwrap();
}

async fn the_log_remembers_what_rows_became(database: &impl Database) {
    let store = database.open().await;
    for version in 1..=3 {
        store.commit(put(row("kept", version))).await.unwrap();
    }
    store.commit(put(row("gone", 1))).await.unwrap();
    let gone = Change::Delete { id: row_id("gone"), expected: 1 };
    store.commit(Commit { changes: vec![gone], events: vec![event("x"), event("y")] }).await.unwrap();
    let wanted = [(row_id("kept"), (3, hex::encode([3; 32]))), (row_id("gone"), (0, String::new()))]
        .into_iter()
        .collect();
    assert_eq!(row_effects(store.as_ref()).await, wanted);
    let events = store.events(WRITER_1, 10).await.unwrap();
    assert_ne!(events[4].effects, "[]", "the first event of a commit carries its effects");
    assert_eq!(events[5].effects, "[]");
}

async fn signed_heads_are_compared_with_the_log(database: &impl Database) {
    let store = database.open().await;
    store.commit(events_only(&["a", "b", "c"])).await.unwrap();
    let head = |sequence, hash, time_ms| SignedHead {
        position: Position { writer: 1, sequence },
        hash,
        time_ms,
        signature: vec![7; 70],
    };
    let hash = async |sequence| store.hash_at(Position { writer: 1, sequence }).await.unwrap().unwrap();
    let (first, third) = (head(1, hash(1).await, 5), head(3, hash(3).await, 6));
    store.sign_head(third.clone()).await.unwrap();
    store.sign_head(first.clone()).await.unwrap();
    assert_eq!(store.heads(WRITER_1, 10).await.unwrap(), [first.clone(), third.clone()]);
    assert_eq!(store.heads(first.position, 10).await.unwrap(), std::slice::from_ref(&third));
    assert_eq!(store.heads(WRITER_1, 1).await.unwrap(), [first]);
    assert_eq!(verified(store.as_ref()).await.findings, vec![]);

    store.sign_head(head(2, [9; 32], 7)).await.unwrap();
    store.sign_head(head(8, [9; 32], 8)).await.unwrap();
    let mut refuse_third = |head: &SignedHead| match head.time_ms {
        6 => Err("not ours".to_owned()),
        _ => Ok(()),
    };
    let report = verify_chain(store.as_ref(), None, &mut refuse_third, &mut |_| ()).await.unwrap();
    let at = |sequence| Position { writer: 1, sequence };
    let wanted = [
        Finding::HeadDiffers { position: at(2) },
        Finding::HeadSignature { position: at(3), reason: "not ours".into() },
        Finding::Missing { writer: 1, from: 4, to: None },
    ];
    assert_eq!(report.findings, wanted);
    assert_eq!(report.heads, 4);
}

async fn a_closed_store_says_so(database: &impl Database) {
    let store = database.open().await;
    let commits = (0..50).map(|i| {
        let store = store.clone();
        tokio::spawn(async move { store.commit(events_only(&[&format!("e{i}")])).await })
    });
    let commits: Vec<_> = commits.collect();
    database.close().await;
    let mut answered = HashSet::new();
    for commit in commits {
        match commit.await.unwrap() {
            Ok(position) => assert!(answered.insert(position)),
            Err(error) => assert!(matches!(error, StoreError::Failed(_)), "{error}"),
        }
    }
    assert!(store.commit(events_only(&["late"])).await.is_err());
    assert!(store.ping().await.is_err());
    drop(store);
    let store = database.open().await;
    assert_eq!(
        store.end().borrow().sequence,
        answered.len() as u64,
        "what was answered is there, and no more"
    );
}
