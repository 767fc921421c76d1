"""What the server tells devices over OpAMP, against a real PostgreSQL."""
import contextlib
import hashlib
import json
import os
import signal
import socket
import struct
import tempfile
import time
import uuid

import pytest

from device_world import Refused, attribute, eventually, field, parse
from test_events import Session, event
from test_server import (_active, _certificates, _daemon, _database, _epoch,  # noqa: F401
                         _folder, connect, new_id, report, store)

REPORT, EVENTS, TASKS, SESSION, LICENCE = (f"com.redoubt.{n}/v1" for n in (
    "report", "events", "tasks", "session", "licence"))
CAPABILITIES = 0x1 | 0x2 | 0x100 | 0x1000 | 0x2000  # config and connection settings, too
ROOT = {"id": "/"}


@pytest.fixture(name="session")
def _session(active, database):
    with contextlib.closing(Session(database)) as session:
        yield session


class Told:
    """One ServerToAgent in words."""

    def __init__(self, fields):
        self.error = parse(fields[2][0]) if 2 in fields else None
        self.capabilities = fields.get(7, [0])[0]
        self.customs = ([c.decode() for c in parse(fields[10][0])[1]]
                        if 10 in fields else None)
        self.flags = fields.get(6, [0])[0]
        self.hash = self.policy = self.endpoint = self.heartbeat = self.certificate = None
        if 3 in fields:
            config = parse(fields[3][0])
            entry = parse(parse(config[1][0])[1][0])
            file = parse(entry[2][0])
            assert entry[1] == [b"policy.json"] and file[2] == [b"application/json"]
            self.hash, self.policy = config[2][0], json.loads(file[1][0])
        if 4 in fields:
            offer = parse(fields[4][0])
            connection = parse(offer[2][0])
            self.settings_hash = offer[1][0]
            self.endpoint = connection[1][0].decode()
            self.heartbeat = connection[4][0]
            if 3 in connection:
                self.certificate = parse(connection[3][0])[1][0].decode()
        self.new_uid = (str(uuid.UUID(bytes=parse(fields[8][0])[1][0]))
                        if 8 in fields else None)
        self.custom = None
        if 11 in fields:
            custom = parse(fields[11][0])
            data = custom[3][0]
            name = custom[1][0].decode()
            self.custom = (name, custom[2][0].decode(),
                           data if name == REPORT else json.loads(data))


class Agent:
    """A device that knows the custom capabilities; what it is told collects in `told`."""

    def __init__(self, daemon, certificates, name="one", customs=(EVENTS, TASKS, SESSION),
                 instance="i1", hello=True):
        self.device = connect(daemon, certificates, name)
        self.customs = customs
        self.instance = instance
        self.told = []
        if hello:
            self.first = self.hello()

    def hello(self, *more):
        identifying = field(1, attribute("service.name", "redoubt-agent"))
        if self.instance:
            identifying += field(1, attribute("redoubt.instance", self.instance))
        return self.ask(field(3, identifying + field(2, attribute("host.name", "h"))),
                        field(12, b"".join(field(1, c) for c in self.customs)), *more)

    def ask(self, *fields):
        self.send(*fields)
        return self.hear()

    def send(self, *fields):
        self.device.sequence += 1
        self.device.frame(b"\0" + field(1, self.device.uid)
                          + field(2, self.device.sequence) + field(4, CAPABILITIES)
                          + b"".join(fields))

    def custom(self, capability, kind, data):
        data = data if isinstance(data, (bytes, str)) else json.dumps(data)
        return field(13, field(1, capability) + field(2, kind) + field(3, data))

    def hear(self):
        self.told.append(Told(self.device.receive()))
        return self.told[-1]

    def until(self, what, holds):
        """The next message (of those not looked at) of which holds(told) is true."""
        while True:
            while self.told:
                told = self.told.pop(0)
                if holds(told):
                    return told
            try:
                self.hear()
            except TimeoutError:
                pytest.fail(f"was not told: {what}")

    def letter(self, kind):
        return self.until(kind, lambda t: t.custom and t.custom[1] == kind).custom[2]

    def ack(self, stream):
        return self.until("ack", lambda t: t.custom and t.custom[1] == "ack"
                          and t.custom[2]["stream"] == stream).custom[2]

    def status(self, digest, state, why=""):
        return field(7, field(1, digest) + field(2, state)
                     + (field(3, why) if why else b""))


