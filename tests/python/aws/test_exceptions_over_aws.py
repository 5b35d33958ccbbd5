"""Each exception of KMS's model: raised here by a real cause, raised by one in a test in Rust, or not at all, and then
the README says why."""

import datetime
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key
from cryptography.x509.oid import NameOID

from client import text
from test_key_stores import DIR, reached
from test_model import MODELS

ANCHOR = DIR / "pki/ca.pem"
ROOT = Path(__file__).resolve().parents[3]
DECLARED = {
    error.name
    for operation in MODELS["kms"].operation_names
    for error in MODELS["kms"].operation_model(operation).error_shapes
}
# What needs an HSM that fails, another clock or a broken store.
IN_RUST = {
    "CloudHsmClusterInvalidConfigurationException": "key_stores.rs",
    "CloudHsmClusterNotRelatedException": "key_stores.rs",
    "DependencyTimeoutException": "outage.rs",
    "ExpiredImportTokenException": "import.rs",
    "KeyUnavailableException": "outage.rs",
    "KMSInternalException": "tamper.rs",
}
CAUSES = {}


def cause(function):
    """What causes the exception that its documentation names; its parameters are fixtures."""
    CAUSES[function.__doc__] = function
    return function


@pytest.fixture(scope="module")
def active(hsm, cluster):
    """The cluster, after its ceremony."""
    hsm.initialize_cluster(cluster_id=cluster, pin="key-store")
    return cluster


@pytest.fixture(scope="module")
def store(aws, kms, active):
    """A key store with a key in it, disconnected."""
    made = aws.create_custom_key_store(**wanted(active))["CustomKeyStoreId"]
    aws.connect_custom_key_store(CustomKeyStoreId=made)
    reached(kms, made, "CONNECTED")
    new_key(aws, Origin="AWS_CLOUDHSM", CustomKeyStoreId=made)
    aws.disconnect_custom_key_store(CustomKeyStoreId=made)
    reached(kms, made, "DISCONNECTED")
    return made


def wanted(cluster, **changed):
    """CreateCustomKeyStore's request."""
    return {
        "CustomKeyStoreName": "exceptions",
        "CloudHsmClusterId": cluster,
        "TrustAnchorCertificate": ANCHOR.read_text(),
        "KeyStorePassword": (DIR / "key-store/user.pin").read_text(),
        **changed,
    }


def new_key(aws, **members):
    return aws.create_key(**members)["KeyMetadata"]["KeyId"]


def used(aws, **members):
    return aws.encrypt(KeyId=new_key(aws), Plaintext=b"x", **members)["CiphertextBlob"]


def importing(aws, material, key=None, **changed):
    """ImportKeyMaterial, of material that is sealed as it should be."""
    key = key or new_key(aws, Origin="EXTERNAL")
    found = aws.get_parameters_for_import(
        KeyId=key, WrappingAlgorithm="RSAES_OAEP_SHA_256", WrappingKeySpec="RSA_2048"
    )
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    request = {
        "KeyId": key,
        "ImportToken": found["ImportToken"],
        "EncryptedKeyMaterial": load_der_public_key(found["PublicKey"]).encrypt(material, oaep),
        "ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE",
        **changed,
    }
    aws.import_key_material(**request)
    return key


