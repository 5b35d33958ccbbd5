//! Who there is: accounts, principals, and what a peer must prove to be one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use secrecy::SecretString;
use sha2::{Digest, Sha256};

use super::check::Report;
use super::error::Key;
use super::files::Reader;
use super::pins::Secret;
use super::settings::{AccessKeySettings, Config, IdentitySettings, PolicySource, PrincipalSettings};
use crate::caller::{Credential, Principal, PrincipalKind};
use crate::policy::Policy;

/// The built-in policy of this name: everything is allowed.
pub const ADMINISTRATOR_ACCESS: &str =
    r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}"#;

/// An account of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Twelve digits.
    pub id: String,
    /// For people; may be empty.
    pub name: String,
}

/// An access key of the AWS protocol.
#[derive(Debug, Clone)]
pub struct AccessKey {
    /// Whose it is.
    pub principal: Arc<Principal>,
    /// The secret access key.
    pub secret: SecretString,
}

/// Accounts and principals.
#[derive(Debug, Clone, Default)]
pub struct Directory {
    accounts: BTreeMap<String, Account>,
    by_arn: BTreeMap<String, Arc<Principal>>,
    by_credential: HashMap<Credential, Arc<Principal>>,
    access_keys: HashMap<String, AccessKey>,
}

impl Directory {
    /// Who a peer is that has proved all of these.
    ///
    /// A certificate's SAN URI counts before its CN, and that before a uid.
    /// Where several of one kind name different principals, it is nobody: the
    /// certificate does not say which it means.
    pub fn resolve(&self, credentials: &[Credential]) -> Option<Arc<Principal>> {
        let rank = |credential: &Credential| match credential {
            Credential::Uri(_) => 0,
            Credential::CommonName { .. } => 1,
            Credential::Uid(_) => 2,
        };
        let known = |credential: &Credential| Some((rank(credential), self.by_credential.get(credential)?));
        let found: Vec<_> = credentials.iter().filter_map(known).collect();
        let best = found.iter().map(|(rank, _)| *rank).min()?;
        let mut named = found.into_iter().filter(|(rank, _)| *rank == best).map(|(_, principal)| principal);
        let first = named.next()?;
        if let Some(other) = named.find(|other| other.arn != first.arn) {
            tracing::warn!(first = first.arn, other = other.arn, "a peer's credentials name two principals");
            return None;
        }
        Some(first.clone())
    }

    /// Every access key with its id.
    pub fn access_keys(&self) -> impl Iterator<Item = (&String, &AccessKey)> {
        self.access_keys.iter()
    }

    /// The principal of an ARN.
    pub fn principal(&self, arn: &str) -> Option<&Arc<Principal>> {
        self.by_arn.get(arn)
    }

    /// Every principal, in the order of the ARNs.
    pub fn principals(&self) -> impl Iterator<Item = &Arc<Principal>> {
        self.by_arn.values()
    }

    /// The account of an id.
    pub fn account(&self, id: &str) -> Option<&Account> {
        self.accounts.get(id)
    }

    /// Every account, in the order of the ids.
    pub fn accounts(&self) -> impl Iterator<Item = &Account> {
        self.accounts.values()
    }
}

/// Makes the directory of `[[accounts]]`; what is wrong goes to the report.
pub(super) fn build(config: &Config, reader: &mut Reader, report: &mut Report<'_>) -> Directory {
    let mut builder = Builder { config, reader, report, directory: Directory::default() };
    builder.accounts();
    builder.services();
    builder.directory
}

struct Builder<'a, 'r> {
    config: &'a Config,
    reader: &'a mut Reader,
    report: &'a mut Report<'r>,
    directory: Directory,
}

impl Builder<'_, '_> {
    fn accounts(&mut self) {
        let config = self.config;
        let at = Key::of("accounts");
        if config.accounts.is_empty() {
            let remedy =
                "add [[accounts]] with an id and [[accounts.principals]] with identities and policies";
            self.report.add(&at, "there is no account, so nobody may call", remedy);
        }
        for (index, account) in config.accounts.iter().enumerate() {
            let at = at.index(index);
            let id = account.id.as_str().to_owned();
            let entry = Account { id: id.clone(), name: account.name.clone() };
            if self.directory.accounts.insert(id.clone(), entry).is_some() {
                let text = format!("account {id} is there twice");
                self.report.add(&at.field("id"), text, "put its principals into one [[accounts]]");
            }
            for (index, principal) in account.principals.iter().enumerate() {
                self.principal(&at.field("principals").index(index), &id, principal);
            }
        }
        if let Some(id) = &config.management_account
            && !config.accounts.is_empty()
            && !self.directory.accounts.contains_key(id.as_str())
        {
            let remedy = "write the id of one of [[accounts]]";
            self.report.add(&Key::of("management_account"), format!("account {id} is unknown"), remedy);
        }
    }

