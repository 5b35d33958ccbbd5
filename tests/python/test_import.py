"""Key material of one's own: wrapped with PyPI's `cryptography`, used by the service, checked with the same library."""

import functools
import hashlib
import hmac
import os
import time

import pytest
from cryptography.hazmat.primitives import hashes, keywrap
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
)

import algorithms
from client import KmsError, text

DAY_S = 24 * 60 * 60
FOREVER = {"expiration_model": "KEY_MATERIAL_DOES_NOT_EXPIRE"}
OAEP = ["RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256"]
KEY_WRAP = ["RSA_AES_KEY_WRAP_SHA_1", "RSA_AES_KEY_WRAP_SHA_256"]
# RSA_4096 is like them and takes a loaded machine longer than a call may last.
WRAPPING_SPECS = ["RSA_2048", "RSA_3072"]
SPECS = {
    "SYMMETRIC_DEFAULT": "ENCRYPT_DECRYPT",
    **{spec: "GENERATE_VERIFY_MAC" for spec in algorithms.MACS},
    **{spec: "SIGN_VERIFY" for spec in algorithms.CURVES},
    **{spec: "SIGN_VERIFY" for spec in algorithms.RSA_SPECS},
}
CASES = [
    (spec, algorithm)
    for spec in SPECS
    for algorithm in (KEY_WRAP if spec.startswith("RSA") else OAEP + KEY_WRAP)
]


@functools.cache
def fresh(spec, number=0):
    """Key material of a spec: bytes, or a private key."""
    if spec == "SYMMETRIC_DEFAULT":
        return os.urandom(32)
    if spec in algorithms.MACS:
        return os.urandom(algorithms.MACS[spec][1])
    if spec in algorithms.CURVES:
        return ec.generate_private_key(algorithms.CURVES[spec])
    return rsa.generate_private_key(65537, int(spec.removeprefix("RSA_")))


def encoded(material):
    """As it is imported: raw, or DER PKCS #8."""
    if isinstance(material, bytes):
        return material
    return material.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def wrapped(public_key, algorithm, material, aes_bytes=32):
    public = load_der_public_key(public_key)
    chosen = hashes.SHA1() if algorithm.endswith("SHA_1") else hashes.SHA256()
    oaep = padding.OAEP(padding.MGF1(chosen), chosen, None)
    if algorithm in OAEP:
        return public.encrypt(material, oaep)
    aes = os.urandom(aes_bytes)
    return public.encrypt(aes, oaep) + keywrap.aes_key_wrap_with_padding(aes, material)


@functools.cache
def parameters(kms, key, algorithm="RSAES_OAEP_SHA_256", spec="RSA_2048"):
    """A wrapping key; it serves more than once, and takes its time to be made."""
    return kms.get_parameters_for_import(
        key_id=key.arn, wrapping_algorithm=algorithm, wrapping_key_spec=spec
    )


def bring(kms, key, material, algorithm="RSAES_OAEP_SHA_256", spec="RSA_2048", **members):
    """Imports; does not expire unless told otherwise."""
    found = parameters(kms, key, algorithm, spec)
    return kms.import_key_material(
        key_id=key.id,
        import_token=found.import_token,
        encrypted_key_material=wrapped(found.public_key, algorithm, encoded(material)),
        **({} if "valid_to" in members else FOREVER),
        **members,
    )


def external(new_key, spec="SYMMETRIC_DEFAULT", usage=None, **members):
    return new_key(spec, usage or SPECS[spec], origin="EXTERNAL", **members)


def state(kms, key):
    return text(kms.describe_key(key_id=key.id).key_metadata, "key_state")


def in_seconds(seconds):
    return {"seconds": int(time.time()) + seconds}


def use(kms, key, spec, material):
    """Uses a key, and checks what it made against the material that only the caller and the HSM have."""
    message = b"a message of imported keys"
    if spec == "SYMMETRIC_DEFAULT":
        sealed = kms.encrypt(key_id=key.id, plaintext=message).ciphertext_blob
        assert kms.decrypt(ciphertext_blob=sealed).plaintext == message
    elif spec in algorithms.MACS:
        algorithm, _ = algorithms.MACS[spec]
        made = kms.generate_mac(key_id=key.id, message=message, mac_algorithm=algorithm).mac
        assert made == hmac.digest(material, message, f"sha{spec[-3:]}")
    else:
        expected = material.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        assert kms.get_public_key(key_id=key.id).public_key == expected
        algorithm = algorithms.SIGNING[spec][0]
        signature = kms.sign(key_id=key.id, message=message, signing_algorithm=algorithm).signature
        algorithms.verify(material.public_key(), algorithm, message, signature)


