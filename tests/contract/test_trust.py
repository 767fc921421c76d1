"""Trust, with the real server, manager, agent and PostgreSQL: enrolled devices connect, revoked
ones are refused at once, certificates are renewed, a clone gets an identity of its own."""
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import uuid

import pytest

from device_world import (AGENT, Certificates, Daemon, Device, Postgres, Refused, eventually, run)
from manager_world import Manager
from test_agent_talk import Agent


@pytest.fixture(scope="module", name="folder")
def _folder():
    with tempfile.TemporaryDirectory(prefix="redoubt-trust-") as path:
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


@pytest.fixture(scope="module", name="secrets")
def _secrets(folder, certificates):
    """[trust] folder of both nodes."""
    path = tempfile.mkdtemp(dir=folder)
    for name in ("ca.pem", "ca.key"):
        shutil.copy(certificates.path(name), path)
    with open(f"{path}/ticket.key", "wb") as file:
        file.write(os.urandom(64))
    return f"[trust]\nfolder={path}\nnames=127.0.0.1\ndevice_days=30\n"


class World:
    def __init__(self, folder, database, certificates, secrets):
        self.database = database
        self.server = Daemon(folder, database, certificates, sections=secrets)
        self.manager = Manager(folder, database, certificates, sections=secrets)
        for one in (self.server, self.manager):
            one.wait_note("READY=1", 10)
        (now,), = database.query("SELECT epoch FROM redoubt.fence")
        self.epoch = now + 1
        database.raise_fence(self.epoch)
        for one in (self.server, self.manager):
            one.active(self.epoch)
        eventually("the authority is known",
                   lambda: database.query("SELECT digest FROM redoubt.authority"))

    def stop(self):
        for one in (self.server, self.manager):
            one.stop()
            text = one.log_text()
            assert "BUG" not in text and "Sanitizer" not in text, text

    def write(self, text, *values):
        """As a service of the active node."""
        link = self.database.connect()
        with link.cursor() as cursor:
            cursor.execute("SELECT redoubt.announce(%s, 'test', 'node-a')", (self.epoch,))
            cursor.execute(text, values)
        link.close()

    def revoke(self, device, **body):
        answer = self.manager.post(f"/v1/devices/{device}/revoke", body)
        assert answer.status == 200, answer.text


@pytest.fixture(scope="module", name="world")
def _world(folder, database, certificates, secrets):
    world = World(folder, database, certificates, secrets)
    yield world
    world.stop()


def connected(database, device):
    rows = database.query("SELECT connected_at FROM redoubt.device WHERE id = %s", device)
    return rows and rows[0][0]


def device_of(path):
    text = run("openssl", "x509", "-in", path, "-noout", "-ext", "subjectAltName")
    return text.split("urn:uuid:")[1].split()[0]


def events(database, device, kind):
    return [row[0] for row in database.query(
        "SELECT data FROM redoubt.event WHERE device_id = %s AND kind = %s", device, kind)]


class Enrolled(Agent):
    """An agent with files of its own."""

    def __init__(self, folder, world, certificates):
        inside = tempfile.mkdtemp(dir=folder)
        self.inside = inside
        super().__init__(folder, world.server, certificates, server_name="",
                         certificate=f"{inside}/device.pem", key=f"{inside}/device.key",
                         ca=f"{inside}/ca.pem")

    def certificate(self):
        return os.path.join(self.inside, "device.pem")

    def id(self):
        return device_of(self.certificate())


@pytest.fixture(name="agent")
def _agent(folder, world, certificates):
    agent = Enrolled(folder, world, certificates)
    made = world.manager.post("/v1/tokens", {"name": "test"}).json["token"]
    run(AGENT, "enrol", "-c", agent.conf, "--server", f"127.0.0.1:{world.manager.api_port}",
        "--token", made)
    # Here the manager is not the server's child, and its port of the server is another one.
    with open(agent.conf, encoding="ascii") as file:
        conf = file.read()
    with open(agent.conf, "w", encoding="ascii") as file:
        file.write(conf.replace(f":{world.manager.port}\n", f":{world.server.port}\n"))
    yield agent
    agent.stop(signal.SIGKILL)
    text = agent.log_text() if agent.process else ""
    assert "BUG" not in text and "Sanitizer" not in text, text


