//! Which events a trail delivers.

use super::prelude::*;
use super::trail::{TrailName, arn, by_name};
use crate::audit::trail::selector::{Advanced, Basic, FieldSelector, KEY_TYPE, Selectors};
use crate::proto::cloudtrail;

/// Sets them.
pub struct PutEventSelectors;

impl Operation for PutEventSelectors {
    const SERVICE: Service = Service::CloudTrail;
    const NAME: &'static str = "PutEventSelectors";
    const ACTION: &'static str = "cloudtrail:PutEventSelectors";
    const READ_ONLY: bool = false;
    type Request = cloudtrail::PutEventSelectorsRequest;
    type Response = cloudtrail::PutEventSelectorsResponse;
    type On = TrailName;

    fn on(request: &Self::Request) -> Result<String> {
        by_name(&request.trail_name)
    }

    async fn run(call: &mut Call, request: &Self::Request, on: Allowed<TrailName>) -> Result<Self::Response> {
        let held = on.at_home(call).await?;
        let selectors = match (&request.event_selectors[..], &request.advanced_event_selectors[..]) {
            (basic, []) => Selectors::Basic(basic.iter().map(read_basic).collect::<Result<_>>()?),
            ([], advanced) => Selectors::Advanced(advanced.iter().map(read_advanced).collect()),
            _ => return Err(refused("A trail has event selectors or advanced event selectors, not both.")),
        };
        selectors.check()?;
        let mut trail = held.value.clone();
        trail.selectors = selectors;
        let (event_selectors, advanced_event_selectors) = written(&trail.selectors);
        call.change(Draft::replace(&held, &trail)?);
        Ok(cloudtrail::PutEventSelectorsResponse {
            trail_arn: Some(arn(&on.0)),
            event_selectors,
            advanced_event_selectors,
        })
    }
}

/// Shows them.
pub struct GetEventSelectors;

impl Operation for GetEventSelectors {
    const SERVICE: Service = Service::CloudTrail;
    const NAME: &'static str = "GetEventSelectors";
    const ACTION: &'static str = "cloudtrail:GetEventSelectors";
    const READ_ONLY: bool = true;
    type Request = cloudtrail::GetEventSelectorsRequest;
    type Response = cloudtrail::GetEventSelectorsResponse;
    type On = TrailName;

    fn on(request: &Self::Request) -> Result<String> {
        by_name(&request.trail_name)
    }

    async fn run(call: &mut Call, _: &Self::Request, on: Allowed<TrailName>) -> Result<Self::Response> {
        let held = on.existing(call).await?;
        let (event_selectors, advanced_event_selectors) = written(&held.value.selectors);
        Ok(cloudtrail::GetEventSelectorsResponse {
            trail_arn: Some(arn(&on.0)),
            event_selectors,
            advanced_event_selectors,
        })
    }
}

fn refused(why: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(Exception::InvalidEventSelectors, why)
}

fn read_basic(selector: &cloudtrail::EventSelector) -> Result<Basic> {
    use cloudtrail::ReadWriteType as Access;
    let mut keys = Vec::new();
    for resource in &selector.data_resources {
        if resource.r#type.as_deref() != Some(KEY_TYPE) || resource.values.is_empty() {
            return Err(refused(format!(
                "A data resource is of type {KEY_TYPE} and has at least one value."
            )));
        }
        keys.extend(resource.values.iter().cloned());
    }
    Ok(Basic {
        read_only: match choice(selector.read_write_type, Access::All) {
            Access::ReadOnly => Some(true),
            Access::WriteOnly => Some(false),
            Access::All | Access::Unspecified => None,
        },
        management: selector.include_management_events.unwrap_or(true),
        keys,
        excluded_sources: selector.exclude_management_event_sources.clone(),
    })
}

fn read_advanced(selector: &cloudtrail::AdvancedEventSelector) -> Advanced {
    let field = |field: &cloudtrail::AdvancedFieldSelector| FieldSelector {
        field: field.field.clone().unwrap_or_default(),
        equals: field.equals.clone(),
        starts_with: field.starts_with.clone(),
        ends_with: field.ends_with.clone(),
        not_equals: field.not_equals.clone(),
        not_starts_with: field.not_starts_with.clone(),
        not_ends_with: field.not_ends_with.clone(),
    };
    Advanced { name: selector.name.clone(), fields: selector.field_selectors.iter().map(field).collect() }
}

type Written = (Vec<cloudtrail::EventSelector>, Vec<cloudtrail::AdvancedEventSelector>);

fn written(selectors: &Selectors) -> Written {
    match selectors {
        Selectors::Basic(all) => (all.iter().map(write_basic).collect(), Vec::new()),
        Selectors::Advanced(all) => (Vec::new(), all.iter().map(write_advanced).collect()),
    }
}

fn write_basic(selector: &Basic) -> cloudtrail::EventSelector {
    use cloudtrail::ReadWriteType as Access;
    let access = match selector.read_only {
        Some(true) => Access::ReadOnly,
        Some(false) => Access::WriteOnly,
        None => Access::All,
    };
    let keys = cloudtrail::DataResource { r#type: Some(KEY_TYPE.to_owned()), values: selector.keys.clone() };
    cloudtrail::EventSelector {
        read_write_type: Some(access as i32),
        include_management_events: Some(selector.management),
        data_resources: Some(keys).filter(|keys| !keys.values.is_empty()).into_iter().collect(),
        exclude_management_event_sources: selector.excluded_sources.clone(),
    }
}

fn write_advanced(selector: &Advanced) -> cloudtrail::AdvancedEventSelector {
    let field = |field: &FieldSelector| cloudtrail::AdvancedFieldSelector {
        field: Some(field.field.clone()),
        equals: field.equals.clone(),
        starts_with: field.starts_with.clone(),
        ends_with: field.ends_with.clone(),
        not_equals: field.not_equals.clone(),
        not_starts_with: field.not_starts_with.clone(),
        not_ends_with: field.not_ends_with.clone(),
    };
    cloudtrail::AdvancedEventSelector {
        name: selector.name.clone(),
        field_selectors: selector.fields.iter().map(field).collect(),
    }
}
