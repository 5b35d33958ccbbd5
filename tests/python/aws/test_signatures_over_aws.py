"""SigV4 at the AWS port: what is no signature of this request, by nobody known or at another time, is no call."""

import datetime
import http.client
import json
import os
from urllib.parse import parse_qsl, urlencode, urlparse, urlunparse

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

ENDPOINT = os.environ["AWS_ENDPOINT_URL"]
REGION = os.environ["AWS_REGION"]
HEADERS = {"X-Amz-Target": "TrentService.ListKeys", "Content-Type": "application/x-amz-json-1.1"}
MISMATCH = "The request signature we calculated does not match the signature you provided."


def credentials(**changed):
    own = {"access_key": os.environ["AWS_ACCESS_KEY_ID"], "secret_key": os.environ["AWS_SECRET_ACCESS_KEY"]}
    return Credentials(**{**own, **changed})


def request(body="{}", **headers):
    return AWSRequest(method="POST", url=f"{ENDPOINT}/", data=body, headers={**HEADERS, **headers})


def signed(made=None, who=None, service="kms", region=REGION):
    made = made or request()
    botocore.auth.SigV4Auth(who or credentials(), service, region).add_auth(made)
    return made


class Presigned(botocore.auth.SigV4QueryAuth):
    """botocore would move the body into the query, which AWS JSON does not read."""

    def _modify_request_before_signing(self, request):
        body, request.data = request.data, b""
        super()._modify_request_before_signing(request)
        request.data = body


def presigned(expires=60, made=None):
    made = made or request()
    Presigned(credentials(), "kms", REGION, expires=expires).add_auth(made)
    return made


def send(made, method=None):
    """Status, headers and JSON body of the answer; without botocore, which would sign by itself."""
    prepared = made.prepare()
    url = urlparse(prepared.url)
    connection = http.client.HTTPConnection(url.netloc, timeout=60)
    path = f"{url.path}?{url.query}" if url.query else url.path
    connection.request(method or made.method, path, prepared.body, dict(prepared.headers.items()))
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, {k.lower(): v for k, v in answer.getheaders()}, json.loads(body) if body else None


def refused(made, name, message, status=400):
    answer = send(made)
    assert (answer[0], answer[2]["__type"]) == (status, name), answer
    assert message in answer[2]["message"], answer
    assert len(answer[1]["x-amzn-requestid"]) == 36


def at(monkeypatch, seconds):
    """Signs as at another time."""
    moment = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=seconds)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *_, **__: moment.replace(tzinfo=None))


def test_both_forms_are_accepted():
    for made in (signed(), presigned()):
        status, headers, body = send(made)
        assert status == 200 and "Keys" in body
        assert headers["content-type"] == "application/x-amz-json-1.1"


def test_a_signature_is_good_more_than_once():
    """Two equal requests of one second have one signature."""
    made = signed()
    assert [send(made)[0] for _ in range(3)] == [200, 200, 200]


def test_what_was_changed_after_signing_is_refused():
    body = signed()
    body.data = '{"Limit": 1}'
    target = signed()
    target.headers.replace_header("X-Amz-Target", "TrentService.ListAliases")
    url = presigned()
    parts = urlparse(url.url)
    query = [(k, "59" if k == "X-Amz-Expires" else v) for k, v in parse_qsl(parts.query)]
    url.url = urlunparse(parts._replace(query=urlencode(query)))
    added = presigned()
    added.url += "&more=1"
    for made in (body, target, url, added):
        refused(made, "InvalidSignatureException", MISMATCH)


def test_another_secret_is_refused():
    refused(signed(who=credentials(secret_key="x" * 40)), "InvalidSignatureException", MISMATCH)


@pytest.mark.parametrize("who", [{"access_key": "AKIAIOSFODNN7EXAMPLE"}, {"token": "a session"}], ids=str)
def test_an_access_key_or_session_that_nobody_has_is_refused(who):
    message = "The security token included in the request is invalid."
    refused(signed(who=credentials(**who)), "UnrecognizedClientException", message)


def test_a_request_without_a_signature_is_refused():
    refused(request(), "MissingAuthenticationTokenException", "Request is missing Authentication Token")


@pytest.mark.parametrize(
    "header, message",
    [
        ("Bearer x", "Unsupported AWS 'algorithm': 'Bearer'."),
        ("AWS4-HMAC-SHA256 ", "requires 'Credential' parameter."),
        ("AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=host, Signature=c", "5 slash-delimited elements"),
    ],
)
def test_a_broken_signature_is_incomplete(header, message):
    made = request(**{"X-Amz-Date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")})
    made.headers["Authorization"] = header
    if "Credential" in header:
        made.headers["Authorization"] = header.replace("=host", "=host;x-amz-date;x-amz-target")
    refused(made, "IncompleteSignatureException", message)


