//! Checks the log against itself and against the rows that it explains: the
//! chain of hashes, the signatures of its heads, every row's MAC, and that
//! each row is the version that the log last spoke of.

use std::collections::{BTreeSet, HashMap, HashSet};

use sha2::{Digest as _, Sha256};
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
/// Rows that are compared with the log in one reading of it: 128 MiB.
const ROWS_AT_ONCE: usize = 1_800_000;
/// How often a row that does not fit is looked at again while it is changed.
const LOOKS: usize = 100;

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
    let mut said = Said::default();
    let mut note = |effect: Effect| {
        said.note(&effect);
    };
    let chain = verify_chain(&*app.store, base.as_ref(), &mut check, &mut note).await.map_err(from_store)?;
    let mut findings: Vec<String> = chain.findings.iter().map(ToString::to_string).collect();
    if chain.more_findings > 0 {
        findings.push(format!("{} more findings are not listed", chain.more_findings));
    }
    said.read_to = chain.last.map_or(Position { writer: 1, sequence: 0 }, |(position, _)| position);
    said.is_whole = findings.is_empty();
    let mut rows = 0;
    loop {
        rows += check_rows(app, base.as_ref(), &mut said, &mut findings, deadline).await?;
        if !said.advance() {
            break;
        }
        let mut note = |effect: Effect| {
            said.note(&effect);
        };
        verify_chain(&*app.store, base.as_ref(), &mut |_| Ok(()), &mut note).await.map_err(from_store)?;
    }
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

/// Every row of a part against the log. Others change rows and log meanwhile, so
/// what does not fit is looked at again with what was logged since.
async fn check_rows(
    app: &App,
    base: Option<&Base>,
    said: &mut Said,
    findings: &mut Vec<String>,
    deadline: Instant,
) -> Result<usize> {
    let mut odd = Vec::new();
    let mut count = 0;
    for kind in Kind::ALL {
        let mut after = None;
        loop {
            let page = app.store.all_rows(kind, after.as_ref(), READ_ROWS).await.map_err(from_store)?;
            let Some(last) = page.last() else { break };
            after = Some(last.id.clone());
            for row in page {
                if !said.covers(&row.id) {
                    continue;
                }
                count += 1;
                said.see(&row.id);
                if said.oddity(app, &row.id, Some(&row), deadline).await?.is_some() {
                    odd.push(row.id);
                }
            }
        }
    }
    odd.extend(said.catch_up(app).await?);
    odd.extend(said.unseen(app, base).await?);
    let odd: BTreeSet<RowId> = odd.into_iter().collect();
    for id in odd {
        for look in 1..=LOOKS {
            // What became too much meanwhile is of the next part.
            if !said.covers(&id) {
                break;
            }
            let row = app.store.row(&id).await.map_err(from_store)?;
            let Some(oddity) = said.oddity(app, &id, row.as_ref(), deadline).await? else { break };
            // Where it was logged of meanwhile, the log may speak of another row.
            if said.catch_up(app).await?.contains(&id) && look < LOOKS {
                continue;
            }
            if oddity.contradicts {
                app.registry.refuse(&id);
            }
            findings.push(oddity.text);
            break;
        }
    }
    Ok(count)
}

/// What the log says of rows, of as many as memory is to hold at once: 64 bytes
/// each. Which those are is told by the hash of their ids.
struct Said {
    rows: HashMap<[u8; 16], Latest>,
    /// The first eight bytes of their hashes are from the first to the second.
    part: (u64, u64),
    /// So many are held.
    most: usize,
    /// The last event that it is from.
    read_to: Position,
    /// Whether nothing was found in the log itself.
    is_whole: bool,
}

/// What the log said last of a row.
struct Latest {
    /// 0 where it was removed.
    version: u64,
    mac: [u8; 32],
    kind: Kind,
    /// Whether it was among the rows that were read.
    is_seen: bool,
}

impl Default for Said {
    fn default() -> Self {
        let read_to = Position { writer: 1, sequence: 0 };
        Said { rows: HashMap::new(), part: (0, u64::MAX), most: ROWS_AT_ONCE, read_to, is_whole: false }
    }
}

/// What is wrong with a row.
struct Oddity {
    text: String,
    /// The log says otherwise: the row is not to be believed.
    contradicts: bool,
}

/// The key of a row in [`Said`].
fn hash_of(id: &RowId) -> [u8; 16] {
    let mut hash = Sha256::new();
    for field in [id.kind.as_str(), &id.region, &id.account, &id.id] {
        hash.update(field);
        hash.update([0]);
    }
    let mut short = [0; 16];
    short.iter_mut().zip(hash.finalize()).for_each(|(to, byte)| *to = byte);
    short
}

fn place(hash: &[u8; 16]) -> u64 {
    (u128::from_be_bytes(*hash) >> 64) as u64
}

