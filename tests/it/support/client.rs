//! A typed client: the crate's own messages over mutual TLS, and the log as
//! its readers see it.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use http::uri::PathAndQuery;
use serde_json::Value;
use strongroom::proto::{admin, cloudtrail, hsm, kms};
use tokio::time::timeout;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt;

use super::LONG;

/// A request that knows where it goes and what it gets.
pub trait Rpc: prost::Message + 'static {
    type Response: prost::Message + Default + 'static;
    const PATH: &'static str;
}

macro_rules! rpcs {
    ($package:ident $service:literal: $($name:literal $request:ident $response:ident,)*) => {
        $(impl Rpc for $package::$request {
            type Response = $package::$response;
            const PATH: &'static str = concat!("/strongroom.", $service, "/", $name);
        })*
    };
}

rpcs! { kms "kms.v1.KeyManagementService":
    "CreateKey" CreateKeyRequest CreateKeyResponse,
    "DescribeKey" DescribeKeyRequest DescribeKeyResponse,
    "ListKeys" ListKeysRequest ListKeysResponse,
    "UpdateKeyDescription" UpdateKeyDescriptionRequest UpdateKeyDescriptionResponse,
    "EnableKey" EnableKeyRequest EnableKeyResponse,
    "DisableKey" DisableKeyRequest DisableKeyResponse,
    "ScheduleKeyDeletion" ScheduleKeyDeletionRequest ScheduleKeyDeletionResponse,
    "CancelKeyDeletion" CancelKeyDeletionRequest CancelKeyDeletionResponse,
    "GetPublicKey" GetPublicKeyRequest GetPublicKeyResponse,
    "GetKeyLastUsage" GetKeyLastUsageRequest GetKeyLastUsageResponse,
    "ReplicateKey" ReplicateKeyRequest ReplicateKeyResponse,
    "UpdatePrimaryRegion" UpdatePrimaryRegionRequest UpdatePrimaryRegionResponse,
    "GetParametersForImport" GetParametersForImportRequest GetParametersForImportResponse,
    "ImportKeyMaterial" ImportKeyMaterialRequest ImportKeyMaterialResponse,
    "DeleteImportedKeyMaterial" DeleteImportedKeyMaterialRequest DeleteImportedKeyMaterialResponse,
    "EnableKeyRotation" EnableKeyRotationRequest EnableKeyRotationResponse,
    "DisableKeyRotation" DisableKeyRotationRequest DisableKeyRotationResponse,
    "GetKeyRotationStatus" GetKeyRotationStatusRequest GetKeyRotationStatusResponse,
    "RotateKeyOnDemand" RotateKeyOnDemandRequest RotateKeyOnDemandResponse,
    "ListKeyRotations" ListKeyRotationsRequest ListKeyRotationsResponse,
    "CreateAlias" CreateAliasRequest CreateAliasResponse,
    "UpdateAlias" UpdateAliasRequest UpdateAliasResponse,
    "DeleteAlias" DeleteAliasRequest DeleteAliasResponse,
    "ListAliases" ListAliasesRequest ListAliasesResponse,
    "Encrypt" EncryptRequest EncryptResponse,
    "Decrypt" DecryptRequest DecryptResponse,
    "ReEncrypt" ReEncryptRequest ReEncryptResponse,
    "GenerateDataKey" GenerateDataKeyRequest GenerateDataKeyResponse,
    "GenerateDataKeyWithoutPlaintext" GenerateDataKeyWithoutPlaintextRequest GenerateDataKeyWithoutPlaintextResponse,
    "GenerateDataKeyPair" GenerateDataKeyPairRequest GenerateDataKeyPairResponse,
    "GenerateDataKeyPairWithoutPlaintext" GenerateDataKeyPairWithoutPlaintextRequest GenerateDataKeyPairWithoutPlaintextResponse,
    "GenerateRandom" GenerateRandomRequest GenerateRandomResponse,
    "Sign" SignRequest SignResponse,
    "Verify" VerifyRequest VerifyResponse,
    "GenerateMac" GenerateMacRequest GenerateMacResponse,
    "VerifyMac" VerifyMacRequest VerifyMacResponse,
    "DeriveSharedSecret" DeriveSharedSecretRequest DeriveSharedSecretResponse,
    "CreateGrant" CreateGrantRequest CreateGrantResponse,
    "ListGrants" ListGrantsRequest ListGrantsResponse,
    "ListRetirableGrants" ListRetirableGrantsRequest ListRetirableGrantsResponse,
    "RetireGrant" RetireGrantRequest RetireGrantResponse,
    "RevokeGrant" RevokeGrantRequest RevokeGrantResponse,
    "GetKeyPolicy" GetKeyPolicyRequest GetKeyPolicyResponse,
    "PutKeyPolicy" PutKeyPolicyRequest PutKeyPolicyResponse,
    "ListKeyPolicies" ListKeyPoliciesRequest ListKeyPoliciesResponse,
    "TagResource" TagResourceRequest TagResourceResponse,
    "UntagResource" UntagResourceRequest UntagResourceResponse,
    "ListResourceTags" ListResourceTagsRequest ListResourceTagsResponse,
    "CreateCustomKeyStore" CreateCustomKeyStoreRequest CreateCustomKeyStoreResponse,
    "ConnectCustomKeyStore" ConnectCustomKeyStoreRequest ConnectCustomKeyStoreResponse,
    "DisconnectCustomKeyStore" DisconnectCustomKeyStoreRequest DisconnectCustomKeyStoreResponse,
    "UpdateCustomKeyStore" UpdateCustomKeyStoreRequest UpdateCustomKeyStoreResponse,
    "DeleteCustomKeyStore" DeleteCustomKeyStoreRequest DeleteCustomKeyStoreResponse,
    "DescribeCustomKeyStores" DescribeCustomKeyStoresRequest DescribeCustomKeyStoresResponse,
}
rpcs! { cloudtrail "cloudtrail.v1.CloudTrailService":
    "LookupEvents" LookupEventsRequest LookupEventsResponse,
    "VerifyEvents" VerifyEventsRequest VerifyEventsResponse,
    "CreateTrail" CreateTrailRequest CreateTrailResponse,
    "UpdateTrail" UpdateTrailRequest UpdateTrailResponse,
    "DeleteTrail" DeleteTrailRequest DeleteTrailResponse,
    "GetTrail" GetTrailRequest GetTrailResponse,
    "DescribeTrails" DescribeTrailsRequest DescribeTrailsResponse,
    "GetTrailStatus" GetTrailStatusRequest GetTrailStatusResponse,
    "StartLogging" StartLoggingRequest StartLoggingResponse,
    "StopLogging" StopLoggingRequest StopLoggingResponse,
    "PutEventSelectors" PutEventSelectorsRequest PutEventSelectorsResponse,
    "PutInsightSelectors" PutInsightSelectorsRequest PutInsightSelectorsResponse,
    "GetInsightSelectors" GetInsightSelectorsRequest GetInsightSelectorsResponse,
    "ListInsightsMetricData" ListInsightsMetricDataRequest ListInsightsMetricDataResponse,
    "ListPublicKeys" ListPublicKeysRequest ListPublicKeysResponse,
    "AddTags" AddTagsRequest AddTagsResponse,
    "RemoveTags" RemoveTagsRequest RemoveTagsResponse,
    "ListTags" ListTagsRequest ListTagsResponse,
    "RotateDigestKey" RotateDigestKeyRequest RotateDigestKeyResponse,
}
rpcs! { hsm "hsm.v1.HsmService":
    "ListMembers" ListMembersRequest ListMembersResponse,
    "ListTokens" ListTokensRequest ListTokensResponse,
    "AddMember" AddMemberRequest AddMemberResponse,
    "RemoveMember" RemoveMemberRequest RemoveMemberResponse,
    "ReplaceMember" ReplaceMemberRequest ReplaceMemberResponse,
    "BeginMaintenance" BeginMaintenanceRequest BeginMaintenanceResponse,
    "EndMaintenance" EndMaintenanceRequest EndMaintenanceResponse,
    "CheckMember" CheckMemberRequest CheckMemberResponse,
    "CreateCluster" CreateClusterRequest CreateClusterResponse,
    "InitializeCluster" InitializeClusterRequest InitializeClusterResponse,
    "DescribeClusters" DescribeClustersRequest DescribeClustersResponse,
    "DeleteCluster" DeleteClusterRequest DeleteClusterResponse,
}
rpcs! { admin "admin.v1.AdminService":
    "RecoverKeyPolicy" RecoverKeyPolicyRequest RecoverKeyPolicyResponse,
    "ExplainAccess" ExplainAccessRequest ExplainAccessResponse,
    "ConfirmClock" ConfirmClockRequest ConfirmClockResponse,
}