def test_a_date_that_is_none_is_refused():
    made = signed()
    made.headers.replace_header("X-Amz-Date", "yesterday")
    refused(made, "IncompleteSignatureException", "Date must be in ISO-8601 'basic format'. Got 'yesterday'.")


@pytest.mark.parametrize("header", ["host", "x-amz-target"])
def test_the_host_and_awss_headers_must_be_signed(header):
    made = signed()
    authorization = made.headers["Authorization"]
    names = authorization.split("SignedHeaders=")[1].split(",")[0]
    fewer = ";".join(name for name in names.split(";") if name != header)
    made.headers.replace_header("Authorization", authorization.replace(names, fewer))
    refused(made, "InvalidSignatureException", "must be a 'SignedHeader' in the AWS Authorization.")


def test_the_scope_must_be_this_service_and_region():
    refused(signed(region="eu-central-1"), "InvalidSignatureException", "Credential should be scoped to a valid region")
    refused(
        signed(service="cloudtrail"),
        "InvalidSignatureException",
        "Credential should be scoped to correct service: 'kms'.",
    )


def test_a_signature_of_another_time_is_refused(monkeypatch):
    at(monkeypatch, -400)
    refused(signed(), "InvalidSignatureException", "Signature expired: ")
    refused(presigned(expires=60), "InvalidSignatureException", "Signature expired: ")
    assert send(presigned(expires=3600))[0] == 200, "a presigned URL is good until it expires"
    at(monkeypatch, 400)
    refused(signed(), "InvalidSignatureException", "Signature not yet current: ")
    at(monkeypatch, -200)
    assert send(signed())[0] == 200
    at(monkeypatch, 200)
    assert send(signed())[0] == 200


def test_the_payload_must_be_signed():
    unsigned = signed(request(**{"X-Amz-Content-SHA256": "UNSIGNED-PAYLOAD"}))
    refused(unsigned, "InvalidSignatureException", "The payload must be signed")
    other = signed(request(**{"X-Amz-Content-SHA256": "0" * 64}))
    refused(other, "InvalidSignatureException", "is not the hash of the payload")


def test_a_url_may_not_be_good_for_more_than_a_week():
    refused(presigned(expires=604801), "IncompleteSignatureException", "X-Amz-Expires must be from 1 to 604800")


def test_an_unknown_operation_is_told():
    made = signed(request(**{"X-Amz-Target": "TrentService.Nothing"}))
    refused(made, "UnknownOperationException", "TrentService.Nothing")
    refused(signed(request(**{"X-Amz-Target": "HsmService.ListMembers"})), "UnknownOperationException", "")
    assert send(signed(), method="GET")[0] == 404


def test_a_body_over_the_limit_is_refused_before_it_is_read():
    made = request(body="x" * (1 << 20) + "x")
    try:
        status = send(signed(made))[0]
    except (BrokenPipeError, ConnectionResetError):
        return
    assert status == 413


def test_what_is_no_json_is_a_call_and_on_the_record(trail):
    for body, message in (("{", "not JSON"), ('{"Limit": "1"}', "STRING_VALUE can not be converted to an Integer")):
        status, headers, answer = send(signed(request(body=body)))
        assert (status, answer["__type"]) == (400, "SerializationException")
        assert message in answer["message"]
        request_id = headers["x-amzn-requestid"]
        name = [{"AttributeKey": "EventName", "AttributeValue": "ListKeys"}]
        records = [json.loads(e["CloudTrailEvent"]) for e in trail.lookup_events(LookupAttributes=name)["Events"]]
        [record] = [record for record in records if record["requestID"] == request_id]
        assert record["errorCode"] == "SerializationException"


def test_null_is_absent_and_unknown_members_are_ignored():
    status, _, body = send(signed(request(body='{"Limit": 1, "Marker": null, "NotAMember": [{}]}')))
    assert status == 200 and len(body["Keys"]) <= 1


def test_an_empty_list_is_not_an_absent_one():
    status, _, body = send(signed(request(body='{"ResourceOwners": []}')))
    assert (status, body["__type"]) == (400, "ValidationException")
    assert "at 'resourceOwners' failed to satisfy constraint" in body["message"]


def test_twelve_digits_are_an_accounts_root(client):
    """The daemon runs with --emulator-credentials."""
    digits = {"aws_access_key_id": "999988887777", "aws_secret_access_key": "test"}
    for session in ({}, {"aws_session_token": "test"}):
        emulated = client("kms", **digits, **session)
        key = emulated.create_key()["KeyMetadata"]
        assert key["AWSAccountId"] == "999988887777"
        blob = emulated.encrypt(KeyId=key["KeyId"], Plaintext=b"x")["CiphertextBlob"]
        assert emulated.decrypt(CiphertextBlob=blob)["Plaintext"] == b"x"
    other = client("kms", aws_access_key_id="999988887777", aws_secret_access_key="nottest")
    with pytest.raises(other.exceptions.ClientError, match="InvalidSignatureException"):
        other.list_keys()
