"""redoubt-agent with a real clamd against the real server and PostgreSQL."""
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

import pytest

from device_world import (AGENT, Certificates, Daemon, Postgres, eventually, free_port)


@pytest.fixture(scope="module", name="folder")
def _folder():
    with tempfile.TemporaryDirectory(prefix="redoubt-agent-") as path:
        os.chmod(path, 0o755)  # PostgreSQL runs as another user
        yield path


@pytest.fixture(scope="module", name="database")
def _database(folder):
    database = Postgres(folder)
    yield database
    database.stop()


@pytest.fixture(scope="module", name="certificates")
def _certificates(folder):
    certificates = Certificates(folder)
    certificates.ids = {"one": certificates.device("one")}
    return certificates


class Clamd:
    """A real engine with one signature of our own."""

    def __init__(self, folder):
        self.folder = tempfile.mkdtemp(dir=folder)
        self.socket = os.path.join(self.folder, "clamd.sock")
        os.mkdir(os.path.join(self.folder, "db"))
        with open(os.path.join(self.folder, "db/own.ndb"), "w", encoding="ascii") as file:
            file.write("Own.Marker:0:*:" + b"own harmless marker".hex() + "\n")
        with open(os.path.join(self.folder, "clamd.conf"), "w", encoding="ascii") as file:
            file.write(f"LocalSocket {self.socket}\nDatabaseDirectory {self.folder}/db\n"
                       "Foreground yes\nUser root\n" if os.getuid() == 0 else
                       f"LocalSocket {self.socket}\nDatabaseDirectory {self.folder}/db\n"
                       "Foreground yes\n")
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            ["clamd", "--config-file", os.path.join(self.folder, "clamd.conf")],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)

        def answers():
            with socket.socket(socket.AF_UNIX) as s:
                try:
                    s.connect(self.socket)
                    s.sendall(b"zPING\0")
                    return s.recv(16) == b"PONG\0"
                except OSError:
                    return False

        eventually("clamd answers", answers, 30)

    def stop(self):
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture(scope="module", name="engine")
def _engine(folder):
    if not shutil.which("clamd"):
        pytest.skip("clamd is not installed")
    engine = Clamd(folder)
    yield engine
    engine.stop()


class Agent:
    def __init__(self, folder, port, certificates, clamd, **settings):
        self.folder = tempfile.mkdtemp(dir=folder)
        self.certificates = certificates
        self.acks = os.path.join(self.folder, "acks")
        self.conf = os.path.join(self.folder, "agent.conf")
        values = {"server": f"127.0.0.1:{port}", "server_name": "redoubt",
                  "certificate": certificates.path("one.pem"),
                  "key": certificates.path("one.key"), "ca": certificates.path("ca.pem"),
                  "spool": os.path.join(self.folder, "spool.db"), "clamd": clamd,
                  "state_dir": os.path.join(self.folder, "state"),
                  "report_ms": 100, **settings}
        with open(self.conf, "w", encoding="ascii") as file:
            file.write("[agent]\n" + "".join(f"{k}={v}\n" for k, v in values.items())
                       + "[log]\nlevel=debug\n")
        self.process = None

    def start(self):
        self.log = open(os.path.join(self.folder, "log"), "ab")
        self.process = subprocess.Popen([AGENT, "--config", self.conf, "--ack-log", self.acks],
                                        stdin=subprocess.DEVNULL, stderr=self.log)
        return self

    def stop(self, how=signal.SIGTERM):
        if self.process and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(10)
        return self.process.returncode

    def log_text(self):
        with open(os.path.join(self.folder, "log"), encoding="utf-8", errors="replace") as f:
            return f.read()

    def status(self):
        done = subprocess.run([AGENT, "--config", self.conf, "status", "--json"],
                              capture_output=True, text=True, check=False)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def acked(self):
        try:
            with open(self.acks, encoding="ascii") as file:
                return [tuple(line.split()) for line in file]
        except FileNotFoundError:
            return []


@pytest.fixture(name="daemon")
def _daemon(folder, database, certificates):
    daemon = Daemon(folder, database, certificates)
    daemon.wait_note("READY=1")
    (now,), = database.query("SELECT epoch FROM redoubt.fence")
    daemon.epoch = now + 1
    database.raise_fence(daemon.epoch)
    daemon.active(daemon.epoch)
    yield daemon
    daemon.stop()


