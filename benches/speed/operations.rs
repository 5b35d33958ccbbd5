//! The calls that are measured.

use bytes::Bytes;
use http::uri::PathAndQuery;
use strongroom::proto::kms::{self, KeySpec, KeyUsageType};
use tonic::transport::Channel;

use crate::load::{self, Work};
use crate::raw::Function;

/// An operation with its request, made ready.
pub struct Operation {
    pub name: &'static str,
    pub work: Work,
    /// What the HSM does for it, if anything.
    pub function: Option<Function>,
    /// The answer's length, for an echo of the same size.
    pub answer_bytes: usize,
}

/// Makes keys, and a request for each operation.
pub async fn prepare(channel: &Channel, wanted: &[String]) -> anyhow::Result<Vec<Operation>> {
    let mut made = Maker { channel, wanted, operations: Vec::new() };
    made.symmetric().await?;
    made.signatures().await?;
    made.others().await?;
    Ok(made.operations)
}

/// A method of the KMS service.
pub fn path(method: &str) -> anyhow::Result<PathAndQuery> {
    Ok(PathAndQuery::try_from(format!("/strongroom.kms.v1.KeyManagementService/{method}"))?)
}

/// One call with typed messages.
pub async fn ask<R: prost::Message + Default>(
    channel: &Channel,
    method: &str,
    request: &impl prost::Message,
) -> anyhow::Result<R> {
    let message = Bytes::from(request.encode_to_vec());
    Ok(R::decode(load::call(channel, path(method)?, message).await?)?)
}

/// Makes a key: its id.
pub async fn create(channel: &Channel, spec: KeySpec, usage: KeyUsageType) -> anyhow::Result<Option<String>> {
    let request = kms::CreateKeyRequest {
        key_spec: Some(spec as i32),
        key_usage: Some(usage as i32),
        ..Default::default()
    };
    let made: kms::CreateKeyResponse = ask(channel, "CreateKey", &request).await?;
    Ok(made.key_metadata.and_then(|metadata| metadata.key_id))
}

/// Encrypts so many bytes.
pub fn encrypt(key_id: Option<String>, bytes: usize) -> kms::EncryptRequest {
    kms::EncryptRequest { key_id, plaintext: Some(vec![7; bytes]), ..Default::default() }
}

struct Maker<'a> {
    channel: &'a Channel,
    wanted: &'a [String],
    operations: Vec<Operation>,
}

impl Maker<'_> {
    async fn add(
        &mut self,
        name: &'static str,
        method: &str,
        request: &impl prost::Message,
        function: Option<Function>,
    ) -> anyhow::Result<()> {
        if !self.wanted.is_empty() && !self.wanted.iter().any(|wanted| wanted == name) {
            return Ok(());
        }
        let work = Work::one(path(method)?, request);
        let answer = load::call(self.channel, work.path.clone(), (work.message)(0)).await?;
        self.operations.push(Operation { name, work, function, answer_bytes: answer.len() });
        Ok(())
    }

    async fn symmetric(&mut self) -> anyhow::Result<()> {
        let key = create(self.channel, KeySpec::SymmetricDefault, KeyUsageType::EncryptDecrypt).await?;
        for (bytes, encrypt_name, decrypt_name) in
            [(32, "Encrypt 32 B", "Decrypt 32 B"), (4096, "Encrypt 4 KiB", "Decrypt 4 KiB")]
        {
            let request = encrypt(key.clone(), bytes);
            let encrypted: kms::EncryptResponse = ask(self.channel, "Encrypt", &request).await?;
            let function = Some(Function::Gcm(bytes));
            self.add(encrypt_name, "Encrypt", &request, function).await?;
            let request =
                kms::DecryptRequest { ciphertext_blob: encrypted.ciphertext_blob, ..Default::default() };
            self.add(decrypt_name, "Decrypt", &request, function).await?;
        }
        let request = kms::GenerateDataKeyRequest {
            key_id: key,
            key_spec: Some(kms::DataKeySpec::Aes256 as i32),
            ..Default::default()
        };
        self.add("GenerateDataKey", "GenerateDataKey", &request, Some(Function::Gcm(32))).await
    }

    async fn signatures(&mut self) -> anyhow::Result<()> {
        use kms::SigningAlgorithmSpec::{EcdsaSha256, RsassaPssSha256};
        for (name, spec, algorithm, function) in [
            ("Sign P-256", KeySpec::EccNistP256, EcdsaSha256, Function::EcdsaP256),
            ("Sign RSA-2048", KeySpec::Rsa2048, RsassaPssSha256, Function::RsaPss2048),
        ] {
            let key = create(self.channel, spec, KeyUsageType::SignVerify).await?;
            let request = kms::SignRequest {
                key_id: key.clone(),
                message: Some(vec![7; 32]),
                message_type: Some(kms::MessageType::Digest as i32),
                signing_algorithm: Some(algorithm as i32),
                ..Default::default()
            };
            self.add(name, "Sign", &request, Some(function)).await?;
            if spec == KeySpec::EccNistP256 {
                let signed: kms::SignResponse = ask(self.channel, "Sign", &request).await?;
                let request = kms::VerifyRequest {
                    key_id: key,
                    message: request.message,
                    message_type: request.message_type,
                    signature: signed.signature,
                    signing_algorithm: request.signing_algorithm,
                    ..Default::default()
                };
                self.add("Verify P-256", "Verify", &request, None).await?;
            }
        }
        Ok(())
    }

    async fn others(&mut self) -> anyhow::Result<()> {
        let request = kms::GenerateMacRequest {
            key_id: create(self.channel, KeySpec::Hmac256, KeyUsageType::GenerateVerifyMac).await?,
            message: Some(vec![7; 32]),
            mac_algorithm: Some(kms::MacAlgorithmSpec::HmacSha256 as i32),
            ..Default::default()
        };
        self.add("GenerateMac", "GenerateMac", &request, Some(Function::HmacSha256)).await?;
        let request = kms::GenerateRandomRequest { number_of_bytes: Some(32), ..Default::default() };
        self.add("GenerateRandom", "GenerateRandom", &request, Some(Function::Random)).await
    }
}
