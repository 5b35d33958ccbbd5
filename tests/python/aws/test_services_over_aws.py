"""Services of the installation: AWS managed keys, AWS owned keys, and calls on behalf of others."""

import json
import os
import signal

import pytest

from daemons import Daemon, until

S3, ACCOUNT, OTHER = "s3.amazonaws.com", "111122223333", "444455556666"
ALIAS = "alias/aws/s3"
SERVICES = f"""
[[services]]
name = "{S3}"
access_keys = [{{ id = "AKIASERVICESERVICES3", secret_file = "aws/s3" }}]

[[services]]
name = "backup.amazonaws.com"
access_keys = [{{ id = "AKIASERVICEBACKUP000", secret_file = "aws/backup" }}]

[[accounts]]
id = "{OTHER}"

[[accounts.principals]]
name = "bob"
policies = ["AdministratorAccess"]
access_keys = [{{ id = "AKIABOBBOBBOBBOBBOB0", secret_file = "aws/bob" }}]
"""
USER = f"arn:aws:iam::{ACCOUNT}:user/carol"
CAROL = """
[[accounts.principals]]
name = "carol"
access_keys = [{ id = "AKIACAROLCAROLCAROL0", secret_file = "aws/carol" }]

"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    started = Daemon(tmp_path_factory.mktemp("services"))
    for name in ("s3", "backup", "bob", "carol"):
        (started.dir / "aws" / name).touch(mode=0o600)
        (started.dir / "aws" / name).write_text(f"the secret of {name}\n")
    config = started.dir / "strongroom.toml"
    # The administrator's account is the last section.
    config.write_text(config.read_text() + CAROL + SERVICES)
    os.kill(started.process.pid, signal.SIGHUP)
    kms = client(started, "AKIABOBBOBBOBBOBBOB0", "bob")
    until(lambda: answers(kms), "the reload")
    yield started
    started.stop()


def answers(kms):
    try:
        return kms.list_keys()
    except kms.exceptions.ClientError:
        return False


def client(daemon, key_id, name, **headers):
    made = daemon.client(aws_access_key_id=key_id, aws_secret_access_key=f"the secret of {name}")
    named = {f"strongroom-{name.replace('_', '-')}": value for name, value in headers.items()}

    def say(request, **_):
        for header, value in named.items():
            request.headers[header] = value

    made.meta.events.register("before-sign.kms", say)
    return made


@pytest.fixture(scope="module")
def s3(daemon):
    """S3, which says for whom it calls."""
    return lambda **headers: client(daemon, "AKIASERVICESERVICES3", "s3", **headers)


@pytest.fixture(scope="module")
def backup(daemon):
    return lambda **headers: client(daemon, "AKIASERVICEBACKUP000", "backup", **headers)


@pytest.fixture(scope="module")
def carol(daemon):
    """A user without any policy."""
    return client(daemon, "AKIACAROLCAROLCAROL0", "carol")


def denied(call):
    with pytest.raises(Exception, match="AccessDeniedException"):
        call()


def record(daemon, answer):
    """The event of a call."""
    wanted = answer["ResponseMetadata"]["RequestId"]
    found = daemon.client("cloudtrail").get_paginator("lookup_events").paginate()
    records = [json.loads(event["CloudTrailEvent"]) for page in found for event in page["Events"]]
    [event] = [record for record in records if record.get("requestID") == wanted]
    return event


def test_the_key_of_a_service_is_made_for_who_may_describe_it(daemon, carol):
    alias, kms = "alias/aws/backup", daemon.client()
    names = lambda: [alias["AliasName"] for alias in kms.list_aliases()["Aliases"]]
    denied(lambda: carol.describe_key(KeyId=alias))
    with pytest.raises(kms.exceptions.NotFoundException):
        kms.encrypt(KeyId=alias, Plaintext=b"x")
    assert alias not in names()
    made = kms.describe_key(KeyId=f"arn:aws:kms:us-east-1:{ACCOUNT}:{alias}")["KeyMetadata"]
    assert (made["KeyManager"], made["KeyState"], made["AWSAccountId"]) == ("AWS", "Enabled", ACCOUNT)
    assert kms.describe_key(KeyId=alias)["KeyMetadata"]["Arn"] == made["Arn"]
    assert alias in names()
    denied(lambda: kms.encrypt(KeyId=alias, Plaintext=b"x"))
    with pytest.raises(kms.exceptions.NotFoundException):
        kms.describe_key(KeyId="alias/aws/nobody")
    # Another account's is its own.
    bob = client(daemon, "AKIABOBBOBBOBBOBBOB0", "bob")
    assert bob.describe_key(KeyId=alias)["KeyMetadata"]["AWSAccountId"] == OTHER


def test_a_managed_key_is_made_on_first_use_and_used_through_its_service(daemon, s3, backup, carol):
    for_carol = s3(on_behalf_of=USER)
    made = for_carol.generate_data_key(KeyId=ALIAS, KeySpec="AES_256")
    again = for_carol.generate_data_key(KeyId=ALIAS, KeySpec="AES_256")
    assert made["KeyId"] == again["KeyId"]
    assert for_carol.decrypt(CiphertextBlob=made["CiphertextBlob"])["Plaintext"] == made["Plaintext"]

    event = record(daemon, made)
    identity = event["userIdentity"]
    assert (identity["type"], identity["arn"], identity["invokedBy"]) == ("IAMUser", USER, S3)
    assert (event["sourceIPAddress"], event["userAgent"]) == (S3, S3)
    assert "accessKeyId" not in identity, "it is the service's"

    # Not by the same user without the service, nor through another.
    administrator = daemon.client()
    for kms in (carol, administrator, backup(on_behalf_of=USER)):
        denied(lambda: kms.decrypt(CiphertextBlob=made["CiphertextBlob"]))
        denied(lambda: kms.encrypt(KeyId=made["KeyId"], Plaintext=b"x"))
    # Nor of another account.
    other = s3(on_behalf_of=f"arn:aws:iam::{OTHER}:user/bob")
    denied(lambda: other.decrypt(CiphertextBlob=made["CiphertextBlob"]))
    theirs = other.encrypt(KeyId=ALIAS, Plaintext=b"x")
    assert theirs["KeyId"].split(":")[4] == OTHER


def test_a_managed_key_is_seen_and_not_changed(daemon, s3):
    s3(on_behalf_of=USER).encrypt(KeyId=ALIAS, Plaintext=b"x")
    kms = daemon.client()
    key = kms.describe_key(KeyId=ALIAS)["KeyMetadata"]
    assert (key["KeyManager"], key["AWSAccountId"]) == ("AWS", ACCOUNT)
    rotation = kms.get_key_rotation_status(KeyId=key["KeyId"])
    assert (rotation["KeyRotationEnabled"], rotation["RotationPeriodInDays"]) == (True, 365)
    assert "kms:ViaService" in kms.get_key_policy(KeyId=key["KeyId"])["Policy"]
    assert ALIAS in [alias["AliasName"] for alias in kms.list_aliases()["Aliases"]]
    named = {"KeyId": key["KeyId"]}
    for change in (
        lambda: kms.schedule_key_deletion(**named),
        lambda: kms.disable_key(**named),
        lambda: kms.disable_key_rotation(**named),
        lambda: kms.rotate_key_on_demand(**named),
        lambda: kms.put_key_policy(**named, Policy="{}"),
        lambda: kms.update_key_description(**named, Description="mine"),
        lambda: kms.tag_resource(**named, Tags=[{"TagKey": "a", "TagValue": "b"}]),
        lambda: kms.create_alias(AliasName="alias/mine", TargetKeyId=key["KeyId"]),
        lambda: kms.create_grant(**named, GranteePrincipal=USER, Operations=["Decrypt"]),
    ):
        denied(change)
    for change in (
        lambda: kms.create_alias(AliasName=ALIAS, TargetKeyId=key["KeyId"]),
        lambda: kms.delete_alias(AliasName=ALIAS),
        lambda: kms.update_alias(AliasName=ALIAS, TargetKeyId=kms.create_key()["KeyMetadata"]["KeyId"]),
    ):
        with pytest.raises(kms.exceptions.ClientError):
            change()
    assert kms.describe_key(KeyId=ALIAS)["KeyMetadata"] == key


def test_an_owned_key_is_its_services_alone(daemon, s3, backup):
    made = s3().encrypt(KeyId=ALIAS, Plaintext=b"the service's own")
    account = made["KeyId"].split(":")[4]
    assert account not in (ACCOUNT, OTHER)
    assert s3().decrypt(CiphertextBlob=made["CiphertextBlob"])["Plaintext"] == b"the service's own"
    for kms in (daemon.client(), s3(on_behalf_of=USER), backup()):
        denied(lambda: kms.decrypt(CiphertextBlob=made["CiphertextBlob"]))
        denied(lambda: kms.describe_key(KeyId=made["KeyId"]))
    denied(lambda: s3().schedule_key_deletion(KeyId=made["KeyId"]))
    listed = [key["KeyArn"] for key in daemon.client().list_keys()["Keys"]]
    assert made["KeyId"] not in listed


def test_a_key_policy_lets_a_service_call_for_a_resource(daemon, s3, backup):
    bucket = "arn:aws:s3:::orders"
    statements = [
        {"Sid": "Own", "Effect": "Allow", "Principal": {"AWS": ACCOUNT}, "Action": "kms:*", "Resource": "*"},
        {
            "Sid": "S3 for one bucket",
            "Effect": "Allow",
            "Principal": {"Service": S3},
            "Action": "kms:GenerateDataKey",
            "Resource": "*",
            "Condition": {"StringEquals": {"aws:SourceAccount": ACCOUNT}, "ArnEquals": {"aws:SourceArn": bucket}},
        },
    ]
    policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
    key = daemon.client().create_key(Policy=policy)["KeyMetadata"]["Arn"]
    ask = lambda kms: kms.generate_data_key(KeyId=key, KeySpec="AES_256")
    made = ask(s3(source_arn=bucket, source_account=ACCOUNT))
    event = record(daemon, made)
    assert event["userIdentity"] == {"type": "AWSService", "invokedBy": S3}
    assert event["recipientAccountId"] == ACCOUNT
    for kms in (
        s3(),
        s3(source_arn=bucket),
        s3(source_arn="arn:aws:s3:::others", source_account=ACCOUNT),
        backup(source_arn=bucket, source_account=ACCOUNT),
    ):
        denied(lambda: ask(kms))


def test_conditions_ask_through_which_service(daemon, s3, backup):
    via = {"StringEquals": {"kms:ViaService": "s3.us-east-1.amazonaws.com"}, "Bool": {"aws:ViaAWSService": "true"}}
    statements = [
        {"Sid": "Own", "Effect": "Allow", "Principal": {"AWS": ACCOUNT}, "Action": "kms:*", "Resource": "*"},
        {
            "Sid": "Through S3",
            "Effect": "Allow",
            "Principal": {"AWS": USER},
            "Action": "kms:Encrypt",
            "Resource": "*",
            "Condition": via,
        },
        {
            "Sid": "Grants for services only",
            "Effect": "Allow",
            "Principal": {"AWS": USER},
            "Action": "kms:CreateGrant",
            "Resource": "*",
            "Condition": {"Bool": {"kms:GrantIsForAWSResource": "true"}},
        },
    ]
    policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
    key = daemon.client().create_key(Policy=policy)["KeyMetadata"]["Arn"]
    for_carol = s3(on_behalf_of=USER)
    for_carol.encrypt(KeyId=key, Plaintext=b"x")
    denied(lambda: backup(on_behalf_of=USER).encrypt(KeyId=key, Plaintext=b"x"))
    for_carol.create_grant(KeyId=key, GranteePrincipal=USER, Operations=["Decrypt"])


def test_a_grant_may_be_for_one_resource(daemon, s3):
    kms = daemon.client()
    key = kms.create_key()["KeyMetadata"]["Arn"]
    volume = "arn:aws:s3:us-east-1:111122223333:volume/1"
    kms.create_grant(KeyId=key, GranteePrincipal=S3, Operations=["Encrypt"], Constraints={"SourceArn": volume})
    s3(source_arn=volume).encrypt(KeyId=key, Plaintext=b"x")
    denied(lambda: s3().encrypt(KeyId=key, Plaintext=b"x"))
    denied(lambda: s3(source_arn="arn:aws:s3:::other").encrypt(KeyId=key, Plaintext=b"x"))


def test_only_services_say_for_whom_they_call(daemon, s3):
    pretender = daemon.client()
    pretender.meta.events.register(
        "before-sign.kms", lambda request, **_: request.headers.add_header("strongroom-on-behalf-of", USER)
    )
    denied(pretender.list_keys)
    # Nobody, a service, and what is no ARN.
    denied(s3(on_behalf_of=f"arn:aws:iam::{ACCOUNT}:user/nobody").list_keys)
    for wrong in (S3, "carol"):
        with pytest.raises(Exception, match="ValidationException"):
            s3(on_behalf_of=wrong).list_keys()
    denied(s3().list_keys)
    # What was not signed says nothing.
    sneaky = client(daemon, "AKIASERVICESERVICES3", "s3")
    sneaky.meta.events.register(
        "before-send.kms", lambda request, **_: request.headers.update({"strongroom-on-behalf-of": USER})
    )
    with pytest.raises(sneaky.exceptions.ClientError, match="InvalidSignatureException"):
        sneaky.list_keys()
