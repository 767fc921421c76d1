"""redoubt-agent against a server of our own that misbehaves: events, tasks, policies, offers.
The engine is away; what is tested here is what the agent says and keeps."""
import json
import os
import signal
import sqlite3
import subprocess
import tempfile
import time
import uuid

import pytest

from device_world import AGENT, Certificates, eventually, field, parse
from server_world import EVENTS, SESSION, Server, custom


@pytest.fixture(scope="module", name="folder")
def _folder():
    with tempfile.TemporaryDirectory(prefix="redoubt-talk-") as path:
        yield path


@pytest.fixture(scope="module", name="certificates")
def _certificates(folder):
    certificates = Certificates(folder)
    certificates.ids = {"one": certificates.device("one")}
    return certificates


@pytest.fixture(name="server")
def _server(certificates):
    server = Server(certificates)
    yield server
    server.stop()


class Agent:
    def __init__(self, folder, server, certificates, **conf):
        self.folder = tempfile.mkdtemp(dir=folder)
        self.state = os.path.join(self.folder, "state")
        os.mkdir(self.state)
        self.spool = os.path.join(self.folder, "spool.db")
        self.conf = os.path.join(self.folder, "agent.conf")
        values = {"server": f"127.0.0.1:{server.port}", "server_name": "redoubt",
                  "certificate": certificates.path("one.pem"),
                  "key": certificates.path("one.key"), "ca": certificates.path("ca.pem"),
                  "spool": self.spool, "state_dir": self.state,
                  "clamd": os.path.join(self.folder, "no-clamd"),
                  "report_ms": 60000, **conf}
        with open(self.conf, "w", encoding="ascii") as file:
            file.write("[agent]\n" + "".join(f"{k}={v}\n" for k, v in values.items())
                       + "[log]\nlevel=debug\n")
        self.process = None

    def start(self, **env):
        log = open(os.path.join(self.folder, "log"), "ab")
        self.process = subprocess.Popen([AGENT, "--config", self.conf], stderr=log,
                                        stdin=subprocess.DEVNULL,
                                        env=dict(os.environ, **env))
        return self

    def stop(self, how=signal.SIGTERM):
        if self.process and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(10)
        return self.process.returncode if self.process else None

    def log_text(self):
        with open(os.path.join(self.folder, "log"), encoding="utf-8", errors="replace") as f:
            return f.read()

    def status(self):
        done = subprocess.run([AGENT, "--config", self.conf, "status", "--json"],
                              capture_output=True, text=True, check=False)
        return json.loads(done.stdout) if done.returncode == 0 else {}

    def waiting(self):
        return self.status().get("events", {}).get("pending", -1)

    def fill(self, count, severity="info", stream=1, size=0, kind="made_up"):
        """Puts events into the spool of an agent that does not run."""
        rank = ["info", "warning", "error", "critical"].index(severity)
        link = sqlite3.connect(self.spool)
        (last,), = link.execute("SELECT last_seq FROM stream WHERE name = ?", (stream,))
        for n in range(last + 1, last + count + 1):
            body = {"at": int(time.time() * 1e6), "kind": kind, "severity": severity,
                    "data": {"n": n, "text": "x" * size}}
            link.execute("INSERT INTO event VALUES (?, ?, ?, ?, NULL)",
                         (stream, n, rank, json.dumps(body).encode()))
        link.execute("UPDATE stream SET last_seq = last_seq + ? WHERE name = ?",
                     (count, stream))
        link.commit()
        link.close()

    def once(self):
        """Makes the spool, and ends."""
        subprocess.run([AGENT, "--config", self.conf, "--check"], check=True)
        return self


@pytest.fixture(name="make")
def _make(folder, server, certificates):
    made = []

    def make(**conf):
        made.append(Agent(folder, server, certificates, **conf))
        return made[-1]

    yield make
    for agent in made:
        agent.stop(signal.SIGKILL)
        if agent.process:
            text = agent.log_text()
            assert "BUG" not in text and "Sanitizer" not in text, text


