//! The event log: how many it takes, how fast they are found, and how soon a
//! subscriber has them.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use hdrhistogram::Histogram;
use http::uri::PathAndQuery;
use parking_lot::Mutex;
use prost::Message as _;
use strongroom::app::Clock;
use strongroom::config::{Config, Flags};
use strongroom::daemon;
use strongroom::proto::cloudtrail::{
    LookupAttribute, LookupAttributeKey, LookupEventsRequest, LookupEventsResponse, StreamEventsRequest,
    StreamEventsResponse,
};
use strongroom::proto::kms::{KeySpec, KeyUsageType};
use strongroom::store::sqlite::{SqliteOptions, SqliteStore};
use strongroom::store::{Commit, NewEvent, Store};
use tonic::transport::Channel;

use crate::ceilings::Running;
use crate::load::{self, Raw, Work};
use crate::operations::{self, create};
use crate::plan::Bench;
use crate::process::Instance;
use crate::report::Report;
use crate::series::Spread;

const SCENARIO: &str = "events";
const SERVICE: &str = "/strongroom.cloudtrail.v1.CloudTrailService";
/// Callers of the store at the same time.
const COMMITTERS: [usize; 4] = [1, 16, 64, 256];
/// When the fixture's events begin, one each millisecond: three days ago, which
/// the history reaches back.
static FIXTURE_MS: LazyLock<i64> = LazyLock::new(|| Clock.now_ms() - 3 * 86_400_000);
/// Events of one commit of the fixture.
const FIXTURE_EVENTS: usize = 500;
/// Users and keys that the fixture's events are of.
const FIXTURE_NAMES: u64 = 1_000;
/// Lookups of each attribute.
const LOOKUPS: u64 = 200;
/// Longest that the history may take to read one event of the fixture.
const FEED_TIMEOUT: Duration = Duration::from_secs(3600);
/// Longest that the last event may take to its subscriber.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(30);
/// Clients that call while subscribers listen.
const CALLERS: usize = 64;

/// Everything about the log.
pub async fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    taken(bench, report).await?;
    for subscribers in [1, 100] {
        followed(bench, subscribers, report).await?;
    }
    reacted(bench, report).await?;
    for count in &bench.plan.events {
        found(bench, *count, report).await?;
    }
    Ok(())
}

/// Durable commits of one event each.
async fn taken(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let folder = bench.folder("log")?;
    let options = SqliteOptions { min_free_bytes: 0, ..SqliteOptions::default() };
    let store = Arc::new(SqliteStore::open(&folder, options).await?);
    let mut rates = vec![Vec::new(); COMMITTERS.len()];
    for _ in 0..bench.plan.rounds {
        for (committers, rates) in COMMITTERS.iter().zip(&mut rates) {
            rates.push(commits(&store, *committers, bench.plan.turn).await?);
        }
    }
    for (committers, rates) in COMMITTERS.iter().zip(rates) {
        let rate = Spread::of(rates).median;
        report.figure(SCENARIO, format!("taken by the store, {committers} callers"), rate, "per second");
    }
    store.close().await?;
    Ok(())
}