@pytest.mark.parametrize("spec, algorithm", CASES)
def test_every_key_spec_comes_under_every_algorithm(kms, new_key, spec, algorithm):
    key, material = external(new_key, spec), fresh(spec)
    large = "RSA_3072" if (spec, algorithm) in [("ECC_NIST_P521", name) for name in OAEP] else "RSA_2048"
    answer = bring(kms, key, material, algorithm, large)
    metadata = kms.describe_key(key_id=key.id).key_metadata
    assert answer.key_id == key.arn
    assert (text(metadata, "key_state"), text(metadata, "origin")) == ("Enabled", "EXTERNAL")
    assert text(metadata, "expiration_model") == "KEY_MATERIAL_DOES_NOT_EXPIRE"
    assert not metadata.HasField("valid_to")
    symmetric = spec == "SYMMETRIC_DEFAULT"
    assert answer.HasField("key_material_id") == metadata.HasField("current_key_material_id") == symmetric
    assert answer.key_material_id == metadata.current_key_material_id
    use(kms, key, spec, material)
    # The same again is the same; another is not.
    assert bring(kms, key, material, algorithm, large).key_material_id == answer.key_material_id
    use(kms, key, spec, material)
    if not spec.startswith("RSA"):
        with pytest.raises(KmsError, match="IncorrectKeyMaterialException"):
            bring(kms, key, fresh(spec, 1), algorithm, large)
    use(kms, key, spec, material)


@pytest.mark.parametrize("wrapping, algorithm", [*zip(WRAPPING_SPECS, OAEP)])
def test_every_wrapping_key(kms, new_key, wrapping, algorithm):
    key, material = external(new_key, "HMAC_256"), fresh("HMAC_256")
    found = parameters(kms, key, algorithm, wrapping)
    assert found.key_id == key.arn
    assert load_der_public_key(found.public_key).key_size == int(wrapping.removeprefix("RSA_"))
    assert abs(found.parameters_valid_to.seconds - time.time() - DAY_S) < 300
    members = {"key_id": key.id, "import_token": found.import_token, **FOREVER}
    sealed = wrapped(found.public_key, algorithm, material)
    kms.import_key_material(encrypted_key_material=sealed, **members)
    use(kms, key, "HMAC_256", material)
    # Valid until it expires, not only once.
    kms.delete_imported_key_material(key_id=key.id)
    kms.import_key_material(encrypted_key_material=sealed, **members)
    use(kms, key, "HMAC_256", material)


@pytest.mark.parametrize("aes_bytes", [16, 24, 32])
@pytest.mark.parametrize("algorithm", KEY_WRAP)
def test_every_aes_key_carries_material(kms, new_key, algorithm, aes_bytes):
    key, material = external(new_key, "ECC_NIST_P256"), fresh("ECC_NIST_P256")
    found = parameters(kms, key, algorithm)
    kms.import_key_material(
        key_id=key.id,
        import_token=found.import_token,
        encrypted_key_material=wrapped(found.public_key, algorithm, encoded(material), aes_bytes),
        **FOREVER,
    )
    use(kms, key, "ECC_NIST_P256", material)


def test_imported_keys_of_other_usages(kms, new_key):
    key, material = external(new_key, "RSA_2048", "ENCRYPT_DECRYPT"), fresh("RSA_2048")
    bring(kms, key, material, KEY_WRAP[1])
    for algorithm in algorithms.OAEP:
        sealed = material.public_key().encrypt(b"for the HSM", algorithms.oaep(algorithm))
        members = {"key_id": key.id, "encryption_algorithm": algorithm}
        assert kms.decrypt(ciphertext_blob=sealed, **members).plaintext == b"for the HSM"
        sealed = kms.encrypt(plaintext=b"for me", **members).ciphertext_blob
        assert material.decrypt(sealed, algorithms.oaep(algorithm)) == b"for me"
    key, material = external(new_key, "ECC_NIST_P384", "KEY_AGREEMENT"), fresh("ECC_NIST_P384")
    bring(kms, key, material)
    peer = ec.generate_private_key(ec.SECP384R1())
    secret = kms.derive_shared_secret(
        key_id=key.id,
        key_agreement_algorithm="ECDH",
        public_key=peer.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    )
    assert secret.shared_secret == peer.exchange(ec.ECDH(), material.public_key())
    assert text(secret, "key_origin") == "EXTERNAL"


