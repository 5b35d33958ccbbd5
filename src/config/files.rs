//! The files that the configuration names: read once, so that what is used is
//! what was hashed and checked.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use sha2::{Digest, Sha256};

use super::check::Report;
use super::error::Key;
use super::settings::{ClientCaSettings, Config, TlsSettings};

/// The contents of the files of `[tls]`, checked: the key belongs to the
/// certificate, the CAs can be trust anchors.
#[derive(Clone)]
pub struct TlsFiles {
    /// The daemon's certificate, its chain and private key.
    pub identity: Arc<CertifiedKey>,
    /// The clients' CAs by name.
    pub client_cas: BTreeMap<String, ClientCaFiles>,
}

/// A CA of `[tls.client_cas]`.
#[derive(Debug, Clone)]
pub struct ClientCaFiles {
    /// Its certificates, at least one.
    pub certificates: Vec<CertificateDer<'static>>,
    /// Its revocation lists.
    pub crls: Vec<CertificateRevocationListDer<'static>>,
    /// Whether CNs of this CA are identities.
    pub common_names: bool,
}

impl std::fmt::Debug for TlsFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsFiles").field("client_cas", &self.client_cas).finish_non_exhaustive()
    }
}

/// Reads files and hashes what they say.
pub(super) struct Reader {
    hash: Sha256,
}

impl Reader {
    /// Larger files are refused. A CA's CRL may have some 100000 entries.
    const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

    pub fn new(config: &Config) -> Self {
        let mut hash = Sha256::new();
        // A struct of texts, numbers and maps with text keys: it has a JSON form.
        let text = serde_json::to_vec(config).unwrap_or_default();
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text);
        Reader { hash }
    }

    pub fn sha256(self) -> String {
        hex::encode(self.hash.finalize())
    }

    /// The file's contents; none where the report says why.
    pub fn read(&mut self, key: &Key, path: &Path, report: &mut Report<'_>) -> Option<Vec<u8>> {
        let contents = read(key, path, report)?;
        for part in [key.to_string().as_bytes(), &contents] {
            self.hash.update((part.len() as u64).to_be_bytes());
            self.hash.update(part);
        }
        Some(contents)
    }

    /// The files of `[tls]`; none where the report says why.
    pub fn tls(&mut self, tls: &TlsSettings, report: &mut Report<'_>) -> Option<TlsFiles> {
        let identity = self.identity(tls, report);
        let mut client_cas = BTreeMap::new();
        for (name, ca) in &tls.client_cas {
            if let Some(files) = self.client_ca(&Key::of("tls.client_cas").field(name), ca, report) {
                client_cas.insert(name.clone(), files);
            }
        }
        Some(TlsFiles { identity: Arc::new(identity?), client_cas })
    }

    fn identity(&mut self, tls: &TlsSettings, report: &mut Report<'_>) -> Option<CertifiedKey> {
        let (certificate_at, key_at) = (Key::of("tls.certificate"), Key::of("tls.key"));
        let chain =
            self.pem::<CertificateDer<'static>>(&certificate_at, &tls.certificate, "certificate", report);
        let key = private_key(&key_at, &tls.key, report);
        let (chain, key) = (chain?, key?);
        let Ok(key) = any_supported_type(&key) else {
            report.add(
                &key_at,
                "is of a kind that TLS does not serve here",
                "use an ECDSA, Ed25519 or RSA key",
            );
            return None;
        };
        let identity = CertifiedKey::new(chain, key);
        match identity.keys_match() {
            Ok(()) => Some(identity),
            Err(rustls::Error::InconsistentKeys(_)) => {
                report.add(
                    &key_at,
                    "does not belong to tls.certificate",
                    "name the key that the certificate is for",
                );
                None
            }
            Err(error) => {
                let text = format!("has no usable first certificate ({error})");
                report.add(&certificate_at, text, "name a PEM file with the daemon's own certificate first");
                None
            }
        }
    }

    fn client_ca(
        &mut self,
        at: &Key,
        ca: &ClientCaSettings,
        report: &mut Report<'_>,
    ) -> Option<ClientCaFiles> {
        let certificates =
            self.pem::<CertificateDer<'static>>(&at.field("file"), &ca.file, "certificate", report)?;
        for certificate in &certificates {
            if let Err(error) = RootCertStore::empty().add(certificate.clone()) {
                let text = format!("has a certificate that cannot be a trust anchor ({error})");
                report.add(&at.field("file"), text, "name a PEM file with the CA's certificates only");
                return None;
            }
        }
        let crls = match &ca.crl {
            Some(path) => self.pem(&at.field("crl"), path, "X509 CRL", report)?,
            None => Vec::new(),
        };
        Some(ClientCaFiles { certificates, crls, common_names: ca.common_names })
    }

    /// All PEM sections of one kind, at least one.
    fn pem<T: PemObject>(
        &mut self,
        key: &Key,
        path: &Path,
        what: &str,
        report: &mut Report<'_>,
    ) -> Option<Vec<T>> {
        let contents = self.read(key, path, report)?;
        match T::pem_slice_iter(&contents).collect::<Result<Vec<T>, _>>() {
            Ok(items) if !items.is_empty() => Some(items),
            _ => {
                let text = format!("{} has no readable {what} in PEM form", path.display());
                report.add(key, text, format!("name a PEM file (-----BEGIN {}-----)", what.to_uppercase()));
                None
            }
        }
    }
}

fn private_key(key: &Key, path: &Path, report: &mut Report<'_>) -> Option<PrivateKeyDer<'static>> {
    let contents = zeroize::Zeroizing::new(read(key, path, report)?);
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o007 != 0) {
        let text = format!("everyone may use {}", path.display());
        report.add(key, text, format!("run chmod o= {}", path.display()));
        return None;
    }
    PrivateKeyDer::from_pem_slice(&contents)
        .map_err(|_| {
            let text = format!("{} has no readable private key in PEM form", path.display());
            report.add(key, text, "name an unencrypted PEM file (-----BEGIN PRIVATE KEY-----)");
        })
        .ok()
}

fn read(key: &Key, path: &Path, report: &mut Report<'_>) -> Option<Vec<u8>> {
    let mut contents = Vec::new();
    let result =
        File::open(path).and_then(|file| file.take(Reader::FILE_BYTES_MAX + 1).read_to_end(&mut contents));
    match result {
        Ok(length) if length as u64 > Reader::FILE_BYTES_MAX => {
            let text = format!("{} is larger than {} bytes", path.display(), Reader::FILE_BYTES_MAX);
            report.add(key, text, "name a smaller file");
            None
        }
        Ok(_) => Some(contents),
        Err(error) => {
            let text = format!("{} cannot be read ({error})", path.display());
            report.add(key, text, "make it, correct the path or let the daemon's user read it");
            None
        }
    }
}
