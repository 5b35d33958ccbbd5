"""Custom key stores: those of `strongroom dev`'s second HSM, DIR/key-store."""

import os
import time
from pathlib import Path

import pytest

from client import HSM, Service, text

DIR = Path(os.environ["STRONGROOM_CA"]).parents[1]
STATES_TIMEOUT_S = 60


@pytest.fixture(scope="module")
def hsm(kms):
    return Service(HSM)


@pytest.fixture(scope="module")
def anchor():
    return (DIR / "pki/ca.pem").read_text()


@pytest.fixture(scope="module")
def cluster(hsm, anchor):
    """A cluster of one HSM, initialized."""
    member = {"module": "key-store", "token": (DIR / "key-store/uri").read_text()}
    made = hsm.create_cluster(name="python", members=[member], trust_anchor_certificate=anchor).cluster
    assert text(made, "state") == "UNINITIALIZED"
    assert hsm.initialize_cluster(cluster_id=made.cluster_id, pin="key-store").cluster.state
    [described] = hsm.describe_clusters(cluster_id=made.cluster_id).clusters
    assert text(described, "state") == "ACTIVE"
    return made.cluster_id


@pytest.fixture(scope="module")
def store(kms, cluster, anchor):
    """A connected key store."""
    made = kms.create_custom_key_store(
        custom_key_store_name="python",
        cloud_hsm_cluster_id=cluster,
        trust_anchor_certificate=anchor,
        key_store_password=(DIR / "key-store/user.pin").read_text(),
    ).custom_key_store_id
    assert made.startswith("cks-") and len(made) == 21
    kms.connect_custom_key_store(custom_key_store_id=made)
    assert reached(kms, made, "CONNECTED")
    return made


def reached(kms, store, state):
    """The description of a key store once it is in a state."""
    deadline = time.monotonic() + STATES_TIMEOUT_S
    while True:
        [entry] = kms.describe_custom_key_stores(custom_key_store_id=store).custom_key_stores
        if text(entry, "connection_state") == state:
            return entry
        assert time.monotonic() < deadline, entry
        time.sleep(0.05)


def test_a_key_store_is_described(kms, store, cluster, anchor):
    for query in ({"custom_key_store_id": store}, {"custom_key_store_name": "python"}, {}):
        answer = kms.describe_custom_key_stores(**query)
        [entry] = answer.custom_key_stores
        assert entry.custom_key_store_id == store and entry.cloud_hsm_cluster_id == cluster
        assert entry.trust_anchor_certificate == anchor
        assert text(entry, "custom_key_store_type") == "AWS_CLOUDHSM"
        assert not entry.HasField("connection_error_code")
        assert not answer.truncated
    assert len(kms.describe_custom_key_stores(limit=1).custom_key_stores) == 1


@pytest.mark.parametrize(
    "spec, usage",
    [
        ("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT"),
        ("RSA_2048", "ENCRYPT_DECRYPT"),
        ("RSA_2048", "SIGN_VERIFY"),
        ("ECC_NIST_P256", "SIGN_VERIFY"),
        ("ECC_NIST_P384", "KEY_AGREEMENT"),
        ("HMAC_384", "GENERATE_VERIFY_MAC"),
    ],
)
def test_keys_of_every_kind_are_made_in_it(kms, new_key, store, cluster, spec, usage):
    key = new_key(spec, usage, origin="AWS_CLOUDHSM", custom_key_store_id=store)
    metadata = kms.describe_key(key_id=key.arn).key_metadata
    assert (metadata.custom_key_store_id, metadata.cloud_hsm_cluster_id) == (store, cluster)
    assert text(metadata, "origin") == "AWS_CLOUDHSM" and text(metadata, "key_state") == "Enabled"
    if usage == "ENCRYPT_DECRYPT":
        algorithm = "SYMMETRIC_DEFAULT" if spec == "SYMMETRIC_DEFAULT" else "RSAES_OAEP_SHA_256"
        how = {"key_id": key.arn, "encryption_algorithm": algorithm}
        blob = kms.encrypt(plaintext=b"a key store's secret", **how).ciphertext_blob
        assert kms.decrypt(ciphertext_blob=blob, **how).plaintext == b"a key store's secret"


def test_what_a_key_stores_keys_cannot_do(kms, new_key, store, refused):
    key = new_key(origin="AWS_CLOUDHSM", custom_key_store_id=store)
    with refused("UnsupportedOperationException"):
        kms.generate_data_key_pair(key_id=key.arn, key_pair_spec="RSA_2048")
    assert len(kms.generate_data_key(key_id=key.arn, key_spec="AES_256").plaintext) == 32
    assert len(kms.generate_random(number_of_bytes=16, custom_key_store_id=store).plaintext) == 16
    with refused("CustomKeyStoreNotFoundException"):
        kms.generate_random(number_of_bytes=16, custom_key_store_id="cks-00000000000000000")
    with refused("ValidationException"):
        kms.create_key(custom_key_store_id=store)
    with refused("ValidationException"):
        kms.create_key(origin="AWS_CLOUDHSM")


def test_a_disconnected_key_stores_keys_are_unavailable(kms, new_key, store, refused):
    key = new_key(origin="AWS_CLOUDHSM", custom_key_store_id=store)
    blob = kms.encrypt(key_id=key.arn, plaintext=b"a key store's secret").ciphertext_blob
    kms.disconnect_custom_key_store(custom_key_store_id=store)
    try:
        assert text(kms.describe_key(key_id=key.arn).key_metadata, "key_state") == "Unavailable"
        with refused("KMSInvalidStateException", f"{key.arn} is unavailable."):
            kms.decrypt(ciphertext_blob=blob)
        reached(kms, store, "DISCONNECTED")
        with refused("CustomKeyStoreInvalidStateException"):
            kms.create_key(origin="AWS_CLOUDHSM", custom_key_store_id=store)
        with refused("CustomKeyStoreHasCMKsException"):
            kms.delete_custom_key_store(custom_key_store_id=store)
    finally:
        kms.connect_custom_key_store(custom_key_store_id=store)
        reached(kms, store, "CONNECTED")
    assert kms.decrypt(ciphertext_blob=blob).plaintext == b"a key store's secret"


def test_a_second_key_store_of_the_cluster_is_refused(kms, store, cluster, anchor, refused):
    members = {
        "custom_key_store_name": "second",
        "cloud_hsm_cluster_id": cluster,
        "trust_anchor_certificate": anchor,
        "key_store_password": "not the password",
    }
    with refused("CloudHsmClusterInUseException"):
        kms.create_custom_key_store(**members)
    with refused("CustomKeyStoreNameInUseException"):
        kms.create_custom_key_store(**{**members, "custom_key_store_name": "python"})