def row(database, certificates, columns, name="one"):
    (values,) = database.query(f"SELECT {columns} FROM redoubt.device WHERE id = %s",
                               certificates.ids[name])
    return values


def put_policy(session, **settings):
    session.api("api_policy_put", path=ROOT, body={"settings": {
        key.replace("__", "."): {"value": value, "locked": False}
        for key, value in settings.items()}})


def has_threads(count):
    """Told that policy: a server that is busy may still have told the one before."""
    return lambda told: told.hash and told.policy["engine.threads"] == count


@contextlib.contextmanager
def frozen_session(active, session, database):
    """The worker's session does not go on; yields the process that serves it."""
    (pid,), = database.query(
        "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND pid <> %s",
        f"redoubt/server/{active.epoch}", session.one("SELECT pg_backend_pid()"))
    os.kill(pid, signal.SIGSTOP)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGCONT)


# --- who is there ---------------------------------------------------------------------------

def test_the_first_answer_says_what_the_server_can_do(active, certificates):
    agent = Agent(active, certificates)
    assert agent.first.capabilities == 0x7b
    assert agent.first.customs == [REPORT, EVENTS, TASKS, SESSION, LICENCE]
    session = agent.letter("session")
    assert session["epoch"] == active.epoch and session["spread_ms"] == 0
    assert session["dead_after_ms"] == 3 * 1      # 3 ms a device
    assert abs(session["now"] - time.time()) < 5
    later = agent.ask()
    assert later.capabilities == 0 and later.customs is None


def test_a_connection_is_known_and_its_end(active, database, certificates):
    agent = Agent(active, certificates)
    serial, epoch, node, instance = row(
        database, certificates, "serial, connected_epoch, connected_node, instance")
    assert serial and epoch == active.epoch and node == "node-a" and instance == "i1"
    agent.device.close()
    eventually("the end of the connection is stored", lambda: row(
        database, certificates, "connected_epoch") == (None,))


def test_a_strange_device_does_not_keep_others_from_being_told(active, session, database,
                                                               certificates):
    strange = Agent(active, certificates, "two", instance="\x01" * 63)
    strange.until("a policy", lambda t: t.hash)
    agent = Agent(active, certificates)
    agent.until("a policy", lambda t: t.hash)
    database.query("SELECT pg_notify('redoubt', %s)",
                   json.dumps({"t": "device", "d": certificates.ids["two"]}))
    put_policy(session, engine__threads=9)
    agent.until("the change", has_threads(9))


def test_the_end_of_a_connection_is_stored_though_the_session_was_lost(
        active, session, database, certificates):
    agent = Agent(active, certificates)
    with frozen_session(active, session, database) as pid:
        agent.device.close()
        eventually("it has gone", lambda: "connections=0" in active.status())
        time.sleep(1.5)  # the DBMS is told once a second, and does not answer
        database.query("SELECT pg_terminate_backend(%s)", pid)
    eventually("the end of the connection is stored", lambda: row(
        database, certificates, "connected_epoch") == (None,))


