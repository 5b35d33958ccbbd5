"""What is wrong is KMS's exception, for every operation and member."""

import json
import os
import random

import pytest
from google.protobuf.descriptor import FieldDescriptor as Field

from samples import WITHOUT_KEY
from client import CLOUDTRAIL, OPERATIONS, KmsError, Service, message, options_pb2, snake

UNKNOWN_ID = "11111111-2222-3333-4444-555555555555"
ELSEWHERE = f"arn:aws:kms:us-west-2:111122223333:key/{UNKNOWN_ID}"
IS = options_pb2.DESCRIPTOR.extensions_by_name["is"]
REFUSED = options_pb2.DESCRIPTOR.extensions_by_name["refused"]
FIELDS = [
    pytest.param(operation, field, id=f"{operation}.{field.name}")
    for operation, method in OPERATIONS.items()
    for field in method.input_type.fields
]
CONTEXTS = {"encryption_context", "source_encryption_context", "destination_encryption_context"}


def fields(wanted):
    return pytest.mark.parametrize("operation, field", [case for case in FIELDS if wanted(case.values[1])])


def limits(field):
    return field.GetOptions().Extensions[IS]


def is_list(field):
    return field.is_repeated and field.name not in CONTEXTS


def is_key(field):
    return field.name.endswith("key_id") and field.name != "xks_key_id"


EVERY = pytest.mark.parametrize("operation", OPERATIONS)


@EVERY
def test_the_samples_are_good(kms, samples, operation):
    sample = samples[operation]
    if operation in (*WITHOUT_KEY, "DisableKey", "ScheduleKeyDeletion", "CancelKeyDeletion", "DeleteAlias"):
        return  # test_keys does; the other samples need what these would change
    if operation.endswith("CustomKeyStore"):
        return  # test_key_stores does
    answer = getattr(kms, snake(operation))(**sample)
    if operation == "CreateKey":
        kms.schedule_key_deletion(key_id=answer.key_metadata.key_id)


@fields(lambda field: limits(field).required)
def test_a_required_member_is_missed(kms, samples, refused, operation, field):
    sample = {name: value for name, value in samples[operation].items() if name != field.name}
    with refused("ValidationException") as raised:
        getattr(kms, snake(operation))(**sample)
    assert f"Value null at '{camel(field.name)}'" in raised.error.message
    assert raised.error.message.endswith("Member must not be null")


def camel(name):
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


@fields(lambda field: limits(field).HasField("max") and not is_list(field))
def test_a_member_has_a_most(kms, samples, refused, operation, field):
    most = limits(field).max
    value = {
        Field.TYPE_STRING: lambda: "x" * (most + 1),
        Field.TYPE_BYTES: lambda: os.urandom(most + 1),
        Field.TYPE_INT32: lambda: most + 1,
    }[field.type]()
    refuse(kms, samples, refused, operation, field, value, f"less than or equal to {most}")


@fields(lambda field: limits(field).HasField("min") and not is_list(field))
def test_a_member_has_a_least(kms, samples, refused, operation, field):
    least = limits(field).min
    value = {Field.TYPE_STRING: "", Field.TYPE_BYTES: b"", Field.TYPE_INT32: least - 1}[field.type]
    refuse(kms, samples, refused, operation, field, value, f"greater than or equal to {least}")


@fields(lambda field: limits(field).HasField("pattern"))
def test_a_member_has_a_pattern(kms, samples, refused, operation, field):
    refuse(kms, samples, refused, operation, field, "\u0100 ", "satisfy regular expression pattern")


@fields(lambda field: field.enum_type is not None)
def test_an_enum_value_is_unknown(kms, samples, refused, operation, field):
    for number in (0, 9999, -1):
        value = [number] if field.is_repeated else number
        refuse(kms, samples, refused, operation, field, value, "Member must satisfy enum value set: [")


def refuse(kms, samples, refused, operation, field, value, why):
    with refused("ValidationException") as raised:
        getattr(kms, snake(operation))(**{**samples[operation], field.name: value})
    assert why in raised.error.message
    assert f"'{camel(field.name)}" in raised.error.message


@fields(lambda field: field.GetOptions().HasExtension(REFUSED))
def test_a_member_that_is_not_served_is_refused(kms, samples, refused, operation, field):
    value = {
        "xks_proxy_uri_endpoint": "https://xks.example.org",
        "xks_proxy_uri_path": "/kms/xks/v1",
        "xks_proxy_vpc_endpoint_service_name": "com.amazonaws.vpce.us-east-1.vpce-svc-example1",
        "xks_proxy_vpc_endpoint_service_owner": "111122223333",
        "xks_proxy_authentication_credential": {
            "access_key_id": "ABCDE22345677EXAMPLE",
            "raw_secret_access_key": "x" * 43,
        },
        "xks_proxy_connectivity": "PUBLIC_ENDPOINT",
        "recipient": {"key_encryption_algorithm": "RSAES_OAEP_SHA_256", "attestation_document": b"x"},
        "xks_key_id": "external-1",
    }[field.name]
    with refused(f"{field.GetOptions().Extensions[REFUSED]}Exception"):
        getattr(kms, snake(operation))(**{**samples[operation], field.name: value})


