"""PutAuditEvents: events of the customer's own services in the same log, checked and marked, as AWS's client puts them."""

import base64
import hashlib
import json
import time

import boto3
import pytest

CHANNEL = "arn:aws:cloudtrail:us-east-1:111122223333:channel/billing"


@pytest.fixture(scope="module")
def data():
    return boto3.client("cloudtrail-data")


def event(**changes):
    made = {
        "version": "1.0",
        "userIdentity": {"type": "CustomUserIdentity", "principalId": "clerk-7", "details": {"desk": "4"}},
        "eventSource": "billing.example",
        "eventName": "Refund",
        "eventTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "UID": "refund-1",
        "requestParameters": {"amount": 12},
    }
    made |= changes
    return json.dumps({name: value for name, value in made.items() if value is not None})


def test_each_entry_has_its_own_result(data, trail, unique):
    # Null is as good as nothing.
    good = event(UID=unique)[:-1] + ', "errorCode": null}'
    entries = {
        "good": {"eventData": good, "eventDataChecksum": base64.b64encode(hashlib.sha256(good.encode()).digest()).decode()},
        "checksum": {"eventData": good, "eventDataChecksum": base64.b64encode(b"0" * 32).decode()},
        "no-json": {"eventData": "{"},
        "no-name": {"eventData": event(eventName=None)},
        "no-user": {"eventData": event(userIdentity={"type": "a"})},
        "forged": {"eventData": event(eventSource="kms.amazonaws.com")},
        "code": {"eventData": event(errorCode=5)},
        "future": {"eventData": event(eventTime="2999-01-01T00:00:00Z")},
        "recipient": {"eventData": event(recipientAccountId="444455556666")},
    }
    answer = data.put_audit_events(
        channelArn=CHANNEL, externalId="ours", auditEvents=[{"id": id_, **entry} for id_, entry in entries.items()]
    )
    [put] = answer["successful"]
    assert put["id"] == "good"
    assert {entry["id"]: entry["errorCode"] for entry in answer["failed"]} == {
        "checksum": "InvalidChecksum",
        "no-json": "InvalidData",
        "no-name": "FieldNotFound",
        "no-user": "FieldNotFound",
        "forged": "InvalidEventSource",
        "code": "InvalidData",
        "future": "InvalidData",
        "recipient": "InvalidRecipient",
    }
    assert all(entry["errorMessage"] for entry in answer["failed"])
    [found] = trail.lookup_events(LookupAttributes=[{"AttributeKey": "EventId", "AttributeValue": put["eventID"]}])["Events"]
    record = json.loads(found["CloudTrailEvent"])
    assert (record["eventCategory"], record["eventSource"], record["eventName"]) == ("ActivityAuditLog", "billing.example", "Refund")
    assert (record["metadata"]["UID"], record["metadata"]["channelARN"]) == (unique, CHANNEL)
    assert record["userIdentity"] == {
        "type": "CustomUserIdentity",
        "principalId": "clerk-7",
        "accountId": "111122223333",
        "details": {"desk": "4"},
    }
    assert record["requestParameters"] == {"amount": 12}
    assert "errorCode" not in record


REFUSALS = [
    ({"channelArn": "arn:aws:s3:::bucket"}, "InvalidChannelARN"),
    ({"channelArn": CHANNEL.replace("us-east-1", "eu-west-1")}, "ChannelNotFound"),
    ({"auditEvents": [{"id": "a", "eventData": "{}"}] * 2}, "DuplicatedAuditEventId"),
]


@pytest.mark.parametrize("change, name", REFUSALS, ids=lambda value: str(value)[-24:])
def test_a_request_is_refused_as_a_whole(data, change, name):
    with pytest.raises(data.exceptions.ClientError) as refused:
        data.put_audit_events(**{"channelArn": CHANNEL, "auditEvents": [{"id": "a", "eventData": event()}], **change})
    assert refused.value.response["Error"]["Code"] == name
