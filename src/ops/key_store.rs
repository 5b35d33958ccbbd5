//! Custom key stores. [`crate::key_stores::connection`] connects and
//! disconnects what is said here.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use secrecy::SecretString;

use super::key::Page;
use super::prelude::*;
use crate::jobs::Intent;
use crate::key::Key as KeyRow;
use crate::key_stores::rows::{self, KeyStore, KeyStoreName, RegisteredCluster};
use crate::proto::kms::ConnectionStateType as State;
use crate::registry::{Stored, from_store};
use crate::sealed;
use crate::store::Kind;

/// KMS's quota of custom key stores in an account and Region.
const KEY_STORES_MAX: usize = 10;
const PAGE: i32 = 100;
const ROWS_PAGE: u32 = 100;

/// Makes a custom key store of a cluster.
pub struct CreateCustomKeyStore;

impl Operation for CreateCustomKeyStore {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "CreateCustomKeyStore";
    const ACTION: &'static str = "kms:CreateCustomKeyStore";
    const READ_ONLY: bool = false;
    type Request = kms::CreateCustomKeyStoreRequest;
    type Response = kms::CreateCustomKeyStoreResponse;
    type On = Account;

    fn defaults(request: &mut Self::Request) {
        request.custom_key_store_type.get_or_insert(kms::CustomKeyStoreType::AwsCloudhsm as i32);
    }

    fn on(request: &Self::Request) -> Result<()> {
        if request.custom_key_store_type == Some(kms::CustomKeyStoreType::ExternalKeyStore as i32) {
            // The model of the operation has no exception for what is not served.
            return Err(Error::validation(
                "1 validation error detected: Value 'EXTERNAL_KEY_STORE' at 'customKeyStoreType' failed to \
                 satisfy constraint: Member must satisfy enum value set: [AWS_CLOUDHSM]",
            ));
        }
        for (name, given) in [
            ("CloudHsmClusterId", request.cloud_hsm_cluster_id.is_some()),
            ("TrustAnchorCertificate", request.trust_anchor_certificate.is_some()),
            ("KeyStorePassword", request.key_store_password.is_some()),
        ] {
            if !given {
                return Err(Error::validation(format!(
                    "{name} is required for a custom key store of type AWS_CLOUDHSM."
                )));
            }
        }
        Ok(())
    }

    async fn run(call: &mut Call, request: &Self::Request, _: Allowed<Account>) -> Result<Self::Response> {
        let name = given(&request.custom_key_store_name)?;
        let anchor = given(&request.trust_anchor_certificate)?;
        check_name(call, name).await?;
        let account = call.account().to_owned();
        let cluster = call.registered_cluster(&account, given(&request.cloud_hsm_cluster_id)?).await?;
        check_free(call, &cluster).await?;
        check_cluster(&cluster)?;
        if certificate(anchor).is_none() || certificate(anchor) != certificate(&cluster.value.trust_anchor) {
            return Err(Error::new(
                Exception::IncorrectTrustAnchor,
                format!("The certificate is not the trust anchor of cluster {}.", cluster.id.id),
            ));
        }
        let row = rows::row(Kind::KeyStore, call.region(), &account, &new_id()?);
        let secret = SecretString::from(given(&request.key_store_password)?.as_str());
        let password = sealed::seal(call, &row, &secret).await?;
        let value = KeyStore::new(name, &cluster.id.id, &cluster.value.trust_anchor, password, call.now_ms);
        call.change(Draft::insert(row.clone(), &value)?);
        claim_name(call, &row, name)?;
        claim_cluster(call, &cluster, Some(&row.id))?;
        Ok(kms::CreateCustomKeyStoreResponse { custom_key_store_id: Some(row.id) })
    }
}

/// Begins to connect a custom key store.
pub struct ConnectCustomKeyStore;

impl Operation for ConnectCustomKeyStore {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "ConnectCustomKeyStore";
    const ACTION: &'static str = "kms:ConnectCustomKeyStore";
    const READ_ONLY: bool = false;
    type Request = kms::ConnectCustomKeyStoreRequest;
    type Response = kms::ConnectCustomKeyStoreResponse;
    type On = Account;

    fn on(_: &Self::Request) -> Result<()> {
        Ok(())
    }

