"""Unmodified clients that were written for AWS, with nothing set but the environment of DIR/env."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import aws_encryption_sdk
import pytest
from aws_cryptographic_material_providers.mpl import AwsCryptographicMaterialProviders
from aws_cryptographic_material_providers.mpl.config import MaterialProvidersConfig
from aws_cryptographic_material_providers.mpl.models import CreateAwsKmsKeyringInput
from aws_encryption_sdk import CommitmentPolicy, EncryptionSDKClient, StrictAwsKmsMasterKeyProvider
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key
from eth_account import Account
from eth_account._utils.legacy_transactions import encode_transaction, serializable_unsigned_transaction_from_dict
from eth_keys import keys as ethereum
from s3_encryption import S3EncryptionClient, S3EncryptionClientConfig
from s3_encryption.materials.kms_keyring import KmsKeyring

from daemons import Moto

COMMAND_TIMEOUT_S = 120
ROOT = Path(__file__).resolve().parents[3]
NODE = Path(os.environ.get("TEST_NODE", ROOT / "target/node"))
RUST = ROOT / "target/rust/debug/kms-client"
# The order of secp256k1 (SEC 2, 2.4.1).
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def command(*arguments, fails=False, **options):
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, **options)
    assert (done.returncode != 0) is fails, (arguments, done.stdout, done.stderr)
    return done.stderr if fails else done.stdout


def cli(*arguments, fails=False):
    """The aws command."""
    said = command(str(Path(sys.executable).with_name("aws")), "--output", "json", *arguments, fails=fails)
    return said if fails else json.loads(said or "null")


def test_the_aws_command_takes_a_key_through_its_life(tmp_path, unique):
    kms = lambda *arguments, **options: cli("kms", *arguments, **options)
    key = kms("create-key", "--description", "by the aws command", "--tags", "TagKey=a,TagValue=b")["KeyMetadata"]
    alias = f"alias/cli/{unique}"
    kms("create-alias", "--alias-name", alias, "--target-key-id", key["KeyId"])
    assert alias in [entry["AliasName"] for entry in kms("list-aliases", "--key-id", key["KeyId"])["Aliases"]]
    plain, blob = tmp_path / "plain", tmp_path / "blob"
    plain.write_bytes(os.urandom(1000))
    context = ("--encryption-context", '{"tenant": "one", "Kept As Is": "two"}')
    sealed = kms("encrypt", "--key-id", alias, "--plaintext", f"fileb://{plain}", *context)
    blob.write_bytes(base64.b64decode(sealed["CiphertextBlob"]))
    opened = kms("decrypt", "--ciphertext-blob", f"fileb://{blob}", *context)
    assert base64.b64decode(opened["Plaintext"]) == plain.read_bytes()
    assert "InvalidCiphertextException" in kms("decrypt", "--ciphertext-blob", f"fileb://{blob}", fails=True)
    kms("disable-key", "--key-id", key["KeyId"])
    refused = kms("encrypt", "--key-id", alias, "--plaintext", f"fileb://{plain}", fails=True)
    assert "DisabledException" in refused
    kms("enable-key", "--key-id", key["KeyId"])
    kms("update-key-description", "--key-id", key["KeyId"], "--description", "new")
    assert kms("describe-key", "--key-id", alias)["KeyMetadata"]["Description"] == "new"
    gone = kms("schedule-key-deletion", "--key-id", key["KeyId"], "--pending-window-in-days", "7")
    assert gone["KeyState"] == "PendingDeletion"
    assert kms("cancel-key-deletion", "--key-id", key["KeyId"])["KeyId"] == key["Arn"]
    kms("delete-alias", "--alias-name", alias)
    kms("schedule-key-deletion", "--key-id", key["KeyId"])
    event = cli("cloudtrail", "lookup-events", "--max-items", "1")["Events"][0]
    assert json.loads(event["CloudTrailEvent"])["eventName"] in ("ScheduleKeyDeletion", "LookupEvents")


def test_the_aws_command_signs_and_openssl_verifies(tmp_path):
    kms = lambda *arguments, **options: cli("kms", *arguments, **options)
    key = kms("create-key", "--key-usage", "SIGN_VERIFY", "--key-spec", "ECC_NIST_P256")["KeyMetadata"]["KeyId"]
    message, signature, public = (tmp_path / name for name in ("message", "signature", "public"))
    message.write_bytes(os.urandom(100))
    asked = ("--key-id", key, "--message", f"fileb://{message}", "--signing-algorithm", "ECDSA_SHA_256")
    signature.write_bytes(base64.b64decode(kms("sign", *asked)["Signature"]))
    public.write_bytes(base64.b64decode(kms("get-public-key", "--key-id", key)["PublicKey"]))
    options = ("-verify", str(public), "-keyform", "DER", "-signature", str(signature), str(message))
    assert "OK" in command("openssl", "dgst", "-sha256", *options)
    assert kms("verify", *asked, "--signature", f"fileb://{signature}")["SignatureValid"] is True


def test_the_encryption_sdk_with_a_kms_keyring(aws):
    """It makes data keys by GenerateDataKey and opens them by Decrypt, with a context of its own."""
    key = aws.create_key()["KeyMetadata"]["Arn"]
    providers = AwsCryptographicMaterialProviders(config=MaterialProvidersConfig())
    keyring = providers.create_aws_kms_keyring(
        input=CreateAwsKmsKeyringInput(kms_key_id=key, kms_client=aws)
    )
    sdk = EncryptionSDKClient(commitment_policy=CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT)
    plaintext, context = os.urandom(100_000), {"tenant": "one"}
    sealed, _ = sdk.encrypt(source=plaintext, keyring=keyring, encryption_context=context)
    opened, header = sdk.decrypt(source=sealed, keyring=keyring, encryption_context=context)
    assert opened == plaintext and header.encryption_context["tenant"] == "one"


def test_the_encryption_sdk_with_caching(aws):
    key = aws.create_key()["KeyMetadata"]["Arn"]
    master = StrictAwsKmsMasterKeyProvider(key_ids=[key])
    cache = aws_encryption_sdk.LocalCryptoMaterialsCache(capacity=10)
    manager = aws_encryption_sdk.CachingCryptoMaterialsManager(
        master_key_provider=master, cache=cache, max_age=600.0, max_messages_encrypted=10
    )
    sdk = EncryptionSDKClient()
    sealed = [sdk.encrypt(source=b"%d" % n, materials_manager=manager)[0] for n in range(4)]
    assert [sdk.decrypt(source=each, materials_manager=manager)[0] for each in sealed] == [b"0", b"1", b"2", b"3"]


def test_an_object_that_is_encrypted_before_it_is_in_s3(client, aws, unique):
    """AWS's S3 encryption client with a multi-Region key: put in one Region, read in another."""
    key = aws.create_key(MultiRegion=True)["KeyMetadata"]["Arn"]
    aws.replicate_key(KeyId=key, ReplicaRegion="eu-west-1")
    moto = Moto()
    try:
        plain = moto.client("s3")
        plain.create_bucket(Bucket=unique)
        of = lambda kms, id_: S3EncryptionClient(moto.client("s3"), S3EncryptionClientConfig(KmsKeyring(kms, id_)))
        body, context = os.urandom(100_000), {"tenant": "one"}
        of(aws, key).put_object(Bucket=unique, Key="a", Body=body, EncryptionContext=context)
        stored = plain.get_object(Bucket=unique, Key="a")
        assert body not in stored["Body"].read()
        west = of(client("kms", region_name="eu-west-1"), key.replace("us-east-1", "eu-west-1"))
        read = west.get_object(Bucket=unique, Key="a", EncryptionContext=context)["Body"].read()
        assert read == body
        with pytest.raises(Exception, match="(?i)context"):
            west.get_object(Bucket=unique, Key="a", EncryptionContext={"tenant": "two"})["Body"].read()
    finally:
        moto.stop()