    fn services(&mut self) {
        let config = self.config;
        for (index, settings) in config.services.iter().enumerate() {
            let at = Key::of("services").index(index);
            let name = &settings.name;
            if !is_service(name) {
                let remedy = "write such as s3.amazonaws.com";
                self.report.add(&at.field("name"), "is not a service's name", remedy);
                continue;
            }
            let account = service_account(name);
            if self.directory.accounts.contains_key(&account) {
                let text = format!("account {account} is of {name}");
                self.report.add(&Key::of("accounts"), text, "give the account another id");
            }
            let principal = Arc::new(Principal::service(name, account));
            if self.directory.by_arn.insert(name.clone(), principal.clone()).is_some() {
                self.report.add(&at.field("name"), format!("{name} is there twice"), "put them into one");
            }
            self.proofs(&at, &settings.identities, &settings.access_keys, &principal);
        }
    }

    fn principal(&mut self, at: &Key, account: &str, settings: &PrincipalSettings) {
        let Some(name) = self.name(at, settings) else { return };
        let arn = match settings.kind {
            PrincipalKind::User => format!("arn:aws:iam::{account}:user/{name}"),
            PrincipalKind::Role => format!("arn:aws:iam::{account}:role/{name}"),
            PrincipalKind::Root | PrincipalKind::Service => format!("arn:aws:iam::{account}:root"),
        };
        let policies = settings.policies.iter().enumerate();
        let policies = policies
            .filter_map(|(index, policy)| self.policy(&at.field("policies").index(index), policy))
            .collect();
        let principal = Arc::new(Principal {
            account: account.to_owned(),
            kind: settings.kind,
            principal_id: principal_id(settings.kind, account, &arn),
            name,
            arn: arn.clone(),
            policies,
            tags: settings.tags.clone(),
        });
        if self.directory.by_arn.insert(arn.clone(), principal.clone()).is_some() {
            let text = format!("{arn} is there twice");
            self.report.add(&at.field("name"), text, "give it another name, or put its identities into one");
        }
        self.proofs(at, &settings.identities, &settings.access_keys, &principal);
    }

    /// What its callers prove to be it.
    fn proofs(
        &mut self,
        at: &Key,
        identities: &[IdentitySettings],
        access_keys: &[AccessKeySettings],
        principal: &Arc<Principal>,
    ) {
        for (index, identity) in identities.iter().enumerate() {
            self.identity(&at.field("identities").index(index), identity, principal);
        }
        for (index, key) in access_keys.iter().enumerate() {
            self.access_key(&at.field("access_keys").index(index), key, principal);
        }
    }

    fn access_key(&mut self, at: &Key, settings: &AccessKeySettings, principal: &Arc<Principal>) {
        // IAM's rule, but for small letters and underscores, which it never makes.
        let id = &settings.id;
        let plain = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit();
        if !(16..=128).contains(&id.len()) || !id.bytes().all(plain) {
            let remedy = "write 16 to 128 capital letters and digits, such as AKIAIOSFODNN7EXAMPLE";
            return self.report.add(&at.field("id"), "is not an access key's id", remedy);
        }
        let secret = Secret { what: "secret access key", key: at.to_string(), file_field: "secret_file" };
        let secret = match secret.file(&settings.secret_file) {
            Ok(secret) => secret,
            Err(problem) => return self.report.take(problem),
        };
        let key = AccessKey { principal: principal.clone(), secret };
        if let Some(other) = self.directory.access_keys.insert(id.clone(), key) {
            let text = format!("this access key is {}'s already", other.principal.arn);
            self.report.add(&at.field("id"), text, "an access key belongs to one principal: make another");
        }
    }

