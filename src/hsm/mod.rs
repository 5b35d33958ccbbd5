//! The HSMs: PKCS#11 modules, their tokens, and the cluster that they make.
//!
//! [`Cluster`] is the face. A call goes to a [`member`]'s session threads
//! ([`crew`]), with the handle of its key from the [`cache`], on the
//! [`attachment`] of the member's token to a life of its [`module`]. [`ckr`]
//! says whose fault a failure is.

mod attachment;
mod attempts;
pub mod backup;
mod cache;
mod ceremony;
mod ckr;
mod cluster;
mod conformance;
mod crew;
mod encode;
mod identity;
mod import;
mod keys;
mod mechanism;
mod member;
mod meters;
mod module;
mod modules;
mod replica;
mod selftest;
mod session;
mod settings;
pub mod softhsm;
mod synchronize;
mod tokens;
mod transport;
mod types;

pub use ceremony::{ceremony, check_unused, discard_ceremony};
pub use cluster::Cluster;
pub use conformance::{Conformance, Finding, Need, check_conformance};
pub use identity::{Blob, ClusterIdentity, SystemKey, TokenUri};
pub use import::{Imported, Wrapping};
pub use module::{private_copy, with_environment};
pub use modules::Modules;
pub use settings::*;
pub use synchronize::Residents;
pub use tokens::{TokenListing, list_tokens};
pub use transport::{TokenAccess, bring_wrapping_key};
pub use types::*;
