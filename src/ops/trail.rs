//! Trails: made, changed, shown, deleted; [`crate::audit::trail`] delivers.

use super::prelude::*;
use crate::audit::trail::bucket::BucketError;
use crate::audit::trail::{Delivery, Logging, Trail, name};
use crate::proto::cloudtrail;
use crate::registry::from_store;
use crate::resource::Resource;
use crate::store::Kind;

/// Trails of an account and Region, as in CloudTrail.
const TRAILS_MAX: usize = 5;
/// Trails of a daemon.
const ALL_TRAILS_MAX: u32 = 10_000;
/// How long it may take to learn whether a bucket is there.
const BUCKET_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(3);

/// A trail by its name or ARN, whether there is one or not.
#[derive(Debug)]
pub struct TrailName(pub RowId);

impl Resource for TrailName {
    type Name = String;

    async fn resolve(call: &mut Call, name: String) -> Result<Self> {
        let (region, account, name) = if name.starts_with("arn:") {
            name::parse_arn(&name)?
        } else {
            name::check(&name)?;
            (call.region().to_owned(), call.account().to_owned(), name)
        };
        Ok(TrailName(RowId { kind: Kind::Trail, region, account, id: name }))
    }

    fn arn(&self) -> String {
        arn(&self.0)
    }

    fn account(&self) -> Option<&str> {
        Some(&self.0.account)
    }
}

/// A trail's ARN, from its row.
pub(super) fn arn(id: &RowId) -> String {
    name::arn(&id.region, &id.account, &id.id)
}

impl TrailName {
    /// Its row.
    ///
    /// # Errors
    /// TrailNotFoundException.
    pub(super) async fn existing(&self, call: &Call) -> Result<Held<Trail>> {
        let row = call.app.store.row(&self.0).await.map_err(from_store)?;
        let unknown = || {
            Error::new(
                Exception::TrailNotFound,
                format!("Unknown trail: {} for the user: {}", self.arn(), call.account()),
            )
        };
        call.app.registry.open(row.ok_or_else(unknown)?, call.deadline).await
    }

    /// Its row, to be changed: only where its home is.
    ///
    /// # Errors
    /// TrailNotFoundException, InvalidHomeRegionException.
    pub(super) async fn at_home(&self, call: &Call) -> Result<Held<Trail>> {
        let held = self.existing(call).await?;
        if self.0.region != call.region() {
            let home = &self.0.region;
            let text = format!("Trail {} can be changed in its home Region only: {home}.", self.arn());
            return Err(Error::new(Exception::InvalidHomeRegion, text));
        }
        Ok(held)
    }

    /// The row of its delivery; none before logging was first started.
    pub(super) async fn delivery(&self, call: &Call) -> Result<Option<Held<Delivery>>> {
        let id = self.delivery_id();
        match call.app.store.row(&id).await.map_err(from_store)? {
            Some(row) => call.app.registry.open(row, call.deadline).await.map(Some),
            None => Ok(None),
        }
    }

    pub(super) fn delivery_id(&self) -> RowId {
        RowId { kind: Kind::Delivery, ..self.0.clone() }
    }
}

/// The trail that a member names.
pub(super) fn by_name(name: &Option<String>) -> Result<String> {
    Ok(given(name)?.clone())
}

/// Makes a trail.
pub struct CreateTrail;

impl Operation for CreateTrail {
    const SERVICE: Service = Service::CloudTrail;
    const NAME: &'static str = "CreateTrail";
    const ACTION: &'static str = "cloudtrail:CreateTrail";
    const READ_ONLY: bool = false;
    type Request = cloudtrail::CreateTrailRequest;
    type Response = cloudtrail::CreateTrailResponse;
    type On = TrailName;

    fn on(request: &Self::Request) -> Result<String> {
        let name = by_name(&request.name)?;
        name::check(&name)?;
        Ok(name)
    }