def test_a_key_without_its_material_waits_for_it(kms, new_key, refused, unique):
    key = external(new_key)
    assert (text(key.metadata, "key_state"), key.metadata.enabled) == ("PendingImport", False)
    for absent in ("current_key_material_id", "expiration_model", "valid_to"):
        assert not key.metadata.HasField(absent)
    pending = f"{key.arn} is pending import."
    for call, members in (
        (kms.encrypt, {"plaintext": b"x"}),
        (kms.generate_data_key, {"key_spec": "AES_256"}),
        (kms.enable_key, {}),
        (kms.disable_key, {}),
        (kms.rotate_key_on_demand, {}),
    ):
        with refused("KMSInvalidStateException", pending):
            call(key_id=key.id, **members)
    alias = f"alias/import/{unique}"
    kms.create_alias(alias_name=alias, target_key_id=key.id)
    kms.delete_alias(alias_name=alias)
    kms.update_key_description(key_id=key.id, description="not yet")
    assert not kms.list_key_rotations(key_id=key.id, include_key_material="ALL_KEY_MATERIAL").rotations
    kms.delete_imported_key_material(key_id=key.id)
    kms.schedule_key_deletion(key_id=key.id)
    for call in (
        lambda: parameters(kms, key),
        lambda: kms.import_key_material(
            key_id=key.id, import_token=b"x", encrypted_key_material=b"x", **FOREVER
        ),
    ):
        with refused("KMSInvalidStateException", f"{key.arn} is pending deletion."):
            call()
    kms.cancel_key_deletion(key_id=key.id)
    assert state(kms, key) == "PendingImport"
    bring(kms, key, fresh("SYMMETRIC_DEFAULT"))
    assert state(kms, key) == "Enabled"


@pytest.mark.parametrize("spec", ["SYMMETRIC_DEFAULT", "ECC_NIST_P256", "HMAC_512"])
def test_material_is_deleted_and_brought_again(kms, new_key, refused, spec):
    key, material = external(new_key, spec), fresh(spec)
    first = bring(kms, key, material)
    sealed = kms.encrypt(key_id=key.id, plaintext=b"kept").ciphertext_blob if spec[0] == "S" else None
    deleted = kms.delete_imported_key_material(key_id=key.arn)
    assert (deleted.key_id, deleted.key_material_id) == (key.arn, first.key_material_id)
    metadata = kms.describe_key(key_id=key.id).key_metadata
    assert (text(metadata, "key_state"), metadata.enabled) == ("PendingImport", False)
    assert not metadata.HasField("expiration_model")
    with pytest.raises(KmsError, match="is pending import."):
        use(kms, key, spec, material)
    kms.delete_imported_key_material(key_id=key.id)
    with refused("IncorrectKeyMaterialException"):
        bring(kms, key, fresh(spec, 1))
    assert state(kms, key) == "PendingImport"
    assert bring(kms, key, material).key_material_id == first.key_material_id
    use(kms, key, spec, material)
    if sealed:
        assert kms.decrypt(ciphertext_blob=sealed).plaintext == b"kept"
    # A key that waits for its deletion goes on waiting.
    kms.schedule_key_deletion(key_id=key.id)
    kms.delete_imported_key_material(key_id=key.id)
    assert state(kms, key) == "PendingDeletion"
    kms.cancel_key_deletion(key_id=key.id)
    assert state(kms, key) == "PendingImport"


def test_a_disabled_key_stays_disabled(kms, new_key):
    key, material = external(new_key), fresh("SYMMETRIC_DEFAULT")
    bring(kms, key, material)
    kms.disable_key(key_id=key.id)
    bring(kms, key, material)
    assert state(kms, key) == "Disabled"


