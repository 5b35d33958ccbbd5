"""Encrypt, Decrypt and ReEncrypt; RSA-OAEP against `cryptography`."""

import hashlib
import os

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from algorithms import OAEP, OAEP_CASES, RSA_SPECS, flipped, modulus_bytes, oaep
from client import text

INVALID = "InvalidCiphertextException"
CONTEXT = {"tenant": "aérø", "purpose": "", "  spaces ": "a=b&c"}


@pytest.fixture
def symmetric(keys):
    return keys("SYMMETRIC_DEFAULT")


def test_what_is_encrypted_is_decrypted(kms, symmetric):
    for length in (1, 15, 16, 17, 4096):
        plaintext = os.urandom(length)
        sealed = kms.encrypt(key_id=symmetric.id, plaintext=plaintext, encryption_context=CONTEXT)
        assert (sealed.key_id, text(sealed, "encryption_algorithm")) == (symmetric.arn, "SYMMETRIC_DEFAULT")
        opened = kms.decrypt(ciphertext_blob=sealed.ciphertext_blob, encryption_context=CONTEXT)
        assert (opened.plaintext, opened.key_id) == (plaintext, symmetric.arn)
        assert opened.key_material_id == symmetric.metadata.current_key_material_id != ""


def test_no_two_ciphertexts_are_alike(kms, symmetric):
    made = {kms.encrypt(key_id=symmetric.id, plaintext=b"x").ciphertext_blob for _ in range(16)}
    assert len(made) == 16


def test_the_context_is_a_set_of_exact_pairs(kms, symmetric, refused):
    sealed = kms.encrypt(key_id=symmetric.id, plaintext=b"x", encryption_context=CONTEXT).ciphertext_blob
    shuffled = dict(reversed(CONTEXT.items()))
    assert kms.decrypt(ciphertext_blob=sealed, encryption_context=shuffled).plaintext == b"x"
    wrong = [
        {},
        {"tenant": CONTEXT["tenant"]},
        {**CONTEXT, "more": ""},
        {**CONTEXT, "tenant": "AÉRØ"},
        {**CONTEXT, "tenant": "ae\u0301rø"},
        {CONTEXT[name]: name for name in CONTEXT},
    ]
    for context in wrong:
        with refused(INVALID, ""):
            kms.decrypt(ciphertext_blob=sealed, encryption_context=context)


def test_pairs_do_not_run_into_each_other(kms, symmetric, refused):
    sealed = kms.encrypt(key_id=symmetric.id, plaintext=b"x", encryption_context={"ab": "c"}).ciphertext_blob
    for context in ({"a": "bc"}, {"abc": ""}, {"ab": "c", "": ""}):
        with refused(INVALID, ""):
            kms.decrypt(ciphertext_blob=sealed, encryption_context=context)


def test_every_bit_of_a_ciphertext_counts(kms, symmetric, refused):
    sealed = kms.encrypt(key_id=symmetric.id, plaintext=b"x").ciphertext_blob
    for at in range(len(sealed)):
        with refused(INVALID, ""):
            kms.decrypt(ciphertext_blob=flipped(sealed, at))


def test_a_ciphertext_is_neither_cut_nor_longer(kms, symmetric, refused):
    sealed = kms.encrypt(key_id=symmetric.id, plaintext=os.urandom(40)).ciphertext_blob
    wrong = [sealed[:length] for length in range(1, len(sealed), 7)]
    wrong += [sealed[:-1], sealed + b"\0", sealed * 2, b"\0", os.urandom(6144)]
    for blob in wrong:
        with refused(INVALID, ""):
            kms.decrypt(ciphertext_blob=blob)
        with refused(INVALID, ""):
            kms.re_encrypt(ciphertext_blob=blob, destination_key_id=symmetric.id)


def test_another_key_is_named(kms, symmetric, new_key, refused):
    other = new_key()
    sealed = kms.encrypt(key_id=symmetric.id, plaintext=b"x").ciphertext_blob
    assert kms.decrypt(ciphertext_blob=sealed, key_id=symmetric.id).plaintext == b"x"
    with refused("IncorrectKeyException"):
        kms.decrypt(ciphertext_blob=sealed, key_id=other.id)
    with refused("IncorrectKeyException"):
        kms.re_encrypt(ciphertext_blob=sealed, source_key_id=other.id, destination_key_id=symmetric.id)


