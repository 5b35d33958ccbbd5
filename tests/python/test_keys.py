"""Keys, their names and their life."""

import json
import time
import uuid

import pytest

from client import KmsError, text

DAY_S = 24 * 60 * 60


def test_a_new_key_is_as_kms_makes_it(kms, new_key):
    key = new_key(description="a key")
    metadata = kms.describe_key(key_id=key.id).key_metadata
    assert metadata == key.metadata
    account, region = metadata.aws_account_id, key.arn.split(":")[3]
    assert key.arn == f"arn:aws:kms:{region}:{account}:key/{key.id}"
    assert str(uuid.UUID(key.id)) == key.id
    assert abs(metadata.creation_date.seconds - time.time()) < DAY_S
    assert (metadata.enabled, metadata.description, metadata.multi_region) == (True, "a key", False)
    assert text(metadata, "key_usage") == "ENCRYPT_DECRYPT"
    assert text(metadata, "key_state") == "Enabled"
    assert text(metadata, "origin") == "AWS_KMS"
    assert text(metadata, "key_manager") == "CUSTOMER"
    assert text(metadata, "key_spec") == text(metadata, "customer_master_key_spec") == "SYMMETRIC_DEFAULT"
    assert text(metadata, "encryption_algorithms") == ["SYMMETRIC_DEFAULT"]
    assert metadata.current_key_material_id
    for absent in ("deletion_date", "valid_to", "custom_key_store_id", "expiration_model"):
        assert not metadata.HasField(absent)


def test_create_key_has_defaults(kms):
    metadata = kms.create_key().key_metadata
    assert text(metadata, "key_spec") == "SYMMETRIC_DEFAULT"
    assert text(metadata, "key_usage") == "ENCRYPT_DECRYPT"
    assert metadata.description == ""
    old = kms.create_key(customer_master_key_spec="ECC_NIST_P256", key_usage="SIGN_VERIFY").key_metadata
    assert text(old, "key_spec") == text(old, "customer_master_key_spec") == "ECC_NIST_P256"
    for made in (metadata, old):
        kms.schedule_key_deletion(key_id=made.key_id)


def test_only_symmetric_keys_tell_their_material(keys):
    for spec, usage in (("RSA_2048", "SIGN_VERIFY"), ("HMAC_256", "GENERATE_VERIFY_MAC")):
        assert not keys(spec, usage).metadata.HasField("current_key_material_id")


def test_a_key_is_found_by_four_names(kms, new_key, unique):
    key, alias = new_key(), f"alias/interop/{unique}"
    kms.create_alias(alias_name=alias, target_key_id=key.arn)
    alias_arn = f"{key.arn.rpartition(':')[0]}:{alias}"
    sealed = kms.encrypt(key_id=key.id, plaintext=b"x").ciphertext_blob
    for name in (key.id, key.arn, alias, alias_arn):
        assert kms.describe_key(key_id=name).key_metadata.key_id == key.id
        assert kms.encrypt(key_id=name, plaintext=b"x").key_id == key.arn
        assert kms.decrypt(key_id=name, ciphertext_blob=sealed).plaintext == b"x"
        assert (
            kms.re_encrypt(source_key_id=name, destination_key_id=name, ciphertext_blob=sealed).source_key_id
            == key.arn
        )
        assert kms.generate_data_key(key_id=name, key_spec="AES_256").key_id == key.arn
    kms.delete_alias(alias_name=alias)
    with pytest.raises(KmsError, match="NotFoundException"):
        kms.describe_key(key_id=alias)


def test_changes_of_a_key_do_not_take_aliases(kms, new_key, refused, unique):
    key, alias = new_key(), f"alias/interop/{unique}"
    kms.create_alias(alias_name=alias, target_key_id=key.id)
    for call, more in (
        (kms.disable_key, {}),
        (kms.enable_key, {}),
        (kms.schedule_key_deletion, {}),
        (kms.cancel_key_deletion, {}),
        (kms.update_key_description, {"description": "x"}),
    ):
        with refused("NotFoundException", f"Invalid keyId '{alias}'"):
            call(key_id=alias, **more)
    kms.delete_alias(alias_name=alias)


