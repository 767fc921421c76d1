"""redoubt-agent against a server of our own that misbehaves: events, tasks, policies, offers.
The engine is away; what is tested here is what the agent says and keeps."""
import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time
import uuid

import pytest

from device_world import AGENT, BUILD, Certificates, eventually, field, parse
from server_world import (APPLIED, EVENTS, FAILED, SESSION, TASKS, Server, custom, digest_of,
                          remote_config, run_id, settings, unix_s)


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

    def start(self, before=(), **env):
        log = open(os.path.join(self.folder, "log"), "ab")
        self.process = subprocess.Popen([*before, AGENT, "--config", self.conf], stderr=log,
                                        stdin=subprocess.DEVNULL,
                                        env=dict(os.environ, **env))
        return self

    def stop(self, how=signal.SIGTERM):
        if self.process and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(30)
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
            if e and (stream is None or s == stream) and e["kind"] == "made_up"]


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
    eventually("all arrive", lambda: agent.waiting() == 0 and agent.status(), 40)
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


@pytest.mark.parametrize("patience", [0, 60000])
def test_how_long_the_server_may_be_silent(make, server, patience):
    """What the device is configured for, or what the session asks for, if that is longer."""
    server.deaf, server.epoch = True, 9
    server.hello = [custom(SESSION, "session", {"spread_ms": 0, "backoff_max_ms": 0,
                                                "dead_after_ms": patience, "epoch": 9})]
    agent = make(dead_after_ms=300).start()
    eventually("it knows the session", lambda: agent.status().get("epoch") == 9)
    before = agent.log_text().count("fallen silent")  # until then it has its own patience
    if patience == 0:
        eventually("it gives up", lambda: "fallen silent" in agent.log_text())
    else:
        time.sleep(2)
        assert agent.log_text().count("fallen silent") == before


def test_after_a_loss_it_comes_back_within_the_spread(make, server):
    server.hello = [custom(SESSION, "session",
                           {"spread_ms": 1500, "backoff_max_ms": 5000, "epoch": 7})]
    server.epoch = 7
    agent = make().start()
    waits = []
    for _ in range(3):
        server.connected()
        eventually("it knows", lambda: agent.status().get("epoch") == 7)
        server.cut()
        begin = time.monotonic()
        server.connected()
        waits.append(time.monotonic() - begin)
    assert max(waits) < 4 and max(waits) - min(waits) > 0.01, waits


