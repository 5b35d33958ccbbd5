//! Tags of keys.

use std::collections::BTreeMap;

use super::key::{marker, unmarked};
use super::prelude::*;
use crate::registry::LoadedKey;

/// KMS's limit of tags on a key.
const TAGS_MAX: usize = 50;
/// KMS's default and largest page of ListResourceTags.
const TAGS_PAGE_MAX: i32 = 50;

/// Adds tags to a key, or replaces their values.
pub struct TagResource;

impl Operation for TagResource {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "TagResource";
    const ACTION: &'static str = "kms:TagResource";
    const READ_ONLY: bool = false;
    type Request = kms::TagResourceRequest;
    type Response = kms::TagResourceResponse;
    type On = Key;

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        by_key_id_only(&request.key_id)
    }

    async fn run(call: &mut Call, request: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        let new = tags(&request.tags)?;
        retag(call, &key, |tags| {
            tags.extend(new);
            match tags.len() > TAGS_MAX {
                true => {
                    Err(Error::new(Exception::LimitExceeded, format!("A key has at most {TAGS_MAX} tags.")))
                }
                false => Ok(()),
            }
        })?;
        Ok(kms::TagResourceResponse {})
    }
}

/// Removes tags from a key.
pub struct UntagResource;

impl Operation for UntagResource {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "UntagResource";
    const ACTION: &'static str = "kms:UntagResource";
    const READ_ONLY: bool = false;
    type Request = kms::UntagResourceRequest;
    type Response = kms::UntagResourceResponse;
    type On = Key;

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        by_key_id_only(&request.key_id)
    }

    async fn run(call: &mut Call, request: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        request.tag_keys.iter().try_for_each(|key| not_reserved(key))?;
        retag(call, &key, |tags| {
            tags.retain(|key, _| !request.tag_keys.contains(key));
            Ok(())
        })?;
        Ok(kms::UntagResourceResponse {})
    }
}

/// Lists a key's tags.
pub struct ListResourceTags;

impl Operation for ListResourceTags {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "ListResourceTags";
    const ACTION: &'static str = "kms:ListResourceTags";
    const READ_ONLY: bool = true;
    type Request = kms::ListResourceTagsRequest;
    type Response = kms::ListResourceTagsResponse;
    type On = Key;

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        by_key_id_only(&request.key_id)
    }

    async fn run(_: &mut Call, request: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        let after = request.marker.as_deref().map(unmarked).transpose()?;
        let limit = usize::try_from(request.limit.unwrap_or(TAGS_PAGE_MAX).min(TAGS_PAGE_MAX)).unwrap_or(1);
        let behind = |key: &String| after.as_ref().is_none_or(|after| key > after);
        let mut rest = key.held.value.tags.iter().filter(|(key, _)| behind(key));
        let tags: Vec<_> = rest.by_ref().take(limit).collect();
        let truncated = rest.next().is_some();
        let next_marker = tags.last().filter(|_| truncated).map(|(key, _)| marker(key));
        let tag = |(key, value): (&String, &String)| kms::Tag {
            tag_key: Some(key.clone()),
            tag_value: Some(value.clone()),
        };
        Ok(kms::ListResourceTagsResponse {
            tags: tags.into_iter().map(tag).collect(),
            next_marker,
            truncated: Some(truncated),
        })
    }
}

/// The tags of a request.
///
/// # Errors
/// TagException.
pub(super) fn tags(tags: &[kms::Tag]) -> Result<BTreeMap<String, String>> {
    let mut map = BTreeMap::new();
    for tag in tags {
        let (key, value) = (given(&tag.tag_key)?, given(&tag.tag_value)?);
        not_reserved(key)?;
        if map.insert(key.clone(), value.clone()).is_some() {
            return Err(Error::new(Exception::Tag, "Duplicate tag keys"));
        }
    }
    if map.len() > TAGS_MAX {
        return Err(Error::new(Exception::Tag, "Too many tags"));
    }
    Ok(map)
}

fn not_reserved(key: &str) -> Result<()> {
    match key.to_lowercase().starts_with("aws:") {
        true => Err(Error::new(Exception::Tag, "Tags beginning with aws: are reserved")),
        false => Ok(()),
    }
}

fn retag(
    call: &mut Call,
    key: &LoadedKey,
    change: impl FnOnce(&mut BTreeMap<String, String>) -> Result<()>,
) -> Result<()> {
    call.check(Stage::Change, key)?;
    let mut value = key.held.value.clone();
    change(&mut value.tags)?;
    call.change(Draft::replace(&key.held, &value)?);
    Ok(())
}
