//! Tags of trails.

use std::collections::BTreeMap;

use super::prelude::*;
use super::trail::{TrailName, arn};
use crate::audit::trail::name::parse_arn;
use crate::proto::cloudtrail;

/// Tags of a trail.
const TAGS_MAX: usize = 50;
/// Trails of one ListTags.
const RESOURCES_MAX: usize = 20;

/// Adds tags, or changes their values.
pub struct AddTags;

impl Operation for AddTags {
    const SERVICE: Service = Service::CloudTrail;
    const NAME: &'static str = "AddTags";
    const ACTION: &'static str = "cloudtrail:AddTags";
    const READ_ONLY: bool = false;
    type Request = cloudtrail::AddTagsRequest;
    type Response = cloudtrail::AddTagsResponse;
    type On = TrailName;

    fn on(request: &Self::Request) -> Result<String> {
        resource(given(&request.resource_id)?)
    }

    async fn run(call: &mut Call, request: &Self::Request, on: Allowed<TrailName>) -> Result<Self::Response> {
        let held = existing(call, &on).await?;
        let mut trail = held.value.clone();
        add(&mut trail.tags, &request.tags_list)?;
        call.change(Draft::replace(&held, &trail)?);
        Ok(cloudtrail::AddTagsResponse {})
    }
}

/// Removes tags: those of a key, or of a key and a value.
pub struct RemoveTags;

impl Operation for RemoveTags {
    const SERVICE: Service = Service::CloudTrail;
    const NAME: &'static str = "RemoveTags";
    const ACTION: &'static str = "cloudtrail:RemoveTags";
    const READ_ONLY: bool = false;
    type Request = cloudtrail::RemoveTagsRequest;
    type Response = cloudtrail::RemoveTagsResponse;
    type On = TrailName;

    fn on(request: &Self::Request) -> Result<String> {
        resource(given(&request.resource_id)?)
    }

    async fn run(call: &mut Call, request: &Self::Request, on: Allowed<TrailName>) -> Result<Self::Response> {
        let held = existing(call, &on).await?;
        let mut trail = held.value.clone();
        for tag in &request.tags_list {
            trail.tags.remove(given(&tag.key)?);
        }
        call.change(Draft::replace(&held, &trail)?);
        Ok(cloudtrail::RemoveTagsResponse {})
    }
}

/// Shows the tags of trails.
pub struct ListTags;

impl Operation for ListTags {
    const SERVICE: Service = Service::CloudTrail;
    const NAME: &'static str = "ListTags";
    const ACTION: &'static str = "cloudtrail:ListTags";
    const READ_ONLY: bool = true;
    type Request = cloudtrail::ListTagsRequest;
    type Response = cloudtrail::ListTagsResponse;
    type On = TrailName;

    fn on(request: &Self::Request) -> Result<String> {
        if request.resource_id_list.len() > RESOURCES_MAX {
            return Err(Error::validation(format!("ResourceIdList has at most {RESOURCES_MAX} ARNs.")));
        }
        let first = request.resource_id_list.first();
        resource(first.ok_or_else(|| Error::validation("ResourceIdList has at least one ARN."))?)
    }

    async fn run(call: &mut Call, request: &Self::Request, _: Allowed<TrailName>) -> Result<Self::Response> {
        let mut list = Vec::new();
        for id in &request.resource_id_list {
            let trail = call.allow::<TrailName>(Self::ACTION, resource(id)?).await?;
            let held = existing(call, &trail).await?;
            let tag = |(key, value): (&String, &String)| cloudtrail::Tag {
                key: Some(key.clone()),
                value: Some(value.clone()).filter(|value| !value.is_empty()),
            };
            list.push(cloudtrail::ResourceTag {
                resource_id: Some(id.clone()),
                tags_list: held.value.tags.iter().map(tag).collect(),
            });
        }
        Ok(cloudtrail::ListTagsResponse { resource_tag_list: list, next_token: None })
    }
}

/// Adds to tags, within CloudTrail's rules.
///
/// # Errors
/// InvalidTagParameterException, TagsLimitExceededException.
pub(super) fn add(tags: &mut BTreeMap<String, String>, new: &[cloudtrail::Tag]) -> Result<()> {
    let mut seen = std::collections::BTreeSet::new();
    for tag in new {
        let key = given(&tag.key)?;
        if !seen.insert(key) {
            return Err(Error::new(
                Exception::InvalidTagParameter,
                format!("The tag key {key} is there twice."),
            ));
        }
        if key.starts_with("aws:") {
            return Err(Error::new(
                Exception::InvalidTagParameter,
                "Tag keys that begin with aws: are reserved.",
            ));
        }
        tags.insert(key.clone(), tag.value.clone().unwrap_or_default());
    }
    if tags.len() > TAGS_MAX {
        return Err(Error::new(
            Exception::TagsLimitExceeded,
            format!("The number of tags per trail has exceeded the permitted amount: {TAGS_MAX}."),
        ));
    }
    Ok(())
}

/// A trail's ARN; other resources of CloudTrail are not served.
fn resource(id: &str) -> Result<String> {
    let of_another_type = |part: &str| id.contains(&format!(":{part}/"));
    if id.starts_with("arn:") && (of_another_type("eventdatastore") || of_another_type("channel")) {
        return Err(Error::new(Exception::ResourceTypeNotSupported, "Only trails have tags here."));
    }
    parse_arn(id)?;
    Ok(id.to_owned())
}

async fn existing(call: &Call, trail: &TrailName) -> Result<Held<crate::audit::trail::Trail>> {
    trail.existing(call).await.map_err(|error| match error.exception {
        Exception::TrailNotFound => {
            Error::new(Exception::ResourceNotFound, format!("The resource {} is not found.", arn(&trail.0)))
        }
        _ => error,
    })
}
