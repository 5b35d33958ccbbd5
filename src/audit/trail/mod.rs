//! Trails: the log as files that CloudTrail's tools read and verify.
//!
//! ```text
//! log ──cursor──► Pending: the files' names and the range of events, a row
//!                    │ put, again until it succeeds: the same object each time
//!                    ▼
//!                 bucket (S3, or a folder) ──► the cursor moves, a row
//!                    ▲                             │ the files of the hour
//!                    └── digest, signed by an HSM key ◄─┘ chained to the last
//! ```
//!
//! A row says what is about to be written before it is written, so each event
//! is in exactly one file of a trail, whatever dies in between. Each trail has
//! a task of its own: none waits for another's bucket, and no request for any.

pub mod bucket;
mod digest;
pub mod keys;
mod log_file;
pub mod name;
mod rows;
mod s3;
pub mod selector;
mod status;
pub mod verify;
mod worker;

pub use rows::{Delivery, DigestKey, Logging, Pause, Trail};
pub use selector::{InsightSelector, InsightType};
pub use status::{Status, Trails, service_event};
pub use worker::run;
