"""Custom key stores by boto3: each operation does its work, and answers as its model says."""

import json

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from daemons import Daemon, until
from shapes import Checked
from test_model import MODELS

ONCE = Config(retries={"total_max_attempts": 1})


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    started = Daemon(tmp_path_factory.mktemp("key-stores"))
    yield started
    started.stop()


@pytest.fixture(scope="module")
def kms(daemon):
    made = daemon.client(config=ONCE)
    Checked(made)
    return made


@pytest.fixture(scope="module")
def wanted(daemon):
    """CreateCustomKeyStore's request, for a cluster that had its ceremony."""
    anchor = daemon.dir / "pki/ca.pem"
    member = f"Module=key-store,Token={(daemon.dir / 'key-store/uri').read_text()}"
    certificate = ("--trust-anchor-certificate", f"file://{anchor}")
    made = json.loads(daemon.strongroom("hsm", "cluster", "create", *certificate, "--members", member))
    cluster = made["Cluster"]["ClusterId"]
    daemon.strongroom("hsm", "cluster", "initialize", "--cluster-id", cluster, "--pin", "key-store")
    return {
        "CustomKeyStoreName": "boto3",
        "CloudHsmClusterId": cluster,
        "TrustAnchorCertificate": anchor.read_text(),
        "KeyStorePassword": (daemon.dir / "key-store/user.pin").read_text(),
    }


def reached(kms, store, state):
    def described():
        [entry] = kms.describe_custom_key_stores(CustomKeyStoreId=store)["CustomKeyStores"]
        return entry if entry["ConnectionState"] == state else None

    return until(described, f"{store} is {state}")


def test_each_operation_takes_a_key_store_through_its_life(kms, wanted):
    first = kms.create_custom_key_store(**wanted)["CustomKeyStoreId"]
    entry = reached(kms, first, "DISCONNECTED")
    assert entry["CustomKeyStoreName"] == "boto3" and entry["CustomKeyStoreType"] == "AWS_CLOUDHSM"
    assert entry["CloudHsmClusterId"] == wanted["CloudHsmClusterId"]
    assert kms.delete_custom_key_store(CustomKeyStoreId=first)["ResponseMetadata"]["HTTPStatusCode"] == 200

    store = kms.create_custom_key_store(**{**wanted, "KeyStorePassword": "not the password"})["CustomKeyStoreId"]
    kms.connect_custom_key_store(CustomKeyStoreId=store)
    assert reached(kms, store, "FAILED")["ConnectionErrorCode"] == "INVALID_CREDENTIALS"
    kms.disconnect_custom_key_store(CustomKeyStoreId=store)
    assert "ConnectionErrorCode" not in reached(kms, store, "DISCONNECTED")
    kms.update_custom_key_store(
        CustomKeyStoreId=store, NewCustomKeyStoreName="renamed", KeyStorePassword=wanted["KeyStorePassword"]
    )
    kms.connect_custom_key_store(CustomKeyStoreId=store)
    reached(kms, store, "CONNECTED")
    [named] = kms.describe_custom_key_stores(CustomKeyStoreName="renamed")["CustomKeyStores"]
    assert named["CustomKeyStoreId"] == store
    pages = kms.get_paginator("describe_custom_key_stores").paginate(PaginationConfig={"PageSize": 1})
    assert [entry["CustomKeyStoreId"] for page in pages for entry in page["CustomKeyStores"]] == [store]

    key = kms.create_key(Origin="AWS_CLOUDHSM", CustomKeyStoreId=store)["KeyMetadata"]
    assert (key["Origin"], key["CustomKeyStoreId"]) == ("AWS_CLOUDHSM", store)
    assert key["CloudHsmClusterId"] == wanted["CloudHsmClusterId"]
    blob = kms.encrypt(KeyId=key["KeyId"], Plaintext=b"secret")["CiphertextBlob"]
    assert kms.decrypt(CiphertextBlob=blob)["Plaintext"] == b"secret"
    assert len(kms.generate_random(NumberOfBytes=24, CustomKeyStoreId=store)["Plaintext"]) == 24
    kms.disconnect_custom_key_store(CustomKeyStoreId=store)
    assert kms.describe_key(KeyId=key["KeyId"])["KeyMetadata"]["KeyState"] == "Unavailable"
    with pytest.raises(kms.exceptions.KMSInvalidStateException):
        kms.decrypt(CiphertextBlob=blob)
    reached(kms, store, "DISCONNECTED")
    with pytest.raises(kms.exceptions.CustomKeyStoreHasCMKsException):
        kms.delete_custom_key_store(CustomKeyStoreId=store)
    kms.connect_custom_key_store(CustomKeyStoreId=store)
    reached(kms, store, "CONNECTED")
    assert kms.decrypt(CiphertextBlob=blob)["Plaintext"] == b"secret"


def test_an_external_key_store_is_no_value_of_its_member(kms, wanted):
    """CreateCustomKeyStore's model declares nothing for what is not served."""
    declared = {error.name for error in MODELS["kms"].operation_model("CreateCustomKeyStore").error_shapes}
    assert "UnsupportedOperationException" not in declared
    for members in (
        {"CustomKeyStoreName": "external", "CustomKeyStoreType": "EXTERNAL_KEY_STORE"},
        {**wanted, "XksProxyUriEndpoint": "https://xks.example.org"},
    ):
        with pytest.raises(ClientError) as raised:
            kms.create_custom_key_store(**members)
        assert raised.value.response["Error"]["Code"] == "ValidationException"
