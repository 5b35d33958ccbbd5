//! The integration tests, in one binary: a module per subject.

#![allow(missing_docs, reason = "nobody uses a test but its runner")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::indexing_slicing, reason = "a test fails by panicking")]

mod backup_keys;
mod cancel;
mod churn;
mod cli;
mod cluster;
mod config;
mod conformance;
mod deletion;
mod dev_members;
mod disk;
mod exhibition;
mod history;
mod hsm;
mod import;
mod insights;
mod interop;
mod key_stores;
mod kill;
mod members;
mod metric_filters;
mod multi_region;
mod operated;
mod outage;
mod policy;
mod retention;
mod rights;
mod rotation;
mod secrecy;
mod services;
mod store;
mod store_sqlite;
mod support;
mod tamper;
mod trail;
mod transport;
mod vendors;
