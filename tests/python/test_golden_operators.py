"""The records of what is no operation of KMS, of a success and of a failure: golden/SERVICE/OPERATION.json.

The daemon is one of its own, whose HSMs come and go."""

import base64
import json
import time

import grpc
import pytest

from client import (
    ADMIN,
    CLOUDTRAIL,
    CLOUDTRAIL_DATA,
    HSM,
    IAM,
    ORGANIZATIONS,
    SECRET_BYTES_MIN,
    KmsError,
    Service,
    connect,
    message,
)
from conftest import Collector
from daemons import Daemon, until
from test_events import FIELDS, forms, leaves
from test_golden import FOLDER, NOBODY, compare, redacted

ACCOUNT = "111122223333"
TRAIL = f"arn:aws:cloudtrail:us-east-1:{ACCOUNT}:trail/golden"
CHANNEL = f"arn:aws:cloudtrail:us-east-1:{ACCOUNT}:channel/billing"
NO_CLUSTER = "cluster-aaaaaaaaaaa"
# Who is no service and says for whom it calls is denied whatever it asks.
DENIED = (("strongroom-source-account", ACCOUNT),)
SERVICES = [CLOUDTRAIL, CLOUDTRAIL_DATA, ORGANIZATIONS, IAM, HSM, ADMIN]
OPERATIONS = [(service.full_name.split(".")[1], method.name) for service in SERVICES for method in service.methods]
# As in conftest of the tests over AWS JSON: CloudTrail's facts.
OPTIONAL = {"errorCode", "errorMessage", "additionalEventData", "resources", "tlsDetails"}
CHANGES = {
    "cloudtrail.amazonaws.com": "Create Update Delete Start Stop Put Add Remove Rotate",
    "cloudtrail-data.amazonaws.com": "Put",
    "organizations.amazonaws.com": "",
    "iam.amazonaws.com": "Create Update Delete",
    "hsm.strongroom": "Add Remove Replace Begin End Check Create Initialize Delete",
    "admin.strongroom": "Recover Confirm",
}


class Apart(Service):
    """Calls that the other tests' events have nothing to do with."""

    calls, secrets = [], set()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    started = Daemon(folder, "--members", "2", STRONGROOM_TRAIL__FOLDER=str(folder / "buckets"))
    yield started
    started.stop()


class Calls:
    """Calls each operation once that succeeds and once that fails, and keeps their request ids."""

    def __init__(self, daemon):
        own = connect(daemon.env)
        # grpc would put the path there, which is no name of a host.
        named = [("grpc.default_authority", "localhost")]
        host = grpc.insecure_channel(f"unix:{daemon.dir / 'strongroom.sock'}", named)
        self.services = {service: Apart(service, host if service is ADMIN else own) for service in SERVICES}
        self.events, self.made = Collector(self.services[CLOUDTRAIL]), {}
        self.pki = (daemon.dir / "pki/ca.pem").read_text()
        self.key_store = (daemon.dir / "key-store/uri").read_text()

    def __call__(self, service, operation, good, bad=None):
        """`bad` is what fails; where nothing would, who asks is denied."""
        client, method = self.services[service], service.methods_by_name[operation]
        package = service.full_name.split(".")[1]
        answer = until(lambda: self.answered(client, method, good), f"{operation} answers")
        self.made[client.calls[-1].request_id] = (package, operation, "success")
        metadata = DENIED if bad is None else ()
        with pytest.raises(KmsError) as raised:
            client.call(method, message(method.input_type, **(bad or {})), metadata)
        self.made[raised.value.request_id] = (package, operation, "failure")
        return answer


    @staticmethod
    def answered(client, method, request):
        """None while an HSM is not yet ready for it."""
        try:
            return client.call(method, message(method.input_type, **request)) or True
        except KmsError as error:
            assert error.name == "KMSInvalidStateException" and "does not answer" in error.message, error
            return None