    async fn run(call: &mut Call, request: &Self::Request, on: Allowed<TrailName>) -> Result<Self::Response> {
        let trails = trails(call).await?;
        if trails.iter().any(|trail| trail.id == on.0) {
            return Err(Error::new(
                Exception::TrailAlreadyExists,
                format!("Trail {} already exists for customer: {}", on.0.id, call.account()),
            ));
        }
        if trails.len() >= TRAILS_MAX {
            return Err(Error::new(
                Exception::MaximumNumberOfTrailsExceeded,
                format!("User: {} already has {TRAILS_MAX} trails in {}.", call.account(), call.region()),
            ));
        }
        let mut tags = std::collections::BTreeMap::new();
        super::trail_tags::add(&mut tags, &request.tags_list)?;
        let trail = Trail {
            bucket: given(&request.s3_bucket_name)?.clone(),
            prefix: prefix(&request.s3_key_prefix),
            global_events: request.include_global_service_events.unwrap_or(true),
            multi_region: request.is_multi_region_trail.unwrap_or(false),
            validation: request.enable_log_file_validation.unwrap_or(false),
            kms_key_id: request.kms_key_id.clone().filter(|key| !key.is_empty()),
            organization: request.is_organization_trail.unwrap_or(false),
            selectors: Default::default(),
            insights: Vec::new(),
            tags,
            logging: Logging::default(),
        };
        check(call, &trail).await?;
        call.change(Draft::insert(on.0.clone(), &trail)?);
        call.afterwards(|app| app.trails.changed());
        Ok(settings(&on.0, &trail))
    }
}

/// Changes a trail's settings.
pub struct UpdateTrail;

impl Operation for UpdateTrail {
    const SERVICE: Service = Service::CloudTrail;
    const NAME: &'static str = "UpdateTrail";
    const ACTION: &'static str = "cloudtrail:UpdateTrail";
    const READ_ONLY: bool = false;
    type Request = cloudtrail::UpdateTrailRequest;
    type Response = cloudtrail::UpdateTrailResponse;
    type On = TrailName;

    fn on(request: &Self::Request) -> Result<String> {
        by_name(&request.name)
    }

    async fn run(call: &mut Call, request: &Self::Request, on: Allowed<TrailName>) -> Result<Self::Response> {
        let held = on.at_home(call).await?;
        let mut trail = held.value.clone();
        let set = |old: &mut bool, new: Option<bool>| *old = new.unwrap_or(*old);
        if let Some(bucket) = &request.s3_bucket_name {
            trail.bucket = bucket.clone();
        }
        if request.s3_key_prefix.is_some() {
            trail.prefix = prefix(&request.s3_key_prefix);
        }
        if let Some(key) = &request.kms_key_id {
            trail.kms_key_id = Some(key.clone()).filter(|key| !key.is_empty());
        }
        set(&mut trail.global_events, request.include_global_service_events);
        set(&mut trail.multi_region, request.is_multi_region_trail);
        set(&mut trail.validation, request.enable_log_file_validation);
        set(&mut trail.organization, request.is_organization_trail);
        check(call, &trail).await?;
        call.change(Draft::replace(&held, &trail)?);
        call.afterwards(|app| app.trails.changed());
        let cloudtrail::CreateTrailResponse {
            name,
            s3_bucket_name,
            s3_key_prefix,
            include_global_service_events,
            is_multi_region_trail,
            trail_arn,
            log_file_validation_enabled,
            kms_key_id,
            is_organization_trail,
            ..
        } = settings(&on.0, &trail);
        Ok(cloudtrail::UpdateTrailResponse {
            name,
            s3_bucket_name,
            s3_key_prefix,
            include_global_service_events,
            is_multi_region_trail,
            trail_arn,
            log_file_validation_enabled,
            kms_key_id,
            is_organization_trail,
            ..Default::default()
        })
    }
}

