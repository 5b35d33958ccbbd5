//! The sections of the configuration file and their defaults.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::rules::{MetricFilterSettings, RuleSettings, TargetSettings};
use super::values::{self, AccountId, FileMode};
use crate::caller::PrincipalKind;
use crate::hsm::{ClusterSettings, MemberSettings, ModuleSettings};

/// The whole configuration, as it holds after all layers. There is no secret
/// in it: PINs and private keys are named by where they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The Region that is asked where a call names none, and that has the
    /// daemon's own events. Default `us-east-1`.
    #[serde(default = "default_region", deserialize_with = "values::region")]
    pub region: String,
    /// Further Regions, by name, each with keys of its own.
    #[serde(default)]
    pub regions: BTreeMap<String, RegionSettings>,
    /// Where the store is. Default `/var/lib/strongroom`.
    #[serde(default = "default_data_dir")]
    pub data_dir: PathBuf,
    /// The account that runs the installation: it has the daemon's own events,
    /// and alone may call VerifyEvents and ListMembers. Default: the first of
    /// `accounts`.
    #[serde(default)]
    pub management_account: Option<AccountId>,
    /// The gRPC listeners.
    #[serde(default)]
    pub grpc: GrpcSettings,
    /// The listener of the AWS JSON protocol.
    #[serde(default)]
    pub aws: AwsSettings,
    /// The operators' HTTP listener.
    #[serde(default)]
    pub http: HttpSettings,
    /// The daemon's certificate and the CAs of its clients.
    pub tls: TlsSettings,
    /// What one client, and all together, may ask of the daemon.
    #[serde(default)]
    pub limits: Limits,
    /// How often an account may ask.
    #[serde(default)]
    pub quotas: Quotas,
    /// The store.
    #[serde(default)]
    pub store: StoreSettings,
    /// How trails deliver.
    #[serde(default)]
    pub trail: TrailSettings,
    /// What LookupEvents finds.
    #[serde(default)]
    pub history: HistorySettings,
    /// What is unusual.
    #[serde(default)]
    pub insights: InsightSettings,
    /// Which events go to targets, by name.
    #[serde(default)]
    pub rules: BTreeMap<String, RuleSettings>,
    /// Which events are counted, by name.
    #[serde(default)]
    pub metric_filters: BTreeMap<String, MetricFilterSettings>,
    /// Where they go, by name.
    #[serde(default)]
    pub targets: BTreeMap<String, TargetSettings>,
    /// Limits of the HSM layer.
    #[serde(default)]
    pub hsm: ClusterSettings,
    /// PKCS#11 libraries by name.
    #[serde(default)]
    pub modules: BTreeMap<String, ModuleSettings>,
    /// Where PINs come from, by name.
    #[serde(default)]
    pub pins: BTreeMap<String, PinSource>,
    /// The daemon's own log (not the event log).
    #[serde(default)]
    pub log: LogSettings,
    /// Who there is.
    #[serde(default)]
    pub accounts: Vec<AccountSettings>,
    /// Which services there are that have keys, and call for others.
    #[serde(default)]
    pub services: Vec<ServiceSettings>,
}

/// `[regions.NAME]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegionSettings {
    /// The tokens of the Region's own HSMs, each brought the installation's
    /// wrapping key (`strongroom hsm bring`). Default: none, and the HSMs are
    /// those of `region`.
    pub members: Vec<MemberSettings>,
}

/// `[grpc]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GrpcSettings {
    /// TCP address, mutual TLS. Default `127.0.0.1:50051`; port 0 takes a free one.
    #[serde(deserialize_with = "values::address")]
    pub address: SocketAddr,
    /// A Unix socket besides, whose callers are known by their uid. Default: none.
    pub unix_socket: Option<PathBuf>,
    /// The socket's permissions, in octal. Default `"0660"`.
    pub unix_socket_mode: FileMode,
}

