"""AWS's own clients against the AWS port of a daemon that nobody else calls."""

import boto3
import pytest
from botocore.config import Config

from client import HSM, Service
from shapes import Checked
from test_key_stores import DIR

ONCE = Config(retries={"total_max_attempts": 1})


@pytest.fixture(scope="session")
def client():
    """A boto3 client as the environment says, whose every answer is held against the model."""

    def make(service, **members):
        made = boto3.client(service, **{"config": ONCE, **members})
        Checked(made)
        return made

    return make


@pytest.fixture(scope="session")
def aws(client):
    """KMS by boto3."""
    return client("kms")


@pytest.fixture(scope="session")
def trail(client):
    """CloudTrail by boto3."""
    return client("cloudtrail")


@pytest.fixture(scope="session")
def hsm(kms):
    """The HSMs, which AWS has no operations for."""
    return Service(HSM)


@pytest.fixture(scope="session")
def cluster(hsm):
    """The cluster of dev's second HSM; uninitialized until a test holds its ceremony."""
    member = {"module": "key-store", "token": (DIR / "key-store/uri").read_text()}
    made = hsm.create_cluster(
        name="aws", members=[member], trust_anchor_certificate=(DIR / "pki/ca.pem").read_text()
    )
    return made.cluster.cluster_id
