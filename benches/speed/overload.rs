//! Far more requests than the daemon can do: it says so, works on, and serves
//! those who ask for little.

use std::fs;
use std::time::Duration;

use anyhow::Context as _;
use strongroom::pki::{Ca, user_uri};
use strongroom::proto::kms::{KeySpec, KeyUsageType};
use tonic::transport::Channel;

use crate::load::{self, Outcome, Work};
use crate::operations::{self, create};
use crate::plan::Bench;
use crate::process::{Instance, Process};
use crate::report::Report;

const ACCOUNT: &str = "111122223333";
/// Principals beside the administrator, who is the greedy one.
const OTHERS: usize = 9;
/// Callers that each have one request at a time.
const LIGHT: usize = 4;
/// Requests in flight on one connection.
const STREAMS: usize = 500;
/// Clients of the undisturbed measure.
const BEST: usize = 64;
/// What a daemon may answer that has too much to do.
const ALLOWED: [&str; 3] = ["ThrottlingException", "DependencyTimeoutException", "DeadlineExceeded"];
const SCENARIO: &str = "overload";

/// Half of the requests are one principal's, the others are nine others'; a
/// tenth is light.
pub async fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let Some((_, program)) = bench.programs.first() else { return Ok(()) };
    let instance = bench.instance(SCENARIO, program)?;
    instance.start()?.stop()?;
    invite(&instance)?;
    let process = instance.start()?;
    let best = crowd(&process, &instance, "administrator", BEST, BEST).await?;
    let channel = best.first().context("no connection")?;
    let key = create(channel, KeySpec::SymmetricDefault, KeyUsageType::EncryptDecrypt).await?;
    let work = Work::one(operations::path("Encrypt")?, &operations::encrypt(key, 32));
    load::closed_loop(&best, &work, bench.plan.turn / 2).await?;
    let time = bench.plan.turn.max(Duration::from_millis(500)) * 4;
    let alone = load::closed_loop(&best, &work, time).await?.flawless("without overload")?;
    let memory = process.resident_mib()?;

    let greedy = crowd(&process, &instance, "administrator", bench.plan.overload / 2, STREAMS).await?;
    let mut others = Vec::new();
    for number in 1..OTHERS {
        let share = bench.plan.overload / 2 / (OTHERS - 1);
        others.extend(crowd(&process, &instance, &format!("other-{number}"), share, STREAMS).await?);
    }
    let light = crowd(&process, &instance, &format!("other-{OTHERS}"), LIGHT, 1).await?;
    let (greedy, others, light) = tokio::join!(
        load::closed_loop(&greedy, &work, time),
        load::closed_loop(&others, &work, time),
        load::closed_loop(&light, &work, time),
    );
    let (greedy, others, light) = (greedy?, others?, light?);
    let all = greedy.rate() + others.rate() + light.rate();
    for (who, outcome) in
        [("the greedy principal", &greedy), ("the others", &others), ("light callers", &light)]
    {
        tell(report, who, outcome);
    }
    report.figure(SCENARIO, "without overload", alone.rate(), "per second");
    report.figure(SCENARIO, "in all", all, "per second");
    report.figure(SCENARIO, "resident before", memory, "MiB");
    report.figure(SCENARIO, "resident after", process.resident_mib()?, "MiB");
    report.at_least("overload: throughput, of the best", 0.8, all / alone.rate());
    let unexpected = [&greedy, &others, &light].into_iter().flat_map(|outcome| &outcome.errors);
    let unexpected: u64 =
        unexpected.filter(|(name, _)| !ALLOWED.contains(&name.as_str())).map(|(_, count)| count).sum();
    report.at_most("overload: errors that are not allowed", 0.0, unexpected as f64);
    report.at_least("overload: light callers' part that succeeds", 0.99, part(&light));
    process.stop()
}

fn tell(report: &mut Report, who: &str, outcome: &Outcome) {
    report.figure(SCENARIO, format!("{who}: done"), outcome.rate(), "per second");
    report.figure(SCENARIO, format!("{who}: p50"), outcome.quantile_ms(0.5), "ms");
    report.figure(SCENARIO, format!("{who}: p99"), outcome.quantile_ms(0.99), "ms");
    for (name, count) in &outcome.errors {
        report.figure(SCENARIO, format!("{who}: {name}"), *count as f64 / outcome.seconds, "per second");
    }
}

fn part(outcome: &Outcome) -> f64 {
    let failed: u64 = outcome.errors.values().sum();
    outcome.calls as f64 / (outcome.calls + failed).max(1) as f64
}

/// Makes principals of a stopped instance.
fn invite(instance: &Instance) -> anyhow::Result<()> {
    let ca = Ca::new("partners")?;
    let pki = instance.pki();
    fs::write(pki.join("partners.pem"), &ca.identity().certificate)?;
    let mut text = fs::read_to_string(instance.configuration())?;
    for number in 1..=OTHERS {
        let name = format!("other-{number}");
        ca.client(ACCOUNT, &name)?.write(&pki, &name)?;
        let uri = user_uri(ACCOUNT, &name);
        text += &format!(
            "\n[[accounts.principals]]\nname = \"{name}\"\ntype = \"user\"\n\
             identities = [{{ uri = \"{uri}\" }}]\npolicies = [\"AdministratorAccess\"]\n"
        );
    }
    text += "\n[tls.client_cas.partners]\nfile = \"pki/partners.pem\"\n";
    Ok(fs::write(instance.configuration(), text)?)
}

/// So many clients of a principal, over as few connections as that takes.
async fn crowd(
    process: &Process,
    instance: &Instance,
    name: &str,
    clients: usize,
    streams: usize,
) -> anyhow::Result<Vec<Channel>> {
    let endpoint = load::endpoint(process.grpc, &instance.pki(), name)?;
    let connections = load::connect(&endpoint, clients.div_ceil(streams)).await?;
    Ok(connections.into_iter().cycle().take(clients).collect())
}