    fn name(&mut self, at: &Key, settings: &PrincipalSettings) -> Option<String> {
        // IAM's rule for user and role names.
        const NAME_BYTES_MAX: usize = 64;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte);
        let name = &settings.name;
        let (good, remedy) = match settings.kind {
            PrincipalKind::Root | PrincipalKind::Service => {
                (name.is_empty() || name == "root", "leave the root's name out")
            }
            PrincipalKind::User | PrincipalKind::Role => (
                !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.bytes().all(plain),
                "write 1 to 64 letters, digits and _+=,.@-",
            ),
        };
        if !good {
            self.report.add(&at.field("name"), "is not a principal's name", remedy);
            return None;
        }
        Some(if settings.kind == PrincipalKind::Root { "root".into() } else { name.clone() })
    }

    fn policy(&mut self, at: &Key, source: &PolicySource) -> Option<Arc<Policy>> {
        let text = match source {
            PolicySource::Text(name) if name == "AdministratorAccess" => ADMINISTRATOR_ACCESS.to_owned(),
            PolicySource::Text(text) if text.trim_start().starts_with('{') => text.clone(),
            PolicySource::Text(_) => {
                let remedy = "write AdministratorAccess, a JSON document or { file = \"PATH\" }";
                self.report.add(at, "there is no built-in policy of this name", remedy);
                return None;
            }
            PolicySource::File { file } => {
                let contents = self.reader.read(&at.field("file"), file, self.report)?;
                match String::from_utf8(contents) {
                    Ok(text) => text,
                    Err(_) => {
                        let text = format!("{} is not UTF-8", file.display());
                        self.report.add(at, text, "write the policy as JSON in UTF-8");
                        return None;
                    }
                }
            }
        };
        match crate::conditions::identity_policy(&text) {
            Ok(policy) => Some(Arc::new(policy)),
            Err(reason) => {
                let place = match source {
                    PolicySource::File { file } => format!("{} is", file.display()),
                    PolicySource::Text(_) => "is".into(),
                };
                self.report.add(at, format!("{place} not a valid policy: {reason}"), "correct the policy");
                None
            }
        }
    }

    fn identity(&mut self, at: &Key, identity: &IdentitySettings, principal: &Arc<Principal>) {
        let credential = match identity {
            IdentitySettings::Uri(uri) => Credential::Uri(uri.clone()),
            IdentitySettings::Uid(uid) => Credential::Uid(*uid),
            IdentitySettings::CommonName { common_name, ca } => {
                let problem = match self.config.tls.client_cas.get(ca) {
                    None => Some(("is unknown", "name one of [tls.client_cas]".to_owned())),
                    Some(settings) if !settings.common_names => Some((
                        "is not trusted with CNs",
                        format!(
                            "set tls.client_cas.{ca}.common_names = true, or use the certificate's SAN URI"
                        ),
                    )),
                    Some(_) => None,
                };
                if let Some((text, remedy)) = problem {
                    return self.report.add(&at.field("ca"), format!("CA {ca} {text}"), remedy);
                }
                Credential::CommonName { ca: ca.clone(), cn: common_name.clone() }
            }
        };
        if let Some(other) = self.directory.by_credential.insert(credential, principal.clone()) {
            let text = format!("this identity is {}'s already", other.arn);
            self.report.add(at, text, "an identity belongs to one principal: remove it from the other");
        }
    }
}

/// `s3.amazonaws.com`.
fn is_service(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    name.strip_suffix(".amazonaws.com").is_some_and(|short| !short.is_empty() && short.bytes().all(plain))
}

/// A service's own account, the same for ever: nobody's, whose keys are AWS
/// owned keys.
fn service_account(name: &str) -> String {
    let hash = Sha256::digest(format!("strongroom service 1\n{name}"));
    hash.iter().take(12).map(|byte| char::from(b'0' + byte % 10)).collect()
}

/// An id in AWS's form, the same for the same ARN for ever: a prefix for the
/// kind and 17 characters of base32 (RFC 4648) from the ARN's SHA-256.
fn principal_id(kind: PrincipalKind, account: &str, arn: &str) -> String {
    let prefix = match kind {
        PrincipalKind::User => "AIDA",
        PrincipalKind::Role => "AROA",
        PrincipalKind::Root | PrincipalKind::Service => return account.to_owned(),
    };
    let hash = Sha256::digest(format!("strongroom principal 1\n{arn}"));
    let letter = |byte: &u8| match byte & 31 {
        value @ 0..26 => char::from(b'A' + value),
        value => char::from(b'2' + (value - 26)),
    };
    prefix.chars().chain(hash.iter().take(17).map(letter)).collect()
}
