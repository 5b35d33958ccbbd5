//! Who a token is, and which cluster's.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{BackingId, Curve, Home, HsmError, KeyRef, Material, Use};

/// A token's label and serial as an RFC 7512 URI:
/// `pkcs11:token=LABEL;serial=SERIAL`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TokenUri {
    /// CKA_LABEL of the token, without padding.
    pub label: String,
    /// Its serial number.
    pub serial: String,
}

impl FromStr for TokenUri {
    type Err = HsmError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = |reason: &str| HsmError::Unsupported(format!("token URI {text:?}: {reason}"));
        let path = text.strip_prefix("pkcs11:").ok_or_else(|| bad("it does not begin with pkcs11:"))?;
        let (mut label, mut serial) = (None, None);
        for attribute in path.split(';') {
            let (name, value) = attribute.split_once('=').ok_or_else(|| bad("an attribute has no value"))?;
            let place = match name {
                "token" => &mut label,
                "serial" => &mut serial,
                _ => return Err(bad("only token and serial name a token here")),
            };
            let value = percent_decode(value).ok_or_else(|| bad("a percent-encoding is malformed"))?;
            if place.replace(value).is_some() {
                return Err(bad("an attribute is there twice"));
            }
        }
        match (label, serial) {
            (Some(label), Some(serial)) => Ok(TokenUri { label, serial }),
            _ => Err(bad("it needs token and serial")),
        }
    }
}

impl fmt::Display for TokenUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pkcs11:token={};serial={}", percent_encode(&self.label), percent_encode(&self.serial))
    }
}

/// RFC 7512, 2.3: what may stand in an attribute's value as it is.
fn percent_encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~:[]@!$'()*+,=&".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
        encoded
    })
}

fn percent_decode(text: &str) -> Option<String> {
    let mut pieces = text.split('%');
    let mut bytes = pieces.next()?.as_bytes().to_vec();
    for piece in pieces {
        let (code, rest) = piece.split_at_checked(2)?;
        bytes.extend(hex::decode(code).ok()?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

/// What makes a token a member of a cluster: kept in the store, and checked
/// whenever a token is attached. Nothing in it is secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterIdentity {
    /// CKA_ID of the wrapping key.
    pub wrapping_key: BackingId,
    /// A key that only this wrapping key unwraps: a 32-byte HMAC key.
    pub test_key: Blob,
    /// HMAC-SHA-256 by the test key over [`ClusterIdentity::TEST_TEXT`].
    pub test_check: Blob,
    /// The key of the rows' MACs.
    pub mac_key: SystemKey,
    /// The key that signs the heads of the event chains.
    pub head_key: SystemKey,
    /// Its DER SubjectPublicKeyInfo.
    pub head_public_key: Blob,
}

impl ClusterIdentity {
    /// What the test key authenticates.
    pub const TEST_TEXT: &'static [u8] = b"strongroom test key 1";

    /// HMAC-SHA-256 over the rows of the store.
    pub fn mac_key(&self) -> KeyRef {
        self.mac_key.key(Material::Generic(32), Use::Mac)
    }

    /// ECDSA on P-256 over the heads of the event chains.
    pub fn head_key(&self) -> KeyRef {
        self.head_key.key(Material::Ec(Curve::P256), Use::Sign)
    }
}

/// A resident key of the daemon's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SystemKey {
    /// Its CKA_ID.
    pub id: BackingId,
    /// The same key wrapped under the wrapping key, for another member.
    pub blob: Blob,
}

impl SystemKey {
    fn key(&self, material: Material, usage: Use) -> KeyRef {
        KeyRef { id: self.id, material, usage, home: Home::Resident { blob: Some(self.blob.0.clone()) } }
    }
}

/// Bytes, base64 in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Blob(pub Arc<[u8]>);

impl From<Vec<u8>> for Blob {
    fn from(bytes: Vec<u8>) -> Self {
        Blob(bytes.into())
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Blob::from).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_uri_reads_back() {
        let token = TokenUri { label: "my token; 100%".into(), serial: "0a1b".into() };
        let text = token.to_string();
        assert_eq!(text, "pkcs11:token=my%20token%3B%20100%25;serial=0a1b");
        assert_eq!(text.parse(), Ok(token));
    }

    #[test]
    fn a_token_uri_needs_both_names_once_and_nothing_else() {
        for bad in [
            "token=a;serial=b",
            "pkcs11:token=a",
            "pkcs11:token=a;serial=b;serial=c",
            "pkcs11:token=a;serial=b;slot-id=3",
            "pkcs11:token=%2;serial=b",
            "pkcs11:token=%é;serial=b",
        ] {
            assert!(bad.parse::<TokenUri>().is_err(), "{bad}");
        }
    }
}
