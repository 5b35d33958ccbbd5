//! The integration tests, in one binary: a module per subject.
//! The integration tests: one binary, a module each.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod cli;
mod policy;
mod transport;
