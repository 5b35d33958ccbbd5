"""Rotation of key material, by the clock and on demand."""

import time

import pytest

from client import KmsError, text
from test_keys import pages

DAY_S = 24 * 60 * 60
OTHERS = [
    ("RSA_2048", "ENCRYPT_DECRYPT"),
    ("ECC_NIST_P256", "SIGN_VERIFY"),
    ("HMAC_256", "GENERATE_VERIFY_MAC"),
]


def material(kms, key):
    return kms.describe_key(key_id=key.id).key_metadata.current_key_material_id


@pytest.mark.parametrize("days", [None, 90, 2560])
def test_a_period_is_kept(kms, new_key, days):
    key = new_key()
    status = kms.get_key_rotation_status(key_id=key.id)
    assert (status.key_rotation_enabled, status.key_id) == (False, key.arn)
    for absent in ("rotation_period_in_days", "next_rotation_date", "on_demand_rotation_start_date"):
        assert not status.HasField(absent)
    kms.enable_key_rotation(key_id=key.arn, **({"rotation_period_in_days": days} if days else {}))
    status = kms.get_key_rotation_status(key_id=key.arn)
    assert status.key_rotation_enabled and status.rotation_period_in_days == (days or 365)
    left = status.next_rotation_date.seconds - time.time()
    assert (days or 365) * DAY_S - 300 < left <= (days or 365) * DAY_S
    # Once more changes no date; another period begins now.
    kms.enable_key_rotation(key_id=key.id, rotation_period_in_days=days or 365)
    assert kms.get_key_rotation_status(key_id=key.id) == status
    kms.enable_key_rotation(key_id=key.id, rotation_period_in_days=100)
    assert kms.get_key_rotation_status(key_id=key.id).rotation_period_in_days == 100
    kms.disable_key_rotation(key_id=key.id)
    kms.disable_key_rotation(key_id=key.id)
    assert not kms.get_key_rotation_status(key_id=key.id).key_rotation_enabled


@pytest.mark.parametrize("days", [0, 89, 2561])
def test_a_period_has_limits(kms, keys, refused, days):
    with refused("ValidationException"):
        kms.enable_key_rotation(key_id=keys("SYMMETRIC_DEFAULT").id, rotation_period_in_days=days)


@pytest.mark.parametrize("spec, usage", OTHERS)
def test_only_symmetric_keys_rotate(kms, keys, refused, spec, usage):
    for call in (
        kms.enable_key_rotation,
        kms.disable_key_rotation,
        kms.get_key_rotation_status,
        kms.rotate_key_on_demand,
        kms.list_key_rotations,
    ):
        with refused("UnsupportedOperationException"):
            call(key_id=keys(spec, usage).id)


def test_old_material_decrypts_for_ever(kms, new_key):
    key, made = new_key(), []
    for turn in range(3):
        answer = kms.generate_data_key(key_id=key.id, key_spec="AES_256")
        assert answer.key_material_id == material(kms, key)
        made.append((answer.ciphertext_blob, answer.plaintext, answer.key_material_id))
        assert kms.rotate_key_on_demand(key_id=key.id).key_id == key.arn
    assert len({old for _, _, old in made} | {material(kms, key)}) == 4
    for blob, plaintext, old in made:
        answer = kms.decrypt(ciphertext_blob=blob)
        assert (answer.plaintext, answer.key_material_id) == (plaintext, old)
        moved = kms.re_encrypt(ciphertext_blob=blob, destination_key_id=key.id)
        assert (moved.source_key_material_id, moved.destination_key_material_id) == (old, material(kms, key))
        assert kms.decrypt(ciphertext_blob=moved.ciphertext_blob).plaintext == plaintext
    # Nothing else of the key changed, and the schedule did not move.
    assert kms.describe_key(key_id=key.id).key_metadata.creation_date == key.metadata.creation_date
    rotations = kms.list_key_rotations(key_id=key.arn).rotations
    assert [entry.key_material_id for entry in rotations] == [old for _, _, old in made[1:]] + [material(kms, key)]
    assert [text(entry, "key_material_state") for entry in rotations] == ["NON_CURRENT", "NON_CURRENT", "CURRENT"]
    for entry in rotations:
        assert (entry.key_id, text(entry, "rotation_type")) == (key.id, "ON_DEMAND")
        assert abs(entry.rotation_date.seconds - time.time()) < 300
        for absent in ("import_state", "expiration_model", "valid_to", "key_material_description"):
            assert not entry.HasField(absent)
    whole = kms.list_key_rotations(key_id=key.id, include_key_material="ALL_KEY_MATERIAL").rotations
    assert list(whole[1:]) == list(rotations)
    assert whole[0].key_material_id == made[0][2] and not whole[0].HasField("rotation_date")
    assert not whole[0].HasField("rotation_type") and text(whole[0], "key_material_state") == "NON_CURRENT"
    for members, expected in (({}, rotations), ({"include_key_material": "ALL_KEY_MATERIAL"}, whole)):
        assert pages(kms.list_key_rotations, "rotations", key_id=key.id, **members) == list(expected)
    only = kms.list_key_rotations(key_id=key.id, include_key_material="ROTATIONS_ONLY")
    assert list(only.rotations) == list(rotations) and not only.truncated