def trails(call):
    of = lambda operation, good, bad=None: call(CLOUDTRAIL, operation, good, bad)
    named, nobody = {"name": "golden"}, {"name": "nobody"}
    by_name, unknown = {"trail_name": "golden"}, {"trail_name": "nobody"}
    tags = [{"key": "team", "value": "red"}]
    of("CreateTrail", {**named, "s3_bucket_name": "golden-bucket", "s3_key_prefix": "some", "tags_list": tags}, {"name": "a", "s3_bucket_name": "golden-bucket"})
    of("UpdateTrail", {**named, "enable_log_file_validation": True, "is_multi_region_trail": True}, nobody)
    of("StartLogging", named, nobody)
    of("GetTrail", named, nobody)
    of("GetTrailStatus", named, nobody)
    of("DescribeTrails", {"trail_name_list": ["golden"]}, {"trail_name_list": ["no trail!"]})
    of("ListTrails", {})
    only_changes = {"read_write_type": "WriteOnly", "include_management_events": True}
    resources = [{"type": "AWS::KMS::Key", "values": ["arn:aws:kms"]}]
    selectors = [{**only_changes, "data_resources": resources}]
    of("PutEventSelectors", {**by_name, "event_selectors": selectors}, {**unknown, "event_selectors": selectors})
    of("GetEventSelectors", by_name, unknown)
    insights = [{"insight_type": "ApiCallRateInsight", "event_categories": ["Management", "Data"]}]
    of("PutInsightSelectors", {**by_name, "insight_selectors": insights}, {**unknown, "insight_selectors": insights})
    of("GetInsightSelectors", by_name, unknown)
    data = {"event_source": "kms.amazonaws.com", "event_name": "Decrypt", "insight_type": "ApiCallRateInsight"}
    of("ListInsightsMetricData", {**by_name, **data}, {**unknown, **data})
    of("AddTags", {"resource_id": TRAIL, "tags_list": tags}, {"resource_id": f"{TRAIL}-nobodys", "tags_list": tags})
    of("ListTags", {"resource_id_list": [TRAIL]}, {"resource_id_list": [f"{TRAIL}-nobodys"]})
    of("RemoveTags", {"resource_id": TRAIL, "tags_list": tags}, {"resource_id": "no ARN", "tags_list": tags})
    of("ListPublicKeys", {}, {"next_token": "nobody's"})
    of("RotateDigestKey", {})
    attribute = {"attribute_key": "EventName", "attribute_value": "CreateTrail"}
    of("LookupEvents", {"lookup_attributes": [attribute], "max_results": 1}, {"max_results": 51})
    of("VerifyEvents", {}, {"expected_head": ""})
    of("StopLogging", named, nobody)
    of("DeleteTrail", named, nobody)


def stream(call):
    client = call.services[CLOUDTRAIL]
    client.stream_events(event_names=["Encrypt"]).cancel()
    call.made[client.calls[-1].request_id] = ("cloudtrail", "StreamEvents", "success")
    failing = client.stream_events(event_pattern="no pattern")
    with pytest.raises(grpc.RpcError) as raised:
        next(failing)
    call.made[KmsError(raised.value).request_id] = ("cloudtrail", "StreamEvents", "failure")


def put(call):
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    event = {
        "version": "1.0",
        "userIdentity": {"type": "CustomUserIdentity", "principalId": "clerk-7"},
        "eventSource": "billing.example",
        "eventName": "Refund",
        "eventTime": now,
        "UID": "refund-1",
    }
    entry = {"id": "one", "event_data": json.dumps(event)}
    good = {"channel_arn": CHANNEL, "audit_events": [entry]}
    call(CLOUDTRAIL_DATA, "PutAuditEvents", good, {**good, "channel_arn": "arn:nobody's"})


def access_keys(call):
    of = lambda operation, good, bad=None: call(IAM, operation, good, bad)
    user, nobody = {"user_name": "administrator"}, {"user_name": "nobody"}
    made = of("CreateAccessKey", user, nobody).access_key
    assert made.secret_access_key
    one, unknown = {"access_key_id": made.access_key_id}, {"access_key_id": "AKIAIOSFODNN7EXAMPLE"}
    of("ListAccessKeys", user)
    of("UpdateAccessKey", {**user, **one, "status": "Inactive"}, {**unknown, "status": "Inactive"})
    of("DeleteAccessKey", one, unknown)


