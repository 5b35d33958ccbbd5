//! Key material that its owner brings.
//!
//! ```text
//! GetParametersForImport → public key, token     the private key is wrapped in the store for 24 hours
//! ImportKeyMaterial      ← token, material       unwrapped in the HSM, then as any material
//! ```
//!
//! KeyMaterialId is a MAC by the HSM over the KMS key's id and a check value of
//! the material: the same material has the same id, and nobody can try guesses.

use super::multi_region::unsupported;
use super::prelude::*;
use crate::app::App;
use crate::hsm::{
    BackingId, Capability, Cluster, Hash, HsmError, Imported, KeyRef, Material, Residence, Use, Wrapping,
};
use crate::key::{BackingKey, DAY_MS, Import, ImportParameters, Key as KeyRow, StoredHome};
use crate::material;
use crate::multi_region::{Message, News, Version, deliver, report, synchronize};
use crate::registry::from_store;
use crate::store::Kind;

/// How long a wrapping key and its token are valid.
const PARAMETERS_MS: i64 = DAY_MS;
/// Wrapping keys of one KMS key that are valid at once.
const PARAMETERS_MAX: u32 = 100;
/// The latest ValidTo.
const VALID_DAYS_MAX: i64 = 365;
const TOKEN_LABEL: &str = "strongroom import token 1";
const MATERIAL_LABEL: &str = "strongroom imported material 1";
const SYMMETRIC: kms::KeySpec = kms::KeySpec::SymmetricDefault;

/// Makes a wrapping key for an import.
pub struct GetParametersForImport;

impl Operation for GetParametersForImport {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "GetParametersForImport";
    const ACTION: &'static str = "kms:GetParametersForImport";
    const READ_ONLY: bool = true;
    type Request = kms::GetParametersForImportRequest;
    type Response = kms::GetParametersForImportResponse;
    type On = Key;

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        by_key_id_only(&request.key_id)
    }

    async fn run(call: &mut Call, request: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        check_origin(&key)?;
        call.check(Stage::Change, &key)?;
        let (algorithm, spec) = (chosen(request.wrapping_algorithm)?, chosen(request.wrapping_key_spec)?);
        let wrapping = wrapping(algorithm)?;
        let material = wrapping_material(spec)?;
        check_room(key.held.value.spec, wrapping, material)?;
        let cluster = call.cluster_of(&key)?;
        check_capability(&cluster, wrapping, material)?;
        check_count(call, &key).await?;

        let id = BackingId::random().map_err(from_hsm)?;
        let made = cluster.generate(id, material, Use::Import, call.deadline).await.map_err(from_hsm)?;
        let valid_to_ms = call.now_ms + PARAMETERS_MS;
        let parameters = ImportParameters {
            key_id: key.held.id.id.clone(),
            algorithm,
            spec,
            valid_to_ms,
            home: StoredHome::of(&made.key.home),
        };
        call.change(Draft::insert(parameters_row(&key, id), &parameters)?);
        let token = Token { id, valid_to_ms };
        Ok(kms::GetParametersForImportResponse {
            key_id: Some(key.arn.clone()),
            import_token: Some(token.sealed(call, &key).await?),
            public_key: made.public_key,
            parameters_valid_to: Some(timestamp(valid_to_ms)),
        })
    }
}

/// Imports key material.
pub struct ImportKeyMaterial;

impl Operation for ImportKeyMaterial {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "ImportKeyMaterial";
    const ACTION: &'static str = "kms:ImportKeyMaterial";
    const READ_ONLY: bool = false;
    type Request = kms::ImportKeyMaterialRequest;
    type Response = kms::ImportKeyMaterialResponse;
    type On = Key;

