//! Strongroom: an AWS-KMS-grade key service on your own PKCS#11 HSMs.

pub mod audit;
pub mod caller;
pub mod error;
pub mod hsm;
pub mod store;
