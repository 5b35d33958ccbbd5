//! The services whose operations there are, by all of their names.

/// The service that an operation belongs to: its eventSource and its gRPC service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// KMS.
    Kms,
    /// CloudTrail.
    CloudTrail,
    /// CloudTrail's data API: events of others.
    CloudTrailData,
    /// Organizations, as far as organization trails need it.
    Organizations,
    /// IAM, as far as access keys need it.
    Iam,
    /// The HSMs' operators.
    Hsm,
    /// What only the host may do.
    Admin,
}

impl Service {
    /// Every service.
    pub const ALL: [Service; 7] = [
        Service::Kms,
        Service::CloudTrail,
        Service::CloudTrailData,
        Service::Organizations,
        Service::Iam,
        Service::Hsm,
        Service::Admin,
    ];

    /// The record's eventSource.
    pub fn event_source(self) -> &'static str {
        match self {
            Service::Kms => "kms.amazonaws.com",
            Service::CloudTrail => "cloudtrail.amazonaws.com",
            Service::CloudTrailData => "cloudtrail-data.amazonaws.com",
            Service::Organizations => "organizations.amazonaws.com",
            Service::Iam => "iam.amazonaws.com",
            Service::Hsm => "hsm.strongroom",
            Service::Admin => "admin.strongroom",
        }
    }

    /// How AWS JSON names it; none for what AWS does not have, or not in JSON.
    pub fn aws(self) -> Option<AwsService> {
        match self {
            Service::Kms => {
                Some(AwsService { target: "TrentService", signing_name: "kms", is_global: false })
            }
            Service::CloudTrail => Some(AwsService {
                target: "com.amazonaws.cloudtrail.v20131101.CloudTrail_20131101",
                signing_name: "cloudtrail",
                is_global: false,
            }),
            Service::CloudTrailData => Some(AwsService {
                target: "CloudTrailData",
                signing_name: "cloudtrail-data",
                is_global: false,
            }),
            Service::Organizations => Some(AwsService {
                target: "AWSOrganizationsV20161128",
                signing_name: "organizations",
                is_global: true,
            }),
            Service::Iam | Service::Hsm | Service::Admin => None,
        }
    }

    /// The gRPC service's full name.
    pub fn grpc(self) -> &'static str {
        match self {
            Service::Kms => "strongroom.kms.v1.KeyManagementService",
            Service::CloudTrail => "strongroom.cloudtrail.v1.CloudTrailService",
            Service::CloudTrailData => "strongroom.cloudtrail.v1.CloudTrailDataService",
            Service::Organizations => "strongroom.organizations.v1.OrganizationsService",
            Service::Iam => "strongroom.iam.v1.IdentityService",
            Service::Hsm => "strongroom.hsm.v1.HsmService",
            Service::Admin => "strongroom.admin.v1.AdminService",
        }
    }
}

/// A service in AWS JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AwsService {
    /// What X-Amz-Target has before the operation's name.
    pub target: &'static str,
    /// The service of a signature's scope.
    pub signing_name: &'static str,
    /// Whether it is one for all Regions, whose clients sign for us-east-1
    /// wherever they are.
    pub is_global: bool,
}