def test_an_alias_moves_among_its_family(kms, new_key, refused, unique):
    one, two, rsa = new_key(), new_key(), new_key("RSA_2048", "ENCRYPT_DECRYPT")
    alias = f"alias/interop/{unique}"
    kms.create_alias(alias_name=alias, target_key_id=one.id)
    with refused("AlreadyExistsException"):
        kms.create_alias(alias_name=alias, target_key_id=two.id)
    kms.update_alias(alias_name=alias, target_key_id=two.arn)
    assert kms.describe_key(key_id=alias).key_metadata.key_id == two.id
    with refused("ValidationException"):
        kms.update_alias(alias_name=alias, target_key_id=rsa.id)
    with refused("ValidationException"):
        kms.create_alias(alias_name=alias + "2", target_key_id=alias)
    [entry] = kms.list_aliases(key_id=two.id).aliases
    assert (entry.alias_name, entry.target_key_id) == (alias, two.id)
    assert entry.alias_arn == f"{two.arn.rpartition(':')[0]}:{alias}"
    assert entry.last_updated_date.ToMilliseconds() >= entry.creation_date.ToMilliseconds() > 0
    assert not kms.list_aliases(key_id=one.id).aliases
    kms.delete_alias(alias_name=alias)
    for call, more in ((kms.delete_alias, {}), (kms.update_alias, {"target_key_id": one.id})):
        with refused("NotFoundException"):
            call(alias_name=alias, **more)


@pytest.mark.parametrize(
    "name", ["x", "alias/", "alias/aws/s3", "alias/a b", "alias/ä", "alias/a:b", "Alias/x"]
)
def test_a_name_that_is_no_alias_is_refused(kms, keys, name):
    with pytest.raises(KmsError) as raised:
        kms.create_alias(alias_name=name, target_key_id=keys("SYMMETRIC_DEFAULT").id)
    assert raised.value.name in ("ValidationException", "InvalidAliasNameException")


def pages(call, items, **members):
    """All items, one a page; checks what each page says of the next."""
    found, marker = [], {}
    while True:
        page = call(limit=1, **members, **marker)
        found += getattr(page, items)
        assert len(getattr(page, items)) <= 1
        assert page.truncated == page.HasField("next_marker")
        if not page.truncated:
            return found
        marker = {"marker": page.next_marker}


def test_keys_are_listed_by_pages(kms, new_key):
    made = {key.id: key.arn for key in (new_key(), new_key())}
    by_one = [(entry.key_id, entry.key_arn) for entry in pages(kms.list_keys, "keys")]
    assert made.items() <= dict(by_one).items()
    assert len(by_one) == len(set(by_one))
    whole = kms.list_keys(limit=1000)
    assert [(entry.key_id, entry.key_arn) for entry in whole.keys] == by_one
    assert not whole.truncated and not whole.HasField("next_marker")


def test_aliases_are_listed_by_pages(kms, new_key, unique):
    key = new_key()
    names = [f"alias/interop/{unique}/{count}" for count in range(3)]
    for name in names:
        kms.create_alias(alias_name=name, target_key_id=key.id)
    for members in ({}, {"key_id": key.id}, {"key_id": key.arn}):
        found = [entry.alias_name for entry in pages(kms.list_aliases, "aliases", **members)]
        assert len(found) == len(set(found))
        assert [name for name in found if unique in name] == names
        if members:
            assert found == names
    for name in names:
        kms.delete_alias(alias_name=name)


def test_a_description_is_replaced(kms, new_key):
    key = new_key(description="before")
    for description in ("after", "", "ä" * 8192):
        kms.update_key_description(key_id=key.id, description=description)
        assert kms.describe_key(key_id=key.id).key_metadata.description == description


USES = {
    "encrypt": {"plaintext": b"x"},
    "generate_data_key": {"key_spec": "AES_256"},
    "generate_data_key_without_plaintext": {"number_of_bytes": 8},
    "generate_data_key_pair": {"key_pair_spec": "ECC_NIST_P256"},
    "generate_data_key_pair_without_plaintext": {"key_pair_spec": "ECC_NIST_P256"},
}


def uses(kms, key):
    """Every use of a symmetric key."""
    sealed = kms.encrypt(key_id=key.id, plaintext=b"x").ciphertext_blob
    calls = [lambda name=name: getattr(kms, name)(key_id=key.id, **USES[name]) for name in USES]
    calls.append(lambda: kms.decrypt(ciphertext_blob=sealed))
    calls.append(lambda: kms.re_encrypt(ciphertext_blob=sealed, destination_key_id=key.id))
    return calls


def test_a_disabled_key_does_nothing(kms, new_key, refused):
    key = new_key()
    calls = uses(kms, key)
    kms.disable_key(key_id=key.id)
    metadata = kms.describe_key(key_id=key.id).key_metadata
    assert (text(metadata, "key_state"), metadata.enabled) == ("Disabled", False)
    for call in calls:
        with refused("DisabledException", f"{key.arn} is disabled."):
            call()
    kms.enable_key(key_id=key.arn)
    assert kms.describe_key(key_id=key.id).key_metadata.enabled
    for call in calls:
        call()


