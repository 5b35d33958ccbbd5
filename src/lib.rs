//! Strongroom: an AWS-KMS-grade key service on your own PKCS#11 HSMs.

pub mod api;
pub mod caller;
pub mod cli;
pub mod commands;
pub mod config;
pub mod error;
pub mod hardening;
pub mod hsm;
pub mod key;
pub mod pki;
pub mod policy;
pub mod proto;
pub mod store;
pub mod systemd;
pub mod wire;
