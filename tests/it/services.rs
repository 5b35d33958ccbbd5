//! Services as callers over gRPC, and the keys that they have; over AWS's
//! protocol, `tests/python/aws/test_services_over_aws.py`.

use std::fs;

use strongroom::pki::{Ca, user_uri};
use strongroom::proto::kms::{self, KeyManagerType};

use crate::support::{Instance, eventually, faketime, named};

const ACCOUNT: &str = "111122223333";
const ADMINISTRATOR: &str = "arn:aws:iam::111122223333:user/administrator";
const FOR: &str = "strongroom-on-behalf-of";
const ALIAS: &str = "alias/aws/s3";

/// An instance with a service that a certificate is of.
async fn house() -> Instance {
    let instance = Instance::new();
    instance.start().await.terminate().await;
    let (ca, pki) = (Ca::new("services").unwrap(), instance.path("pki"));
    ca.client(ACCOUNT, "s3").unwrap().write(&pki, "s3").unwrap();
    fs::write(pki.join("services.pem"), &ca.identity().certificate).unwrap();
    let file = instance.path("strongroom.toml");
    let uri = user_uri(ACCOUNT, "s3");
    let more = format!(
        "\n[tls.client_cas.services]\nfile = \"pki/services.pem\"\n
[[services]]\nname = \"s3.amazonaws.com\"\nidentities = [{{ uri = {uri:?} }}]\n"
    );
    fs::write(&file, fs::read_to_string(&file).unwrap() + &more).unwrap();
    instance
}

async fn describe(client: &crate::support::Client) -> kms::KeyMetadata {
    let request = kms::DescribeKeyRequest { key_id: Some(ALIAS.to_owned()), ..Default::default() };
    client.call(request).await.unwrap().key_metadata.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_managed_key_is_made_once_and_rotated_each_year() {
    let Some(faketime) = faketime() else { return };
    let mut instance = house().await;
    let daemon = instance.start().await;
    let administrator = daemon.client().await;
    let service = daemon.client_as("s3").await;
    let through = service.saying(FOR, ADMINISTRATOR);
    // Who is first makes it; all get the same.
    let blobs = futures::future::join_all((0..4).map(|_| through.encrypt(ALIAS, b"secret"))).await;
    let blobs: Vec<Vec<u8>> = blobs.into_iter().map(Result::unwrap).collect();
    let key = describe(&administrator).await;
    assert_eq!(administrator.keys().await, [key.key_id().to_owned()]);
    assert_eq!(key.key_manager(), KeyManagerType::Aws);
    for blob in &blobs {
        assert_eq!(through.decrypt(blob).await.unwrap(), b"secret");
        assert_eq!(administrator.decrypt(blob).await.unwrap_err().exception, "AccessDeniedException");
    }
    let own = service.encrypt(ALIAS, b"its own").await.unwrap();
    assert_eq!(service.decrypt(&own).await.unwrap(), b"its own");
    assert_eq!(through.decrypt(&own).await.unwrap_err().exception, "AccessDeniedException");
    // Who is no service says nothing of the kind.
    let pretender = administrator.saying(FOR, ADMINISTRATOR);
    let refused = pretender.call(kms::ListKeysRequest::default()).await.unwrap_err();
    assert_eq!(refused.exception, "AccessDeniedException");

    let events = administrator.events().await;
    let made: Vec<_> = named(&events, "CreateKey");
    let [made] = made[..] else { panic!("{made:?}") };
    assert_eq!(made["serviceEventDetails"]["keyManager"], "AWS");
    let encrypted = named(&events, "Encrypt")[0];
    assert_eq!(encrypted["userIdentity"]["invokedBy"], "s3.amazonaws.com");
    assert_eq!(encrypted["userIdentity"]["arn"], ADMINISTRATOR);
    let denied = events.iter().find(|event| event["requestID"] == refused.request_id).unwrap();
    assert_eq!((&denied["eventName"], &denied["errorCode"]), (&"ListKeys".into(), &"AccessDenied".into()));
    daemon.terminate().await;

    instance.set("LD_PRELOAD", faketime.display().to_string());
    instance.set("FAKETIME", "+366d");
    let daemon = instance.start().await;
    let administrator = daemon.client().await;
    eventually("it is rotated", async || {
        describe(&administrator).await.current_key_material_id != key.current_key_material_id
    })
    .await;
    let through = daemon.client_as("s3").await.saying(FOR, ADMINISTRATOR);
    assert_eq!(through.decrypt(&blobs[0]).await.unwrap(), b"secret");
    assert_eq!(administrator.findings().await, Vec::<String>::new());
    daemon.terminate().await;
}
