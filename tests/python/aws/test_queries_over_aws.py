"""Questions to a trail's files, as deploy/duckdb.sql asks them: the answers are LookupEvents'."""

import collections
import datetime
import json
from pathlib import Path

import duckdb
import pytest

from daemons import Daemon, until

ACCOUNT = "111122223333"
SQL = Path(__file__).resolve().parents[3] / "deploy/duckdb.sql"


def statements():
    """The view, and the questions by their comments."""
    view, *questions = [part.strip() for part in SQL.read_text().split("\n\n")][1:]
    named = dict(question.removeprefix("-- ").split("\n", 1) for question in questions)
    return view, named


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A day's calls, and a database over the files that tell of them."""
    folder = tmp_path_factory.mktemp("queries")
    since = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    daemon = Daemon(
        folder,
        "--emulator-credentials",
        STRONGROOM_TRAIL__FOLDER=str(folder / "buckets"),
        STRONGROOM_TRAIL__DELIVERY_INTERVAL="200ms",
    )
    trails, administrator = daemon.client("cloudtrail"), daemon.client()
    root = daemon.client(aws_access_key_id=ACCOUNT, aws_secret_access_key="test")
    stranger = daemon.client(aws_access_key_id="444455556666", aws_secret_access_key="test")
    trails.create_trail(Name="audit", S3BucketName="bucket", IsOrganizationTrail=True)
    trails.start_logging(Name="audit")
    key, other = (administrator.create_key()["KeyMetadata"]["Arn"] for _ in range(2))
    for _ in range(3):
        blob = root.encrypt(KeyId=key, Plaintext=b"a")["CiphertextBlob"]
        administrator.decrypt(CiphertextBlob=blob)
    administrator.encrypt(KeyId=other, Plaintext=b"a")
    for client, call in ((stranger, "encrypt"), (administrator, "encrypt")):
        if client is administrator:
            administrator.disable_key(KeyId=key)
        with pytest.raises(client.exceptions.ClientError):
            getattr(client, call)(KeyId=key, Plaintext=b"a")
    root.schedule_key_deletion(KeyId=other)
    trails.stop_logging(Name="audit")
    database = duckdb.connect()
    view, questions = statements()
    files = f"{folder}/buckets/bucket/AWSLogs/*/*/CloudTrail/*/*/*/*/*.json.gz"
    database.execute(f"SET VARIABLE files = '{files}'")
    database.execute(f"SET VARIABLE key = '{key}'")
    database.execute(f"SET VARIABLE since = TIMESTAMP '{since:%Y-%m-%d %H:%M:%S}'")
    database.execute("SET VARIABLE until = TIMESTAMP '2999-01-01 00:00:00'")

    def delivered():
        try:
            database.execute(view)
            return database.execute("SELECT count(*) FROM cloudtrail WHERE eventname = 'ScheduleKeyDeletion'").fetchone()[0]
        except duckdb.IOException:
            return 0  # There is no file yet.

    until(delivered, "the last event is in a file")
    yield daemon, database, questions, key, other
    daemon.stop()


def lookup(daemon, name, value):
    pages = daemon.client("cloudtrail").get_paginator("lookup_events").paginate(
        LookupAttributes=[{"AttributeKey": name, "AttributeValue": value}]
    )
    return [json.loads(event["CloudTrailEvent"]) for page in pages for event in page["Events"]]


def test_who_used_this_key(asked):
    daemon, database, questions, key, _ = asked
    answer = {tuple(row[:3]): row[3] for row in database.execute(questions["Who used this key?"]).fetchall()}
    said = collections.Counter(
        (record["userIdentity"].get("arn"), record["eventName"], record.get("errorCode"))
        for record in lookup(daemon, "ResourceName", key)
    )
    assert answer == said
    user = f"arn:aws:iam::{ACCOUNT}:user/administrator"
    assert answer[(f"arn:aws:iam::{ACCOUNT}:root", "Encrypt", None)] == 3
    assert answer[(user, "Decrypt", None)] == 3
    assert answer[(user, "Encrypt", "DisabledException")] == 1


def test_the_other_questions(asked):
    daemon, database, questions, _, other = asked
    denied = database.execute(questions["Who was denied, and how often?"]).fetchall()
    assert ("arn:aws:iam::444455556666:root", "Encrypt", 1) in denied
    [deletion] = database.execute(questions["What was done to keys that cannot be taken back?"]).fetchall()
    [record] = lookup(daemon, "EventName", "ScheduleKeyDeletion")
    assert deletion[1:] == (record["userIdentity"]["arn"], "ScheduleKeyDeletion", other)
    assert f"{deletion[0]:%Y-%m-%dT%H:%M:%SZ}" == record["eventTime"]
