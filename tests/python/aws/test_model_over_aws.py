"""Every operation of the API that AWS has, called by boto3, each answer as the model says."""

import json

import pytest
from botocore import xform_name
from botocore.exceptions import ClientError

from client import OPERATIONS
from samples import WITHOUT_KEY
from test_model import MODELS


def given(service, operation, members):
    """A sample's members in AWS's names."""
    shape = MODELS[service].operation_model(operation).input_shape
    names = {xform_name(name): name for name in (shape.members if shape else {})}
    renamed = {}
    for name, value in members.items():
        inner = shape.members[names[name]]
        renamed[names[name]] = nested(inner, value)
    return renamed


def nested(shape, value):
    if shape.type_name == "structure":
        names = {xform_name(name): name for name in shape.members}
        return {names[name]: nested(shape.members[names[name]], inner) for name, inner in value.items()}
    if shape.type_name == "list":
        return [nested(shape.member, each) for each in value]
    return value


@pytest.mark.parametrize("operation", sorted(set(OPERATIONS) - set(WITHOUT_KEY)))
def test_an_operation_answers_as_its_model_says(aws, fresh_samples, operation):
    call = lambda: getattr(aws, xform_name(operation))(**given("kms", operation, fresh_samples[operation]))
    if not operation.endswith("CustomKeyStore"):
        call()
        return
    # The samples' store and cluster are nobody's.
    with pytest.raises(ClientError) as raised:
        call()
    declared = {shape.name for shape in MODELS["kms"].operation_model(operation).error_shapes}
    assert raised.value.response["Error"]["Code"] in declared


def test_the_history_is_cloudtrails(aws, trail):
    made = aws.list_keys()["ResponseMetadata"]["RequestId"]
    found = trail.lookup_events(LookupAttributes=[{"AttributeKey": "EventName", "AttributeValue": "ListKeys"}])
    [event] = [e for e in found["Events"] if json.loads(e["CloudTrailEvent"])["requestID"] == made]
    record = json.loads(event["CloudTrailEvent"])
    identity = record["userIdentity"]
    assert event["AccessKeyId"] == identity["accessKeyId"] == aws._request_signer._credentials.access_key
    assert (identity["type"], identity["userName"], record["sourceIPAddress"]) == (
        "IAMUser",
        "administrator",
        "127.0.0.1",
    )
    assert record["userAgent"].startswith("Boto3/")
    assert "tlsDetails" not in record, "there is no TLS on this port"
    assert event["Username"] == "administrator" and event["ReadOnly"] == "true"


def test_the_history_has_pages(aws, trail):
    for _ in range(3):
        aws.generate_random(NumberOfBytes=1)
    name = [{"AttributeKey": "EventName", "AttributeValue": "GenerateRandom"}]
    pages = trail.get_paginator("lookup_events").paginate(
        LookupAttributes=name, PaginationConfig={"PageSize": 1, "MaxItems": 3}
    )
    ids = [event["EventId"] for page in pages for event in page["Events"]]
    assert len(set(ids)) == 3


def test_lists_have_pages(aws):
    pages = list(aws.get_paginator("list_keys").paginate(PaginationConfig={"PageSize": 1, "MaxItems": 3}))
    assert [len(page["Keys"]) for page in pages] == [1, 1, 1]


def test_a_failure_is_its_modelled_exception(aws, samples):
    key = aws.create_key()["KeyMetadata"]["KeyId"]
    aws.disable_key(KeyId=key)
    with pytest.raises(aws.exceptions.DisabledException) as raised:
        aws.encrypt(KeyId=key, Plaintext=b"x")
    error = raised.value.response
    assert error["Error"]["Message"].endswith("is disabled.")
    assert error["ResponseMetadata"]["HTTPStatusCode"] == 400
    aws.schedule_key_deletion(KeyId=key)
    with pytest.raises(aws.exceptions.InvalidCiphertextException) as raised:
        aws.decrypt(CiphertextBlob=b"not made here")
    assert raised.value.response["Error"]["Message"] == ""
    with pytest.raises(aws.exceptions.KMSInvalidSignatureException):
        aws.verify(**{**given("kms", "Verify", samples["Verify"]), "Signature": bytes(70)})


def test_an_unknown_enum_is_quoted(aws):
    with pytest.raises(ClientError) as raised:
        aws.create_key(KeySpec="RSA_1")
    error = raised.value.response["Error"]
    assert error["Code"] == "ValidationException"
    assert error["Message"].startswith(
        "1 validation error detected: Value 'RSA_1' at 'keySpec' failed to satisfy constraint: "
        "Member must satisfy enum value set: ["
    )


def test_what_is_on_the_wire_is_kept_as_it_is(aws, samples):
    context = {"Kept As Is": "ü ☃", "empty": ""}
    key = samples["Encrypt"]["key_id"]
    blob = aws.encrypt(KeyId=key, Plaintext=bytes(range(256)), EncryptionContext=context)["CiphertextBlob"]
    assert aws.decrypt(CiphertextBlob=blob, EncryptionContext=context)["Plaintext"] == bytes(range(256))
    with pytest.raises(aws.exceptions.InvalidCiphertextException):
        aws.decrypt(CiphertextBlob=blob, EncryptionContext={"kept as is": "ü ☃", "empty": ""})
