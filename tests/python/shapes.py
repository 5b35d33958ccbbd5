"""Answers against the service model's shapes, more strictly than botocore reads them."""

import base64
import json
import math

class Checked:
    """Checks every answer of a boto3 client before botocore reads it."""

    def __init__(self, client):
        service = client.meta.service_model
        events = client.meta.events
        events.register(f"before-parse.{service.service_id.hyphenize()}", self.check)

    @staticmethod
    def check(operation_model, response_dict, **_):
        headers, body = response_dict["headers"], response_dict["body"]
        where = operation_model.name
        assert headers["content-type"] == "application/x-amz-json-1.1", where
        assert len(headers["x-amzn-requestid"]) == 36, where
        if response_dict["status_code"] >= 300:
            return error(where, response_dict["status_code"], json.loads(body))
        output = operation_model.output_shape
        if output is None:
            assert body == b"", f"{where} answers, and the model has no answer"
            return None
        return value(where, output, json.loads(body))


def error(where, status, body):
    assert status in (400, 500), where
    assert {"__type"} <= set(body) <= {"__type", "message"}, (where, body)
    assert all(isinstance(text, str) for text in body.values()), (where, body)
    assert body["__type"].endswith("Exception"), (where, body)


def value(where, shape, found):
    """Fails where `found` is not of `shape`."""
    CHECKS[shape.type_name](where, shape, found)


def structure(where, shape, found):
    assert isinstance(found, dict), where
    unknown = set(found) - set(shape.members)
    assert not unknown, f"{where}: {unknown} is not in the model"
    missing = set(shape.required_members) - set(found)
    assert not missing, f"{where}: {missing} is required"
    for name, inner in found.items():
        value(f"{where}.{name}", shape.members[name], inner)


def string(where, shape, found):
    assert isinstance(found, str), where
    if shape.enum:
        assert found in shape.enum, f"{where}: {found}"
    else:
        length(where, shape, len(found))


def length(where, shape, found):
    limits = shape.metadata
    assert limits.get("min", 0) <= found <= limits.get("max", math.inf), f"{where}: {found} long"


def blob(where, shape, found):
    assert isinstance(found, str), where
    length(where, shape, len(base64.b64decode(found, validate=True)))


def whole(where, shape, found):
    assert isinstance(found, int) and not isinstance(found, bool), where
    length(where, shape, found)


def boolean(where, _, found):
    assert isinstance(found, bool), where


def timestamp(where, _, found):
    """Seconds since the epoch, of our time."""
    assert isinstance(found, int | float) and not isinstance(found, bool), where
    assert 1.7e9 < found < 1e10, f"{where}: {found}"


def listed(where, shape, found):
    assert isinstance(found, list), where
    for index, entry in enumerate(found):
        value(f"{where}[{index}]", shape.member, entry)


def mapped(where, shape, found):
    assert isinstance(found, dict), where
    for key, entry in found.items():
        value(f"{where}'s key", shape.key, key)
        value(f"{where}[{key}]", shape.value, entry)


CHECKS = {
    "structure": structure,
    "string": string,
    "blob": blob,
    "integer": whole,
    "long": whole,
    "boolean": boolean,
    "timestamp": timestamp,
    "list": listed,
    "map": mapped,
}
