"""redoubt-manager against a real PostgreSQL: the frame of the API, whatever its routes do."""
import contextlib
import hashlib
import http.client
import json
import os
import socket
import ssl
import subprocess
import tempfile
import threading
import time

import pytest

from device_world import BUILD, Certificates, Daemon, Postgres, eventually, free_port

MANAGER = os.path.join(BUILD, "src/app/manager/redoubt-manager")


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=20)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Answer:
    def __init__(self, reply):
        self.status = reply.status
        self.headers = reply.headers
        self.text = reply.read().decode()
        self.json = json.loads(self.text) if self.text else None

    def error(self):
        assert set(self.json) == {"error"}, self.text
        assert set(self.json["error"]) == {"id", "title", "text", "suggestion"}, self.text
        return self.status, self.json["error"]["id"]


class Manager(Daemon):
    """redoubt-manager as a child of a master that the test plays."""

    def __init__(self, folder, database, certificates):
        self.api_port = free_port()
        self.run = tempfile.mkdtemp(dir=folder)
        self.certificates = certificates
        super().__init__(folder, database, certificates, watchdog_us=2000000, program=MANAGER,
                         cluster=f"run_dir={self.run}\n",
                         server=f"api_listen=127.0.0.1:{self.api_port}\n")

    def connection(self, network=False):
        if not network:
            return UnixConnection(os.path.join(self.run, "manager.sock"))
        context = ssl.create_default_context(cafile=self.certificates.path("ca.pem"))
        return http.client.HTTPSConnection("127.0.0.1", self.api_port, timeout=20,
                                           context=context)

    def call(self, method, path, body=None, token=None, **headers):
        """token None: over the Unix socket; "": over TLS without a token."""
        with contextlib.closing(self.connection(token is not None)) as link:
            headers = {name.replace("_", "-"): value for name, value in headers.items()}
            if token:
                headers["Authorization"] = f"Bearer {token}"
            if body is not None and not isinstance(body, (str, bytes)):
                body = json.dumps(body)
            link.request(method, path, body, headers)
            return Answer(link.getresponse())

    def get(self, path, token=None, **headers):
        return self.call("GET", path, None, token, **headers)

    def post(self, path, body=None, token=None, **headers):
        return self.call("POST", path, body, token, **headers)

    def token(self, role, scope=None, name="a token"):
        made = self.post("/v1/api-tokens", {"name": name, "role": role, "scope": scope})
        assert made.status == 201, made.text
        return made.json


@pytest.fixture(scope="module", name="folder")
def _folder():
    with tempfile.TemporaryDirectory(prefix="redoubt-manager-") as path:
        os.chmod(path, 0o755)  # PostgreSQL runs as another user
        yield path


@pytest.fixture(scope="module", name="database")
def _database(folder):
    database = Postgres(folder)
    yield database
    database.stop()


@pytest.fixture(scope="module", name="certificates")
def _certificates(folder):
    return Certificates(folder)


@pytest.fixture(name="standby")
def _standby(folder, database, certificates):
    manager = Manager(folder, database, certificates)
    manager.wait_note("READY=1")
    yield manager
    manager.stop()
    text = manager.log_text()
    assert "BUG" not in text and "Sanitizer" not in text, text


@pytest.fixture(name="manager")
def _manager(standby, database):
    (now,), = database.query("SELECT epoch FROM redoubt.fence")
    database.raise_fence(now + 1)
    standby.epoch = now + 1
    standby.active(now + 1)
    return standby


# --- the role ------------------------------------------------------------------------------


def test_status_is_told_on_the_socket_of_the_node(manager):
    answer = manager.get("/v1/status")
    assert answer.status == 200, answer.text
    assert answer.json["epoch"] == manager.epoch and answer.json["node"] == "node-a"
    assert answer.headers["Content-Type"] == "application/json"


def test_a_standby_says_that_it_is_not_active(standby):
    for token in (None, ""):
        answer = standby.get("/v1/status", token)
        assert answer.error() == (503, "not_active") and answer.headers["Retry-After"] == "1"
        assert "redoubt status" in answer.json["error"]["suggestion"]


def test_without_the_lease_nobody_is_answered(manager):
    manager.lease(manager.epoch, 0)
    assert manager.get("/v1/status").error() == (503, "not_active")
    assert manager.post("/v1/api-tokens", {"name": "x", "role": "auditor"}).error() == (
        503, "not_active")
    manager.lease(manager.epoch + 1)  # a lease, but not of this epoch
    assert manager.get("/v1/status").error() == (503, "not_active")


def test_a_raised_fence_ends_its_writes(manager, database):
    database.raise_fence(manager.epoch + 1, "node-b")
    def refused():
        answer = manager.post("/v1/api-tokens", {"name": "late", "role": "auditor"})
        assert answer.status == 503, answer.text
        return answer.json["error"]["id"] == "not_active"
    eventually("not active", refused)
    assert database.query("SELECT 1 FROM redoubt.api_token WHERE name = 'late'") == []


def test_the_role_goes_and_comes_again(manager, database):
    manager.standby()
    assert manager.get("/v1/status").error() == (503, "not_active")
    database.raise_fence(manager.epoch + 1)
    manager.active(manager.epoch + 1)
    assert manager.get("/v1/status").json["epoch"] == manager.epoch + 1
