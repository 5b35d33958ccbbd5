//! The history against a real store.

use std::path::Path;
use std::sync::Arc;

use strongroom::audit::history::{Attribute, History, Lookup, Page};
use strongroom::store::sqlite::{SqliteOptions, SqliteStore, backup, restore};
use strongroom::store::{Commit, NewEvent, Store};
use tempfile::TempDir;

const ACCOUNT: &str = "111122223333";

async fn open(folder: &Path) -> (Arc<SqliteStore>, History) {
    let options = SqliteOptions { min_free_bytes: 0, ..SqliteOptions::default() };
    let store = Arc::new(SqliteStore::open(folder, options).await.unwrap());
    let history = History::open(folder, store.clone()).await.unwrap();
    (store, history)
}

async fn close((store, history): (Arc<SqliteStore>, History)) {
    drop(history);
    store.close().await.unwrap();
}

fn event(id: &str, time_ms: i64) -> NewEvent {
    event_in("us-east-1", id, time_ms)
}

fn event_in(region: &str, id: &str, time_ms: i64) -> NewEvent {
    let number: u32 = id.rsplit('-').next().unwrap().parse().unwrap();
    let read_only = number.is_multiple_of(2);
    let (name, key) = if read_only { ("Encrypt", "even") } else { ("CreateKey", "odd") };
    let record = serde_json::json!({
        "eventID": id, "eventName": name, "eventSource": "kms.amazonaws.com", "awsRegion": region,
        "recipientAccountId": ACCOUNT, "readOnly": read_only,
        "userIdentity": {"type": "IAMUser", "userName": "alice", "accessKeyId": "AKIA1"},
        "resources": [{"type": "AWS::KMS::Key", "ARN": format!("arn:aws:kms:{region}:{ACCOUNT}:key/{key}")}],
    });
    NewEvent { id: id.into(), time_ms, record: record.to_string() }
}

async fn append(store: &SqliteStore, events: Vec<NewEvent>) {
    store.commit(Commit { changes: vec![], events }).await.unwrap();
}

fn all() -> Lookup {
    Lookup {
        account: ACCOUNT.into(),
        region: "us-east-1".into(),
        attribute: None,
        start_ms: 0,
        end_ms: i64::MAX,
        before: None,
        limit: 50,
    }
}

fn by(attribute: Attribute, value: &str) -> Lookup {
    Lookup { attribute: Some((attribute, value.into())), ..all() }
}

fn ids(page: &Page) -> Vec<&str> {
    page.events.iter().map(|event| event.id.as_str()).collect()
}