@pytest.mark.parametrize("spec, algorithm", OAEP_CASES)
def test_oaep_both_ways(kms, keys, spec, algorithm):
    key = keys(spec)
    assert text(kms.get_public_key(key_id=key.id), "encryption_algorithms") == list(OAEP)
    most = modulus_bytes(key.public) - 2 * OAEP[algorithm].digest_size - 2
    for length in (1, 32, most):
        plaintext = os.urandom(length)
        elsewhere = key.public.encrypt(plaintext, oaep(algorithm))
        here = kms.encrypt(key_id=key.id, plaintext=plaintext, encryption_algorithm=algorithm)
        assert (len(here.ciphertext_blob), here.key_id) == (modulus_bytes(key.public), key.arn)
        for sealed in (elsewhere, here.ciphertext_blob):
            opened = kms.decrypt(key_id=key.id, ciphertext_blob=sealed, encryption_algorithm=algorithm)
            assert opened.plaintext == plaintext
            assert (opened.key_id, text(opened, "encryption_algorithm")) == (key.arn, algorithm)
            assert not opened.HasField("key_material_id")


@pytest.mark.parametrize("spec, algorithm", OAEP_CASES)
def test_oaep_has_a_longest_plaintext(kms, keys, refused, spec, algorithm):
    key = keys(spec)
    most = modulus_bytes(key.public) - 2 * OAEP[algorithm].digest_size - 2
    for length in (most + 1, 4096):
        with refused("ValidationException"):
            kms.encrypt(key_id=key.id, plaintext=bytes(length), encryption_algorithm=algorithm)


@pytest.mark.parametrize("spec, algorithm", OAEP_CASES)
def test_oaep_fails_in_one_way_only(kms, keys, refused, spec, algorithm):
    key = keys(spec)
    for what, blob in malformed(key.public, algorithm).items():
        with refused(INVALID, ""):
            kms.decrypt(key_id=key.id, ciphertext_blob=blob, encryption_algorithm=algorithm)
            raise AssertionError(f"{what} was decrypted")


def malformed(public, algorithm):
    """Everything that RFC 8017, 7.1.2 calls a decryption error."""
    chosen, size, n = OAEP[algorithm], modulus_bytes(public), public.public_numbers().n
    other = next(name for name in OAEP if name != algorithm)
    good = public.encrypt(b"message", oaep(algorithm))
    fixed = lambda value: value.to_bytes(size, "big")
    raw = lambda em: fixed(pow(int.from_bytes(em, "big"), public.public_numbers().e, n))
    encode = lambda **faults: raw(oaep_encode(chosen, size, b"message", **faults))
    return {
        "the other hash": public.encrypt(b"message", oaep(other)),
        "another MGF1 hash": public.encrypt(
            b"message", padding.OAEP(padding.MGF1(OAEP[other]), chosen, None)
        ),
        "a label": public.encrypt(b"message", oaep(algorithm, b"label")),
        "PKCS #1 v1.5": public.encrypt(b"message", padding.PKCS1v15()),
        "Y is not zero": encode(first=1),
        "lHash": encode(label_hash=bytes(chosen.digest_size)),
        "no 01": encode(separator=b""),
        "02 for 01": encode(separator=b"\2"),
        "PS is not zero": encode(filler=b"\0\2"),
        "all filler": raw(oaep_encode(chosen, size, b"", separator=b"\0")),
        "one bit": flipped(good),
        "first bit": flipped(good, 0),
        "cut": good[:-1],
        "longer": good + b"\0",
        "a zero before": b"\0" + good,
        "zero": bytes(size),
        "one": fixed(1),
        "n - 1": fixed(n - 1),
        "n": fixed(n),
        "ones": b"\xff" * size,
        "one byte": b"\1",
        "longest": os.urandom(6144),
    }


def oaep_encode(chosen, size, message, first=0, label_hash=None, filler=b"", separator=b"\1"):
    """EME-OAEP (RFC 8017, 7.1.1) with the faults that are asked for."""
    new = {hashes.SHA1: hashlib.sha1, hashes.SHA256: hashlib.sha256}[type(chosen)]
    length = chosen.digest_size
    tail = separator + message
    block = (new(b"").digest() if label_hash is None else label_hash) + filler
    block += bytes(size - length - 1 - len(block) - len(tail)) + tail
    seed = os.urandom(length)
    masked = xor(block, mgf1(new, seed, len(block)))
    # The first byte stays below any modulus.
    return bytes([first]) + xor(seed, mgf1(new, masked, length)) + masked


