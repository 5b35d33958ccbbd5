//! What is unusual: which Insights are made, and the counts behind them.

use super::prelude::*;
use super::trail::{TrailName, arn};
use crate::audit::insights::{BASELINE, Subject};
use crate::audit::trail::{InsightSelector, InsightType};
use crate::proto::cloudtrail;

/// Periods of metric data, in seconds.
const PERIODS_S: [i32; 3] = [60, 300, 3600];
/// Data points of one answer.
const POINTS_MAX: i32 = 21_600;

/// Sets which Insights are made.
pub struct PutInsightSelectors;

impl Operation for PutInsightSelectors {
    const SERVICE: Service = Service::CloudTrail;
    const NAME: &'static str = "PutInsightSelectors";
    const ACTION: &'static str = "cloudtrail:PutInsightSelectors";
    const READ_ONLY: bool = false;
    type Request = cloudtrail::PutInsightSelectorsRequest;
    type Response = cloudtrail::PutInsightSelectorsResponse;
    type On = TrailName;

    fn on(request: &Self::Request) -> Result<String> {
        named(&request.trail_name)
    }

    async fn run(call: &mut Call, request: &Self::Request, on: Allowed<TrailName>) -> Result<Self::Response> {
        let held = on.at_home(call).await?;
        let selectors: Vec<_> = request.insight_selectors.iter().map(read).collect::<Result<_>>()?;
        for (index, selector) in selectors.iter().enumerate() {
            if selectors.iter().take(index).any(|other| other.kind == selector.kind) {
                return Err(refused("Each insight type can be selected once."));
            }
        }
        let mut trail = held.value.clone();
        trail.insights = selectors;
        let insight_selectors = trail.insights.iter().map(written).collect();
        call.change(Draft::replace(&held, &trail)?);
        Ok(cloudtrail::PutInsightSelectorsResponse {
            trail_arn: Some(arn(&on.0)),
            insight_selectors,
            ..Default::default()
        })
    }
}

/// Shows which Insights are made.
pub struct GetInsightSelectors;

impl Operation for GetInsightSelectors {
    const SERVICE: Service = Service::CloudTrail;
    const NAME: &'static str = "GetInsightSelectors";
    const ACTION: &'static str = "cloudtrail:GetInsightSelectors";
    const READ_ONLY: bool = true;
    type Request = cloudtrail::GetInsightSelectorsRequest;
    type Response = cloudtrail::GetInsightSelectorsResponse;
    type On = TrailName;

    fn on(request: &Self::Request) -> Result<String> {
        named(&request.trail_name)
    }

    async fn run(call: &mut Call, _: &Self::Request, on: Allowed<TrailName>) -> Result<Self::Response> {
        let held = on.existing(call).await?;
        if held.value.insights.is_empty() {
            let text = format!("Insights are not enabled on the trail {}.", on.arn());
            return Err(Error::new(Exception::InsightNotEnabled, text));
        }
        Ok(cloudtrail::GetInsightSelectorsResponse {
            trail_arn: Some(arn(&on.0)),
            insight_selectors: held.value.insights.iter().map(written).collect(),
            ..Default::default()
        })
    }
}

fn named(trail_name: &Option<String>) -> Result<String> {
    trail_name
        .clone()
        .ok_or_else(|| Error::new(Exception::InvalidParameterCombination, "TrailName is missing."))
}

fn refused(why: &'static str) -> Error {
    Error::new(Exception::InvalidInsightSelectors, why)
}

fn read(selector: &cloudtrail::InsightSelector) -> Result<InsightSelector> {
    use cloudtrail::{InsightType as Type, SourceEventCategory as Category};
    let kind = match selector.insight_type.and_then(|number| Type::try_from(number).ok()) {
        Some(Type::ApiCallRateInsight) => InsightType::CallRate,
        Some(Type::ApiErrorRateInsight) => InsightType::ErrorRate,
        Some(Type::Unspecified) | None => return Err(refused("An insight selector has an InsightType.")),
    };
    let has = |category: Category| selector.event_categories.contains(&(category as i32));
    let is_default = selector.event_categories.is_empty();
    Ok(InsightSelector {
        kind,
        management: is_default || has(Category::Management),
        data: has(Category::Data),
    })
}

