//! OS threads behind one bounded queue.
//!
//! PKCS#11 calls block, so they run on threads of their own; several threads
//! take from one queue, so that one slow call holds up no other. A thread without
//! a job sleeps at once: the cores belong to those who bring the next one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::HsmError;
use super::session::Session;

/// How often ending threads are looked at while a crew is closed.
const JOIN_POLL: Duration = Duration::from_millis(5);

/// What a thread keeps from job to job.
#[derive(Default)]
pub(crate) struct Bench {
    /// Its session, and the epoch of the attachment it belongs to.
    pub(crate) session: Option<(u64, Session)>,
}

type Job = Box<dyn FnOnce(&mut Bench) + Send>;

/// Threads that do jobs.
pub(crate) struct Crew {
    name: String,
    started: Instant,
    queue: Arc<Queue>,
    threads: Mutex<Vec<Thread>>,
}

/// Jobs that wait for a thread.
struct Queue {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
    capacity: usize,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl Queue {
    fn push(&self, job: Job) -> Result<(), HsmError> {
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return Err(HsmError::Unavailable("the cluster is shutting down".to_owned()));
        }
        if waiting.jobs.len() >= self.capacity {
            return Err(HsmError::Busy);
        }
        waiting.jobs.push_back(job);
        drop(waiting);
        self.arrived.notify_one();
        Ok(())
    }

    /// The next job, once there is one; none when it is closed and empty.
    fn take(&self) -> Option<Job> {
        let mut waiting = self.waiting.lock();
        loop {
            match waiting.jobs.pop_front() {
                None if !waiting.closed => self.arrived.wait(&mut waiting),
                next => return next,
            }
        }
    }

    fn close(&self) {
        self.waiting.lock().closed = true;
        self.arrived.notify_all();
    }
}

struct Thread {
    seat: Arc<Seat>,
    handle: JoinHandle<()>,
}

#[derive(Default)]
struct Seat {
    /// Milliseconds after `Crew::started` at which its job began, plus one; 0
    /// when it has none.
    busy_since_ms: AtomicU64,
    given_up: AtomicBool,
}

impl Crew {
    /// Starts `threads` threads behind a queue of `capacity`.
    pub(crate) fn start(name: String, threads: usize, capacity: usize) -> Result<Crew, HsmError> {
        let queue = Queue { waiting: Mutex::default(), arrived: Condvar::new(), capacity };
        let crew = Crew {
            name,
            started: Instant::now(),
            queue: Arc::new(queue),
            threads: Mutex::new(Vec::with_capacity(threads)),
        };
        for _ in 0..threads {
            let thread = crew.spawn()?;
            crew.threads.lock().push(thread);
        }
        Ok(crew)
    }

    /// Has a thread do `work`, and waits for its result until the deadline. A
    /// job whose caller is gone or late is dropped when it is taken.
    pub(crate) async fn run<T: Send + 'static, E: From<HsmError> + Send + 'static>(
        &self,
        deadline: tokio::time::Instant,
        work: impl FnOnce(&mut Bench) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E> {
        let (reply, result) = oneshot::channel();
        self.push(move |bench| {
            if !reply.is_closed() && Instant::now() < deadline.into_std() {
                // A caller that left meanwhile misses nothing but this value.
                let _ = reply.send(work(bench));
            }
        })?;
        match tokio::time::timeout_at(deadline, result).await {
            Ok(Ok(result)) => result,
            Ok(Err(_dropped)) => Err(HsmError::Deadline.into()),
            Err(_elapsed) => Err(HsmError::Deadline.into()),
        }
    }

    /// Has a thread do `work` some time, if there is room in the queue.
    pub(crate) fn push(&self, job: impl FnOnce(&mut Bench) + Send + 'static) -> Result<(), HsmError> {
        self.queue.push(Box::new(job))
    }

    /// Jobs that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.queue.waiting.lock().jobs.len()
    }

    /// Threads that take jobs.
    pub(crate) fn threads(&self) -> usize {
        self.threads.lock().len()
    }