    async fn run(call: &mut Call, request: &Self::Request, _: Allowed<Account>) -> Result<Self::Response> {
        let held = named(call, &request.custom_key_store_id).await?;
        match held.value.state {
            State::Connected | State::Connecting => return Ok(kms::ConnectCustomKeyStoreResponse {}),
            State::Disconnected => (),
            state => return Err(invalid_state(&held, state, "disconnect it first")),
        }
        let cluster = call.registered_cluster(&held.id.account, &held.value.cluster).await?;
        // Of a cluster that was deleted the connection's error tells.
        if !cluster.value.deleted && !cluster.value.is_active() {
            return Err(not_active(&cluster));
        }
        enter(call, &held, State::Connecting)?;
        call.afterwards(|app| app.key_stores.wake());
        Ok(kms::ConnectCustomKeyStoreResponse {})
    }
}

/// Disconnects a custom key store.
pub struct DisconnectCustomKeyStore;

impl Operation for DisconnectCustomKeyStore {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "DisconnectCustomKeyStore";
    const ACTION: &'static str = "kms:DisconnectCustomKeyStore";
    const READ_ONLY: bool = false;
    type Request = kms::DisconnectCustomKeyStoreRequest;
    type Response = kms::DisconnectCustomKeyStoreResponse;
    type On = Account;

    fn on(_: &Self::Request) -> Result<()> {
        Ok(())
    }

    async fn run(call: &mut Call, request: &Self::Request, _: Allowed<Account>) -> Result<Self::Response> {
        let held = named(call, &request.custom_key_store_id).await?;
        match held.value.state {
            State::Connected | State::Connecting | State::Failed => (),
            state => return Err(invalid_state(&held, state, "it is disconnected already")),
        }
        enter(call, &held, State::Disconnecting)?;
        let id = held.id.id.clone();
        call.afterwards(move |app| app.key_stores.disconnect(&id));
        Ok(kms::DisconnectCustomKeyStoreResponse {})
    }
}

/// Changes a custom key store.
pub struct UpdateCustomKeyStore;

impl Operation for UpdateCustomKeyStore {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "UpdateCustomKeyStore";
    const ACTION: &'static str = "kms:UpdateCustomKeyStore";
    const READ_ONLY: bool = false;
    type Request = kms::UpdateCustomKeyStoreRequest;
    type Response = kms::UpdateCustomKeyStoreResponse;
    type On = Account;

    fn on(_: &Self::Request) -> Result<()> {
        Ok(())
    }

    async fn run(call: &mut Call, request: &Self::Request, _: Allowed<Account>) -> Result<Self::Response> {
        let held = named(call, &request.custom_key_store_id).await?;
        let only_name = request.key_store_password.is_none() && request.cloud_hsm_cluster_id.is_none();
        match held.value.state {
            State::Disconnected => (),
            State::Connected if only_name => (),
            state => {
                return Err(invalid_state(
                    &held,
                    state,
                    "disconnect it before its password or cluster is changed",
                ));
            }
        }
        let mut value = held.value.clone();
        if let Some(name) = request.new_custom_key_store_name.as_ref().filter(|name| **name != value.name) {
            check_name(call, name).await?;
            call.change(Draft::delete(&name_of(call, &held).await?));
            claim_name(call, &held.id, name)?;
            value.name.clone_from(name);
        }
        if let Some(password) = &request.key_store_password {
            value.password = sealed::seal(call, &held.id, &SecretString::from(password.as_str())).await?;
        }
        if let Some(id) = request.cloud_hsm_cluster_id.as_ref().filter(|id| **id != value.cluster) {
            let old = call.registered_cluster(&held.id.account, &value.cluster).await?;
            let new = call.registered_cluster(&held.id.account, id).await?;
            check_cluster(&new)?;
            if !new.value.is_related(&old.value) {
                return Err(Error::new(
                    Exception::CloudHsmClusterNotRelated,
                    format!("The tokens of cluster {id} are no copies of those of cluster {}.", old.id.id),
                ));
            }
            claim_cluster(call, &old, None)?;
            claim_cluster(call, &new, Some(&held.id.id))?;
            value.cluster.clone_from(id);
            value.trust_anchor.clone_from(&new.value.trust_anchor);
        }
        call.change(Draft::replace(&held, &value)?);
        Ok(kms::UpdateCustomKeyStoreResponse {})
    }
}

/// Removes a custom key store.
pub struct DeleteCustomKeyStore;

impl Operation for DeleteCustomKeyStore {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "DeleteCustomKeyStore";
    const ACTION: &'static str = "kms:DeleteCustomKeyStore";
    const READ_ONLY: bool = false;
    type Request = kms::DeleteCustomKeyStoreRequest;
    type Response = kms::DeleteCustomKeyStoreResponse;
    type On = Account;

    fn on(_: &Self::Request) -> Result<()> {
        Ok(())
    }

