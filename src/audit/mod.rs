//! The event log and everything that reads it.

pub mod follow;
pub mod head;
pub mod history;
pub mod pattern;
pub mod record;
pub mod rules;
pub mod stream;
pub mod trail;
pub mod verify;
