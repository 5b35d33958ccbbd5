//! What those who read the log cost: three trails, ten rules that each send some
//! events to a file, and Insights, beside a daemon without any of them.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;

use bytes::Bytes;
use http::uri::PathAndQuery;
use prost::Message;
use strongroom::proto::cloudtrail::{
    CreateTrailRequest, InsightSelector, InsightType, PutInsightSelectorsRequest, SourceEventCategory,
    StartLoggingRequest,
};
use strongroom::proto::kms::{KeySpec, KeyUsageType};
use tonic::transport::Channel;

use crate::load::{self, Work};
use crate::operations::{self, create};
use crate::plan::Bench;
use crate::process::Instance;
use crate::report::Report;
use crate::series::{self, Running, Side, Spread};

/// Concurrent clients.
const CLIENTS: usize = 64;
const SCENARIO: &str = "watched";
const TRAILS: usize = 3;
const RULES: usize = 10;
/// Short enough that a turn has its share of files.
const DELIVERY_INTERVAL: &str = "1s";

/// Encrypt with and without them, in turns.
pub async fn compare(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let Some((_, program)) = bench.programs.first() else { return Ok(()) };
    let mut running = Vec::new();
    for name in ["watched", "alone"] {
        let instance = bench.instance(name, program)?;
        let watched = name == "watched";
        let environment = [
            ("STRONGROOM_TRAIL__FOLDER", instance.dir.with_extension("buckets").display().to_string()),
            ("STRONGROOM_TRAIL__DELIVERY_INTERVAL", DELIVERY_INTERVAL.to_owned()),
            ("STRONGROOM_INSIGHTS__ENABLED", watched.to_string()),
        ];
        if watched {
            // The first start makes the configuration.
            instance.start_with(&environment)?.stop()?;
            add_rules(&instance)?;
        }
        let process = instance.start_with(&environment)?;
        let endpoint = load::endpoint(process.grpc, &instance.pki(), "administrator")?;
        let channel = endpoint.connect().await?;
        if watched {
            make_trails(&channel).await?;
        }
        let key = create(&channel, KeySpec::SymmetricDefault, KeyUsageType::EncryptDecrypt).await?;
        let channels = load::connect(&endpoint, CLIENTS).await?;
        let work = Work::one(operations::path("Encrypt")?, &operations::encrypt(key, 32));
        running.push(Running { name, process, channels, work });
    }
    let sides: Vec<Side<'_>> = running.iter().map(Running::side).collect();
    let series = series::measure(&bench.plan, &sides).await?;
    let [watched, alone] = series.as_slice() else { return Ok(()) };
    for side in [watched, alone] {
        let name = |what: &str| format!("Encrypt 32 B, {}: {what}", side.name);
        report.figure(SCENARIO, name("rate"), side.rate().median, "per second");
        report.figure(SCENARIO, name("daemon's CPU"), Spread::of(side.cpu_us.clone()).median, "µs");
    }
    let name = "Encrypt 32 B with three trails, ten rules and Insights, of without";
    report.at_least(name, 0.85, watched.ratio(alone).median);
    drop(sides);
    running.into_iter().try_for_each(Running::stop)
}

/// Each looks at every event, and sends on what is denied.
fn add_rules(instance: &Instance) -> anyhow::Result<()> {
    let mut text = String::new();
    for number in 0..RULES {
        let lines = instance.dir.with_extension(format!("{number}.jsonl"));
        write!(
            text,
            "\n[rules.rule-{number}]\ntargets = [\"target-{number}\"]\n\
             event_pattern = '''{{\"source\": [\"aws.kms\"], \"detail\": {{\"errorCode\": [\"AccessDenied\"]}}}}'''\n\
             [targets.target-{number}]\nfile = '{}'\n",
            lines.display()
        )?;
    }
    Ok(OpenOptions::new().append(true).open(instance.configuration())?.write_all(text.as_bytes())?)
}

async fn make_trails(channel: &Channel) -> anyhow::Result<()> {
    for number in 0..TRAILS {
        let name = Some(format!("trail-{number}"));
        let create = CreateTrailRequest {
            name: name.clone(),
            s3_bucket_name: Some(format!("bucket-{number}")),
            enable_log_file_validation: Some(true),
            ..Default::default()
        };
        ask(channel, "CreateTrail", &create).await?;
        let of = |kind: InsightType| InsightSelector {
            insight_type: Some(kind as i32),
            event_categories: vec![SourceEventCategory::Management as i32, SourceEventCategory::Data as i32],
        };
        let insight_selectors =
            vec![of(InsightType::ApiCallRateInsight), of(InsightType::ApiErrorRateInsight)];
        let put =
            PutInsightSelectorsRequest { trail_name: name.clone(), insight_selectors, ..Default::default() };
        ask(channel, "PutInsightSelectors", &put).await?;
        ask(channel, "StartLogging", &StartLoggingRequest { name }).await?;
    }
    Ok(())
}

async fn ask(channel: &Channel, method: &str, request: &impl Message) -> anyhow::Result<()> {
    let path = PathAndQuery::try_from(format!("/strongroom.cloudtrail.v1.CloudTrailService/{method}"))?;
    load::call(channel, path, Bytes::from(request.encode_to_vec())).await?;
    Ok(())
}
