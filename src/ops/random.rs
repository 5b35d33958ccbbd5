//! GenerateRandom.

use super::prelude::*;

/// Random bytes from the HSM.
pub struct GenerateRandom;

impl Operation for GenerateRandom {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "GenerateRandom";
    const ACTION: &'static str = "kms:GenerateRandom";
    const READ_ONLY: bool = true;
    const CRYPTOGRAPHIC: bool = true;
    type Request = kms::GenerateRandomRequest;
    type Response = kms::GenerateRandomResponse;
    type On = Account;

    fn on(request: &Self::Request) -> Result<()> {
        request.number_of_bytes.map(|_| ()).ok_or_else(|| Error::validation("NumberOfBytes is required."))
    }

    async fn run(call: &mut Call, request: &Self::Request, _: Allowed<Account>) -> Result<Self::Response> {
        let bytes = usize::try_from(*given(&request.number_of_bytes)?).unwrap_or_default();
        let cluster = match &request.custom_key_store_id {
            Some(id) => call.connected_cluster(id).await?,
            None => call.default_cluster()?.clone(),
        };
        let random = cluster.random(bytes, call.deadline).await.map_err(from_hsm)?;
        Ok(kms::GenerateRandomResponse { plaintext: Some(random.to_vec()), ciphertext_for_recipient: None })
    }
}
