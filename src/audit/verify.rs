//! Checks the log against itself and against the rows that it explains: the
//! chain of hashes, the signatures of its heads, every row's MAC, and that
//! each row is the version that the log last spoke of.

use std::collections::HashMap;

use tokio::time::Instant;

use crate::app::App;
use crate::error::Result;
use crate::hsm::{Curve, Hash, Material, Scheme};
use crate::key::public;
use crate::proto::cloudtrail::VerifyEventsResponse;
use crate::registry::from_store;
use crate::store::{Kind, Position, RowId, SignedHead, verify_chain};

const READ_ROWS: u32 = 512;
/// The kinds of rows that carry a MAC.
const SEALED: [Kind; 5] = [Kind::Key, Kind::BackingKey, Kind::Alias, Kind::Intent, Kind::System];

/// Checks everything; `expected` is a head that was kept outside.
pub async fn verify(app: &App, expected: Option<&str>, deadline: Instant) -> Result<VerifyEventsResponse> {
    let mut last: Option<SignedHead> = None;
    let mut check = |head: &SignedHead| {
        last = Some(head.clone());
        check_head(app, head)
    };
    let chain = verify_chain(&*app.store, &mut check).await.map_err(from_store)?;
    let mut findings: Vec<String> = chain.findings.iter().map(ToString::to_string).collect();
    if chain.more_findings > 0 {
        findings.push(format!("{} more findings are not listed", chain.more_findings));
    }
    let rows = rows(app, &chain.row_effects, &mut findings, deadline).await?;
    if let Some(expected) = expected {
        contains(app, expected, &mut findings).await?;
    }
    let end = chain.last.map_or(Position { writer: 0, sequence: 0 }, |(position, _)| position);
    let signed = last
        .as_ref()
        .filter(|head| head.position.writer == end.writer)
        .map_or(0, |head| head.position.sequence);
    Ok(VerifyEventsResponse {
        events: i64::try_from(chain.events).ok(),
        rows: i64::try_from(rows).ok(),
        signed_heads: i64::try_from(chain.heads).ok(),
        unsigned_events: i64::try_from(end.sequence.saturating_sub(signed)).ok(),
        head: last.map(|head| format!("{}:{}", super::stream::token(head.position), hex::encode(head.hash))),
        head_public_key: Some(pem(&app.identity.head_public_key.0)),
        findings,
    })
}

fn check_head(app: &App, head: &SignedHead) -> Result<(), String> {
    let digest = public::digest(Hash::Sha256, head.message().as_bytes());
    let spki = &app.identity.head_public_key.0;
    let material = Material::Ec(Curve::P256);
    match public::verify(material, Scheme::Ecdsa, Some(Hash::Sha256), spki, &digest, &head.signature) {
        true => Ok(()),
        false => Err("it was not made by this cluster's head-signing key".to_owned()),
    }
}

async fn rows(
    app: &App,
    effects: &HashMap<RowId, (u64, String)>,
    findings: &mut Vec<String>,
    deadline: Instant,
) -> Result<usize> {
    let mut seen = std::collections::HashSet::new();
    for kind in SEALED {
        let mut after = None;
        loop {
            let page = app.store.all_rows(kind, after.as_ref(), READ_ROWS).await.map_err(from_store)?;
            let Some(last) = page.last() else { break };
            after = Some(last.id.clone());
            for row in page {
                if !app.registry.is_sealed(&row, deadline).await? {
                    findings.push(format!("row {} was changed: its MAC does not fit", row.id));
                }
                match effects.get(&row.id) {
                    Some((version, mac)) if row.version == *version && hex::encode(&row.mac) != *mac => {
                        findings.push(format!("row {} is not the one that the log speaks of", row.id));
                    }
                    Some((0, _)) => findings.push(format!("row {} was removed, and is there again", row.id)),
                    Some((version, _)) if row.version < *version => findings.push(format!(
                        "row {} is version {}, the log speaks of {version}: an older version was put back",
                        row.id, row.version
                    )),
                    Some(_) => (),
                    // An intent answers nobody and has no event.
                    None if kind == Kind::Intent => (),
                    None => findings.push(format!("row {} is in no event", row.id)),
                }
                seen.insert(row.id);
            }
        }
    }
    // An intent is removed without an event when it is settled.
    let missing = effects
        .iter()
        .filter(|(id, (version, _))| *version > 0 && id.kind != Kind::Intent && !seen.contains(id));
    findings.extend(
        missing.map(|(id, _)| format!("row {id} is missing: the log does not say that it was removed")),
    );
    Ok(seen.len())
}

/// Whether the log still contains a head that was kept outside.
async fn contains(app: &App, expected: &str, findings: &mut Vec<String>) -> Result<()> {
    let parsed =
        expected.split_once(':').and_then(|(token, hash)| Some((super::stream::position(token)?, hash)));
    let Some((position, hash)) = parsed else {
        findings.push("The expected head is not of the form position:hash.".to_owned());
        return Ok(());
    };
    match app.store.hash_at(position).await.map_err(from_store)? {
        Some(found) if hex::encode(found) == hash => (),
        _ => findings.push(format!(
            "The log does not contain the expected head {expected}: it was rolled back or rewritten"
        )),
    }
    Ok(())
}

fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    const LINE: usize = 64;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(LINE).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"))
}