def test_a_marker_of_another_list_is_refused(kms, new_key, refused):
    key = new_key()
    for marker in ("x", "00", "6162"):
        with refused("InvalidMarkerException"):
            kms.list_key_rotations(key_id=key.id, marker=marker)


def test_a_key_is_rotated_on_demand_25_times(kms, new_key, refused):
    key = new_key()
    kms.enable_key_rotation(key_id=key.id)
    before = kms.get_key_rotation_status(key_id=key.id)
    for _ in range(25):
        kms.rotate_key_on_demand(key_id=key.id)
    with refused("LimitExceededException"):
        kms.rotate_key_on_demand(key_id=key.id)
    assert len(kms.list_key_rotations(key_id=key.id).rotations) == 25
    assert kms.get_key_rotation_status(key_id=key.id) == before


def test_a_rotation_is_an_event_of_the_service(kms, events, new_key):
    key = new_key()
    old = material(kms, key)
    kms.rotate_key_on_demand(key_id=key.id)
    kms.describe_key(key_id=key.id)
    records = events.until([kms.calls[-1].request_id])
    [event] = [
        record
        for record in records
        if record["eventName"] == "RotateKey" and record["serviceEventDetails"]["keyId"] == key.id
    ]
    assert event["serviceEventDetails"] == {
        "rotationType": "ON_DEMAND",
        "keyOrigin": "AWS_KMS",
        "previousKeyMaterialId": old,
        "currentKeyMaterialId": material(kms, key),
        "keyId": key.id,
    }
    assert event["resources"][0]["ARN"] == key.arn
    assert event["eventType"] == "AwsServiceEvent" and "requestID" not in event


def test_the_states_of_a_key(kms, new_key, refused):
    key = new_key()
    kms.enable_key_rotation(key_id=key.id, rotation_period_in_days=200)
    status = kms.get_key_rotation_status(key_id=key.id)
    changes = (kms.enable_key_rotation, kms.disable_key_rotation, kms.rotate_key_on_demand)
    kms.disable_key(key_id=key.id)
    for call in changes:
        with refused("DisabledException", f"{key.arn} is disabled."):
            call(key_id=key.id)
    assert kms.get_key_rotation_status(key_id=key.id) == status
    kms.schedule_key_deletion(key_id=key.id)
    for call in changes:
        with refused("KMSInvalidStateException", f"{key.arn} is pending deletion."):
            call(key_id=key.id)
    assert not kms.get_key_rotation_status(key_id=key.id).key_rotation_enabled
    kms.cancel_key_deletion(key_id=key.id)
    assert kms.get_key_rotation_status(key_id=key.id) == status


def test_rotation_takes_no_alias(kms, new_key, unique):
    key, alias = new_key(), f"alias/rotation/{unique}"
    kms.create_alias(alias_name=alias, target_key_id=key.id)
    for call in (kms.enable_key_rotation, kms.rotate_key_on_demand, kms.list_key_rotations):
        with pytest.raises(KmsError, match="NotFoundException"):
            call(key_id=alias)
    kms.delete_alias(alias_name=alias)
