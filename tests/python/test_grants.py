"""Grants, key policies and tags, as their one account's administrator sees them."""

import json

import pytest

from samples import GRANTEE

UNKNOWN_GRANT = "0" * 64

TO_A_SERVICE = {"grantee_principal": None, "grantee_service_principal": "s3.amazonaws.com"}


def test_a_grant_is_listed_as_it_was_made(kms, new_key):
    key = new_key()
    made = kms.create_grant(
        key_id=key.arn,
        grantee_principal=GRANTEE,
        retiring_principal="arn:aws:iam::111122223333:role/retirer",
        operations=["Decrypt", "Encrypt"],
        constraints={"encryption_context_equals": {"Team Name": "red"}},
        name="a-grant",
    )
    [grant] = kms.list_grants(key_id=key.id).grants
    assert (grant.key_id, grant.grant_id, grant.name) == (key.arn, made.grant_id, "a-grant")
    assert grant.grantee_principal == GRANTEE
    assert grant.issuing_account == "arn:aws:iam::111122223333:root"
    assert dict(grant.constraints.encryption_context_equals) == {"Team Name": "red"}
    assert len(grant.operations) == 2
    assert grant.HasField("creation_date")
    for names in ({"grant_id": made.grant_id}, {"grantee_principal": GRANTEE}):
        assert kms.list_grants(key_id=key.id, **names).grants == [grant]
    assert not kms.list_grants(key_id=key.id, grantee_principal="arn:aws:iam::111122223333:user/x").grants
    retirable = kms.list_retirable_grants(retiring_principal=grant.retiring_principal)
    assert [one.grant_id for one in retirable.grants] == [made.grant_id]
    kms.retire_grant(grant_token=made.grant_token)
    assert not kms.list_grants(key_id=key.id).grants


def test_a_service_has_a_grant_by_its_name(kms, new_key):
    key = new_key()
    source = {"constraints": {"source_arn": "arn:aws:s3:us-east-1:111122223333:bucket"}}
    kms.create_grant(
        key_id=key.id,
        grantee_service_principal="s3.amazonaws.com",
        retiring_service_principal="s3.amazonaws.com",
        operations=["Decrypt"],
        **source,
    )
    [grant] = kms.list_grants(key_id=key.id, grantee_service_principal="s3.amazonaws.com").grants
    assert grant.grantee_service_principal == grant.grantee_principal == "s3.amazonaws.com"


def test_grants_come_in_pages(kms, new_key, refused):
    key = new_key()
    retirer = f"arn:aws:iam::111122223333:user/{key.id}"
    made = {
        kms.create_grant(
            key_id=key.id,
            grantee_principal=GRANTEE if number % 2 else retirer,
            retiring_principal=retirer,
            operations=["Decrypt"],
        ).grant_id
        for number in range(7)
    }
    for call, names in (
        (kms.list_grants, {"key_id": key.id}),
        (kms.list_retirable_grants, {"retiring_principal": retirer}),
    ):
        found = pages(call, "grants", limit=3, **names)
        assert [len(page) for page in found] == [3, 3, 1]
        assert {grant.grant_id for page in found for grant in page} == made
        with refused("InvalidMarkerException"):
            call(marker="x", **names)
    found = pages(kms.list_grants, "grants", limit=2, key_id=key.id, grantee_principal=retirer)
    assert [len(page) for page in found] == [2, 2]


def pages(call, member, **names):
    found, marker = [], {}
    while True:
        answer = call(**names, **marker)
        found.append(list(getattr(answer, member)))
        assert answer.truncated == bool(answer.next_marker)
        if not answer.truncated:
            return found
        marker = {"marker": answer.next_marker}


@pytest.mark.parametrize(
    "exception, members",
    [
        ("ValidationException", {"operations": []}),
        ("ValidationException", {"operations": ["Sign"]}),
        ("ValidationException", {"grantee_principal": "*"}),
        ("ValidationException", {"grantee_service_principal": "s3.amazonaws.com"}),
        ("ValidationException", TO_A_SERVICE | {"retiring_principal": GRANTEE}),
        ("ValidationException", TO_A_SERVICE | {"constraints": {"source_arn": "arn:aws:s3:us-east-1:111122223333:b"}}),
        ("InvalidArnException", {"grantee_principal": "arn:aws:s3:::bucket"}),
        ("InvalidArnException", {"grantee_principal": "alice"}),
        ("InvalidArnException", {"retiring_principal": "bob"}),
        ("InvalidGrantTokenException", {"grant_tokens": ["x"]}),
    ],
)
def test_a_grant_that_is_none(kms, new_key, refused, exception, members):
    key = new_key()
    request = {"key_id": key.id, "grantee_principal": GRANTEE, "operations": ["Decrypt"], **members}
    request = {name: value for name, value in request.items() if value is not None}
    with refused(exception):
        kms.create_grant(**request)
    assert not kms.list_grants(key_id=key.id).grants


def test_a_grant_that_is_not_there(kms, new_key, refused):
    key = new_key()
    for grant in (UNKNOWN_GRANT, "x"):
        for call in (kms.revoke_grant, kms.retire_grant, kms.list_grants):
            with refused("InvalidGrantIdException"):
                call(key_id=key.id, grant_id=grant)
    with refused("InvalidGrantTokenException"):
        kms.retire_grant(grant_token="x")
    for names in ({}, {"grant_token": "x", "grant_id": "x"}, {"key_id": key.id}):
        with refused("ValidationException"):
            kms.retire_grant(**names)


