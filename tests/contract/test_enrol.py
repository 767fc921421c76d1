"""Enrolment from end to end: redoubt-agent enrol, redoubt-manager, a real PostgreSQL."""
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

import pytest

from device_world import AGENT, Certificates, Postgres, eventually, free_port, run
from manager_world import Manager


@pytest.fixture(scope="module", name="folder")
def _folder():
    with tempfile.TemporaryDirectory(prefix="redoubt-enrol-") as folder:
        os.chmod(folder, 0o755)
        yield folder


@pytest.fixture(scope="module", name="database")
def _database(folder):
    database = Postgres(folder)
    yield database
    database.stop()


@pytest.fixture(scope="module", name="certificates")
def _certificates(folder):
    return Certificates(folder)


@pytest.fixture(scope="module", name="manager")
def _manager(folder, database, certificates):
    trust = tempfile.mkdtemp(dir=folder)
    for name in ("ca.pem", "ca.key"):
        shutil.copy(certificates.path(name), trust)
    manager = Manager(folder, database, certificates,
                      sections=f"[trust]\nfolder={trust}\nnames=127.0.0.1 redoubt\n"
                               "device_days=30\n")
    manager.wait_note("READY=1")
    database.raise_fence(1)
    manager.active(1)
    eventually("the authority is known",
               lambda: database.query("SELECT digest FROM redoubt.authority"))
    yield manager
    manager.stop()
    text = manager.log_text()
    assert "BUG" not in text and "Sanitizer" not in text, text


def token(manager, **body):
    made = manager.post("/v1/tokens", {"name": "test", **body})
    assert made.status == 201, made.text
    return made.json


class Computer:
    """A device without an identity."""

    def __init__(self, folder, manager):
        self.folder, self.manager = folder, manager
        self.conf = folder / "agent.conf"
        self.conf.write_text(f"""# mine
[log]
level = debug
[agent]
certificate = {folder}/in/device.pem
key = {folder}/in/device.key
ca = {folder}/in/ca.pem
spool = {folder}/spool.db
state_dir = {folder}
# and more
report_ms = 5000
""", encoding="utf-8")

    def argv(self, text, *more, server=None):
        server = server or f"127.0.0.1:{self.manager.api_port}"
        return [AGENT, "enrol", "-c", str(self.conf), "--server", server, "--token", text, *more]

    def enrol(self, text, *more, code=0, server=None):
        done = subprocess.run(self.argv(text, *more, server=server), capture_output=True,
                              text=True, check=False, stdin=subprocess.DEVNULL, timeout=60)
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def json(self, text, *more, code=0):
        return json.loads(self.enrol(text, "--json", *more, code=code))

    def files(self):
        return sorted(os.listdir(self.folder / "in")) if (self.folder / "in").exists() else []


@pytest.fixture(name="computer")
def _computer(tmp_path, manager):
    return Computer(tmp_path, manager)


def certificate(computer):
    return run("openssl", "x509", "-in", str(computer.folder / "in/device.pem"), "-noout",
               "-text")


def test_a_device_is_enrolled(computer, manager, certificates, database):
    made = token(manager)
    told = computer.json(made["token"], "--name", "a-laptop")
    assert told["state"] == "issued"
    assert computer.files() == ["ca.pem", "device.key", "device.pem"]
    inside = computer.folder / "in"
    assert (inside / "device.key").stat().st_mode & 0o777 == 0o600
    run("openssl", "verify", "-CAfile", certificates.path("ca.pem"), "-purpose", "sslclient",
        str(inside / "device.pem"))
    assert f"URI:urn:uuid:{told['device']}" in certificate(computer)
    conf = computer.conf.read_text()
    assert conf.startswith("# mine\n[log]\n") and "report_ms = 5000" in conf
    assert conf.count(f"server = 127.0.0.1:{manager.port}\n") == 1
    assert run(AGENT, "-c", str(computer.conf), "--check") == ""
    (name, state), = database.query("SELECT name, state FROM redoubt.device WHERE id = %s",
                                    told["device"])
    assert (name, state) == ("a-laptop", "active")
    again = computer.json(made["token"])
    assert again["state"] == "enrolled" and again["device"] == told["device"]


def test_an_answer_that_was_lost_is_asked_for_again(computer, manager, database):
    made = token(manager)
    told = computer.json(made["token"])
    inside = computer.folder / "in"
    os.rename(inside / "device.key", inside / "device.key.enrol")
    os.remove(inside / "device.pem")
    assert computer.json(made["token"])["device"] == told["device"]
    assert database.query("SELECT uses FROM redoubt.enrol_token WHERE id = %s",
                          made["id"]) == [(1,)]


