//! Tells systemd how the daemon is doing. Without systemd nothing happens.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

/// The daemon serves.
pub fn ready() {
    notify(&[NotifyState::Ready]);
}

/// The daemon reads its configuration anew; [`ready`] ends it. For
/// `Type=notify-reload`.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "systemd cannot be told of the reload"),
    }
}

/// The daemon drains.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Feeds systemd's watchdog, if the unit has one (`WatchdogSec`), for as long
/// as `alive` says so and until `shutdown`. That this task runs shows that the
/// runtime does.
pub async fn watchdog(alive: impl Fn() -> bool + Send, shutdown: CancellationToken) {
    let Some(patience) = sd_notify::watchdog_enabled() else { return };
    // Half of it, as sd_watchdog_enabled(3) recommends.
    let interval = (patience / 2).max(Duration::from_millis(1));
    loop {
        if alive() {
            notify(&[NotifyState::Watchdog]);
        } else {
            tracing::error!("the daemon is not alive: systemd's watchdog is left to bite");
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
        }
    }
}

fn notify(state: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd cannot be told: {state:?}");
    }
}
