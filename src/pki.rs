//! A small CA of one's own: what `init` and `dev` need so that mutual TLS works
//! at once. Whoever has a CA already uses that one.
//!
//! ```text
//! ca.pem ─┬─ server.pem   SAN: localhost, 127.0.0.1, ::1, names
//!         └─ NAME.pem     SAN: spiffe://strongroom/account/111122223333/user/NAME
//! ```

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use secrecy::{ExposeSecret, SecretString};

/// A CA's certificate holds for so many days.
pub const CA_VALIDITY_DAYS: i32 = 3650;
/// A server's and a client's.
pub const LEAF_VALIDITY_DAYS: i32 = 825;

/// Why a certificate could not be made or written.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A name that a certificate cannot carry, or a failure of the library.
    #[error("a certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    /// The clock says a time that a certificate cannot carry.
    #[error("a certificate cannot be made: the clock is wrong ({0})")]
    Clock(#[from] jiff::Error),
    /// A file could not be written; one that is there is never overwritten.
    #[error("{} cannot be written: {error}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// A certificate and its private key. Its Debug form shows no key.
#[derive(Debug)]
pub struct Identity {
    /// PEM.
    pub certificate: String,
    /// PKCS#8 in PEM.
    pub key: SecretString,
}

impl Identity {
    fn new(certificate: &rcgen::Certificate, key: &KeyPair) -> Self {
        Identity { certificate: certificate.pem(), key: SecretString::from(key.serialize_pem()) }
    }

    /// Writes `STEM.pem`, and `STEM.key` with mode 0600. Neither may be there.
    pub fn write(&self, folder: &Path, stem: &str) -> Result<(), PkiError> {
        let key = folder.join(format!("{stem}.key"));
        write_new(&key, self.key.expose_secret().as_bytes(), 0o600)?;
        let certificate = folder.join(format!("{stem}.pem"));
        write_new(&certificate, self.certificate.as_bytes(), 0o644)
    }
}

/// A certificate authority with an ECDSA P-256 key.
pub struct Ca {
    identity: Identity,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl Ca {
    /// Makes a CA that signs certificates of servers and clients, no other CAs.
    pub fn new(name: &str) -> Result<Self, PkiError> {
        let mut params = params(name, CA_VALIDITY_DAYS)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.self_signed(&key)?;
        let identity = Identity::new(&certificate, &key);
        Ok(Ca { identity, issuer: Issuer::new(params, key) })
    }

    /// The CA's own certificate and key.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// A server's certificate for localhost and the given names and addresses.
    pub fn server(&self, names: &[String]) -> Result<Identity, PkiError> {
        let mut all: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
        for name in names {
            if !all.contains(name) {
                all.push(name.clone());
            }
        }
        let sans = CertificateParams::new(all)?.subject_alt_names;
        self.leaf("Strongroom server", sans, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A client's certificate, known by [`user_uri`].
    pub fn client(&self, account: &str, user: &str) -> Result<Identity, PkiError> {
        let uri = SanType::URI(user_uri(account, user).try_into()?);
        self.leaf(user, vec![uri], ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn leaf(
        &self,
        name: &str,
        sans: Vec<SanType>,
        purpose: ExtendedKeyUsagePurpose,
    ) -> Result<Identity, PkiError> {
        let mut params = params(name, LEAF_VALIDITY_DAYS)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.subject_alt_names = sans;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![purpose];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Identity::new(&certificate, &key))
    }
}

/// The SAN URI of a user's certificate: `spiffe://strongroom/account/ID/user/NAME`.
pub fn user_uri(account: &str, user: &str) -> String {
    format!("spiffe://strongroom/account/{account}/user/{user}")
}

/// Writes a file that is not there yet, on the disk when the call returns.
pub(crate) fn write_new(path: &Path, contents: &[u8], mode: u32) -> Result<(), PkiError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(contents)?;
        file.sync_all()
    };
    write().map_err(|error| PkiError::Write { path: path.to_owned(), error })
}

fn params(name: &str, days: i32) -> Result<CertificateParams, PkiError> {
    // From yesterday, for clients whose clocks are behind.
    let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
    let mut params = CertificateParams::default();
    let date = |date: Date| {
        rcgen::date_time_ymd(date.year().into(), date.month().unsigned_abs(), date.day().unsigned_abs())
    };
    params.not_before = date(today.checked_sub(1.day())?);
    params.not_after = date(today.checked_add(days.days())?);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, DnValue::Utf8String(name.into()));
    Ok(params)
}
