//! ConnectionErrorCode by what an HSM says.

use strongroom::proto::hsm::ListTokensRequest;
use strongroom::proto::kms::{
    ConnectionErrorCodeType as Code, ConnectionStateType as State, KeySpec, UpdateCustomKeyStoreRequest,
};

use super::house::{self, Hsm, Owner, PIN};
use super::{SYMMETRIC, id, refused};
use crate::support::{Instance, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_hsm_says_has_its_code_and_no_pin_is_tried_twice() {
    let hsms = |instance: &Instance| vec![Hsm::of_fixture(instance, "vault", 1).behind_shim()];
    let (mut instance, hsms) = house::instance(hsms).await;
    instance.set("STRONGROOM_HSM__CALL_TIMEOUT_MS", "2000");
    let daemon = instance.start().await;
    let owner = Owner::of(&instance, &daemon).await;
    let hsm = &hsms[0];
    let cluster = owner.cluster(hsm).await;
    let store = owner.create_store("vault", &cluster).await;
    let fails = async |rules: &str, code: Code| {
        hsm.set_rules(&format!("C_Login log\n{rules}"));
        let logins = hsm.logged("C_Login");
        owner.begin_to_connect(&store).await.unwrap();
        let entry = owner.reaches(&store, State::Failed).await;
        assert_eq!(entry.connection_error_code(), code, "{rules}");
        refused(owner.key(&store, SYMMETRIC).await, "CustomKeyStoreInvalidState");
        if rules.contains("C_Login rv=0xA") {
            assert_eq!(hsm.logged("C_Login") - logins, 1, "{rules}");
        }
        hsm.set_rules("");
        owner.disconnect(&store).await;
    };
    for (rules, code) in [
        ("C_Login rv=0xA4", Code::UserLockedOut),       // PIN_LOCKED
        ("C_Login rv=0xA3", Code::UserLockedOut),       // PIN_EXPIRED
        ("C_Login rv=0x102", Code::UserNotFound),       // USER_PIN_NOT_INITIALIZED
        ("C_Login rv=0x104", Code::UserLoggedIn),       // USER_ANOTHER_ALREADY_LOGGED_IN
        ("C_Login rv=0xA0", Code::InvalidCredentials),  // PIN_INCORRECT
        ("C_OpenSession rv=0x32", Code::NetworkErrors), // DEVICE_REMOVED
        ("C_Login rv=0x30", Code::NetworkErrors),       // DEVICE_ERROR
        ("C_FindObjectsInit rv=0x32", Code::NetworkErrors),
    ] {
        fails(rules, code).await;
        // What it was is mended by itself.
        owner.connect(&store).await;
        owner.disconnect(&store).await;
    }

    // A token that counts: one wrong password, and the right one comes too late.
    let password = async |text: &str| {
        let request = UpdateCustomKeyStoreRequest {
            custom_key_store_id: id(&store),
            key_store_password: id(text),
            ..Default::default()
        };
        owner.client.call(request).await.unwrap();
    };
    password("11223344").await;
    fails("pin_tries_max=1", Code::InvalidCredentials).await;
    password(PIN).await;
    fails("pin_tries_max=1", Code::UserLockedOut).await;
    fails("C_Login hang", Code::NetworkErrors).await;
    // What hung has logged in since: that does not stand for a password.
    password("11223344").await;
    fails("pin_tries_max=2", Code::InvalidCredentials).await;
    password(PIN).await;
    owner.connect(&store).await;
    owner.key(&store, SYMMETRIC).await.unwrap();

    // A connection that is lost is found again by itself, without another login
    // that fails.
    hsm.set_rules("C_Login log\n* rv=0x32");
    let refusal = async || owner.client.call(house::key_in(&store, SYMMETRIC)).await.err();
    eventually("it is gone", async || refusal().await.is_some()).await;
    assert_eq!(owner.describe(&store).await.connection_state(), State::Connected);
    hsm.set_rules("");
    eventually("it is back", async || refusal().await.is_none()).await;

    // It ends though an HSM hangs, with somebody who looks at it.
    hsm.set_rules("* hang");
    let request = ListTokensRequest { module: id("vault") };
    let _looked_at = owner.client.call(request).await;
    daemon.terminate().await;
    hsm.set_rules("");
}

/// An object is made and the HSM says that it failed: the intent knows of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_hsm_made_and_denied_is_removed() {
    let hsms = |instance: &Instance| vec![Hsm::of_fixture(instance, "vault", 1).behind_shim()];
    let (instance, hsms) = house::instance(hsms).await;
    let daemon = instance.start().await;
    let owner = Owner::of(&instance, &daemon).await;
    let store = owner.connected_store("vault", &hsms[0]).await;
    let key = owner.key(&store, SYMMETRIC).await.unwrap();
    // A kind that is not made as a session object first.
    hsms[0].set_rules("C_GenerateKeyPair rv=0x30 lost times=1");
    refused(owner.key(&store, KeySpec::EccNistEdwards25519).await, "KMSInternal");
    hsms[0].set_rules("");
    assert_eq!(hsms[0].keys().len(), 2, "the orphan");
    // A call that may still run is left alone for minutes; one of another life is not.
    daemon.kill9();
    let daemon = instance.start().await;
    let owner = Owner::of(&instance, &daemon).await;
    eventually("the orphan is removed", async || hsms[0].keys().len() == 1).await;
    owner.client.use_key(&key, SYMMETRIC).await.unwrap();
    owner.key(&store, KeySpec::EccNistEdwards25519).await.unwrap();
    assert_eq!(owner.client.findings().await, Vec::<String>::new());
}