/// A success, with x-request-id.
#[derive(Debug)]
pub struct Answer<T> {
    pub request_id: String,
    pub message: T,
}

/// A failure.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// KMS's name; empty where the daemon did not answer.
    pub exception: String,
    pub message: String,
    /// x-request-id; empty where the daemon did not answer.
    pub request_id: String,
    /// Whether RetryInfo says when to try again.
    pub retries: bool,
}

impl Refusal {
    /// Reads what a call failed with.
    pub fn read(status: &Status) -> Refusal {
        let details = status.get_error_details();
        let request_id = status.metadata().get("x-request-id").and_then(|id| id.to_str().ok());
        Refusal {
            exception: details.error_info().map(|info| info.reason.clone()).unwrap_or_default(),
            message: format!("{:?}: {}", status.code(), status.message()),
            request_id: request_id.unwrap_or_default().to_owned(),
            retries: details.retry_info().is_some(),
        }
    }

    /// Whether the daemon answered with an exception.
    pub fn is_answer(&self) -> bool {
        !self.exception.is_empty()
    }
}

/// A connection to a daemon.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
    /// The metadata of every call.
    metadata: Vec<(&'static str, String)>,
}

impl Client {
    /// Connects with the certificate `name`.pem.
    pub async fn connect(address: SocketAddr, pki: &Path, name: &str) -> Client {
        let read = |name: &str| fs::read(pki.join(name)).unwrap();
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read("ca.pem")))
            .identity(Identity::from_pem(read(&format!("{name}.pem")), read(&format!("{name}.key"))));
        let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap().tls_config(tls).unwrap();
        let channel = timeout(LONG, endpoint.connect()).await.expect("connecting hangs").unwrap();
        Client { channel, metadata: Vec::new() }
    }

    /// The same connection, to ask another Region.
    pub fn in_region(&self, region: &str) -> Client {
        self.saying("strongroom-region", region)
    }

    /// The same connection, with more metadata.
    pub fn saying(&self, name: &'static str, value: &str) -> Client {
        let mut metadata = self.metadata.clone();
        metadata.push((name, value.to_owned()));
        Client { channel: self.channel.clone(), metadata }
    }

    /// The connection, for services that are not ours.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A call whose answer is all that matters.
    pub async fn call<R: Rpc>(&self, request: R) -> Result<R::Response, Refusal> {
        self.ask(request).await.map(|answer| answer.message)
    }

    /// A call.
    pub async fn ask<R: Rpc>(&self, request: R) -> Result<Answer<R::Response>, Refusal> {
        self.send(Request::new(request)).await
    }

    /// A call with a deadline (grpc-timeout).
    pub async fn ask_within<R: Rpc>(
        &self,
        request: R,
        limit: Duration,
    ) -> Result<Answer<R::Response>, Refusal> {
        let mut request = Request::new(request);
        request.set_timeout(limit);
        self.send(request).await
    }

    async fn send<R: Rpc>(&self, mut request: Request<R>) -> Result<Answer<R::Response>, Refusal> {
        for (name, value) in &self.metadata {
            request.metadata_mut().insert(*name, value.parse().unwrap());
        }
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        let answered = timeout(LONG, async {
            grpc.ready().await.map_err(|error| Status::unavailable(format!("{error:?}")))?;
            let path = PathAndQuery::from_static(R::PATH);
            grpc.unary(request, path, ProstCodec::<R, R::Response>::default()).await
        });
        let answered = answered.await.unwrap_or_else(|_| panic!("{} hangs", R::PATH));
        let response = answered.map_err(|status| Refusal::read(&status))?;
        let request_id = response.metadata().get("x-request-id").expect("an answer without its request id");
        Ok(Answer { request_id: request_id.to_str().unwrap().to_owned(), message: response.into_inner() })
    }

    /// Every event of the log up to now, from its beginning, in its order.
    pub async fn events(&self) -> Vec<Value> {
        // Answered or denied, it is on the record, after everything before it.
        let last = match self.ask(hsm::ListMembersRequest::default()).await {
            Ok(answer) => answer.request_id,
            Err(refusal) => refusal.request_id,
        };
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        let path = PathAndQuery::from_static("/strongroom.cloudtrail.v1.CloudTrailService/StreamEvents");
        let request = cloudtrail::StreamEventsRequest {
            start: Some(cloudtrail::StartPosition::TrimHorizon as i32),
            ..Default::default()
        };
        let codec = ProstCodec::<_, cloudtrail::StreamEventsResponse>::default();
        let read = async {
            grpc.ready().await.unwrap();
            let mut stream =
                grpc.server_streaming(Request::new(request), path, codec).await.unwrap().into_inner();
            let mut events = Vec::new();
            loop {
                let next = stream.message().await.unwrap().expect("the stream ended before the newest event");
                let record = next.event.unwrap().cloud_trail_event.unwrap();
                let event: Value = serde_json::from_str(&record).unwrap();
                if event["requestID"] == last {
                    return events;
                }
                events.push(event);
            }
        };
        timeout(LONG, read).await.expect("the stream of events never comes to the newest one")
    }

    /// What VerifyEvents finds.
    pub async fn findings(&self) -> Vec<String> {
        self.call(cloudtrail::VerifyEventsRequest::default()).await.unwrap().findings
    }

    /// Makes a key with its spec's default usage, or to sign: its id.
    pub async fn create(&self, spec: kms::KeySpec) -> Result<String, Refusal> {
        let answer = self.call(create(spec)).await?;
        Ok(answer.key_metadata.unwrap().key_id.unwrap())
    }

    pub async fn encrypt(&self, key: &str, plaintext: &[u8]) -> Result<Vec<u8>, Refusal> {
        Ok(self.call(encrypt(key, plaintext)).await?.ciphertext_blob.unwrap())
    }

    pub async fn decrypt(&self, blob: &[u8]) -> Result<Vec<u8>, Refusal> {
        Ok(self.call(decrypt(blob)).await?.plaintext.unwrap())
    }

    /// Signs and verifies.
    pub async fn sign(&self, key: &str, spec: kms::KeySpec, message: &[u8]) -> Result<Vec<u8>, Refusal> {
        let request = sign(key, spec, message);
        let signature = self.call(request.clone()).await?.signature.unwrap();
        let verified = self.call(kms::VerifyRequest {
            key_id: request.key_id,
            message: request.message,
            message_type: request.message_type,
            signature: Some(signature.clone()),
            signing_algorithm: request.signing_algorithm,
            ..Default::default()
        });
        assert_eq!(verified.await?.signature_valid, Some(true));
        Ok(signature)
    }

    /// Proves that a key works: encrypts and decrypts, or signs and verifies.
    pub async fn use_key(&self, key: &str, spec: kms::KeySpec) -> Result<(), Refusal> {
        if spec == kms::KeySpec::SymmetricDefault {
            let blob = self.encrypt(key, b"a key is tried").await?;
            assert_eq!(self.decrypt(&blob).await?, b"a key is tried");
        } else {
            self.sign(key, spec, b"a key is tried").await?;
        }
        Ok(())
    }

    pub async fn state(&self, key: &str) -> Result<kms::KeyState, Refusal> {
        let request = kms::DescribeKeyRequest { key_id: Some(key.to_owned()), ..Default::default() };
        Ok(self.call(request).await?.key_metadata.unwrap().key_state())
    }

    /// The ids of all keys.
    pub async fn keys(&self) -> Vec<String> {
        let (mut keys, mut marker) = (Vec::new(), None);
        loop {
            let request = kms::ListKeysRequest { marker, ..Default::default() };
            let page = self.call(request).await.unwrap();
            keys.extend(page.keys.into_iter().map(|key| key.key_id.unwrap()));
            marker = page.next_marker;
            if marker.is_none() {
                return keys;
            }
        }
    }
}

