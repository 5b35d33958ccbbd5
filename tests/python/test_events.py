"""The event log against what the client did: run last, over all calls of the session."""

import base64
import contextlib
import json
from collections import Counter

import pytest

from client import CLOUDTRAIL, HSM, KMS, SECRET_BYTES_MIN, Service, options_pb2, snake
from test_model import MODELS

NEEDLE_CHARS = 24
# CloudTrail's facts of KMS: whatever changes a key or an alias is no read.
CHANGES = {
    "CreateKey",
    "UpdateKeyDescription",
    "EnableKey",
    "DisableKey",
    "ScheduleKeyDeletion",
    "CancelKeyDeletion",
    "ImportKeyMaterial",
    "DeleteImportedKeyMaterial",
    "EnableKeyRotation",
    "DisableKeyRotation",
    "RotateKeyOnDemand",
    "ReplicateKey",
    "UpdatePrimaryRegion",
    "CreateGrant",
    "RetireGrant",
    "RevokeGrant",
    "PutKeyPolicy",
    "TagResource",
    "UntagResource",
    "CreateAlias",
    "UpdateAlias",
    "DeleteAlias",
    "CreateCustomKeyStore",
    "ConnectCustomKeyStore",
    "DisconnectCustomKeyStore",
    "UpdateCustomKeyStore",
    "DeleteCustomKeyStore",
    "CreateCluster",
    "InitializeCluster",
}
# What any AWS service answers, and what this one does not serve or cannot read,
# under whichever operation.
COMMON = {
    "AccessDeniedException",
    "ThrottlingException",
    "ValidationException",
    "InvalidArnException",
    "InvalidGrantTokenException",
    "UnsupportedOperationException",
}
HOME = "us-east-1"
FIELDS = {
    "eventVersion",
    "userIdentity",
    "eventTime",
    "eventSource",
    "eventName",
    "awsRegion",
    "sourceIPAddress",
    "userAgent",
    "requestParameters",
    "responseElements",
    "requestID",
    "eventID",
    "readOnly",
    "eventType",
    "managementEvent",
    "recipientAccountId",
    "eventCategory",
    "tlsDetails",
}
OPTIONAL = {"errorCode", "errorMessage", "additionalEventData", "resources"}


@pytest.fixture(scope="module")
def calls(kms, samples):
    """All calls; a few more where this file runs alone."""
    for operation in ("Encrypt", "Decrypt", "GenerateDataKey", "Sign", "GenerateMac", "DeriveSharedSecret"):
        getattr(kms, snake(operation))(**samples[operation])
    return list(Service.calls)


@pytest.fixture(scope="module")
def records(events, calls):
    """All records of calls, by requestID."""
    found = events.until(call.request_id for call in calls)
    # What a call did in another Region is on the record there, and what the daemon calls itself is nobody's.
    own = lambda record: record["userIdentity"].get("invokedBy") != "AWS Internal"
    found = [record for record in found if record["awsRegion"] == HOME and own(record)]
    repeated = [
        name for name, count in Counter(r.get("requestID") for r in found).items() if name and count > 1
    ]
    assert not repeated, "more than one event for a call"
    return {record["requestID"]: record for record in found if "requestID" in record}


def test_each_call_has_exactly_one_event(calls, records):
    ids = [call.request_id for call in calls]
    assert None not in ids, [call.operation for call in calls if call.request_id is None][:10]
    assert len(set(ids)) == len(ids)
    assert [call for call in calls if call.request_id not in records] == [], "a call without its event"
    assert set(records) == set(ids), "an event of a call that nobody made"
    assert len({record["eventID"] for record in records.values()}) == len(records)


def test_an_event_tells_what_was_called_and_how_it_ended(calls, records):
    sources = {
        KMS.full_name: "kms.amazonaws.com",
        CLOUDTRAIL.full_name: "cloudtrail.amazonaws.com",
        HSM.full_name: "hsm.strongroom",
    }
    for call in calls:
        record = records[call.request_id]
        assert (record["eventName"], record["eventSource"]) == (call.operation, sources[call.service]), call
        expected = "AccessDenied" if call.error == "AccessDeniedException" else call.error
        assert record.get("errorCode") == expected, call


def test_a_record_is_cloudtrails(records):
    for record in records.values():
        assert FIELDS <= set(record) <= FIELDS | OPTIONAL, record
        assert record["eventVersion"] == "1.11"
        assert (record["eventType"], record["eventCategory"]) == ("AwsApiCall", "Management")
        assert record["managementEvent"] is True
        assert record["readOnly"] is (record["eventName"] not in CHANGES), record
        assert record["userIdentity"]["accountId"] == record["recipientAccountId"]
        assert record["userIdentity"]["type"] == "IAMUser"
        assert record["tlsDetails"]["tlsVersion"] == "TLSv1.3"
        assert record["sourceIPAddress"] == "127.0.0.1"
        assert "grpc-python" in record["userAgent"]
        if record["readOnly"] or "errorCode" in record:
            assert record["responseElements"] is None, record


def test_an_event_has_the_request(calls, records):
    """Every member that is no secret, under CloudTrail's name and as it was sent."""
    for call in calls:
        parameters = records[call.request_id]["requestParameters"] or {}
        for field, value in call.request.ListFields() if call.request else ():
            name = camel(field.name)
            if field.type == field.TYPE_BYTES or field.GetOptions().Extensions[options_pb2.secret]:
                assert name not in parameters, call
            elif field.type == field.TYPE_STRING and not field.is_repeated:
                assert parameters[name] == value, call
            elif field.name.endswith("encryption_context"):
                assert parameters[name] == dict(value), call


