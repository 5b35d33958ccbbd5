//! What a caller is told when something fails: KMS's exceptions.
//!
//! [`Error`] carries two separate texts: `message`, which the caller and the
//! event see, and `detail`, which only the log sees.

use std::borrow::Cow;
use std::time::Duration;

/// Whose fault a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The request must change before it can succeed.
    Caller,
    /// The same request may succeed later.
    Busy,
    /// An HSM does not do its work.
    Hsm,
    /// A defect or a failing disk of ours.
    Service,
}

macro_rules! exceptions {
    ($($variant:ident $name:literal $fault:ident $grpc:ident $http:literal,)*) => {
        /// The exceptions that KMS and CloudTrail name in their models, and the
        /// ones that every AWS service has.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Exception { $(#[doc = $name] $variant,)* }

        impl Exception {
            /// Every exception there is.
            pub const ALL: &'static [Exception] = &[$(Exception::$variant,)*];

            /// The name on the wire and in an event's errorCode, apart from
            /// AccessDenied, which CloudTrail writes without `Exception`.
            pub fn name(self) -> &'static str {
                match self { $(Exception::$variant => $name,)* }
            }

            /// Whose fault it is.
            pub fn fault(self) -> Fault {
                match self { $(Exception::$variant => Fault::$fault,)* }
            }

            /// The gRPC status code.
            pub fn grpc(self) -> tonic::Code {
                match self { $(Exception::$variant => tonic::Code::$grpc,)* }
            }

            /// The HTTP status of the AWS JSON protocol.
            pub fn http(self) -> u16 {
                match self { $(Exception::$variant => $http,)* }
            }
        }
    };
}

