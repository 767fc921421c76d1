"""redoubt-server against a real PostgreSQL, over real TLS."""
import concurrent.futures
import contextlib
import json
import os
import signal
import tempfile
import time
import uuid

import pytest

from device_world import (Certificates, Daemon, Device, Postgres, Refused, attribute,
                          eventually, field, parse, report)

MANY = 32       # messages that a device may have on their way
CUSTOMS = field(12, field(1, "com.redoubt.events/v1"))


@pytest.fixture(scope="module", name="folder")
def _folder():
    with tempfile.TemporaryDirectory(prefix="redoubt-devices-") as path:
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
    certificates.ids = {name: certificates.device(name) for name in ("one", "two")}
    return certificates


@pytest.fixture(name="epoch")
def _epoch(database):
    (now,), = database.query("SELECT epoch FROM redoubt.fence")
    return now + 1


@pytest.fixture(name="daemon")
def _daemon(folder, database, certificates):
    daemon = Daemon(folder, database, certificates)
    daemon.wait_note("READY=1")
    eventually("a warm session", lambda: "database warm" in daemon.status())
    yield daemon
    daemon.stop()
    text = daemon.log_text()
    assert "BUG" not in text and "Sanitizer" not in text, text


@pytest.fixture(name="active")
def _active(daemon, database, epoch):
    database.raise_fence(epoch)
    daemon.active(epoch)
    daemon.epoch = epoch
    return daemon


def connect(daemon, certificates, name="one", **kwargs):
    return Device(daemon.port, certificates, name, certificates.ids.get(name), **kwargs)


def new_id():
    return str(uuid.uuid4())


def store(device, one, seq=1):
    """Sends the report until it is stored, as an agent does."""
    def stored():
        device.send_reports(report(one, seq))
        try:
            return device.receipts() == [(one, seq, "")]
        except AssertionError:
            return False

    eventually("the report is stored", stored)


def rows(database, certificates, name="one"):
    return dict(database.query("SELECT report_id::text, seq FROM redoubt.report "
                               "WHERE device_id = %s", certificates.ids[name]))


def test_a_report_is_stored_before_it_is_acknowledged(active, database, certificates):
    device = connect(active, certificates)
    first = device.describe("host-of-one")
    assert first[7] == [0x7b], "capabilities in the first answer"
    assert first[1] == [device.uid]
    assert b"com.redoubt.report/v1" in first[10][0]
    one = new_id()
    device.send_reports(report(one, 7, 'a "quoted" text'))
    assert device.receipts() == [(one, 7, "")]
    (seq, epoch, body), = database.query(
        "SELECT seq, epoch, body FROM redoubt.report WHERE report_id = %s", one)
    assert (seq, epoch) == (7, active.epoch)
    assert body == {"engine.version": 'a "quoted" text'}
    (name, health, description), = database.query(
        "SELECT name, health, description FROM redoubt.device WHERE id = %s",
        certificates.ids["one"])
    assert name == "host-of-one" and health["status"] == "fine"
    assert description["identifying"] == {"service.name": "test"}


def test_a_report_sent_twice_is_one_row(active, database, certificates):
    device = connect(active, certificates)
    device.describe()
    one = new_id()
    for _ in range(2):
        device.send_reports(report(one, 8), report(one, 8))
        assert device.receipts() == [(one, 8, "")] * 2
    assert rows(database, certificates)[one] == 8


def test_reports_are_pipelined_and_answered_in_order(active, database, certificates):
    device = connect(active, certificates)
    sent = [new_id() for _ in range(500)]

    for n, one in enumerate(sent):  # all of it fits the buffers on the way
        device.send_reports(report(one, n))
    got = [device.receipts()[0] for _ in sent]
    assert got == [(one, n, "") for n, one in enumerate(sent)]
    assert set(sent) <= set(rows(database, certificates))


def test_in_standby_nobody_is_answered(daemon, certificates):
    with pytest.raises(Refused, match="refused"):
        connect(daemon, certificates)


