//! The handles of keys that are ready for use, a bounded number of them.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, RwLock};
use tokio::sync::OnceCell;

use super::BackingId;
use super::session::Handle;

/// Session objects that nobody uses any more; the keeper destroys them.
/// INVARIANT: at most one entry per key that was loaded, so that it is no
/// longer than the cache and the calls in flight together.
#[derive(Default)]
pub(crate) struct Garbage(Mutex<Vec<Handle>>);

impl Garbage {
    /// Takes what there is.
    pub(crate) fn take(&self) -> Vec<Handle> {
        std::mem::take(&mut self.0.lock())
    }

    /// How much there is.
    pub(crate) fn len(&self) -> usize {
        self.0.lock().len()
    }
}

/// A key's object. The last user's drop throws a session object away.
pub(crate) struct Loaded {
    handle: Handle,
    garbage: Option<Arc<Garbage>>,
}

impl Loaded {
    /// A session object, which goes to `garbage` in the end.
    pub(crate) fn unwrapped(handle: Handle, garbage: &Arc<Garbage>) -> Loaded {
        Loaded { handle, garbage: Some(garbage.clone()) }
    }

    /// A token object, which stays.
    pub(crate) fn resident(handle: Handle) -> Loaded {
        Loaded { handle, garbage: None }
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        if let Some(garbage) = &self.garbage {
            garbage.0.lock().push(self.handle);
        }
    }
}

/// A key's place in the cache. Whoever holds it keeps its object alive.
pub(crate) struct Entry {
    loaded: OnceCell<Loaded>,
    used: AtomicBool,
}

impl Entry {
    /// The key's handle. Of several callers one loads it, the others wait.
    pub(crate) async fn handle<F, E>(&self, load: impl FnOnce() -> F) -> Result<Handle, E>
    where
        F: Future<Output = Result<Loaded, E>>,
    {
        self.loaded.get_or_try_init(load).await.map(|loaded| loaded.handle)
    }
}

/// Keys by their id. When it is full, the first key that the clock's hand finds
/// unused since its last round makes room (second chance: near to least
/// recently used, without a lock for writing on a hit).
pub(crate) struct KeyCache {
    capacity: usize,
    keys: RwLock<Keys>,
}

#[derive(Default)]
struct Keys {
    places: HashMap<BackingId, usize>,
    clock: Vec<(BackingId, Arc<Entry>)>,
    hand: usize,
}

impl KeyCache {
    /// An empty cache for `capacity` keys, at least one.
    pub(crate) fn new(capacity: usize) -> KeyCache {
        KeyCache { capacity: capacity.max(1), keys: RwLock::default() }
    }

    /// The entry of a key, which is made where there is none.
    pub(crate) fn entry(&self, id: BackingId) -> Arc<Entry> {
        if let Some(entry) = self.keys.read().find(id) {
            return entry;
        }
        let mut keys = self.keys.write();
        match keys.find(id) {
            Some(entry) => entry,
            None => keys.insert(id, self.capacity),
        }
    }

    /// Forgets a key, and returns its entry, whose users may still be at work.
    pub(crate) fn remove(&self, id: BackingId) -> Option<Arc<Entry>> {
        self.keys.write().remove(id)
    }

    /// Forgets a key if its entry is still this one.
    pub(crate) fn remove_this(&self, id: BackingId, entry: &Arc<Entry>) {
        let mut keys = self.keys.write();
        if keys.find(id).is_some_and(|present| Arc::ptr_eq(&present, entry)) {
            keys.remove(id);
        }
    }

    /// Whether a key's handle is at hand.
    pub(crate) fn has_loaded(&self, id: BackingId) -> bool {
        self.keys.read().find(id).is_some_and(|entry| entry.loaded.initialized())
    }

    /// How many keys it holds.
    pub(crate) fn len(&self) -> usize {
        self.keys.read().clock.len()
    }
}

impl Keys {
    fn find(&self, id: BackingId) -> Option<Arc<Entry>> {
        let (_, entry) = self.clock.get(*self.places.get(&id)?)?;
        entry.used.store(true, Ordering::Relaxed);
        Some(entry.clone())
    }

