//! Strongroom: an AWS-KMS-grade key service on your own PKCS#11 HSMs.

pub mod api;
pub mod app;
pub mod audit;
pub mod caller;
pub mod cli;
pub mod commands;
pub mod conditions;
pub mod config;
pub mod daemon;
pub mod error;
pub mod hardening;
pub mod health;
pub mod hsm;
pub mod identity;
pub mod jobs;
pub mod key;
pub mod operation;
pub mod ops;
pub mod pki;
pub mod policy;
pub mod proto;
pub mod registry;
pub mod resource;
pub mod store;
pub mod systemd;
pub mod wire;
