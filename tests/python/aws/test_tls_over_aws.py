"""The AWS port with TLS, of a daemon that the network may reach, and its access keys after a reload."""

import json
import os
import signal
import subprocess

import pytest

from daemons import Daemon, until


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    started = Daemon(tmp_path_factory.mktemp("tls"), aws="0.0.0.0:0")
    yield started
    started.stop()


def test_boto3_speaks_tls_and_the_record_says_so(daemon):
    assert daemon.env["AWS_ENDPOINT_URL"].startswith("https://127.0.0.1:")
    made = daemon.client().create_key()["ResponseMetadata"]["RequestId"]
    found = daemon.client("cloudtrail").lookup_events(
        LookupAttributes=[{"AttributeKey": "EventName", "AttributeValue": "CreateKey"}]
    )
    [record] = [json.loads(event["CloudTrailEvent"]) for event in found["Events"]]
    assert record["requestID"] == made
    assert record["tlsDetails"]["tlsVersion"] == "TLSv1.3"
    assert "credentialId" not in record["userIdentity"], "there is no client certificate"


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_both_versions_of_http_over_tls(daemon, version):
    env = daemon.env
    said = subprocess.run(
        ["curl", "-sS", "--fail-with-body", version, "--max-time", "60", "--cacert", env["AWS_CA_BUNDLE"]]
        + ["--aws-sigv4", f"aws:amz:{env['AWS_REGION']}:kms"]
        + ["--user", f"{env['AWS_ACCESS_KEY_ID']}:{env['AWS_SECRET_ACCESS_KEY']}"]
        + ["-H", "X-Amz-Target: TrentService.ListKeys", "-H", "Content-Type: application/x-amz-json-1.1"]
        + ["-w", "\n%{http_version}", "-d", "{}", env["AWS_ENDPOINT_URL"] + "/"],
        capture_output=True,
        text=True,
    )
    body, spoken = said.stdout.rsplit("\n", 1)
    assert "Keys" in json.loads(body), said.stderr
    assert spoken == version.removeprefix("--http")


def test_without_the_option_twelve_digits_are_nobody(daemon):
    client = daemon.client(aws_access_key_id="111122223333", aws_secret_access_key="test")
    with pytest.raises(client.exceptions.ClientError, match="UnrecognizedClientException"):
        client.list_keys()


def test_a_reload_brings_and_takes_access_keys(daemon):
    """Another access key is in force without a restart, and the first is not."""
    config, secret = daemon.dir / "strongroom.toml", daemon.dir / "aws/second"
    secret.touch(mode=0o600)
    secret.write_text("the second secret\n")
    before, first = config.read_text(), daemon.env["AWS_ACCESS_KEY_ID"]
    after = before.replace(
        f'{{ id = "{first}", secret_file = "aws/secret-access-key" }}',
        '{ id = "AKIASECOND2345672345", secret_file = "aws/second" }',
    )
    assert after != before
    config.write_text(after)
    os.kill(daemon.process.pid, signal.SIGHUP)
    second = daemon.client(aws_access_key_id="AKIASECOND2345672345", aws_secret_access_key="the second secret")
    until(lambda: works(second))
    assert not works(daemon.client())
    # A secret that others can read is refused, and what is in force stays.
    secret.chmod(0o644)
    config.write_text(before.replace("aws/secret-access-key", "aws/second"))
    os.kill(daemon.process.pid, signal.SIGHUP)
    until(lambda: "others than its owner may use it" in daemon.log.read_text())
    assert works(second)
    config.write_text(before)
    os.kill(daemon.process.pid, signal.SIGHUP)
    until(lambda: works(daemon.client()))


def works(client):
    try:
        client.list_keys()
    except client.exceptions.ClientError as error:
        assert error.response["Error"]["Code"] == "UnrecognizedClientException"
        return False
    return True
