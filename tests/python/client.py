"""A client of the service made from proto/ alone, with PyPI's grpcio.

Members are given by their proto names, enums by AWS's text:

    kms.create_key(key_spec="RSA_2048", key_usage="SIGN_VERIFY")

A failure raises KmsError with KMS's exception name. Every call is kept in
`calls`, and everything secret that was sent or received in `secrets`, so that
the event log can be compared with them.
"""

import atexit
import importlib
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import grpc
import grpc_tools
from google.protobuf.descriptor import FieldDescriptor
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from grpc_tools import protoc

PROTO = Path(__file__).resolve().parents[2] / "proto"
CALL_TIMEOUT_S = 60
DOMAIN = "kms.amazonaws.com"
REQUEST_ID = "x-request-id"
# A shorter byte string occurs in an event by chance.
SECRET_BYTES_MIN = 8


def _compiled():
    """Compiles proto/ into a folder of its own and imports it."""
    folder = tempfile.mkdtemp(prefix="strongroom-proto-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    well_known = str(Path(grpc_tools.__file__).parent / "_proto")
    files = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    status = protoc.main(["protoc", f"-I{PROTO}", f"-I{well_known}", f"--python_out={folder}", *files])
    if status != 0:
        raise RuntimeError(f"protoc refuses {PROTO}")
    sys.path.insert(0, folder)
    load = lambda package: importlib.import_module(f"strongroom.{package}.v1.{package}_pb2")
    return map(load, ["options", "kms", "cloudtrail", "organizations", "iam", "hsm", "admin"])


options_pb2, kms_pb2, cloudtrail_pb2, organizations_pb2, iam_pb2, hsm_pb2, admin_pb2 = _compiled()
KMS = kms_pb2.DESCRIPTOR.services_by_name["KeyManagementService"]
CLOUDTRAIL_DATA = cloudtrail_pb2.DESCRIPTOR.services_by_name["CloudTrailDataService"]
CLOUDTRAIL = cloudtrail_pb2.DESCRIPTOR.services_by_name["CloudTrailService"]
ORGANIZATIONS = organizations_pb2.DESCRIPTOR.services_by_name["OrganizationsService"]
IAM = iam_pb2.DESCRIPTOR.services_by_name["IdentityService"]
HSM = hsm_pb2.DESCRIPTOR.services_by_name["HsmService"]
ADMIN = admin_pb2.DESCRIPTOR.services_by_name["AdminService"]
OPERATIONS = {method.name: method for method in KMS.methods}


class KmsError(Exception):
    """What the service refused, in google.rpc.ErrorInfo's terms."""

    def __init__(self, error):
        self.code = error.code()
        self.message = error.details()
        self.request_id = _metadata(error.trailing_metadata()).get(REQUEST_ID)
        status = rpc_status.from_call(error)
        details = {any_.TypeName(): any_ for any_ in status.details} if status else {}
        info = error_details_pb2.ErrorInfo()
        if "google.rpc.ErrorInfo" in details:
            details["google.rpc.ErrorInfo"].Unpack(info)
        self.name, self.domain = info.reason, info.domain
        super().__init__(f"{self.name or self.code}: {self.message}")


@dataclass(frozen=True)
class Call:
    """One call as its client saw it."""

    request_id: str
    service: str
    operation: str
    error: str | None
    request: object


def snake(operation):
    """GenerateDataKey -> generate_data_key."""
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in operation).lstrip("_")


def enum_prefix(enum):
    """KeySpec -> KEY_SPEC_."""
    return f"{snake(enum.name)}_".upper()


def enum_text(value):
    """AWS's text of an enum value."""
    text = value.GetOptions().Extensions[options_pb2.text]
    return text or value.name.removeprefix(enum_prefix(value.type))


def _number(enum, value):
    if not isinstance(value, str):
        return value
    return next(v.number for v in enum.values if v.number and enum_text(v) == value)


