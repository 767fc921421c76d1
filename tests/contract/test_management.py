"""The real server, manager and agent with a real PostgreSQL: what an administrator decides
reaches the device, and what the device does is told once, whatever breaks in between."""
import os
import shutil
import signal
import subprocess
import tempfile
import time

import pytest

from device_world import BUILD, Certificates, Daemon, Postgres, eventually
from manager_world import Manager
from test_agent_talk import Agent


@pytest.fixture(scope="module", name="folder")
def _folder():
    with tempfile.TemporaryDirectory(prefix="redoubt-management-") as path:
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


class World:
    """One node: server and manager under the same epoch."""

    def __init__(self, folder, database, certificates):
        self.database = database
        self.server = Daemon(folder, database, certificates)
        trust = tempfile.mkdtemp(dir=folder)
        for name in ("ca.pem", "ca.key"):
            shutil.copy(certificates.path(name), trust)
        self.manager = Manager(folder, database, certificates, sections=f"[trust]\n"
                               f"folder={trust}\nnames=127.0.0.1 redoubt\n")
        self.services = [self.server, self.manager]
        for one in self.services:
            one.wait_note("READY=1", 10)
        self.activate()

    def activate(self):
        (now,), = self.database.query("SELECT epoch FROM redoubt.fence")
        self.database.raise_fence(now + 1)
        for one in self.services:
            one.active(now + 1)

    def switch(self):
        for one in self.services:
            one.standby()
        self.activate()

    def stop(self):
        for one in self.services:
            one.stop()
            text = one.log_text()
            assert "BUG" not in text and "Sanitizer" not in text, text

    def get(self, path):
        answer = self.manager.get(path)
        assert answer.status == 200, answer.text
        return answer.json


@pytest.fixture(name="world")
def _world(folder, database, certificates):
    world = World(folder, database, certificates)
    yield world
    world.stop()


@pytest.fixture(name="agent")
def _agent(folder, world, database, certificates):
    certificates.ids = {"one": certificates.device("one")}
    agent = Agent(folder, world.server, certificates)
    agent.id = certificates.ids["one"]
    agent.start()
    eventually("the server knows it", lambda: device(database, agent) != (None, None, None))
    yield agent
    agent.stop(signal.SIGKILL)
    text = agent.log_text()
    assert "BUG" not in text and "Sanitizer" not in text, text


def device(database, agent):
    rows = database.query("SELECT policy_hash, policy_state, policy_error FROM redoubt.device"
                          " WHERE id = %s", agent.id)
    return rows[0] if rows else (None, None, None)


def events(database, agent, kind=None):
    return [row for row in database.query(
        "SELECT stream::text, seq, kind, data FROM redoubt.event WHERE device_id = %s"
        " AND stream IS NOT NULL ORDER BY id", agent.id) if kind is None or row[2] == kind]


def root_policy(world, **values):
    groups = world.get("/v1/groups")["items"]
    root = next(g for g in groups if g["path"] == "/")
    answer = world.manager.call("PUT", f"/v1/groups/{root['id']}/policy",
                                {"settings": {k: {"value": v} for k, v in values.items()}})
    assert answer.status == 200, answer.text


def test_a_device_appears_and_has_the_policy(world, agent, database):
    eventually("its policy is applied", lambda: device(database, agent)[1] == "applied", 20)
    assert device(database, agent)[0] == agent.status()["policy"]["in_force"]
    assert any(d["id"] == agent.id for d in world.get("/v1/devices")["items"])


def test_a_change_of_the_policy_reaches_the_device(world, agent, database):
    eventually("its policy is applied", lambda: device(database, agent)[1] == "applied", 20)
    before = agent.status()["policy"]["in_force"]
    root_policy(world, **{"agent.heartbeat_s": 33})
    eventually("the new one is in force", lambda: agent.status()["policy"]["in_force"] != before)
    assert agent.status()["policy"]["heartbeat_s"] == 33
    eventually("the server knows", lambda: device(database, agent)[:2] == (
        agent.status()["policy"]["in_force"], "applied"))


def test_a_change_while_the_device_is_away_waits_for_it(world, agent, database):
    eventually("its policy is applied", lambda: device(database, agent)[1] == "applied", 20)
    agent.stop()
    root_policy(world, **{"agent.heartbeat_s": 44})
    agent.start()
    eventually("the new one is in force",
               lambda: agent.status().get("policy", {}).get("heartbeat_s") == 44)


def test_events_arrive_once_and_in_order_through_switches(world, agent, database):
    agent.stop()
    agent.fill(600, size=700)
    agent.fill(20, "critical", stream=0)
    agent.start()
    for _ in range(3):
        time.sleep(0.3)
        world.switch()
    eventually("none waits", lambda: agent.waiting() == 0, 40)
    stored = events(database, agent, "made_up")
    assert len(stored) == 620
    for stream in {row[0] for row in stored}:
        numbers = [row[3]["n"] for row in stored if row[0] == stream]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def start_task(world, agent, **more):
    answer = world.manager.post("/v1/tasks", {
        "name": f"a task {time.monotonic()}", "type": "inventory", "params": {},
        "target": {"devices": [agent.id]}, "schedule": None, **more})
    assert answer.status == 201, answer.text
    task = answer.json["id"]
    answer = world.manager.post(f"/v1/tasks/{task}/start")
    assert answer.status in (200, 201, 202), answer.text
    return task