def numbers(server, stream=None):
    return [e["data"]["n"] for s, events in server.events.items() for e in events
            if (stream is None or s == stream) and e["kind"] == "made_up"]


def test_events_arrive_in_order_and_once(make, server):
    agent = make().once()
    agent.fill(250, size=800)
    agent.start()
    eventually("all arrive", lambda: len(server.of_kind("made_up")) == 250)
    assert numbers(server) == list(range(1, 251)) and not server.gaps
    eventually("none waits", lambda: agent.waiting() == 0)
    assert agent.status()["events"]["acknowledged"] == 250


def test_what_is_critical_goes_first(make, server):
    agent = make().once()
    agent.fill(300, size=1000)
    agent.fill(3, "critical", stream=0)
    agent.start()
    eventually("all arrive", lambda: len(server.of_kind("made_up")) == 303)
    assert server.batches[0]["events"][0]["severity"] == "critical"
    assert len(server.events) == 2


def test_nothing_is_lost_or_doubled_when_connections_break(make, server):
    agent = make().once()
    agent.fill(600, size=900)
    cuts = []

    def sometimes(message, first):
        answers = server.usual(message, first)
        if 13 in message and len(server.batches) % 3 == 1 and len(cuts) < 6:
            cuts.append(1)
            raise ConnectionError  # stored, and never acknowledged
        return answers

    server.answer = sometimes
    agent.start()
    eventually("all arrive", lambda: agent.waiting() == 0 and agent.status(), 20)
    assert len(cuts) == 6
    assert numbers(server) == list(range(1, 601)) and not server.gaps


def test_a_crash_of_the_agent_loses_nothing(make, server):
    agent = make().once()
    agent.fill(400, size=900)
    server.ack = False
    agent.start()
    eventually("some arrive", lambda: server.batches)
    agent.stop(signal.SIGKILL)
    server.ack = True
    agent.start()
    eventually("all arrive", lambda: len(server.of_kind("made_up")) == 400)
    eventually("none waits", lambda: agent.waiting() == 0)
    assert numbers(server) == list(range(1, 401))


def test_an_acknowledgement_of_what_was_never_sent_begins_a_new_stream(make, server):
    """A machine restored from a copy: the server knows more than the spool."""
    agent = make().once()
    agent.fill(5)
    link = sqlite3.connect(agent.spool)
    (old,), = link.execute("SELECT id FROM stream WHERE name = 1")
    link.close()
    old = str(uuid.UUID(bytes=old))
    server.events[old] = [{"kind": "of_before", "data": {}}] * 50
    agent.start()
    eventually("all arrive", lambda: len(server.of_kind("made_up")) == 5)
    assert len(server.events[old]) == 50, "nothing was taken for a repetition"
    eventually("none waits", lambda: agent.waiting() == 0)


def test_a_server_without_events_gets_none(make, server):
    server.capabilities = server.capabilities[:1]
    agent = make().once()
    agent.fill(5)
    agent.start()
    eventually("it is connected", lambda: agent.status().get("connected"))
    time.sleep(0.5)
    assert not server.batches and agent.waiting() == 5


def test_unavailable_is_waited_for(make, server):
    agent = make().once()
    agent.fill(20)
    refused = []

    def busy(message, first):
        if 13 in message and EVENTS.encode() in message[13][0] and len(refused) < 2:
            refused.append(time.monotonic())
            return [field(2, field(1, 2) + field(2, "later") + field(3, field(1, 500000000)))]
        return server.usual(message, first)

    server.answer = busy
    agent.start()
    eventually("all arrive", lambda: len(server.of_kind("made_up")) == 20)
    assert refused[1] - refused[0] >= 0.5
    assert numbers(server) == list(range(1, 21)) and server.connections == 1