def brought(computer, manager, text, ca, mode=0o600):
    """The file that an installer brings."""
    path = computer.folder / "enrolment.json"
    path.write_text(json.dumps({"server": f"127.0.0.1:{manager.api_port}", "token": text,
                                "ca": ca}), encoding="ascii")
    path.chmod(mode)
    return path


def from_file(computer, path, *more, code=0):
    done = subprocess.run([AGENT, "enrol", "-c", str(computer.conf), "--from", str(path), *more],
                          capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
                          timeout=60)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done.stdout + done.stderr


def authority(certificates):
    with open(certificates.path("ca.pem"), encoding="ascii") as file:
        return file.read()


def test_what_an_installer_brings_serves_once(computer, manager, certificates):
    ca, text = authority(certificates), token(manager)["token"]
    path = brought(computer, manager, text, ca)
    told = json.loads(from_file(computer, path, "--json"))
    assert told["state"] == "issued" and not path.exists()
    assert computer.files() == ["ca.pem", "device.key", "device.pem"]
    path = brought(computer, manager, text, ca)      # the package is installed again
    assert json.loads(from_file(computer, path, "--json"))["state"] == "enrolled"
    assert not path.exists()


def test_an_installer_of_another_cluster_takes_the_device_over(computer, manager, certificates):
    inside, old = computer.folder / "in", str(computer.folder / "old")
    inside.mkdir()
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    run("openssl", "req", "-x509", *kind, "-keyout", f"{old}.key", "-out", str(inside / "ca.pem"),
        "-subj", "/CN=the cluster before")
    run("openssl", "req", "-x509", *kind, "-CA", str(inside / "ca.pem"), "-CAkey", f"{old}.key",
        "-keyout", str(inside / "device.key"), "-out", str(inside / "device.pem"), "-subj", "/CN=x",
        "-addext", "subjectAltName=URI:urn:uuid:11111111-2222-4333-8444-555555555555")
    path = brought(computer, manager, token(manager)["token"], authority(certificates))
    assert json.loads(from_file(computer, path, "--json"))["state"] == "issued"
    run("openssl", "verify", "-CAfile", certificates.path("ca.pem"), str(inside / "device.pem"))


def test_a_file_of_an_installer_that_is_wrong_is_refused_and_kept(computer, manager, certificates,
                                                                  tmp_path):
    ca, text = authority(certificates), token(manager)["token"]
    path = brought(computer, manager, text, ca, mode=0o640)
    assert "others may read" in from_file(computer, path, code=1)
    run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-keyout", str(tmp_path / "k"), "-out", str(tmp_path / "c"), "-subj", "/CN=other")
    path = brought(computer, manager, text, (tmp_path / "c").read_text())
    assert "not the one that the token names" in from_file(computer, path, code=1)
    for wrong in ("", "[]", "{}", '{"server": "a", "token": "b"}', "x" * 40000,
                  '{"server": 1, "token": "b", "ca": "c"}'):
        path.write_text(wrong, encoding="ascii")
        assert "redoubt package agent" in from_file(computer, path, code=1)
    path.unlink()
    assert "open" in from_file(computer, path, code=1)
    assert "instead of" in from_file(computer, path, "--token", text, code=64)
    assert computer.files() == ["device.key.enrol"], "no identity"


def test_an_installer_waits_for_a_server_that_is_away(computer, manager, certificates):
    ca, text = authority(certificates), token(manager)["token"]
    path = brought(computer, manager, text, ca)
    told = json.loads(path.read_text())
    port = free_port()
    path.write_text(json.dumps(dict(told, server=f"127.0.0.1:{port}")), encoding="ascii")
    assert "Repeat it" in from_file(computer, path, code=1)
    assert path.exists()
    waiting = subprocess.Popen([AGENT, "enrol", "-c", str(computer.conf), "--from", str(path),
                                "--wait", "--json"], stdout=subprocess.PIPE, text=True)
    forward = subprocess.Popen([sys.executable, "-c", FORWARD, str(port), str(manager.api_port)])
    try:
        assert json.loads(waiting.communicate(timeout=40)[0])["state"] == "issued"
    finally:
        waiting.kill()
        forward.kill()
        forward.wait()
    assert not path.exists()


