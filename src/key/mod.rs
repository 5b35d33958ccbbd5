//! Pure knowledge of keys: names.

pub mod arn;
