//! The CiphertextBlob of symmetric keys: self-describing, so that Decrypt
//! needs no KeyId, and authenticated as a whole, header and encryption context
//! included.
//!
//! ```text
//! version 1 byte │ key id 16 │ form 1 │ backing key id 32 │ IV 12 │ ciphertext … │ tag 16
//! ```

use std::collections::HashMap;

use crate::hsm::{BackingId, Sealed};

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 1 + 16 + 1 + 32;
const IV_BYTES: usize = 12;
const TAG_BYTES: usize = 16;

/// How a key id is written; its 16 bytes are the same in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// A UUID with dashes.
    Uuid = 0,
    /// `mrk-` and 32 hex digits.
    MultiRegion = 1,
}

/// What stands before the IV.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The KMS key's id.
    pub key_id: String,
    /// The version of its material.
    pub backing: BackingId,
}

/// A ciphertext taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ciphertext {
    /// Key and material.
    pub header: Header,
    /// IV, ciphertext and tag.
    pub sealed: Sealed,
}

impl Header {
    /// The header's bytes; none for a key id that is neither a UUID nor `mrk-…`.
    fn bytes(&self) -> Option<Vec<u8>> {
        let (form, digits) = match self.key_id.strip_prefix("mrk-") {
            Some(digits) => (Form::MultiRegion, digits.to_owned()),
            None => (Form::Uuid, self.key_id.replace('-', "")),
        };
        let id: [u8; 16] = hex::decode(digits).ok()?.try_into().ok()?;
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.push(VERSION);
        bytes.extend_from_slice(&id);
        bytes.push(form as u8);
        bytes.extend_from_slice(&self.backing.0);
        Some(bytes)
    }

    /// The additional authenticated data: the header and the encryption
    /// context in its one canonical form, pairs by key, each string behind its
    /// length.
    pub fn aad(&self, context: &HashMap<String, String>) -> Option<Vec<u8>> {
        let mut aad = self.bytes()?;
        let mut pairs: Vec<_> = context.iter().collect();
        pairs.sort();
        for text in pairs.into_iter().flat_map(|(key, value)| [key, value]) {
            aad.extend_from_slice(&u32::try_from(text.len()).ok()?.to_be_bytes());
            aad.extend_from_slice(text.as_bytes());
        }
        Some(aad)
    }

    /// The CiphertextBlob.
    pub fn join(&self, sealed: &Sealed) -> Option<Vec<u8>> {
        let mut blob = self.bytes()?;
        blob.extend_from_slice(&sealed.iv);
        blob.extend_from_slice(&sealed.ciphertext);
        Some(blob)
    }
}

impl Ciphertext {
    /// Takes a blob apart; none where it is not one of ours.
    pub fn parse(blob: &[u8]) -> Option<Ciphertext> {
        let (header, rest) = blob.split_at_checked(HEADER_BYTES)?;
        let (iv, ciphertext) = rest.split_first_chunk::<IV_BYTES>()?;
        let (&[VERSION], header) = header.split_first_chunk::<1>()? else { return None };
        let (id, header) = header.split_first_chunk::<16>()?;
        let (&[form], backing) = header.split_first_chunk::<1>()?;
        if ciphertext.len() < TAG_BYTES {
            return None;
        }
        let key_id = match form {
            form if form == Form::Uuid as u8 => uuid::Uuid::from_bytes(*id).to_string(),
            form if form == Form::MultiRegion as u8 => format!("mrk-{}", hex::encode(id)),
            _ => return None,
        };
        Some(Ciphertext {
            header: Header { key_id, backing: BackingId(backing.try_into().ok()?) },
            sealed: Sealed { iv: *iv, ciphertext: ciphertext.to_vec() },
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(key_id: &str) -> Header {
        Header { key_id: key_id.into(), backing: BackingId([9; 32]) }
    }

    #[test]
    fn a_blob_is_taken_apart_as_it_was_joined() {
        let sealed = Sealed { iv: [3; 12], ciphertext: vec![5; 20] };
        for id in ["01234567-89ab-cdef-0123-456789abcdef", "mrk-0123456789abcdef0123456789abcdef"] {
            let blob = header(id).join(&sealed).unwrap();
            assert_eq!(
                Ciphertext::parse(&blob),
                Some(Ciphertext { header: header(id), sealed: sealed.clone() })
            );
        }
    }

    #[test]
    fn the_context_is_canonical_and_unambiguous() {
        let aad = |pairs: &[(&str, &str)]| {
            let context = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            header("01234567-89ab-cdef-0123-456789abcdef").aad(&context).unwrap()
        };
        assert_eq!(aad(&[("a", "1"), ("b", "2")]), aad(&[("b", "2"), ("a", "1")]));
        assert_ne!(aad(&[("a", "bc")]), aad(&[("ab", "c")]));
        assert_ne!(aad(&[("a", "")]), aad(&[]));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic_and_never_lie(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(parsed) = Ciphertext::parse(&bytes) {
                prop_assert_eq!(parsed.header.join(&parsed.sealed), Some(bytes));
            }
        }
    }
}
