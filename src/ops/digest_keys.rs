//! The keys that sign digests.

use super::prelude::*;
use crate::audit::trail::{DigestKey, keys};
use crate::proto::cloudtrail;

/// Lists public keys by the time in which they signed.
pub struct ListPublicKeys;

impl Operation for ListPublicKeys {
    const SERVICE: Service = Service::CloudTrail;
    const NAME: &'static str = "ListPublicKeys";
    const ACTION: &'static str = "cloudtrail:ListPublicKeys";
    const READ_ONLY: bool = true;
    type Request = cloudtrail::ListPublicKeysRequest;
    type Response = cloudtrail::ListPublicKeysResponse;
    type On = Account;

    fn on(_: &Self::Request) -> Result<()> {
        Ok(())
    }

    async fn run(call: &mut Call, request: &Self::Request, _: Allowed<Account>) -> Result<Self::Response> {
        if request.next_token.is_some() {
            return Err(Error::new(Exception::InvalidToken, "Reserved for future use."));
        }
        let ms = |time: &prost_types::Timestamp| time.seconds.saturating_mul(1000);
        // Without a time those of now; one alone is a range up to, or from, now.
        let end_ms = request.end_time.as_ref().map_or(call.now_ms, ms);
        let start_ms = request.start_time.as_ref().map_or(end_ms, ms);
        if start_ms > end_ms {
            return Err(Error::new(Exception::InvalidTimeRange, "The start time is after the end time."));
        }
        let all = keys::all(&call.app, call.deadline).await?;
        let list = all.iter().filter(|key| key.value.from_ms <= end_ms && start_ms <= key.value.until_ms);
        Ok(cloudtrail::ListPublicKeysResponse {
            public_key_list: list.map(shown).collect(),
            next_token: None,
        })
    }
}

fn shown(key: &Held<DigestKey>) -> cloudtrail::PublicKey {
    cloudtrail::PublicKey {
        value: Some(key.value.public_key.0.to_vec()),
        validity_start_time: Some(timestamp(key.value.from_ms)),
        validity_end_time: Some(timestamp(key.value.until_ms)),
        fingerprint: Some(key.id.id.clone()),
    }
}

/// Makes the next key before the last one's time has passed.
pub struct RotateDigestKey;

impl Operation for RotateDigestKey {
    const SERVICE: Service = Service::CloudTrail;
    const NAME: &'static str = "RotateDigestKey";
    const ACTION: &'static str = "cloudtrail:RotateDigestKey";
    const READ_ONLY: bool = false;
    type Request = cloudtrail::RotateDigestKeyRequest;
    type Response = cloudtrail::RotateDigestKeyResponse;
    type On = Account;

    fn on(_: &Self::Request) -> Result<()> {
        Ok(())
    }

    async fn run(call: &mut Call, _: &Self::Request, _: Allowed<Account>) -> Result<Self::Response> {
        management_only(call)?;
        let all = keys::all(&call.app, call.deadline).await?;
        let (drafts, made) = keys::next(&call.app, &all, call.now_ms, call.deadline).await?;
        drafts.into_iter().for_each(|draft| call.change(draft));
        Ok(cloudtrail::RotateDigestKeyResponse { fingerprint: Some(made.id.id) })
    }
}
