//! Who calls: what a connection proves, and the principal that the
//! configuration makes of it.

use std::net::SocketAddr;
use std::sync::Arc;

/// What a principal is, as CloudTrail's userIdentity.type names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PrincipalKind {
    /// The account's root.
    Root,
    /// An IAM user.
    User,
    /// A role; its callers are sessions of it.
    Role,
}

/// Somebody of the configuration who may be allowed something.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// Its identity policies: JSON policy documents.
    pub policies: Vec<Arc<str>>,
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
    /// SHA-256 of the client certificate in hex.
    pub certificate_sha256: String,
}

/// An authenticated caller of one request.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Who.
    pub principal: Arc<Principal>,
    /// From where.
    pub origin: Origin,
    /// Over which TLS session.
    pub tls: Option<TlsDetails>,
    /// The client's user agent, at most 1024 bytes.
    pub user_agent: Option<String>,
}