async fn commits(store: &Arc<SqliteStore>, committers: usize, time: Duration) -> anyhow::Result<f64> {
    let began = Instant::now();
    let number = Arc::new(AtomicU64::new(0));
    let callers: Vec<_> = (0..committers)
        .map(|_| {
            let (store, number) = (store.clone(), number.clone());
            tokio::spawn(async move {
                while began.elapsed() < time {
                    let event = event(number.fetch_add(1, Ordering::Relaxed));
                    store.commit(Commit { changes: Vec::new(), events: vec![event] }).await?;
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for caller in callers {
        caller.await??;
    }
    Ok(number.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64())
}

/// An event as an Encrypt makes it, of one of many users with one of many keys.
fn event(number: u64) -> NewEvent {
    let (user, key) = (number % FIXTURE_NAMES, number / 7 % FIXTURE_NAMES);
    let id = uuid::Uuid::new_v4().to_string();
    let time_ms = *FIXTURE_MS + i64::try_from(number).unwrap_or_default();
    let record = serde_json::json!({
        "eventVersion": "1.11",
        "userIdentity": {
            "type": "IAMUser", "principalId": "AIDA0000000000000000",
            "arn": format!("arn:aws:iam::111122223333:user/user-{user}"), "accountId": "111122223333",
            "userName": format!("user-{user}"),
            "credentialId": "8b6b1c9c5f0b8f6d4a3e2d1c0b9a88776655443322110099aabbccddeeff0011",
        },
        "eventTime": "2026-01-01T00:00:00Z", "eventSource": "kms.amazonaws.com",
        "eventName": if number.is_multiple_of(3) { "Decrypt" } else { "Encrypt" },
        "awsRegion": "us-east-1", "sourceIPAddress": "127.0.0.1", "userAgent": "tonic/0.14.9",
        "requestParameters": { "keyId": format!("key-{key}"), "encryptionAlgorithm": "SYMMETRIC_DEFAULT" },
        "responseElements": null, "requestID": id, "eventID": id, "readOnly": true,
        "resources": [{ "accountId": "111122223333", "type": "AWS::KMS::Key",
            "ARN": format!("arn:aws:kms:us-east-1:111122223333:key/key-{key}") }],
        "eventType": "AwsApiCall", "managementEvent": true, "recipientAccountId": "111122223333",
        "eventCategory": "Management",
        "tlsDetails": { "tlsVersion": "TLSv1.3", "cipherSuite": "TLS_AES_256_GCM_SHA384",
            "clientProvidedHostHeader": "127.0.0.1" },
    });
    NewEvent { id, time_ms, record: record.to_string() }
}

/// Lookups by each attribute in a long log.
async fn found(bench: &Bench, count: u64, report: &mut Report) -> anyhow::Result<()> {
    eprintln!("making {count} events");
    let Some((_, program)) = bench.programs.first() else { return Ok(()) };
    let instance = bench.instance(&format!("events-{count}"), program)?;
    instance.start()?.stop()?;
    let some_id = append(&instance, count).await?;
    let process = instance.start()?;
    report.figure(SCENARIO, format!("{count} events: start"), process.start_up.as_secs_f64(), "s");
    let endpoint = load::endpoint(process.grpc, &instance.pki(), "administrator")?;
    let channel = endpoint.connect().await?;
    let began = Instant::now();
    while lookup(&channel, None).await.is_err() {
        anyhow::ensure!(began.elapsed() < FEED_TIMEOUT, "the history does not take the events in");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let feed = count as f64 / (began.elapsed() + process.start_up).as_secs_f64();
    report.figure(SCENARIO, format!("{count} events: taken into the history"), feed, "per second");
    use LookupAttributeKey as Key;
    for (name, attribute, value) in [
        ("no attribute", Key::Unspecified, String::new()),
        ("EventId", Key::EventId, some_id),
        ("EventName", Key::EventName, "Decrypt".into()),
        ("EventSource", Key::EventSource, "kms.amazonaws.com".into()),
        ("ReadOnly", Key::ReadOnly, "true".into()),
        ("Username", Key::Username, "user-77".into()),
        ("ResourceType", Key::ResourceType, "AWS::KMS::Key".into()),
        ("ResourceName", Key::ResourceName, "key-77".into()),
    ] {
        let attribute = (attribute != Key::Unspecified).then_some(LookupAttribute {
            attribute_key: Some(attribute as i32),
            attribute_value: Some(value),
        });
        let mut latency = load::histogram()?;
        for _ in 0..LOOKUPS {
            let began = Instant::now();
            let events = lookup(&channel, attribute.clone()).await?;
            latency.saturating_record(began.elapsed().as_micros() as u64);
            anyhow::ensure!(events > 0, "nothing is found by {name}");
        }
        let ms = |quantile| latency.value_at_quantile(quantile) as f64 / 1000.0;
        report.figure(SCENARIO, format!("{count} events: LookupEvents by {name}, p50"), ms(0.5), "ms");
        report.figure(SCENARIO, format!("{count} events: LookupEvents by {name}, p99"), ms(0.99), "ms");
        report.at_most(format!("{count} events: LookupEvents by {name}, p99 ms"), 50.0, ms(0.99));
    }
    process.stop()
}

async fn lookup(channel: &Channel, attribute: Option<LookupAttribute>) -> anyhow::Result<usize> {
    let request = LookupEventsRequest {
        lookup_attributes: attribute.into_iter().collect(),
        end_time: Some(prost_types::Timestamp { seconds: *FIXTURE_MS / 1000 + 86_400, nanos: 0 }),
        ..Default::default()
    };
    let path = PathAndQuery::try_from(format!("{SERVICE}/LookupEvents"))?;
    let answer = load::call(channel, path, Bytes::from(request.encode_to_vec())).await?;
    Ok(LookupEventsResponse::decode(answer)?.events.len())
}

/// Appends to the log of a stopped instance; the id of one of the events.
async fn append(instance: &Instance, count: u64) -> anyhow::Result<String> {
    let loaded = Config::load(Some(&instance.configuration()), &Flags::new())?;
    let options = daemon::sqlite_options(&loaded.config);
    let store = SqliteStore::open(&loaded.config.data_dir, options).await?;
    let mut some_id = String::new();
    let mut number = 0;
    while number < count {
        let end = (number + FIXTURE_EVENTS as u64).min(count);
        let events: Vec<NewEvent> = (number..end).map(event).collect();
        some_id.clone_from(&events.first().context("no events")?.id);
        store.commit(Commit { changes: Vec::new(), events }).await?;
        number = end;
    }
    store.close().await?;
    Ok(some_id)
}

/// How long after its answer an event is at a subscriber, at half the most
/// that can be done meanwhile. One subscriber sees everything, the others wait
/// for what does not come.
async fn followed(bench: &Bench, subscribers: usize, report: &mut Report) -> anyhow::Result<()> {
    let running = Running::all(bench, &format!("stream-{subscribers}"), CALLERS).await?;
    let Some(daemon) = running.into_iter().next() else { return Ok(()) };
    let channel = daemon.channels.first().context("no connection")?;
    let key = create(channel, KeySpec::SymmetricDefault, KeyUsageType::EncryptDecrypt).await?;
    let work = Work::one(operations::path("Encrypt")?, &operations::encrypt(key, 32));
    let endpoint = load::endpoint(daemon.process.grpc, &daemon.instance.pki(), "administrator")?;
    let arrivals = Arc::new(Arrivals::default());
    let mut streams = Vec::new();
    for number in 0..subscribers {
        let keys = if number == 0 { Vec::new() } else { vec![format!("no-key-{number}")] };
        let request = StreamEventsRequest { keys, ..Default::default() };
        streams.push(tokio::spawn(subscribe(endpoint.connect().await?, request, arrivals.clone())));
    }
    let p99_ms = at_half_load(bench, &daemon.channels, &work, &arrivals, |what, value, unit| {
        report.figure(SCENARIO, format!("{subscribers} subscribers: {what}"), value, unit);
    });
    let p99_ms = p99_ms.await?;
    report.at_most(format!("{subscribers} subscribers: answer to subscriber, p99 ms"), 50.0, p99_ms);
    streams.iter().for_each(tokio::task::JoinHandle::abort);
    drop(daemon.channels);
    daemon.process.stop()
}

/// The same of a rule that sends every event to a file.
async fn reacted(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let Some((_, program)) = bench.programs.first() else { return Ok(()) };
    let instance = bench.instance("rule", program)?;
    // The first start makes the configuration.
    instance.start()?.stop()?;
    let file = instance.dir.with_extension("jsonl");
    let rule = format!(
        "\n[rules.all]\ntargets = [\"file\"]\nevent_pattern = '{{\"source\": [\"aws.kms\"]}}'\n\
         [targets.file]\nfile = '{}'\n",
        file.display()
    );
    OpenOptions::new().append(true).open(instance.configuration())?.write_all(rule.as_bytes())?;
    let process = instance.start()?;
    let endpoint = load::endpoint(process.grpc, &instance.pki(), "administrator")?;
    let channels = load::connect(&endpoint, CALLERS).await?;
    let channel = channels.first().context("no connection")?;
    let key = create(channel, KeySpec::SymmetricDefault, KeyUsageType::EncryptDecrypt).await?;
    let work = Work::one(operations::path("Encrypt")?, &operations::encrypt(key, 32));
    let arrivals = Arc::new(Arrivals::default());
    let reader = tokio::spawn(read_lines(file, arrivals.clone()));
    let p99_ms = at_half_load(bench, &channels, &work, &arrivals, |what, value, unit| {
        report.figure(SCENARIO, format!("a rule: {what}"), value, unit);
    });
    let p99_ms = p99_ms.await?;
    report.at_most("answer to a rule's target, p99 ms", 100.0, p99_ms);
    reader.abort();
    drop(channels);
    process.stop()
}

/// Notes the events of a file as they are written.
async fn read_lines(path: PathBuf, arrivals: Arc<Arrivals>) -> anyhow::Result<()> {
    const LOOK: Duration = Duration::from_millis(1);
    let (mut text, mut at) = (String::new(), 0);
    loop {
        tokio::time::sleep(LOOK).await;
        let Ok(mut file) = std::fs::File::open(&path) else { continue };
        file.seek(SeekFrom::Start(at))?;
        at += file.read_to_string(&mut text)? as u64;
        let came = Instant::now();
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        text[..whole].lines().for_each(|line| arrivals.note(line, came));
        text.drain(..whole);
    }
}

/// Calls half as often as can be, until each call's event has come, and tells
/// how long they took after their answers; the p99 in milliseconds.
async fn at_half_load(
    bench: &Bench,
    channels: &[Channel],
    work: &Work,
    arrivals: &Arrivals,
    mut tell: impl FnMut(&str, f64, &'static str),
) -> anyhow::Result<f64> {
    let time = bench.plan.turn * 4;
    load::closed_loop(channels, work, bench.plan.turn / 2).await?;
    let most = load::closed_loop(channels, work, time).await?.flawless("Encrypt")?;
    let pause = Duration::from_secs_f64(CALLERS as f64 / (most.rate() / 2.0));
    let callers = channels.iter().map(|channel| paced(channel.clone(), work, pause, time, arrivals));
    futures::future::try_join_all(callers).await?;
    // The last ones may still be under way.
    let waited = Instant::now();
    while !arrivals.are_complete() && waited.elapsed() < ARRIVAL_TIMEOUT {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let delays = arrivals.delays()?;
    anyhow::ensure!(!delays.is_empty(), "no event came");
    let ms = |quantile| delays.value_at_quantile(quantile) as f64 / 1000.0;
    tell("most calls", most.rate(), "per second");
    tell("after the answer, p50", ms(0.5), "ms");
    tell("after the answer, p99", ms(0.99), "ms");
    Ok(ms(0.99))
}

/// When answers and events came, by requestID.
#[derive(Default)]
struct Arrivals {
    answers: Mutex<HashMap<String, Instant>>,
    events: Mutex<HashMap<String, Instant>>,
}

impl Arrivals {
    fn note(&self, record: &str, came: Instant) {
        if let Some((_, rest)) = record.split_once("\"requestID\":\"")
            && let Some((id, _)) = rest.split_once('"')
        {
            self.events.lock().insert(id.to_owned(), came);
        }
    }

    fn are_complete(&self) -> bool {
        let events = self.events.lock();
        self.answers.lock().keys().all(|id| events.contains_key(id))
    }

    /// Microseconds; 0 where the event came first.
    fn delays(&self) -> anyhow::Result<Histogram<u64>> {
        let mut delays = load::histogram()?;
        let events = self.events.lock();
        for (id, answered) in self.answers.lock().iter() {
            let came = events.get(id).with_context(|| format!("the event of {id} did not come"))?;
            delays.saturating_record(came.saturating_duration_since(*answered).as_micros() as u64);
        }
        Ok(delays)
    }
}

async fn subscribe(
    channel: Channel,
    request: StreamEventsRequest,
    arrivals: Arc<Arrivals>,
) -> anyhow::Result<()> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await?;
    let path = PathAndQuery::try_from(format!("{SERVICE}/StreamEvents"))?;
    let message = tonic::Request::new(Bytes::from(request.encode_to_vec()));
    let mut stream = grpc.server_streaming(message, path, Raw).await?.into_inner();
    while let Some(message) = stream.message().await? {
        let came = Instant::now();
        let record = StreamEventsResponse::decode(message)?.event.and_then(|event| event.cloud_trail_event);
        arrivals.note(&record.unwrap_or_default(), came);
    }
    Ok(())
}

/// Calls at a steady pace, and notes when each answer came.
async fn paced(
    channel: Channel,
    work: &Work,
    pause: Duration,
    time: Duration,
    arrivals: &Arrivals,
) -> anyhow::Result<()> {
    let end = Instant::now() + time;
    let mut pace = tokio::time::interval(pause);
    while Instant::now() < end {
        pace.tick().await;
        let mut grpc = tonic::client::Grpc::new(channel.clone());
        grpc.ready().await?;
        let message = tonic::Request::new((work.message)(0));
        let answer = grpc.unary(message, work.path.clone(), Raw).await?;
        let came = Instant::now();
        if let Some(id) = answer.metadata().get("x-request-id").and_then(|id| id.to_str().ok()) {
            arrivals.answers.lock().insert(id.to_owned(), came);
        }
    }
    Ok(())
}
