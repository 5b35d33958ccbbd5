//! The life of a key with AWS's SDK for Rust, with nothing set but the
//! environment.

use aws_config::BehaviorVersion;
use aws_sdk_kms::Client;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{DataKeySpec, KeySpec, KeyState, KeyUsageType, MessageType, SigningAlgorithmSpec};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result {
    let kms = Client::new(&aws_config::load_defaults(BehaviorVersion::latest()).await);
    symmetric(&kms).await?;
    signing(&kms).await?;
    println!("done");
    Ok(())
}

async fn symmetric(kms: &Client) -> Result {
    let made = kms.create_key().description("by Rust").send().await?.key_metadata.ok_or("no key")?;
    let id = made.key_id();
    let plaintext = Blob::new("hello");
    let context = ("Kept As Is".to_owned(), "ü".to_owned());
    let sealed = kms
        .encrypt()
        .key_id(id)
        .plaintext(plaintext.clone())
        .encryption_context(&context.0, &context.1)
        .send()
        .await?
        .ciphertext_blob
        .ok_or("no ciphertext")?;
    let opened = kms
        .decrypt()
        .ciphertext_blob(sealed.clone())
        .encryption_context(&context.0, &context.1)
        .send()
        .await?;
    assert_eq!((opened.plaintext(), opened.key_id()), (Some(&plaintext), made.arn()));
    let refused = kms.decrypt().ciphertext_blob(sealed).send().await.expect_err("without its context");
    assert!(refused.into_service_error().is_invalid_ciphertext_exception());

    let data_key = kms.generate_data_key().key_id(id).key_spec(DataKeySpec::Aes256).send().await?;
    assert_eq!(data_key.plaintext.ok_or("no data key")?.as_ref().len(), 32);
    let mut pages = kms.list_keys().into_paginator().page_size(1).send();
    let mut found = false;
    while let Some(page) = pages.next().await {
        found |= page?.keys().iter().any(|key| key.key_id() == Some(id));
    }
    assert!(found, "the key is in no page");

    kms.disable_key().key_id(id).send().await?;
    let refused = kms.encrypt().key_id(id).plaintext(plaintext).send().await.expect_err("disabled");
    assert!(refused.into_service_error().is_disabled_exception());
    let described = kms.describe_key().key_id(id).send().await?.key_metadata.ok_or("no key")?;
    assert_eq!(described.key_state(), Some(&KeyState::Disabled));
    let gone = kms.schedule_key_deletion().key_id(id).pending_window_in_days(7).send().await?;
    assert!(gone.deletion_date() > made.creation_date());
    Ok(())
}

async fn signing(kms: &Client) -> Result {
    let made = kms.create_key().key_spec(KeySpec::EccNistP256).key_usage(KeyUsageType::SignVerify);
    let id = made.send().await?.key_metadata.ok_or("no key")?.key_id;
    let message = Blob::new("a message");
    let signed = kms
        .sign()
        .key_id(&id)
        .message(message.clone())
        .message_type(MessageType::Raw)
        .signing_algorithm(SigningAlgorithmSpec::EcdsaSha256)
        .send()
        .await?;
    let verify = |message: Blob, signature: Blob| {
        kms.verify()
            .key_id(&id)
            .message(message)
            .signature(signature)
            .signing_algorithm(SigningAlgorithmSpec::EcdsaSha256)
            .send()
    };
    let signature = signed.signature.ok_or("no signature")?;
    assert!(verify(message, signature.clone()).await?.signature_valid());
    let refused = verify(Blob::new("another"), signature).await.expect_err("another message");
    assert!(refused.into_service_error().is_kms_invalid_signature_exception());
    kms.schedule_key_deletion().key_id(&id).send().await?;
    Ok(())
}