def test_an_enrolled_device_connects(agent, database):
    agent.start()
    eventually("it is connected", lambda: connected(database, agent.id()))
    assert events(database, agent.id(), "device_enrolled")
    assert not events(database, agent.id(), "device_adopted")


def test_a_revoked_device_is_cut_off_at_once(agent, world, database):
    agent.start()
    eventually("it is connected", lambda: connected(database, agent.id()))
    (first,), = database.query("SELECT connected_at FROM redoubt.device WHERE id = %s",
                               agent.id())
    world.revoke(agent.id(), reason="stolen")
    eventually("it knows", lambda: "revoked" in agent.status().get("trouble", ""), 3)
    tries = agent.log_text().count(" connected ")
    time.sleep(1)
    assert agent.log_text().count(" connected ") == tries, "it does not come again at once"
    (now, state), = database.query(
        "SELECT connected_at, state FROM redoubt.device WHERE id = %s", agent.id())
    assert state == "revoked" and now in (None, first)


class Resuming(Device):
    """Keeps the TLS session of the last connection and asks to resume it."""

    session, context = None, None

    def __init__(self, port, certificates, name, identity, like=None):
        self.kept = like
        super().__init__(port, certificates, name, identity)

    def upgrade(self, path="/v1/opamp"):
        if self.kept is not None:
            # Another handshake, with the session: the one that Device made is dropped.
            address = self.socket.getpeername()
            self.socket.close()
            plain = socket.create_connection(address, 5)
            self.context = self.kept.context
            self.socket = self.context.wrap_socket(plain, server_hostname="redoubt",
                                                   session=self.kept.session)
        else:
            self.context = self.socket.context
        super().upgrade(path)

    def remember(self):
        self.session = self.socket.session
        return self


def test_a_resumed_session_helps_a_revoked_device_nothing(world, certificates, database):
    identity = certificates.device("resumer")
    first = Resuming(world.server.port, certificates, "resumer", identity)
    first.describe()
    first.remember().socket.close()
    again = Resuming(world.server.port, certificates, "resumer", identity, like=first)
    assert again.socket.session_reused
    again.describe()
    eventually("it is connected", lambda: connected(database, identity))
    world.revoke(identity)
    with pytest.raises(Refused):  # the open connection
        while True:
            again.receive()
    last = Resuming(world.server.port, certificates, "resumer", identity, like=first)
    assert last.socket.session_reused
    last.send()
    with pytest.raises(Refused):
        while True:
            assert 2 in last.receive(), "an error_response, and nothing else"


def signed_with_dates(certificates, name, identity, begin, end):
    """A certificate of our authority, valid from begin to end (YYYYMMDDHHMMSSZ)."""
    folder = certificates.path(name + ".ca")
    os.mkdir(folder)
    for file in ("index.txt", "index.txt.attr"):
        open(f"{folder}/{file}", "w", encoding="ascii").close()
    with open(f"{folder}/ca.cnf", "w", encoding="ascii") as file:
        file.write(f"""[ca]
default_ca = own
[own]
database = {folder}/index.txt
new_certs_dir = {folder}
rand_serial = yes
default_md = sha256
policy = any
x509_extensions = device
[any]
commonName = supplied
[device]
subjectAltName = URI:urn:uuid:{identity}
extendedKeyUsage = clientAuth
basicConstraints = CA:false
""")
    run("openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-keyout", certificates.path(name + ".key"), "-out", f"{folder}/request.pem", "-subj",
        f"/CN={name}")
    run("openssl", "ca", "-batch", "-config", f"{folder}/ca.cnf", "-cert",
        certificates.path("ca.pem"), "-keyfile", certificates.path("ca.key"), "-in",
        f"{folder}/request.pem", "-out", certificates.path(name + ".pem"), "-startdate", begin,
        "-enddate", end, "-notext")