def test_a_device_that_goes_before_it_is_answered_is_not_connected(
        active, session, database, certificates):
    agent = Agent(active, certificates, hello=False)
    with frozen_session(active, session, database):
        agent.send(field(3, field(2, attribute("host.name", "in-a-hurry"))))
        eventually("it waits", lambda: "connections=1" in active.status())
        time.sleep(0.5)  # the message is on its way to the DBMS
        agent.device.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                                       struct.pack("ii", 1, 0))
        agent.device.close()
        eventually("it has gone", lambda: "connections=0" in active.status())
    eventually("its message is stored", lambda: session.rows(
        "SELECT 1 FROM redoubt.device WHERE name = 'in-a-hurry'"))
    eventually("the end of the connection is stored", lambda: row(
        database, certificates, "connected_epoch") == (None,))


def test_a_heartbeat_is_stored_as_seen(active, database, certificates):
    agent = Agent(active, certificates)
    before, = row(database, certificates, "last_seen")
    agent.ask()
    eventually("seen again", lambda: row(database, certificates, "last_seen")[0] > before)


def test_a_revoked_device_is_closed_at_once_and_refused_after(active, session, certificates):
    certificates.ids["thief"] = certificates.device("thief")
    agent = Agent(active, certificates, "thief")
    session.api("api_device_revoke", path={"id": certificates.ids["thief"]},
                body={"reason": "stolen"})
    with pytest.raises(Refused, match="1008"):
        while True:
            agent.hear()
    with pytest.raises(Refused, match="1008"):
        Agent(active, certificates, "thief")
    (count,), = session.rows("SELECT count(*) FROM redoubt.report WHERE device_id = %s",
                             certificates.ids["thief"])
    assert count == 0


def test_what_a_revoked_device_says_is_not_stored(active, session, certificates):
    certificates.ids["liar"] = certificates.device("liar")
    Agent(active, certificates, "liar").device.close()
    session.api("api_device_revoke", path={"id": certificates.ids["liar"]}, body={})
    agent = Agent(active, certificates, "liar", hello=False)
    one = new_id()
    agent.device.send_reports(report(one, 1))
    with pytest.raises(Refused, match="1008"):
        agent.hear()
    assert session.rows("SELECT 1 FROM redoubt.report WHERE report_id = %s", one) == []


def test_a_clone_is_given_an_identity_of_its_own(active, session, certificates):
    certificates.ids["twin"] = certificates.device("twin")
    first = Agent(active, certificates, "twin", instance="a")
    second = Agent(active, certificates, "twin", instance="b")  # takes its place
    assert first.first.new_uid is None and second.first.new_uid is None
    again = Agent(active, certificates, "twin", instance="a")  # it never ended
    assert again.first.new_uid is None
    clone = Agent(active, certificates, "twin", instance="b")
    assert clone.first.new_uid not in (None, certificates.ids["twin"])
    # It may only ask for its certificate, under its new name.
    clone.device.uid = uuid.UUID(clone.first.new_uid).bytes
    one = new_id()
    clone.device.send_reports(report(one, 1))
    clone.hear()
    assert session.rows("SELECT 1 FROM redoubt.report WHERE report_id = %s", one) == []
    clone.ask(field(11, field(1, field(1, field(1, "-----BEGIN CERTIFICATE REQUEST-----")))))
    (asked,), = eventually("the request waits", lambda: session.rows(
        "SELECT device_id::text FROM redoubt.enrol_request WHERE asked_by = %s",
        certificates.ids["twin"]))
    assert asked == clone.first.new_uid


def test_an_agent_without_an_identity_gets_that_of_its_certificate(active, certificates):
    agent = Agent(active, certificates, hello=False)
    agent.device.uid = uuid.uuid4().bytes
    assert agent.ask(field(10, 1)).new_uid == certificates.ids["one"]