impl Default for GrpcSettings {
    fn default() -> Self {
        GrpcSettings { address: loopback(50051), unix_socket: None, unix_socket_mode: FileMode(0o660) }
    }
}

/// `[aws]`: AWS JSON, signed with access keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AwsSettings {
    /// TCP address, TLS with the daemon's certificate. Default
    /// `127.0.0.1:8080`; port 0 takes a free one.
    #[serde(deserialize_with = "values::address")]
    pub address: SocketAddr,
    /// HTTP without TLS, on a loopback address only. Default `false`.
    pub plaintext: bool,
}

impl Default for AwsSettings {
    fn default() -> Self {
        AwsSettings { address: loopback(8080), plaintext: false }
    }
}

/// `[http]`: `/livez`, `/readyz` and `/metrics`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpSettings {
    /// TCP address. Default `127.0.0.1:9090`.
    #[serde(deserialize_with = "values::address")]
    pub address: SocketAddr,
}

impl Default for HttpSettings {
    fn default() -> Self {
        HttpSettings { address: loopback(9090) }
    }
}

/// `[tls]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSettings {
    /// The daemon's certificate and its chain: PEM. Required.
    pub certificate: PathBuf,
    /// Its private key: PEM, not readable by everyone. Required.
    pub key: PathBuf,
    /// The CAs whose certificates clients may show, by name. At least one.
    #[serde(default)]
    pub client_cas: BTreeMap<String, ClientCaSettings>,
}

/// `[tls.client_cas.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientCaSettings {
    /// The CA's certificates: PEM. Required.
    pub file: PathBuf,
    /// Its revocation lists: PEM. Default: none.
    #[serde(default)]
    pub crl: Option<PathBuf>,
    /// Whether a subject CN of this CA may be an identity. Default `false`:
    /// only a CA that checks CNs before it signs may be trusted with them.
    #[serde(default)]
    pub common_names: bool,
}

/// `[limits]`: none of them is 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Open connections in all. Default 10000.
    pub connections_max: u32,
    /// Open connections per peer: per IP address, or per uid on the Unix
    /// socket. Default 1000.
    pub connections_per_peer_max: u32,
    /// Time for the TLS handshake. Default 10000 ms.
    pub handshake_timeout_ms: u64,
    /// Concurrent HTTP/2 streams of a connection. Default 1024.
    pub streams_per_connection_max: u32,
    /// A request's headers. Default 16384 bytes.
    pub header_bytes_max: u32,
    /// A request's message. Default 1048576 bytes.
    pub message_bytes_max: u32,
    /// After this age a connection is asked to close (GOAWAY). Default 3600000 ms.
    pub connection_age_ms: u64,
    /// After so long without a request a connection is closed. Default 600000 ms.
    pub connection_idle_ms: u64,
    /// A request's deadline where its client names none, and the longest that
    /// a client may name. Default 30000 ms.
    pub request_timeout_ms: u64,
    /// Requests of one principal that run at a time. Default 512.
    pub requests_per_principal_max: u32,
    /// Requests of one principal that wait until others of its have run, before
    /// it is throttled. Default 10000.
    pub requests_waiting_per_principal_max: u32,
    /// Denied requests of one principal per second, above which it is
    /// throttled. Default 50.
    pub denials_per_second: u32,
    /// Denied requests of one principal at once. Default 200.
    pub denials_burst: u32,
    /// Time for requests in flight after SIGTERM. Default 30000 ms.
    pub drain_timeout_ms: u64,
    /// Keys of an account in a Region. Default 100000, as KMS's.
    pub keys_per_account_max: u64,
    /// Aliases of an account in a Region. Default 10000.
    pub aliases_per_account_max: u64,
    /// Aliases of a key. Default 50, as KMS's.
    pub aliases_per_key_max: u64,
    /// Grants of a key. Default 50000, as KMS's.
    pub grants_per_key_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections_max: 10_000,
            connections_per_peer_max: 1_000,
            handshake_timeout_ms: 10_000,
            streams_per_connection_max: 1_024,
            header_bytes_max: 16 * 1024,
            message_bytes_max: 1024 * 1024,
            connection_age_ms: 3_600_000,
            connection_idle_ms: 600_000,
            request_timeout_ms: 30_000,
            requests_per_principal_max: 512,
            requests_waiting_per_principal_max: 10_000,
            denials_per_second: 50,
            denials_burst: 200,
            drain_timeout_ms: 30_000,
            keys_per_account_max: 100_000,
            aliases_per_account_max: 10_000,
            aliases_per_key_max: 50,
            grants_per_key_max: 50_000,
        }
    }
}

