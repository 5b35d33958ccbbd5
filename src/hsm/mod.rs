//! The HSMs.
mod settings;
mod types;
pub use settings::*;
pub use types::*;
