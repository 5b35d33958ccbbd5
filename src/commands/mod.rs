//! What the `strongroom` command does on a host besides serving and calling.

pub mod check_config;
pub mod dev_setup;
pub mod init;
mod template;