/// `[quotas]`: requests of one account in one Region per second, as many at
/// once; more get ThrottlingException. None of them is 0. The defaults are more
/// than a cluster of HSMs does; KMS's own are in `deploy/kms-quotas.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quotas {
    /// Cryptographic operations with symmetric and HMAC keys and GenerateRandom,
    /// together. Default 100000.
    pub symmetric_per_second: u32,
    /// Cryptographic operations with RSA keys, together. Default 100000.
    pub rsa_per_second: u32,
    /// Cryptographic operations with elliptic curve keys, together. Default 100000.
    pub ecc_per_second: u32,
    /// Cryptographic operations with ML-DSA keys, together. Default 100000.
    pub ml_dsa_per_second: u32,
    /// Cryptographic operations with the keys of one custom key store, together.
    /// Default 100000.
    pub custom_key_store_per_second: u32,
    /// Each other operation. Default 2000.
    pub operation_per_second: u32,
    /// Operations by name that have a quota of their own. Default: none.
    pub operations: BTreeMap<String, u32>,
}

impl Default for Quotas {
    fn default() -> Self {
        Quotas {
            symmetric_per_second: 100_000,
            rsa_per_second: 100_000,
            ecc_per_second: 100_000,
            ml_dsa_per_second: 100_000,
            custom_key_store_per_second: 100_000,
            operation_per_second: 2_000,
            operations: BTreeMap::new(),
        }
    }
}

/// `[store]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreSettings {
    /// New work is refused while the disk of `data_dir` has less free space.
    /// Default 67108864 bytes; 0 turns the mark off.
    pub min_free_bytes: u64,
    /// How long a commit may take before its request fails. Default 10000 ms.
    pub commit_timeout_ms: u64,
}

impl Default for StoreSettings {
    fn default() -> Self {
        StoreSettings { min_free_bytes: 64 * 1024 * 1024, commit_timeout_ms: 10_000 }
    }
}

/// `[trail]`: where buckets are, and how often trails deliver into them. Times
/// are seconds, or a number with one of ms, s, m, h and d (`"5m"`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrailSettings {
    /// Time between two log files. Default `"5m"`.
    #[serde(with = "values::interval")]
    pub delivery_interval: Duration,
    /// The hours of a digest; whole seconds. Default `"1h"`.
    #[serde(with = "values::interval")]
    pub digest_interval: Duration,
    /// How long one key signs digests. Default `"365d"`.
    #[serde(with = "values::interval")]
    pub digest_key_lifetime: Duration,
    /// The records of one log file, before compression. Default 33554432 bytes.
    pub file_bytes_max: u64,
    /// Buckets are folders in this one, and there is no S3. Default: none.
    pub folder: Option<PathBuf>,
    /// Where S3 is.
    pub s3: S3Settings,
}

impl Default for TrailSettings {
    fn default() -> Self {
        TrailSettings {
            delivery_interval: Duration::from_secs(5 * 60),
            digest_interval: Duration::from_secs(3600),
            digest_key_lifetime: Duration::from_secs(365 * 24 * 3600),
            file_bytes_max: 32 << 20,
            folder: None,
            s3: S3Settings::default(),
        }
    }
}

