//! Strongroom: an AWS-KMS-grade key service on your own PKCS#11 HSMs.

pub mod caller;
pub mod commands;
pub mod config;
pub mod error;
pub mod hsm;
pub mod pki;
pub mod store;