def test_a_full_disk_keeps_events_in_memory_and_takes_no_order(make, server, folder):
    if subprocess.run(["unshare", "-m", "true"], check=False).returncode != 0:
        pytest.skip("no mount namespaces here")
    disk = tempfile.mkdtemp(dir=folder)
    agent = make(spool=f"{disk}/spool.db")
    agent.start(["unshare", "-m", "sh", "-c",
                 'mount -t tmpfs -o size=1m none "$0" && exec "$@"', disk])
    server.connected()
    inside = f"/proc/{agent.process.pid}/root{disk}"
    with open(os.path.join(inside, "filler"), "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 512)
        except OSError:
            pass
    bad = [digest_of(str(n)) for n in range(3)]
    for digest in bad:
        server.say(remote_config(digest, '{"scan.cpu_percent": 0}'))
    eventually("all are refused", lambda: [d for d, s, _ in server.states(7) if s == FAILED][-1:]
               == bad[-1:])
    run = order(not_before=unix_s() + 3600)
    server.assign(run)
    time.sleep(1.5)
    assert not server.of_kind("policy_failed") and not about(server, "run_accepted", run)
    assert agent.process.poll() is None
    os.remove(os.path.join(inside, "filler"))
    eventually("they are told", lambda: len(server.of_kind("policy_failed")) == 3, 40)
    assert [e["data"]["hash"] for e in server.of_kind("policy_failed")] == [d.hex() for d in bad]
    server.assign(run)
    eventually("the order is taken", lambda: about(server, "run_accepted", run))


def test_one_event_that_is_a_bad_request_is_found_and_given_up(make, server):
    agent = make().once()
    agent.fill(5)

    def picky(message, first):
        if 13 in message and b'"n":3' in message[13][0].replace(b" ", b""):
            return [field(2, field(1, 1) + field(2, "never"))]
        return server.usual(message, first)

    server.answer = picky
    agent.start()
    eventually("none waits", lambda: agent.status() and agent.waiting() == 0, 60)
    assert [n for n in numbers(server) if n] == [1, 2, 4, 5]
    assert agent.status()["events"]["refused"] == 1


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


# ---- tasks ----

def order(**more):
    return {"run": run_id(), "type": "inventory", "params": {}, "priority": 5,
            "not_before": 0, "not_after": None, **more}


def about(server, kind, run):
    return [e for e in server.of_kind(kind) if e["data"]["run"] == run["run"]]


def test_a_task_is_accepted_done_and_told_once(make, server):
    agent = make().start()
    server.connected()
    run = order()
    eventually("it said what it has", lambda: server.running == [[]])
    server.assign(run)
    eventually("it ends", lambda: about(server, "run_finished", run), 20)
    assert len(about(server, "run_accepted", run)) == 1
    server.assign(run)  # the server did not know yet
    server.assign(run)
    time.sleep(1.5)
    assert len(about(server, "run_finished", run)) == 1
    assert len(about(server, "run_accepted", run)) == 1
    assert agent.status()["runs"] == {"open": 0, "finished": 1, "list": []}


def test_what_it_has_to_do_is_asked_again_if_the_server_could_not_hear_it(make, server):
    refused = []

    def no_database(message, first):
        if 13 in message and b"running" in message[13][0] and not refused:
            refused.append(message)
            return [field(2, field(1, 2) + field(3, field(1, int(0.2e9))))]
        return server.usual(message, first)

    server.answer = no_database
    make().start()
    server.connected()
    eventually("it says what it has", lambda: server.running == [[]])
    assert refused and server.connections == 1


def test_a_task_survives_a_crash_and_is_still_one(make, server):
    agent = make().start()
    server.connected()
    later = order(not_before=unix_s() + 3600)
    server.assign(later)
    eventually("it is accepted", lambda: about(server, "run_accepted", later))
    agent.stop(signal.SIGKILL)
    agent.start()
    eventually("it still knows it", lambda: server.running[-1:] == [[later["run"]]])
    server.assign(later)
    eventually("it answers", lambda: any(p["run"] == later["run"] and p["state"] == "accepted"
                                         for p in server.progress))
    assert len(about(server, "run_accepted", later)) == 1
    server.say(custom(TASKS, "cancel", {"runs": [later["run"]]}))
    eventually("it is cancelled", lambda: about(server, "run_finished", later))
    assert about(server, "run_finished", later)[0]["data"]["outcome"] == "cancelled"
    agent.stop(signal.SIGKILL)
    agent.start()
    eventually("nothing is left", lambda: server.running[-1:] == [[]] and server.connections == 3)
    server.assign(later)
    time.sleep(1.2)
    assert len(about(server, "run_finished", later)) == 1


def test_a_held_task_waits_and_an_expired_one_is_told(make, server):
    agent = make().start()
    server.connected()
    held, late = order(not_before=unix_s() + 6), order(not_after=unix_s() - 10)
    server.assign(held, late)
    eventually("it is accepted", lambda: about(server, "run_accepted", held))
    server.say(custom(TASKS, "pause", {"runs": [held["run"]]}))
    eventually("it is expired", lambda: about(server, "run_finished", late))
    assert about(server, "run_finished", late)[0]["data"]["outcome"] == "expired"
    time.sleep(max(0, held["not_before"] + 1.5 - time.time()))
    assert not about(server, "run_finished", held)
    assert agent.status()["runs"]["list"][0]["state"] == "paused"
    server.say(custom(TASKS, "resume", {"runs": [held["run"]]}))
    eventually("it is done", lambda: about(server, "run_finished", held), 20)


def test_a_held_task_is_held_over_a_restart(make, server):
    agent = make().start()
    server.connected()
    held = order(not_before=unix_s() + 3)
    server.assign(held)
    eventually("it is accepted", lambda: about(server, "run_accepted", held))
    server.say(custom(TASKS, "pause", {"runs": [held["run"]]}))
    eventually("it is held", lambda: agent.status()["runs"]["list"][0]["state"] == "paused")
    server.stop()
    agent.stop(signal.SIGKILL)
    agent.start()
    time.sleep(max(0, held["not_before"] + 2.5 - time.time()))
    assert agent.status()["runs"]["list"][0]["state"] == "paused"
    server.progress.clear()
    server.start()
    eventually("it says so", lambda: [p["state"] for p in server.progress] == ["paused"], 20)
    server.say(custom(TASKS, "resume", {"runs": [held["run"]]}))
    eventually("it is done", lambda: about(server, "run_finished", held), 20)


@pytest.mark.parametrize("wrong, why", [
    ({"type": "format_disk"}, "type"), ({"type": 7}, "type"), ({"params": []}, "params"),
    ({"priority": 10}, "priority"), ({"not_after": -1}, "not_after"),
    ({"not_before": "soon"}, "not_before"), ({"params": {"x": "y" * 20000}}, "big")])
def test_an_order_that_makes_no_sense_is_refused_once(make, server, wrong, why):
    make().start()
    server.connected()
    run = order(**wrong)
    server.assign(run)
    server.assign(run)
    eventually("it is refused", lambda: about(server, "run_refused", run))
    time.sleep(0.3)
    (event,) = about(server, "run_refused", run)
    assert why in event["data"]["why"]


def test_tasks_on_one_device_are_bounded(make, server):
    agent = make().start()
    server.connected()
    runs = [order(not_before=unix_s() + 3600) for _ in range(70)]
    for run in runs:
        server.assign(run)
    eventually("six are too many", lambda: len(server.of_kind("run_refused")) == 6)
    assert len(server.of_kind("run_accepted")) == 64
    assert agent.status()["runs"]["open"] == 64


def test_times_are_those_of_the_server(make, server):
    """A device whose clock is a year off does at once what is due now."""
    year = 365 * 86400
    server.hello = [custom(SESSION, "session", {"spread_ms": 0, "backoff_max_ms": 0,
                                                "epoch": 1, "now": unix_s() + year})]
    make().start()
    server.connected()
    run = order(not_before=unix_s() + year - 5, not_after=unix_s() + year + 60)
    server.assign(run)
    eventually("it is done", lambda: about(server, "run_finished", run), 20)
    assert about(server, "run_finished", run)[0]["data"]["outcome"] != "expired"


@pytest.mark.parametrize("off", [-366, 366])
def test_a_clock_that_is_set_expires_nothing(make, server, folder, off):
    """A device without a clock of its own connects first, and hears of the time later."""
    clock = os.path.join(folder, f"clock{off}")
    set_clock(clock, off * 86400)
    server.hello = [custom(SESSION, "session", {"spread_ms": 0, "backoff_max_ms": 0,
                                                "epoch": 1, "now": unix_s()})]
    make().start(**shift(0), CLOCK_SHIFT_FILE=clock)
    server.connected()
    eventually("it is at work", lambda: server.running)
    set_clock(clock, 0)
    run = order(not_before=unix_s() - 5, not_after=unix_s() + 600)
    server.assign(run)
    eventually("it is done", lambda: about(server, "run_finished", run), 20)
    assert about(server, "run_finished", run)[0]["data"]["outcome"] != "expired"


def set_clock(path, seconds):
    with open(path + ".new", "w", encoding="ascii") as file:
        file.write(str(seconds))
    os.rename(path + ".new", path)


@pytest.mark.parametrize("off", [-366, 366, -20000, 40000])
def test_a_clock_that_is_far_off_blocks_nothing(make, server, off):
    """The certificates of these tests are valid for two days."""
    agent = make().once()
    agent.fill(3)
    server.hello = [custom(SESSION, "session", {"spread_ms": 0, "backoff_max_ms": 0,
                                                "epoch": 1, "now": unix_s()})]
    agent.start(**shift(off * 86400))
    eventually("all arrive", lambda: len(server.of_kind("made_up")) == 3)
    run = order(not_before=unix_s() - 5, not_after=unix_s() + 600)
    server.assign(run)
    eventually("it is done", lambda: about(server, "run_finished", run), 20)
    assert about(server, "run_finished", run)[0]["data"]["outcome"] != "expired"
    assert "outside the dates" in agent.log_text()


def shift(seconds):
    """The environment of an agent whose wall clock is that far off."""
    with open(AGENT, "rb") as file:
        if b"libasan" in file.read():
            pytest.skip("this sanitizer does not go with LD_PRELOAD")
    return {"LD_PRELOAD": os.path.join(BUILD, "tests/contract/libclock_shift.so"),
            "CLOCK_SHIFT_S": str(seconds)}


def test_a_right_clock_looks_at_the_dates(certificates, folder):
    """The server's certificate has expired, and ours has not."""
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                    "ec_paramgen_curve:P-256", "-nodes", "-CA", certificates.path("ca.pem"),
                    "-CAkey", certificates.path("ca.key"), "-keyout",
                    certificates.path("late.key"), "-out", certificates.path("late.pem"),
                    "-days", "1", "-subj", "/CN=redoubt", "-addext",
                    "subjectAltName=DNS:redoubt,IP:127.0.0.1"], check=True,
                   capture_output=True)
    late = Server(certificates, "late")
    agent = Agent(folder, late, certificates)
    try:
        agent.start(**shift(36 * 3600))
        eventually("it refuses", lambda: "certificate" in agent.status().get("trouble", ""))
        assert late.connections == 0
    finally:
        agent.stop(signal.SIGKILL)
        late.stop()


