"""DeriveSharedSecret against `cryptography`'s ECDH."""

import os

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from algorithms import AGREEMENT_SPECS, CURVES
from client import text

ECDH = {"key_agreement_algorithm": "ECDH"}
EVERY = pytest.mark.parametrize("spec", AGREEMENT_SPECS)


@pytest.fixture
def derive(kms, keys):
    def derive(spec, peer):
        return kms.derive_shared_secret(key_id=keys(spec, "KEY_AGREEMENT").id, public_key=peer, **ECDH)

    return derive


def spki(public):
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@EVERY
def test_both_sides_have_the_same_secret(keys, derive, spec):
    key = keys(spec, "KEY_AGREEMENT")
    assert text(key.metadata, "key_agreement_algorithms") == ["ECDH"]
    assert not key.metadata.signing_algorithms
    for _ in range(3):
        mine = ec.generate_private_key(CURVES[spec])
        answer = derive(spec, spki(mine.public_key()))
        assert answer.shared_secret == mine.exchange(ec.ECDH(), key.public)
        assert (answer.key_id, text(answer, "key_origin")) == (key.arn, "AWS_KMS")
        assert text(answer, "key_agreement_algorithm") == "ECDH"


@EVERY
def test_a_secret_keeps_its_leading_zeros(keys, derive, spec):
    """SP 800-56A, 5.7.1.2: the secret is as long as the field."""
    key = keys(spec, "KEY_AGREEMENT")
    while True:
        mine = ec.generate_private_key(CURVES[spec])
        secret = mine.exchange(ec.ECDH(), key.public)
        # P-521's first byte is 0 or 1 in any case.
        if secret.startswith(b"\0\0" if spec == "ECC_NIST_P521" else b"\0"):
            break
    assert derive(spec, spki(mine.public_key())).shared_secret == secret


@EVERY
def test_two_keys_of_the_service_agree(kms, keys, new_key, derive, spec):
    key, other = keys(spec, "KEY_AGREEMENT"), new_key(spec, "KEY_AGREEMENT")
    one = derive(spec, other.public_der).shared_secret
    two = kms.derive_shared_secret(key_id=other.id, public_key=key.public_der, **ECDH).shared_secret
    assert one == two


@EVERY
def test_what_is_no_point_of_the_curve_is_refused(derive, refused, spec):
    good = spki(ec.generate_private_key(CURVES[spec]).public_key())
    size = (CURVES[spec].key_size + 7) // 8
    head, point = good[: -2 * size - 1], good[-2 * size - 1 :]
    wrong = {
        "off the curve": head + point[:-1] + bytes([point[-1] ^ 1]),
        "off the curve in x": head + point[:1] + bytes([0, point[2] ^ 1]) + point[3:],
        "origin": head + b"\4" + bytes(2 * size),
        "coordinates above the prime": head + b"\4" + b"\xff" * (2 * size),
        "hybrid form": head + b"\6" + point[1:],
        "cut": good[:-1],
        "longer": good + b"\0",
        "the bare point": point,
        "infinity": with_point(good, head, b"\0"),
        "garbage": os.urandom(91),
        "one byte": b"\0",
        "longest": os.urandom(8192),
        "RSA": spki(rsa.generate_private_key(65537, 2048).public_key()),
        "Ed25519": spki(ed25519.Ed25519PrivateKey.generate().public_key()),
        **{
            other: spki(ec.generate_private_key(curve).public_key())
            for other, curve in CURVES.items()
            if other != spec
        },
        "brainpool": spki(ec.generate_private_key(ec.BrainpoolP256R1()).public_key()),
    }
    for what, peer in wrong.items():
        with refused("ValidationException"):
            derive(spec, peer)
            raise AssertionError(f"{what} was taken")


def with_point(good, head, point):
    """The same SubjectPublicKeyInfo with another point, its DER lengths made right."""
    algorithm_at = 2 if good[1] < 0x80 else 3
    algorithm = good[algorithm_at : algorithm_at + 2 + good[algorithm_at + 1]]
    assert head.find(algorithm) == algorithm_at
    body = algorithm + bytes([3, len(point) + 1, 0]) + point
    return bytes([0x30, len(body)]) + body


def test_only_the_nist_curves_agree(kms, refused):
    for spec in ("ECC_SECG_P256K1", "ECC_NIST_EDWARDS25519", "RSA_2048"):
        with refused("ValidationException"):
            kms.create_key(key_spec=spec, key_usage="KEY_AGREEMENT")
