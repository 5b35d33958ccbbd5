//! Key material that a test brings, wrapped in software.

use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrapPadded as _};
use aws_lc_rs::rsa::{
    OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey,
};
use strongroom::proto::kms::{self, AlgorithmSpec};

use super::{Client, Refusal};

/// Length of the AES key of an RSA_AES_KEY_WRAP algorithm.
pub const KEK_BYTES: usize = 32;

/// Encrypts material to a public key; `kek` is the AES key that carries it,
/// where the algorithm has one.
pub fn wrapped(
    algorithm: AlgorithmSpec,
    public_key: &[u8],
    kek: &[u8; KEK_BYTES],
    material: &[u8],
) -> Vec<u8> {
    use AlgorithmSpec as A;
    let oaep = match algorithm {
        A::RsaesOaepSha1 | A::RsaAesKeyWrapSha1 => &OAEP_SHA1_MGF1SHA1,
        _ => &OAEP_SHA256_MGF1SHA256,
    };
    let public = OaepPublicEncryptingKey::new(PublicEncryptingKey::from_der(public_key).unwrap()).unwrap();
    let encrypt = |plaintext: &[u8]| {
        let mut ciphertext = vec![0; public.ciphertext_size()];
        public.encrypt(oaep, plaintext, &mut ciphertext, None).unwrap();
        ciphertext
    };
    if matches!(algorithm, A::RsaesOaepSha1 | A::RsaesOaepSha256) {
        return encrypt(material);
    }
    let mut inner = vec![0; material.len() + 16];
    let inner = AesKek::new(&AES_256, kek).unwrap().wrap_with_padding(material, &mut inner).unwrap().to_vec();
    [encrypt(kek), inner].concat()
}

impl Client {
    /// Makes a key that waits for its material: its id.
    pub async fn create_external(&self, request: kms::CreateKeyRequest) -> Result<String, Refusal> {
        let origin = Some(kms::OriginType::External as i32);
        let answer = self.call(kms::CreateKeyRequest { origin, ..request }).await?;
        Ok(answer.key_metadata.unwrap().key_id.unwrap())
    }

    /// A wrapping key and its token.
    pub async fn parameters(
        &self,
        key: &str,
        algorithm: AlgorithmSpec,
    ) -> Result<kms::GetParametersForImportResponse, Refusal> {
        self.call(kms::GetParametersForImportRequest {
            key_id: Some(key.to_owned()),
            wrapping_algorithm: Some(algorithm as i32),
            wrapping_key_spec: Some(kms::WrappingKeySpec::Rsa2048 as i32),
        })
        .await
    }
}

/// The import of material that does not expire.
pub fn import(
    key: &str,
    parameters: &kms::GetParametersForImportResponse,
    encrypted: Vec<u8>,
) -> kms::ImportKeyMaterialRequest {
    kms::ImportKeyMaterialRequest {
        key_id: Some(key.to_owned()),
        import_token: parameters.import_token.clone(),
        encrypted_key_material: Some(encrypted),
        expiration_model: Some(kms::ExpirationModelType::KeyMaterialDoesNotExpire as i32),
        ..Default::default()
    }
}