# ---- policies ----

def policy(**values):
    text = json.dumps({"scan.cpu_percent": 40, "agent.heartbeat_s": 10, **values})
    return digest_of(text), text


def test_a_policy_is_applied_kept_and_told(make, server):
    digest, text = policy()
    server.hello = [remote_config(digest, text)]
    agent = make().start()
    eventually("it is applied", lambda: (digest, APPLIED, "") in server.states(7))
    status = agent.status()["policy"]
    assert status["hash"] == status["in_force"] == digest.hex()
    eventually("an event tells it", lambda: server.of_kind("policy_applied"))
    assert status["heartbeat_s"] == 10
    agent.stop(signal.SIGKILL)
    server.stop()
    agent.start()  # without a server
    eventually("it is in force", lambda: (agent.status().get("policy") or {}).get(
        "in_force") == digest.hex())
    server.hello = []
    server.start()
    eventually("it is told again", lambda: server.connections == 2
               and (digest, APPLIED, "") in server.states(7)[1:])
    eventually("none waits", lambda: agent.waiting() == 0)
    assert len(server.of_kind("policy_applied")) == 1  # not at each start


def test_a_policy_that_found_no_place_on_the_disk_is_kept_later(make, server):
    digest, text = policy()
    agent = make()
    os.mkdir(os.path.join(agent.state, "policy.new"))  # as a full disk
    server.hello = [remote_config(digest, text)]
    agent.start()
    eventually("it is applied", lambda: (digest, APPLIED, "") in server.states(7))
    kept = os.path.join(agent.state, "policy")
    assert not os.path.exists(kept)
    os.rmdir(os.path.join(agent.state, "policy.new"))
    eventually("it is kept", lambda: os.path.exists(kept))
    with open(kept, encoding="utf-8") as file:
        assert file.read() == f"{digest.hex()}\n{text}"


