//! A day of what wears sessions out, in little time: they time out, logins are
//! lost, tokens go and come back, calls hang, members and key stores come and
//! go. Afterwards the daemon holds what it held before: sessions, keys, threads,
//! files, memory.

use std::fs;
use std::time::Duration;

use strongroom::proto::hsm::{
    AddMemberRequest, ListMembersRequest, ListTokensRequest, MemberState, RemoveMemberRequest,
};
use strongroom::proto::kms::{self, KeySpec};
use tokio::time::sleep;

use crate::key_stores::house::{self, Hsm, Owner};
use crate::support::{Client, Daemon, Instance, eventually, rounds};

const SERVING: MemberState = MemberState::Serving;
/// Rounds before it is measured what is held.
const WARM_UP: u64 = 1;
/// A member's: anchor, keeper, and one for each of two threads.
const SESSIONS_MAX: i64 = 4;
/// Files that a measurement may be off by: the store's connections.
const FILES_SLACK: usize = 8;
/// Memory that a measurement may be off by: allocators keep some.
const MEMORY_SLACK_BYTES: u64 = 48 << 20;
/// Memory that one round may cost for what grows by design: the log's index.
const MEMORY_PER_ROUND_BYTES: u64 = 128 << 10;

/// What a process holds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    /// Those of the HSMs.
    threads: usize,
    files: usize,
    memory_bytes: u64,
    /// Open sessions by what the shims count, per token.
    sessions: Vec<i64>,
    loaded_keys: i32,
}

async fn held(daemon: &Daemon, client: &Client) -> Held {
    let process = format!("/proc/{}", daemon.pid());
    let is_hsm = |task: &fs::DirEntry| {
        fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with("hsm"))
    };
    let tasks = fs::read_dir(format!("{process}/task")).unwrap().map(Result::unwrap);
    let status = fs::read_to_string(format!("{process}/status")).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kibibytes: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    let mut sessions = Vec::new();
    for module in ["first", "second"] {
        let request = ListTokensRequest { module: Some(module.to_owned()) };
        let tokens = client.call(request).await.unwrap().modules.remove(0).tokens;
        sessions.extend(tokens.iter().filter_map(|token| token.session_count));
    }
    let members = client.call(ListMembersRequest::default()).await.unwrap().members;
    Held {
        threads: tasks.filter(is_hsm).count(),
        files: fs::read_dir(format!("{process}/fd")).unwrap().count(),
        memory_bytes: kibibytes << 10,
        sessions,
        loaded_keys: members.iter().filter_map(|member| member.loaded_keys).sum(),
    }
}

/// Calls of every kind, of which each must succeed in the end.
async fn work(client: &Client, keys: &[(String, KeySpec)]) {
    for (key, spec) in keys {
        eventually("a key is used", async || client.use_key(key, *spec).await.is_ok()).await;
        let pair = kms::GenerateDataKeyRequest {
            key_id: Some(key.clone()),
            number_of_bytes: Some(32),
            ..Default::default()
        };
        if *spec == KeySpec::SymmetricDefault {
            eventually("a data key is made", async || client.call(pair.clone()).await.is_ok()).await;
        }
    }
}

struct Churn<'a> {
    owner: Owner<'a>,
    hsms: Vec<Hsm>,
    store: String,
    cluster: String,
    keys: Vec<(String, KeySpec)>,
}