@fields(is_key)
def test_a_key_is_not_found(kms, keys, samples, refused, operation, field):
    _, _, _, region, account, _ = keys("SYMMETRIC_DEFAULT").arn.split(":")
    arn = f"arn:aws:kms:{region}:{account}:key/{UNKNOWN_ID}"
    cases = {
        UNKNOWN_ID: ("NotFoundException", f"Key '{arn}' does not exist"),
        arn: ("NotFoundException", f"Key '{arn}' does not exist"),
        "x": ("NotFoundException", "Invalid keyId 'x'"),
        UNKNOWN_ID.replace("-", ""): ("NotFoundException", f"Invalid keyId '{UNKNOWN_ID.replace('-', '')}'"),
        ELSEWHERE: ("NotFoundException", "Invalid arn us-west-2"),
        "arn:aws:kms": ("InvalidArnException", None),
        f"arn:aws:s3:{region}:{account}:key/{UNKNOWN_ID}": ("InvalidArnException", None),
        f"arn:aws:kms:{region}:12:key/{UNKNOWN_ID}": ("InvalidArnException", None),
        f"arn:aws:kms:{region}:{account}:{UNKNOWN_ID}": ("InvalidArnException", None),
    }
    for name, (exception, text) in cases.items():
        with refused(exception, text):
            getattr(kms, snake(operation))(**{**samples[operation], field.name: name})


@pytest.mark.parametrize("operation", ["DescribeKey", "Encrypt", "Decrypt", "Sign", "GenerateDataKey"])
def test_an_alias_is_not_found(kms, samples, refused, operation):
    for alias in (f"alias/{UNKNOWN_ID}", "alias/aws/s3", f"{ELSEWHERE.split(':key/')[0]}:alias/x"):
        with refused("NotFoundException"):
            getattr(kms, snake(operation))(**{**samples[operation], "key_id": alias})


@fields(lambda field: field.name in CONTEXTS)
def test_a_context_has_a_most(kms, samples, refused, operation, field):
    for context in ({"x" * 8192: "y"}, {str(count): "x" * 100 for count in range(100)}):
        with refused("ValidationException"):
            getattr(kms, snake(operation))(**{**samples[operation], field.name: context})


@pytest.mark.parametrize(
    "operation",
    [name for name, method in OPERATIONS.items() if "grant_tokens" in method.input_type.fields_by_name],
)
def test_grant_tokens_are_few_and_short(kms, samples, refused, operation):
    for tokens in (["x"] * 11, ["x" * 8193], [""]):
        with refused("ValidationException"):
            getattr(kms, snake(operation))(**{**samples[operation], "grant_tokens": tokens})
    with refused("InvalidGrantTokenException"):
        getattr(kms, snake(operation))(**{**samples[operation], "grant_tokens": ["nobody made it"]})


WRONG_USAGE = [
    ("Encrypt", "signing", "InvalidKeyUsageException", "SIGN_VERIFY"),
    ("Encrypt", "mac", "InvalidKeyUsageException", "GENERATE_VERIFY_MAC"),
    ("Encrypt", "agreement", "InvalidKeyUsageException", "KEY_AGREEMENT"),
    ("GenerateDataKey", "signing", "InvalidKeyUsageException", "SIGN_VERIFY"),
    ("GenerateDataKeyPair", "mac", "InvalidKeyUsageException", "GENERATE_VERIFY_MAC"),
    ("Sign", "symmetric", "InvalidKeyUsageException", "ENCRYPT_DECRYPT"),
    ("Sign", "agreement", "InvalidKeyUsageException", "KEY_AGREEMENT"),
    ("Verify", "mac", "InvalidKeyUsageException", "GENERATE_VERIFY_MAC"),
    ("GenerateMac", "symmetric", "InvalidKeyUsageException", "ENCRYPT_DECRYPT"),
    ("VerifyMac", "signing", "InvalidKeyUsageException", "SIGN_VERIFY"),
    ("Encapsulate", "symmetric", "InvalidKeyUsageException", "ENCRYPT_DECRYPT"),
    ("Decapsulate", "agreement", "InvalidKeyUsageException", "KEY_AGREEMENT"),
    ("DeriveSharedSecret", "signing", "InvalidKeyUsageException", "SIGN_VERIFY"),
    ("DeriveSharedSecret", "symmetric", "InvalidKeyUsageException", "ENCRYPT_DECRYPT"),
]


