//! The exhibition: a key store of three HSMs under the mixed load of many
//! clients, while one HSM after another is killed, restored, wiped and replaced.
//! No answer is wrong, no key is lost, hardly a request fails, none takes longer
//! than its deadline.
//!
//! `make soak` runs more rounds; how long each recovery took is printed.

mod load;

use std::time::Duration;

use strongroom::proto::hsm::{MemberState, ReplaceMemberRequest};
use strongroom::proto::kms::KeySpec;
use tokio::time::Instant;

use crate::dev_members;
use crate::key_stores::house::{self, Hsm, Owner};
use crate::support::{Instance, eventually, rounds};
use load::{Keys, Load, Tally};

const SERVING: MemberState = MemberState::Serving;
/// Answers that each state of affairs lasts for.
const ANSWERS: u64 = 300;

/// How long a test waits for HSMs; what it measures a soak measures with the
/// product's own settings.
const HASTE: [(&str, &str); 4] = [
    ("CALL_TIMEOUT_MS", "3000"),
    ("FAILOVER_TIMEOUT_MS", "500"),
    ("PROBE_INTERVAL_MS", "200"),
    ("REINITIALIZE_INTERVAL_MS", "500"),
];

/// What happens to an HSM.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// Its token folder is gone, and comes back.
    Gone,
    /// CKR_DEVICE_REMOVED from every function, for a while.
    Removed,
    /// No call returns, for a while.
    Hangs,
    /// Its objects are gone: it gets the wrapping key again from another.
    Wiped,
    /// It is dead, and an empty one takes its place.
    Replaced,
}

struct Stage<'a> {
    owner: Owner<'a>,
    instance: &'a Instance,
    store: String,
    cluster: String,
    /// Those in use, in the order of the cluster's members.
    members: Vec<Hsm>,
    /// An empty one.
    spare: Hsm,
    load: Load,
}

fn hsms(instance: &Instance) -> Vec<Hsm> {
    let names = ["first", "second", "third", "spare"];
    let hsm = |(number, name)| Hsm::of_fixture(instance, name, number).behind_shim();
    (1..).zip(names).map(hsm).collect()
}

impl Stage<'_> {
    async fn state(&self, member: usize) -> MemberState {
        self.owner.states(&self.cluster).await[member]
    }

    async fn leaves(&self, member: usize) {
        eventually("it is out", async || self.state(member).await != SERVING).await;
    }

    async fn returns(&self, member: usize) {
        eventually("it serves", async || self.state(member).await == SERVING).await;
    }

    /// One fault, and all that comes after it; what was measured is printed.
    async fn suffer(&mut self, fault: Fault, member: usize) {
        let before = self.load.rate().await;
        let begun = Instant::now();
        match fault {
            Fault::Gone => self.members[member].unplug(),
            Fault::Removed => self.members[member].set_rules("* rv=0x32"),
            Fault::Hangs => self.members[member].set_rules("* hang"),
            Fault::Wiped => self.members[member].wipe(),
            Fault::Replaced => self.members[member].unplug(),
        }
        let recovery = self.load.recovers(before, begun).await;
        self.leaves(member).await;
        self.load.more(ANSWERS).await;
        let mending = Instant::now();
        match fault {
            Fault::Gone => self.members[member].plug_in(),
            Fault::Removed | Fault::Hangs => self.members[member].set_rules(""),
            Fault::Wiped => {
                let from = &self.members[(member + 1) % self.members.len()];
                house::bring(self.instance, from, &self.members[member]);
            }
            Fault::Replaced => self.replace(member).await,
        }
        let member = if matches!(fault, Fault::Replaced) { self.members.len() - 1 } else { member };
        self.returns(member).await;
        let back = mending.elapsed();
        self.load.more(ANSWERS).await;
        report(&format!("{fault:?}"), before, recovery, back);
    }

    /// Puts the spare in the place of a dead one, which is the spare from then on.
    async fn replace(&mut self, member: usize) {
        let dead = self.members.remove(member);
        house::bring(self.instance, &self.members[0], &self.spare);
        let request = ReplaceMemberRequest {
            replaced_token: Some(dead.uri()),
            token: Some(self.spare.uri()),
            module: Some(self.spare.name.to_owned()),
            cluster_id: Some(self.cluster.clone()),
            ..Default::default()
        };
        self.owner.client.call(request).await.unwrap();
        dead.plug_in();
        dead.wipe();
        let spare = std::mem::replace(&mut self.spare, dead);
        self.members.push(spare);
    }
}

