"""GenerateMac and VerifyMac. The key never leaves the HSM, so nobody else can
make the MAC: what can be checked is that it behaves as one."""

import os

import pytest

from algorithms import MACS, flipped
from client import text

BAD = "KMSInvalidMacException"
EVERY = pytest.mark.parametrize("spec", MACS)


@EVERY
def test_a_mac_verifies(kms, keys, spec):
    key, (algorithm, length) = keys(spec, "GENERATE_VERIFY_MAC"), MACS[spec]
    assert text(key.metadata, "mac_algorithms") == [algorithm]
    for message in (b"\0", os.urandom(200), os.urandom(4096)):
        members = {"key_id": key.id, "message": message, "mac_algorithm": algorithm}
        made = kms.generate_mac(**members)
        assert (len(made.mac), made.key_id, text(made, "mac_algorithm")) == (length, key.arn, algorithm)
        assert kms.generate_mac(**members).mac == made.mac
        verified = kms.verify_mac(mac=made.mac, **members)
        assert verified.mac_valid is True
        assert (verified.key_id, text(verified, "mac_algorithm")) == (key.arn, algorithm)


@EVERY
def test_a_bad_mac_is_an_exception_with_an_empty_message(kms, keys, new_key, refused, spec):
    key, (algorithm, length) = keys(spec, "GENERATE_VERIFY_MAC"), MACS[spec]
    message = os.urandom(64)
    members = {"key_id": key.id, "message": message, "mac_algorithm": algorithm}
    good = kms.generate_mac(**members).mac
    # HMAC pads a short key with zeros (RFC 2104), not a short message.
    wrong = [flipped(good), flipped(good, 0), good[:-1], good + b"\0", bytes(length), b"\0", os.urandom(6144)]
    for mac in wrong:
        with refused(BAD, ""):
            kms.verify_mac(mac=mac, **members)
    for other in (flipped(message), message + b"\0", message[:-1]):
        with refused(BAD, ""):
            kms.verify_mac(mac=good, **{**members, "message": other})
    with refused(BAD, ""):
        kms.verify_mac(mac=good, **{**members, "key_id": new_key(spec, "GENERATE_VERIFY_MAC").id})


@EVERY
def test_a_key_has_one_algorithm(kms, keys, refused, spec):
    key = keys(spec, "GENERATE_VERIFY_MAC")
    for algorithm, length in MACS.values():
        if algorithm != MACS[spec][0]:
            with refused("InvalidKeyUsageException"):
                kms.generate_mac(key_id=key.id, message=b"x", mac_algorithm=algorithm)
            with refused("InvalidKeyUsageException"):
                kms.verify_mac(key_id=key.id, message=b"x", mac=bytes(length), mac_algorithm=algorithm)
