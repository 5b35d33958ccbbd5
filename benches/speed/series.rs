//! Several sides in turns, round after round, so that whatever else the
//! machine does meets all of them alike.

use anyhow::Context as _;
use hdrhistogram::Histogram;
use serde::Serialize;
use tonic::transport::Channel;

use crate::load::{Clients, Outcome, Work};
use crate::plan::Plan;
use crate::process::Process;

/// One of those that take turns.
pub struct Side<'a> {
    pub name: &'a str,
    pub clients: Clients<'a>,
    /// The process whose processor time and memory are looked at.
    pub process: &'a Process,
}

/// A daemon of its own, and the one call that its clients make.
pub struct Running {
    pub name: &'static str,
    pub process: Process,
    pub channels: Vec<Channel>,
    pub work: Work,
}

impl Running {
    pub fn side(&self) -> Side<'_> {
        let clients = Clients::Grpc(&self.channels, self.work.clone());
        Side { name: self.name, clients, process: &self.process }
    }

    /// Its clients first, as the daemon waits for them.
    pub fn stop(self) -> anyhow::Result<()> {
        drop(self.channels);
        self.process.stop().context("a daemon does not end")
    }
}

/// A figure of several rounds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Spread {
    pub fn of(mut values: Vec<f64>) -> Spread {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or_default();
        let last = values.len().saturating_sub(1);
        Spread { median: (at(last / 2) + at(last.div_ceil(2))) / 2.0, least: at(0), most: at(last) }
    }
}

/// What one side did in all rounds.
pub struct Series {
    pub name: String,
    /// Successful calls per second.
    pub rates: Vec<f64>,
    /// Of all rounds together, microseconds.
    pub latency: Histogram<u64>,
    /// The process's processor time per call, microseconds.
    pub cpu_us: Vec<f64>,
    /// Its resident memory at the end, MiB.
    pub resident_mib: f64,
}

impl Series {
    /// This side's rate as a part of another's, round by round.
    pub fn ratio(&self, other: &Series) -> Spread {
        Spread::of(self.rates.iter().zip(&other.rates).map(|(own, other)| own / other).collect())
    }

    pub fn rate(&self) -> Spread {
        Spread::of(self.rates.clone())
    }

    pub fn quantile_ms(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1000.0
    }
}

/// Measures the sides in turns; a call that fails ends the benchmark.
pub async fn measure(plan: &Plan, sides: &[Side<'_>]) -> anyhow::Result<Vec<Series>> {
    for side in sides {
        // Connections, caches and sessions are made before the clock runs.
        side.clients.call(plan.turn / 4).await?;
    }
    let mut series: Vec<Option<Series>> = sides.iter().map(|_| None).collect();
    for _ in 0..plan.rounds {
        for (side, series) in sides.iter().zip(&mut series) {
            let before = side.process.cpu_us()?;
            let outcome = side.clients.call(plan.turn).await?;
            let cpu_us = side.process.cpu_us()? - before;
            let outcome = outcome.flawless(side.name)?;
            let cpu_us = cpu_us / outcome.calls as f64;
            add(series, side, outcome, cpu_us)?;
        }
    }
    Ok(series.into_iter().flatten().collect())
}

fn add(series: &mut Option<Series>, side: &Side<'_>, outcome: Outcome, cpu_us: f64) -> anyhow::Result<()> {
    let rate = outcome.rate();
    let resident_mib = side.process.resident_mib()?;
    match series {
        None => {
            *series = Some(Series {
                name: side.name.to_owned(),
                rates: vec![rate],
                latency: outcome.latency,
                cpu_us: vec![cpu_us],
                resident_mib,
            });
        }
        Some(series) => {
            series.rates.push(rate);
            series.latency.add(&outcome.latency)?;
            series.cpu_us.push(cpu_us);
            series.resident_mib = resident_mib;
        }
    }
    Ok(())
}