def test_a_renewed_certificate_is_offered(active, session, certificates):
    certificates.ids["old"] = certificates.device("old")
    agent = Agent(active, certificates, "old")
    pem = "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"
    assert agent.ask(field(11, field(1, field(1, field(1, pem))))).error is None
    (identity, csr), = eventually("the request waits", lambda: session.rows(
        "SELECT id::text, csr FROM redoubt.enrol_request WHERE device_id = %s",
        certificates.ids["old"]))
    assert csr == pem
    session.one("SELECT redoubt.signing_done(%s)", json.dumps([{
        "id": identity, "serial": "77aa", "not_before": int(time.time()),
        "not_after": int(time.time()) + 9999, "pem": "PEM\nof the certificate\n",
        "csr_hash": hashlib.sha256(pem.encode()).hexdigest()}]))
    offer = agent.until("a certificate", lambda t: t.certificate)
    assert offer.certificate == "PEM\nof the certificate\n"
    assert offer.endpoint.startswith("wss://") and offer.heartbeat == 120


# --- connection settings --------------------------------------------------------------------

def test_connection_settings_are_offered_whole_and_once(active, certificates):
    agent = Agent(active, certificates)
    offer = agent.until("an offer", lambda t: t.endpoint)
    assert offer.endpoint == "wss://redoubt/v1/opamp" and offer.heartbeat == 120
    assert len(offer.settings_hash) == 32
    assert agent.ask().endpoint is None
    again = Agent(active, certificates, hello=False)
    told = again.hello(field(15, field(1, offer.settings_hash) + field(2, 1)))
    assert told.endpoint is None, "it has them already"


# --- policies -------------------------------------------------------------------------------

def test_the_policy_comes_to_who_has_another_one(active, session, certificates):
    put_policy(session, engine__threads=3)
    agent = Agent(active, certificates)
    told = agent.until("a policy", has_threads(3))
    assert len(told.hash) == 32
    same = Agent(active, certificates, hello=False)
    assert same.hello(same.status(told.hash, 1)).hash is None, "it has it already"
    other = Agent(active, certificates, hello=False)
    assert other.hello(other.status(b"x" * 32, 1)).hash == told.hash


def test_a_change_of_the_policy_is_pushed(active, session, database, certificates):
    agent = Agent(active, certificates)
    agent.until("a policy", lambda t: t.hash)
    put_policy(session, engine__threads=5, agent__heartbeat_s=300)
    told = agent.until("the change", has_threads(5))
    assert agent.until("the heartbeat", lambda t: t.endpoint).heartbeat == 300
    agent.ask(agent.status(told.hash, 2))
    eventually("it applies it", lambda: row(
        database, certificates, "policy_state, policy_hash") == ("applying", told.hash.hex()))
    agent.ask(agent.status(told.hash, 3, "the engine did not start"))
    eventually("it failed", lambda: row(
        database, certificates, "policy_state, policy_error") == (
            "failed", "the engine did not start"))
    agent.ask(agent.status(told.hash, 1))
    eventually("it is applied",
               lambda: row(database, certificates, "policy_state") == ("applied",))
    put_policy(session)


def test_a_device_that_moves_gets_the_policy_of_its_group(active, session, certificates):
    group = session.api("api_group_create", body={"name": "Movers", "parent": "/"})["body"]["id"]
    session.api("api_policy_put", path={"id": group}, body={"settings": {
        "engine.threads": {"value": 7, "locked": False}}})
    agent = Agent(active, certificates)
    agent.until("a policy", lambda t: t.hash)
    session.api("api_device_patch", path={"id": certificates.ids["one"]},
                body={"group": group})
    agent.until("the other policy", has_threads(7))
    session.api("api_device_patch", path={"id": certificates.ids["one"]},
                body={"group": "/"})


def test_a_node_knows_the_policies_before_it_is_active(daemon, database, epoch, certificates):
    eventually("the policies are read", lambda: "policies groups=" in daemon.log_text())
    database.raise_fence(epoch)
    daemon.active(epoch)
    daemon.epoch = epoch
    eventually("a session", lambda: "database=ready" in daemon.status())
    assert Agent(daemon, certificates).until("a policy", lambda t: t.hash)


def active_again(active, database):
    eventually("a warm session", lambda: "database warm" in active.status())
    active.epoch += 1
    database.raise_fence(active.epoch)
    active.active(active.epoch)
    eventually("a session", lambda: "database=ready" in active.status())


