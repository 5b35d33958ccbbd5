//! What one peer, and all of them together, may use of the transport.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

/// Limits of the transport; the section `[limits]` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransportLimits {
    /// Open connections in all, over every listener, handshakes included.
    pub connections_max: usize,
    /// Open connections per peer: an IP address, or a uid on a Unix socket.
    pub connections_per_peer_max: usize,
    /// From accept to the end of the TLS handshake.
    pub handshake_timeout_ms: u64,
    /// Requests at the same time on one connection.
    pub streams_per_connection_max: u32,
    /// Headers of one request, as HTTP/2 counts them (RFC 9113, 6.5.2).
    pub header_bytes_max: u32,
    /// One gRPC message, after decompression. Kept here beside its siblings;
    /// the gRPC services enforce it.
    pub message_bytes_max: usize,
    /// After this time, give or take a tenth, a connection takes no more
    /// requests and its client connects anew.
    pub connection_age_ms: u64,
    /// A connection without a request for this long is closed.
    pub connection_idle_ms: u64,
}

impl Default for TransportLimits {
    fn default() -> Self {
        TransportLimits {
            connections_max: 4096,
            connections_per_peer_max: 256,
            handshake_timeout_ms: 10_000,
            streams_per_connection_max: 256,
            header_bytes_max: 16 << 10,
            message_bytes_max: 1 << 20,
            connection_age_ms: 3_600_000,
            connection_idle_ms: 600_000,
        }
    }
}

impl TransportLimits {
    pub(super) fn handshake_timeout(&self) -> Duration {
        Duration::from_millis(self.handshake_timeout_ms)
    }

    pub(super) fn connection_age(&self) -> Duration {
        Duration::from_millis(self.connection_age_ms)
    }

    pub(super) fn connection_idle(&self) -> Duration {
        Duration::from_millis(self.connection_idle_ms)
    }
}

/// Whom the limit per peer counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PeerKey {
    /// A host.
    Address(IpAddr),
    /// A user of this host.
    Uid(u32),
}

/// Which limit a new connection ran into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// `connections_max`.
    InAll,
    /// `connections_per_peer_max`.
    ForPeer,
}

/// Counts open connections; one for all listeners of the process.
#[derive(Debug)]
pub struct Gate {
    limits: ArcSwap<TransportLimits>,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    in_all: usize,
    per_peer: HashMap<PeerKey, usize>,
}

impl Gate {
    /// A gate that nobody has passed yet.
    pub fn new(limits: TransportLimits) -> Arc<Self> {
        Arc::new(Gate { limits: ArcSwap::from_pointee(limits), open: Mutex::default() })
    }

    /// The limits of the day.
    pub fn limits(&self) -> Arc<TransportLimits> {
        self.limits.load_full()
    }

    /// Sets limits for the connections to come; open ones keep theirs.
    pub fn set_limits(&self, limits: TransportLimits) {
        self.limits.store(Arc::new(limits));
    }

    /// How many connections are open.
    pub fn open(&self) -> usize {
        self.open.lock().in_all
    }

    /// Lets one more connection in, until the pass is dropped.
    pub fn admit(self: &Arc<Self>, peer: PeerKey) -> Result<Pass, Full> {
        // An IPv4 client of a dual-stack socket is the same peer as on an
        // IPv4 socket.
        let peer = match peer {
            PeerKey::Address(address) => PeerKey::Address(address.to_canonical()),
            PeerKey::Uid(uid) => PeerKey::Uid(uid),
        };
        let limits = self.limits.load();
        let mut open = self.open.lock();
        if open.in_all >= limits.connections_max {
            return Err(Full::InAll);
        }
        let of_peer = open.per_peer.get(&peer).copied().unwrap_or(0);
        if of_peer >= limits.connections_per_peer_max {
            return Err(Full::ForPeer);
        }
        open.per_peer.insert(peer, of_peer + 1);
        open.in_all += 1;
        metrics::gauge!("strongroom_connections_open").set(open.in_all as f64);
        Ok(Pass { gate: self.clone(), peer })
    }

    fn leave(&self, peer: PeerKey) {
        let mut open = self.open.lock();
        open.in_all = open.in_all.saturating_sub(1);
        match open.per_peer.get_mut(&peer) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                open.per_peer.remove(&peer);
            }
        }
        metrics::gauge!("strongroom_connections_open").set(open.in_all as f64);
    }
}

/// An open connection's place; gives it back when dropped.
#[derive(Debug)]
pub struct Pass {
    gate: Arc<Gate>,
    peer: PeerKey,
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.gate.leave(self.peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(in_all: usize, per_peer: usize) -> Arc<Gate> {
        Gate::new(TransportLimits {
            connections_max: in_all,
            connections_per_peer_max: per_peer,
            ..TransportLimits::default()
        })
    }

    #[test]
    fn a_pass_given_back_makes_room_and_leaves_nothing_behind() {
        let gate = gate(2, 1);
        let first = gate.admit(PeerKey::Uid(1)).unwrap();
        assert_eq!(gate.admit(PeerKey::Uid(1)).unwrap_err(), Full::ForPeer);
        let second = gate.admit(PeerKey::Uid(2)).unwrap();
        assert_eq!(gate.admit(PeerKey::Uid(3)).unwrap_err(), Full::InAll);
        drop(first);
        let third = gate.admit(PeerKey::Uid(1)).unwrap();
        drop((second, third));
        assert_eq!(gate.open(), 0);
        assert!(gate.open.lock().per_peer.is_empty(), "a peer that has left must not use memory");
    }

    #[test]
    fn a_mapped_address_is_the_same_peer() {
        let gate = gate(9, 1);
        let _first = gate.admit(PeerKey::Address("192.0.2.1".parse().unwrap())).unwrap();
        let mapped = PeerKey::Address("::ffff:192.0.2.1".parse().unwrap());
        assert_eq!(gate.admit(mapped).unwrap_err(), Full::ForPeer);
    }

    #[test]
    fn new_limits_hold_for_the_next_connection() {
        let gate = gate(1, 1);
        let _first = gate.admit(PeerKey::Uid(1)).unwrap();
        gate.set_limits(TransportLimits::default());
        assert!(gate.admit(PeerKey::Uid(1)).is_ok());
    }
}
