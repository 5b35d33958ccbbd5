"""Rules: what matches reaches EventBridge, CloudWatch Logs, a webhook and a file, whatever else does not answer."""

import base64
import hashlib
import hmac
import http.server
import json
import os
import random
import signal
import subprocess
import threading

import pytest
from moto.events.models import EventPattern

from daemons import Daemon, Moto, until

SECRET = os.urandom(24)
GROUP, QUEUE = "audit", "from-the-bus"


class Hooks(http.server.ThreadingHTTPServer):
    """Webhooks by their paths: /good takes all, /busy refuses for a while, /bad always, /hanging never answers."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Hook)
        self.got, self.refusals, self.ends, self.hanging = [], 3, threading.Event(), 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def names(self, path):
        return [json.loads(body)["data"]["eventName"] for at, _, body in list(self.got) if at == path]

    def stop(self):
        self.ends.set()
        self.shutdown()


class Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        status = 204
        if self.path == "/hanging":
            self.server.hanging += 1
            self.server.ends.wait()
        elif self.path == "/bad":
            status = 400
        elif self.path == "/busy" and self.server.refusals:
            self.server.refusals -= 1
            status = 503
        else:
            self.server.got.append((self.path, dict(self.headers), body))
        self.send_response(status)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def moto():
    started = Moto()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def hooks():
    started = Hooks()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rules")


@pytest.fixture(scope="module")
def start(folder, moto):
    environment = moto.KEYS | {
        "AWS_ENDPOINT_URL_EVENTBRIDGE": moto.url,
        "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS": moto.url,
    }
    running = []

    def begin():
        running.append(Daemon(folder, **environment))
        return running[-1]

    yield begin
    if running[-1].process.poll() is None:
        running[-1].stop()


@pytest.fixture(scope="module")
def bus(moto):
    """A rule of moto's that puts what comes from the bus into a queue; reads that."""
    sqs, events = moto.client("sqs"), moto.client("events")
    queue = sqs.create_queue(QueueName=QUEUE)["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    events.put_rule(Name="all", EventPattern=json.dumps({"source": ["aws.kms"]}))
    events.put_targets(Rule="all", Targets=[{"Id": "queue", "Arn": arn}])
    got = []

    def read():
        for message in sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages", []):
            got.append(json.loads(message["Body"]))
            sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
        return got

    return read


def configuration(folder, hooks, names):
    secret = folder / "webhook-secret"
    secret.touch(mode=0o600)
    secret.write_text("whsec_" + base64.b64encode(SECRET).decode())
    pattern = json.dumps({"source": ["aws.kms"], "detail": {"eventName": names}})
    return f"""
[rules.watched]
event_pattern = '{pattern}'
targets = ["bus", "logs", "good", "busy", "bad", "hanging", "lines"]

[rules.twice]
event_pattern = '{{"detail": {{"eventName": [{{"prefix": "ScheduleKey"}}]}}}}'
targets = ["good"]

[rules.not-in-force]
event_pattern = '{{"source": [{{"prefix": ""}}]}}'
targets = ["lines"]
enabled = false

[targets.bus]
event_bus = {{}}

[targets.logs]
log_stream = {{ group = "{GROUP}", name = "kms" }}

[targets.good]
webhook = {{ url = "{hooks.url}/good", secret_file = "{secret}" }}

[targets.busy]
webhook = {{ url = "{hooks.url}/busy" }}

[targets.bad]
webhook = {{ url = "{hooks.url}/bad" }}
dead_letter_file = "{folder}/refused.jsonl"

[targets.hanging]
webhook = {{ url = "{hooks.url}/hanging" }}

[targets.lines]
file = "{folder}/lines.jsonl"
"""


def reload(daemon, outcome="reloaded"):
    seen = daemon.log.read_text().count(outcome)
    os.kill(daemon.process.pid, signal.SIGHUP)
    until(lambda: daemon.log.read_text().count(outcome) > seen, f"the configuration is {outcome}")


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_what_matches_reaches_every_target_and_nothing_else(folder, start, moto, hooks, bus):
    logs = moto.client("logs")
    logs.create_log_group(logGroupName=GROUP)
    daemon = start()
    kms, file = daemon.client(), daemon.dir / "strongroom.toml"
    first = file.read_text()

    # A reload brings them; one that names what is no pattern changes nothing.
    file.write_text(first + configuration(folder, hooks, ["ScheduleKeyDeletion"]))
    reload(daemon)
    file.write_text(first + configuration(folder, hooks, [{"like": "this"}]))
    reload(daemon, "operator like, which does not exist")

    key = kms.create_key()["KeyMetadata"]["KeyId"]
    kms.schedule_key_deletion(KeyId=key)
    name = ["ScheduleKeyDeletion"]
    until(lambda: hooks.names("/good") and hooks.names("/busy"), "the webhooks have it")
    until(lambda: lines(folder / "lines.jsonl"), "the file has it")
    until(bus, "the bus has it")
    stream = dict(logGroupName=GROUP, logStreamName="kms")
    until(lambda: logs.describe_log_streams(logGroupName=GROUP)["logStreams"], "there is a stream")
    messages = until(lambda: logs.get_log_events(**stream)["events"], "the stream has it")
    dead = until(lambda: lines(folder / "refused.jsonl"), "what is refused is written down")
    until(lambda: hooks.hanging, "one target hangs")

    [record] = [json.loads(message["message"]) for message in messages]
    [event], [line] = bus(), lines(folder / "lines.jsonl")
    assert record["eventName"] == "ScheduleKeyDeletion" and record["resources"][0]["ARN"].endswith(key)
    assert record == event["detail"] == line["detail"] == dead[0]["event"]["detail"]
    assert (event["detail-type"], event["source"]) == ("AWS API Call via CloudTrail", "aws.kms")
    assert (line["id"], line["account"]) == (record["eventID"], "111122223333")
    assert (dead[0]["target"], dead[0]["rules"]) == ("bad", ["watched"]) and "400" in dead[0]["reason"]
    assert hooks.names("/good") == hooks.names("/busy") == name

    [[_, headers, body]] = [got for got in hooks.got if got[0] == "/good"]
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    mac = base64.b64encode(hmac.new(SECRET, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{mac}"
    assert headers["content-type"] == "application/cloudevents+json"
    cloud = json.loads(body)
    assert (cloud["specversion"], cloud["id"]) == ("1.0", headers["webhook-id"])
    assert (cloud["type"], cloud["rules"]) == ("com.amazonaws.kms.ScheduleKeyDeletion", "twice,watched")
    assert cloud["data"] == record

    # Other rules by a reload, and places in the log that a kill does not take.
    file.write_text(first + configuration(folder, hooks, ["CancelKeyDeletion"]))
    reload(daemon)
    kms.cancel_key_deletion(KeyId=key)
    until(lambda: "CancelKeyDeletion" in hooks.names("/good"), "the new rule's event")
    file.write_text(first + configuration(folder, hooks, ["EnableKey"]).replace("/good", "/other"))
    daemon.process.kill()
    daemon.process.wait()
    daemon = start()
    daemon.client().enable_key(KeyId=key)
    until(lambda: "EnableKey" in hooks.names("/other"), "after a kill")
    assert bus()[-1]["detail"]["eventName"] in ("CancelKeyDeletion", "EnableKey")


def test_events_wait_for_a_target_that_is_away_and_for_a_daemon_that_died(tmp_path):
    hooks = Hooks()
    port = hooks.server_address[1]
    hooks.stop()
    hooks.server_close()
    daemon = Daemon(tmp_path)
    file = daemon.dir / "strongroom.toml"
    rule = """
[rules.creations]
event_pattern = '{"detail": {"eventName": ["CreateKey"]}}'
targets = ["away"]
[targets.away]
webhook = { url = "http://127.0.0.1:PORT/good" }
"""
    file.write_text(file.read_text() + rule.replace("PORT", str(port)))
    reload(daemon)
    made = [daemon.client().create_key()["KeyMetadata"]["KeyId"] for _ in range(3)]
    until(lambda: "it is tried again" in daemon.log.read_text(), "an attempt fails")
    daemon.process.kill()
    daemon.process.wait()
    daemon = Daemon(tmp_path)
    made.append(daemon.client().create_key()["KeyMetadata"]["KeyId"])

    class Same(Hooks):
        def __init__(self):
            http.server.ThreadingHTTPServer.__init__(self, ("127.0.0.1", port), Hook)
            self.got, self.refusals, self.ends, self.hanging = [], 0, threading.Event(), 0
            threading.Thread(target=self.serve_forever, daemon=True).start()

    back = Same()
    keys = lambda: {json.loads(body)["data"]["responseElements"]["keyMetadata"]["keyId"] for _, _, body in back.got}
    until(lambda: keys() == set(made), "every event came")
    assert "no findings" in daemon.strongroom("events", "verify").lower(), "their places are on the record"
    # A target that is no more has none.
    file.write_text(file.read_text().split("[rules.")[0])
    reload(daemon)
    until(lambda: '"StopLogReader"' in daemon.strongroom("events", "lookup", "-o", "json"), "it is forgotten")
    assert "no findings" in daemon.strongroom("events", "verify").lower()
    daemon.stop()
    back.stop()


# The pattern matcher against moto's, where the two can agree: to moto true is a number, and it has no
# objects in lists.


def leaf(dice):
    text = lambda: dice.choice(["", "a", "ab", "abc", "Abc", "b*c", "10.0.0.7", "Decrypt", "DECRYPT"])
    one = dice.choice(
        [
            text,
            lambda: dice.choice([3, 1.5, -2, 300, None]),
            lambda: {"prefix": text()},
            lambda: {"suffix": text()},
            lambda: {"prefix": {"equals-ignore-case": text()}},
            lambda: {"suffix": {"equals-ignore-case": text()}},
            lambda: {"equals-ignore-case": text()},
            lambda: {"wildcard": dice.choice(["*", "a*", "*c", "a*c", "*b*", "A*", "b\\*c", "*.0.*"])},
            lambda: {"exists": dice.choice([True, False])},
            lambda: {"anything-but": text()},
            lambda: {"anything-but": [text(), text()]},
            lambda: {"anything-but": [300, 7]},
            lambda: {"anything-but": {dice.choice(["prefix", "suffix", "equals-ignore-case"]): text() or "z"}},
            lambda: {"anything-but": {"wildcard": dice.choice(["a*", "*c"])}},
            lambda: {"numeric": dice.choice([["=", 300], [">", 0], ["<=", 1.5], [">", -3, "<", 1], [">=", 0, "<=", 1.5]])},
            lambda: {"cidr": dice.choice(["10.0.0.0/8", "10.0.0.0/30", "2001:db8::/32"])},
        ]
    )
    return one()


def fields(dice, depth):
    found = {}
    for name in dice.sample(["x", "y", "z"], dice.randint(1, 2)):
        inner = depth and dice.random() < 0.3
        found[name] = fields(dice, depth - 1) if inner else [leaf(dice) for _ in range(dice.randint(1, 3))]
    if depth and dice.random() < 0.2:
        found = {"$or": [{"v": [leaf(dice)]}, {"w": [leaf(dice)]}], **found}
    return found


def event(dice, depth=2):
    values = ["", "a", "ab", "abc", "Abc", "b*c", "10.0.0.7", "Decrypt", 3, 1.5, -2, 300, None]
    made = {}
    for name in dice.sample(["v", "w", "x", "y", "z"], dice.randint(1, 5)):
        roll = dice.random()
        if depth and roll < 0.25:
            made[name] = event(dice, depth - 1)
        elif roll < 0.4:
            made[name] = dice.sample(values, 2)
        else:
            made[name] = dice.choice(values)
    return made


def test_patterns_match_what_another_implementation_matches():
    seed = random.randrange(2**32)
    dice = random.Random(seed)
    compared = matched = 0
    for _ in range(60):
        pattern = {"detail": fields(dice, 2)}
        events = [{"n": number, "detail": event(dice)} for number in range(60)]
        other = EventPattern.load(json.dumps(pattern))
        expected = [each["n"] for each in events if other.matches_event(each)]
        said = subprocess.run(
            [os.environ["TEST_STRONGROOM"], "events", "match", "--event-pattern", json.dumps(pattern)],
            input="".join(json.dumps(each) + "\n" for each in events),
            capture_output=True,
            text=True,
        )
        assert said.returncode == 0, (seed, pattern, said.stderr)
        found = [json.loads(line)["n"] for line in said.stdout.splitlines()]
        differing = set(found) ^ set(expected)
        assert not differing, (seed, pattern, [each for each in events if each["n"] in differing][:3])
        compared, matched = compared + len(events), matched + len(found)
    assert compared // 50 < matched < compared, (seed, matched)


def test_cloudwatch_filters_are_tried_likewise():
    records = [{"eventName": "Decrypt", "errorCode": "AccessDenied"}, {"eventName": "Decrypt"}, {"eventName": "Sign"}]
    said = subprocess.run(
        [os.environ["TEST_STRONGROOM"], "events", "match"]
        + ["--filter-pattern", '{ $.eventName = "De*" && $.errorCode NOT EXISTS }'],
        input="".join(json.dumps(record) + "\n" for record in records),
        capture_output=True,
        text=True,
    )
    assert (said.returncode, [json.loads(line) for line in said.stdout.splitlines()]) == (0, [records[1]])
