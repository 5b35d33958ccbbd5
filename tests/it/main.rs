//! The integration tests, in one binary: a module per subject.
//! The integration tests: one binary, a module each.
//! The tests of the whole, one binary.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
    reason = "a test may fail loudly"

mod cli;
mod config;
mod policy;
mod transport;