/// `[trail.s3]`. What is absent is as AWS's environment says (AWS_REGION,
/// AWS_ACCESS_KEY_ID, a container's or an instance's credentials, …).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct S3Settings {
    /// The store's URL. Default: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, or AWS.
    pub endpoint: Option<String>,
    /// Its Region. Default: AWS_REGION, AWS_DEFAULT_REGION, or the daemon's.
    pub region: Option<String>,
    /// Whether the bucket is in the path rather than in the host's name.
    /// Default `true`.
    pub path_style: bool,
    /// The access key's id; only with `secret_access_key_file`.
    pub access_key_id: Option<String>,
    /// A file with the secret access key.
    pub secret_access_key_file: Option<PathBuf>,
    /// The canned ACL of each object; empty for none. Default:
    /// `bucket-owner-full-control` where the store is AWS's, as CloudTrail has
    /// it, else none.
    pub acl: Option<String>,
    /// How each object is locked; with `object_lock_days`. Default: as the
    /// bucket says.
    pub object_lock_mode: Option<ObjectLock>,
    /// For how many days.
    pub object_lock_days: Option<u32>,
}

/// S3's modes of object lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ObjectLock {
    /// Some may delete it all the same.
    Governance,
    /// Nobody can.
    Compliance,
}

impl ObjectLock {
    /// As S3 has it.
    pub fn as_str(self) -> &'static str {
        match self {
            ObjectLock::Governance => "GOVERNANCE",
            ObjectLock::Compliance => "COMPLIANCE",
        }
    }
}

impl Default for S3Settings {
    fn default() -> Self {
        S3Settings {
            endpoint: None,
            region: None,
            path_style: true,
            access_key_id: None,
            secret_access_key_file: None,
            acl: None,
            object_lock_mode: None,
            object_lock_days: None,
        }
    }
}

/// `[history]`: how long events are kept, and LookupEvents finds them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HistorySettings {
    /// How long events are found. Default `"90d"`, as CloudTrail's.
    #[serde(with = "values::interval")]
    pub retention: Duration,
    /// What the index may use of the disk; the oldest days go first, today's
    /// never. Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_max: Option<u64>,
    /// What the database, which has the log, may use; the oldest events go
    /// first. Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_bytes_max: Option<u64>,
    /// Whether the log keeps what the index forgets. Default `false`.
    pub keep_log: bool,
    /// How often what is too old is looked for. Default `"1h"`.
    #[serde(with = "values::interval")]
    pub trim_interval: Duration,
}

impl HistorySettings {
    /// `retention` in milliseconds.
    pub fn retention_ms(&self) -> i64 {
        i64::try_from(self.retention.as_millis()).unwrap_or(i64::MAX)
    }
}

impl Default for HistorySettings {
    fn default() -> Self {
        HistorySettings {
            retention: Duration::from_secs(90 * 24 * 3600),
            bytes_max: None,
            log_bytes_max: None,
            keep_log: false,
            trim_interval: Duration::from_secs(3600),
        }
    }
}

/// `[insights]`: what is unusual in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InsightSettings {
    /// Whether the log is watched. Default `true`; Insights are made only for
    /// those who have a trail with Insights selectors.
    pub enabled: bool,
    /// How long the usual is learned before anything is unusual. Default `"24h"`.
    #[serde(with = "values::interval")]
    pub learning: Duration,
    /// What is counted together. Default `"1m"`, as CloudTrail's; a shorter one
    /// makes the hours, days and weeks that are compared shorter too.
    #[serde(with = "values::interval")]
    pub minute: Duration,
}

impl Default for InsightSettings {
    fn default() -> Self {
        InsightSettings {
            enabled: true,
            learning: Duration::from_secs(24 * 3600),
            minute: Duration::from_secs(60),
        }
    }
}

/// `[pins.NAME]`: where a PIN comes from, exactly one of three.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "PinFields", into = "PinFields")]
pub enum PinSource {
    /// `file`: a file that only its owner can read.
    File(PathBuf),
    /// `credential`: a systemd credential, `$CREDENTIALS_DIRECTORY/NAME`.
    Credential(String),
    /// `prompt = true`: asked for on the terminal.
    Prompt,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PinFields {
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    credential: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    prompt: bool,
}

impl TryFrom<PinFields> for PinSource {
    type Error = &'static str;

