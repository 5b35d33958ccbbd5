//! The organization: the accounts of the configuration under the one that runs
//! the installation.

use super::prelude::*;
use crate::audit::trail::name::organization_id;
use crate::proto::organizations::{self, OrganizationFeatureSet};

/// Names it.
pub struct DescribeOrganization;

impl Operation for DescribeOrganization {
    const SERVICE: Service = Service::Organizations;
    const NAME: &'static str = "DescribeOrganization";
    const ACTION: &'static str = "organizations:DescribeOrganization";
    const READ_ONLY: bool = true;
    type Request = organizations::DescribeOrganizationRequest;
    type Response = organizations::DescribeOrganizationResponse;
    type On = Account;

    fn on(_: &Self::Request) -> Result<()> {
        Ok(())
    }

    async fn run(call: &mut Call, _: &Self::Request, _: Allowed<Account>) -> Result<Self::Response> {
        let management = &call.app.account;
        let id = organization_id(management);
        let arn = |resource: &str| Some(format!("arn:aws:organizations::{management}:{resource}"));
        let organization = organizations::Organization {
            arn: arn(&format!("organization/{id}")),
            master_account_arn: arn(&format!("account/{id}/{management}")),
            master_account_id: Some(management.clone()),
            feature_set: Some(OrganizationFeatureSet::All as i32),
            id: Some(id),
            ..Default::default()
        };
        Ok(organizations::DescribeOrganizationResponse { organization: Some(organization) })
    }
}
