"""Multi-Region keys, by boto3 clients of two Regions."""

import json
import time

import pytest

WEST = "eu-west-1"
ALIAS = "alias/regions"


@pytest.fixture
def west(client):
    """KMS of another Region by boto3."""
    return client("kms", region_name=WEST)


def test_a_region_is_picked_by_the_signature(aws, west):
    home = aws.create_key()["KeyMetadata"]
    away = west.create_key()["KeyMetadata"]
    assert away["Arn"].split(":")[3] == WEST
    with pytest.raises(aws.exceptions.NotFoundException):
        aws.describe_key(KeyId=away["KeyId"])
    with pytest.raises(west.exceptions.NotFoundException):
        west.describe_key(KeyId=home["KeyId"])


def test_a_trail_of_all_regions_is_seen_in_each_and_changed_at_home(client, trail):
    away, name = client("cloudtrail", region_name=WEST), "of-all-regions"
    arn = trail.create_trail(Name=name, S3BucketName="anybodys", IsMultiRegionTrail=True)["TrailARN"]
    names = lambda **members: [entry["Name"] for entry in away.describe_trails(**members)["trailList"]]
    assert name in names() and name in names(trailNameList=[arn]) and name not in names(includeShadowTrails=False)
    assert arn in [entry["TrailARN"] for entry in away.list_trails()["Trails"]]
    assert away.get_trail(Name=arn)["Trail"]["HomeRegion"] == "us-east-1"
    selectors = {"TrailName": arn, "EventSelectors": [{"ReadWriteType": "All"}]}
    for change, members in [
        (away.update_trail, {"Name": arn, "S3KeyPrefix": "elsewhere"}),
        (away.start_logging, {"Name": arn}),
        (away.stop_logging, {"Name": arn}),
        (away.put_event_selectors, selectors),
        (away.put_insight_selectors, {"TrailName": arn, "InsightSelectors": []}),
        (away.delete_trail, {"Name": arn}),
    ]:
        with pytest.raises(away.exceptions.InvalidHomeRegionException):
            change(**members)
    trail.delete_trail(Name=arn)
    assert name not in names()


def test_a_key_in_two_regions(client, aws, west, trail):
    key = aws.create_key(MultiRegion=True)["KeyMetadata"]
    assert key["MultiRegion"] and key["KeyId"].startswith("mrk-")
    assert key["MultiRegionConfiguration"] == {
        "MultiRegionKeyType": "PRIMARY",
        "PrimaryKey": {"Arn": key["Arn"], "Region": "us-east-1"},
        "ReplicaKeys": [],
    }
    answer = aws.replicate_key(KeyId=key["KeyId"], ReplicaRegion=WEST)
    replica = answer["ReplicaKeyMetadata"]
    assert (replica["KeyState"], replica["Enabled"], replica["Description"]) == ("Creating", False, "")
    assert json.loads(answer["ReplicaPolicy"])["Statement"]
    deadline = time.monotonic() + 60
    while west.describe_key(KeyId=key["KeyId"])["KeyMetadata"]["KeyState"] != "Enabled":
        assert time.monotonic() < deadline
    west.create_alias(AliasName=ALIAS, TargetKeyId=key["KeyId"])

    context = {"team": "red"}
    blob = aws.encrypt(KeyId=key["Arn"], Plaintext=b"secret", EncryptionContext=context)["CiphertextBlob"]
    plain = west.decrypt(CiphertextBlob=blob, EncryptionContext=context, KeyId=ALIAS)
    assert (plain["Plaintext"], plain["KeyId"]) == (b"secret", replica["Arn"])
    data_key = west.generate_data_key(KeyId=ALIAS, KeySpec="AES_256")
    assert aws.decrypt(CiphertextBlob=data_key["CiphertextBlob"])["Plaintext"] == data_key["Plaintext"]

    aws.update_primary_region(KeyId=key["KeyId"], PrimaryRegion=WEST)
    there = west.describe_key(KeyId=ALIAS)["KeyMetadata"]["MultiRegionConfiguration"]
    assert there["MultiRegionKeyType"] == "PRIMARY"
    assert there["ReplicaKeys"] == [{"Arn": key["Arn"], "Region": "us-east-1"}]
    with pytest.raises(aws.exceptions.UnsupportedOperationException):
        aws.enable_key_rotation(KeyId=key["KeyId"])
    west.enable_key_rotation(KeyId=key["KeyId"], RotationPeriodInDays=100)
    assert aws.get_key_rotation_status(KeyId=key["KeyId"])["RotationPeriodInDays"] == 100
    waits = west.schedule_key_deletion(KeyId=key["KeyId"], PendingWindowInDays=7)
    assert waits["KeyState"] == "PendingReplicaDeletion" and "DeletionDate" not in waits

    # Each Region's history has what was done there.
    def names(reader, arn):
        found = reader.lookup_events(LookupAttributes=[{"AttributeKey": "ResourceName", "AttributeValue": arn}])
        records = [json.loads(event["CloudTrailEvent"]) for event in found["Events"]]
        assert {record["awsRegion"] for record in records} == {arn.split(":")[3]}
        return [record["eventName"] for record in records]

    assert {"CreateKey", "ReplicateKey", "UpdatePrimaryRegion"} <= set(names(trail, key["Arn"]))
    away = names(client("cloudtrail", region_name=WEST), replica["Arn"])
    assert {"CreateKey", "UpdatePrimaryRegion", "Decrypt", "SynchronizeMultiRegionKey"} <= set(away)