def test_material_expires(kms, events, new_key):
    key, material = external(new_key), fresh("SYMMETRIC_DEFAULT")
    valid_to = in_seconds(6)
    first = bring(kms, key, material, valid_to=valid_to, expiration_model="KEY_MATERIAL_EXPIRES")
    metadata = kms.describe_key(key_id=key.id).key_metadata
    assert text(metadata, "expiration_model") == "KEY_MATERIAL_EXPIRES"
    assert metadata.valid_to.seconds == valid_to["seconds"]
    sealed = kms.encrypt(key_id=key.id, plaintext=b"kept").ciphertext_blob
    deadline = time.monotonic() + 60
    while state(kms, key) != "PendingImport":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert time.time() >= valid_to["seconds"]
    [entry] = kms.list_key_rotations(key_id=key.id, include_key_material="ALL_KEY_MATERIAL").rotations
    assert (text(entry, "import_state"), entry.key_material_id) == ("PENDING_IMPORT", first.key_material_id)
    records = events.until([kms.calls[-1].request_id])
    [event] = [
        record
        for record in records
        if record["eventName"] == "DeleteExpiredKeyMaterial" and record["resources"][0]["ARN"] == key.arn
    ]
    assert event["eventType"] == "AwsServiceEvent" and "requestID" not in event
    assert event["userIdentity"]["invokedBy"] == "AWS Internal"
    assert event["serviceEventDetails"]["keyId"] == key.id
    with pytest.raises(KmsError, match="is pending import."):
        kms.decrypt(ciphertext_blob=sealed)
    bring(kms, key, material)
    assert kms.decrypt(ciphertext_blob=sealed).plaintext == b"kept"
    assert not kms.describe_key(key_id=key.id).key_metadata.HasField("valid_to")


def test_new_material_is_rotated_to(kms, new_key, refused):
    key, (one, two, three) = external(new_key), [os.urandom(32) for _ in range(3)]
    first = bring(kms, key, one, import_type="NEW_KEY_MATERIAL", key_material_description="the first")
    with refused("KMSInvalidStateException"):
        kms.rotate_key_on_demand(key_id=key.id)
    sealed = kms.encrypt(key_id=key.id, plaintext=b"old").ciphertext_blob
    second = bring(kms, key, two, import_type="NEW_KEY_MATERIAL", key_material_description="the second")
    assert second.key_material_id != first.key_material_id
    current = kms.describe_key(key_id=key.id).key_metadata.current_key_material_id
    assert current == first.key_material_id
    with refused("KMSInvalidStateException"):
        bring(kms, key, three, import_type="NEW_KEY_MATERIAL")
    listed = lambda: [
        (entry.key_material_id, text(entry, "key_material_state"), text(entry, "import_state"))
        for entry in kms.list_key_rotations(key_id=key.id, include_key_material="ALL_KEY_MATERIAL").rotations
    ]
    assert listed() == [
        (first.key_material_id, "CURRENT", "IMPORTED"),
        (second.key_material_id, "PENDING_ROTATION", "IMPORTED"),
    ]
    assert not kms.list_key_rotations(key_id=key.id).rotations
    # What only waits is deleted without a trace, and other material may come.
    kms.delete_imported_key_material(key_id=key.id, key_material_id=second.key_material_id)
    assert state(kms, key) == "Enabled" and len(listed()) == 1
    bring(kms, key, three, import_type="NEW_KEY_MATERIAL")
    kms.delete_imported_key_material(
        key_id=key.id, key_material_id=listed()[1][0]
    )
    bring(kms, key, two, import_type="NEW_KEY_MATERIAL")
    assert kms.rotate_key_on_demand(key_id=key.id).key_id == key.arn
    assert kms.describe_key(key_id=key.id).key_metadata.current_key_material_id == second.key_material_id
    [rotation] = kms.list_key_rotations(key_id=key.id).rotations
    assert (rotation.key_material_id, text(rotation, "rotation_type")) == (second.key_material_id, "ON_DEMAND")
    answer = kms.decrypt(ciphertext_blob=sealed)
    assert (answer.plaintext, answer.key_material_id) == (b"old", first.key_material_id)
    new = kms.encrypt(key_id=key.id, plaintext=b"new").ciphertext_blob
    assert kms.decrypt(ciphertext_blob=new).key_material_id == second.key_material_id

    # Old material is the key's too: without it the key waits.
    kms.delete_imported_key_material(key_id=key.id, key_material_id=first.key_material_id)
    assert state(kms, key) == "PendingImport"
    assert listed() == [
        (first.key_material_id, "NON_CURRENT", "PENDING_IMPORT"),
        (second.key_material_id, "CURRENT", "IMPORTED"),
    ]
    kms.delete_imported_key_material(key_id=key.id)
    with refused("IncorrectKeyMaterialException"):
        bring(kms, key, one, key_material_id=second.key_material_id)
    with refused("IncorrectKeyMaterialException"):
        bring(kms, key, one, import_type="NEW_KEY_MATERIAL")
    bring(kms, key, one, key_material_id=first.key_material_id, import_type="EXISTING_KEY_MATERIAL")
    assert state(kms, key) == "PendingImport"
    bring(kms, key, two)
    assert state(kms, key) == "Enabled"
    assert kms.decrypt(ciphertext_blob=sealed).plaintext == b"old"
    descriptions = [
        entry.key_material_description
        for entry in kms.list_key_rotations(key_id=key.id, include_key_material="ALL_KEY_MATERIAL").rotations
    ]
    assert descriptions == ["the first", ""]