    fn defaults(request: &mut Self::Request) {
        request.expiration_model.get_or_insert(kms::ExpirationModelType::KeyMaterialExpires as i32);
    }

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        by_key_id_only(&request.key_id)
    }

    async fn run(call: &mut Call, request: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        check_origin(&key)?;
        call.check(Stage::Change, &key)?;
        let valid_to_ms = valid_to(call.now_ms, request)?;
        check_members(request, key.held.value.spec)?;
        let parameters = parameters(call, &key, given(&request.import_token)?).await?;
        let imported = unwrap(call, &key, &parameters, given(&request.encrypted_key_material)?).await?;
        let name = name(&key);
        let tagged = [name.as_bytes(), imported.check.as_slice()];
        let id = BackingId(call.app.registry.tag(MATERIAL_LABEL, &tagged, call.deadline).await?);
        let versions: Vec<Held<BackingKey>> = call.app.registry.of_key(&key.held.id, call.deadline).await?;
        let messages = place(call, request, &key, versions, id, imported, valid_to_ms)?;
        deliver(&call.app, messages, call.now_ms, call.deadline).await?.take_part(call)?;
        Ok(kms::ImportKeyMaterialResponse {
            key_id: Some(key.arn.clone()),
            key_material_id: (key.held.value.spec == SYMMETRIC).then(|| id.to_string()),
        })
    }
}

/// Deletes imported key material.
pub struct DeleteImportedKeyMaterial;

impl Operation for DeleteImportedKeyMaterial {
    const SERVICE: Service = Service::Kms;
    const NAME: &'static str = "DeleteImportedKeyMaterial";
    const ACTION: &'static str = "kms:DeleteImportedKeyMaterial";
    const READ_ONLY: bool = false;
    type Request = kms::DeleteImportedKeyMaterialRequest;
    type Response = kms::DeleteImportedKeyMaterialResponse;
    type On = Key;

    fn on(request: &Self::Request) -> Result<KeyRefName> {
        by_key_id_only(&request.key_id)
    }

    async fn run(call: &mut Call, request: &Self::Request, key: Allowed<Key>) -> Result<Self::Response> {
        check_origin(&key)?;
        let symmetric = key.held.value.spec == SYMMETRIC;
        let current = key.held.value.current.map(|id| id.to_string());
        let id = match &request.key_material_id {
            Some(_) if !symmetric => return Err(only_symmetric("KeyMaterialId")),
            Some(id) => Some(id.clone()),
            None => current,
        };
        let answer = kms::DeleteImportedKeyMaterialResponse {
            key_id: Some(key.arn.clone()),
            key_material_id: id.clone().filter(|_| symmetric),
        };
        // What was never imported is not there, as it should be.
        let Some(id) = id else { return Ok(answer) };
        let versions: Vec<Held<BackingKey>> = call.app.registry.of_key(&key.held.id, call.deadline).await?;
        let version = versions.iter().find(|version| version.id.id == id);
        let version = version.ok_or_else(|| {
            Error::new(Exception::NotFound, format!("{} has no key material {id}.", key.arn))
        })?;
        if version.value.home != StoredHome::Deleted {
            let mut removal = material::remove(&call.app, &key.held, version)?;
            removal.drafts.iter().cloned().for_each(|draft| call.change(draft));
            let messages = std::mem::take(&mut removal.messages);
            deliver(&call.app, messages, call.now_ms, call.deadline).await?.take_part(call)?;
            let (store, deadline) = (call.app.store.clone(), call.deadline);
            call.afterwards(move |app: &App| {
                app.tasks.spawn(async move {
                    if let Err(error) = removal.wipe(&*store, deadline).await {
                        tracing::warn!(%error, detail = error.detail, "deleted key material may stay loaded until it is evicted");
                    }
                });
            });
        }
        Ok(answer)
    }
}

/// Only keys that were made for it import material.
fn check_origin(key: &Key) -> Result<()> {
    match key.held.value.origin {
        kms::OriginType::External => Ok(()),
        origin => Err(Error::new(
            Exception::UnsupportedOperation,
            format!("{} origin is {} which is not valid for this operation.", key.arn, origin.text()),
        )),
    }
}

fn wrapping(algorithm: kms::AlgorithmSpec) -> Result<Wrapping> {
    use kms::AlgorithmSpec as A;
    Ok(match algorithm {
        A::RsaesOaepSha1 => Wrapping::Oaep(Hash::Sha1),
        A::RsaesOaepSha256 => Wrapping::Oaep(Hash::Sha256),
        A::RsaAesKeyWrapSha1 => Wrapping::AesKeyWrap(Hash::Sha1),
        A::RsaAesKeyWrapSha256 => Wrapping::AesKeyWrap(Hash::Sha256),
        A::RsaesPkcs1V15 | A::Sm2pke | A::Unspecified => {
            return Err(Error::new(
                Exception::UnsupportedOperation,
                format!("Wrapping algorithm {} is not supported.", algorithm.text()),
            ));
        }
    })
}