def test_conditions_see_the_regions(aws):
    statement = {"Sid": "Own", "Effect": "Allow", "Principal": {"AWS": "111122223333"}, "Action": "kms:*", "Resource": "*"}
    limit = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "kms:ReplicateKey",
        "Resource": "*",
        "Condition": {"StringNotEquals": {"kms:ReplicaRegion": "ap-southeast-2"}},
    }
    promote = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "kms:UpdatePrimaryRegion",
        "Resource": "*",
        "Condition": {"StringEquals": {"kms:PrimaryRegion": "ap-southeast-2"}},
    }
    policy = lambda *more: json.dumps({"Version": "2012-10-17", "Statement": [statement, *more]})
    key = aws.create_key(MultiRegion=True, Policy=policy(limit, promote))["KeyMetadata"]["KeyId"]
    denied = lambda: pytest.raises(aws.exceptions.ClientError, match="AccessDeniedException")
    with denied():
        aws.replicate_key(KeyId=key, ReplicaRegion=WEST)
    aws.replicate_key(KeyId=key, ReplicaRegion="ap-southeast-2")
    with denied():
        aws.update_primary_region(KeyId=key, PrimaryRegion="ap-southeast-2")


def test_a_replicas_own_policy_decides_for_it(client, aws):
    south = client("kms", region_name="ap-southeast-2")
    deny = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "kms:Encrypt",
        "Resource": "*",
        "Condition": {"StringEquals": {"kms:MultiRegionKeyType": "REPLICA"}, "Bool": {"kms:MultiRegion": "true"}},
    }
    own = {"Effect": "Allow", "Principal": {"AWS": "111122223333"}, "Action": "kms:*", "Resource": "*"}
    key = aws.create_key(MultiRegion=True)["KeyMetadata"]["KeyId"]
    policy = json.dumps({"Version": "2012-10-17", "Statement": [own, deny]})
    aws.replicate_key(KeyId=key, ReplicaRegion="ap-southeast-2", Policy=policy)
    aws.encrypt(KeyId=key, Plaintext=b"x")
    with pytest.raises(south.exceptions.ClientError, match="AccessDeniedException"):
        south.encrypt(KeyId=key, Plaintext=b"x")
    # Promoted it is no replica any more: the condition sees it.
    aws.update_primary_region(KeyId=key, PrimaryRegion="ap-southeast-2")
    south.encrypt(KeyId=key, Plaintext=b"x")
