//! The end of a key: scheduled, cancelled; [`crate::jobs`] carries it out.

use super::prelude::*;
use crate::key::{DAY_MS, Deletion};

const WINDOW_DAYS: i32 = 30;

/// Deletes a key after a waiting period.
pub struct ScheduleKeyDeletion;

impl Operation for ScheduleKeyDeletion {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "ScheduleKeyDeletion";
    const ACTION: &'static str = "kms:ScheduleKeyDeletion";
    const READ_ONLY: bool = false;
    type Request = kms::ScheduleKeyDeletionRequest;
    type Response = kms::ScheduleKeyDeletionResponse;
    type On = Key;

    fn defaults(request: &mut Self::Request) {
        request.pending_window_in_days.get_or_insert(WINDOW_DAYS);
    }

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        by_key_id_only(&request.key_id)
    }

    async fn run(call: &mut Call, request: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        call.check(Stage::Change, &key)?;
        let window_days = request.pending_window_in_days.unwrap_or(WINDOW_DAYS);
        let mut value = key.held.value.clone();
        // A primary key's waiting period begins with the end of its last replica.
        let waits = value.replicas().next().is_some();
        let due_ms = (!waits).then(|| call.now_ms + i64::from(window_days) * DAY_MS);
        value.state = match waits {
            true => kms::KeyState::PendingReplicaDeletion,
            false => kms::KeyState::PendingDeletion,
        };
        value.deletion = Some(Deletion { due_ms, window_days });
        call.change(Draft::replace(&key.held, &value)?);
        Ok(kms::ScheduleKeyDeletionResponse {
            key_id: Some(key.arn.clone()),
            deletion_date: due_ms.map(timestamp),
            key_state: Some(value.state as i32),
            pending_window_in_days: Some(window_days),
        })
    }
}

/// Stops a scheduled deletion.
pub struct CancelKeyDeletion;

impl Operation for CancelKeyDeletion {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "CancelKeyDeletion";
    const ACTION: &'static str = "kms:CancelKeyDeletion";
    const READ_ONLY: bool = false;
    type Request = kms::CancelKeyDeletionRequest;
    type Response = kms::CancelKeyDeletionResponse;
    type On = Key;

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        by_key_id_only(&request.key_id)
    }

    async fn run(call: &mut Call, _: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        call.check(Stage::PendingDeletion, &key)?;
        let mut value = key.held.value.clone();
        // Without its material it is not usable by being enabled.
        let lacks = value.origin == kms::OriginType::External && value.expiration.is_none();
        value.state = if lacks { kms::KeyState::PendingImport } else { kms::KeyState::Disabled };
        value.deletion = None;
        call.change(Draft::replace(&key.held, &value)?);
        Ok(kms::CancelKeyDeletionResponse { key_id: Some(key.arn.clone()) })
    }
}
