"""Data keys, data key pairs and random bytes."""

import os

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_private_key, load_der_public_key

from algorithms import CURVES, RSA_SPECS
from client import text

PAIRS = [*RSA_SPECS, *CURVES, "ECC_NIST_EDWARDS25519"]
LENGTHS = [({"key_spec": "AES_128"}, 16), ({"key_spec": "AES_256"}, 32)]
LENGTHS += [({"number_of_bytes": count}, count) for count in (1, 24, 64, 1024)]
CONTEXT = {"purpose": "data"}


@pytest.fixture
def key(keys):
    return keys("SYMMETRIC_DEFAULT")


@pytest.mark.parametrize("asked, length", LENGTHS)
def test_a_data_key_comes_back(kms, key, refused, asked, length):
    made = kms.generate_data_key(key_id=key.id, encryption_context=CONTEXT, **asked)
    assert (len(made.plaintext), made.key_id) == (length, key.arn)
    opened = kms.decrypt(ciphertext_blob=made.ciphertext_blob, encryption_context=CONTEXT)
    assert opened.plaintext == made.plaintext
    assert opened.key_material_id == made.key_material_id == key.metadata.current_key_material_id
    with refused("InvalidCiphertextException", ""):
        kms.decrypt(ciphertext_blob=made.ciphertext_blob)


@pytest.mark.parametrize("asked, length", LENGTHS)
def test_a_data_key_without_plaintext(kms, key, asked, length):
    made = kms.generate_data_key_without_plaintext(key_id=key.id, **asked)
    opened = kms.decrypt(ciphertext_blob=made.ciphertext_blob)
    assert (len(opened.plaintext), opened.key_id) == (length, made.key_id)
    assert made.key_material_id == opened.key_material_id


def test_data_keys_differ(kms, key):
    made = [kms.generate_data_key(key_id=key.id, key_spec="AES_256") for _ in range(8)]
    assert len({each.plaintext for each in made}) == len({each.ciphertext_blob for each in made}) == 8


def test_a_data_key_has_one_length(kms, key, refused):
    for asked in ({}, {"key_spec": "AES_256", "number_of_bytes": 32}):
        for call in (kms.generate_data_key, kms.generate_data_key_without_plaintext):
            with refused("ValidationException"):
                call(key_id=key.id, **asked)


@pytest.mark.parametrize("spec", PAIRS)
def test_a_key_pair_loads_elsewhere(kms, key, spec):
    made = kms.generate_data_key_pair(key_id=key.id, key_pair_spec=spec, encryption_context=CONTEXT)
    assert (made.key_id, text(made, "key_pair_spec")) == (key.arn, spec)
    assert made.key_material_id == key.metadata.current_key_material_id
    check_pair(spec, made.private_key_plaintext, made.public_key)
    opened = kms.decrypt(ciphertext_blob=made.private_key_ciphertext_blob, encryption_context=CONTEXT)
    assert opened.plaintext == made.private_key_plaintext


@pytest.mark.parametrize("spec", PAIRS)
def test_a_key_pair_without_plaintext(kms, key, spec):
    made = kms.generate_data_key_pair_without_plaintext(key_id=key.id, key_pair_spec=spec)
    assert (made.key_id, text(made, "key_pair_spec")) == (key.arn, spec)
    opened = kms.decrypt(ciphertext_blob=made.private_key_ciphertext_blob)
    check_pair(spec, opened.plaintext, made.public_key)


def check_pair(spec, private_der, public_der):
    """PKCS #8 (RFC 5958) and SubjectPublicKeyInfo of one pair, of this spec."""
    private, public = load_der_private_key(private_der, None), load_der_public_key(public_der)
    assert private.public_key() == public
    message = os.urandom(32)
    if spec in RSA_SPECS:
        assert isinstance(private, rsa.RSAPrivateKey)
        assert (private.key_size, public.public_numbers().e) == (int(spec[4:]), 65537)
        public.verify(
            private.sign(message, padding.PKCS1v15(), SHA256()), message, padding.PKCS1v15(), SHA256()
        )
    elif spec in CURVES:
        assert private.curve.name == CURVES[spec].name
        public.verify(private.sign(message, ec.ECDSA(SHA256())), message, ec.ECDSA(SHA256()))
    else:
        assert isinstance(private, ed25519.Ed25519PrivateKey)
        public.verify(private.sign(message), message)


@pytest.mark.parametrize("spec", ["ECC_NIST_P256", "ECC_NIST_EDWARDS25519", "RSA_2048"])
def test_key_pairs_differ(kms, key, spec):
    pairs = [kms.generate_data_key_pair(key_id=key.id, key_pair_spec=spec) for _ in range(2)]
    assert pairs[0].public_key != pairs[1].public_key


@pytest.mark.parametrize("spec", ["SM2", "ML_KEM_512", "ML_KEM_768", "ML_KEM_1024"])
def test_a_pair_that_no_hsm_makes_is_refused(kms, key, refused, spec):
    for call in (kms.generate_data_key_pair, kms.generate_data_key_pair_without_plaintext):
        with refused("UnsupportedOperationException"):
            call(key_id=key.id, key_pair_spec=spec)


def test_only_symmetric_keys_protect_data_keys(kms, keys, refused):
    for spec, usage in (
        ("RSA_2048", "ENCRYPT_DECRYPT"),
        ("ECC_NIST_P256", "SIGN_VERIFY"),
        ("HMAC_256", "GENERATE_VERIFY_MAC"),
    ):
        for name in ("generate_data_key", "generate_data_key_without_plaintext"):
            with refused("InvalidKeyUsageException"):
                getattr(kms, name)(key_id=keys(spec, usage).id, key_spec="AES_256")
        for name in ("generate_data_key_pair", "generate_data_key_pair_without_plaintext"):
            with refused("InvalidKeyUsageException"):
                getattr(kms, name)(key_id=keys(spec, usage).id, key_pair_spec="ECC_NIST_P256")


def test_random_bytes(kms):
    for count in (1, 32, 1024):
        assert len(kms.generate_random(number_of_bytes=count).plaintext) == count
    many = b"".join(kms.generate_random(number_of_bytes=1024).plaintext for _ in range(8))
    # 8192 fair bytes lack none of 256 values but by a chance of 10^-11.
    assert len(set(many)) == 256


def test_random_bytes_are_counted(kms, refused):
    with refused("ValidationException", "NumberOfBytes is required."):
        kms.generate_random()
    with refused(
        "ValidationException",
        "1 validation error detected: Value '0' at 'numberOfBytes' failed to satisfy constraint: "
        "Member must have value greater than or equal to 1",
    ):
        kms.generate_random(number_of_bytes=0)
    for count in (-1, 1025, 2**31 - 1):
        with refused("ValidationException"):
            kms.generate_random(number_of_bytes=count)