    fn try_from(fields: PinFields) -> Result<Self, Self::Error> {
        match fields {
            PinFields { file: Some(file), credential: None, prompt: false } => Ok(PinSource::File(file)),
            PinFields { file: None, credential: Some(name), prompt: false } => {
                if name.is_empty() || name.contains('/') || name.starts_with('.') {
                    return Err("credential is not a credential's name; write the ID of LoadCredential=");
                }
                Ok(PinSource::Credential(name))
            }
            PinFields { file: None, credential: None, prompt: true } => Ok(PinSource::Prompt),
            _ => Err("is not one source; write exactly one of file = \"PATH\", credential = \"NAME\" \
                      and prompt = true"),
        }
    }
}

impl From<PinSource> for PinFields {
    fn from(source: PinSource) -> Self {
        match source {
            PinSource::File(file) => PinFields { file: Some(file), ..Default::default() },
            PinSource::Credential(name) => PinFields { credential: Some(name), ..Default::default() },
            PinSource::Prompt => PinFields { prompt: true, ..Default::default() },
        }
    }
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSettings {
    /// `text` (the default) or `json`.
    pub format: LogFormat,
    /// A level, or directives such as `info,strongroom::hsm=debug`. Default `info`.
    pub filter: String,
}

impl Default for LogSettings {
    fn default() -> Self {
        LogSettings { format: LogFormat::Text, filter: "info".into() }
    }
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// An object per line.
    Json,
    /// For people.
    Text,
}

/// `[[accounts]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountSettings {
    /// Twelve digits. Required.
    pub id: AccountId,
    /// For people. Default: empty.
    #[serde(default)]
    pub name: String,
    /// Its principals.
    #[serde(default)]
    pub principals: Vec<PrincipalSettings>,
}

/// `[[accounts.principals]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrincipalSettings {
    /// User or role name. Required but for the root, whose name is `root`.
    #[serde(default)]
    pub name: String,
    /// `user` (the default), `role` or `root`.
    #[serde(default = "default_kind", rename = "type", with = "kind")]
    pub kind: PrincipalKind,
    /// How it is known.
    #[serde(default)]
    pub identities: Vec<IdentitySettings>,
    /// What it signs requests of the AWS protocol with.
    #[serde(default)]
    pub access_keys: Vec<AccessKeySettings>,
    /// Its identity policies.
    #[serde(default)]
    pub policies: Vec<PolicySource>,
    /// Its tags, which conditions ask for as `aws:PrincipalTag/…`.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// `[[services]]`: a service of this installation that is to KMS what one of
/// AWS's services is. It calls for itself, or says for which principal it calls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceSettings {
    /// `s3.amazonaws.com`. Required.
    pub name: String,
    /// What its callers prove to be it.
    #[serde(default)]
    pub identities: Vec<IdentitySettings>,
    /// Its access keys of the AWS protocol.
    #[serde(default)]
    pub access_keys: Vec<AccessKeySettings>,
}

/// `{ id = "AKIA…", secret_file = "PATH" }`: an access key of the AWS protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessKeySettings {
    /// 16 to 128 capital letters and digits, `AKIA…` usually. Required.
    pub id: String,
    /// Where the secret access key is: a file that only its owner can read.
    /// Required.
    pub secret_file: PathBuf,
}