exceptions! {
    AccessDenied "AccessDeniedException" Caller PermissionDenied 400,
    AlreadyExists "AlreadyExistsException" Caller AlreadyExists 400,
    CloudHsmClusterInUse "CloudHsmClusterInUseException" Caller FailedPrecondition 400,
    CloudHsmClusterInvalidConfiguration "CloudHsmClusterInvalidConfigurationException" Caller FailedPrecondition 400,
    CloudHsmClusterNotActive "CloudHsmClusterNotActiveException" Caller FailedPrecondition 400,
    CloudHsmClusterNotFound "CloudHsmClusterNotFoundException" Caller NotFound 400,
    CloudHsmClusterNotRelated "CloudHsmClusterNotRelatedException" Caller FailedPrecondition 400,
    CustomKeyStoreHasCmks "CustomKeyStoreHasCMKsException" Caller FailedPrecondition 400,
    CustomKeyStoreInvalidState "CustomKeyStoreInvalidStateException" Caller FailedPrecondition 400,
    CustomKeyStoreNameInUse "CustomKeyStoreNameInUseException" Caller AlreadyExists 400,
    ChannelInsufficientPermission "ChannelInsufficientPermission" Caller PermissionDenied 403,
    ChannelNotFound "ChannelNotFound" Caller NotFound 404,
    CloudTrailArnInvalid "CloudTrailARNInvalidException" Caller InvalidArgument 400,
    CustomKeyStoreNotFound "CustomKeyStoreNotFoundException" Caller NotFound 400,
    DependencyTimeout "DependencyTimeoutException" Hsm DeadlineExceeded 500,
    Disabled "DisabledException" Caller FailedPrecondition 400,
    DryRunOperation "DryRunOperationException" Caller FailedPrecondition 400,
    DuplicatedAuditEventId "DuplicatedAuditEventId" Caller InvalidArgument 400,
    ExpiredImportToken "ExpiredImportTokenException" Caller InvalidArgument 400,
    IncorrectKey "IncorrectKeyException" Caller InvalidArgument 400,
    IncorrectKeyMaterial "IncorrectKeyMaterialException" Caller InvalidArgument 400,
    IncorrectTrustAnchor "IncorrectTrustAnchorException" Caller InvalidArgument 400,
    InvalidAliasName "InvalidAliasNameException" Caller InvalidArgument 400,
    InvalidArn "InvalidArnException" Caller InvalidArgument 400,
    InvalidChannelArn "InvalidChannelARN" Caller InvalidArgument 400,
    InvalidCiphertext "InvalidCiphertextException" Caller InvalidArgument 400,
    InvalidEventPattern "InvalidEventPatternException" Caller InvalidArgument 400,
    InvalidEventSelectors "InvalidEventSelectorsException" Caller InvalidArgument 400,
    InvalidGrantId "InvalidGrantIdException" Caller InvalidArgument 400,
    InvalidGrantToken "InvalidGrantTokenException" Caller InvalidArgument 400,
    InvalidImportToken "InvalidImportTokenException" Caller InvalidArgument 400,
    InsightNotEnabled "InsightNotEnabledException" Caller FailedPrecondition 400,
    InvalidInsightSelectors "InvalidInsightSelectorsException" Caller InvalidArgument 400,
    InvalidKeyUsage "InvalidKeyUsageException" Caller InvalidArgument 400,
    InvalidLookupAttributes "InvalidLookupAttributesException" Caller InvalidArgument 400,
    InvalidMarker "InvalidMarkerException" Caller InvalidArgument 400,
    InvalidMaxResults "InvalidMaxResultsException" Caller InvalidArgument 400,
    InvalidNextToken "InvalidNextTokenException" Caller InvalidArgument 400,
    InvalidParameterCombination "InvalidParameterCombinationException" Caller InvalidArgument 400,
    InvalidParameter "InvalidParameterException" Caller InvalidArgument 400,
    InvalidS3BucketName "InvalidS3BucketNameException" Caller InvalidArgument 400,
    InvalidS3Prefix "InvalidS3PrefixException" Caller InvalidArgument 400,
    InvalidTagParameter "InvalidTagParameterException" Caller InvalidArgument 400,
    InvalidTimeRange "InvalidTimeRangeException" Caller InvalidArgument 400,
    InvalidToken "InvalidTokenException" Caller InvalidArgument 400,
    InvalidHomeRegion "InvalidHomeRegionException" Caller InvalidArgument 400,
    InvalidTrailName "InvalidTrailNameException" Caller InvalidArgument 400,
    KeyUnavailable "KeyUnavailableException" Hsm Unavailable 500,
    KmsInternal "KMSInternalException" Service Internal 500,
    KmsInvalidMac "KMSInvalidMacException" Caller InvalidArgument 400,
    KmsInvalidSignature "KMSInvalidSignatureException" Caller InvalidArgument 400,
    KmsInvalidState "KMSInvalidStateException" Caller FailedPrecondition 400,
    LimitExceeded "LimitExceededException" Caller ResourceExhausted 400,
    MalformedPolicyDocument "MalformedPolicyDocumentException" Caller InvalidArgument 400,
    MaximumNumberOfTrailsExceeded "MaximumNumberOfTrailsExceededException" Caller ResourceExhausted 400,
    NoSuchEntity "NoSuchEntityException" Caller NotFound 404,
    NotFound "NotFoundException" Caller NotFound 400,
    NotOrganizationMasterAccount "NotOrganizationMasterAccountException" Caller FailedPrecondition 400,
    ResourceNotFound "ResourceNotFoundException" Caller NotFound 400,
    ResourceTypeNotSupported "ResourceTypeNotSupportedException" Caller InvalidArgument 400,
    S3BucketDoesNotExist "S3BucketDoesNotExistException" Caller NotFound 400,
    Serialization "SerializationException" Caller InvalidArgument 400,
    Tag "TagException" Caller InvalidArgument 400,
    TagsLimitExceeded "TagsLimitExceededException" Caller ResourceExhausted 400,
    Throttling "ThrottlingException" Busy ResourceExhausted 400,
    TrailAlreadyExists "TrailAlreadyExistsException" Caller AlreadyExists 400,
    TrailNotFound "TrailNotFoundException" Caller NotFound 400,
    UnsupportedOperation "UnsupportedOperationException" Caller Unimplemented 400,
    Validation "ValidationException" Caller InvalidArgument 400,
}

/// A failed operation.
#[derive(Debug, Clone)]
pub struct Error {
    /// KMS's exception.
    pub exception: Exception,
    /// What the caller and the event see; AWS leaves some of them empty.
    pub message: Cow<'static, str>,
    /// What only the log sees. Never a secret either.
    pub detail: Option<String>,
    /// When the same request may succeed.
    pub retry_after: Option<Duration>,
}

/// A result whose error is an [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An exception with the text that the caller sees.
    pub fn new(exception: Exception, message: impl Into<Cow<'static, str>>) -> Self {
        Error { exception, message: message.into(), detail: None, retry_after: None }
    }

    /// An exception whose message AWS leaves empty.
    pub fn bare(exception: Exception) -> Self {
        Self::new(exception, "")
    }

    /// KMSInternalException; the reason goes to the log only.
    pub fn internal(detail: impl Into<String>) -> Self {
        Error {
            detail: Some(detail.into()),
            ..Self::new(Exception::KmsInternal, "An internal error occurred; the request can be retried.")
        }
    }

    /// ValidationException in the caller's words.
    pub fn validation(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Exception::Validation, message)
    }

    /// The same error with a text for the log.
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// The same error with the time after which to try again.
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.exception.name())?;
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
