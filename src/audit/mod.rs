//! The event log and everything that reads it.

pub mod head;
pub mod history;
pub mod record;
pub mod stream;
pub mod trail;
pub mod verify;
