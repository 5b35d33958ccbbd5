//! The task of each target.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::dead_letter::DeadLetters;
use super::target::{Delivery, Outcome, Target};
use super::{BOOKMARK, Rule};
use crate::app::App;
use crate::audit::follow::Follower;
use crate::audit::tail::Logged;
use crate::config::TargetSettings;
use crate::error::{Error, Result};

/// The wait after a delivery that may succeed later; it doubles up to the greatest.
const RETRY_MIN: Duration = Duration::from_millis(200);
/// The greatest wait.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// The wait after the log or the target itself could not be used.
const RESTART_WAIT: Duration = Duration::from_secs(1);

/// Serves one target until it is stopped.
pub async fn run(
    app: Arc<App>,
    name: String,
    settings: TargetSettings,
    rules: Vec<Rule>,
    stop: CancellationToken,
) {
    let work = async {
        loop {
            let error = match Target::open(&app, &settings) {
                Ok(target) => {
                    let letters = DeadLetters::new(&app, &name, &settings);
                    let retry_for = settings.retry_for;
                    let work = Work { app: &app, name: &name, rules: &rules, target, letters, retry_for };
                    let error = work.run().await;
                    error.detail.unwrap_or_else(|| error.message.into_owned())
                }
                Err(error) => error,
            };
            tracing::warn!(target_name = name, error, "a target cannot be served; it is tried again");
            sleep(RESTART_WAIT).await;
        }
    };
    tokio::select! {
        () = work => (),
        () = stop.cancelled() => (),
    }
}

struct Work<'a> {
    app: &'a Arc<App>,
    name: &'a str,
    rules: &'a [Rule],
    target: Target,
    letters: DeadLetters,
    retry_for: Duration,
}

impl Work<'_> {
    /// Serves the target as long as the log can be read; why it cannot.
    async fn run(self) -> Error {
        match self.follow().await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn follow(&self) -> Result<Infallible> {
        let mut log = Follower::resume(self.app, &format!("{BOOKMARK}{}", self.name)).await?;
        let backlog = metrics::gauge!("strongroom_target_backlog_events", "target" => self.name.to_owned());
        loop {
            let events = log.next().await?;
            backlog.set(log.backlog() as f64);
            let wanted = events.iter().filter_map(|event| self.wanted(event)).collect();
            self.deliver(wanted).await;
            if let Some(last) = events.last() {
                log.pass(last.stored.position);
            }
            log.save().await?;
            backlog.set(log.backlog() as f64);
        }
    }

    /// An event that one of the rules wants.
    fn wanted(&self, logged: &Arc<Logged>) -> Option<Delivery> {
        let matching = self.rules.iter().filter(|rule| rule.pattern.matches(logged.envelope()));
        let rules: Vec<String> = matching.map(|rule| rule.name.clone()).collect();
        for rule in &rules {
            let labels = [("rule", rule.clone()), ("target", self.name.to_owned())];
            metrics::counter!("strongroom_rule_matches_total", &labels).increment(1);
        }
        (!rules.is_empty()).then(|| Delivery { rules, logged: logged.clone() })
    }

    /// Delivers all of these, or writes down what cannot be.
    async fn deliver(&self, mut left: Vec<Delivery>) {
        let (began, mut wait) = (Instant::now(), RETRY_MIN);
        while !left.is_empty() {
            // Each request has a time limit of its own.
            let outcomes = self.target.send(&left).await;
            let is_late = began.elapsed() >= self.retry_for;
            let mut again = Vec::new();
            for (delivery, outcome) in left.into_iter().zip(outcomes) {
                match outcome {
                    Outcome::Done => self.done(&delivery),
                    Outcome::Again(why) if !is_late => {
                        self.count("retried");
                        tracing::warn!(target_name = self.name, why, "a delivery failed; it is tried again");
                        again.push(delivery);
                    }
                    Outcome::Again(why) | Outcome::Refused(why) => {
                        self.count("refused");
                        tracing::error!(target_name = self.name, why, "a delivery is given up");
                        self.letters.keep(&delivery, &why).await;
                    }
                }
            }
            left = again;
            if !left.is_empty() {
                sleep(wait).await;
                wait = (wait * 2).min(RETRY_MAX);
            }
        }
    }

    fn done(&self, delivery: &Delivery) {
        self.count("delivered");
        let late_ms = (self.app.clock.now_ms() - delivery.time_ms()).max(0);
        metrics::histogram!("strongroom_target_delay_seconds", "target" => self.name.to_owned())
            .record(late_ms as f64 / 1000.0);
    }

    fn count(&self, outcome: &'static str) {
        let labels = [("target", self.name.to_owned()), ("result", outcome.to_owned())];
        metrics::counter!("strongroom_target_deliveries_total", &labels).increment(1);
    }
}