def members(call):
    of = lambda operation, good, bad=None: call(HSM, operation, good, bad)
    first, second = sorted(call.services[HSM].list_members().members, key=lambda member: member.module)
    one, other, nobody = {"token": first.uri}, {"token": second.uri}, {"token": "pkcs11:token=nobody;serial=0"}
    add = lambda member, pin: {"token": member.uri, "module": member.module, "pin": pin}
    of("ListMembers", {})
    of("ListTokens", {"module": "softhsm2"}, {"module": "nobody"})
    of("CheckMember", other, nobody)
    of("BeginMaintenance", other, nobody)
    of("EndMaintenance", other, nobody)
    serving = lambda: [m.uri for m in call.services[HSM].list_members().members if m.state == 2]
    until(lambda: len(serving()) == 2, "both members serve")
    of("RemoveMember", other, nobody)
    of("AddMember", add(second, "crypto-user-2"), {**nobody, "module": "nobody"})
    until(lambda: len(serving()) == 2, "both members serve")
    call.services[HSM].remove_member(**one)
    replaced = {"replaced_token": second.uri, **add(first, "crypto-user")}
    of("ReplaceMember", replaced, {**replaced, "replaced_token": nobody["token"]})


def clusters(call):
    of = lambda operation, good, bad=None: call(HSM, operation, good, bad)
    tokens = {"name": "golden", "members": [{"module": "key-store", "token": call.key_store}]}
    anchor = {"trust_anchor_certificate": call.pki}
    made = of("CreateCluster", {**tokens, **anchor}, {**tokens, "trust_anchor_certificate": "nobody's"})
    cluster, nobody = {"cluster_id": made.cluster.cluster_id}, {"cluster_id": NO_CLUSTER}
    of("InitializeCluster", {**cluster, "pin": "key-store"}, {**nobody, "pin": "key-store"})
    of("DescribeClusters", cluster, nobody)
    of("DeleteCluster", cluster, nobody)


def host(call, daemon):
    of = lambda operation, good, bad=None: call(ADMIN, operation, good, bad)
    key = daemon.client().create_key()["KeyMetadata"]["Arn"]
    of("RecoverKeyPolicy", {"key_id": key}, {"key_id": NOBODY})
    ask = {"principal": f"arn:aws:iam::{ACCOUNT}:user/administrator", "action": "kms:Decrypt"}
    context = {"kms:EncryptionContext:team": "red"}
    of("ExplainAccess", {**ask, "key_id": key, "context": context}, {**ask, "key_id": NOBODY})
    of("ConfirmClock", {})


@pytest.fixture(scope="module")
def records(daemon):
    """Of each operation the records of a success and of a failure."""
    call = Calls(daemon)
    trails(call)
    stream(call)
    put(call)
    call(ORGANIZATIONS, "DescribeOrganization", {})
    access_keys(call)
    clusters(call)
    host(call, daemon)
    members(call)
    found = {}
    for record in call.events.until(call.made):
        if record.get("requestID") in call.made:
            *operation, outcome = call.made[record["requestID"]]
            found.setdefault(tuple(operation), {})[outcome] = record
    call.events.stop()
    return found


@pytest.mark.parametrize("service, operation", OPERATIONS)
def test_a_record_is_as_it_was(records, service, operation):
    assert set(records[service, operation]) == {"success", "failure"}
    compare(FOLDER / service / f"{operation}.json", redacted(records[service, operation]))


@pytest.mark.parametrize("service, operation", OPERATIONS)
def test_a_record_is_cloudtrails(records, service, operation):
    for outcome, record in records[service, operation].items():
        by_host = service == "admin"
        assert FIELDS - ({"tlsDetails"} if by_host else set()) <= set(record) <= FIELDS | OPTIONAL
        assert ("errorCode" in record) is (outcome == "failure")
        changes = operation.startswith(tuple(CHANGES[record["eventSource"]].split() or "-"))
        assert (record["readOnly"], record["eventName"]) == (not changes, operation)
        if record["readOnly"] or outcome == "failure":
            assert record["responseElements"] is None
        assert (record["eventVersion"], record["eventType"]) == ("1.11", "AwsApiCall")
        assert (record["eventCategory"], record["managementEvent"]) == ("Management", True)
        assert record["recipientAccountId"] == ACCOUNT and len(record["userAgent"]) <= 1024


def test_every_operation_has_a_file():
    files = {(file.parent.name, file.stem) for file in FOLDER.glob("*/*.json")}
    assert files == set(OPERATIONS), "GOLDEN=write makes them"


def test_no_record_has_a_secret(records):
    everything = "\n".join(leaves(list(records.values())))
    pins = {base64.b64encode(b"key-store").decode()}
    secrets = [secret for secret in Apart.secrets if len(secret) >= SECRET_BYTES_MIN]
    assert secrets
    assert not [secret for secret in secrets for form in forms(secret) if form[:24] in everything]
    assert not [pin for pin in pins if pin in everything]