    async fn run(call: &mut Call, request: &Self::Request, _: Allowed<Account>) -> Result<Self::Response> {
        let held = named(call, &request.custom_key_store_id).await?;
        if held.value.state != State::Disconnected {
            return Err(invalid_state(&held, held.value.state, "disconnect it first"));
        }
        if !children::<KeyRow>(call, &held, 1).await?.is_empty() {
            return Err(Error::new(
                Exception::CustomKeyStoreHasCmks,
                format!("Custom key store {} contains KMS keys: delete them first.", held.id.id),
            ));
        }
        // INVARIANT: a key that is being made in it has an intent, whose
        // removal here fails that key's commit.
        for intent in children::<Intent>(call, &held, ROWS_PAGE).await? {
            tracing::warn!(object = intent.id.id, "it may stay in the tokens: its key store is deleted");
            call.change(Draft::delete(&intent));
        }
        let cluster = call.registered_cluster(&held.id.account, &held.value.cluster).await?;
        claim_cluster(call, &cluster, None)?;
        call.change(Draft::delete(&name_of(call, &held).await?));
        call.change(Draft::delete(&held));
        Ok(kms::DeleteCustomKeyStoreResponse {})
    }
}

/// Tells of custom key stores.
pub struct DescribeCustomKeyStores;

impl Operation for DescribeCustomKeyStores {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "DescribeCustomKeyStores";
    const ACTION: &'static str = "kms:DescribeCustomKeyStores";
    const READ_ONLY: bool = true;
    type Request = kms::DescribeCustomKeyStoresRequest;
    type Response = kms::DescribeCustomKeyStoresResponse;
    type On = Account;

    fn on(request: &Self::Request) -> Result<()> {
        if request.custom_key_store_id.is_some() && request.custom_key_store_name.is_some() {
            return Err(Error::validation("Specify CustomKeyStoreId or CustomKeyStoreName, but not both."));
        }
        Ok(())
    }

    async fn run(call: &mut Call, request: &Self::Request, _: Allowed<Account>) -> Result<Self::Response> {
        let id = match (&request.custom_key_store_id, &request.custom_key_store_name) {
            (Some(id), _) => Some(id.clone()),
            (None, Some(name)) => Some(id_by_name(call, name).await?.ok_or_else(|| {
                Error::new(
                    Exception::CustomKeyStoreNotFound,
                    format!("There is no custom key store with the name {name} in this account and Region."),
                )
            })?),
            (None, None) => None,
        };
        let page = match id {
            Some(id) => Page { rows: vec![call.key_store(&id).await?], next: None },
            None => Page::read(call, None, request.limit.unwrap_or(PAGE), &request.marker).await?,
        };
        Ok(kms::DescribeCustomKeyStoresResponse {
            custom_key_stores: page.rows.iter().map(entry).collect(),
            truncated: Some(page.next.is_some()),
            next_marker: page.next,
        })
    }
}

fn entry(held: &Held<KeyStore>) -> kms::CustomKeyStoresListEntry {
    let store = &held.value;
    kms::CustomKeyStoresListEntry {
        custom_key_store_id: Some(held.id.id.clone()),
        custom_key_store_name: Some(store.name.clone()),
        cloud_hsm_cluster_id: Some(store.cluster.clone()),
        trust_anchor_certificate: Some(store.trust_anchor.clone()),
        connection_state: Some(store.state as i32),
        connection_error_code: store.error().map(|code| code as i32),
        creation_date: Some(timestamp(store.created_ms)),
        custom_key_store_type: Some(kms::CustomKeyStoreType::AwsCloudhsm as i32),
        xks_proxy_configuration: None,
    }
}

/// The key store that a request names; it is on the record.
async fn named(call: &mut Call, id: &Option<String>) -> Result<Held<KeyStore>> {
    let id = given(id)?;
    call.note("customKeyStoreId", id.clone());
    let held = call.key_store(id).await?;
    call.note("customKeyStoreName", held.value.name.clone());
    call.note("clusterId", held.value.cluster.clone());
    Ok(held)
}

fn enter(call: &mut Call, held: &Held<KeyStore>, state: State) -> Result<()> {
    call.change(Draft::replace(held, &held.value.in_state(state, None))?);
    Ok(())
}

fn invalid_state(held: &Held<KeyStore>, state: State, remedy: &str) -> Error {
    Error::new(
        Exception::CustomKeyStoreInvalidState,
        format!("Custom key store {} is {}: {remedy}.", held.id.id, state.text()),
    )
}

/// Rows of a kind that belong to a key store.
async fn children<T: Stored>(call: &Call, store: &Held<KeyStore>, limit: u32) -> Result<Vec<Held<T>>> {
    let (region, account, id) = (&store.id.region, &store.id.account, &store.id.id);
    call.app.registry.page(region, account, Some(id), None, limit, call.deadline).await
}