def test_a_key_pending_deletion_does_nothing(kms, new_key, refused, unique):
    key = new_key()
    calls = uses(kms, key)
    scheduled = kms.schedule_key_deletion(key_id=key.id, pending_window_in_days=7)
    assert (scheduled.key_id, text(scheduled, "key_state")) == (key.arn, "PendingDeletion")
    assert scheduled.pending_window_in_days == 7
    metadata = kms.describe_key(key_id=key.id).key_metadata
    assert metadata.deletion_date == scheduled.deletion_date
    assert (text(metadata, "key_state"), metadata.enabled) == ("PendingDeletion", False)
    assert 6.9 * DAY_S < metadata.deletion_date.seconds - time.time() < 7.1 * DAY_S
    calls += [
        lambda: kms.enable_key(key_id=key.id),
        lambda: kms.disable_key(key_id=key.id),
        lambda: kms.schedule_key_deletion(key_id=key.id),
        lambda: kms.update_key_description(key_id=key.id, description="x"),
        lambda: kms.create_alias(alias_name=f"alias/interop/{unique}", target_key_id=key.id),
    ]
    for call in calls:
        with refused("KMSInvalidStateException", f"{key.arn} is pending deletion."):
            call()
    assert kms.cancel_key_deletion(key_id=key.id).key_id == key.arn
    metadata = kms.describe_key(key_id=key.id).key_metadata
    assert text(metadata, "key_state") == "Disabled" and not metadata.HasField("deletion_date")
    with refused("KMSInvalidStateException"):
        kms.cancel_key_deletion(key_id=key.id)


def test_an_asymmetric_key_out_of_use_keeps_its_public_key(kms, new_key, refused):
    key = new_key("ECC_NIST_P256", "SIGN_VERIFY")
    members = {"key_id": key.id, "message": b"x", "signing_algorithm": "ECDSA_SHA_256"}
    signature = kms.sign(**members).signature
    calls = [
        lambda: kms.get_public_key(key_id=key.id),
        lambda: kms.sign(**members),
        lambda: kms.verify(signature=signature, **members),
    ]
    kms.disable_key(key_id=key.id)
    for call in calls:
        with refused("DisabledException", f"{key.arn} is disabled."):
            call()
    kms.schedule_key_deletion(key_id=key.id)
    for call in calls:
        with refused("KMSInvalidStateException", f"{key.arn} is pending deletion."):
            call()


def test_the_default_window_is_thirty_days(kms, new_key):
    key = new_key()
    assert kms.schedule_key_deletion(key_id=key.id).pending_window_in_days == 30


def test_a_policy_at_creation_holds(kms, new_key, refused):
    root = {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "kms:*", "Resource": "*"}
    deny = {**root, "Effect": "Deny", "Action": ["kms:Decrypt", "kms:Sign*"]}
    key = new_key(policy=json.dumps({"Version": "2012-10-17", "Statement": [root, deny]}))
    sealed = kms.encrypt(key_id=key.id, plaintext=b"x").ciphertext_blob
    with refused("AccessDeniedException"):
        kms.decrypt(ciphertext_blob=sealed)


def test_a_key_nobody_may_use_is_made_only_on_purpose(kms, new_key, refused):
    nobody = json.dumps(
        {
            "Version": "2012-10-17",
            "Statement": {
                "Effect": "Allow",
                "Principal": {"AWS": "*"},
                "Action": "kms:DescribeKey",
                "Resource": "*",
            },
        }
    )
    with refused("MalformedPolicyDocumentException"):
        kms.create_key(policy=nobody)
    key = new_key(policy=nobody, bypass_policy_lockout_safety_check=True)
    assert kms.describe_key(key_id=key.id).key_metadata.enabled
    for call in (kms.disable_key, kms.get_public_key, kms.schedule_key_deletion):
        with refused("AccessDeniedException"):
            call(key_id=key.id)
    with refused("AccessDeniedException"):
        kms.encrypt(key_id=key.id, plaintext=b"x")


def test_tags_at_creation(new_key):
    new_key(tags=[{"tag_key": "tenant", "tag_value": "aérø"}, {"tag_key": "empty", "tag_value": ""}])
    new_key(tags=[{"tag_key": f"tag{count}", "tag_value": "x"} for count in range(50)])