def test_a_key_in_another_state_gets_no_grant(kms, new_key, refused):
    key = new_key()
    request = {"key_id": key.id, "grantee_principal": GRANTEE, "operations": ["Decrypt"]}
    made = kms.create_grant(**request)
    kms.disable_key(key_id=key.id)
    with refused("DisabledException"):
        kms.create_grant(**request)
    kms.schedule_key_deletion(key_id=key.id)
    with refused("KMSInvalidStateException"):
        kms.create_grant(**request)
    kms.revoke_grant(key_id=key.id, grant_id=made.grant_id)


def test_a_policy_is_changed_in_every_state_and_conditions_see_its_name(kms, new_key, refused):
    key = new_key()
    kms.schedule_key_deletion(key_id=key.id)
    policy = json.loads(kms.get_key_policy(key_id=key.id).policy)
    unread = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "kms:GetKeyPolicy",
        "Resource": "*",
        "Condition": {"StringEquals": {"kms:PolicyName": "default"}},
    }
    text = json.dumps({**policy, "Statement": [*policy["Statement"], unread]})
    kms.put_key_policy(key_id=key.id, policy=text)
    with refused("AccessDeniedException"):
        kms.get_key_policy(key_id=key.id)
    with refused("NotFoundException"):
        kms.get_key_policy(key_id=key.id, policy_name="other")


def test_a_policy_is_kept_as_it_was_written(kms, new_key, refused):
    key = new_key()
    first = json.loads(kms.get_key_policy(key_id=key.id).policy)
    assert first["Statement"][0]["Sid"] == "Enable IAM User Permissions"
    text = json.dumps({**first, "Id": "another"}, indent=3)
    kms.put_key_policy(key_id=key.id, policy=text, policy_name="default")
    answer = kms.get_key_policy(key_id=key.arn, policy_name="default")
    assert (answer.policy, answer.policy_name) == (text, "default")
    assert list(kms.list_key_policies(key_id=key.id).policy_names) == ["default"]
    for call in (kms.get_key_policy, lambda **names: kms.put_key_policy(policy=text, **names)):
        with refused("NotFoundException"):
            call(key_id=key.id, policy_name="other")
    locking = json.dumps({"Statement": {"Effect": "Allow", "Principal": "*", "Action": "kms:Encrypt", "Resource": "*"}})
    with refused("ValidationException", "The AWS_RAM policy can only be managed by the RAM service."):
        kms.put_key_policy(key_id=key.id, policy=text, policy_name="AWS_RAM")
    for policy in ("{", "{}", locking):
        with refused("MalformedPolicyDocumentException"):
            kms.put_key_policy(key_id=key.id, policy=policy)
    with refused("LimitExceededException"):
        kms.put_key_policy(key_id=key.id, policy=text + " " * 32768)
    assert kms.get_key_policy(key_id=key.id).policy == text
    kms.put_key_policy(key_id=key.id, policy=locking, bypass_policy_lockout_safety_check=True)
    kms.encrypt(key_id=key.id, plaintext=b"x")
    with refused("AccessDeniedException"):
        kms.get_key_policy(key_id=key.id)


def tag(key, value="x"):
    return {"tag_key": key, "tag_value": value}


def test_tags_are_added_replaced_and_removed(kms, new_key, refused):
    key = new_key(tags=[tag("first", "1")])
    kms.tag_resource(key_id=key.id, tags=[tag("first", "2"), tag("Second", "")])
    listed = kms.list_resource_tags(key_id=key.arn)
    assert {one.tag_key: one.tag_value for one in listed.tags} == {"first": "2", "Second": ""}
    kms.untag_resource(key_id=key.id, tag_keys=["first", "unknown"])
    assert [one.tag_key for one in kms.list_resource_tags(key_id=key.id).tags] == ["Second"]

    kms.tag_resource(key_id=key.id, tags=[tag(f"tag {number}") for number in range(49)])
    found = pages(kms.list_resource_tags, "tags", key_id=key.id, limit=20)
    assert [len(page) for page in found] == [20, 20, 10]
    with refused("LimitExceededException"):
        kms.tag_resource(key_id=key.id, tags=[tag("one more")])
    kms.tag_resource(key_id=key.id, tags=[tag("Second", "replaced")])
    for tags in ([tag("a"), tag("a")], [tag("AWS:x")], [tag(str(number)) for number in range(51)]):
        with refused("TagException"):
            kms.tag_resource(key_id=key.id, tags=tags)
    with refused("TagException"):
        kms.untag_resource(key_id=key.id, tag_keys=["aws:x"])
    for names in ({"tags": []}, {"tags": [tag("")]}):
        with refused("ValidationException"):
            kms.tag_resource(key_id=key.id, **names)
    with refused("InvalidMarkerException"):
        kms.list_resource_tags(key_id=key.id, marker="x")
    kms.schedule_key_deletion(key_id=key.id)
    with refused("KMSInvalidStateException"):
        kms.tag_resource(key_id=key.id, tags=[tag("late")])
