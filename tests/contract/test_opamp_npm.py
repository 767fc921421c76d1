"""A client that nobody here wrote, @elastic/opamp-client-node, is a device like any other:
with a certificate of its own it is known, gets its policy, and says that it applied it."""
import contextlib
import json
import os
import shutil
import subprocess
import threading

import pytest

from device_world import BUILD, TOP, eventually
from test_events import Session
from test_opamp_ws import put_policy
from test_server import (_active, _certificates, _daemon, _database, _epoch,  # noqa: F401
                         _folder)

SOURCE = os.path.join(TOP, "tests", "npm")


@pytest.fixture(scope="module", name="client")
def _client():
    """The folder that `npm ci` filled; what is in it is what package-lock.json says."""
    if not shutil.which("npm") or not shutil.which("node"):
        pytest.skip("npm is not installed: tools/deps test")
    folder = os.path.join(BUILD, "npm")
    lock = os.path.join(folder, "package-lock.json")
    with open(os.path.join(SOURCE, "package-lock.json"), "rb") as file:
        wanted = file.read()
    if not os.path.exists(os.path.join(folder, "done")) or open(lock, "rb").read() != wanted:
        os.makedirs(folder, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(os.path.join(SOURCE, name), folder)
        done = subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
                              cwd=folder, capture_output=True, text=True, check=False,
                              timeout=120)
        assert done.returncode == 0, done.stderr
        with open(os.path.join(folder, "done"), "w", encoding="ascii"):
            pass
    return folder


class Client:
    def __init__(self, folder, daemon, certificates, name):
        self.said = []
        self.process = subprocess.Popen(
            ["node", os.path.join(SOURCE, "client.cjs"), folder,
             f"https://127.0.0.1:{daemon.port}/v1/opamp", certificates.ids[name],
             certificates.path("ca.pem"), certificates.path(name + ".pem"),
             certificates.path(name + ".key")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        for line in self.process.stdout:
            self.said.append(json.loads(line))

    def policy(self, holds):
        return eventually("a policy", lambda: next(
            (s for s in self.said if holds(s["policy"])), None))

    def stop(self):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.communicate(timeout=5)
        self.process.kill()
        self.process.wait()


def test_a_client_from_the_registry_is_managed(active, database, certificates, client):
    certificates.ids["npm"] = certificates.device("npm")
    with contextlib.closing(Session(database)) as session:
        put_policy(session, engine__threads=9)
        eventually("the policy is known", lambda: "policies groups=" in active.log_text())
        device = Client(client, active, certificates, "npm")
        try:
            got = device.policy(lambda p: p["engine.threads"] == 9)
            assert got["type"] == "application/json"

            def row(columns):
                return session.rows(f"SELECT {columns} FROM redoubt.device WHERE id = %s",
                                    certificates.ids["npm"])

            eventually("it says that it applied it", lambda: row(
                "policy_state, policy_hash") == [("applied", got["hash"])])
            assert row("name, state") == [("host-of-npm", "active")]
            (description,), = row("description")
            assert description["identifying"]["service.name"] == "somebody-else"
            put_policy(session, engine__threads=11)
            changed = device.policy(lambda p: p["engine.threads"] == 11)
            eventually("it applied the change", lambda: row(
                "policy_state, policy_hash") == [("applied", changed["hash"])])
        finally:
            device.stop()
        assert "device_bad_message" not in active.log_text()