/// An empty prefix is none.
fn prefix(given: &Option<String>) -> Option<String> {
    given.clone().filter(|prefix| !prefix.is_empty())
}

/// What CloudTrail asks of a trail's settings.
async fn check(call: &Call, trail: &Trail) -> Result<()> {
    name::check_bucket(&trail.bucket)?;
    trail.prefix.as_deref().map_or(Ok(()), name::check_prefix)?;
    if trail.multi_region && !trail.global_events {
        return Err(Error::new(
            Exception::InvalidParameterCombination,
            "Multi-Region trail must include global service events.",
        ));
    }
    if trail.organization && call.account() != call.app.account {
        return Err(Error::new(
            Exception::NotOrganizationMasterAccount,
            "Only the organization's management account can have an organization trail.",
        ));
    }
    let opened = call.app.trails.buckets.open(&trail.bucket, trail.kms_key_id.as_deref());
    let bucket = opened.map_err(|error| Error::internal(error.to_string()))?;
    match tokio::time::timeout(BUCKET_TIMEOUT, bucket.check()).await {
        Ok(Err(BucketError::NoBucket(name))) => {
            Err(Error::new(Exception::S3BucketDoesNotExist, format!("S3 bucket {name} does not exist!")))
        }
        // A store that does not answer now may have it; GetTrailStatus tells.
        Ok(Ok(()) | Err(BucketError::Failed(_))) | Err(_) => Ok(()),
    }
}

fn settings(id: &RowId, trail: &Trail) -> cloudtrail::CreateTrailResponse {
    cloudtrail::CreateTrailResponse {
        name: Some(id.id.clone()),
        s3_bucket_name: Some(trail.bucket.clone()),
        s3_key_prefix: trail.prefix.clone(),
        include_global_service_events: Some(trail.global_events),
        is_multi_region_trail: Some(trail.multi_region),
        trail_arn: Some(arn(id)),
        log_file_validation_enabled: Some(trail.validation),
        kms_key_id: trail.kms_key_id.clone(),
        is_organization_trail: Some(trail.organization),
        ..Default::default()
    }
}

/// Deletes a trail.
pub struct DeleteTrail;

impl Operation for DeleteTrail {
    const SERVICE: Service = Service::CloudTrail;
    const NAME: &'static str = "DeleteTrail";
    const ACTION: &'static str = "cloudtrail:DeleteTrail";
    const READ_ONLY: bool = false;
    type Request = cloudtrail::DeleteTrailRequest;
    type Response = cloudtrail::DeleteTrailResponse;
    type On = TrailName;

    fn on(request: &Self::Request) -> Result<String> {
        by_name(&request.name)
    }

    async fn run(call: &mut Call, _: &Self::Request, on: Allowed<TrailName>) -> Result<Self::Response> {
        let held = on.at_home(call).await?;
        call.change(Draft::delete(&held));
        if let Some(delivery) = on.delivery(call).await? {
            call.change(Draft::delete(&delivery));
        }
        call.afterwards(|app| app.trails.changed());
        Ok(cloudtrail::DeleteTrailResponse {})
    }
}

/// Shows a trail.
pub struct GetTrail;

impl Operation for GetTrail {
    const SERVICE: Service = Service::CloudTrail;
    const NAME: &'static str = "GetTrail";
    const ACTION: &'static str = "cloudtrail:GetTrail";
    const READ_ONLY: bool = true;
    type Request = cloudtrail::GetTrailRequest;
    type Response = cloudtrail::GetTrailResponse;
    type On = TrailName;

    fn on(request: &Self::Request) -> Result<String> {
        by_name(&request.name)
    }

    async fn run(call: &mut Call, _: &Self::Request, on: Allowed<TrailName>) -> Result<Self::Response> {
        Ok(cloudtrail::GetTrailResponse { trail: Some(shown(&on.existing(call).await?)) })
    }
}

/// Shows the account's trails.
pub struct DescribeTrails;

