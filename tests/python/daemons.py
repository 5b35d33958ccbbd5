"""Daemons that a test starts by itself, and an AWS beside them: moto's."""

import os
import re
import subprocess
import time

import boto3
from moto.server import ThreadedMotoServer

TIMEOUT_S = 120
LOCAL = "127.0.0.1:0"


class Daemon:
    """`strongroom dev` in a folder of its own, with this environment besides."""

    def __init__(self, folder, *arguments, aws=LOCAL, **environment):
        self.dir, self.log = folder / "dev", folder / "log"
        ours = ("STRONGROOM_", "AWS_")
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(ours) or name == "STRONGROOM_SOFTHSM2_LIBRARY"
        }
        self.process = subprocess.Popen(
            [os.environ["TEST_STRONGROOM"], "dev", "--dir", self.dir]
            + ["--grpc", LOCAL, "--http", LOCAL, "--aws", aws, *arguments],
            env=inherited | environment,
            stdout=subprocess.PIPE,
            stderr=self.log.open("a"),
            text=True,
        )
        line = self.process.stdout.readline()
        assert "ready" in line, self.log.read_text()
        self.operators = re.search(r"operators (http://[^,]*)", line).group(1)
        self.env = dict(re.findall(r"export (\w+)='(.*)'", (self.dir / "env").read_text()))

    def client(self, service="kms", **members):
        own = {
            "endpoint_url": self.env["AWS_ENDPOINT_URL"],
            "verify": self.env.get("AWS_CA_BUNDLE"),
            "region_name": self.env["AWS_REGION"],
            "aws_access_key_id": self.env["AWS_ACCESS_KEY_ID"],
            "aws_secret_access_key": self.env["AWS_SECRET_ACCESS_KEY"],
        }
        return boto3.client(service, **{**own, **members})

    def strongroom(self, *arguments):
        """A command of the client's, as a person gives it."""
        done = subprocess.run(
            [os.environ["TEST_STRONGROOM"], *arguments],
            env=os.environ | self.env,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def stop(self):
        self.process.terminate()
        assert self.process.wait(TIMEOUT_S) == 0, self.log.read_text()


class Moto:
    """Another AWS, with credentials that are good for nothing else."""

    KEYS = {"AWS_ACCESS_KEY_ID": "AKIAMOTOMOTOMOTOMOTO", "AWS_SECRET_ACCESS_KEY": "a secret of moto's"}

    def __init__(self):
        self.server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self.server.start()
        host, port = self.server.get_host_and_port()
        self.url = f"http://{host}:{port}"

    def client(self, service):
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=self.KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.KEYS["AWS_SECRET_ACCESS_KEY"],
        )

    def stop(self):
        self.server.stop()


def until(condition, what="this"):
    """Waits for something to become true, and gives it."""
    deadline = time.monotonic() + TIMEOUT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} never came true"
        time.sleep(0.05)
    return found
