"""Access keys that are sealed in the store: in force at once and across kill -9, their secrets nowhere in the clear."""

import json

import pytest

from daemons import Daemon

UNRECOGNIZED = "UnrecognizedClientException"
LIMIT = 2


@pytest.fixture
def started(tmp_path):
    """Starts the daemon of one folder, and again."""
    running = []

    def start():
        running.append(Daemon(tmp_path))
        return running[-1]

    yield start
    running[-1].stop()


def iam(daemon, operation, *arguments):
    """What an operator's command answers."""
    text = daemon.strongroom("iam", operation, *arguments, "-o", "json")
    return json.loads(text) if text.strip() else {}


def listed(daemon):
    found = iam(daemon, "list-access-keys", "--user-name", "administrator")["AccessKeyMetadata"]
    return {key["AccessKeyId"]: key["Status"] for key in found}


def client(daemon, key, service="kms"):
    secret = {"aws_secret_access_key": key["SecretAccessKey"]}
    return daemon.client(service, aws_access_key_id=key["AccessKeyId"], **secret)


def refused(kms, why=UNRECOGNIZED):
    with pytest.raises(kms.exceptions.ClientError, match=why):
        kms.list_keys()


def test_an_access_key_is_in_force_until_it_is_deleted(started):
    daemon = started()
    made = iam(daemon, "create-access-key")["AccessKey"]
    assert (made["UserName"], made["Status"]) == ("administrator", "Active")
    assert len(made["AccessKeyId"]) == 20 and len(made["SecretAccessKey"]) == 40
    kms = client(daemon, made)
    key = kms.create_key()["KeyMetadata"]["KeyId"]
    wrong = {**made, "SecretAccessKey": "x" * 40}
    refused(client(daemon, wrong), "InvalidSignatureException")

    other = iam(daemon, "create-access-key", "--user-name", "administrator")["AccessKey"]
    assert listed(daemon) == {made["AccessKeyId"]: "Active", other["AccessKeyId"]: "Active"}
    with pytest.raises(AssertionError, match=f"LimitExceededException.*AccessKeysPerUser: {LIMIT}"):
        iam(daemon, "create-access-key")
    with pytest.raises(AssertionError, match="NoSuchEntityException.*The user with name nobody cannot be found"):
        iam(daemon, "create-access-key", "--user-name", "nobody")
    with pytest.raises(AssertionError, match="NoSuchEntityException.*The Access Key with id"):
        iam(daemon, "delete-access-key", "--access-key-id", "AKIAIOSFODNN7EXAMPLE")

    named = ("--access-key-id", made["AccessKeyId"])
    iam(daemon, "update-access-key", *named, "--status", "Inactive")
    refused(kms)
    assert listed(daemon)[made["AccessKeyId"]] == "Inactive"
    iam(daemon, "update-access-key", *named, "--status", "Active")
    assert kms.describe_key(KeyId=key)["KeyMetadata"]["KeyId"] == key
    iam(daemon, "delete-access-key", "--access-key-id", other["AccessKeyId"])
    refused(client(daemon, other))

    trail = client(daemon, made, "cloudtrail")
    by_name = [{"AttributeKey": "EventName", "AttributeValue": "CreateAccessKey"}]
    records = [json.loads(event["CloudTrailEvent"]) for event in trail.lookup_events(LookupAttributes=by_name)["Events"]]
    [first] = [record for record in records if made["AccessKeyId"] in json.dumps(record)]
    assert (first["eventSource"], first["readOnly"]) == ("iam.amazonaws.com", False)
    answer = first["responseElements"]["accessKey"]
    assert set(answer) == {"userName", "accessKeyId", "status", "createDate"}
    by_key = [{"AttributeKey": "AccessKeyId", "AttributeValue": made["AccessKeyId"]}]
    used = [event["EventName"] for event in trail.lookup_events(LookupAttributes=by_key)["Events"]]
    assert "CreateKey" in used

    daemon.process.kill()
    daemon.process.wait()
    again = started()
    assert listed(again) == {made["AccessKeyId"]: "Active"}
    kms = client(again, made)
    assert kms.describe_key(KeyId=key)["KeyMetadata"]["KeyId"] == key
    refused(client(again, other))
    written = [path for path in again.dir.rglob("*") if path.is_file()] + [again.log]
    assert again.dir / "data/strongroom.sqlite" in written
    for secret in (made["SecretAccessKey"], other["SecretAccessKey"]):
        assert not [path for path in written if secret.encode() in path.read_bytes()]
    iam(again, "delete-access-key", *named)
    refused(kms)
    assert listed(again) == {}
    assert again.strongroom("events", "verify")