def test_a_bad_policy_is_refused_with_the_path_and_the_old_one_stays(make, server):
    good, text = policy()
    bad, wrong = policy(**{"scan.cpu_percent": 900, "onaccess.mode": "explode"})
    server.hello = [remote_config(good, text)]
    agent = make().start()
    eventually("it is applied", lambda: (good, APPLIED, "") in server.states(7))
    server.say(remote_config(bad, wrong))
    eventually("it is refused", lambda: server.states(7)[-1][:2] == (bad, FAILED))
    why = server.states(7)[-1][2]
    assert "scan.cpu_percent" in why and "onaccess.mode" in why
    eventually("an event tells it", lambda: server.of_kind("policy_failed"))
    status = agent.status()["policy"]
    assert status["in_force"] == good.hex() and status["state"] == "failed"
    server.say(remote_config(good, text))
    eventually("back to the good one", lambda: server.states(7)[-1][:2] == (good, APPLIED))


def test_unknown_keys_of_a_newer_server_do_no_harm(make, server):
    digest, text = policy(**{"future.setting": [1, 2]})
    server.hello = [remote_config(digest, text)]
    make().start()
    eventually("it is applied", lambda: (digest, APPLIED, "") in server.states(7))


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xff", b'{"a":' * 5000,
                                  b'{"scan.cpu_percent":"' + b"9" * 50000 + b'"}'])
