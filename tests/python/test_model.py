"""proto/ against AWS's own model, as botocore has it: a later botocore shows drift."""

import pytest
from botocore import xform_name
from botocore.loaders import Loader
from botocore.model import ServiceModel
from google.protobuf.descriptor import FieldDescriptor as Field

from client import CLOUDTRAIL, CLOUDTRAIL_DATA, OPERATIONS, ORGANIZATIONS, enum_text, options_pb2

MODELS = {
    service: ServiceModel(Loader().load_service_model(service, "service-2"), service)
    for service in ("kms", "cloudtrail", "cloudtrail-data", "organizations")
}
# What CloudTrail has not.
ADDED = ["StreamEvents", "VerifyEvents", "RotateDigestKey"]
METHODS = [("kms", method) for method in OPERATIONS.values()] + [
    ("cloudtrail", method) for method in CLOUDTRAIL.methods if method.name not in ADDED
] + [("cloudtrail-data", method) for method in CLOUDTRAIL_DATA.methods] + [("organizations", method) for method in ORGANIZATIONS.methods]
# Where the model says less than the service does.
STRICTER = {
    "ScheduleKeyDeletionRequest.pending_window_in_days": {"min": 7, "max": 30},
    "LookupEventsRequest.next_token": {"min": 1, "max": 1024},
    # InvalidMaxResultsException, no ValidationException.
    "LookupEventsRequest.max_results": {},
    # Required, and may be empty: on the wire of gRPC the same as absent.
    "PutInsightSelectorsRequest.insight_selectors": {},
}
IS = options_pb2.DESCRIPTOR.extensions_by_name["is"]
SCALARS = {
    "string": Field.TYPE_STRING,
    "blob": Field.TYPE_BYTES,
    "boolean": Field.TYPE_BOOL,
    "integer": Field.TYPE_INT32,
    "double": Field.TYPE_DOUBLE,
}


@pytest.mark.parametrize("service, method", METHODS, ids=lambda value: getattr(value, "name", value))
def test_an_operation_is_awss(service, method):
    operation = MODELS[service].operation_model(method.name)
    compare(method.input_type, operation.input_shape, limits=True)
    compare(method.output_type, operation.output_shape, limits=False)


def compare(message, shape, limits):
    members = shape.members if shape else {}
    assert set(message.fields_by_name) == {xform_name(name) for name in members}, message.name
    for name, inner in members.items():
        field = message.fields_by_name[xform_name(name)]
        where = f"{message.name}.{field.name}"
        kind(where, field, inner, limits)
        # Absent is told from empty and zero.
        assert field.is_repeated or field.has_presence, where
        if limits:
            required = name in shape.required_members
            assert constraint(field) == STRICTER.get(where, modelled(inner, required)), where
            secret = inner.metadata.get("sensitive") or inner.name == "GrantTokenList"
            if secret and inner.type_name != "blob":
                assert field.GetOptions().Extensions[options_pb2.secret], where


def kind(where, field, shape, limits):
    if shape.type_name == "list":
        assert field.is_repeated, where
        return kind(where, field, shape.member, limits)
    if shape.type_name == "map":
        entry = field.message_type
        assert entry.GetOptions().map_entry, where
        kind(where, entry.fields_by_name["key"], shape.key, limits)
        return kind(where, entry.fields_by_name["value"], shape.value, limits)
    if shape.type_name == "structure":
        return compare(field.message_type, shape, limits)
    if shape.type_name == "timestamp":
        assert field.message_type.full_name == "google.protobuf.Timestamp", where
    elif enum(shape):
        values = [enum_text(value) for value in field.enum_type.values if value.number != 0]
        assert sorted(values) == sorted(shape.enum), where
        assert field.enum_type.values_by_number[0].name.endswith("_UNSPECIFIED"), where
    else:
        assert field.type == SCALARS[shape.type_name], where
    return None


def enum(shape):
    return shape.type_name == "string" and shape.enum


def constraint(field):
    """The limits that the field's option states."""
    options = field.GetOptions()
    return read(options.Extensions[IS]) if options.HasExtension(IS) else {}


def read(found):
    limits = {name: getattr(found, name) for name in ("min", "max", "pattern") if found.HasField(name)}
    if found.required:
        limits["required"] = True
    if found.HasField("each"):
        limits["each"] = read(found.each)
    return limits


def modelled(shape, required):
    """The limits that the model states, in the option's terms."""
    limits = {} if enum(shape) else {name: shape.metadata.get(name) for name in ("min", "max", "pattern")}
    # Nothing is shorter than 0.
    limits = {name: limit for name, limit in limits.items() if limit not in (None, 0)}
    if required:
        limits["required"] = True
    if shape.type_name == "list" and (each := modelled(shape.member, False)):
        limits["each"] = each
    return limits