@pytest.fixture(name="agent")
def _agent(folder, daemon, certificates, engine):
    agent = Agent(folder, daemon.port, certificates, engine.socket).start()
    yield agent
    agent.stop(signal.SIGKILL)
    text = agent.log_text()
    assert "BUG" not in text and "Sanitizer" not in text, text


def stored(database):
    return {row[0]: row[1:] for row in database.query(
        "SELECT report_id::text, seq, epoch, body FROM redoubt.report")}


def check_acks(agent, database):
    """What the agent was told was stored, is stored; and each once."""
    acked = agent.acked()  # first: more may be stored meanwhile, and told
    rows = stored(database)
    for device, one, seq in acked:
        assert device == agent.certificates.ids["one"]
        assert one in rows and rows[one][0] == int(seq)
    assert len({a[1] for a in acked}) == len(acked), "a receipt came twice"
    return acked


def wait_acks(agent, more, seconds=30):
    start = len(agent.acked())
    eventually(f"{more} more reports are stored\n{agent.log_text()[-3000:]}",
               lambda: len(agent.acked()) >= start + more, seconds)


def test_reports_arrive_with_what_the_engine_says(agent, database, certificates):
    wait_acks(agent, 5)
    acked = check_acks(agent, database)
    body = stored(database)[acked[0][1]][2]
    assert body["reason"] == "start"
    assert body["engine.state"] == "running" and body["engine.version"][0].isdigit()
    (name, description, health), = database.query(
        "SELECT name, description, health FROM redoubt.device WHERE id = %s",
        certificates.ids["one"])
    assert name == socket.gethostname() and health["healthy"] is True
    assert description["identifying"]["service.name"] == "redoubt-agent"
    status = agent.status()
    assert status["connected"] and status["engine"]["up"]
    assert status["reports"]["acknowledged"] >= 5
    assert [int(a[2]) for a in acked] == sorted(int(a[2]) for a in acked), "in order"


def test_nothing_is_lost_while_the_server_is_away(agent, daemon, database):
    wait_acks(agent, 2)
    daemon.standby()
    eventually("reports wait", lambda: agent.status()["reports"]["pending"] >= 5)
    eventually("it is not connected", lambda: not agent.status()["connected"])
    agent.stop(signal.SIGKILL)  # and a crash of the agent on top
    agent.start()
    eventually("it is back", lambda: agent.status() is not None)
    assert agent.status()["reports"]["pending"] >= 5
    database.raise_fence(daemon.epoch + 1)
    daemon.active(daemon.epoch + 1)
    eventually("the spool is empty", lambda: agent.status()["reports"]["pending"] <= 1)
    acked = check_acks(agent, database)
    seqs = sorted(int(a[2]) for a in acked)
    assert seqs == list(range(1, len(seqs) + 1)), "no gap"


def test_it_is_back_within_a_second(agent, daemon, database):
    wait_acks(agent, 2)
    for n in (1, 2, 3):
        daemon.standby()
        time.sleep(1.5)
        database.raise_fence(daemon.epoch + n)
        daemon.active(daemon.epoch + n)
        begin = time.monotonic()  # how long the server takes is not the agent's
        eventually("connected", lambda: agent.status()["connected"], 5)
        assert time.monotonic() - begin < 3  # generous: a busy machine
        wait_acks(agent, 1)


def test_while_the_database_is_away_reports_wait(agent, database):
    wait_acks(agent, 2)
    database.stop()
    try:
        eventually("reports wait", lambda: agent.status()["reports"]["pending"] >= 5)
        eventually("it says why", lambda: agent.status()["trouble"])
    finally:
        database.start()
    wait_acks(agent, 5)
    check_acks(agent, database)


def test_a_silent_server_is_given_up(folder, certificates, engine, daemon):
    """A server that is stopped keeps its connections open, and says nothing."""
    agent = Agent(folder, daemon.port, certificates, engine.socket, dead_after_ms=600).start()
    try:
        eventually("connected", lambda: (agent.status() or {}).get("connected"))
        daemon.process.send_signal(signal.SIGSTOP)
        eventually("it notices", lambda: "fallen silent" in agent.log_text())
        daemon.process.send_signal(signal.SIGCONT)
        eventually("connected", lambda: agent.status()["connected"])
    finally:
        daemon.process.send_signal(signal.SIGCONT)
        agent.stop(signal.SIGKILL)