def mgf1(new, seed, length):
    count = -(-length // new().digest_size)
    return b"".join(new(seed + i.to_bytes(4, "big")).digest() for i in range(count))[:length]


def xor(left, right):
    return bytes(a ^ b for a, b in zip(left, right, strict=True))


def test_the_faulty_encoder_is_right_without_a_fault(kms, keys):
    key = keys("RSA_2048")
    for algorithm, chosen in OAEP.items():
        em = oaep_encode(chosen, 256, b"message")
        numbers = key.public.public_numbers()
        blob = pow(int.from_bytes(em, "big"), numbers.e, numbers.n).to_bytes(256, "big")
        opened = kms.decrypt(key_id=key.id, ciphertext_blob=blob, encryption_algorithm=algorithm)
        assert opened.plaintext == b"message"


def test_oaep_needs_its_key_and_no_context(kms, keys, refused):
    key = keys("RSA_2048")
    algorithm = "RSAES_OAEP_SHA_256"
    sealed = kms.encrypt(key_id=key.id, plaintext=b"x", encryption_algorithm=algorithm).ciphertext_blob
    with refused("ValidationException"):
        kms.decrypt(ciphertext_blob=sealed, encryption_algorithm=algorithm)
    for call, data in ((kms.encrypt, {"plaintext": b"x"}), (kms.decrypt, {"ciphertext_blob": sealed})):
        with refused("ValidationException"):
            call(key_id=key.id, encryption_algorithm=algorithm, encryption_context=CONTEXT, **data)


def test_re_encrypt_between_keys_and_contexts(kms, keys, new_key, symmetric):
    other, rsa = new_key(), keys("RSA_2048")
    plaintext = os.urandom(100)
    sealed = kms.encrypt(key_id=symmetric.id, plaintext=plaintext, encryption_context=CONTEXT)
    moved = kms.re_encrypt(
        ciphertext_blob=sealed.ciphertext_blob,
        source_encryption_context=CONTEXT,
        destination_key_id=other.id,
        destination_encryption_context={"to": "other"},
    )
    assert (moved.source_key_id, moved.key_id) == (symmetric.arn, other.arn)
    assert moved.source_key_material_id == symmetric.metadata.current_key_material_id
    assert moved.destination_key_material_id == other.metadata.current_key_material_id
    opened = kms.decrypt(ciphertext_blob=moved.ciphertext_blob, encryption_context={"to": "other"})
    assert (opened.plaintext, opened.key_id) == (plaintext, other.arn)
    for algorithm in OAEP:
        to_rsa = kms.re_encrypt(
            ciphertext_blob=moved.ciphertext_blob,
            source_encryption_context={"to": "other"},
            destination_key_id=rsa.id,
            destination_encryption_algorithm=algorithm,
        )
        back = kms.re_encrypt(
            ciphertext_blob=to_rsa.ciphertext_blob,
            source_key_id=rsa.id,
            source_encryption_algorithm=algorithm,
            destination_key_id=symmetric.id,
        )
        assert text(back, "source_encryption_algorithm") == algorithm
        assert text(back, "destination_encryption_algorithm") == "SYMMETRIC_DEFAULT"
        assert kms.decrypt(ciphertext_blob=back.ciphertext_blob).plaintext == plaintext


def test_re_encrypt_checks_both_contexts(kms, symmetric, refused):
    sealed = kms.encrypt(key_id=symmetric.id, plaintext=b"x", encryption_context=CONTEXT).ciphertext_blob
    with refused(INVALID, ""):
        kms.re_encrypt(ciphertext_blob=sealed, destination_key_id=symmetric.id)
    with refused(INVALID, ""):
        kms.re_encrypt(
            ciphertext_blob=sealed,
            source_encryption_context={},
            destination_encryption_context=CONTEXT,
            destination_key_id=symmetric.id,
        )


@pytest.mark.parametrize("spec", RSA_SPECS)
def test_an_rsa_key_encrypts_by_oaep_only(kms, keys, refused, spec):
    with refused("InvalidKeyUsageException"):
        kms.encrypt(key_id=keys(spec).id, plaintext=b"x")
    with refused("InvalidKeyUsageException"):
        kms.encrypt(
            key_id=keys("SYMMETRIC_DEFAULT").id, plaintext=b"x", encryption_algorithm="RSAES_OAEP_SHA_1"
        )