async fn found(history: &History, lookup: Lookup) -> Vec<String> {
    let page = history.lookup(&lookup).await.unwrap();
    ids(&page).into_iter().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_found_as_soon_as_they_are_answered() {
    let folder = TempDir::new().unwrap();
    let (store, history) = open(folder.path()).await;
    assert_eq!(found(&history, all()).await, Vec::<String>::new());
    for i in 0..20 {
        append(&store, vec![event(&format!("e-{i}"), 1_000 + i)]).await;
        let newest = found(&history, Lookup { limit: 1, ..all() }).await;
        assert_eq!(newest, [format!("e-{i}")]);
    }
    close((store, history)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_attribute_finds_its_events() {
    let folder = TempDir::new().unwrap();
    let (store, history) = open(folder.path()).await;
    append(&store, (1..=4).map(|i| event(&format!("e-{i}"), i)).collect()).await;
    append(&store, vec![event_in("eu-west-1", "e-6", 6)]).await;
    let arn = format!("arn:aws:kms:us-east-1:{ACCOUNT}:key/even");
    let (even, every) = (["e-4", "e-2"].as_slice(), ["e-4", "e-3", "e-2", "e-1"].as_slice());
    let cases: [(Attribute, &str, &[&str]); 12] = [
        (Attribute::EventId, "e-2", &["e-2"]),
        (Attribute::EventId, "e-6", &[]),
        (Attribute::EventName, "Encrypt", even),
        (Attribute::EventName, "encrypt", &[]),
        (Attribute::ReadOnly, "true", even),
        (Attribute::ReadOnly, "false", &["e-3", "e-1"]),
        (Attribute::Username, "alice", every),
        (Attribute::ResourceType, "AWS::KMS::Key", every),
        (Attribute::ResourceName, "even", even),
        (Attribute::ResourceName, &arn, even),
        (Attribute::EventSource, "kms.amazonaws.com", every),
        (Attribute::AccessKeyId, "AKIA1", every),
    ];
    for (attribute, value, wanted) in cases {
        assert_eq!(found(&history, by(attribute, value)).await, wanted, "{attribute:?} {value}");
    }
    assert_eq!(found(&history, Lookup { region: "eu-west-1".into(), ..all() }).await, ["e-6"]);
    assert_eq!(found(&history, Lookup { account: "2".into(), ..all() }).await, Vec::<String>::new());
    close((store, history)).await;
}

/// An eventID as the daemon makes it, which tells a time (RFC 9562, 5.7).
fn telling_id(time_ms: i64, number: u32) -> String {
    let (second, rest) = (time_ms >> 16, time_ms & 0xffff);
    format!("{second:08x}-{rest:04x}-7000-8000-{number:012}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_is_found_by_the_time_that_its_id_tells() {
    const TIME_MS: i64 = 1_700_000_000_123;
    let folder = TempDir::new().unwrap();
    let (store, history) = open(folder.path()).await;
    let of_time = |number| event(&telling_id(TIME_MS, number), TIME_MS);
    append(&store, (0..100).map(of_time).collect()).await;
    // Those of other times are found all the same.
    let late = telling_id(TIME_MS, 100);
    append(&store, vec![event(&late, TIME_MS + 5_000), event("e-101", TIME_MS)]).await;
    for wanted in [telling_id(TIME_MS, 0), telling_id(TIME_MS, 57), late.clone(), "e-101".to_owned()] {
        let lookup = Lookup { limit: 1, ..by(Attribute::EventId, &wanted) };
        let page = history.lookup(&lookup).await.unwrap();
        assert_eq!((ids(&page), page.next), (vec![wanted.as_str()], None));
    }
    let early = Lookup { end_ms: TIME_MS - 1, ..by(Attribute::EventId, &telling_id(TIME_MS, 57)) };
    assert_eq!(found(&history, early).await, Vec::<String>::new());
    assert_eq!(
        found(&history, by(Attribute::EventId, &telling_id(TIME_MS, 102))).await,
        Vec::<String>::new()
    );
    close((store, history)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_neither_repeat_nor_miss_events_of_one_time() {
    let folder = TempDir::new().unwrap();
    let (store, history) = open(folder.path()).await;
    append(&store, (0..30).map(|i| event(&format!("e-{i}"), 1_000 + i64::from(i >= 20))).collect()).await;
    let mut lookup = Lookup { limit: 7, ..all() };
    let mut seen = Vec::new();
    loop {
        let page = history.lookup(&lookup).await.unwrap();
        assert!(page.events.len() <= 7);
        seen.extend(ids(&page).into_iter().map(str::to_owned));
        lookup.before = page.next;
        if page.next.is_none() {
            break;
        }
        // What comes meanwhile is newer than every page that follows.
        append(&store, vec![event(&format!("new-{}", seen.len()), 1_001)]).await;
    }
    let wanted: Vec<String> = (0..30).rev().map(|i| format!("e-{i}")).collect();
    assert_eq!(seen, wanted);
    // A last page that is just full has no page behind it.
    let page = history.lookup(&Lookup { limit: 20, end_ms: 1_000, ..all() }).await.unwrap();
    assert_eq!((page.events.len(), page.next), (20, None));
    close((store, history)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_ends_of_a_time_range_belong_to_it() {
    let folder = TempDir::new().unwrap();
    let (store, history) = open(folder.path()).await;
    append(&store, (1..=5).map(|i| event(&format!("e-{i}"), i * 10)).collect()).await;
    let range = async |start_ms, end_ms| found(&history, Lookup { start_ms, end_ms, ..all() }).await;
    assert_eq!(range(20, 40).await, ["e-4", "e-3", "e-2"]);
    assert_eq!(range(21, 39).await, ["e-3"]);
    assert_eq!(range(30, 30).await, ["e-3"]);
    assert_eq!(range(31, 39).await, Vec::<String>::new());
    let first = history.lookup(&Lookup { limit: 1, start_ms: 20, end_ms: 40, ..all() }).await.unwrap();
    let rest = Lookup { before: first.next, start_ms: 20, end_ms: 40, ..all() };
    assert_eq!(found(&history, rest.clone()).await, ["e-3", "e-2"]);
    // A narrower range with an older page's cursor stays in its range.
    assert_eq!(found(&history, Lookup { end_ms: 20, ..rest }).await, ["e-2"]);
    close((store, history)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_goes_on_and_a_lost_or_damaged_index_is_made_again() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("history.sqlite");
    let wanted = |count: i64| (0..count).rev().map(|i| format!("e-{i}")).collect::<Vec<_>>();
    for round in 0..4 {
        let (store, history) = open(folder.path()).await;
        append(&store, vec![event(&format!("e-{round}"), round)]).await;
        assert_eq!(found(&history, all()).await, wanted(round + 1), "round {round}");
        close((store, history)).await;
        match round {
            1 => std::fs::remove_file(&file).unwrap(),
            2 => std::fs::write(&file, "damaged").unwrap(),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_of_events_that_a_restore_took_away_is_made_again() {
    let (folder, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let copy = other.path().join("backup");
    let (store, history) = open(folder.path()).await;
    append(&store, vec![event("e-1", 1)]).await;
    backup(folder.path(), &copy).await.unwrap();
    append(&store, vec![event("e-2", 2)]).await;
    assert_eq!(found(&history, all()).await, ["e-2", "e-1"]);
    close((store, history)).await;

    restore(&copy, folder.path(), true).await.unwrap();
    let (store, history) = open(folder.path()).await;
    assert_eq!(found(&history, all()).await, ["e-1"], "also before the new log has an event");
    append(&store, vec![event("e-3", 3)]).await;
    assert_eq!(found(&history, all()).await, ["e-3", "e-1"]);
    close((store, history)).await;
}

#[tokio::test]
async fn what_is_too_old_is_forgotten_by_whole_days() {
    const DAY_MS: i64 = 86_400_000;
    let folder = TempDir::new().unwrap();
    let (store, history) = open(folder.path()).await;
    for day in 0..10 {
        let events = (0..20).map(|number| event(&format!("d{day}-{number}"), day * DAY_MS + 5_000)).collect();
        append(&store, events).await;
    }
    let days = async || {
        let page = history.lookup(&Lookup { limit: 500, ..all() }).await.unwrap();
        let mut days: Vec<i64> = page.events.iter().map(|event| event.time_ms / DAY_MS).collect();
        days.dedup();
        days
    };
    assert_eq!(days().await, (0..10).rev().collect::<Vec<_>>());
    history.trim(3 * DAY_MS + 1_000, 9 * DAY_MS, None).await.unwrap();
    assert_eq!(days().await, (3..10).rev().collect::<Vec<_>>());
    assert_eq!(found(&history, by(Attribute::EventId, "d2-0")).await, Vec::<String>::new());
    assert_eq!(found(&history, by(Attribute::EventId, "d3-0")).await, ["d3-0"]);

    // More bytes than there may be: only the day of now is left, and goes on.
    history.trim(0, 9 * DAY_MS + 6_000, Some(1)).await.unwrap();
    assert_eq!(days().await, [9]);
    append(&store, vec![event("new-1", 9 * DAY_MS + 7_000)]).await;
    assert_eq!(found(&history, by(Attribute::EventId, "new-1")).await, ["new-1"]);
    close((store, history)).await;
}