def test_standby_closes_devices_and_active_takes_them_again(active, database, certificates):
    device = connect(active, certificates)
    device.describe()
    active.standby()
    with pytest.raises(Refused, match="1001"):
        device.receive()
    with pytest.raises(Refused):
        connect(active, certificates)
    database.raise_fence(active.epoch + 1)
    active.active(active.epoch + 1)
    device = connect(active, certificates)
    one = new_id()
    store(device, one)
    (epoch,), = database.query("SELECT epoch FROM redoubt.report WHERE report_id = %s", one)
    assert epoch == active.epoch + 1


def test_without_the_lease_nothing_is_answered(active, database, certificates):
    device = connect(active, certificates)
    device.describe()
    active.lease(active.epoch, 0)
    one = new_id()
    device.send_reports(report(one, 1))
    with pytest.raises(Refused):
        device.receive()
    with pytest.raises(Refused):
        connect(active, certificates)
    active.lease(active.epoch)
    device = connect(active, certificates)
    device.send_reports(report(one, 1))
    assert device.receipts() == [(one, 1, "")]


def test_with_the_lease_of_another_epoch_nothing_is_answered(active, certificates):
    device = connect(active, certificates)
    active.lease(active.epoch + 1)
    with pytest.raises(Refused):
        device.describe()


def test_a_higher_fence_makes_the_server_fall_silent(active, database, certificates):
    device = connect(active, certificates)
    device.describe()
    database.raise_fence(active.epoch + 5, "node-b")
    one = new_id()
    with pytest.raises((Refused, AssertionError)):
        while True:
            device.send_reports(report(one, 1))
            device.receipts()
    eventually("the server says that it is stale",
               lambda: "database=stale" in active.status())
    with pytest.raises(Refused):
        connect(active, certificates)
    assert one not in rows(database, certificates)


def test_a_fence_that_is_not_there_yet_is_waited_for(daemon, database, certificates, epoch):
    daemon.active(epoch)
    device = connect(daemon, certificates)
    one = new_id()
    device.send_reports(report(one, 1))
    kind, _, retry = device.error()
    assert kind == 2 and retry > 0
    database.raise_fence(epoch)
    store(device, one)


def test_while_the_database_is_away_devices_keep_their_reports(active, database,
                                                              certificates):
    device = connect(active, certificates)
    device.describe()
    database.stop()
    try:
        one = new_id()
        device.send_reports(report(one, 1))
        kind, text, retry = device.error()
        assert kind == 2 and text and retry > 0
    finally:
        database.start()
    store(device, one)


def test_a_database_that_hangs_does_not_stop_the_loop(active, database, certificates):
    device = connect(active, certificates, timeout=30)
    device.describe()
    pids = database.pids()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        device.send_reports(report(new_id(), 1))
        device.frame(b"alive?", 0x89)
        assert device.read_frame() == (10, b"alive?")
        assert device.error()[0] == 2
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # one that was just ending
                os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module", name="crowd")
def _crowd(certificates):
    """Devices that say more than the server holds in its memory for the database."""
    names = [f"crowd{i}" for i in range(12)]
    certificates.ids.update({name: certificates.device(name) for name in names})
    return names


@contextlib.contextmanager
def events_locked(database):
    """Nobody can store an event."""
    with contextlib.closing(database.connect("postgres")) as link:
        link.autocommit = False
        link.cursor().execute("LOCK TABLE redoubt.event IN ACCESS EXCLUSIVE MODE")
        yield  # closing ends the transaction


def batch(stream, first, filling):
    return field(13, field(1, "com.redoubt.events/v1") + field(2, "batch") + field(
        3, json.dumps({"stream": stream, "first": first, "events": [
            {"at": 1, "kind": "threat_found", "severity": "info", "data": {"x": "x" * filling}}
            for _ in range(2)]})))


def raw_frame(device, payload):
    """As Device.send makes it, with a mask of zeros: many of them are made."""
    device.sequence += 1
    message = b"\0" + field(1, device.uid) + field(2, device.sequence) + field(4, 1) + payload
    return bytes([0x82, 0xfe]) + len(message).to_bytes(2, "big") + bytes(4) + message


