"""AWS's own clients against the AWS port of a daemon that nobody else calls."""

import boto3
import pytest
from botocore.config import Config

from shapes import Checked

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