def camel(name):
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def test_an_event_names_the_key(kms, keys, records, events):
    key = keys("SYMMETRIC_DEFAULT")
    kms.encrypt(key_id=key.id, plaintext=b"x")
    request_id = Service.calls[-1].request_id
    record = next(r for r in events.until([request_id]) if r.get("requestID") == request_id)
    account = key.metadata.aws_account_id
    assert record["resources"] == [{"accountId": account, "type": "AWS::KMS::Key", "ARN": key.arn}]
    assert record["additionalEventData"]["keyMaterialId"] == key.metadata.current_key_material_id


def test_a_change_has_its_answer(calls, records):
    for call in calls:
        record = records[call.request_id]
        if call.operation in CHANGES and call.error is None:
            # What is done to a key store has no key to tell of, and an empty answer.
            empty = call.operation in ("ConnectCustomKeyStore", "DisconnectCustomKeyStore")
            assert bool(record["responseElements"]) is not empty, call
        if call.operation == "CreateKey" and call.error is None:
            metadata = record["responseElements"]["keyMetadata"]
            assert record["resources"][0]["ARN"] == metadata["arn"]
            assert metadata["aWSAccountId"] == record["recipientAccountId"]


def test_an_operation_raises_what_its_model_declares(calls):
    undeclared = set()
    for call in calls:
        if call.service != KMS.full_name or call.error is None:
            continue
        declared = {shape.name for shape in MODELS["kms"].operation_model(call.operation).error_shapes}
        if call.error not in declared | COMMON:
            undeclared.add((call.operation, call.error))
    assert not undeclared, "\n".join(map(str, sorted(undeclared)))


def test_no_event_has_a_secret(events, records):
    """No plaintext, message, key, ciphertext or grant token, in any of the forms that a leak takes."""
    with events.changed:
        everything = "\n".join(sorted(set(leaves(events.records))))
    # Zeros and the like stand in events for other reasons.
    telling = lambda secret: len(secret) >= SECRET_BYTES_MIN and len(set(secret)) > 2
    secrets = [secret for secret in Service.secrets if telling(secret)]
    assert len(secrets) > 10
    found = [secret for secret in secrets for form in forms(secret) if form[:NEEDLE_CHARS] in everything]
    assert not found, found[:5]


def leaves(value):
    """Every text in a record: names and values."""
    if isinstance(value, dict):
        yield from value
        value = value.values()
    elif not isinstance(value, list):
        yield value if isinstance(value, str) else json.dumps(value)
        return
    for each in value:
        yield from leaves(each)


def forms(secret):
    yield secret.hex()
    yield secret.hex().upper()
    yield base64.b64encode(secret).decode().rstrip("=")
    yield base64.urlsafe_b64encode(secret).decode().rstrip("=")
    yield str(list(secret))
    with contextlib.suppress(UnicodeDecodeError):
        yield secret.decode()


def test_the_stream_filters_and_goes_on_where_it_was(kms, keys):
    """A client that reconnects misses nothing and sees nothing twice."""
    key = keys("SYMMETRIC_DEFAULT")
    trail = Service(CLOUDTRAIL)
    stream = trail.stream_events(event_names=["Encrypt"], keys=[key.arn])
    for _ in range(3):
        kms.encrypt(key_id=key.id, plaintext=b"x")
        kms.describe_key(key_id=key.id)
    made = [call.request_id for call in Service.calls if call.operation == "Encrypt"][-3:]
    seen = [next(stream)]
    stream.cancel()
    again = trail.stream_events(position=seen[0].position, event_names=["Encrypt"], keys=[key.id])
    seen += [next(again), next(again)]
    again.cancel()
    assert [json.loads(answer.event.cloud_trail_event)["requestID"] for answer in seen] == made
    for answer in seen:
        event = answer.event
        assert (event.event_name, event.read_only, event.event_source) == (
            "Encrypt",
            "true",
            "kms.amazonaws.com",
        )
        assert [(r.resource_type, r.resource_name) for r in event.resources] == [("AWS::KMS::Key", key.arn)]
        assert event.event_id == json.loads(event.cloud_trail_event)["eventID"]


def test_history_has_every_event(records):
    """By its id, and by its name page after page, newest first."""
    trail = Service(CLOUDTRAIL)
    attribute = lambda key, value: [{"attribute_key": key, "attribute_value": value}]
    for record in list(records.values())[::500]:
        [event] = trail.lookup_events(lookup_attributes=attribute("EventId", record["eventID"])).events
        assert json.loads(event.cloud_trail_event) == record
    found, token = [], {}
    while not found or token:
        page = trail.lookup_events(
            lookup_attributes=attribute("EventName", "DeriveSharedSecret"), max_results=50, **token
        )
        found += page.events
        token = {"next_token": page.next_token} if page.HasField("next_token") else {}
    ids = [event.event_id for event in found]
    assert len(set(ids)) == len(ids)
    assert {r["eventID"] for r in records.values() if r["eventName"] == "DeriveSharedSecret"} <= set(ids)
    times = [event.event_time.seconds for event in found]
    assert times == sorted(times, reverse=True)


def test_the_log_holds_together(events, records):
    """The chain, its signed heads and the rows that the events explain, as the daemon sees them."""
    checked = Service(CLOUDTRAIL).verify_events()
    assert not checked.findings
    assert checked.events >= len(records) and checked.signed_heads > 0
    assert checked.head_public_key.startswith("-----BEGIN PUBLIC KEY-----")
