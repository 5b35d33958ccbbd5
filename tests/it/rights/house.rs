//! A daemon with principals of two accounts.

use std::fs;
use std::path::Path;

use rcgen::{
    CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType, DnValue, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use secrecy::ExposeSecret;
use strongroom::pki::{Ca, user_uri};

use super::{MAIN, OTHER};
use crate::support::{Client, Daemon, Instance};

/// Who there is beside the administrator: the name in the certificate, the
/// account, the kind and the identity policies.
const PRINCIPALS: [(&str, &str, &str, &[&str]); 13] = [
    ("root", MAIN, "root", &[]),
    (
        "allowed",
        MAIN,
        "user",
        &[
            r#"{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":["kms:ListKeys","kms:DescribeKey","kms:Encrypt"],"Resource":"*"}}"#,
        ],
    ),
    ("named", MAIN, "user", &[]),
    ("nobody", MAIN, "user", &[]),
    (
        "denied",
        MAIN,
        "user",
        &[
            "AdministratorAccess",
            r#"{"Version":"2012-10-17","Statement":{"Effect":"Deny","Action":["kms:Encrypt","kms:DisableKey"],"Resource":"*"}}"#,
        ],
    ),
    ("banned", MAIN, "user", &["AdministratorAccess"]),
    (
        "role",
        MAIN,
        "role",
        &[
            r#"{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":["kms:De*","kms:Encrypt","kms:DisableKey"],"Resource":"arn:aws:kms:*:111122223333:key/*"}}"#,
        ],
    ),
    ("idle-role", MAIN, "role", &[]),
    (
        "painter",
        MAIN,
        "user",
        &[
            r#"{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":["kms:Encrypt","kms:Decrypt"],"Resource":"*","Condition":{"StringEquals":{"kms:EncryptionContext:team":"red"}}}}"#,
        ],
    ),
    ("other-root", OTHER, "root", &[]),
    ("other-user", OTHER, "user", &[]),
    (
        "other-both",
        OTHER,
        "user",
        &[r#"{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"kms:*","Resource":"*"}}"#],
    ),
    ("other-administrator", OTHER, "user", &["AdministratorAccess"]),
];

/// A daemon with all of them.
pub struct House {
    /// Before the folder, so that it ends first.
    pub daemon: Daemon,
    pub instance: Instance,
    /// Signs their certificates, and is trusted with CNs.
    partners: Ca,
}

impl House {
    pub async fn open() -> House {
        House::open_with("").await
    }

    /// The same with more in the configuration.
    pub async fn open_with(more: &str) -> House {
        let instance = Instance::new();
        instance.start().await.terminate().await;
        let (partners, strangers) = (Ca::new("partners").unwrap(), Ca::new("strangers").unwrap());
        let pki = instance.path("pki");
        for (name, account, ..) in PRINCIPALS {
            partners.client(account, name).unwrap().write(&pki, name).unwrap();
        }
        for (ca, user, file) in [
            (&partners, "carol", "carol"),
            (&partners, "mallory", "mallory"),
            (&strangers, "carol", "carol-of-strangers"),
        ] {
            ca.client(MAIN, user).unwrap().write(&pki, file).unwrap();
        }
        fs::write(pki.join("partners.pem"), &partners.identity().certificate).unwrap();
        fs::write(pki.join("strangers.pem"), &strangers.identity().certificate).unwrap();
        let configuration = instance.path("strongroom.toml");
        let text = fs::read_to_string(&configuration).unwrap() + &principals() + more;
        fs::write(&configuration, text).unwrap();
        let daemon = instance.start().await;
        House { daemon, instance, partners }
    }

    pub async fn client(&self, name: &str) -> Client {
        self.daemon.client_as(name).await
    }

    pub async fn administrator(&self) -> Client {
        self.daemon.client().await
    }

    /// A CRL that revokes somebody's certificate.
    pub fn revoke(&self, name: &str) -> String {
        revoke(&self.partners, &self.instance.path(&format!("pki/{name}.pem")))
    }
}

/// The configuration of PRINCIPALS and of carol, who is known by her CN.
fn principals() -> String {
    let mut text = String::new();
    for account in [MAIN, OTHER] {
        if account == OTHER {
            text += "
[[accounts.principals]]
name = \"carol\"
type = \"user\"
identities = [{ common_name = \"carol\", ca = \"partners\" }]
policies = [\"AdministratorAccess\"]
";
            text += &format!("\n[[accounts]]\nid = \"{OTHER}\"\n");
        }
        for (name, _, kind, policies) in PRINCIPALS.iter().filter(|principal| principal.1 == account) {
            let policies: Vec<String> = policies.iter().map(|policy| format!("'{policy}'")).collect();
            text += &format!("\n[[accounts.principals]]\ntype = \"{kind}\"\n");
            if *kind != "root" {
                text += &format!("name = \"{name}\"\n");
            }
            text += &format!("identities = [{{ uri = \"{}\" }}]\n", user_uri(account, name));
            text += &format!("policies = [{}]\n", policies.join(", "));
            if *name == "painter" {
                text += "tags = { team = \"red\" }\n";
            }
        }
    }
    text + "
[tls.client_cas.partners]
file = \"pki/partners.pem\"
common_names = true

[tls.client_cas.strangers]
file = \"pki/strangers.pem\"
"
}

/// The ARN that the record names a caller by; a role's up to its session.
pub fn arn(name: &str) -> String {
    let (_, account, kind, _) = PRINCIPALS.iter().find(|principal| principal.0 == name).unwrap();
    match *kind {
        "root" => format!("arn:aws:iam::{account}:root"),
        "role" => format!("arn:aws:sts::{account}:assumed-role/{name}/"),
        _ => format!("arn:aws:iam::{account}:user/{name}"),
    }
}

/// A CRL of a CA that revokes this certificate.
fn revoke(ca: &Ca, certificate: &Path) -> String {
    let (_, pem) = x509_parser::pem::parse_x509_pem(&fs::read(certificate).unwrap()).unwrap();
    let serial = pem.parse_x509().unwrap().raw_serial().to_vec();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, DnValue::Utf8String("partners".into()));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::from_pem(ca.identity().key.expose_secret()).unwrap();
    let revoked = RevokedCertParams {
        serial_number: SerialNumber::from_slice(&serial),
        revocation_time: date_time_ymd(2020, 1, 1),
        reason_code: None,
        invalidity_date: None,
    };
    let list = CertificateRevocationListParams {
        this_update: date_time_ymd(2020, 1, 1),
        next_update: date_time_ymd(2099, 1, 1),
        crl_number: SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs: vec![revoked],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    list.signed_by(&Issuer::new(params, key)).unwrap().pem().unwrap()
}