def test_a_dead_engine_is_reported_at_once(agent, engine, database):
    wait_acks(agent, 2)
    engine.stop()
    try:
        eventually("the server knows", lambda: any(
            row[2]["engine.state"] == "down" and row[2]["reason"] == "change"
            for row in stored(database).values()))
        assert agent.status()["engine"]["why"]
    finally:
        engine.start()
    eventually("it sees the engine again", lambda: agent.status()["engine"]["up"])


def test_a_hanging_engine_is_down(agent, engine):
    wait_acks(agent, 2)
    engine.process.send_signal(signal.SIGSTOP)
    try:
        eventually("it is seen as down", lambda: not agent.status()["engine"]["up"])
        assert "in time" in agent.status()["engine"]["why"]
    finally:
        engine.process.send_signal(signal.SIGCONT)


def test_an_engine_that_talks_nonsense_is_down(folder, daemon, certificates):
    path = os.path.join(folder, "nonsense.sock")
    answers = [b"", b"\0", b"1: \0", b"9: PONG\0", b"x" * 40000, b"1: PONG\x002: Clam\0"]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        served = []

        def serve():
            while True:
                try:
                    s, _ = listener.accept()
                except OSError:
                    return
                with s:
                    try:
                        s.sendall(answers[len(served) % len(answers)])
                    except OSError:
                        pass
                    served.append(1)

        threading.Thread(target=serve, daemon=True).start()
        agent = Agent(folder, daemon.port, certificates, path).start()
        try:
            eventually("all were asked", lambda: len(served) > 2 * len(answers), 20)
            assert agent.process.poll() is None
            assert not agent.status()["engine"]["up"]
        finally:
            agent.stop(signal.SIGKILL)
        listener.shutdown(socket.SHUT_RDWR)


def test_a_small_spool_drops_the_oldest_and_says_so(folder, certificates, engine):
    agent = Agent(folder, free_port(), certificates, engine.socket, spool_max=10).start()
    try:
        eventually("some were dropped",
                   lambda: ((agent.status() or {}).get("reports") or {}).get("dropped", 0) > 2)
        assert agent.status()["reports"]["pending"] == 10
    finally:
        agent.stop(signal.SIGKILL)


def test_one_agent_for_one_spool(agent):
    eventually("it runs", agent.status)
    done = subprocess.run([AGENT, "--config", agent.conf], capture_output=True, text=True,
                          check=False, timeout=10)
    assert done.returncode == 1 and "in use" in done.stderr


def test_wrong_configurations_say_what_is_wrong(folder, certificates):
    def complaint(**settings):
        agent = Agent(folder, 1, certificates, "/nonexistent", **settings)
        done = subprocess.run([AGENT, "--config", agent.conf, "--check"],
                              capture_output=True, text=True, check=False, timeout=10)
        assert done.returncode == 78, done.stderr
        return done.stderr

    assert "/nonexistent.pem" in complaint(certificate="/nonexistent.pem")
    assert "urn:uuid" in complaint(certificate=certificates.path("server.pem"))
    assert "ca" in complaint(ca=certificates.path("one.key"))
    assert "device_id" in complaint(device_id="00000000-0000-4000-8000-000000000000")
    assert "report_ms" in complaint(report_ms="soon")
    done = subprocess.run([AGENT, "--config", "/nonexistent.conf"], capture_output=True,
                          text=True, check=False, timeout=10)
    assert done.returncode == 78 and "/nonexistent.conf" in done.stderr


def test_a_server_with_a_foreign_certificate_is_not_trusted(folder, daemon, certificates,
                                                           engine):
    agent = Agent(folder, daemon.port, certificates, engine.socket,
                  server_name="another.name").start()
    try:
        eventually("it refuses", lambda: "certificate" in (agent.status() or {}).get(
            "trouble", ""))
        assert not agent.status()["connected"] and not agent.acked()
    finally:
        agent.stop(signal.SIGKILL)


def test_it_ends_when_told(agent):
    wait_acks(agent, 1)
    assert agent.stop() == 0
    assert agent.status() is None