def test_an_event_that_is_never_taken_blocks_no_other(make, server):
    agent = make().once()
    agent.fill(2)
    refuse = []

    def picky(message, first):
        if 13 in message:
            inner = parse(message[13][0])
            if inner[1][0].decode() == EVENTS:
                batch = json.loads(inner[3][0])
                if any(e["data"].get("n") == 1 for e in batch["events"]):
                    stored = server.events.setdefault(batch["stream"], [])
                    stored += batch["events"][len(stored):]
                    refuse.append(1)
                    return [custom(EVENTS, "ack", {
                        "stream": batch["stream"], "through": len(stored),
                        "refused": [{"seq": 1, "why": "no such thing"}]})]
        return server.usual(message, first)

    server.answer = picky
    agent.start()
    eventually("none waits", lambda: agent.waiting() == 0)
    assert agent.status()["events"]["refused"] == 1
    assert "no such thing" in agent.status()["trouble"] and len(refuse) == 1


def test_what_was_dropped_is_told(make, server):
    agent = make().once()
    agent.fill(5)
    link = sqlite3.connect(agent.spool)
    link.execute("UPDATE counter SET value = 7 WHERE name = 'untold_0'")
    link.execute("UPDATE counter SET value = 2 WHERE name = 'untold_3'")
    link.commit()
    link.close()
    agent.start()
    eventually("it is told", lambda: server.of_kind("events_dropped"))
    assert server.of_kind("events_dropped")[0]["data"] == {
        "count": 9, "info": 7, "warning": 0, "error": 0, "critical": 2}
    eventually("none waits", lambda: agent.waiting() == 0)
    assert agent.status()["events"]["dropped_untold"] == 0
    agent.stop()
    agent.start()
    eventually("it is back", lambda: server.connections == 2)
    assert len(server.of_kind("events_dropped")) == 1


def test_an_old_clock_neither_loses_nor_blocks(make, server):
    agent = make().once()
    agent.fill(3)
    link = sqlite3.connect(agent.spool)
    for n, at in ((1, 0), (2, 946684800000000), (3, 7258118400000000)):
        link.execute("UPDATE event SET body = json_set(body, '$.at', ?) WHERE seq = ?",
                     (at, n))
    link.commit()
    link.close()
    agent.start()
    eventually("all arrive", lambda: len(server.of_kind("made_up")) == 3)


@pytest.mark.parametrize("garbage", [
    b"", b"{", b"[]", b"null", b"\xff" * 100, b"[" * 60000, b'{"a":' * 10000, b"{}",
    b'{"stream":1,"through":"x"}', b'{"stream":"x","through":-1}',
    b'{"stream":"00000000-0000-4000-8000-000000000000","through":99999999999999999999}',
    json.dumps({"spread_ms": -1}).encode(), json.dumps({"spread_ms": 1e300}).encode()])
def test_garbage_from_the_server_is_bounded(make, server, garbage):
    agent = make().once()
    agent.fill(3)
    said = []

    def talk(message, first):
        if len(said) < 4:
            said.append(1)
            return [field(7, 1) + field(10, field(1, EVENTS)),
                    custom(EVENTS, "ack", garbage), custom(SESSION, "session", garbage)]
        return server.usual(message, first)

    server.answer = talk
    agent.start()
    eventually("all arrive", lambda: len(server.of_kind("made_up")) == 3, 20)
    assert agent.process.poll() is None


def test_after_a_loss_it_comes_back_within_the_spread(make, server):
    server.hello = [custom(SESSION, "session",
                           {"spread_ms": 1500, "backoff_max_ms": 5000, "epoch": 7})]
    agent = make().start()
    waits = []
    for _ in range(3):
        server.connected()
        eventually("it knows", lambda: agent.status().get("epoch") == 7)
        server.cut()
        begin = time.monotonic()
        server.connected()
        waits.append(time.monotonic() - begin)
    assert max(waits) < 2.5 and max(waits) - min(waits) > 0.01, waits


def test_a_damaged_spool_is_put_aside_and_told(make, server):
    agent = make().once()
    agent.fill(300, size=500)
    size = os.path.getsize(agent.spool)
    with open(agent.spool, "r+b") as file:
        file.seek(size // 2)
        file.write(os.urandom(size // 4))
    agent.start()
    eventually("it is told", lambda: server.of_kind("spool_damaged"))
    assert os.path.exists(agent.spool + ".damaged")
