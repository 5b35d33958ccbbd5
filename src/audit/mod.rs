//! What the event log says, to those who ask.

pub mod history;