/// One way in which a principal is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "IdentityFields", into = "IdentityFields")]
pub enum IdentitySettings {
    /// `{ uri = "spiffe://…" }`: a certificate's SAN URI, compared exactly.
    Uri(String),
    /// `{ common_name = "…", ca = "NAME" }`: a certificate's subject CN, of
    /// this CA only.
    CommonName {
        /// The CN.
        common_name: String,
        /// A name of `[tls.client_cas]` that has `common_names = true`.
        ca: String,
    },
    /// `{ uid = 1000 }`: the peer of the Unix socket.
    Uid(u32),
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct IdentityFields {
    #[serde(skip_serializing_if = "Option::is_none")]
    uri: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    common_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ca: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
}

impl TryFrom<IdentityFields> for IdentitySettings {
    type Error = &'static str;

    fn try_from(fields: IdentityFields) -> Result<Self, Self::Error> {
        match fields {
            IdentityFields { uri: Some(uri), common_name: None, ca: None, uid: None } => {
                if uri.split_once(':').is_none_or(|(scheme, rest)| scheme.is_empty() || rest.is_empty()) {
                    return Err("uri is not a URI; write it as in the certificate's SAN, such as \
                                \"spiffe://example.org/alice\"");
                }
                Ok(IdentitySettings::Uri(uri))
            }
            IdentityFields { uri: None, common_name: Some(common_name), ca: Some(ca), uid: None }
                if !common_name.is_empty() =>
            {
                Ok(IdentitySettings::CommonName { common_name, ca })
            }
            IdentityFields { uri: None, common_name: None, ca: None, uid: Some(uid) } => {
                Ok(IdentitySettings::Uid(uid))
            }
            _ => Err("is not one identity; write exactly one of { uri = \"…\" }, \
                      { common_name = \"…\", ca = \"NAME\" } and { uid = 1000 }"),
        }
    }
}

impl From<IdentitySettings> for IdentityFields {
    fn from(identity: IdentitySettings) -> Self {
        match identity {
            IdentitySettings::Uri(uri) => IdentityFields { uri: Some(uri), ..Default::default() },
            IdentitySettings::CommonName { common_name, ca } => {
                IdentityFields { common_name: Some(common_name), ca: Some(ca), ..Default::default() }
            }
            IdentitySettings::Uid(uid) => IdentityFields { uid: Some(uid), ..Default::default() },
        }
    }
}

/// An identity policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum PolicySource {
    /// A JSON document, or the name of a policy that is built in
    /// (`AdministratorAccess`).
    Text(String),
    /// `{ file = "path.json" }`.
    File {
        /// The JSON document.
        file: PathBuf,
    },
}

impl<'de> Deserialize<'de> for PolicySource {
    // By hand, because an untagged enum would lose what is wrong with the value.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = PolicySource;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a JSON document, the name of a built-in policy or { file = \"PATH\" }")
            }

            fn visit_str<E>(self, text: &str) -> Result<PolicySource, E> {
                Ok(PolicySource::Text(text.to_owned()))
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<PolicySource, A::Error> {
                #[derive(Deserialize)]
                #[serde(deny_unknown_fields)]
                struct Fields {
                    file: PathBuf,
                }
                let fields = Fields::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                Ok(PolicySource::File { file: fields.file })
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// `PrincipalKind` in the configuration's words.
mod kind {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::caller::PrincipalKind;

    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Kind {
        User,
        Role,
        Root,
    }

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
    pub fn serialize<S: Serializer>(kind: &PrincipalKind, serializer: S) -> Result<S::Ok, S::Error> {
        let kind = match kind {
            PrincipalKind::User => Kind::User,
            PrincipalKind::Role => Kind::Role,
            // A service is no principal of an account.
            PrincipalKind::Root | PrincipalKind::Service => Kind::Root,
        };
        kind.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PrincipalKind, D::Error> {
        Ok(match Kind::deserialize(deserializer)? {
            Kind::User => PrincipalKind::User,
            Kind::Role => PrincipalKind::Role,
            Kind::Root => PrincipalKind::Root,
        })
    }
}

fn default_region() -> String {
    "us-east-1".into()
}

fn default_data_dir() -> PathBuf {
    "/var/lib/strongroom".into()
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn default_kind() -> PrincipalKind {
    PrincipalKind::User
}
