"""GetKeyLastUsage."""

import pytest

from client import KmsError, text


def last(kms, key):
    return kms.get_key_last_usage(key_id=key.id).key_last_usage


def test_the_last_use_is_told_at_once(kms, events, new_key):
    key = new_key()
    answer = kms.get_key_last_usage(key_id=key.arn)
    assert answer.key_id == key.id
    assert answer.key_creation_date == key.metadata.creation_date == answer.tracking_start_date
    assert answer.HasField("key_last_usage") and not answer.key_last_usage.ListFields()
    sealed = kms.encrypt(key_id=key.id, plaintext=b"x").ciphertext_blob
    for call, operation in (
        (lambda: kms.decrypt(ciphertext_blob=sealed), "Decrypt"),
        (lambda: kms.generate_data_key(key_id=key.id, key_spec="AES_128"), "GenerateDataKey"),
        (lambda: kms.re_encrypt(ciphertext_blob=sealed, destination_key_id=key.id), "ReEncrypt"),
        (lambda: kms.encrypt(key_id=key.id, plaintext=b"x"), "Encrypt"),
    ):
        call()
        request_id = kms.calls[-1].request_id
        usage = last(kms, key)
        assert (text(usage, "operation"), usage.kms_request_id) == (operation, request_id)
        [record] = [r for r in events.until([request_id]) if r.get("requestID") == request_id]
        assert usage.cloud_trail_event_id == record["eventID"]
        assert usage.timestamp.ToJsonString()[:19] == record["eventTime"][:19]


def test_what_failed_or_is_no_cryptography_is_no_use(kms, new_key):
    key = new_key()
    kms.describe_key(key_id=key.id)
    for call in (
        lambda: kms.encrypt(key_id=key.id, plaintext=b"x", dry_run=True),
        lambda: kms.sign(key_id=key.id, message=b"x", signing_algorithm="ECDSA_SHA_256"),
    ):
        with pytest.raises(KmsError):
            call()
    assert not last(kms, key).ListFields()


def test_both_keys_of_a_reencryption_were_used(kms, new_key):
    one, two = new_key(), new_key()
    sealed = kms.encrypt(key_id=one.id, plaintext=b"x").ciphertext_blob
    kms.re_encrypt(ciphertext_blob=sealed, destination_key_id=two.id)
    assert text(last(kms, one), "operation") == text(last(kms, two), "operation") == "ReEncrypt"
    assert last(kms, one).cloud_trail_event_id == last(kms, two).cloud_trail_event_id