def test_a_policy_of_garbage_is_refused(make, server, body):
    server.hello = [remote_config(b"h" * 32, body)]
    agent = make().start()
    eventually("it is refused", lambda: (server.states(7) or [(0, 0)])[-1][:2]
               == (b"h" * 32, FAILED))
    assert agent.process.poll() is None and agent.status()["connected"]


def test_a_policy_under_another_name_is_refused(make, server):
    server.hello = [remote_config(b"n" * 32, "{}", name="other.json")]
    make().start()
    eventually("it is refused", lambda: any(
        s[1] == FAILED and "policy.json" in s[2] for s in server.states(7)))


# ---- offers ----

def test_a_new_address_is_tried_and_kept(make, server, certificates):
    other = Server(certificates)
    try:
        agent = make().start()
        server.connected()
        server.say(settings(b"one", f"wss://127.0.0.1:{other.port}/v1/opamp", 30))
        other.connected()
        eventually("it says so there", lambda: (b"one", APPLIED, "") in other.states(15))
        assert agent.status()["server"] == f"127.0.0.1:{other.port}"
        assert agent.status()["policy"]["heartbeat_s"] == 30
        agent.stop(signal.SIGKILL)
        agent.start()
        eventually("it goes there at once", lambda: other.connections == 2)
        assert server.connections == 1
    finally:
        other.stop()


def test_a_new_address_is_come_back_to_as_quickly(make, server, certificates):
    other = Server(certificates)
    try:
        make().start()
        server.connected()
        server.say(settings(b"one", f"wss://127.0.0.1:{other.port}/v1/opamp"))
        other.connected()
        eventually("it says so there", lambda: (b"one", APPLIED, "") in other.states(15))
        other.stop()
        tries, end = 0, time.monotonic() + 3
        with socket.create_server(("127.0.0.1", other.port)) as listener:
            listener.settimeout(0.1)
            while time.monotonic() < end:
                with contextlib.suppress(TimeoutError):
                    listener.accept()[0].close()
                    tries += 1
        assert tries > 9, tries
    finally:
        other.stop()


def test_an_address_that_does_not_work_is_not_kept(make, server, certificates, folder):
    certificates.sign("foreign", "elsewhere", "DNS:elsewhere", "serverAuth")
    other = Server(certificates, "foreign")
    try:
        agent = make().start()
        server.connected()
        server.say(settings(b"two", f"wss://127.0.0.1:{other.port}/v1/opamp"))
        eventually("it gives up", lambda: server.states(15)[-1:]
                   and server.states(15)[-1][:2] == (b"two", FAILED), 60)
        assert "certificate" in server.states(15)[-1][2]
        assert other.connections == 0 and server.connections == 1
        assert agent.status()["server"] == f"127.0.0.1:{server.port}"
    finally:
        other.stop()


def slow_names(after_s, done):
    """A name server that knows one address for everything, and takes its time."""
    link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    link.bind(("127.9.9.9", 53))
    link.settimeout(0.1)
    waiting, first = [], None
    while not done.is_set():
        with contextlib.suppress(TimeoutError):
            waiting.append(link.recvfrom(512))
            first = first or time.monotonic()
        if not first or time.monotonic() - first < after_s:
            continue
        for question, to in waiting:
            end = question.index(b"\0", 12) + 5
            ipv4 = question[end - 4:end - 2] == b"\0\1"
            found = b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4" + bytes([127, 0, 0, 1]) if ipv4 else b""
            link.sendto(question[:2] + b"\x81\x80\0\1" + (b"\0\1" if ipv4 else b"\0\0")
                        + b"\0" * 4 + question[12:end] + found, to)
        waiting.clear()
    link.close()


