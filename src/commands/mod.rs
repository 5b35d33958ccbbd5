//! What the `strongroom` command does on a host besides serving and calling.

pub mod access_key;
pub mod backup;
pub mod check_config;
pub mod dev;
pub mod dev_hsms;
pub mod dev_setup;
pub mod hsm_backup;
pub mod hsm_bring;
pub mod hsm_check;
pub mod hsm_init;
pub mod init;
mod template;
