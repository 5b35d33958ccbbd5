//! Checks the log against itself and against the rows that it explains: the
//! chain of hashes, the signatures of its heads, every row's MAC, and that
//! each row is the version that the log last spoke of.

use std::collections::{HashMap, HashSet};

use tokio::time::Instant;

use super::retention;
use crate::app::App;
use crate::error::Result;
use crate::hsm::{Curve, Hash, Material, Scheme};
use crate::key::public;
use crate::proto::cloudtrail::VerifyEventsResponse;
use crate::registry::from_store;
use crate::store::{Base, Effect, Kind, Position, Row, RowId, SignedHead, verify_chain};

const READ_ROWS: u32 = 512;
/// How often a row that does not fit is looked at again.
const LOOKS: usize = 3;

/// Checks everything, and has rows refused that the log contradicts;
/// `expected` is a head that was kept outside.
pub async fn verify(app: &App, expected: Option<&str>, deadline: Instant) -> Result<VerifyEventsResponse> {
    let _begins_here = app.log_base.read().await;
    let base = retention::base(app, deadline).await?;
    let mut last: Option<SignedHead> = None;
    let mut check = |head: &SignedHead| {
        last = Some(head.clone());
        check_head(app, head)
    };
    let chain = verify_chain(&*app.store, base.as_ref(), &mut check).await.map_err(from_store)?;
    let mut findings: Vec<String> = chain.findings.iter().map(ToString::to_string).collect();
    if chain.more_findings > 0 {
        findings.push(format!("{} more findings are not listed", chain.more_findings));
    }
    let read_to = chain.last.map_or(Position { writer: 1, sequence: 0 }, |(position, _)| position);
    let mut said = Said { rows: chain.row_effects, read_to, is_whole: findings.is_empty() };
    let rows = rows(app, &mut said, &mut findings, deadline).await?;
    if let Some(expected) = expected {
        contains(app, base.as_ref(), expected, &mut findings).await?;
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
        base: base.map(|base| format!("{}:{}", super::stream::token(base.position), hex::encode(base.hash))),
        head_public_key: Some(pem(&app.identity.head_public_key.0)),
        findings,
    })
}

/// Why a head's signature is not good.
pub(super) fn check_head(app: &App, head: &SignedHead) -> Result<(), String> {
    let digest = public::digest(Hash::Sha256, head.message().as_bytes());
    let spki = &app.identity.head_public_key.0;
    let material = Material::Ec(Curve::P256);
    match public::verify(material, Scheme::Ecdsa, Some(Hash::Sha256), spki, &digest, &head.signature) {
        true => Ok(()),
        false => Err("it was not made by this cluster's head-signing key".to_owned()),
    }
}

/// Every row against the log. Others change rows and log meanwhile, so what
/// does not fit is looked at again with what was logged since.
async fn rows(app: &App, said: &mut Said, findings: &mut Vec<String>, deadline: Instant) -> Result<usize> {
    let mut seen = HashSet::new();
    let mut odd = Vec::new();
    for kind in Kind::ALL {
        let mut after = None;
        loop {
            let page = app.store.all_rows(kind, after.as_ref(), READ_ROWS).await.map_err(from_store)?;
            let Some(last) = page.last() else { break };
            after = Some(last.id.clone());
            for row in page {
                if said.oddity(app, &row.id, Some(&row), deadline).await?.is_some() {
                    odd.push(row.id.clone());
                }
                seen.insert(row.id);
            }
        }
    }
    odd.extend(said.rows.keys().filter(|id| !seen.contains(id)).cloned());
    for look in 1..=LOOKS {
        said.catch_up(app).await?;
        let mut still = Vec::new();
        for id in odd {
            let row = app.store.row(&id).await.map_err(from_store)?;
            let Some(oddity) = said.oddity(app, &id, row.as_ref(), deadline).await? else { continue };
            if look == LOOKS {
                if oddity.contradicts {
                    app.registry.refuse(&id);
                }
                findings.push(oddity.text);
            }
            still.push(id);
        }
        odd = still;
    }
    Ok(seen.len())
}

/// What the log says of each row: its latest version and its MAC in hex; 0 and
/// nothing where it was removed.
struct Said {
    rows: HashMap<RowId, (u64, String)>,
    /// The last event that it is from.
    read_to: Position,
    /// Whether nothing was found in the log itself.
    is_whole: bool,
}

/// What is wrong with a row.
struct Oddity {
    text: String,
    /// The log says otherwise: the row is not to be believed.
    contradicts: bool,
}

impl Said {
    /// Reads what was logged since.
    async fn catch_up(&mut self, app: &App) -> Result<()> {
        loop {
            let events = app.store.events(self.read_to, READ_ROWS).await.map_err(from_store)?;
            let Some(last) = events.last() else { return Ok(()) };
            self.read_to = last.position;
            for event in events {
                // An event whose effects cannot be read is the chain's finding.
                let effects: Vec<Effect> = serde_json::from_str(&event.effects).unwrap_or_default();
                self.rows
                    .extend(effects.into_iter().map(|effect| (effect.row, (effect.version, effect.mac))));
            }
        }
    }

    /// What does not fit between a row as it is, or is not, and the log.
    async fn oddity(
        &self,
        app: &App,
        id: &RowId,
        row: Option<&Row>,
        deadline: Instant,
    ) -> Result<Option<Oddity>> {
        let said = self.rows.get(id);
        let Some(row) = row else {
            let missing = said.is_some_and(|(version, _)| *version > 0) && !id.kind.is_passing();
            return Ok(missing.then(|| Oddity {
                text: format!("row {id} is missing: the log does not say that it was removed"),
                contradicts: false,
            }));
        };
        if !app.registry.is_sealed(row, deadline).await? {
            let text = format!("row {id} was changed: its MAC does not fit");
            return Ok(Some(Oddity { text, contradicts: false }));
        }
        let contradiction = |text| Some(Oddity { text, contradicts: true });
        Ok(match said {
            Some((0, _)) => contradiction(format!("row {id} was removed, and is there again")),
            Some((version, _)) if row.version < *version => contradiction(format!(
                "row {id} is version {}, the log speaks of {version}: an older version was put back",
                row.version
            )),
            Some((version, mac)) if row.version == *version && hex::encode(&row.mac) != *mac => {
                contradiction(format!("row {id} is not the one that the log speaks of"))
            }
            Some(_) => None,
            // An intent answers nobody and has no event.
            None if id.kind == Kind::Intent => None,
            // Where nothing is missing, it is one that was removed long ago.
            None => Some(Oddity { text: format!("row {id} is in no event"), contradicts: self.is_whole }),
        })
    }
}

/// Whether the log still contains a head that was kept outside.
async fn contains(app: &App, base: Option<&Base>, expected: &str, findings: &mut Vec<String>) -> Result<()> {
    let parsed =
        expected.split_once(':').and_then(|(token, hash)| Some((super::stream::position(token)?, hash)));
    let Some((position, hash)) = parsed else {
        findings.push("The expected head is not of the form position:hash.".to_owned());
        return Ok(());
    };
    if base.is_some_and(|base| position < base.position) {
        findings.push(format!(
            "The log begins after the expected head {expected}: whether it contained it cannot be told"
        ));
        return Ok(());
    }
    let found = match base.filter(|base| base.position == position) {
        Some(base) => Some(base.hash),
        None => app.store.hash_at(position).await.map_err(from_store)?,
    };
    match found {
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