async fn name_row(call: &Call, name: &str) -> Result<Option<Held<KeyStoreName>>> {
    let row = rows::row(Kind::KeyStoreName, call.region(), call.account(), name);
    match call.app.store.row(&row).await.map_err(from_store)? {
        Some(row) => call.app.registry.open(row, call.deadline).await.map(Some),
        None => Ok(None),
    }
}

async fn name_of(call: &Call, store: &Held<KeyStore>) -> Result<Held<KeyStoreName>> {
    let row = name_row(call, &store.value.name).await?;
    row.ok_or_else(|| Error::internal(format!("{} has no row for its name", store.id)))
}

async fn id_by_name(call: &Call, name: &str) -> Result<Option<String>> {
    Ok(name_row(call, name).await?.map(|held| held.value.key_store))
}

/// Whether a name is free, and there is room for one more.
async fn check_name(call: &Call, name: &str) -> Result<()> {
    if name_row(call, name).await?.is_some() {
        return Err(Error::new(
            Exception::CustomKeyStoreNameInUse,
            format!("The custom key store name {name} is in use in this account and Region."),
        ));
    }
    Ok(())
}

fn claim_name(call: &mut Call, store: &RowId, name: &str) -> Result<()> {
    let row = rows::row(Kind::KeyStoreName, &store.region, &store.account, name);
    call.change(Draft::insert(row, &KeyStoreName { key_store: store.id.clone() })?);
    Ok(())
}

fn claim_cluster(call: &mut Call, cluster: &Held<RegisteredCluster>, store: Option<&str>) -> Result<()> {
    let value = RegisteredCluster { key_store: store.map(str::to_owned), ..cluster.value.clone() };
    call.change(Draft::replace(cluster, &value)?);
    Ok(())
}

/// Whether no key store of the account uses the cluster or a copy of it, and
/// there is room for one more.
async fn check_free(call: &Call, cluster: &Held<RegisteredCluster>) -> Result<()> {
    let (region, account) = (call.region(), call.account());
    let stores: Vec<Held<KeyStore>> =
        call.app.registry.page(region, account, None, None, ROWS_PAGE, call.deadline).await?;
    if stores.len() >= KEY_STORES_MAX {
        return Err(Error::new(
            Exception::LimitExceeded,
            format!("An account has at most {KEY_STORES_MAX} custom key stores in a Region."),
        ));
    }
    for store in &stores {
        let other = call.registered_cluster(account, &store.value.cluster).await?;
        if other.id == cluster.id || other.value.is_related(&cluster.value) {
            return Err(Error::new(
                Exception::CloudHsmClusterInUse,
                format!(
                    "Cluster {}, or one that its tokens are copies of, is used by custom key store {}.",
                    cluster.id.id, store.id.id
                ),
            ));
        }
    }
    Ok(())
}

/// Whether keys can be made in a cluster.
fn check_cluster(cluster: &Held<RegisteredCluster>) -> Result<()> {
    if cluster.value.deleted {
        return Err(Error::new(
            Exception::CloudHsmClusterNotFound,
            format!("Cluster {} was deleted.", cluster.id.id),
        ));
    }
    if !cluster.value.is_active() {
        return Err(not_active(cluster));
    }
    if !cluster.value.is_large_enough() {
        return Err(Error::new(
            Exception::CloudHsmClusterInvalidConfiguration,
            format!(
                "Cluster {} has {} members; its keys must be on {}.",
                cluster.id.id,
                cluster.value.members.len(),
                cluster.value.rules.required_copies
            ),
        ));
    }
    Ok(())
}

fn not_active(cluster: &Held<RegisteredCluster>) -> Error {
    Error::new(
        Exception::CloudHsmClusterNotActive,
        format!(
            "Cluster {} is not active: its operators have to initialize it, `strongroom hsm cluster initialize`.",
            cluster.id.id
        ),
    )
}

/// The one certificate of a PEM text.
fn certificate(pem: &str) -> Option<CertificateDer<'static>> {
    let mut all = CertificateDer::pem_slice_iter(pem.as_bytes());
    let first = all.next()?.ok()?;
    all.next().is_none().then_some(first)
}

/// `cks-` and 17 hex digits, as KMS makes them.
fn new_id() -> Result<String> {
    let mut random = [0; 9];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| Error::internal("the host has no random numbers"))?;
    let mut id = hex::encode(random);
    id.truncate(17);
    Ok(format!("cks-{id}"))
}
