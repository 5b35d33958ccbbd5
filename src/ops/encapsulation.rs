//! Encapsulate and Decapsulate (FIPS 203).
//!
//! No module that was tried has ML-KEM, so CreateKey makes no such key and these
//! have none to work with: every key is for something else, and says so.

use super::material::usable;
use super::prelude::*;

const USAGE: kms::KeyUsageType = kms::KeyUsageType::EncapsulateDecapsulate;

/// Makes a shared secret and its encapsulation.
pub struct Encapsulate;

impl Operation for Encapsulate {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "Encapsulate";
    const ACTION: &'static str = "kms:Encapsulate";
    const READ_ONLY: bool = true;
    const CRYPTOGRAPHIC: bool = true;
    type Request = kms::EncapsulateRequest;
    type Response = kms::EncapsulateResponse;
    type On = Key;

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        by_key_id(&request.key_id)
    }

    async fn run(call: &mut Call, _: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        usable(call, &key, USAGE, Self::NAME)?;
        Err(unsupported(&key))
    }
}

/// Opens an encapsulated shared secret.
pub struct Decapsulate;

impl Operation for Decapsulate {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "Decapsulate";
    const ACTION: &'static str = "kms:Decapsulate";
    const READ_ONLY: bool = true;
    const CRYPTOGRAPHIC: bool = true;
    type Request = kms::DecapsulateRequest;
    type Response = kms::DecapsulateResponse;
    type On = Key;

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        by_key_id(&request.key_id)
    }

    async fn run(call: &mut Call, _: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        usable(call, &key, USAGE, Self::NAME)?;
        Err(unsupported(&key))
    }
}

fn unsupported(key: &Key) -> Error {
    spec::unsupported(key.held.value.spec, "no module that Strongroom knows has ML-KEM")
}