/// Says what was measured.
fn report(fault: &str, rate: f64, recovery: Option<Duration>, back: Duration) {
    let recovery = recovery.map_or("-".to_owned(), |time| format!("{:.1}", time.as_secs_f64()));
    let back = back.as_secs_f64();
    eprintln!(
        "{fault}: {rate:.0} answers/s before; 80% of that again after {recovery} s; the HSM served again {back:.1} s after it was mended"
    );
}

fn check(tally: &Tally) {
    eprintln!("{tally:?}");
    assert_eq!((tally.wrong, tally.late), (0, 0), "{tally:?}");
    // On a machine that stands still for a moment, each client may see it once.
    assert!(tally.failed <= (tally.answers / 1000).max(load::CLIENTS), "{tally:?}");
}

/// The default key store of `strongroom dev --members 3`, whose folders are taken
/// away and put back, one after another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_do_not_notice_that_a_folder_is_taken_away() {
    let mut instance = dev_members::instance("3");
    instance.unset("STRONGROOM_LIMITS__REQUEST_TIMEOUT_MS");
    instance.hurry(&HASTE);
    let daemon = instance.start().await;
    let client = daemon.client().await;
    dev_members::serving(&client, 3).await;
    let keys = Keys::make(&client, None).await;
    let load = Load::start(&daemon, keys, None).await;
    load.more(ANSWERS).await;
    for round in 0..rounds(1) as usize {
        for number in (0..3).map(|step| 1 + (round + step) % 3) {
            let (before, begun) = (load.rate().await, Instant::now());
            dev_members::take(&instance, number);
            let recovery = load.recovers(before, begun).await;
            dev_members::serving(&client, 2).await;
            load.more(ANSWERS).await;
            let mending = Instant::now();
            dev_members::put_back(&instance, number);
            dev_members::serving(&client, 3).await;
            report(&format!("DIR/hsm/{number} gone"), before, recovery, mending.elapsed());
            load.more(ANSWERS).await;
        }
    }
    let (tally, made) = load.end().await;
    check(&tally);
    for (key, spec) in &made {
        client.use_key(key, *spec).await.unwrap();
    }
    assert_eq!(client.findings().await, Vec::<String>::new());
    daemon.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_do_not_notice_what_happens_to_an_hsm() {
    let (mut instance, mut hsms) = house::instance(hsms).await;
    instance.hurry(&HASTE);
    let daemon = instance.start().await;
    let owner = Owner::of(&instance, &daemon).await;
    let spare = hsms.pop().unwrap();
    let members: Vec<&Hsm> = hsms.iter().collect();
    let (store, cluster) = owner.store_of("exhibition", &members).await;
    eventually("all serve", async || owner.states(&cluster).await == [SERVING; 3]).await;
    let keys = Keys::make(&owner.client, Some(&store)).await;
    let load = Load::start(&daemon, keys, Some(&store)).await;
    let mut stage = Stage { owner, instance: &instance, store, cluster, members: hsms, spare, load };
    stage.load.more(ANSWERS).await;
    for round in 0..rounds(1) as usize {
        for (step, fault) in
            [Fault::Gone, Fault::Removed, Fault::Hangs, Fault::Wiped, Fault::Replaced].into_iter().enumerate()
        {
            stage.suffer(fault, (round + step) % 3).await;
        }
    }
    let Stage { owner, store, cluster, members, load, .. } = stage;
    let (tally, made) = load.end().await;
    check(&tally);
    // Every key that a client was told of is there, on every HSM.
    for (key, spec) in &made {
        owner.client.use_key(key, *spec).await.unwrap();
    }
    owner.key(&store, KeySpec::SymmetricDefault).await.unwrap();
    eventually("all serve", async || owner.states(&cluster).await == [SERVING; 3]).await;
    for member in &members {
        eventually("an HSM has every key", async || owner.lacks(&cluster, member).await == 0).await;
    }
    assert_eq!(owner.client.findings().await, Vec::<String>::new());
    daemon.terminate().await;
}
