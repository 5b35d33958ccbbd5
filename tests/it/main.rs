//! The integration tests, in one binary: a module per subject.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod cli;
mod config;
mod history;
mod hsm;
mod interop;
mod policy;
mod store;
mod store_sqlite;
mod transport;
