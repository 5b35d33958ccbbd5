"""Files of trails that nobody may delete, and that belong to the owner of the bucket."""

import datetime
import hashlib
import hmac

import pytest

from daemons import Daemon, Moto, until
from test_delivery_over_aws import Unreliable

LOCKED = {"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 1}}}


@pytest.fixture(scope="module")
def moto():
    started = Moto()
    yield started
    started.stop()


def deliver(daemon, s3, bucket):
    """Waits for a log file and a digest: what S3 says of them."""
    trails = daemon.client("cloudtrail")
    trails.create_trail(Name=bucket, S3BucketName=bucket, EnableLogFileValidation=True)
    trails.start_logging(Name=bucket)
    trails.stop_logging(Name=bucket)

    def both():
        assert not trails.get_trail_status(Name=bucket).get("LatestDeliveryError")
        keys = [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket).get("Contents", [])]
        kinds = ("/CloudTrail/", "/CloudTrail-Digest/")
        found = [next((key for key in keys if kind in key), None) for kind in kinds]
        return all(found) and found

    return [s3.head_object(Bucket=bucket, Key=key) | {"Key": key} for key in until(both, "both are delivered")]


def days_from_now(time):
    return (time - datetime.datetime.now(datetime.UTC)).total_seconds() / 86400


def daemon(folder, moto, **environment):
    quick = {"STRONGROOM_TRAIL__DELIVERY_INTERVAL": "200ms", "STRONGROOM_TRAIL__DIGEST_INTERVAL": "1s"}
    return Daemon(folder, **quick, **moto.KEYS, **environment)


def test_a_bucket_that_locks_takes_files(tmp_path, moto):
    s3 = moto.client("s3")
    s3.create_bucket(Bucket="locking", ObjectLockEnabledForBucket=True)
    s3.put_object_lock_configuration(Bucket="locking", ObjectLockConfiguration=LOCKED)
    started = daemon(tmp_path, moto, AWS_ENDPOINT_URL_S3=moto.url)
    for head in deliver(started, s3, "locking"):
        assert head["ObjectLockMode"] == "COMPLIANCE"
        assert 0.9 < days_from_now(head["ObjectLockRetainUntilDate"]) <= 1
        with pytest.raises(s3.exceptions.ClientError, match="AccessDenied"):
            s3.delete_object(Bucket="locking", Key=head["Key"], VersionId=head["VersionId"])
    started.stop()


def test_locks_and_owners_are_said_and_signed(tmp_path, moto):
    s3, way = moto.client("s3"), Unreliable(moto.url)
    way.odds = 0
    s3.create_bucket(Bucket="ours", ObjectLockEnabledForBucket=True)
    started = daemon(
        tmp_path,
        moto,
        AWS_ENDPOINT_URL_S3=way.url,
        STRONGROOM_TRAIL__S3__ACL="bucket-owner-full-control",
        STRONGROOM_TRAIL__S3__OBJECT_LOCK_MODE="GOVERNANCE",
        STRONGROOM_TRAIL__S3__OBJECT_LOCK_DAYS="3",
    )
    for head in deliver(started, s3, "ours"):
        assert head["ObjectLockMode"] == "GOVERNANCE"
        assert 2.9 < days_from_now(head["ObjectLockRetainUntilDate"]) <= 3
    started.stop()
    assert way.puts
    for path, headers, body in way.puts:
        headers = {name.lower(): value for name, value in headers.items()}
        assert headers["x-amz-acl"] == "bucket-owner-full-control"
        assert headers["x-amz-content-sha256"] == hashlib.sha256(body).hexdigest()
        amazons = {name for name in headers if name.startswith("x-amz-")}
        is_signed(path, headers, amazons | {"host"}, moto.KEYS["AWS_SECRET_ACCESS_KEY"])
    way.shutdown()


def is_signed(path, headers, names, secret):
    """AWS Signature Version 4, over these headers at least."""
    fields = dict(part.split("=", 1) for part in headers["authorization"].split(" ", 1)[1].split(", "))
    signed = fields["SignedHeaders"].split(";")
    assert names <= set(signed), "S3 refuses what is not signed"
    lines = "".join(f"{name}:{headers[name]}\n" for name in signed)
    request = "\n".join(["PUT", path, "", lines, ";".join(signed), headers["x-amz-content-sha256"]])
    _, *scope = fields["Credential"].split("/")
    digest = hashlib.sha256(request.encode()).hexdigest()
    text = "\n".join(["AWS4-HMAC-SHA256", headers["x-amz-date"], "/".join(scope), digest])
    key = f"AWS4{secret}".encode()
    for part in [*scope, text]:
        key = hmac.digest(key, part.encode(), "sha256")
    assert key.hex() == fields["Signature"]