# Each connection to the first port is carried to the second.
FORWARD = """
import socket, sys, threading
def carry(a, b):
    while data := a.recv(65536):
        b.sendall(data)
    b.shutdown(socket.SHUT_WR)
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    a, _ = listener.accept()
    b = socket.create_connection(("127.0.0.1", int(sys.argv[2])))
    for pair in ((a, b), (b, a)):
        threading.Thread(target=carry, args=pair, daemon=True).start()
"""


def test_a_used_token(computer, manager, tmp_path):
    made = token(manager)
    computer.enrol(made["token"])
    (tmp_path / "two").mkdir()
    two = Computer(tmp_path / "two", manager)
    assert two.json(made["token"], code=1)["error"]["id"] == "token_used"
    assert "good for one device" in two.enrol(made["token"], code=1)
    assert two.files() == ["ca.pem.enrol", "device.key.enrol"], "no identity"


def test_an_expired_and_a_revoked_token(computer, manager, database):
    made = token(manager)
    link = database.connect()
    with link.cursor() as cursor:
        cursor.execute("SELECT redoubt.announce(1, 'test', 'node-a')")
        cursor.execute("UPDATE redoubt.enrol_token SET expires_at = now() WHERE id = %s",
                       (made["id"],))
    link.close()
    assert computer.json(made["token"], code=1)["error"]["id"] == "token_expired"
    made = token(manager)
    assert manager.call("DELETE", f"/v1/tokens/{made['id']}").status == 200
    assert computer.json(made["token"], code=1)["error"]["id"] == "token_revoked"


def test_a_guessed_token(computer, manager):
    kind, ident, _, digest = token(manager)["token"].split(".")
    told = computer.json(".".join([kind, ident, "0" * 64, digest]), code=1)
    assert told["error"]["id"] == "token_unknown"
    for wrong in ("rdt1", "rdt1.a.b.c", "", "x" * 500, f"rdt2.{ident}.x.{digest}"):
        assert "looks like" in computer.enrol(wrong, code=64)


def test_a_token_of_another_cluster_is_not_shown_to_this_one(computer, manager):
    kind, ident, secret, _ = token(manager)["token"].split(".")
    told = computer.json(".".join([kind, ident, secret, "A" * 43]), code=1)
    assert told["error"]["id"] == "authority_wrong"
    assert computer.files() == ["device.key.enrol"]
    # The server says the same to a client that does not look.
    answer = manager.post("/v1/enrol", {"token": ".".join([kind, ident, secret, "A" * 43]),
                                        "csr": "x"}, token="")
    assert (answer.status, answer.error()[1]) == (403, "token_foreign")


def test_a_server_with_another_name_is_not_trusted(computer, manager):
    told = computer.enrol(token(manager)["token"], "--json", code=1,
                          server=f"localhost:{manager.api_port}")
    assert json.loads(told)["error"]["id"] == "server_wrong"
    assert "device.pem" not in computer.files()


def test_nobody_there(computer, manager):
    told = computer.enrol(token(manager)["token"], "--json", code=1,
                          server=f"127.0.0.1:{free_port()}")
    assert json.loads(told)["error"]["id"] == "server_unreachable"


def test_approval(computer, manager):
    made = token(manager, approval=True)
    assert computer.json(made["token"], code=75)["state"] == "pending"
    assert "waits for an administrator" in computer.enrol(made["token"], code=75)
    waiting = manager.get("/v1/devices?state=pending").json["items"]
    device = waiting[-1]["id"]
    process = subprocess.Popen(computer.argv(made["token"], "--wait", "--json"),
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               stdin=subprocess.DEVNULL, text=True)
    try:
        time.sleep(0.5)
        assert process.poll() is None
        assert manager.post(f"/v1/devices/{device}/approve").status == 200
        out = process.communicate(timeout=20)[0]
    finally:
        process.kill()
        process.wait()
    assert json.loads(out)["device"] == device


def test_a_request_that_is_refused(computer, manager):
    made = token(manager, approval=True, uses=2)
    computer.enrol(made["token"], code=75)
    device = manager.get("/v1/devices?state=pending").json["items"][-1]["id"]
    assert manager.post(f"/v1/devices/{device}/revoke", {"reason": "not ours"}).status == 200
    assert computer.json(made["token"], code=1)["error"]["id"] == "enrolment_refused"
    assert computer.json(made["token"], code=75)["state"] == "pending", "a new request"


