//! The HSMs.
mod types;
pub use types::*;