impl Said {
    /// On to the part behind this one, in the same memory; not behind the last.
    fn advance(&mut self) -> bool {
        let Some(from) = self.part.1.checked_add(1) else { return false };
        self.rows.clear();
        self.part = (from, u64::MAX);
        true
    }

    fn covers(&self, id: &RowId) -> bool {
        self.covers_hash(&hash_of(id))
    }

    fn covers_hash(&self, hash: &[u8; 16]) -> bool {
        (self.part.0..=self.part.1).contains(&place(hash))
    }

    /// Takes in what an event says of a row of this part; whether it is one. What
    /// is too much is left for the next part.
    fn note(&mut self, effect: &Effect) -> bool {
        let hash = hash_of(&effect.row);
        if !self.covers_hash(&hash) {
            return false;
        }
        let mut mac = [0; 32];
        // Another text than a MAC's fits no row.
        let _ = hex::decode_to_slice(&effect.mac, &mut mac);
        let is_seen = self.rows.get(&hash).is_some_and(|latest| latest.is_seen);
        let latest = Latest { version: effect.version, mac, kind: effect.row.kind, is_seen };
        self.rows.insert(hash, latest);
        while self.rows.len() > self.most {
            self.part.1 = self.part.0 + (self.part.1 - self.part.0) / 2;
            let (from, to) = self.part;
            self.rows.retain(|hash, _| (from..=to).contains(&place(hash)));
        }
        true
    }

    fn see(&mut self, id: &RowId) {
        if let Some(latest) = self.rows.get_mut(&hash_of(id)) {
            latest.is_seen = true;
        }
    }

    /// Reads what was logged since: the rows that it is of.
    async fn catch_up(&mut self, app: &App) -> Result<Vec<RowId>> {
        let mut rows = Vec::new();
        loop {
            let events = app.store.events(self.read_to, READ_ROWS).await.map_err(from_store)?;
            let Some(last) = events.last() else { return Ok(rows) };
            self.read_to = last.position;
            for event in events {
                // An event whose effects cannot be read is the chain's finding.
                let effects: Vec<Effect> = serde_json::from_str(&event.effects).unwrap_or_default();
                for effect in effects {
                    if self.note(&effect) {
                        self.see(&effect.row);
                        rows.push(effect.row);
                    }
                }
            }
        }
    }

    /// The rows that should be there and were not read; the log tells their ids.
    async fn unseen(&self, app: &App, base: Option<&Base>) -> Result<Vec<RowId>> {
        let is_unseen = |latest: &Latest| latest.version > 0 && !latest.is_seen && !latest.kind.is_passing();
        let mut missing: HashSet<[u8; 16]> =
            self.rows.iter().filter(|(_, latest)| is_unseen(latest)).map(|(hash, _)| *hash).collect();
        let mut ids = Vec::new();
        if missing.is_empty() {
            return Ok(ids);
        }
        let mut find = |effect: Effect| {
            if missing.remove(&hash_of(&effect.row)) {
                ids.push(effect.row);
            }
        };
        verify_chain(&*app.store, base, &mut |_| Ok(()), &mut find).await.map_err(from_store)?;
        Ok(ids)
    }

    async fn oddity(
        &self,
        app: &App,
        id: &RowId,
        row: Option<&Row>,
        deadline: Instant,
    ) -> Result<Option<Oddity>> {
        let said = self.rows.get(&hash_of(id));
        let Some(row) = row else {
            let missing = said.is_some_and(|latest| latest.version > 0) && !id.kind.is_passing();
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
            Some(Latest { version: 0, .. }) => {
                contradiction(format!("row {id} was removed, and is there again"))
            }
            Some(Latest { version, .. }) if row.version < *version => contradiction(format!(
                "row {id} is version {}, the log speaks of {version}: an older version was put back",
                row.version
            )),
            Some(Latest { version, mac, .. }) if row.version == *version && row.mac != *mac => {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_is_in_one_part_whatever_memory_holds() {
        let effect = |number: u64| Effect {
            row: RowId {
                kind: Kind::Key,
                region: "us-east-1".into(),
                account: "111122223333".into(),
                id: number.to_string(),
            },
            version: number,
            mac: hex::encode([7; 32]),
        };
        let mut seen = HashMap::new();
        let mut said = Said { most: 16, ..Said::default() };
        let mut parts = 0;
        loop {
            for number in 1..=200 {
                said.note(&effect(number));
                assert!(said.rows.len() <= 16);
            }
            for number in (1..=200).filter(|number| said.covers(&effect(*number).row)) {
                *seen.entry(number).or_insert(0) += 1;
                let latest = said.rows.get(&hash_of(&effect(number).row));
                assert!(latest.is_some_and(|latest| latest.version == number && latest.mac == [7; 32]));
            }
            parts += 1;
            if !said.advance() {
                break;
            }
        }
        assert!(parts > 200 / 16, "{parts}");
        assert_eq!(seen.len(), 200);
        assert!(seen.values().all(|times| *times == 1));
    }
}