def test_an_ethereum_signer(aws):
    """KMS signs the digest; v is found by recovering; the transaction is this address's."""
    key = aws.create_key(KeyUsage="SIGN_VERIFY", KeySpec="ECC_SECG_P256K1")["KeyMetadata"]["KeyId"]
    public = load_der_public_key(aws.get_public_key(KeyId=key)["PublicKey"]).public_numbers()
    public = ethereum.PublicKey(public.x.to_bytes(32, "big") + public.y.to_bytes(32, "big"))
    unsigned = serializable_unsigned_transaction_from_dict(
        {"nonce": 0, "gasPrice": 10**9, "gas": 21000, "to": "0x" + "11" * 20, "value": 1, "data": b"", "chainId": 1}
    )
    digest = unsigned.hash()
    signature = aws.sign(KeyId=key, Message=digest, MessageType="DIGEST", SigningAlgorithm="ECDSA_SHA_256")
    r, s = decode_dss_signature(signature["Signature"])
    s = min(s, ORDER - s)
    recovered = lambda v: ethereum.Signature(vrs=(v, r, s)).recover_public_key_from_msg_hash(digest)
    [v] = [v for v in (0, 1) if recovered(v) == public]
    raw = encode_transaction(unsigned, (v + 35 + 2 * 1, r, s))
    assert Account.recover_transaction(raw) == public.to_checksum_address()


def test_the_javascript_sdk():
    assert (NODE / "node_modules/@aws-sdk/client-kms").exists(), "run make test, or name its folder in TEST_NODE"
    # Read from its input, a script finds its modules in the current folder.
    script = (ROOT / "tests/node/kms.mjs").read_text()
    assert command("node", "--input-type=module", "-", input=script, cwd=NODE) == "done\n"


def test_the_rust_sdk():
    if not RUST.exists():
        pytest.skip("AWS's SDK for Rust is not built (make rust)")
    assert command(str(RUST)) == "done\n"


def test_curl_signs_too():
    """Another signer than Amazon's, by HTTP/1.1 and HTTP/2."""
    for version in ("--http1.1", "--http2-prior-knowledge"):
        said = command(
            "curl", "-sS", "--fail-with-body", version, "--max-time", "60",
            "--aws-sigv4", f"aws:amz:{os.environ['AWS_REGION']}:kms",
            "--user", f"{os.environ['AWS_ACCESS_KEY_ID']}:{os.environ['AWS_SECRET_ACCESS_KEY']}",
            "-H", "X-Amz-Target: TrentService.GenerateRandom",
            "-H", "Content-Type: application/x-amz-json-1.1",
            "-d", '{"NumberOfBytes": 16}',
            os.environ["AWS_ENDPOINT_URL"] + "/",
        )
        assert len(base64.b64decode(json.loads(said)["Plaintext"])) == 16