def runs(database, agent):
    return database.query("SELECT id::text, state, outcome FROM redoubt.run WHERE device_id = %s"
                          " ORDER BY changed_at", agent.id)


def test_a_task_reaches_the_device_and_its_end_the_server(world, agent, database):
    start_task(world, agent)
    eventually("it is finished", lambda: [r[1:] for r in runs(database, agent)]
               == [("finished", "done")], 30)
    assert len(events(database, agent, "run_accepted")) == 1
    assert len(events(database, agent, "run_finished")) == 1


def test_a_task_is_done_once_though_the_server_changes(world, agent, database):
    start_task(world, agent)
    for folder in "ab":  # there is no engine: they fail, once
        start_task(world, agent, type="scan", params={"mode": "paths", "paths": [f"/{folder}"]})
    for _ in range(3):
        world.switch()
        time.sleep(0.4)
    eventually("all are finished", lambda: [r[1] for r in runs(database, agent)]
               == ["finished"] * 3, 40)
    finished = [row[3]["run"] for row in events(database, agent, "run_finished")]
    assert sorted(finished) == sorted(r[0] for r in runs(database, agent))
    accepted = [row[3]["run"] for row in events(database, agent, "run_accepted")]
    assert sorted(accepted) == sorted(finished)


# ---- who it is ----

class OwnFiles:
    """Certificates as an agent sees them: a copy of its own, for it replaces them."""

    def __init__(self, certificates, folder, name):
        self.folder = tempfile.mkdtemp(dir=folder)
        for mine, theirs in (("one.pem", f"{name}.pem"), ("one.key", f"{name}.key"),
                             ("ca.pem", "ca.pem")):
            shutil.copy(certificates.path(theirs), os.path.join(self.folder, mine))

    def path(self, name):
        return os.path.join(self.folder, name)

    def text(self, name):
        with open(self.path(name), encoding="ascii") as file:
            return file.read()


def old_certificate(certificates, name, hours):
    """A device whose certificate, for two days, was made so many hours ago."""
    identity = certificates.device(name)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-CA", certificates.path("ca.pem"), "-CAkey", certificates.path("ca.key"),
         "-keyout", certificates.path(f"{name}.key"), "-out", certificates.path(f"{name}.pem"),
         "-days", "2", "-subj", f"/CN={name}", "-addext",
         f"subjectAltName=URI:urn:uuid:{identity}", "-addext", "extendedKeyUsage=clientAuth",
         "-addext", "basicConstraints=CA:false"], check=True, capture_output=True,
        env=dict(os.environ, CLOCK_SHIFT_S=str(-3600 * hours),
                 LD_PRELOAD=os.path.join(BUILD, "tests/contract/libclock_shift.so")))
    return identity


def test_a_certificate_is_renewed_without_a_person(folder, world, certificates, database):
    identity = old_certificate(certificates, "aged", 40)
    files = OwnFiles(certificates, folder, "aged")
    old, key = files.text("one.pem"), files.text("one.key")
    agent = Agent(folder, world.server, files).start()
    try:
        eventually(f"it has a new one\n{agent.status()}",
                   lambda: files.text("one.pem") != old, 30)
        assert files.text("one.key") != key, "a key of its own"
        eventually("it is connected with it", lambda: agent.status().get("connected"))
        status = agent.status()
        assert status["device_id"] == identity and not status["identity"]["trying"]
        eventually("the server knows", lambda: database.query(
            "SELECT lower(serial) FROM redoubt.device WHERE id = %s", identity)
                   == [(status["identity"]["serial"].lower(),)])
        agent.stop()
        agent.start()
        eventually("it counts after a restart", lambda: agent.status().get("connected"))
    finally:
        agent.stop(signal.SIGKILL)


def test_of_two_with_one_identity_one_gets_another(folder, world, certificates, database):
    identity = certificates.device("twin")
    agents = [Agent(folder, world.server, OwnFiles(certificates, folder, "twin")).start()
              for _ in range(2)]
    try:
        def ids():
            return {a.status().get("device_id") for a in agents}

        eventually("they are two", lambda: len(ids()) == 2 and identity in ids(), 60)
        eventually("both are connected",
                   lambda: all(a.status().get("connected") for a in agents), 20)
        assert len(database.query("SELECT 1 FROM redoubt.device WHERE id = ANY (%s::uuid[])",
                                  list(ids()))) == 2
    finally:
        for agent in agents:
            agent.stop(signal.SIGKILL)
