"""StreamEvents by EventBridge's event patterns."""

import json

from client import CLOUDTRAIL, Service

PATTERN = {
    "source": ["aws.kms"],
    "detail": {"eventName": [{"prefix": "Disable"}, "EnableKey"], "errorCode": [{"exists": False}]},
}


def test_a_stream_has_what_its_pattern_matches(kms, new_key):
    key, refusing = new_key(), new_key()
    kms.disable_key(key_id=refusing.arn)
    pattern = PATTERN | {"resources": [key.arn, refusing.arn]}
    stream = Service(CLOUDTRAIL).stream_events(event_pattern=json.dumps(pattern))
    kms.encrypt(key_id=key.arn, plaintext=b"not this")
    kms.disable_key(key_id=key.arn)
    kms.describe_key(key_id=key.arn)
    kms.enable_key(key_id=refusing.arn)
    seen = [json.loads(next(stream).event.cloud_trail_event) for _ in range(2)]
    stream.cancel()
    assert [(record["eventName"], record["resources"][0]["ARN"]) for record in seen] == [
        ("DisableKey", key.arn),
        ("EnableKey", refusing.arn),
    ]