def test_renewals_are_signed_from_the_queue(computer, manager, database):
    device = computer.json(token(manager)["token"])["device"]
    csr = run("openssl", "req", "-new", "-key", str(computer.folder / "in/device.key"), "-subj",
              "/CN=x", "-addext", f"subjectAltName=URI:urn:uuid:{device}")
    link = database.connect()
    with link.cursor() as cursor:
        cursor.execute("SELECT redoubt.announce(1, 'test', 'node-a')")
        cursor.execute("SELECT * FROM redoubt.x_csr(%s)",
                       (json.dumps([{"device": device, "csr": {"pem": csr}}]),))

        def answer():
            cursor.execute("SELECT answer FROM redoubt.x_hello(%s)",
                           (json.dumps([{"device": device, "refresh": True}]),))
            return cursor.fetchone()[0]["hello"].get("certificate")

        pem = eventually("it is signed", answer)
        # A request for somebody else's identity is refused, and told.
        wrong = run("openssl", "req", "-new", "-key",
                    str(computer.folder / "in/device.key"), "-subj",
                    "/CN=5d6a3b5e-0000-4000-8000-000000000001")
        cursor.execute("UPDATE redoubt.enrol_request SET created_at = now() - interval '1 hour' "
                       "WHERE device_id = %s", (device,))
        ask = json.dumps([{"device": device, "csr": {"pem": wrong}}])
        cursor.execute("SELECT * FROM redoubt.x_csr(%s)", (ask,))

        def refused():
            cursor.execute("SELECT answer FROM redoubt.x_csr(%s)", (ask,))
            row = cursor.fetchone()
            return row and row[0]["csr"].get("refused")

        assert "another device" in eventually("it is refused", refused)
    link.close()
    path = computer.folder / "renewed.pem"
    path.write_text(pem)
    assert f"urn:uuid:{device}" in run("openssl", "x509", "-in", str(path), "-noout", "-text")


BAD_REQUESTS = ["", "rubbish", "x" * 9000, "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n"
                "-----END CERTIFICATE REQUEST-----\n"]


def test_bad_requests(manager):
    made = token(manager)
    for csr in BAD_REQUESTS:
        answer = manager.post("/v1/enrol", {"token": made["token"], "csr": csr}, token="")
        assert answer.status == 400, answer.text
    for body in ({}, {"token": 1, "csr": "x"}, {"token": made["token"]}, [], "text",
                 {"token": made["token"], "csr": "x", "name": "a\nb"},
                 {"token": made["token"], "csr": "x", "name": "a" * 201}):
        assert manager.post("/v1/enrol", body, token="").status == 400, body
    rsa = run("openssl", "req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", "/dev/null",
              "-subj", "/CN=x")
    answer = manager.post("/v1/enrol", {"token": made["token"], "csr": rsa}, token="")
    assert answer.error()[1] == "csr_wrong" and "P-256" in answer.text


def test_everybody_may_see_the_authority(manager, certificates):
    with open(certificates.path("ca.pem"), encoding="ascii") as file:
        assert manager.get("/v1/ca", token="").json["certificate"] == file.read()


def test_a_wrong_configuration_is_left_alone(computer, manager):
    text = "[agent]\nserver = old:1\nunknown = 1\n"
    computer.conf.write_text(text)
    told = computer.json(token(manager)["token"], code=1)
    assert told["error"]["id"] == "config" and "unknown" in told["error"]["text"]
    assert computer.conf.read_text() == text


def test_folders_are_made(computer, manager, tmp_path):
    text = computer.conf.read_text().replace(f"{tmp_path}/in/", f"{tmp_path}/a/b/c/")
    computer.conf.write_text(text)
    computer.enrol(token(manager)["token"])
    assert sorted(os.listdir(tmp_path / "a/b/c")) == ["ca.pem", "device.key", "device.pem"]


def test_the_address_of_the_server_is_replaced(computer, manager):
    computer.conf.write_text(computer.conf.read_text().replace("[agent]\n",
                                                               "[agent]\n server=old:1\n"))
    computer.enrol(token(manager)["token"])
    conf = computer.conf.read_text()
    assert "old" not in conf and f"server = 127.0.0.1:{manager.port}\n" in conf


def test_without_an_authority_it_says_so(folder, database, certificates):
    manager = Manager(folder, database, certificates, sections=f"[trust]\nfolder={folder}/none\n")
    try:
        manager.wait_note("READY=1")
        database.raise_fence(2)
        manager.active(2)
        answer = manager.get("/v1/ca", token="")
        assert (answer.status, answer.error()[1]) == (503, "no_authority")
        assert "no_authority" in manager.log_text()
    finally:
        manager.stop()
