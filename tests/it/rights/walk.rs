//! Every operation of the API, from its own list, with a request.

use std::collections::{BTreeMap, BTreeSet};

use http::uri::PathAndQuery;
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor};
use strongroom::operation::Operation;
use strongroom::ops::{self, Visitor};
use tokio::time::timeout;
use tonic_prost::ProstCodec;

use crate::support::{Client, LONG, Refusal};

/// A well-formed request of every operation, enums by their numbers.
const REQUESTS: &[(&str, &str)] = &[
    ("CreateKey", "{}"),
    ("DescribeKey", r#"{"keyId": "KEY"}"#),
    ("ListKeys", "{}"),
    ("UpdateKeyDescription", r#"{"keyId": "KEY", "description": "changed"}"#),
    ("EnableKey", r#"{"keyId": "KEY"}"#),
    ("DisableKey", r#"{"keyId": "KEY"}"#),
    ("ScheduleKeyDeletion", r#"{"keyId": "KEY"}"#),
    ("CancelKeyDeletion", r#"{"keyId": "KEY"}"#),
    ("GetPublicKey", r#"{"keyId": "KEY"}"#),
    ("GetKeyLastUsage", r#"{"keyId": "KEY"}"#),
    ("ReplicateKey", r#"{"keyId": "KEY", "replicaRegion": "eu-west-1"}"#),
    ("UpdatePrimaryRegion", r#"{"keyId": "KEY", "primaryRegion": "eu-west-1"}"#),
    ("Encapsulate", r#"{"keyId": "KEY", "encapsulationAlgorithm": 1}"#),
    ("Decapsulate", r#"{"keyId": "KEY", "encapsulationAlgorithm": 1, "sharedSecretCiphertextBlob": "eA=="}"#),
    ("GetParametersForImport", r#"{"keyId": "KEY", "wrappingAlgorithm": 3, "wrappingKeySpec": 1}"#),
    (
        "ImportKeyMaterial",
        r#"{"keyId": "KEY", "importToken": "eA==", "encryptedKeyMaterial": "eA==", "expirationModel": 2}"#,
    ),
    ("DeleteImportedKeyMaterial", r#"{"keyId": "KEY"}"#),
    ("EnableKeyRotation", r#"{"keyId": "KEY"}"#),
    ("DisableKeyRotation", r#"{"keyId": "KEY"}"#),
    ("GetKeyRotationStatus", r#"{"keyId": "KEY"}"#),
    ("RotateKeyOnDemand", r#"{"keyId": "KEY"}"#),
    ("ListKeyRotations", r#"{"keyId": "KEY"}"#),
    ("CreateAlias", r#"{"aliasName": "alias/new", "targetKeyId": "KEY"}"#),
    ("UpdateAlias", r#"{"aliasName": "alias/old", "targetKeyId": "KEY"}"#),
    ("DeleteAlias", r#"{"aliasName": "alias/old"}"#),
    ("ListAliases", "{}"),
    ("Encrypt", r#"{"keyId": "KEY", "plaintext": "eA=="}"#),
    ("Decrypt", r#"{"ciphertextBlob": "BLOB"}"#),
    ("ReEncrypt", r#"{"ciphertextBlob": "BLOB", "destinationKeyId": "KEY"}"#),
    ("GenerateDataKey", r#"{"keyId": "KEY", "numberOfBytes": 32}"#),
    ("GenerateDataKeyWithoutPlaintext", r#"{"keyId": "KEY", "numberOfBytes": 32}"#),
    ("GenerateDataKeyPair", r#"{"keyId": "KEY", "keyPairSpec": 4}"#),
    ("GenerateDataKeyPairWithoutPlaintext", r#"{"keyId": "KEY", "keyPairSpec": 4}"#),
    ("GenerateRandom", r#"{"numberOfBytes": 32}"#),
    ("Sign", r#"{"keyId": "KEY", "message": "eA==", "signingAlgorithm": 1}"#),
    ("Verify", r#"{"keyId": "KEY", "message": "eA==", "signature": "eA==", "signingAlgorithm": 1}"#),
    ("GenerateMac", r#"{"keyId": "KEY", "message": "eA==", "macAlgorithm": 1}"#),
    ("VerifyMac", r#"{"keyId": "KEY", "message": "eA==", "mac": "eA==", "macAlgorithm": 1}"#),
    ("DeriveSharedSecret", r#"{"keyId": "KEY", "keyAgreementAlgorithm": 1, "publicKey": "eA=="}"#),
    (
        "CreateGrant",
        r#"{"keyId": "KEY", "granteePrincipal": "arn:aws:iam::111122223333:user/new", "operations": [1]}"#,
    ),
    ("ListGrants", r#"{"keyId": "KEY"}"#),
    ("ListRetirableGrants", r#"{"retiringPrincipal": "arn:aws:iam::111122223333:user/old"}"#),
    ("RetireGrant", r#"{"keyId": "KEY", "grantId": "GRANT"}"#),
    ("RevokeGrant", r#"{"keyId": "KEY", "grantId": "GRANT"}"#),
    ("GetKeyPolicy", r#"{"keyId": "KEY"}"#),
    (
        "PutKeyPolicy",
        r#"{"keyId": "KEY", "policy": "{\"Statement\":{\"Sid\":\"New\",\"Effect\":\"Allow\",\"Principal\":{\"AWS\":\"111122223333\"},\"Action\":\"kms:*\",\"Resource\":\"*\"}}"}"#,
    ),
    ("ListKeyPolicies", r#"{"keyId": "KEY"}"#),
    ("TagResource", r#"{"keyId": "KEY", "tags": [{"tagKey": "new", "tagValue": "x"}]}"#),
    ("UntagResource", r#"{"keyId": "KEY", "tagKeys": ["old"]}"#),
    ("ListResourceTags", r#"{"keyId": "KEY"}"#),
    ("LookupEvents", "{}"),
    ("VerifyEvents", "{}"),
    ("StreamEvents", "{}"),
    (
        "CreateCustomKeyStore",
        r#"{"customKeyStoreName": "a", "cloudHsmClusterId": "cluster-aaaaaaaaaaa",
            "trustAnchorCertificate": "a", "keyStorePassword": "1234567"}"#,
    ),
    ("ConnectCustomKeyStore", r#"{"customKeyStoreId": "cks-1"}"#),
    ("DisconnectCustomKeyStore", r#"{"customKeyStoreId": "cks-1"}"#),
    ("UpdateCustomKeyStore", r#"{"customKeyStoreId": "cks-1"}"#),
    ("DeleteCustomKeyStore", r#"{"customKeyStoreId": "cks-1"}"#),
    ("DescribeCustomKeyStores", "{}"),
    ("CreateTrail", r#"{"name": "new", "s3BucketName": "bucket"}"#),
    ("UpdateTrail", r#"{"name": "old"}"#),
    ("DeleteTrail", r#"{"name": "old"}"#),
    ("GetTrail", r#"{"name": "old"}"#),
    ("DescribeTrails", "{}"),
    ("ListTrails", "{}"),
    ("GetTrailStatus", r#"{"name": "old"}"#),
    ("StartLogging", r#"{"name": "old"}"#),
    ("StopLogging", r#"{"name": "old"}"#),
    ("PutEventSelectors", r#"{"trailName": "old"}"#),
    ("GetEventSelectors", r#"{"trailName": "old"}"#),
    ("PutInsightSelectors", r#"{"trailName": "old", "insightSelectors": [{"insightType": 1}]}"#),
    ("GetInsightSelectors", r#"{"trailName": "old"}"#),
    (
        "ListInsightsMetricData",
        r#"{"eventSource": "kms.amazonaws.com", "eventName": "Encrypt", "insightType": 1}"#,
    ),
    ("ListPublicKeys", "{}"),
    ("AddTags", r#"{"resourceId": "TRAIL", "tagsList": [{"key": "a"}]}"#),
    ("RemoveTags", r#"{"resourceId": "TRAIL", "tagsList": [{"key": "a"}]}"#),
    ("ListTags", r#"{"resourceIdList": ["TRAIL"]}"#),
    ("RotateDigestKey", "{}"),
    ("DescribeOrganization", "{}"),
    (
        "PutAuditEvents",
        r#"{"channelArn": "arn:aws:cloudtrail:us-east-1:111122223333:channel/a",
            "auditEvents": [{"id": "a", "eventData": "{}"}]}"#,
    ),
    ("CreateAccessKey", r#"{"userName": "named"}"#),
    ("ListAccessKeys", r#"{"userName": "named"}"#),
    ("UpdateAccessKey", r#"{"userName": "named", "accessKeyId": "AKIAAAAAAAAAAAAAAAAA", "status": 2}"#),
    ("DeleteAccessKey", r#"{"userName": "named", "accessKeyId": "AKIAAAAAAAAAAAAAAAAA"}"#),
    ("ListMembers", "{}"),
    ("ListTokens", "{}"),
    ("AddMember", r#"{"token": "pkcs11:token=a;serial=b", "module": "softhsm2", "pin": "crypto-user"}"#),
    ("RemoveMember", r#"{"token": "pkcs11:token=a;serial=b"}"#),
    (
        "ReplaceMember",
        r#"{"replacedToken": "pkcs11:token=a;serial=b", "token": "pkcs11:token=c;serial=d", "module": "softhsm2", "pin": "crypto-user"}"#,
    ),
    ("BeginMaintenance", r#"{"token": "pkcs11:token=a;serial=b"}"#),
    ("EndMaintenance", r#"{"token": "pkcs11:token=a;serial=b"}"#),
    ("CheckMember", r#"{"token": "pkcs11:token=a;serial=b"}"#),
    (
        "CreateCluster",
        r#"{"members": [{"module": "key-store", "token": "pkcs11:token=a;serial=b"}], "trustAnchorCertificate": "a"}"#,
    ),
    ("InitializeCluster", r#"{"clusterId": "cluster-aaaaaaaaaaa", "pin": "a"}"#),
    ("DescribeClusters", "{}"),
    ("DeleteCluster", r#"{"clusterId": "cluster-aaaaaaaaaaa"}"#),
    ("RecoverKeyPolicy", r#"{"keyId": "KEY"}"#),
    (
        "ExplainAccess",
        r#"{"principal": "arn:aws:iam::111122223333:root", "action": "kms:Encrypt", "keyId": "KEY"}"#,
    ),
    ("ConfirmClock", "{}"),
];

const TRAIL: &str = "arn:aws:cloudtrail:us-east-1:111122223333:trail/old";

/// An operation's method and its request.
pub struct Call {
    method: MethodDescriptor,
    request: DynamicMessage,
}

impl Call {
    pub fn name(&self) -> &str {
        self.method.name()
    }

    pub fn is_for_the_host(&self) -> bool {
        self.method.parent_service().name() == "AdminService"
    }

    /// What it is refused with; only refusals are looked for.
    pub async fn refusal(&self, client: &Client) -> Option<Refusal> {
        let mut grpc = tonic::client::Grpc::new(client.channel());
        let path = format!("/{}/{}", self.method.parent_service().full_name(), self.name());
        let call = async {
            grpc.ready().await.unwrap();
            let codec = ProstCodec::<DynamicMessage, ()>::default();
            let path = PathAndQuery::from_maybe_shared(path).unwrap();
            let answer = grpc.server_streaming(tonic::Request::new(self.request.clone()), path, codec).await;
            match answer {
                // The first message, or the status that is there instead.
                Ok(answer) => answer.into_inner().message().await.err(),
                Err(status) => Some(status),
            }
        };
        let status = timeout(LONG, call).await.unwrap_or_else(|_| panic!("{} hangs", self.name()));
        status.as_ref().map(Refusal::read)
    }
}

/// The names of the API's own list.
#[derive(Default)]
struct Names(BTreeSet<&'static str>);

impl Visitor for Names {
    fn visit<O>(&mut self)
    where
        O: Operation,
        O::Request: prost::Message,
        O::Response: prost::Message + Default,
    {
        assert!(self.0.insert(O::NAME), "{} is there twice", O::NAME);
    }
}

/// Every operation, with a request for this key, ciphertext and grant.
pub fn calls(key: &str, blob: &[u8], grant: &str) -> Vec<Call> {
    use base64::Engine as _;
    let blob = base64::engine::general_purpose::STANDARD.encode(blob);
    let pool = DescriptorPool::decode(strongroom::proto::DESCRIPTORS).unwrap();
    let ours = pool.services().filter(|service| service.full_name().starts_with("strongroom."));
    let methods: BTreeMap<String, MethodDescriptor> = ours
        .flat_map(|service| service.methods().collect::<Vec<_>>())
        .map(|m| (m.name().to_owned(), m))
        .collect();

    let mut names = Names::default();
    ops::each(&mut names);
    names.0.insert("StreamEvents");
    assert_eq!(names.0, methods.keys().map(String::as_str).collect(), "operations and proto/");
    assert_eq!(names.0, REQUESTS.iter().map(|(name, _)| *name).collect(), "operations and REQUESTS");

    let call = |(name, json): &(&str, &str)| {
        let method = methods[*name].clone();
        let json =
            json.replace("KEY", key).replace("BLOB", &blob).replace("GRANT", grant).replace("TRAIL", TRAIL);
        let mut reader = serde_json::Deserializer::from_str(&json);
        let request = DynamicMessage::deserialize(method.input(), &mut reader).expect(name);
        Call { method, request }
    };
    REQUESTS.iter().map(call).collect()
}