fn wrapping_material(spec: kms::WrappingKeySpec) -> Result<Material> {
    use kms::WrappingKeySpec as S;
    Ok(match spec {
        S::Rsa2048 => Material::Rsa(2048),
        S::Rsa3072 => Material::Rsa(3072),
        S::Rsa4096 => Material::Rsa(4096),
        S::Sm2 | S::Unspecified => {
            return Err(Error::new(
                Exception::UnsupportedOperation,
                format!("Wrapping key spec {} is not supported.", spec.text()),
            ));
        }
    })
}

/// RSA encrypts little at once: no RSA private key, and none of P-521 under
/// the shortest wrapping key.
fn check_room(spec: kms::KeySpec, wrapping: Wrapping, material: Material) -> Result<()> {
    use kms::KeySpec as S;
    let fits = match (wrapping, spec) {
        (Wrapping::AesKeyWrap(_), _) => true,
        (_, S::Rsa2048 | S::Rsa3072 | S::Rsa4096) => false,
        (_, S::EccNistP521) => material != Material::Rsa(2048),
        _ => true,
    };
    if fits {
        return Ok(());
    }
    Err(Error::new(
        Exception::UnsupportedOperation,
        format!(
            "The wrapping key and algorithm cannot carry key material of key spec {}: use an RSA_AES_KEY_WRAP algorithm.",
            spec.text()
        ),
    ))
}

fn check_capability(cluster: &Cluster, wrapping: Wrapping, material: Material) -> Result<()> {
    let offered = cluster.capabilities();
    if offered.is_empty() {
        return Err(from_hsm(HsmError::Unavailable("no member was attached yet".to_owned())));
    }
    let need = Capability::Import(wrapping.hash());
    if offered.contains(&need) && cluster.residence(material) == Some(Residence::Wrapped) {
        return Ok(());
    }
    Err(Error::new(
        Exception::UnsupportedOperation,
        format!("No HSM of the cluster passed its self-test to {need} with {material} keys that it wraps."),
    ))
}

async fn check_count(call: &Call, key: &Key) -> Result<()> {
    let RowId { region, account, id, .. } = &key.held.id;
    let there = call
        .app
        .store
        .rows(Kind::ImportParameters, region, account, Some(id), None, PARAMETERS_MAX)
        .await
        .map_err(from_store)?;
    if there.len() < PARAMETERS_MAX as usize {
        return Ok(());
    }
    Err(Error::new(
        Exception::Throttling,
        format!("{} has {PARAMETERS_MAX} valid wrapping keys for imports; use one of them.", key.arn),
    ))
}

/// What an import token says, which only this service can seal.
struct Token {
    /// The wrapping key.
    id: BackingId,
    /// ParametersValidTo, milliseconds since the epoch.
    valid_to_ms: i64,
}

impl Token {
    const VERSION: u8 = 1;

    /// version 1 byte │ wrapping key 32 │ valid to 8
    fn payload(&self) -> Vec<u8> {
        let mut payload = vec![Self::VERSION];
        payload.extend_from_slice(&self.id.0);
        payload.extend_from_slice(&self.valid_to_ms.to_be_bytes());
        payload
    }

    /// Its MAC, which binds it to the KMS key.
    async fn mac(call: &Call, key: &Key, payload: &[u8]) -> Result<[u8; 32]> {
        let name = key.held.id.to_string();
        call.app.registry.tag(TOKEN_LABEL, &[name.as_bytes(), payload], call.deadline).await
    }

    async fn sealed(&self, call: &Call, key: &Key) -> Result<Vec<u8>> {
        let mut token = self.payload();
        token.extend_from_slice(&Self::mac(call, key, &token).await?);
        Ok(token)
    }

    async fn open(call: &Call, key: &Key, token: &[u8]) -> Result<Token> {
        let (payload, mac) = token.split_last_chunk::<32>().ok_or_else(invalid_token)?;
        let expected = Self::mac(call, key, payload).await?;
        if aws_lc_rs::constant_time::verify_slices_are_equal(&expected, mac).is_err() {
            return Err(invalid_token());
        }
        let (version, rest) = payload.split_first().ok_or_else(invalid_token)?;
        let (id, valid_to) = rest.split_first_chunk::<32>().ok_or_else(invalid_token)?;
        let valid_to: [u8; 8] = valid_to.try_into().map_err(|_| invalid_token())?;
        match *version {
            Self::VERSION => Ok(Token { id: BackingId(*id), valid_to_ms: i64::from_be_bytes(valid_to) }),
            _ => Err(invalid_token()),
        }
    }
}