fn written(selector: &InsightSelector) -> cloudtrail::InsightSelector {
    use cloudtrail::{InsightType as Type, SourceEventCategory as Category};
    let kind = match selector.kind {
        InsightType::CallRate => Type::ApiCallRateInsight,
        InsightType::ErrorRate => Type::ApiErrorRateInsight,
    };
    let management = selector.management.then_some(Category::Management as i32);
    let data = selector.data.then_some(Category::Data as i32);
    cloudtrail::InsightSelector {
        insight_type: Some(kind as i32),
        event_categories: management.into_iter().chain(data).collect(),
    }
}

/// Shows the counts that Insights are made from.
pub struct ListInsightsMetricData;

impl Operation for ListInsightsMetricData {
    const SERVICE: Service = Service::CloudTrail;
    const NAME: &'static str = "ListInsightsMetricData";
    const ACTION: &'static str = "cloudtrail:ListInsightsMetricData";
    const READ_ONLY: bool = true;
    type Request = cloudtrail::ListInsightsMetricDataRequest;
    type Response = cloudtrail::ListInsightsMetricDataResponse;
    type On = Account;

    fn on(_: &Self::Request) -> Result<()> {
        Ok(())
    }

    async fn run(call: &mut Call, request: &Self::Request, _: Allowed<Account>) -> Result<Self::Response> {
        let invalid = |why: &'static str| Error::new(Exception::InvalidParameter, why);
        let period_s = request.period.unwrap_or(3600);
        if !PERIODS_S.contains(&period_s) {
            return Err(invalid("Period is 60, 300 or 3600."));
        }
        let trail_arn = match &request.trail_name {
            Some(name) => {
                let trail = call.resolve::<TrailName>(name.clone()).await?;
                trail.existing(call).await?;
                Some(trail.arn())
            }
            None => None,
        };
        let insights = &call.app.insights;
        let ms = |time: &prost_types::Timestamp| time.seconds.saturating_mul(1000);
        let period_ms = i64::from(period_s) * 1000;
        let end_ms = request.end_time.as_ref().map_or(call.now_ms, ms).min(call.now_ms);
        let known_ms = insights.time_ms(insights.minute(call.now_ms).saturating_sub(BASELINE));
        let start_ms = request.start_time.as_ref().map_or(known_ms, ms).max(known_ms);
        if start_ms > end_ms {
            return Err(invalid("The start time is after the end time, or both are before the past week."));
        }
        let first_ms = match &request.next_token {
            Some(token) => token
                .parse()
                .map_err(|_| Error::new(Exception::InvalidNextToken, "The NextToken is not valid."))?,
            None => start_ms - start_ms.rem_euclid(period_ms),
        };
        let error = match chosen::<cloudtrail::InsightType>(request.insight_type)? {
            cloudtrail::InsightType::ApiErrorRateInsight => Some(request.error_code.clone()),
            _ => None,
        };
        let account = call.account().to_owned();
        let wanted = |subject: &Subject| {
            subject.account == account
                && subject.region == call.region()
                && Some(&subject.source) == request.event_source.as_ref()
                && Some(&subject.name) == request.event_name.as_ref()
                && match &error {
                    None => subject.error.is_none(),
                    // Without a code the errors of all codes.
                    Some(code) => subject.error.is_some() && (code.is_none() || subject.error == *code),
                }
        };
        let counts = insights.counts(wanted, insights.minute(first_ms), insights.minute(end_ms));
        let mut points = std::collections::BTreeMap::<i64, u64>::new();
        let is_filled = choice(request.data_type, cloudtrail::InsightsMetricDataType::NonZeroData)
            == cloudtrail::InsightsMetricDataType::FillWithZeros;
        if is_filled {
            let mut at_ms = first_ms;
            while at_ms <= end_ms {
                points.insert(at_ms, 0);
                at_ms += period_ms;
            }
        }
        for (minute, count) in counts {
            let at_ms = insights.time_ms(minute);
            *points.entry(at_ms - at_ms.rem_euclid(period_ms)).or_default() += count;
        }
        let limit = usize::try_from(request.max_results.unwrap_or(POINTS_MAX)).unwrap_or(1);
        let next_token = points.keys().nth(limit).map(ToString::to_string);
        let page: Vec<(i64, u64)> = points.into_iter().take(limit).collect();
        Ok(cloudtrail::ListInsightsMetricDataResponse {
            trail_arn,
            event_source: request.event_source.clone(),
            event_name: request.event_name.clone(),
            insight_type: request.insight_type,
            error_code: request.error_code.clone(),
            timestamps: page.iter().map(|(at_ms, _)| timestamp(*at_ms)).collect(),
            values: page.iter().map(|(_, count)| *count as f64).collect(),
            next_token,
        })
    }
}
