"""The service under test, its keys, and the events of all that the tests do."""

import functools
import json
import os
import threading
import time

import pytest
from cryptography.hazmat.primitives.serialization import load_der_public_key

from client import CLOUDTRAIL, KMS, KmsError, Service
from samples import Samples

EVENTS_TIMEOUT_S = 60


def pytest_collection_modifyitems(items):
    """What looks at the events of all calls comes after them."""
    items.sort(key=lambda item: item.module.__name__ == "test_events")


@pytest.fixture(scope="session")
def events():
    """Every event since the session began, as records."""
    collector = Collector(Service(CLOUDTRAIL))
    yield collector
    collector.stop()


@pytest.fixture(scope="session")
def kms(events):
    """The service; only with a subscription to its events."""
    return Service(KMS)


@pytest.fixture(scope="session")
def keys(kms):
    """One key per spec and usage, for tests that do not change it."""
    return functools.cache(lambda spec, usage="ENCRYPT_DECRYPT": Key(kms, spec, usage))


@pytest.fixture(scope="session")
def samples(kms, keys):
    """A request of each operation that succeeds."""
    return Samples(kms, keys)


@pytest.fixture
def fresh_samples(kms):
    """The same with keys of their own, for a test that really changes them."""
    return Samples(kms, functools.cache(lambda spec, usage="ENCRYPT_DECRYPT": Key(kms, spec, usage)))


@pytest.fixture
def new_key(kms):
    """Makes keys that a test may change; they are scheduled for deletion after it."""
    made = []

    def make(spec="SYMMETRIC_DEFAULT", usage="ENCRYPT_DECRYPT", **members):
        made.append(Key(kms, spec, usage, **members))
        return made[-1]

    yield make
    for key in made:
        try:
            kms.schedule_key_deletion(key_id=key.arn)
        except KmsError as error:
            # A test may have scheduled it already, or forbidden it by its policy.
            assert error.name in ("KMSInvalidStateException", "AccessDeniedException"), error


@pytest.fixture
def refused():
    """`with refused("NotFoundException", "…"):` wants this exception, and this text if one is given."""
    return Refused


class Refused:
    def __init__(self, name, message=None):
        self.name, self.message, self.error = name, message, None

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        assert error is not None, f"{self.name} was expected, and the call succeeded"
        if not isinstance(error, KmsError):
            return False
        assert (error.name, error.domain) == (self.name, "kms.amazonaws.com"), error
        if self.message is not None:
            assert error.message == self.message
        self.error = error
        return True


class Key:
    """A KMS key."""

    def __init__(self, kms, spec, usage, **members):
        self.kms, self.spec, self.usage = kms, spec, usage
        self.metadata = kms.create_key(key_spec=spec, key_usage=usage, **members).key_metadata
        self.id, self.arn = self.metadata.key_id, self.metadata.arn

    @functools.cached_property
    def public_der(self):
        """SubjectPublicKeyInfo."""
        return self.kms.get_public_key(key_id=self.arn).public_key

    @functools.cached_property
    def public(self):
        """The public key as `cryptography` loads it."""
        return load_der_public_key(self.public_der)


class Collector:
    """Reads StreamEvents in a thread."""

    def __init__(self, service):
        self.records, self.failure = [], None
        self.changed = threading.Condition()
        self.stream = service.stream_events()
        self.stopping = False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        try:
            for answer in self.stream:
                with self.changed:
                    self.records.append(json.loads(answer.event.cloud_trail_event))
                    self.changed.notify_all()
            self.failure = None if self.stopping else "the stream ended"
        except Exception as error:  # noqa: BLE001  (shown by `until`)
            self.failure = None if self.stopping else repr(error)

    def until(self, request_ids):
        """Waits for the events of these calls; gives all records there are."""
        deadline = time.monotonic() + EVENTS_TIMEOUT_S
        # A generator gives them once.
        wanted = set(request_ids)
        with self.changed:
            while missing := wanted - {record.get("requestID") for record in self.records}:
                assert self.failure is None, self.failure
                left = deadline - time.monotonic()
                assert left > 0, f"no event came for {sorted(missing)[:10]} ({len(missing)} calls)"
                self.changed.wait(min(left, 1))
            return list(self.records)

    def stop(self):
        self.stopping = True
        self.stream.cancel()


@pytest.fixture
def unique():
    """Letters that nobody else uses."""
    return os.urandom(8).hex()
