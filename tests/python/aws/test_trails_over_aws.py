"""Trails into S3, checked by AWS's own `aws cloudtrail validate-logs`: several shortened hours, and what was done to them."""

import gzip
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from botocore import xform_name

from daemons import Daemon, Moto, until
from shapes import Checked
from test_model import METHODS

ACCOUNT, OTHER = "111122223333", "444455556666"
COMMAND_TIMEOUT_S = 120
# Digests of each key.
HOURS = 3


@pytest.fixture(scope="module")
def moto():
    started = Moto()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory, moto):
    """A daemon that finds S3 by AWS's standard environment alone."""
    started = Daemon(
        tmp_path_factory.mktemp("trails"),
        "--emulator-credentials",
        AWS_ENDPOINT_URL_S3=moto.url,
        STRONGROOM_TRAIL__DELIVERY_INTERVAL="300ms",
        STRONGROOM_TRAIL__DIGEST_INTERVAL="2s",
        **moto.KEYS,
    )
    yield started
    started.stop()


class Trail:
    """A trail that has logged for a while, with another digest key in between, and stopped."""

    def __init__(self, daemon, moto, name, **members):
        self.daemon, self.moto, self.bucket, self.s3 = daemon, moto, f"bucket-of-{name}", moto.client("s3")
        self.s3.create_bucket(Bucket=self.bucket)
        trails = daemon.client("cloudtrail")
        self.start = time.time()
        self.arn = trails.create_trail(
            Name=name, S3BucketName=self.bucket, EnableLogFileValidation=True, **members
        )["TrailARN"]
        trails.start_logging(Name=name)
        for _ in range(2):
            enough = len(self.keys("CloudTrail-Digest")) + HOURS
            until(lambda: self.work() and len(self.keys("CloudTrail-Digest")) >= enough, "digests")
            daemon.strongroom("trail", "rotate-digest-key")
        trails.stop_logging(Name=name)

    def work(self):
        """Calls of two accounts."""
        for account in ACCOUNT, OTHER:
            kms = self.daemon.client(aws_access_key_id=account, aws_secret_access_key="test")
            kms.generate_random(NumberOfBytes=8)
        return True

    def keys(self, kind, account=ACCOUNT):
        """The objects of an account, in the order of their times."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return sorted(key for key in keys if f"/{account}/{kind}/" in key)

    def read(self, key):
        body = self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return json.loads(gzip.decompress(body))

    def validate(self, *arguments):
        """What `aws cloudtrail validate-logs` says: its exit code and its text."""
        iso = lambda seconds: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        done = subprocess.run(
            [str(Path(sys.executable).with_name("aws")), "cloudtrail", "validate-logs", "--verbose"]
            + ["--trail-arn", self.arn, "--start-time", iso(self.start - 60), *arguments],
            env=inherited | self.daemon.env | {"AWS_ENDPOINT_URL_S3": self.moto.url},
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
        )
        return done.returncode, done.stdout + done.stderr

    def is_valid(self, account=ACCOUNT, *arguments):
        """Once the last files are delivered, all that is there is found, and is as it was delivered."""
        said = ""

        def valid():
            nonlocal said
            counts = [len(self.keys(kind, account)) for kind in ("CloudTrail-Digest", "CloudTrail")]
            code, said = self.validate(*arguments)
            [digests, logs] = counts
            whole = f"{digests}/{digests} digest files valid" in said and f"{logs}/{logs} log files valid" in said
            return digests and logs and whole and code == 0

        try:
            until(valid)
        except AssertionError:
            raise AssertionError(said) from None

    def finds(self, key, why):
        code, said = self.validate()
        assert code == 1, said
        assert re.search(rf"{re.escape(key)}\tINVALID: {why}", said), said

    def tamper(self, key, change):
        """Puts a changed object in the place of one, or none, and the old one back after the check."""
        old = self.s3.get_object(Bucket=self.bucket, Key=key)
        body = old["Body"].read()
        put = lambda body: self.s3.put_object(
            Bucket=self.bucket, Key=key, Body=body, Metadata=old["Metadata"], ContentEncoding="gzip"
        )
        if change is None:
            self.s3.delete_object(Bucket=self.bucket, Key=key)
        else:
            text = gzip.decompress(body)
            assert change[0] in text
            put(gzip.compress(text.replace(*change)))
        return lambda: put(body)


@pytest.fixture(scope="module")
def trail(daemon, moto):
    return Trail(daemon, moto, "audit", S3KeyPrefix="some/prefix")


def test_the_aws_command_finds_every_file_valid(trail):
    fingerprints = {trail.read(key)["digestPublicKeyFingerprint"] for key in trail.keys("CloudTrail-Digest")}
    assert len(fingerprints) >= 2, "the key changed in between"
    trail.is_valid()


CHANGES = [
    ("CloudTrail", (b"us-east-1", b"us-east-2"), "hash value doesn't match"),
    ("CloudTrail", None, "not found"),
    ("CloudTrail-Digest", (b"hashValue", b"hashvalue"), "signature verification failed"),
    ("CloudTrail-Digest", None, "not found"),
]


@pytest.mark.parametrize("kind, change, why", CHANGES, ids=lambda value: str(value)[:24])
def test_the_aws_command_finds_what_was_changed_or_removed(trail, kind, change, why):
    keys = [key for key in trail.keys(kind) if change is None or change[0] in json.dumps(trail.read(key)).encode()]
    key = keys[len(keys) // 2]
    restore = trail.tamper(key, change)
    trail.finds(key, why)
    restore()
    trail.is_valid()


TABLE = {"Name": "table"}
ARN = f"arn:aws:cloudtrail:us-east-1:{ACCOUNT}:trail/table"
# In an order in which each succeeds, with a member that its answer has.
CALLS = [
    ("CreateTrail", {**TABLE, "S3BucketName": "table", "TagsList": [{"Key": "a", "Value": "b"}]}, "TrailARN"),
    ("DescribeTrails", {}, "trailList"),
    ("GetTrail", TABLE, "Trail"),
    ("ListTrails", {}, "Trails"),
    ("UpdateTrail", {**TABLE, "S3KeyPrefix": "prefix"}, "S3KeyPrefix"),
    ("StartLogging", TABLE, None),
    ("GetTrailStatus", TABLE, "IsLogging"),
    (
        "PutEventSelectors",
        {"TrailName": "table", "EventSelectors": [{"ReadWriteType": "WriteOnly", "IncludeManagementEvents": True}]},
        "EventSelectors",
    ),
    ("GetEventSelectors", {"TrailName": "table"}, "EventSelectors"),
    (
        "PutInsightSelectors",
        {"TrailName": "table", "InsightSelectors": [{"InsightType": "ApiCallRateInsight"}]},
        "InsightSelectors",
    ),
    ("GetInsightSelectors", {"TrailName": "table"}, "InsightSelectors"),
    (
        "ListInsightsMetricData",
        {"EventSource": "kms.amazonaws.com", "EventName": "CreateKey", "InsightType": "ApiCallRateInsight"},
        "Timestamps",
    ),
    ("AddTags", {"ResourceId": ARN, "TagsList": [{"Key": "c", "Value": "d"}]}, None),
    ("ListTags", {"ResourceIdList": [ARN]}, "ResourceTagList"),
    ("RemoveTags", {"ResourceId": ARN, "TagsList": [{"Key": "a"}]}, None),
    ("ListPublicKeys", {}, "PublicKeyList"),
    ("LookupEvents", {"MaxResults": 5}, "Events"),
    ("StopLogging", TABLE, None),
    ("DeleteTrail", TABLE, None),
]


def test_each_operation_answers_as_its_model_says(daemon, moto):
    assert {name for name, _, _ in CALLS} == {method.name for service, method in METHODS if service == "cloudtrail"}
    moto.client("s3").create_bucket(Bucket="table")
    trails = daemon.client("cloudtrail")
    Checked(trails)
    for operation, members, answered in CALLS:
        answer = getattr(trails, xform_name(operation))(**members)
        assert answered is None or answer[answered] not in ("", None), operation
    assert not trails.describe_trails(trailNameList=["table"])["trailList"]


def test_an_organization_trail_has_all_accounts_and_is_valid_for_each(daemon, moto):
    organization = daemon.client("organizations").describe_organization()["Organization"]
    assert (organization["MasterAccountId"], organization["FeatureSet"]) == (ACCOUNT, "ALL")
    trail = Trail(daemon, moto, "organization", IsOrganizationTrail=True, IsMultiRegionTrail=True)
    for account in ACCOUNT, OTHER:
        assert all(f"AWSLogs/{organization['Id']}/{account}/" in key for key in trail.keys("CloudTrail", account))
        trail.is_valid(account, "--account-id", account)
    records = [record for key in trail.keys("CloudTrail", OTHER) for record in trail.read(key)["Records"]]
    assert {record["recipientAccountId"] for record in records} == {OTHER}