    /// Gives up the threads that are at one job for longer than `limit`, puts
    /// others in their place, and says how many. A thread that was given up
    /// ends when its call returns, if it ever does.
    pub(crate) fn replace_hung(&self, limit: Duration) -> Result<usize, HsmError> {
        let mut threads = self.threads.lock();
        let now = self.now_ms();
        let mut hung = 0;
        for thread in threads.iter_mut() {
            let since = thread.seat.busy_since_ms.load(Ordering::Acquire);
            let is_hung = since != 0 && now.saturating_sub(since) > limit.as_millis() as u64;
            if is_hung || thread.handle.is_finished() {
                thread.seat.given_up.store(true, Ordering::Release);
                *thread = self.spawn()?;
                hung += 1;
            }
        }
        Ok(hung)
    }

    /// Takes no more jobs and waits until those in the queue are done; says
    /// whether all threads ended within `patience`.
    pub(crate) fn close(&self, patience: Duration) -> bool {
        self.queue.close();
        let until = Instant::now() + patience;
        let mut threads = self.threads.lock();
        loop {
            threads.retain(|thread| !thread.handle.is_finished());
            if threads.is_empty() {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(JOIN_POLL);
        }
    }

    fn spawn(&self) -> Result<Thread, HsmError> {
        let seat = Arc::new(Seat::default());
        let (queue, mine, started) = (self.queue.clone(), seat.clone(), self.started);
        let body = move || {
            let mut bench = Bench::default();
            while !mine.given_up.load(Ordering::Acquire)
                && let Some(job) = queue.take()
            {
                mine.busy_since_ms.store(elapsed_ms(started), Ordering::Release);
                job(&mut bench);
                mine.busy_since_ms.store(0, Ordering::Release);
            }
        };
        let handle = std::thread::Builder::new()
            .name(self.name.clone())
            .spawn(body)
            .map_err(|error| HsmError::Unavailable(format!("no thread for {}: {error}", self.name)))?;
        Ok(Thread { seat, handle })
    }

    fn now_ms(&self) -> u64 {
        elapsed_ms(self.started)
    }
}

/// Its threads end when the queue is empty.
impl Drop for Crew {
    fn drop(&mut self) {
        self.queue.close();
    }
}

fn elapsed_ms(started: Instant) -> u64 {
    started.elapsed().as_millis() as u64 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> tokio::time::Instant {
        tokio::time::Instant::now() + Duration::from_secs(20)
    }

    #[tokio::test]
    async fn a_full_queue_is_busy_and_a_late_job_is_not_done() {
        let crew = Arc::new(Crew::start("test".into(), 1, 1).unwrap());
        let (release, blocked) = std::sync::mpsc::channel::<()>();
        let (begun, beginning) = std::sync::mpsc::channel::<()>();
        crew.push(move |_| {
            begun.send(()).unwrap();
            let _ = blocked.recv();
        })
        .unwrap();
        beginning.recv().unwrap();
        let done = Arc::new(AtomicBool::new(false));
        let mark = done.clone();
        let deadline = tokio::time::Instant::now() + Duration::from_millis(1);
        let late = crew.run(deadline, move |_| {
            mark.store(true, Ordering::SeqCst);
            Ok::<_, HsmError>(())
        });
        assert_eq!(late.await, Err(HsmError::Deadline));
        assert_eq!(crew.run(soon(), |_| Ok::<_, HsmError>(())).await, Err(HsmError::Busy));
        release.send(()).unwrap();
        while crew.waiting() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(crew.run(soon(), |_| Ok::<_, HsmError>(7)).await, Ok(7));
        assert!(!done.load(Ordering::SeqCst), "its deadline had passed");
    }

    #[tokio::test]
    async fn a_hung_thread_is_replaced() {
        let crew = Crew::start("test".into(), 1, 4).unwrap();
        let (release, blocked) = std::sync::mpsc::channel::<()>();
        let (begun, beginning) = std::sync::mpsc::channel::<()>();
        crew.push(move |_| {
            begun.send(()).unwrap();
            let _ = blocked.recv();
        })
        .unwrap();
        beginning.recv().unwrap();
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(crew.replace_hung(Duration::from_millis(1)), Ok(1));
        assert_eq!(crew.run(soon(), |_| Ok::<_, HsmError>(7)).await, Ok(7));
        release.send(()).unwrap();
        assert!(crew.close(Duration::from_secs(20)));
    }
}