@pytest.mark.parametrize("operation, which, exception, usage", WRONG_USAGE)
def test_a_key_is_for_something_else(kms, samples, refused, operation, which, exception, usage):
    metadata = kms.describe_key(key_id=samples.prepared[which]).key_metadata
    text = f"{metadata.arn} key usage is {usage} which is not valid for {operation}."
    with refused(exception, text):
        getattr(kms, snake(operation))(**{**samples[operation], "key_id": metadata.key_id})


@pytest.mark.parametrize("which", ["signing", "mac", "agreement"])
def test_a_ciphertext_is_of_no_such_key(kms, samples, refused, which):
    with refused("IncorrectKeyException"):
        kms.decrypt(**{**samples["Decrypt"], "key_id": samples.prepared[which]})


def test_a_symmetric_key_has_no_public_key(kms, samples, refused):
    for which in ("symmetric", "mac"):
        with refused("UnsupportedOperationException"):
            kms.get_public_key(key_id=samples.prepared[which])


WRONG_ALGORITHM = [
    ("Encrypt", "encryption_algorithm", "RSAES_OAEP_SHA_1"),
    ("Sign", "signing_algorithm", "ECDSA_SHA_384"),
    ("Sign", "signing_algorithm", "RSASSA_PSS_SHA_256"),
    ("Sign", "signing_algorithm", "ED25519_SHA_512"),
    ("Verify", "signing_algorithm", "ECDSA_SHA_512"),
    ("GenerateMac", "mac_algorithm", "HMAC_SHA_512"),
    ("VerifyMac", "mac_algorithm", "HMAC_SHA_224"),
]


@pytest.mark.parametrize("operation, member, algorithm", WRONG_ALGORITHM)
def test_an_algorithm_is_of_another_spec(kms, samples, refused, operation, member, algorithm):
    with refused("InvalidKeyUsageException"):
        getattr(kms, snake(operation))(**{**samples[operation], member: algorithm})


@pytest.mark.parametrize(
    "members, exception",
    [
        ({"key_spec": "SM2", "key_usage": "SIGN_VERIFY"}, "UnsupportedOperationException"),
        *[
            ({"key_spec": spec, "key_usage": "ENCAPSULATE_DECAPSULATE"}, "UnsupportedOperationException")
            for spec in ("ML_KEM_512", "ML_KEM_768", "ML_KEM_1024")
        ],
        ({"key_spec": "RSA_2048"}, "ValidationException"),
        ({"key_spec": "HMAC_256"}, "ValidationException"),
        ({"key_spec": "HMAC_256", "key_usage": "SIGN_VERIFY"}, "ValidationException"),
        ({"key_spec": "RSA_2048", "key_usage": "KEY_AGREEMENT"}, "ValidationException"),
        ({"key_spec": "ECC_SECG_P256K1", "key_usage": "ENCRYPT_DECRYPT"}, "ValidationException"),
        ({"key_usage": "SIGN_VERIFY"}, "ValidationException"),
        (
            {"key_spec": "SYMMETRIC_DEFAULT", "customer_master_key_spec": "SYMMETRIC_DEFAULT"},
            "ValidationException",
        ),
        ({"origin": "EXTERNAL_KEY_STORE"}, "UnsupportedOperationException"),
        ({"origin": "AWS_CLOUDHSM"}, "ValidationException"),
        ({"tags": [{"tag_key": "aws:x", "tag_value": ""}]}, "TagException"),
        ({"tags": [{"tag_key": "AwS:x", "tag_value": ""}]}, "TagException"),
        ({"tags": [{"tag_key": "x", "tag_value": "1"}, {"tag_key": "x", "tag_value": "2"}]}, "TagException"),
        ({"tags": [{"tag_key": f"x{n}", "tag_value": ""} for n in range(51)]}, "TagException"),
        ({"tags": [{"tag_key": "", "tag_value": ""}]}, "ValidationException"),
        ({"tags": [{"tag_key": "x" * 129, "tag_value": ""}]}, "ValidationException"),
        ({"tags": [{"tag_key": "x", "tag_value": "x" * 257}]}, "ValidationException"),
        ({"tags": [{"tag_key": "x"}]}, "ValidationException"),
    ],
    ids=str,
)
def test_a_key_cannot_be_made_so(kms, refused, members, exception):
    with refused(exception):
        kms.create_key(**members)