impl Operation for DescribeTrails {
    const SERVICE: Service = Service::CloudTrail;
    const NAME: &'static str = "DescribeTrails";
    const ACTION: &'static str = "cloudtrail:DescribeTrails";
    const READ_ONLY: bool = true;
    type Request = cloudtrail::DescribeTrailsRequest;
    type Response = cloudtrail::DescribeTrailsResponse;
    type On = Account;

    fn on(_: &Self::Request) -> Result<()> {
        Ok(())
    }

    async fn run(call: &mut Call, request: &Self::Request, _: Allowed<Account>) -> Result<Self::Response> {
        let mut wanted = Vec::new();
        for given in &request.trail_name_list {
            wanted.push(call.resolve::<TrailName>(given.clone()).await?.0);
        }
        // Those of other Regions have a shadow here where they are of all Regions.
        let shadows = request.include_shadow_trails.unwrap_or(true);
        let is_here =
            |trail: &Held<Trail>| trail.id.region == call.region() || shadows && trail.value.multi_region;
        let trails = of_all_regions(call).await?;
        let found = trails.iter().filter(|trail| match wanted.is_empty() {
            true => is_here(trail),
            false => wanted.contains(&trail.id),
        });
        Ok(cloudtrail::DescribeTrailsResponse { trail_list: found.map(shown).collect() })
    }
}

/// Lists the account's trails.
pub struct ListTrails;

impl Operation for ListTrails {
    const SERVICE: Service = Service::CloudTrail;
    const NAME: &'static str = "ListTrails";
    const ACTION: &'static str = "cloudtrail:ListTrails";
    const READ_ONLY: bool = true;
    type Request = cloudtrail::ListTrailsRequest;
    type Response = cloudtrail::ListTrailsResponse;
    type On = Account;

    fn on(_: &Self::Request) -> Result<()> {
        Ok(())
    }

    async fn run(call: &mut Call, _: &Self::Request, _: Allowed<Account>) -> Result<Self::Response> {
        let info = |trail: &Held<Trail>| cloudtrail::TrailInfo {
            trail_arn: Some(arn(&trail.id)),
            name: Some(trail.id.id.clone()),
            home_region: Some(trail.id.region.clone()),
        };
        // There are never more than fit into one page.
        let trails = of_all_regions(call).await?.iter().map(info).collect();
        Ok(cloudtrail::ListTrailsResponse { trails, next_token: None })
    }
}

async fn trails(call: &Call) -> Result<Vec<Held<Trail>>> {
    let limit = u32::try_from(TRAILS_MAX).unwrap_or(u32::MAX);
    call.app.registry.page(call.region(), call.account(), None, None, limit, call.deadline).await
}

/// The account's, whichever their home Region.
async fn of_all_regions(call: &Call) -> Result<Vec<Held<Trail>>> {
    let rows = call.app.store.all_rows(Kind::Trail, None, ALL_TRAILS_MAX).await.map_err(from_store)?;
    let own = rows.into_iter().filter(|row| row.id.account == call.account()).collect();
    call.app.registry.open_all(own, call.deadline).await
}

fn shown(trail: &Held<Trail>) -> cloudtrail::Trail {
    let Held { id, value, .. } = trail;
    cloudtrail::Trail {
        name: Some(id.id.clone()),
        s3_bucket_name: Some(value.bucket.clone()),
        s3_key_prefix: value.prefix.clone(),
        include_global_service_events: Some(value.global_events),
        is_multi_region_trail: Some(value.multi_region),
        home_region: Some(id.region.clone()),
        trail_arn: Some(arn(id)),
        log_file_validation_enabled: Some(value.validation),
        kms_key_id: value.kms_key_id.clone(),
        has_custom_event_selectors: Some(value.selectors.is_custom()),
        has_insight_selectors: Some(!value.insights.is_empty()),
        is_organization_trail: Some(value.organization),
        ..Default::default()
    }
}