fn invalid_token() -> Error {
    Error::new(Exception::InvalidImportToken, "The import token is invalid or is of another KMS key.")
}

/// The wrapping key that a token names.
async fn parameters(call: &Call, key: &Key, token: &[u8]) -> Result<(BackingId, ImportParameters)> {
    let token = Token::open(call, key, token).await?;
    if token.valid_to_ms <= call.now_ms {
        return Err(Error::new(
            Exception::ExpiredImportToken,
            "The import token has expired; get new parameters for import.",
        ));
    }
    let row = call.app.store.row(&parameters_row(key, token.id)).await.map_err(from_store)?;
    let held: Held<ImportParameters> =
        call.app.registry.open(row.ok_or_else(invalid_token)?, call.deadline).await?;
    Ok((token.id, held.value))
}

/// Has the HSM unwrap the material.
async fn unwrap(
    call: &Call,
    key: &Allowed<Key>,
    (id, parameters): &(BackingId, ImportParameters),
    encrypted: &[u8],
) -> Result<Imported> {
    let KeyRow { spec, usage, .. } = &key.held.value;
    let unreadable = || Error::internal(format!("{} cannot import", key.arn));
    let wrapper = KeyRef {
        id: *id,
        material: wrapping_material(parameters.spec)?,
        usage: Use::Import,
        home: parameters.home.home().ok_or_else(unreadable)?,
    };
    let material = spec::material(*spec).ok_or_else(unreadable)?;
    let purpose = spec::hsm_use(*usage).ok_or_else(unreadable)?;
    call.cluster_of(key)?
        .import(&wrapper, wrapping(parameters.algorithm)?, material, purpose, encrypted, call.deadline)
        .await
        .map_err(|error| match error {
            HsmError::Input => Error::bare(Exception::InvalidCiphertext),
            other => from_hsm(other),
        })
}

/// ValidTo, which goes with ExpirationModel.
fn valid_to(now_ms: i64, request: &kms::ImportKeyMaterialRequest) -> Result<Option<i64>> {
    use kms::ExpirationModelType as Model;
    let model = choice(request.expiration_model, Model::KeyMaterialExpires);
    let given = match (model, &request.valid_to) {
        (Model::KeyMaterialExpires, Some(given)) => given,
        (Model::KeyMaterialExpires, None) => {
            return Err(Error::validation(
                "ValidTo is required when ExpirationModel is KEY_MATERIAL_EXPIRES.",
            ));
        }
        (_, None) => return Ok(None),
        (_, Some(_)) => {
            return Err(Error::validation(
                "ValidTo is not valid when ExpirationModel is KEY_MATERIAL_DOES_NOT_EXPIRE.",
            ));
        }
    };
    let ms =
        given.seconds.checked_mul(1000).and_then(|ms| ms.checked_add(i64::from(given.nanos) / 1_000_000));
    match ms {
        Some(ms) if ms > now_ms && ms <= now_ms + VALID_DAYS_MAX * DAY_MS => Ok(Some(ms)),
        _ => Err(Error::validation(format!(
            "ValidTo must be in the future, and at most {VALID_DAYS_MAX} days from now."
        ))),
    }
}

/// Members that only symmetric keys have, and that exclude one another.
fn check_members(request: &kms::ImportKeyMaterialRequest, spec: kms::KeySpec) -> Result<()> {
    let given = [
        ("ImportType", request.import_type.is_some()),
        ("KeyMaterialDescription", request.key_material_description.is_some()),
        ("KeyMaterialId", request.key_material_id.is_some()),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((member, _)) if spec != SYMMETRIC => return Err(only_symmetric(member)),
        _ => (),
    }
    let is_new = request.import_type == Some(kms::ImportType::NewKeyMaterial as i32);
    if is_new && request.key_material_id.is_some() {
        return Err(Error::validation("KeyMaterialId is not valid when ImportType is NEW_KEY_MATERIAL."));
    }
    Ok(())
}

fn only_symmetric(member: &str) -> Error {
    Error::validation(format!("{member} is valid for symmetric encryption keys only."))
}