def certificate_of_nobody():
    """A CA of its own."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nobody")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
    return made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


@cause
def an_alias_that_is_there(aws, unique):
    """AlreadyExistsException"""
    for _ in range(2):
        aws.create_alias(AliasName=f"alias/twice/{unique}", TargetKeyId=new_key(aws))


@cause
def a_store_of_a_cluster_that_waits_for_its_ceremony(aws, cluster):
    """CloudHsmClusterNotActiveException"""
    aws.create_custom_key_store(**wanted(cluster))


@cause
def a_store_of_no_cluster(aws):
    """CloudHsmClusterNotFoundException"""
    aws.create_custom_key_store(**wanted("cluster-aaaaaaaaaaa"))


@cause
def a_store_with_the_certificate_of_another(aws, active):
    """IncorrectTrustAnchorException"""
    aws.create_custom_key_store(
        **wanted(active, CustomKeyStoreName="other", TrustAnchorCertificate=certificate_of_nobody())
    )


@cause
def a_second_store_of_a_cluster(aws, cluster, store):
    """CloudHsmClusterInUseException"""
    aws.create_custom_key_store(**wanted(cluster, CustomKeyStoreName="other"))


@cause
def a_second_store_of_a_name(aws, cluster, store):
    """CustomKeyStoreNameInUseException"""
    aws.create_custom_key_store(**wanted(cluster))


@cause
def a_store_that_nobody_made(aws):
    """CustomKeyStoreNotFoundException"""
    aws.connect_custom_key_store(CustomKeyStoreId="cks-00000000000000000")


@cause
def a_key_in_a_store_that_is_not_connected(aws, store):
    """CustomKeyStoreInvalidStateException"""
    aws.create_key(Origin="AWS_CLOUDHSM", CustomKeyStoreId=store)


@cause
def a_store_with_keys_is_deleted(aws, store):
    """CustomKeyStoreHasCMKsException"""
    aws.delete_custom_key_store(CustomKeyStoreId=store)


@cause
def a_key_that_is_disabled(aws):
    """DisabledException"""
    key = new_key(aws)
    aws.disable_key(KeyId=key)
    aws.encrypt(KeyId=key, Plaintext=b"x")


@cause
def a_rehearsal_that_would_succeed(aws):
    """DryRunOperationException"""
    used(aws, DryRun=True)


@cause
def a_ciphertext_of_another_key(aws):
    """IncorrectKeyException"""
    aws.decrypt(CiphertextBlob=used(aws), KeyId=new_key(aws))


@cause
def material_of_another_length(aws):
    """IncorrectKeyMaterialException"""
    importing(aws, bytes(31))


@cause
def a_token_for_another_key(aws):
    """InvalidImportTokenException"""
    importing(aws, bytes(32), ImportToken=b"of nobody")


@cause
def an_alias_without_a_name(aws):
    """InvalidAliasNameException"""
    aws.create_alias(AliasName="alias/", TargetKeyId=new_key(aws))


@cause
def a_principal_that_is_none(aws):
    """InvalidArnException"""
    aws.create_grant(KeyId=new_key(aws), GranteePrincipal="alice", Operations=["Encrypt"])


@cause
def a_ciphertext_with_another_context(aws):
    """InvalidCiphertextException"""
    aws.decrypt(CiphertextBlob=used(aws), EncryptionContext={"another": "context"})


@cause
def a_grant_id_that_is_none(aws):
    """InvalidGrantIdException"""
    aws.revoke_grant(KeyId=new_key(aws), GrantId="0" * 63)


@cause
def a_grant_token_of_nobody(aws):
    """InvalidGrantTokenException"""
    used(aws, GrantTokens=["of nobody"])


@cause
def a_key_of_another_usage(aws):
    """InvalidKeyUsageException"""
    aws.encrypt(KeyId=new_key(aws, KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY"), Plaintext=b"x")


@cause
def a_marker_of_no_page(aws):
    """InvalidMarkerException"""
    aws.list_aliases(Marker="of no page")


@cause
def a_changed_mac(aws):
    """KMSInvalidMacException"""
    key = new_key(aws, KeySpec="HMAC_256", KeyUsage="GENERATE_VERIFY_MAC")
    aws.verify_mac(KeyId=key, Message=b"x", Mac=bytes(32), MacAlgorithm="HMAC_SHA_256")


@cause
def a_changed_signature(aws):
    """KMSInvalidSignatureException"""
    key = new_key(aws, KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY")
    aws.verify(KeyId=key, Message=b"x", Signature=bytes(70), SigningAlgorithm="ECDSA_SHA_256")


@cause
def a_key_that_is_to_be_deleted(aws):
    """KMSInvalidStateException"""
    key = new_key(aws)
    aws.schedule_key_deletion(KeyId=key)
    aws.encrypt(KeyId=key, Plaintext=b"x")


@cause
def one_rotation_too_many(aws):
    """LimitExceededException"""
    key = new_key(aws)
    for _ in range(26):
        aws.rotate_key_on_demand(KeyId=key)


@cause
def a_policy_that_is_no_json(aws):
    """MalformedPolicyDocumentException"""
    aws.put_key_policy(KeyId=new_key(aws), Policy="{")


@cause
def a_key_of_nobody(aws):
    """NotFoundException"""
    aws.describe_key(KeyId="00000000-0000-0000-0000-000000000000")


@cause
def a_tag_of_awss(aws):
    """TagException"""
    aws.tag_resource(KeyId=new_key(aws), Tags=[{"TagKey": "aws:x", "TagValue": ""}])


@cause
def a_data_key_pair_of_a_store(aws, kms, store):
    """UnsupportedOperationException"""
    aws.connect_custom_key_store(CustomKeyStoreId=store)
    reached(kms, store, "CONNECTED")
    key = new_key(aws, Origin="AWS_CLOUDHSM", CustomKeyStoreId=store)
    aws.generate_data_key_pair(KeyId=key, KeyPairSpec="ECC_NIST_P256")


# In the order of this file: the first that wants the cluster finds it as it was registered.
@pytest.mark.parametrize("name", CAUSES)
def test_an_exception_has_a_cause(request, name):
    cause = CAUSES[name]
    named = cause.__code__.co_varnames[: cause.__code__.co_argcount]
    fixtures = {fixture: request.getfixturevalue(fixture) for fixture in named}
    with pytest.raises(ClientError) as raised:
        cause(**fixtures)
    assert raised.value.response["Error"]["Code"] == name
    # By the operation that failed, as its model says.
    operation = MODELS["kms"].operation_model(raised.value.operation_name)
    assert name in {shape.name for shape in operation.error_shapes}


def test_every_exception_has_a_cause_or_a_reason():
    for name, file in IN_RUST.items():
        assert name.removesuffix("Exception") in (ROOT / "tests/it" / file).read_text(), name
    readme = (ROOT / "README.md").read_text()
    absent = DECLARED - set(CAUSES) - set(IN_RUST)
    said = readme[readme.index("Exceptions of KMS's model that cannot occur here") :].split("\n\n")[0]
    assert all(name in said or (name.startswith("Xks") and "Xks*" in said) for name in absent), absent
    assert not [name for name in list(CAUSES) + list(IN_RUST) if name in said]
