"""Sign and Verify, for every signing algorithm, against `cryptography`."""

import os

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from algorithms import (
    ORDERS,
    RSA_SPECS,
    SIGNING,
    SIGNING_CASES,
    digest,
    flipped,
    hash_of,
    modulus_bytes,
    verify,
)
from client import KmsError, text

BAD = "KMSInvalidSignatureException"
EVERY = pytest.mark.parametrize("spec, algorithm", SIGNING_CASES)
HASHED = pytest.mark.parametrize("spec, algorithm", [case for case in SIGNING_CASES if hash_of(case[1])])
ECDSA = pytest.mark.parametrize("spec", list(ORDERS))


@pytest.mark.parametrize("spec", SIGNING)
def test_a_key_lists_the_algorithms_of_its_spec(kms, keys, spec):
    key = keys(spec, "SIGN_VERIFY")
    public = kms.get_public_key(key_id=key.id)
    for answer in (kms.describe_key(key_id=key.id).key_metadata, public):
        assert text(answer, "signing_algorithms") == SIGNING[spec]
        assert not (answer.encryption_algorithms or answer.key_agreement_algorithms)
        assert (text(answer, "key_spec"), text(answer, "key_usage")) == (spec, "SIGN_VERIFY")
    assert public.key_id == key.arn


@EVERY
def test_a_signature_is_good_elsewhere_and_here(kms, keys, spec, algorithm):
    key = keys(spec, "SIGN_VERIFY")
    for message in (b"\0", os.urandom(4096)):
        signed = kms.sign(key_id=key.arn, message=message, signing_algorithm=algorithm)
        assert (signed.key_id, text(signed, "signing_algorithm")) == (key.arn, algorithm)
        verify(key.public, algorithm, message, signed.signature)
        with pytest.raises(InvalidSignature):
            verify(key.public, algorithm, flipped(message), signed.signature)
        verified = kms.verify(
            key_id=key.arn, message=message, signature=signed.signature, signing_algorithm=algorithm
        )
        assert verified.signature_valid is True
        assert (verified.key_id, text(verified, "signing_algorithm")) == (key.arn, algorithm)


@HASHED
def test_raw_and_digest_agree(kms, keys, spec, algorithm):
    key = keys(spec, "SIGN_VERIFY")
    message = os.urandom(300)
    forms = {"RAW": message, "DIGEST": digest(algorithm, message)}
    signatures = {
        kind: kms.sign(key_id=key.id, message=form, message_type=kind, signing_algorithm=algorithm).signature
        for kind, form in forms.items()
    }
    if algorithm.startswith("RSASSA_PKCS1"):
        assert signatures["RAW"] == signatures["DIGEST"], "PKCS #1 v1.5 is deterministic"
    for signature in signatures.values():
        verify(key.public, algorithm, message, signature)
        for kind, form in forms.items():
            assert kms.verify(
                key_id=key.id,
                message=form,
                message_type=kind,
                signature=signature,
                signing_algorithm=algorithm,
            ).signature_valid


@HASHED
def test_a_digest_has_the_length_of_its_hash(kms, keys, refused, spec, algorithm):
    key = keys(spec, "SIGN_VERIFY")
    for length in {1, 20, 31, 33, 47, 49, 63, 65, 4096}:
        with refused("ValidationException"):
            kms.sign(
                key_id=key.id,
                message=os.urandom(length),
                message_type="DIGEST",
                signing_algorithm=algorithm,
            )