/// What the ids of a key's material are bound to: the keys of a multi-Region key
/// have the same.
fn name(key: &Key) -> String {
    let id = &key.held.id;
    match key.held.value.multi_region {
        Some(_) => RowId { region: String::new(), ..id.clone() }.to_string(),
        None => id.to_string(),
    }
}

/// Gives material its place among the key's versions: the first, one that is
/// there again, or one to rotate to. Returns what other Regions are told.
fn place(
    call: &mut Call,
    request: &kms::ImportKeyMaterialRequest,
    key: &Key,
    mut versions: Vec<Held<BackingKey>>,
    id: BackingId,
    imported: Imported,
    valid_to_ms: Option<i64>,
) -> Result<Vec<Message>> {
    let mut value = key.held.value.clone();
    let mut news = Vec::new();
    let known = versions.iter().position(|version| version.id.id == id.to_string());
    check_place(request, key, &value, known.is_some(), id)?;
    let home = StoredHome::of(&imported.home);
    let description = request.key_material_description.clone();
    match known.and_then(|at| versions.get_mut(at)) {
        Some(version) => {
            let old = version.value.imported.take().and_then(|import| import.description);
            version.value.home = home;
            version.value.imported = Some(Import { description: description.or(old), valid_to_ms });
            call.change(Draft::replace(version, &version.value)?);
        }
        None => {
            let row = BackingKey {
                key_id: key.held.id.id.clone(),
                spec: value.spec,
                usage: value.usage,
                home,
                public_key: imported.public_key.map(Into::into),
                created_ms: call.now_ms,
                uses_leased: 0,
                imported: Some(Import { description, valid_to_ms }),
                rotated: None,
            };
            let place = RowId { kind: Kind::BackingKey, id: id.to_string(), ..key.held.id.clone() };
            call.change(Draft::insert(place.clone(), &row)?);
            news.push(Version { id, row: row.clone() });
            versions.push(Held { id: place, version: 1, value: row });
            match value.current {
                None => value.current = Some(id),
                Some(_) => value.pending = Some(id),
            }
        }
    }
    material::settle_import(&mut value, &versions);
    let mut messages = Vec::new();
    if value.pending == Some(id) {
        messages.extend(report(&key.held.id, &value, News::Pending { material: id, is_there: true }));
    }
    if !news.is_empty() {
        if let Some(set) = value.multi_region.as_mut().filter(|_| value.pending == Some(id)) {
            set.lacking = set.replicas.clone();
        }
        messages.extend(synchronize(&key.held.id, &value, news)?);
    }
    call.change(Draft::replace(&key.held, &value)?);
    Ok(messages)
}

/// Whether material with this id may be imported so.
fn check_place(
    request: &kms::ImportKeyMaterialRequest,
    key: &Key,
    value: &KeyRow,
    known: bool,
    id: BackingId,
) -> Result<()> {
    use kms::ImportType::{ExistingKeyMaterial, NewKeyMaterial};
    let incorrect = |why: &str| Err(Error::new(Exception::IncorrectKeyMaterial, why.to_owned()));
    if value.is_replica() && request.import_type == Some(NewKeyMaterial as i32) {
        return Err(unsupported(
            key,
            "is a multi-Region replica key: new key material is imported into its primary key first, then here as EXISTING_KEY_MATERIAL.",
        ));
    }
    let default = if value.current.is_none() { NewKeyMaterial } else { ExistingKeyMaterial };
    match (choice(request.import_type, default), known) {
        (NewKeyMaterial, true) => {
            incorrect("The key material in the request was imported into this KMS key before.")
        }
        (NewKeyMaterial, false) if value.pending.is_some() => Err(Error::new(
            Exception::KmsInvalidState,
            format!("{} has imported key material that is pending rotation already.", key.arn),
        )),
        (NewKeyMaterial, false) => Ok(()),
        (_, false) => incorrect(
            "The key material in the request is not the same key material that was previously imported into this KMS key.",
        ),
        (_, true) => match &request.key_material_id {
            Some(expected) if *expected != id.to_string() => {
                incorrect("The key material in the request is not the key material with this KeyMaterialId.")
            }
            _ => Ok(()),
        },
    }
}

fn parameters_row(key: &Key, id: BackingId) -> RowId {
    RowId { kind: Kind::ImportParameters, id: id.to_string(), ..key.held.id.clone() }
}