def test_a_token_is_of_its_key_and_wrapping_key(kms, new_key, refused):
    key, other, material = external(new_key), external(new_key), fresh("SYMMETRIC_DEFAULT")
    mine, others = parameters(kms, key), parameters(kms, other)
    again = parameters.__wrapped__(kms, key)
    sealed = wrapped(mine.public_key, OAEP[1], material)
    members = {"encrypted_key_material": sealed, **FOREVER}
    for token in [others.import_token, b"x", mine.import_token[:-1], mine.import_token + b"x"] + [
        algorithms.flipped(mine.import_token, at) for at in range(len(mine.import_token))
    ]:
        with refused("InvalidImportTokenException"):
            kms.import_key_material(key_id=key.id, import_token=token, **members)
    with refused("InvalidImportTokenException"):
        kms.import_key_material(key_id=other.id, import_token=mine.import_token, **members)
    # Another wrapping key of the same KMS key.
    with refused("InvalidCiphertextException"):
        kms.import_key_material(key_id=key.id, import_token=again.import_token, **members)
    assert state(kms, key) == state(kms, other) == "PendingImport"
    kms.import_key_material(key_id=key.id, import_token=mine.import_token, **members)


@pytest.mark.parametrize("algorithm", OAEP + KEY_WRAP)
def test_what_does_not_decrypt_is_no_ciphertext(kms, new_key, refused, algorithm):
    key, material = external(new_key), fresh("SYMMETRIC_DEFAULT")
    found = parameters(kms, key, algorithm)
    sealed = wrapped(found.public_key, algorithm, material)
    other = OAEP[0] if algorithm == OAEP[1] else OAEP[1]
    bad = [algorithms.flipped(sealed, at) for at in (0, 100, len(sealed) - 1)]
    bad += [sealed[:-1], sealed + b"x", b"x", os.urandom(256), wrapped(found.public_key, other, material)]
    for each in bad:
        with refused("InvalidCiphertextException", ""):
            kms.import_key_material(
                key_id=key.id, import_token=found.import_token, encrypted_key_material=each, **FOREVER
            )
    assert state(kms, key) == "PendingImport"


WRONG = [
    ("SYMMETRIC_DEFAULT", bytes(length)) for length in (1, 16, 24, 31, 33, 64)
] + [("HMAC_256", bytes(31)), ("HMAC_256", bytes(33)), ("HMAC_512", bytes(32)), ("HMAC_224", bytes(32))]


@pytest.mark.parametrize("algorithm", OAEP + KEY_WRAP)
@pytest.mark.parametrize("spec, material", WRONG)
def test_material_of_another_length_is_refused(kms, new_key, spec, material, algorithm):
    key = external(new_key, spec)
    with pytest.raises(KmsError, match="IncorrectKeyMaterialException|InvalidCiphertextException"):
        bring(kms, key, material, algorithm)
    assert state(kms, key) == "PendingImport"


@pytest.mark.parametrize("algorithm", KEY_WRAP)
@pytest.mark.parametrize("spec, other", [("RSA_3072", "RSA_2048"), ("ECC_NIST_P256", "ECC_NIST_P384"),
                                         ("ECC_NIST_P256", "ECC_SECG_P256K1"), ("ECC_NIST_P256", "RSA_2048"),
                                         ("RSA_2048", "ECC_NIST_P256"), ("RSA_2048", "SYMMETRIC_DEFAULT"),
                                         ("ECC_NIST_P384", "SYMMETRIC_DEFAULT")])