STATEMENT = {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "kms:*", "Resource": "*"}


@pytest.mark.parametrize(
    "policy",
    [
        "x",
        "{}",
        "[]",
        "null",
        json.dumps({"Version": "2012-10-17"}),
        json.dumps({"Version": "2012-10-17", "Statement": []}),
        json.dumps({"Version": "2013-01-01", "Statement": STATEMENT}),
        json.dumps({"Version": "2012-10-17", "Statement": {**STATEMENT, "Effect": "allow"}}),
        json.dumps({"Version": "2012-10-17", "Statement": {**STATEMENT, "Effects": "Allow"}}),
        json.dumps({"Version": "2012-10-17", "Statement": {**STATEMENT, "Condition": {"Like": {"a": "b"}}}}),
        json.dumps({"Version": "2012-10-17", "Statement": {**STATEMENT, "Principal": {"AWS": "nobody"}}}),
        json.dumps(
            {"Version": "2012-10-17", "Statement": {k: v for k, v in STATEMENT.items() if k != "Principal"}}
        ),
        json.dumps({"Version": "2012-10-17", "Statement": {**STATEMENT, "Action": "kms:DescribeKey"}}),
        json.dumps({"Version": "2012-10-17", "Statement": STATEMENT})[:-1],
        "[" * 20000,
    ],
)
def test_a_policy_is_malformed_or_locks_out(kms, refused, policy):
    with refused("MalformedPolicyDocumentException"):
        kms.create_key(policy=policy)


@pytest.mark.parametrize("operation", ["ListKeys", "ListAliases"])
def test_a_marker_is_made_up(kms, refused, operation):
    for marker in ("x", "zz", "ff", "\u00e9" * 10, "0" * 1023):
        with refused("InvalidMarkerException"):
            getattr(kms, snake(operation))(marker=marker)


def test_keys_of_other_accounts_are_not_listed(kms, refused):
    with refused("UnsupportedOperationException"):
        kms.list_keys(resource_owners=["OTHER_ACCOUNTS_VIA_RAM"])


def test_a_long_refusal_still_reaches_its_caller(kms, refused):
    """The text is sent in headers, of which a client takes 8 KB."""
    longest = "\u00e9" * 2048
    with refused("NotFoundException") as raised:
        kms.describe_key(key_id=longest)
    assert raised.error.message.startswith("Invalid keyId '\u00e9")
    with refused("ValidationException"):
        kms.create_key(tags=[{"tag_key": longest}] * 50, description=longest * 5)


ALL_METHODS = [*OPERATIONS.values(), CLOUDTRAIL.methods_by_name["LookupEvents"]]


@pytest.mark.parametrize("method", ALL_METHODS, ids=lambda method: method.name)
def test_random_bytes_are_no_request(kms, method):
    """Whatever comes, the answer is a modelled exception or, by chance, a success."""
    chance = random.Random(method.name)
    service = Service(method.containing_service, kms.channel)
    for length in [1, 2, 3, 5, 8, *(chance.randrange(400) for _ in range(25))]:
        answered(service, method, chance.randbytes(length))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_request_is_cut_or_damaged(kms, samples, operation):
    method, chance = OPERATIONS[operation], random.Random(operation)
    if operation in ("DisableKey", "ScheduleKeyDeletion", "CancelKeyDeletion", "DeleteAlias"):
        return  # what is still readable would take effect
    if operation == "GetParametersForImport":
        return  # what is still readable would make an RSA key each time
    good = message(method.input_type, **samples[operation]).SerializeToString()
    for _ in range(20 if good else 0):
        bad = bytearray(good)
        bad[chance.randrange(len(bad))] ^= 1 << chance.randrange(8)
        answered(kms, method, bytes(bad))
        answered(kms, method, good[: chance.randrange(len(good))])


def answered(service, method, data):
    try:
        service.send(method, data)
    except KmsError as error:
        assert error.domain == "kms.amazonaws.com", f"{error} for {data.hex()}"
        assert error.name not in ("", "KMSInternalException"), f"{error} for {data.hex()}"
        assert error.request_id, f"{error} for {data.hex()}"


@EVERY
def test_a_message_is_no_protobuf_or_too_large(kms, refused, operation):
    for data in (b"\xff\xff\xff\xff", bytes(4 << 20)):
        with refused("ValidationException") as raised:
            kms.send(OPERATIONS[operation], data)
        assert raised.error.request_id


def test_others_are_not_disturbed(kms, samples):
    """After all of the above, everything works."""
    for operation in ("Encrypt", "Decrypt", "Sign", "Verify", "GenerateMac", "DeriveSharedSecret"):
        getattr(kms, snake(operation))(**samples[operation])
