"""Each event in exactly one file of a trail, whatever dies: kill -9, and an S3 that refuses, is full, answers late, or says it failed when it did not."""

import collections
import gzip
import http.client
import http.server
import json
import random
import threading
import time
from urllib.parse import urlsplit

import pytest

from daemons import Daemon, Moto, until

BUCKET = "exactly-once"
ROUNDS = 4
# The daemon's own limit for one request is longer.
LATE_S = 1.5


class Unreliable(http.server.ThreadingHTTPServer):
    """moto's S3 behind somebody who now and then refuses, is late, or loses the answer of what was done."""

    daemon_threads = True

    def __init__(self, url):
        super().__init__(("127.0.0.1", 0), Way)
        self.behind, self.faults, self.dice = urlsplit(url).netloc, collections.Counter(), random.Random(5)
        self.odds, self.puts = 0.6, []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Way(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def pass_on(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        server = self.server
        if self.command == "PUT":
            server.puts.append((self.path, dict(self.headers), body))
        fault = None
        if self.command == "PUT" and server.dice.random() < server.odds:
            fault = server.dice.choice(["refused", "full", "late", "lost"])
            server.faults[fault] += 1
        if fault == "refused":
            return self.say(503, b"<Error><Code>SlowDown</Code></Error>")
        if fault == "full":
            return self.say(507, b"<Error><Code>XMinioStorageFull</Code></Error>")
        if fault == "late":
            time.sleep(LATE_S)
        # The signature is for the name that the client knows.
        behind = http.client.HTTPConnection(server.behind, timeout=60)
        behind.request(self.command, self.path, body, dict(self.headers))
        answer = behind.getresponse()
        content = answer.read()
        if fault == "lost":
            return self.say(500, b"<Error><Code>InternalError</Code></Error>")
        return self.say(answer.status, content, answer.headers)

    def say(self, status, content, headers=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = pass_on

    def log_message(self, *_):
        pass


@pytest.fixture
def moto():
    started = Moto()
    yield started
    started.stop()


def test_each_event_is_in_one_file(tmp_path, moto):
    way = Unreliable(moto.url)
    s3 = moto.client("s3")
    s3.create_bucket(Bucket=BUCKET)
    start = lambda: Daemon(
        tmp_path,
        AWS_ENDPOINT_URL_S3=way.url,
        STRONGROOM_TRAIL__DELIVERY_INTERVAL="150ms",
        STRONGROOM_TRAIL__DIGEST_INTERVAL="1s",
        **moto.KEYS,
    )
    daemon = start()
    trails = daemon.client("cloudtrail")
    trails.create_trail(Name="audit", S3BucketName=BUCKET, EnableLogFileValidation=True)
    trails.start_logging(Name="audit")
    for number in range(ROUNDS):
        enough = sum(way.faults.values()) + 4
        kms = daemon.client()
        until(lambda: kms.generate_random(NumberOfBytes=8) and sum(way.faults.values()) >= enough, "faults")
        if number < ROUNDS - 1:
            daemon.process.kill()
            daemon.process.wait()
            daemon = start()
    assert set(way.faults) == {"refused", "full", "late", "lost"}, way.faults
    way.odds = 0
    trails = daemon.client("cloudtrail")
    trails.stop_logging(Name="audit")

    def logged():
        pages = trails.get_paginator("lookup_events").paginate()
        records = [json.loads(event["CloudTrailEvent"]) for page in pages for event in page["Events"]]
        names = [record["eventName"] for record in records]
        return {record["eventID"] for record in records[names.index("StopLogging") : names.index("StartLogging") + 1]}

    def delivered():
        counts = collections.Counter()
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
            for entry in page.get("Contents", []):
                if "/CloudTrail/" in entry["Key"]:
                    body = s3.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read()
                    counts.update(record["eventID"] for record in json.loads(gzip.decompress(body))["Records"])
        return counts

    expected = logged()
    until(lambda: set(delivered()) >= expected, "every event is delivered")
    counts = delivered()
    assert set(counts) == expected
    assert set(counts.values()) == {1}

    def verified():
        said = json.loads(daemon.strongroom("trail", "verify", "--name", "audit", "--s3-endpoint", moto.url, "-o", "json"))
        assert said["Findings"] == [], said
        return said["NotYetCovered"] == 0 and said

    assert until(verified, "digests cover every file")["Digests"] >= ROUNDS
    daemon.stop()
    way.shutdown()