def test_material_of_another_kind_is_refused(kms, new_key, spec, other, algorithm):
    key = external(new_key, spec)
    with pytest.raises(KmsError, match="IncorrectKeyMaterialException|InvalidCiphertextException"):
        bring(kms, key, fresh(other), algorithm)
    assert state(kms, key) == "PendingImport"


def test_what_cannot_be_imported_is_refused(kms, keys, new_key, refused):
    key = external(new_key)
    for algorithm, spec in (("RSAES_PKCS1_V1_5", "RSA_2048"), ("SM2PKE", "SM2"), (OAEP[1], "SM2")):
        with refused("UnsupportedOperationException"):
            parameters(kms, key, algorithm, spec)
    for spec in ("RSA_2048", "RSA_4096"):
        with refused("UnsupportedOperationException"):
            parameters(kms, external(new_key, spec), OAEP[1], "RSA_4096")
    with refused("UnsupportedOperationException"):
        parameters(kms, external(new_key, "ECC_NIST_P521"), OAEP[1], "RSA_2048")
    for spec, usage in (("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT"), ("ECC_NIST_P256", "SIGN_VERIFY")):
        made = keys(spec, usage)
        wrong = f"{made.arn} origin is AWS_KMS which is not valid for this operation."
        with refused("UnsupportedOperationException", wrong):
            parameters(kms, made)
        with refused("UnsupportedOperationException", wrong):
            kms.import_key_material(
                key_id=made.id, import_token=b"x", encrypted_key_material=b"x", **FOREVER
            )
        with refused("UnsupportedOperationException", wrong):
            kms.delete_imported_key_material(key_id=made.id)
    for call in (kms.enable_key_rotation, kms.disable_key_rotation):
        with refused("UnsupportedOperationException"):
            call(key_id=key.id)
    with refused("NotFoundException"):
        kms.delete_imported_key_material(key_id=key.id, key_material_id="0" * 64)
    for usage, spec in (("SIGN_VERIFY", "ML_DSA_44"), ("SIGN_VERIFY", "ECC_NIST_EDWARDS25519")):
        with refused("UnsupportedOperationException"):
            kms.create_key(key_spec=spec, key_usage=usage, origin="EXTERNAL")


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"expiration_model": "KEY_MATERIAL_EXPIRES"},
        {"valid_to": in_seconds(-60)},
        {"valid_to": in_seconds(366 * DAY_S)},
        {"valid_to": {"seconds": 253402300799}},
        {"valid_to": in_seconds(600), **FOREVER},
        {"import_type": "NEW_KEY_MATERIAL", "key_material_id": "0" * 64, **FOREVER},
        {"key_material_id": "0" * 63, **FOREVER},
        {"key_material_description": "no € here", **FOREVER},
    ],
)
def test_members_that_do_not_fit_are_refused(kms, new_key, refused, members):
    key = external(new_key)
    with refused("ValidationException"):
        kms.import_key_material(key_id=key.id, import_token=b"x", encrypted_key_material=b"x", **members)


def test_only_symmetric_keys_have_several_materials(kms, new_key, refused):
    key = external(new_key, "HMAC_256")
    for members in (
        {"import_type": "NEW_KEY_MATERIAL"},
        {"key_material_description": "x"},
        {"key_material_id": "0" * 64},
    ):
        with refused("ValidationException"):
            kms.import_key_material(
                key_id=key.id, import_token=b"x", encrypted_key_material=b"x", **FOREVER, **members
            )


def test_what_is_imported_first_is_new(kms, new_key, refused):
    key = external(new_key)
    with refused("IncorrectKeyMaterialException"):
        bring(kms, key, fresh("SYMMETRIC_DEFAULT"), import_type="EXISTING_KEY_MATERIAL")


def test_no_id_tells_the_material(kms, new_key):
    """Whoever guesses the material cannot check the guess, and two keys with it do not show that."""
    material = fresh("SYMMETRIC_DEFAULT")
    ids = {bring(kms, external(new_key), material).key_material_id for _ in range(2)}
    assert len(ids) == 2
    assert hashlib.sha256(material).hexdigest() not in ids