def stamp(days):
    return time.strftime("%Y%m%d%H%M%SZ", time.gmtime(time.time() + days * 86400))


def test_expired_early_and_foreign_certificates(world, certificates, database):
    identity = str(uuid.uuid4())
    signed_with_dates(certificates, "expired", identity, stamp(-30), stamp(-1))
    signed_with_dates(certificates, "early", identity, stamp(1), stamp(30))
    signed_with_dates(certificates, "good", identity, stamp(-10), stamp(1))
    certificates.authority("foreign")
    certificates.sign("foreign-device", "x", f"URI:urn:uuid:{identity}", "clientAuth", "foreign")
    for name in ("expired", "early", "foreign-device"):
        with pytest.raises(Refused):
            Device(world.server.port, certificates, name, identity).describe()
    assert not database.query("SELECT 1 FROM redoubt.device WHERE id = %s", identity)
    Device(world.server.port, certificates, "good", identity).describe()


def test_a_certificate_is_renewed_without_anybody(world, folder, certificates, database):
    agent = Enrolled(folder, world, certificates)
    identity = str(uuid.uuid4())
    name = f"old-{identity[:8]}"
    signed_with_dates(certificates, name, identity, stamp(-70), stamp(20))
    shutil.copy(certificates.path(name + ".pem"), agent.certificate())
    shutil.copy(certificates.path(name + ".key"), f"{agent.inside}/device.key")
    shutil.copy(certificates.path("ca.pem"), f"{agent.inside}/ca.pem")
    with open(agent.certificate(), encoding="ascii") as file:
        before = file.read()
    with open(f"{agent.inside}/device.key", encoding="ascii") as file:
        key = file.read()
    agent.start()
    try:
        def renewed():
            with open(agent.certificate(), encoding="ascii") as file:
                return file.read() != before

        eventually("it is renewed", renewed, 20)
        with open(f"{agent.inside}/device.key", encoding="ascii") as file:
            assert file.read() != key, "with a new key"
        assert agent.id() == identity
        assert sorted(os.listdir(agent.inside)) == ["ca.pem", "device.key", "device.pem"]
        serial = run("openssl", "x509", "-in", agent.certificate(), "-noout", "-serial")
        eventually("it is connected with it", lambda: database.query(
            "SELECT 1 FROM redoubt.device WHERE id = %s AND serial = %s", identity,
            serial.strip().split("=")[1].lower()))
        assert len(events(database, identity, "certificate_renewed")) == 1
        # A restart finds it whole.
        agent.stop()
        agent.start()
        eventually("it is connected again",
                   lambda: agent.status().get("connection") == "connected")
        assert len(events(database, identity, "certificate_renewed")) == 1
    finally:
        agent.stop(signal.SIGKILL)


def test_a_clone_gets_an_identity_of_its_own(agent, world, folder, certificates, database):
    clone = Enrolled(folder, world, certificates)
    shutil.rmtree(clone.inside)
    shutil.copytree(agent.inside, clone.inside)
    original = agent.id()
    assert clone.id() == original
    agent.start()
    eventually("the first is connected", lambda: connected(database, original))
    clone.start()
    try:
        eventually("one of them has another identity",
                   lambda: {agent.id(), clone.id()} != {original}, 30)
        ids = {agent.id(), clone.id()}
        assert original in ids and len(ids) == 2
        new, = ids - {original}
        eventually("both are connected",
                   lambda: connected(database, original) and connected(database, new), 20)
        told = events(database, original, "device_clone")
        assert [t["new_device"] for t in told] == [new]
        time.sleep(3)  # and they leave each other alone
        assert {agent.id(), clone.id()} == ids
        assert len(events(database, original, "device_clone")) == 1
    finally:
        clone.stop(signal.SIGKILL)