def test_a_name_that_is_found_when_the_trial_is_over_changes_nothing(
        make, server, certificates, folder):
    if subprocess.run(["unshare", "-m", "true"], check=False).returncode != 0:
        pytest.skip("no mount namespaces here")
    resolv, other, done = os.path.join(folder, "resolv"), Server(certificates), threading.Event()
    with open(resolv, "w", encoding="ascii") as file:
        file.write("nameserver 127.9.9.9\noptions timeout:30 attempts:2\n")
    names = threading.Thread(target=slow_names, args=(33, done))
    names.start()
    try:
        agent = make().start(["unshare", "-m", "sh", "-c",
                              'mount --bind "$0" /etc/resolv.conf && exec "$@"', resolv])
        server.connected()
        server.say(settings(b"slow", f"wss://slow.example:{other.port}/v1/opamp"))
        eventually("it gives up", lambda: server.states(15)[-1:]
                   and server.states(15)[-1][:2] == (b"slow", FAILED), 40)
        time.sleep(6)
        assert agent.process.poll() is None and server.connections == 1
        assert other.connections == 0
    finally:
        done.set()
        names.join()
        other.stop()


def test_an_address_that_has_gone_takes_turns_with_the_configured_one(make, server):
    agent = make()
    with open(os.path.join(agent.state, "server"), "w", encoding="ascii") as file:
        file.write("127.0.0.1:1\n")
    agent.start()
    eventually("it tries that first", lambda: agent.status().get("server") == "127.0.0.1:1")
    server.connected(60)
    assert agent.status()["server"] == f"127.0.0.1:{server.port}"


@pytest.mark.parametrize("endpoint", ["", "http://127.0.0.1:1/v1/opamp", "wss:///v1/opamp",
                                      "wss://127.0.0.1:1/other", "wss://a b:1/v1/opamp",
                                      "wss://user@host:1/v1/opamp", "wss://" + "x" * 600])
def test_an_address_that_is_none_is_refused(make, server, endpoint):
    agent = make().start()
    server.connected()
    server.say(settings(b"bad", endpoint))
    eventually("it is refused", lambda: server.states(15)[-1:]
               and server.states(15)[-1][:2] == (b"bad", FAILED))
    assert agent.status()["connected"]


# ---- the rest ----

def test_it_describes_itself(make, server):
    make().start()
    server.connected()
    eventually("it did", lambda: server.description()[1])
    identifying, other = server.description()
    assert identifying["service.name"] == "redoubt-agent" and identifying["redoubt.instance"]
    assert other["protection.engine"] == "down" and other["agent.version"]
    assert other["protection.realtime"] in ("off", "notify", "block", "failed")
    assert other["protection.last_scan"] == 0 and other["protection.threats_open"] == 0


def test_it_beats_when_there_is_nothing_to_say(make, server):
    server.hello = [settings(b"beat", "wss://127.0.0.1:%d/v1/opamp" % server.port, 1)]
    make().start()
    server.connected()
    time.sleep(1.5)
    begin, before = time.monotonic(), len(server.messages)
    time.sleep(3.5)
    beats = [m for m in server.messages[before:] if set(m) <= {1, 2, 4}]
    assert 2 <= len(beats) <= time.monotonic() - begin + 1


def test_status_is_readable_for_people(make, server):
    digest, text = policy()
    server.hello = [remote_config(digest, text)]
    agent = make().start()
    eventually("it is applied", lambda: (digest, APPLIED, "") in server.states(7))
    done = subprocess.run([AGENT, "--config", agent.conf, "status"], capture_output=True,
                          text=True, check=True)
    lines = {line[:20].strip(): line[21:] for line in done.stdout.splitlines()}
    assert lines["Policy"] == "applied" and lines["Policy in force"] == digest.hex()
    assert lines["Connection"] == "connected" and lines["Events dropped"] == "0"
    assert lines["Real-time protection"] in ("off", "notify", "block", "failed")
