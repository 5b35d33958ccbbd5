//! What no daemon of this kind can do without, and nothing else: the echo, its
//! HSM's work on a thread of the HSM's, and a record on the disk before the
//! answer. Who calls, whether they may, which key and what the record says is
//! left out: what the product is slower than this is its own; what this is
//! slower than the echo stands in its way.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use anyhow::Context as _;
use tokio::sync::oneshot;

use crate::disk::Journal;
use crate::raw::{Function, Token};

/// About what the record of a call has.
const RECORD_BYTES: usize = 1600;

type Done = oneshot::Sender<()>;

/// The HSM's threads, and the log's.
pub struct Bare {
    hsm: Vec<Sender<(Function, Done)>>,
    next: AtomicUsize,
    log: Sender<Done>,
}

impl Bare {
    /// Makes a token and a log in a folder; with a thread for each core, where
    /// nobody says how many. Before any thread is started.
    pub fn new(folder: &Path, threads: Option<usize>) -> anyhow::Result<Bare> {
        let token = Token::new(folder)?;
        let mut hsm = Vec::new();
        for _ in 0..threads.map_or_else(|| std::thread::available_parallelism().map(usize::from), Ok)? {
            let (sender, jobs) = channel::<(Function, Done)>();
            let mut user = token.user()?;
            hsm.push(sender);
            std::thread::spawn(move || -> anyhow::Result<()> {
                while let Ok((function, done)) = jobs.recv() {
                    user.call(function)?;
                    // Its client may be gone.
                    let _ = done.send(());
                }
                Ok(())
            });
        }
        let (log, records) = channel();
        let journal = Journal::new(&folder.join("log"))?;
        // The session objects are gone with their owner.
        std::thread::spawn(move || write(&token, journal, &records));
        Ok(Bare { hsm, next: AtomicUsize::new(0), log })
    }

    /// Has the HSM do it, and a record written.
    pub async fn call(&self, function: Function) -> anyhow::Result<()> {
        let (done, answer) = oneshot::channel();
        let next = self.next.fetch_add(1, Ordering::Relaxed) % self.hsm.len();
        self.hsm.get(next).context("no thread")?.send((function, done))?;
        answer.await?;
        let (done, durable) = oneshot::channel();
        self.log.send(done)?;
        Ok(durable.await?)
    }
}

/// As many records at once as there are.
fn write(_owner: &Token, mut journal: Journal, records: &Receiver<Done>) -> anyhow::Result<()> {
    while let Ok(first) = records.recv() {
        let all: Vec<Done> = std::iter::once(first).chain(records.try_iter()).collect();
        journal.write(RECORD_BYTES * all.len())?;
        for done in all {
            let _ = done.send(());
        }
    }
    Ok(())
}
