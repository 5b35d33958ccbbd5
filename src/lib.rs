//! Strongroom: an AWS-KMS-grade key service on your own PKCS#11 HSMs, with
//! every call on a CloudTrail record.
//!
//! # The journey of a request
//!
//! ```text
//! api          operation                                         hsm            store
//! bytes ──→ Caller, request ─→ resolve ─→ authorise ─→ run ─→ a session ─→ changes + event
//!           who?     limits    which key?  policy      one        │         one commit
//!                                                    Operation    │              │
//!             answer ←───────────────────────────────────────── durable ←───────┘
//!                                                                                │
//!                                          StreamEvents · LookupEvents · VerifyEvents
//! ```
//!
//! Three sentences:
//!
//! * An operation is one `impl` of [`operation::Operation`]; the one list of
//!   operations in [`ops`] is the API, and gRPC, AWS JSON, authorisation, audit
//!   and the tests that walk the API are made from it.
//! * A key reaches the HSM only as [`operation::Allowed`], and only the
//!   authorising step makes one.
//! * [`store::Store::commit`] is the only write: the changes and the event that
//!   explains them, in one transaction. So nothing changes and nothing is
//!   answered without its event.
//!
//! # The modules
//!
//! Dependencies point one way: [`daemon`] → [`api`], [`jobs`] → [`ops`] →
//! [`operation`] → [`registry`], [`hsm`], [`store`], [`audit`] → [`policy`],
//! [`key`]. `key` and `policy` know no tokio, SQL or PKCS#11; `ops` knows no
//! tonic, SQL or PKCS#11.

// What the API does, and around it.
pub mod access_keys;
pub mod app;
pub mod authority;
pub mod brakes;
pub mod caller;
pub mod conditions;
pub mod error;
pub mod key_stores;
pub mod managed;
pub mod material;
pub mod multi_region;
pub mod operation;
pub mod ops;
pub mod proto;
pub mod registry;
pub mod resource;
pub mod sealed;
pub mod service;
pub mod wire;

// What it stands on.
pub mod audit;
pub mod hsm;
pub mod identity;
pub mod jobs;
pub mod key;
pub mod policy;
pub mod store;

// What makes a daemon of it, and what calls it.
pub mod api;
pub mod cli;
pub mod commands;
pub mod config;
pub mod daemon;
pub mod hardening;
pub mod health;
pub mod pki;
pub mod systemd;