def test_what_changes_while_a_node_that_steps_down_has_no_session_is_known(
        active, session, database, certificates):
    put_policy(session, engine__threads=3)
    Agent(active, certificates).until("a policy", has_threads(3))
    postmaster = database.pids()[0]
    os.kill(postmaster, signal.SIGSTOP)  # nobody gets a session now; who has one goes on
    try:
        active.standby()
        eventually("it steps down", lambda: "standby epoch=" in active.log_text())
        put_policy(session, engine__threads=4)
    finally:
        os.kill(postmaster, signal.SIGCONT)
    active_again(active, database)
    Agent(active, certificates).until("the change", has_threads(4))


def test_a_node_that_steps_down_while_it_reads_the_policies_reads_them_again(
        active, session, database, certificates):
    put_policy(session, engine__threads=3)
    Agent(active, certificates).until("a policy", has_threads(3))
    with contextlib.closing(database.connect()) as lock, lock.cursor() as cursor:
        cursor.execute("BEGIN; LOCK TABLE redoubt.effective IN ACCESS EXCLUSIVE MODE")
        database.query("SELECT pg_notify('redoubt', '{\"t\":\"policy\"}')")
        eventually("it reads them", lambda: database.query(
            "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            " AND query LIKE '%%FROM redoubt.effective%%'"))
        active.standby()
        eventually("it steps down", lambda: "standby epoch=" in active.log_text())
    put_policy(session, engine__threads=4)
    active_again(active, database)
    Agent(active, certificates).until("the change", has_threads(4))


def test_policies_that_could_not_be_read_are_read_again(
        active, session, database, certificates):
    put_policy(session, engine__threads=3)
    agent = Agent(active, certificates)
    agent.until("a policy", has_threads(3))
    with contextlib.closing(database.connect()) as lock, lock.cursor() as cursor:
        with frozen_session(active, session, database) as pid:
            put_policy(session, engine__threads=4)
            cursor.execute("BEGIN; LOCK TABLE redoubt.effective IN ACCESS EXCLUSIVE MODE")
        (began,), = eventually("it reads them", lambda: database.query(
            "SELECT query_start FROM pg_stat_activity"
            " WHERE pid = %s AND wait_event_type = 'Lock'", pid))
        database.query("SELECT pg_cancel_backend(%s)", pid)
        eventually("that failed", lambda: database.query(
            "SELECT pid FROM pg_stat_activity"
            " WHERE pid = %s AND (state = 'idle' OR query_start <> %s)", pid, began))
    agent.until("the change", has_threads(4))


# --- events ---------------------------------------------------------------------------------

def batch(stream, first, *events):
    return {"stream": stream, "first": first, "events": list(events)}


def test_events_are_acknowledged_once_they_are_stored(active, session, certificates):
    agent = Agent(active, certificates)
    stream = new_id()
    sent = agent.custom(EVENTS, "batch", batch(stream, 1, event(n=1), event(n=2)))
    agent.send(sent)
    assert agent.ack(stream) == {"stream": stream, "through": 2}
    agent.send(sent)
    assert agent.ack(stream) == {"stream": stream, "through": 2}
    rows = session.rows("SELECT seq, data FROM redoubt.event WHERE stream = %s ORDER BY id",
                        stream)
    assert rows == [(1, {"n": 1}), (2, {"n": 2})]
    again = Agent(active, certificates)
    assert again.ack(stream) == {"stream": stream, "through": 2}, "told with the first answer"


def test_an_event_that_is_wrong_is_refused_for_good(active, certificates):
    agent = Agent(active, certificates)
    stream = new_id()
    agent.send(agent.custom(EVENTS, "batch", batch(
        stream, 1, event(), dict(event(), severity="loud"), event())))
    ack = agent.ack(stream)
    assert ack["through"] == 3
    assert [r["seq"] for r in ack["refused"]] == [2] and ack["refused"][0]["why"]


@pytest.mark.parametrize("data", [
    b"", b"{", b"[]", b'{"stream":"x","first":1,"events":[]}',
    b'{"stream":"%s","first":0,"events":[]}', b'{"stream":"%s","first":1}',
    b'{"stream":"%s","first":1,"events":[' + b",".join([b"{}"] * 101) + b"]}",
    b'{"stream":"%s","first":1,"events":[{"data":{"a":"\\u0000"}}]}',
    b'{"stream":"%s","first":1,"events":[{"data":{"a":"\\ud800"}}]}',
    b'{"stream":"%s","first":1,"events":[{"data":{"a":1e99999}}]}',
    b'{"stream":"%s","first":1,"events":[{"data":' + b"[" * 10000 + b"]" * 10000 + b"}]}",
    b'{"stream":"%s","first":1,"events":[{"data":"\xff"}]}',
], ids=["empty", "cut", "list", "stream", "first", "none", "101", "nul", "surrogate",
        "number", "deep", "utf8"])
def test_a_batch_that_is_wrong_is_a_bad_request(active, certificates, data):
    agent = Agent(active, certificates)
    agent.told.clear()
    data = data.replace(b"%s", new_id().encode())
    agent.send(agent.custom(EVENTS, "batch", data))
    told = agent.until("an error", lambda t: t.error)
    assert told.error[1] == [1] and told.error[2][0]
    assert agent.ask().error is None


# --- tasks ----------------------------------------------------------------------------------

def start_scan(session, device):
    task = session.api("api_task_create", body={
        "name": f"scan {uuid.uuid4()}", "type": "scan", "params": {"mode": "quick"},
        "target": {"devices": [device]}})["body"]["id"]
    return task, session.api("api_task_start", path={"id": task})["body"]["id"]


def test_a_task_reaches_its_device_and_its_progress_comes_back(active, session,
                                                               certificates):
    agent = Agent(active, certificates)
    agent.send(agent.custom(TASKS, "running", {"runs": []}))
    agent.hear()
    agent.told.clear()
    task, _ = start_scan(session, certificates.ids["one"])
    (run,) = agent.letter("assign")["runs"]
    assert run["type"] == "scan" and run["params"] == {"mode": "quick"}
    agent.send(agent.custom(TASKS, "progress", {"runs": [
        {"run": run["run"], "state": "running", "percent": 40, "counts": {"scanned": 8}}]}))
    eventually("the progress is stored", lambda: session.rows(
        "SELECT state, percent, counts FROM redoubt.run WHERE id = %s", run["run"]) == [
            ("running", 40, {"scanned": 8})])
    session.api("api_task_pause", path={"id": task})
    assert agent.letter("pause") == {"runs": [run["run"]]}
    agent.send(agent.custom(TASKS, "progress", {"runs": [
        {"run": run["run"], "state": "paused", "percent": 40}]}))
    eventually("it is paused", lambda: session.rows(
        "SELECT state FROM redoubt.run WHERE id = %s", run["run"]) == [("paused",)])
    session.api("api_task_resume", path={"id": task})
    assert run["run"] in agent.letter("resume")["runs"]
    session.api("api_task_cancel", path={"id": task})
    assert run["run"] in agent.letter("cancel")["runs"]
    agent.send(agent.custom(EVENTS, "batch", batch(new_id(), 1, event(
        "run_finished", "info", run=run["run"], outcome="cancelled", counts={}))))
    agent.until("ack", lambda t: t.custom and t.custom[1] == "ack")
    (state, outcome), = session.rows(
        "SELECT state, outcome FROM redoubt.run WHERE id = %s", run["run"])
    assert (state, outcome) == ("finished", "cancelled")


def test_a_task_waits_for_its_device(active, session, certificates):
    Agent(active, certificates, "two").device.close()
    task, _ = start_scan(session, certificates.ids["two"])
    agent = Agent(active, certificates, "two")
    assert len(agent.letter("assign")["runs"]) == 1
    other = Agent(active, certificates, "two", customs=(EVENTS,))
    other.ask()
    assert not any(t.custom and t.custom[0] == TASKS for t in other.told)
    session.api("api_task_cancel", path={"id": task})


def test_a_run_that_the_server_does_not_know_is_cancelled(active, certificates):
    agent = Agent(active, certificates)
    stray = new_id()
    agent.send(agent.custom(TASKS, "running", {"runs": [stray]}))
    assert stray in agent.letter("cancel")["runs"]


# --- too much -------------------------------------------------------------------------------

def test_a_device_that_floods_is_held_back_and_told(active, session, certificates):
    certificates.ids["flood"] = certificates.device("flood")
    agent = Agent(active, certificates, "flood", customs=())
    agent.told.clear()
    refused = 0
    for _ in range(100):  # the slower this is, the later it is too much
        for _ in range(100):
            agent.send()
        for _ in range(100):
            error = agent.hear().error
            if error:
                assert error[1] == [2] and b"held back" in error[2][0]
                assert parse(error[3][0])[1][0] == 5_000_000_000
                refused += 1
        if refused > 50:
            break
    assert refused > 50
    other = Agent(active, certificates)
    assert other.ask().error is None, "others are served"
    eventually("the event", lambda: session.rows(
        "SELECT 1 FROM redoubt.event WHERE device_id = %s AND kind = 'device_flood'",
        certificates.ids["flood"]))
    with pytest.raises((Refused, BrokenPipeError, ConnectionResetError)):
        while True:  # it goes on: closed
            for _ in range(200):
                agent.send()
            for _ in range(200):
                agent.hear()


def test_a_message_of_a_mebibyte_is_too_big(active, certificates):
    agent = Agent(active, certificates)
    agent.device.frame(b"\0" * (1 << 20))
    with pytest.raises(Refused, match="1009"):
        while True:
            agent.hear()


def test_a_message_that_never_ends_is_given_up(active, certificates):
    agent = Agent(active, certificates)
    quiet = Agent(active, certificates, "two")
    agent.device.socket.settimeout(25)
    agent.device.socket.sendall(b"\x82\xfe\x10\x00" + b"\0" * 50)
    with pytest.raises(Refused, match="1001"):
        while True:
            agent.hear()
    assert quiet.ask().error is None, "who only says nothing stays"


def test_messages_cut_anywhere_hurt_nobody(active, certificates):
    whole = (field(1, uuid.UUID(certificates.ids["one"]).bytes) + field(2, 1)
             + field(7, field(1, b"h" * 32) + field(2, 1))
             + field(11, field(1, field(1, field(1, "CSR"))))
             + field(12, field(1, EVENTS)) + field(13, field(1, EVENTS) + field(2, "batch")
                                                   + field(3, "{}")))
    for cut in range(0, len(whole), 5):
        device = connect(active, certificates)
        device.frame(b"\0" + whole[:cut])
        with contextlib.suppress(Refused):
            device.receive()
        device.close()
    Agent(active, certificates).ask()


def test_a_signing_request_that_is_too_long_is_refused(active, certificates):
    agent = Agent(active, certificates)
    agent.told.clear()
    agent.send(field(11, field(1, field(1, field(1, "x" * 9000)))))
    assert agent.until("an error", lambda t: t.error).error[1] == [1]


def test_names_are_text_and_nothing_more(active, database, certificates):
    agent = Agent(active, certificates)
    evil = "'; DROP TABLE redoubt.device; -- ../../etc/passwd \u0007"
    agent.ask(field(3, field(1, attribute("service.name", evil))
                    + field(2, attribute("host.name", evil))))
    eventually("the name is stored",
               lambda: row(database, certificates, "name") == (evil,))
