//! Strongroom: an AWS-KMS-grade key service on your own PKCS#11 HSMs.

pub mod caller;
pub mod cli;
pub mod error;
pub mod hsm;
pub mod proto;
pub mod store;