def acknowledged(device, stream):
    """How far the stream is stored, when it was told of all of it; an error raises."""
    through = 0
    while through < 2 * MANY:
        answer = device.receive()
        assert 2 not in answer, parse(answer[2][0])
        for message in answer.get(11, []):
            ack = parse(message)
            if ack[2] == [b"ack"]:
                told = json.loads(ack[3][0])
                through = told["through"] if told["stream"] == stream else through
    return through


def test_what_the_database_cannot_take_waits_in_the_network(active, database, certificates,
                                                           crowd):
    devices = {name: connect(active, certificates, name, timeout=60) for name in crowd}
    streams = {name: new_id() for name in crowd}
    work = {}
    for name, device in devices.items():
        device.send(CUSTOMS)
        device.receive()
        work[name] = b"".join(raw_frame(device, batch(streams[name], 2 * n + 1, 22000))
                              for n in range(MANY))

    def held_back(seconds=0.5):
        try:
            connect(active, certificates, timeout=seconds).close()
        except Refused:
            return True
        return False

    with concurrent.futures.ThreadPoolExecutor(len(crowd)) as pool:
        with events_locked(database):
            sent = [pool.submit(devices[name].socket.sendall, work[name]) for name in crowd]
            eventually("nothing new is accepted", held_back)
        for one in sent:
            one.result()
        told = [pool.submit(acknowledged, devices[name], streams[name]) for name in crowd]
        assert [one.result() for one in told] == [2 * MANY] * len(crowd)
    assert "unavailable=0 " in active.status()
    eventually("new ones are accepted", lambda: not held_back(10))
    (stored, different), = database.query(
        "SELECT count(*), count(DISTINCT (stream, seq)) FROM redoubt.event "
        "WHERE stream = ANY (%s::uuid[])", list(streams.values()))
    assert stored == different == 2 * MANY * len(crowd)


