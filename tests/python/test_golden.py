"""Each operation's record, of a success and of a failure, as a person can read it: golden/OPERATION.json.

GOLDEN=write makes the files again; look at what changed before you keep it."""

import functools
import json
import os
import re
from pathlib import Path

import pytest

from client import OPERATIONS, KmsError, snake
from conftest import Key
from samples import NO_STORE, Samples

FOLDER = Path(__file__).with_name("golden")
NOBODY = "00000000-0000-4000-8000-000000000000"
# What would change the keys of the others comes after them.
LAST = ["DeleteAlias", "DisableKey", "EnableKey", "ScheduleKeyDeletion"]
FAILING = {
    "CreateKey": {"key_spec": "RSA_2048"},
    "ListKeys": {"marker": "nobody's"},
    "GenerateRandom": {},
    "Decrypt": {"ciphertext_blob": b"no ciphertext"},
    "ReEncrypt": {"ciphertext_blob": b"no ciphertext", "destination_key_id": NOBODY},
    "CreateAlias": {"alias_name": "alias/golden", "target_key_id": NOBODY},
    "UpdateAlias": {"alias_name": "alias/golden", "target_key_id": NOBODY},
    "DeleteAlias": {"alias_name": "alias/golden"},
    "ListRetirableGrants": {"retiring_principal": "arn:aws:iam::111122223333:user/sample", "marker": "nobody's"},
    "DescribeCustomKeyStores": NO_STORE,
}
# What differs from run to run, and what stands for it; longer ones first.
VARIABLE = [
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "TIME"),
    (r"[A-Z][a-z]{2} \d{1,2}, \d{4}, \d{1,2}:\d\d:\d\d [AP]M", "TIME"),
    (rf"(?!{NOBODY})[0-9a-f]{{8}}-[0-9a-f]{{4}}-[0-9a-f]{{4}}-[0-9a-f]{{4}}-[0-9a-f]{{12}}", "UUID"),
    (r"mrk-[0-9a-f]{32}", "mrk-ID"),
    (r"[0-9a-f]{64}", "SHA256"),
    (r"serial=[0-9a-f]{16}", "serial=SERIAL"),
    (r"cluster-(?!a{11})[2-7a-z]{11}", "cluster-ID"),
    (r"\b[0-9a-f]{32}\b", "FINGERPRINT"),
    (r"(?s)-----BEGIN CERTIFICATE-----.*-----END CERTIFICATE-----\n", "CERTIFICATE"),
    (r"alias/sample/[0-9a-f/]+", "alias/sample/NAME"),
    (r"(AIDA|AKIA|AROA)[A-Z0-9]{16,}", r"\1ID"),
    (r"(127\.0\.0\.1|localhost):\d+", r"\1:PORT"),
    (r"grpc-python/\S+ .*", "grpc-python"),
    (r"TLS_[A-Z0-9_]+|TLS13_[A-Z0-9_]+", "CIPHER"),
]


def redacted(value):
    """The same, whenever and wherever it was made."""
    if isinstance(value, dict):
        return {name: redacted(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [redacted(inner) for inner in value]
    if isinstance(value, str):
        for pattern, name in VARIABLE:
            value = re.sub(pattern, name, value)
    return value


@pytest.fixture(scope="module")
def records(kms, events):
    """Of each operation the records of a success and of a failure."""
    keys = functools.cache(lambda spec, usage="ENCRYPT_DECRYPT": Key(kms, spec, usage))
    samples, made = Samples(kms, keys), {}
    order = [name for name in OPERATIONS if name not in LAST] + LAST
    for name in order:
        call = getattr(kms, snake(name))
        good = samples[name]
        bad = FAILING.get(name) or ({**good, "key_id": NOBODY} if "key_id" in good else good)
        for outcome, request in (("success", good), ("failure", bad)):
            try:
                call(**request)
            except KmsError as error:
                made[error.request_id] = (name, "failure")
            else:
                made[kms.calls[-1].request_id] = (name, "success")
    found = {name: {} for name in order}
    for record in events.until(made):
        if record.get("requestID") in made:
            name, outcome = made[record["requestID"]]
            found[name].setdefault(outcome, redacted(record))
    return found


def test_every_operation_has_a_file():
    assert {file.stem for file in FOLDER.glob("*.json")} == set(OPERATIONS), "GOLDEN=write makes them"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_record_is_as_it_was(records, operation):
    compare(FOLDER / f"{operation}.json", records[operation])


def compare(file, found):
    """Records with those of a golden file, or GOLDEN=write."""
    if os.environ.get("GOLDEN") == "write":
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(file.read_text())