def message(descriptor, **members):
    """A message; enums by their text, nested messages as dicts."""
    built = descriptor._concrete_class()
    for name, value in members.items():
        field = descriptor.fields_by_name[name]
        if field.enum_type and isinstance(value, (list, tuple)):
            value = [_number(field.enum_type, each) for each in value]
        elif field.enum_type:
            value = _number(field.enum_type, value)
        if field.message_type and field.message_type.GetOptions().map_entry:
            getattr(built, name).update(value)
        elif field.message_type and isinstance(value, dict):
            getattr(built, name).CopyFrom(message(field.message_type, **value))
        elif field.message_type and isinstance(value, (list, tuple)):
            getattr(built, name).extend(message(field.message_type, **each) for each in value)
        elif isinstance(value, (list, tuple)):
            getattr(built, name).extend(value)
        else:
            setattr(built, name, value)
    return built


def text(answer, member):
    """An enum member of an answer as AWS writes it; a list of them as a list."""
    enum = answer.DESCRIPTOR.fields_by_name[member].enum_type
    value = getattr(answer, member)
    name = lambda number: enum_text(enum.values_by_number[number])
    return name(value) if isinstance(value, int) else [name(each) for each in value]


def _metadata(pairs):
    return {key: value for key, value in pairs or ()}


def _secrets(built):
    """Every byte string of a message, and every string that its proto calls secret."""
    for field, value in built.ListFields():
        if field.type == FieldDescriptor.TYPE_BYTES:
            yield value
        elif field.GetOptions().Extensions[options_pb2.secret]:
            yield from (each.encode() for each in ([value] if isinstance(value, str) else value))
        elif field.message_type and not field.message_type.GetOptions().map_entry:
            nested = [value] if hasattr(value, "ListFields") else value
            for each in nested:
                yield from _secrets(each)


class Service:
    """One gRPC service over mutual TLS; a method per rpc."""

    calls = []
    secrets = set()

    def __init__(self, service, channel=None):
        self.service = service
        self.channel = channel or connect()

    def __getattr__(self, name):
        method = next((m for m in self.service.methods if snake(m.name) == name), None)
        if method is None:
            raise AttributeError(name)
        return lambda **members: self.call(method, message(method.input_type, **members))

    def call(self, method, request, metadata=()):
        """Sends a message; raises KmsError."""
        self.secrets.update(_secrets(request))
        answer = self.send(method, request.SerializeToString(), request, metadata)
        answer = method.output_type._concrete_class.FromString(answer)
        self.secrets.update(_secrets(answer))
        return answer

    def send(self, method, data, request=None, metadata=()):
        """Sends bytes, which need not be a message, and gives the answer's bytes."""
        path = f"/{self.service.full_name}/{method.name}"
        try:
            answer, call = self.channel.unary_unary(path).with_call(data, CALL_TIMEOUT_S, metadata)
        except grpc.RpcError as error:
            raised = KmsError(error)
            self._note(raised.request_id, method, raised.name, request)
            raise raised from None
        self._note(_metadata(call.initial_metadata()).get(REQUEST_ID), method, None, request)
        return answer

    def stream_events(self, **members):
        """Subscribes; gives an iterator of StreamEventsResponse that stands when this returns."""
        method = self.service.methods_by_name["StreamEvents"]
        stream = self.channel.unary_stream(
            f"/{self.service.full_name}/{method.name}",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=method.output_type._concrete_class.FromString,
        )(message(method.input_type, **members))
        self._note(_metadata(stream.initial_metadata()).get(REQUEST_ID), method, None, None)
        return stream

    def _note(self, request_id, method, error, request):
        self.calls.append(Call(request_id, self.service.full_name, method.name, error, request))


def connect(environment=os.environ):
    """A channel to where the environment says, as `strongroom dev` writes it."""
    read = lambda name: Path(environment[name]).read_bytes()
    credentials = grpc.ssl_channel_credentials(
        root_certificates=read("STRONGROOM_CA"),
        private_key=read("STRONGROOM_KEY"),
        certificate_chain=read("STRONGROOM_CERT"),
    )
    # grpc's own retries would be calls that nobody sees.
    options = [("grpc.enable_retries", 0), ("grpc.max_receive_message_length", 8 << 20)]
    return grpc.secure_channel(urlparse(environment["STRONGROOM_ENDPOINT"]).netloc, credentials, options)