    fn insert(&mut self, id: BackingId, capacity: usize) -> Arc<Entry> {
        let entry = Arc::new(Entry { loaded: OnceCell::new(), used: AtomicBool::new(false) });
        if self.clock.len() < capacity {
            self.places.insert(id, self.clock.len());
            self.clock.push((id, entry.clone()));
            return entry;
        }
        // Ends: a round takes every mark away.
        while let Some((_, present)) = self.clock.get(self.hand)
            && present.used.swap(false, Ordering::Relaxed)
        {
            self.hand = (self.hand + 1) % self.clock.len();
        }
        if let Some(place) = self.clock.get_mut(self.hand) {
            self.places.remove(&place.0);
            self.places.insert(id, self.hand);
            *place = (id, entry.clone());
            self.hand = (self.hand + 1) % self.clock.len();
        }
        entry
    }

    fn remove(&mut self, id: BackingId) -> Option<Arc<Entry>> {
        let place = self.places.remove(&id)?;
        let (_, entry) = self.clock.swap_remove(place);
        if let Some((moved, _)) = self.clock.get(place) {
            self.places.insert(*moved, place);
        }
        if self.hand >= self.clock.len() {
            self.hand = 0;
        }
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hsm::HsmError;

    fn id(number: u8) -> BackingId {
        BackingId([number; 32])
    }

    async fn load(cache: &KeyCache, garbage: &Arc<Garbage>, number: u8) -> Arc<Entry> {
        let entry = cache.entry(id(number));
        let load = || async { Ok::<_, HsmError>(Loaded::unwrapped(number.into(), garbage)) };
        assert_eq!(entry.handle(load).await, Ok(number.into()));
        entry
    }

    #[tokio::test]
    async fn it_stays_bounded_and_keeps_what_is_used() {
        let (cache, garbage) = (KeyCache::new(2), Arc::new(Garbage::default()));
        load(&cache, &garbage, 1).await;
        load(&cache, &garbage, 2).await;
        load(&cache, &garbage, 1).await;
        load(&cache, &garbage, 3).await;
        assert_eq!(cache.len(), 2);
        assert_eq!(garbage.take(), [2], "1 was used since");
    }

    #[tokio::test]
    async fn an_evicted_key_lives_until_its_last_use_ends() {
        let (cache, garbage) = (KeyCache::new(1), Arc::new(Garbage::default()));
        let in_use = load(&cache, &garbage, 1).await;
        load(&cache, &garbage, 2).await;
        assert_eq!(garbage.take(), [] as [Handle; 0]);
        drop(in_use);
        assert_eq!(garbage.take(), [1]);
    }

    #[tokio::test]
    async fn removal_keeps_every_other_key_in_its_place() {
        let (cache, garbage) = (KeyCache::new(4), Arc::new(Garbage::default()));
        for number in 1..=4 {
            load(&cache, &garbage, number).await;
        }
        assert!(cache.remove(id(1)).is_some());
        assert!(cache.remove(id(1)).is_none());
        assert_eq!(garbage.take(), [1]);
        for number in 2..=4 {
            let unexpected = || async { Err(HsmError::Input) };
            assert_eq!(cache.entry(id(number)).handle(unexpected).await, Ok(number.into()));
        }
    }

    #[tokio::test]
    async fn concurrent_misses_load_once_and_a_failed_load_is_tried_again() {
        let (cache, garbage) = (KeyCache::new(4), Arc::new(Garbage::default()));
        let entry = cache.entry(id(1));
        assert_eq!(entry.handle(|| async { Err(HsmError::Busy) }).await, Err(HsmError::Busy));
        let loads = std::sync::atomic::AtomicUsize::new(0);
        let load = || async {
            loads.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            Ok::<_, HsmError>(Loaded::unwrapped(9, &garbage))
        };
        let (first, second) = tokio::join!(entry.handle(load), entry.handle(load));
        assert_eq!((first, second), (Ok(9), Ok(9)));
        assert_eq!(loads.load(Ordering::SeqCst), 1);
    }
}
