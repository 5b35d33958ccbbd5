//! Who calls: what a connection proves, and the principal that the
//! configuration makes of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::policy::Policy;

/// What a principal is, as CloudTrail's userIdentity.type names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PrincipalKind {
    /// The account's root.
    Root,
    /// An IAM user.
    User,
    /// A role; its callers are sessions of it.
    Role,
    /// An AWS service of this installation.
    Service,
}

/// Somebody of the configuration who may be allowed something.
#[derive(Debug, Clone)]
pub struct Principal {
    /// Twelve digits.
    pub account: String,
    /// User, role or root.
    pub kind: PrincipalKind,
    /// User or role name; `root` for the root.
    pub name: String,
    /// `arn:aws:iam::111122223333:user/alice`.
    pub arn: String,
    /// A stable id of the principal, `AIDA…`, `AROA…`, or the account's.
    pub principal_id: String,
    /// Its identity policies.
    pub policies: Vec<Arc<Policy>>,
    /// Its tags, `aws:PrincipalTag/…`.
    pub tags: BTreeMap<String, String>,
}

/// One way in which a peer proved who it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Credential {
    /// A SAN URI of the client certificate, compared exactly.
    Uri(String),
    /// The subject's CN, with the name of the configured CA that issued the
    /// certificate.
    CommonName {
        /// A name of `[tls.client_cas]`.
        ca: String,
        /// The CN.
        cn: String,
    },
    /// The peer's uid on a Unix socket (SO_PEERCRED).
    Uid(u32),
}

/// Where a request came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix socket of this host.
    Unix {
        /// The peer's user id.
        uid: u32,
        /// The peer's process, where the kernel tells.
        pid: Option<i32>,
    },
}

/// The TLS session of a request, CloudTrail's tlsDetails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsDetails {
    /// `TLSv1.3`.
    pub version: String,
    /// `TLS_AES_256_GCM_SHA384`.
    pub cipher_suite: String,
    /// The host that the client asked for (SNI).
    pub host: Option<String>,
    /// SHA-256 of the client certificate in hex; none where the client has none.
    pub certificate_sha256: Option<String>,
}

/// A service that calls, and what it says of its call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceCall {
    /// `s3.amazonaws.com`.
    pub service: String,
    /// The resource that it calls for, `aws:SourceArn`.
    pub source_arn: Option<String>,
    /// That resource's account, `aws:SourceAccount`.
    pub source_account: Option<String>,
}

/// An authenticated caller of one request.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Who: of a call that a service makes for somebody, that somebody.
    pub principal: Arc<Principal>,
    /// The service, where one calls.
    pub service: Option<Arc<ServiceCall>>,
    /// The access key that signed the request.
    pub access_key_id: Option<String>,
    /// From where.
    pub origin: Origin,
    /// Over which TLS session.
    pub tls: Option<TlsDetails>,
    /// The client's user agent, at most 1024 bytes.
    pub user_agent: Option<String>,
}

impl Principal {
    /// Root or the daemon's own user on this host, without a principal of the
    /// configuration: may do what only the host may do, and nothing else. No
    /// configured name has a slash, so none is this one's.
    pub fn host(account: &str, uid: u32) -> Principal {
        let name = format!("host/uid-{uid}");
        Principal {
            account: account.to_owned(),
            kind: PrincipalKind::User,
            arn: format!("arn:aws:iam::{account}:user/{name}"),
            principal_id: name.clone(),
            name,
            policies: Vec::new(),
            tags: BTreeMap::new(),
        }
    }

    /// An account's root, without a principal of the configuration.
    pub fn root(account: &str) -> Principal {
        Principal {
            account: account.to_owned(),
            kind: PrincipalKind::Root,
            name: "root".to_owned(),
            arn: format!("arn:aws:iam::{account}:root"),
            principal_id: account.to_owned(),
            policies: Vec::new(),
            tags: BTreeMap::new(),
        }
    }

    /// A service, with an account of its own that is nobody's.
    pub fn service(name: &str, account: String) -> Principal {
        Principal {
            account,
            kind: PrincipalKind::Service,
            name: name.to_owned(),
            arn: name.to_owned(),
            principal_id: name.to_owned(),
            policies: Vec::new(),
            tags: BTreeMap::new(),
        }
    }

    /// The ARN of a session of a role.
    pub fn session_arn(&self, session: &str) -> String {
        format!("arn:aws:sts::{}:assumed-role/{}/{session}", self.account, self.name)
    }
}

impl ServiceCall {
    /// The service's name without its domain, `s3`.
    pub fn short_name(&self) -> &str {
        short_name(&self.service)
    }
}

/// A service's name without its domain.
pub fn short_name(service: &str) -> &str {
    service.split_once('.').map_or(service, |(short, _)| short)
}

impl Caller {
    /// The service through which the principal calls; none for a service that
    /// calls for itself.
    pub fn via(&self) -> Option<&ServiceCall> {
        self.service.as_deref().filter(|_| self.principal.kind != PrincipalKind::Service)
    }

    /// The name of this session, for callers that are a role.
    pub fn session_name(&self) -> String {
        let certificate = self.tls.as_ref().and_then(|tls| tls.certificate_sha256.as_ref());
        if let Some(via) = self.via() {
            return via.short_name().to_owned();
        }
        match (&self.access_key_id, certificate, &self.origin) {
            (Some(id), _, _) => id.clone(),
            (None, Some(sha256), _) => sha256.chars().take(SESSION_NAME_CHARS).collect(),
            (None, None, Origin::Unix { uid, .. }) => format!("uid-{uid}"),
            (None, None, Origin::Tcp(address)) => address.ip().to_string(),
        }
    }

    /// `aws:userid`: the principal's id, with the session's name for a role.
    pub fn user_id(&self) -> String {
        match self.principal.kind {
            PrincipalKind::Role => format!("{}:{}", self.principal.principal_id, self.session_name()),
            PrincipalKind::Root | PrincipalKind::User | PrincipalKind::Service => {
                self.principal.principal_id.clone()
            }
        }
    }

    /// The ARN that policies and messages name the caller by.
    pub fn arn(&self) -> String {
        match self.principal.kind {
            PrincipalKind::Role => self.principal.session_arn(&self.session_name()),
            PrincipalKind::Root | PrincipalKind::User | PrincipalKind::Service => self.principal.arn.clone(),
        }
    }
}

const SESSION_NAME_CHARS: usize = 32;