@EVERY
def test_a_bad_signature_is_an_exception_with_an_empty_message(kms, keys, refused, spec, algorithm):
    key = keys(spec, "SIGN_VERIFY")
    message = os.urandom(64)
    good = kms.sign(key_id=key.id, message=message, signing_algorithm=algorithm).signature
    bad = {
        "last bit": flipped(good),
        "first bit": flipped(good, 0),
        "middle": flipped(good, len(good) // 2),
        "cut": good[:-1],
        "longer": good + b"\0",
        "a zero before": b"\0" + good,
        "zeros": bytes(len(good)),
        "ones": b"\xff" * len(good),
        "one byte": b"\0",
        "longest": os.urandom(6144),
    }
    for what, signature in bad.items():
        with refused(BAD, ""):
            kms.verify(key_id=key.id, message=message, signature=signature, signing_algorithm=algorithm)
            raise AssertionError(what)
    with refused(BAD, ""):
        kms.verify(key_id=key.id, message=flipped(message), signature=good, signing_algorithm=algorithm)


@ECDSA
def test_an_ecdsa_signature_is_canonical_der(kms, keys, refused, spec):
    key, algorithm = keys(spec, "SIGN_VERIFY"), SIGNING[spec][0]
    message, order = os.urandom(32), ORDERS[spec]
    check = lambda signature: kms.verify(
        key_id=key.id, message=message, signature=signature, signing_algorithm=algorithm
    )
    # r and s have leading zeros or a sign bit in some of these.
    for _ in range(8):
        signature = kms.sign(key_id=key.id, message=message, signing_algorithm=algorithm).signature
        r, s = decode_dss_signature(signature)
        assert 0 < r < order and 0 < s < order
        assert encode_dss_signature(r, s) == signature
    # A signature that this service did not make, yet good (SEC 1, 4.1.4): KMS takes both forms of s.
    other = encode_dss_signature(r, order - s)
    verify(key.public, algorithm, message, other)
    assert check(other).signature_valid
    for wrong in [(r, s + order), (r + order, s), (0, s), (r, 0), (s, r), (r, order), (order, s)]:
        with refused(BAD, ""):
            check(encode_dss_signature(*wrong))
    size = (order.bit_length() + 7) // 8
    with refused(BAD, ""):  # r || s, as IEEE P1363 writes it
        check(r.to_bytes(size, "big") + s.to_bytes(size, "big"))


@pytest.mark.parametrize("spec", RSA_SPECS)
def test_an_rsa_signature_is_a_number_below_the_modulus(kms, keys, refused, spec):
    key = keys(spec, "SIGN_VERIFY")
    message = os.urandom(32)
    numbers = key.public.public_numbers()
    assert (numbers.e, key.public.key_size) == (65537, int(spec[4:]))
    signature = kms.sign(key_id=key.id, message=message, signing_algorithm="RSASSA_PSS_SHA_256").signature
    size = modulus_bytes(key.public)
    assert len(signature) == size
    value = int.from_bytes(signature, "big")
    assert value < numbers.n
    if value + numbers.n < 1 << (8 * size):
        # The same number modulo n (RFC 8017, 5.2.2: out of range).
        with refused(BAD, ""):
            kms.verify(
                key_id=key.id,
                message=message,
                signature=(value + numbers.n).to_bytes(size, "big"),
                signing_algorithm="RSASSA_PSS_SHA_256",
            )


def test_pss_signatures_differ_and_ed25519_ones_do_not(kms, keys):
    for spec, algorithm, count in (
        ("RSA_2048", "RSASSA_PSS_SHA_256", 2),
        ("ECC_NIST_EDWARDS25519", "ED25519_SHA_512", 1),
    ):
        key = keys(spec, "SIGN_VERIFY")
        members = {"key_id": key.id, "message": os.urandom(32), "signing_algorithm": algorithm}
        made = [kms.sign(**members).signature for _ in range(2)]
        assert len(set(made)) == count


def test_a_signature_is_bound_to_its_algorithm_and_key(kms, keys, new_key, refused):
    key, other = keys("RSA_2048", "SIGN_VERIFY"), new_key("RSA_2048", "SIGN_VERIFY")
    message = os.urandom(48)
    signature = kms.sign(key_id=key.id, message=message, signing_algorithm="RSASSA_PSS_SHA_256").signature
    for algorithm in set(SIGNING["RSA_2048"]) - {"RSASSA_PSS_SHA_256"}:
        with refused(BAD, ""):
            kms.verify(key_id=key.id, message=message, signature=signature, signing_algorithm=algorithm)
    with refused(BAD, ""):
        kms.verify(
            key_id=other.id,
            message=message,
            signature=signature,
            signing_algorithm="RSASSA_PSS_SHA_256",
        )


def test_ed25519_takes_messages_only(kms, keys, refused):
    key = keys("ECC_NIST_EDWARDS25519", "SIGN_VERIFY")
    members = {"key_id": key.id, "message": os.urandom(64), "message_type": "DIGEST"}
    with refused("ValidationException"):
        kms.sign(**members, signing_algorithm="ED25519_SHA_512")
    # SoftHSM2 would sign pure Ed25519 where the pre-hashed form is asked for.
    with refused("UnsupportedOperationException"):
        kms.sign(**members, signing_algorithm="ED25519_PH_SHA_512")


def test_ml_dsa_is_right_or_refused(kms, new_key):
    for spec in ("ML_DSA_44", "ML_DSA_65", "ML_DSA_87"):
        try:
            key = new_key(spec, "SIGN_VERIFY")
        except KmsError as error:
            assert error.name == "UnsupportedOperationException"
            continue
        signed = kms.sign(key_id=key.id, message=b"message", signing_algorithm="ML_DSA_SHAKE_256")
        key.public.verify(signed.signature, b"message")