def test_those_that_are_sent_away_come_back_one_by_one(active, database, certificates, crowd):
    devices = [connect(active, certificates, name, timeout=60) for name in crowd]
    for device in devices:
        device.send(CUSTOMS)
        device.receive()
    try:
        with events_locked(database):
            for device in devices:
                device.send(batch(new_id(), 1, 10))
                device.frame(b"taken?", 0x89)
                assert device.read_frame() == (10, b"taken?")
            database.stop()
        waits = sorted(device.error()[2] // 1000000 for device in devices)
    finally:
        database.start()
    assert waits == [500 + 2 * n for n in range(len(crowd))], "ms"


def test_a_gap_in_the_sequence_asks_for_the_full_state(active, certificates):
    device = connect(active, certificates)
    assert 6 not in device.describe()
    device.sequence += 1
    device.send()
    assert device.receive()[6] == [1]
    device.send()
    assert 6 not in device.receive()


def test_a_first_message_without_description_asks_for_it(active, certificates):
    device = connect(active, certificates)
    device.send()
    assert device.receive()[6] == [1]


def test_another_identity_is_refused(active, database, certificates):
    device = connect(active, certificates)
    device.send(field(3, b""), uid=uuid.uuid4().bytes)
    kind, text, _ = device.error()
    assert kind == 1 and "certificate" in text


def test_certificates_of_others_are_refused(active, certificates):
    certificates.authority("foreign")
    certificates.ids["stranger"] = certificates.device("stranger", ca="foreign")
    certificates.sign("nobody", "nobody", "DNS:nobody", "clientAuth")
    certificates.sign("wrong-use", "wrong-use", f"URI:urn:uuid:{new_id()}", "serverAuth")
    for name in ("stranger", "wrong-use", None):
        with pytest.raises(Refused):
            connect(active, certificates, name)
    with pytest.raises(Refused, match="403"):
        connect(active, certificates, "nobody")
    connect(active, certificates).describe()


def test_health_answers_while_active(active, certificates):
    device = connect(active, certificates, upgrade=False)
    head = device.request("GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert head.startswith("HTTP/1.1 200 ")
    got = json.loads(device.body())
    assert got["node"] == "node-a" and got["epoch"] == active.epoch


@pytest.mark.parametrize("text,status", [
    ("GET /v1/opamp HTTP/1.1\r\n\r\n", "426"),
    ("GET /nothing HTTP/1.1\r\n\r\n", "404"),
    ("PUT /v1/opamp HTTP/1.1\r\n\r\n", "405"),
    ("GET /v1/opamp HTTP/1.0\r\n\r\n", "400"),
    ("GET / HTTP/1.1\r\n" + "a: b\r\n" * 100 + "\r\n", "431"),
    ("GET /" + "x" * 9000, "431"),
    ("GET /v1/opamp HTTP/1.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
     "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: short\r\n\r\n", "400"),
    ("GET /v1/opamp HTTP/1.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
     "Sec-WebSocket-Version: 8\r\n\r\n", "426"),
], ids=["no-upgrade", "not-found", "method", "http-1.0", "headers", "long", "key", "version"])
def test_wrong_requests_get_a_clear_status(active, certificates, text, status):
    device = connect(active, certificates, upgrade=False)
    assert device.request(text).split()[1] == status


@pytest.mark.parametrize("first,payload,code", [
    (0x81, b"text", "1003"), (0xC2, b"", "1002"), (0x83, b"", "1002"),
    (0x82, b"\0" * 65537, "1009"), (0x80, b"", "1002"), (0x88, b"\x03\xe8", "1000"),
], ids=["text", "reserved-bit", "opcode", "too-big", "continuation", "close"])
def test_wrong_frames_get_their_close_code(active, certificates, first, payload, code):
    device = connect(active, certificates)
    device.frame(payload, first)
    with pytest.raises(Refused, match=code):
        device.receive()


def test_wrong_messages_are_answered_and_then_no_more(active, certificates):
    device = connect(active, certificates)
    deep = b""
    for _ in range(5000):
        deep = field(5, field(1, deep))[:60000]
    wrong = [b"", b"\x01", b"\0\x0a", b"\0" + field(1, b"short"), b"\0\x1b",
             b"\0" + field(1, device.uid) + field(3, b"\x0a\xff"),
             b"\0" + field(1, device.uid) + b"\x98\x06\x01" * 3000,
             b"\0" + field(1, device.uid) + field(3, field(1, field(1, b"\xff")))]
    for data in wrong:
        device.frame(data)
        assert device.error()[0] == 1
    with pytest.raises(Refused, match="1008"):
        device.receive()
    device = connect(active, certificates)
    device.send(field(3, field(1, field(1, "deep") + field(2, deep))))
    assert 2 not in device.receive()


def test_a_wrong_report_is_refused_for_good(active, database, certificates):
    device = connect(active, certificates)
    good, bad = new_id(), new_id()
    device.send_reports(report(good, 1), report(bad, 2, at=5))
    (first, second) = device.receipts()
    assert first == (good, 1, "")
    assert second[:2] == (bad, 2) and "2000" in second[2]
    assert bad not in rows(database, certificates)
    device.send_reports(*[report(new_id(), n) for n in range(33)])
    assert device.error()[0] == 1


def test_what_the_database_refuses_takes_nothing_else_with_it(active, database,
                                                              certificates):
    database.query("ALTER TABLE redoubt.report ADD CONSTRAINT beast CHECK (seq <> 666)")
    try:
        one = connect(active, certificates)
        one.describe()
        sent = [(new_id(), seq) for seq in (1, 2, 666, 3)]
        for identity, seq in sent:
            one.send_reports(report(identity, seq))
        got = {r[1]: r[2] for _ in sent for r in one.receipts()}
        assert "beast" in got.pop(666)
        assert got == {1: "", 2: "", 3: ""}
        stored = rows(database, certificates)
        assert [identity in stored for identity, _ in sent] == [True, True, False, True]
    finally:
        database.query("ALTER TABLE redoubt.report DROP CONSTRAINT beast")


LATE = """CREATE FUNCTION redoubt.late() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    {what}
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON redoubt.report DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.seq = 666) EXECUTE FUNCTION redoubt.late()"""


@pytest.fixture(name="late")
def _late(database):
    """Something that happens at the commit, after the rows of the query have been sent."""
    yield lambda what: database.query(LATE.format(what=what))
    database.query("DROP FUNCTION IF EXISTS redoubt.late() CASCADE")


def test_data_that_the_commit_refuses_takes_nothing_else_with_it(active, database,
                                                                 certificates, late):
    late("RAISE EXCEPTION 'too late' USING ERRCODE = 'check_violation';")
    device = connect(active, certificates)
    device.describe()
    sent = [(new_id(), seq) for seq in (1, 666, 2)]
    for identity, seq in sent:
        device.send_reports(report(identity, seq))
    got = {r[1]: r[2] for _ in sent for r in device.receipts()}
    assert "too late" in got.pop(666)
    assert got == {1: "", 2: ""}
    stored = rows(database, certificates)
    assert [identity in stored for identity, _ in sent] == [True, False, True]


@pytest.mark.parametrize("what", [
    "RAISE EXCEPTION 'not now' USING ERRCODE = 'serialization_failure';",
    "RAISE EXCEPTION 'fenced' USING ERRCODE = 'RD001';",
    "PERFORM pg_terminate_backend(pg_backend_pid());",
], ids=["refused", "fenced", "killed"])
def test_a_commit_that_fails_is_not_acknowledged(active, database, certificates, late, what):
    late(what)
    device = connect(active, certificates)
    device.describe()
    one, other = new_id(), new_id()
    device.send_reports(report(one, 666))
    assert device.error()[0] == 2
    assert one not in rows(database, certificates)
    database.query("DROP FUNCTION redoubt.late() CASCADE")
    store(device, other)
    store(device, one, 666)
    stored = rows(database, certificates)
    assert one in stored and other in stored


def test_sessions_that_are_ended_lose_nothing(active, database, certificates):
    device = connect(active, certificates)
    device.describe()
    waiting = {new_id(): n for n in range(60)}
    rounds, before = 0, None
    while waiting:
        rounds += 1
        assert rounds < 200
        sent = list(waiting.items())[:10]
        for one, seq in sent:
            device.send_reports(report(one, seq))
        if rounds % 3 == 1 and len(waiting) != before:  # and not before they were open again
            database.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                           "WHERE application_name LIKE 'redoubt/server/%%'")
        before = len(waiting)
        for _ in sent:
            answer = device.receive()
            if 11 in answer:
                for one, seq, refused in device.unpack(answer):
                    assert refused == ""
                    waiting.pop(one)
        if len(waiting) == before:
            time.sleep(0.1)  # the sessions are being opened again
    stored = rows(database, certificates)
    assert len(stored) >= 60 and rounds > 6


def test_control_characters_are_stored_as_text(active, database, certificates):
    device = connect(active, certificates)
    one, text = new_id(), "\x01\x1f\x7f\\\"'; DROP TABLE redoubt.report; --\u00e4\U0001f600"
    device.send_reports(report(one, 1, text))
    assert device.receipts() == [(one, 1, "")]
    (body,), = database.query("SELECT body FROM redoubt.report WHERE report_id = %s", one)
    assert body == {"engine.version": text}


def test_a_device_that_connects_anew_replaces_its_old_connection(active, certificates):
    old = connect(active, certificates)
    old.describe()
    new = connect(active, certificates)
    new.describe()
    with pytest.raises(Refused):
        old.receive()
    other = connect(active, certificates, "two")
    other.describe()
    new.send()
    new.receive()


def test_fragments_and_pings(active, certificates):
    device = connect(active, certificates)
    text = b"\0" + field(1, device.uid) + field(2, 1) + field(3, field(
        1, attribute("service.name", "test")))
    device.frame(text[:5], 0x02)
    device.frame(b"ping", 0x89)
    assert device.read_frame() == (10, b"ping")
    device.frame(text[5:9], 0x00)
    time.sleep(0.05)
    device.frame(text[9:], 0x80)
    assert device.receive()[1] == [device.uid]


def test_the_daemon_is_obeyed(folder, database, certificates):
    daemon = Daemon(folder, database, certificates, watchdog_us=300000)
    try:
        daemon.wait_note("READY=1")
        daemon.wait_note("WATCHDOG=1")
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(20) == 0
    finally:
        daemon.stop()