pub fn create(spec: kms::KeySpec) -> kms::CreateKeyRequest {
    use kms::KeySpec as Spec;
    let usage = match spec {
        Spec::SymmetricDefault => kms::KeyUsageType::EncryptDecrypt,
        Spec::Hmac224 | Spec::Hmac256 | Spec::Hmac384 | Spec::Hmac512 => kms::KeyUsageType::GenerateVerifyMac,
        _ => kms::KeyUsageType::SignVerify,
    };
    kms::CreateKeyRequest { key_spec: Some(spec as i32), key_usage: Some(usage as i32), ..Default::default() }
}

pub fn encrypt(key: &str, plaintext: &[u8]) -> kms::EncryptRequest {
    kms::EncryptRequest {
        key_id: Some(key.to_owned()),
        plaintext: Some(plaintext.to_vec()),
        ..Default::default()
    }
}

pub fn decrypt(blob: &[u8]) -> kms::DecryptRequest {
    kms::DecryptRequest { ciphertext_blob: Some(blob.to_vec()), ..Default::default() }
}

pub fn sign(key: &str, spec: kms::KeySpec, message: &[u8]) -> kms::SignRequest {
    use kms::{KeySpec as Spec, SigningAlgorithmSpec as Algorithm};
    let algorithm = match spec {
        Spec::EccNistEdwards25519 => Algorithm::Ed25519Sha512,
        Spec::EccNistP384 => Algorithm::EcdsaSha384,
        Spec::EccNistP521 => Algorithm::EcdsaSha512,
        Spec::EccNistP256 | Spec::EccSecgP256k1 => Algorithm::EcdsaSha256,
        _ => Algorithm::RsassaPssSha256,
    };
    kms::SignRequest {
        key_id: Some(key.to_owned()),
        message: Some(message.to_vec()),
        message_type: Some(kms::MessageType::Raw as i32),
        signing_algorithm: Some(algorithm as i32),
        ..Default::default()
    }
}