impl Churn<'_> {
    async fn all_serve(&self, count: usize) {
        eventually("all serve", async || self.owner.states(&self.cluster).await == vec![SERVING; count])
            .await;
    }

    async fn round(&self) {
        let client = &self.owner.client;
        for rules in [
            "C_SignInit rv=0xB3 times=20\nC_EncryptInit rv=0xB0 times=20", // SESSION_HANDLE_INVALID, CLOSED
            "C_EncryptInit rv=0x90 times=3",                               // OPERATION_ACTIVE
            "C_SignInit rv=0x101 times=2",   // USER_NOT_LOGGED_IN: another login
            "C_OpenSession rv=0xB1 times=5", // SESSION_COUNT
            "C_UnwrapKey rv=0x30 times=3",
        ] {
            // Rules count by their text: each round has its own.
            for hsm in &self.hsms {
                hsm.set_rules(rules);
            }
            work(client, &self.keys).await;
            for hsm in &self.hsms {
                hsm.set_rules("# none\n");
            }
            self.all_serve(2).await;
        }
        // Pulled out and put back; a call that hangs until its thread is given up.
        for rules in ["* rv=0x32", "C_Sign hang\nC_SignInit hang\nC_Encrypt hang\nC_EncryptInit hang"] {
            self.hsms[1].set_rules(rules);
            work(client, &self.keys).await;
            sleep(Duration::from_millis(300)).await;
            self.hsms[1].set_rules("");
            work(client, &self.keys).await;
            self.all_serve(2).await;
        }
        // A member leaves with its threads, and comes with new ones.
        let (token, cluster_id) = (Some(self.hsms[1].uri()), Some(self.cluster.clone()));
        client
            .call(RemoveMemberRequest { token: token.clone(), cluster_id: cluster_id.clone() })
            .await
            .unwrap();
        self.all_serve(1).await;
        work(client, &self.keys).await;
        let module = Some(self.hsms[1].name.to_owned());
        let add = AddMemberRequest { token, module, cluster_id, ..Default::default() };
        eventually("it is taken in", async || client.call(add.clone()).await.is_ok()).await;
        self.all_serve(2).await;
        // So does the whole key store.
        self.owner.disconnect(&self.store).await;
        self.owner.connect(&self.store).await;
        self.all_serve(2).await;
        work(client, &self.keys).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn churn_leaks_no_session_key_thread_file_or_memory() {
    let hsms = |instance: &Instance| {
        vec![
            Hsm::of_fixture(instance, "first", 1).behind_shim(),
            Hsm::of_fixture(instance, "second", 2).behind_shim(),
        ]
    };
    let (mut instance, hsms) = house::instance(hsms).await;
    instance.set("STRONGROOM_HSM__REINITIALIZE_INTERVAL_MS", "200");
    instance.set("STRONGROOM_HSM__CALL_TIMEOUT_MS", "1000");
    instance.set("STRONGROOM_HSM__FAILOVER_TIMEOUT_MS", "200");
    let daemon = instance.start().await;
    let owner = Owner::of(&instance, &daemon).await;
    let (store, cluster) = owner.store_of("churn", &[&hsms[0], &hsms[1]]).await;
    let mut keys = Vec::new();
    for spec in [KeySpec::SymmetricDefault, KeySpec::EccNistP256, KeySpec::SymmetricDefault] {
        eventually("two serve", async || owner.states(&cluster).await == [SERVING; 2]).await;
        keys.push((owner.key(&store, spec).await.unwrap(), spec));
    }
    let churn = Churn { owner, hsms, store, cluster, keys };
    for _ in 0..WARM_UP {
        churn.round().await;
    }
    let client = &churn.owner.client;
    let before = held(&daemon, client).await;
    assert_eq!(before.sessions.len(), 2, "{before:?}");
    let count = rounds(2);
    for _ in 0..count {
        churn.round().await;
    }
    let mut after = None;
    eventually("it holds what it held", async || {
        let now = held(&daemon, client).await;
        let same = now.threads == before.threads
            && now.files <= before.files + FILES_SLACK
            && now.sessions.iter().all(|sessions| *sessions <= SESSIONS_MAX)
            && now.loaded_keys <= before.loaded_keys;
        if !same {
            eprintln!("{before:?}\n{now:?}");
        }
        after = Some(now);
        same
    })
    .await;
    let after = after.unwrap();
    eprintln!("{count} rounds: {before:?}, then {after:?}");
    let bound = before.memory_bytes + MEMORY_SLACK_BYTES + count * MEMORY_PER_ROUND_BYTES;
    assert!(after.memory_bytes <= bound, "{before:?} {after:?}");
    // No object without its key, on either.
    for hsm in &churn.hsms {
        assert_eq!(hsm.keys().len(), churn.keys.len(), "{}", hsm.name);
    }
    daemon.terminate().await;
}
