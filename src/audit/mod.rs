//! The event log and everything that reads it.

pub mod beside;
pub mod follow;
pub mod head;
pub mod history;
pub mod insights;
pub mod log_filter;
pub mod metric_filters;
pub mod pattern;
pub mod record;
pub mod retention;
pub mod rules;
pub mod stream;
pub mod tail;
pub mod trail;
pub mod verify;
