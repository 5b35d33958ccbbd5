"""DryRun: every check of the call, and none of its effect."""

import pytest

from algorithms import flipped
from client import OPERATIONS, snake
from samples import WITHOUT_KEY

TRIALS = [
    name
    for name, method in OPERATIONS.items()
    if "dry_run" in method.input_type.fields_by_name and name not in WITHOUT_KEY
]

# A grant of a key that is disabled ends too.
ENDS = ("RetireGrant", "RevokeGrant")


@pytest.mark.parametrize("operation", TRIALS)
def test_a_trial_of_what_would_succeed(kms, samples, refused, operation):
    call = getattr(kms, snake(operation))
    with refused("DryRunOperationException"):
        call(**samples[operation], dry_run=True)
    call(**samples[operation], dry_run=False)


@pytest.mark.parametrize("operation", TRIALS)
def test_a_trial_of_what_would_not(kms, samples, new_key, refused, operation):
    sample = samples[operation]
    call = getattr(kms, snake(operation))
    named = "destination_key_id" if operation == "ReEncrypt" else "key_id"
    if operation not in ENDS:
        disabled = new_key()
        kms.disable_key(key_id=disabled.id)
        with refused("DisabledException"):
            call(**{**sample, named: disabled.id}, dry_run=True)
    with refused("NotFoundException"):
        call(**{**sample, named: "11111111-2222-3333-4444-555555555555"}, dry_run=True)


def test_a_trial_looks_at_the_data(kms, samples, refused):
    for operation, member, exception in (
        ("Decrypt", "ciphertext_blob", "InvalidCiphertextException"),
        ("ReEncrypt", "ciphertext_blob", "InvalidCiphertextException"),
        ("Verify", "signature", "KMSInvalidSignatureException"),
        ("VerifyMac", "mac", "KMSInvalidMacException"),
        ("DeriveSharedSecret", "public_key", "ValidationException"),
    ):
        sample = samples[operation]
        with refused(exception):
            getattr(kms, snake(operation))(**{**sample, member: flipped(sample[member])}, dry_run=True)


def test_a_trial_may_come_without_the_ciphertext(kms, keys, refused):
    key = keys("SYMMETRIC_DEFAULT").id
    ignore = {"dry_run_modifiers": ["IGNORE_CIPHERTEXT"]}
    with refused("DryRunOperationException"):
        kms.decrypt(key_id=key, dry_run=True, **ignore)
    with refused("DryRunOperationException"):
        kms.re_encrypt(source_key_id=key, destination_key_id=key, dry_run=True, **ignore)
    with refused("ValidationException"):
        kms.decrypt(key_id=key, **ignore)
    with refused("ValidationException"):
        kms.decrypt(key_id=key, dry_run=True)
