"""Every operation over gRPC, each answer as AWS's model says."""

import base64

import pytest
from botocore import xform_name
from google.protobuf.descriptor import FieldDescriptor

from client import OPERATIONS, KmsError, enum_text, snake
from samples import WITHOUT_KEY
from shapes import value
from test_model import MODELS


def told(message, shape):
    """An answer as AWS JSON would write it. An empty list is as one that is absent."""
    names = {xform_name(name): name for name in shape.members}
    found = {}
    for field, content in message.ListFields():
        inner = shape.members[names[field.name]]
        many = inner.type_name == "list"
        found[names[field.name]] = (
            [one(field, each, inner.member) for each in content] if many else one(field, content, inner)
        )
    return found


def one(field, content, shape):
    if field.enum_type:
        return enum_text(field.enum_type.values_by_number[content])
    if field.type == FieldDescriptor.TYPE_BYTES:
        return base64.b64encode(content).decode()
    if shape.type_name == "timestamp":
        return content.seconds + content.nanos / 1e9
    return told(content, shape) if field.message_type else content


@pytest.mark.parametrize("operation", sorted(set(OPERATIONS) - set(WITHOUT_KEY)))
def test_an_operation_answers_as_its_model_says(kms, fresh_samples, operation):
    model = MODELS["kms"].operation_model(operation)
    call = lambda: getattr(kms, snake(operation))(**fresh_samples[operation])
    if operation.endswith("CustomKeyStore"):
        # The samples' store and cluster are nobody's.
        with pytest.raises(KmsError) as raised:
            call()
        assert raised.value.name in {shape.name for shape in model.error_shapes}
        return
    answer = call()
    if model.output_shape is None:
        assert not answer.ListFields(), operation
    else:
        value(operation, model.output_shape, told(answer, model.output_shape))
