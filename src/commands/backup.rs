//! `strongroom backup` and `strongroom restore`.

use std::path::PathBuf;

use crate::config::{Config, Flags};
use crate::store::sqlite;

/// The options of `strongroom backup`.
#[derive(Debug, Clone, clap::Args)]
pub struct BackupArgs {
    /// The configuration file.
    #[arg(long, env = "STRONGROOM_CONFIG", default_value = "/etc/strongroom/strongroom.toml")]
    pub config: PathBuf,
    /// The file to write; it must not be there yet.
    #[arg(long)]
    pub to: PathBuf,
}

/// The options of `strongroom restore`.
#[derive(Debug, Clone, clap::Args)]
pub struct RestoreArgs {
    /// The configuration file.
    #[arg(long, env = "STRONGROOM_CONFIG", default_value = "/etc/strongroom/strongroom.toml")]
    pub config: PathBuf,
    /// The backup.
    #[arg(long)]
    pub from: PathBuf,
    /// Move a database that is in the data folder aside.
    #[arg(long)]
    pub force: bool,
}

/// Copies the database; the daemon may run.
pub async fn backup(args: &BackupArgs) -> anyhow::Result<()> {
    let config = Config::load(Some(&args.config), &Flags::new())?.config;
    sqlite::backup(&config.data_dir, &args.to).await?;
    println!(
        "{} holds every change and event up to now. The HSM's wrapping key is not in it.",
        args.to.display()
    );
    Ok(())
}

/// Puts a backup in place; the daemon must not run.
pub async fn restore(args: &RestoreArgs) -> anyhow::Result<()> {
    let config = Config::load(Some(&args.config), &Flags::new())?.config;
    let report = sqlite::restore(&args.from, &config.data_dir, args.force).await?;
    if let Some(aside) = &report.set_aside {
        println!("The database that was there is {}.", aside.display());
    }
    let follows =
        report.follows.map_or_else(|| "no event".to_owned(), |position| format!("event {position}"));
    println!("Restored: the log ends with {follows} and goes on as writer {}.", report.writer);
    for unread in &report.unread {
        println!(
            "warning: {} could not be read: its events may have positions that are given again",
            unread.display()
        );
    }
    println!(
        "At its next start the daemon moves the use counts of every key ahead and records StoreRestored.\n\
         It cannot know what was done after the backup: keys made since are lost with their material,\n\
         keys deleted since are there again, and the events of that time are missing."
    );
    Ok(())
}
