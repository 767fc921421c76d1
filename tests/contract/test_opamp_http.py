"""OpAMP over plain HTTP: the same port and path, the same rules."""
import contextlib
import gzip
import http.client
import re
import socket
import ssl
import uuid

import pytest

from device_world import Refused, attribute, eventually, field, parse, report
from test_events import Session
from test_opamp_ws import CAPABILITIES, EVENTS, TASKS, Told, batch, event, put_policy, start_scan
from test_server import (_active, _certificates, _daemon, _database, _epoch,  # noqa: F401
                         _folder, new_id, rows)

PROTOBUF = {"Content-Type": "application/x-protobuf"}


class Poller:
    """A device that polls, on one kept connection."""

    def __init__(self, daemon, certificates, name="one"):
        self.certificates = certificates
        self.uid = uuid.UUID(certificates.ids[name]).bytes if name in certificates.ids else b""
        context = ssl.create_default_context(cafile=certificates.path("ca.pem"))
        context.load_cert_chain(certificates.path(name + ".pem"),
                                certificates.path(name + ".key"))
        self.link = http.client.HTTPSConnection("127.0.0.1", daemon.port, timeout=20,
                                                context=context)
        self.sequence = 0

    def message(self, *fields):
        self.sequence += 1
        return (field(1, self.uid) + field(2, self.sequence) + field(4, CAPABILITIES)
                + b"".join(fields))

    def post(self, body, **headers):
        headers = {k.replace("_", "-"): v for k, v in headers.items()}
        self.link.request("POST", "/v1/opamp", body, {**PROTOBUF, **headers})
        answer = self.link.getresponse()
        self.body = answer.read()
        return answer

    def ask(self, *fields, **headers):
        answer = self.post(self.message(*fields), **headers)
        assert answer.status == 200, (answer.status, self.body)
        assert answer.headers["Content-Type"] == "application/x-protobuf"
        body = self.body
        if answer.headers["Content-Encoding"] == "gzip":
            body = gzip.decompress(body)
        fields = parse(body)
        assert fields[1] == [self.uid]
        return Told(fields)

    def hello(self, *more, customs=(), **headers):
        return self.ask(field(3, field(1, attribute("service.name", "other"))
                              + field(2, attribute("host.name", "h"))),
                        *([field(12, b"".join(field(1, c) for c in customs))]
                          if customs else []), *more, **headers)


@pytest.fixture(name="session")
def _session(active, database):
    with contextlib.closing(Session(database)) as session:
        yield session


def custom(capability, kind, data):
    import json
    return field(13, field(1, capability) + field(2, kind) + field(3, json.dumps(data)))


def poller_with_threads(active, certificates, count):
    """A new connection and its first answer, if that has the policy."""
    poller = Poller(active, certificates)
    told = poller.hello()
    return (poller, told) if (told.policy or {}).get("engine.threads") == count else None


def test_a_device_polls_and_gets_its_policy(active, session, certificates):
    put_policy(session, engine__threads=4)
    poller, told = eventually("the server knows it",
                              lambda: poller_with_threads(active, certificates, 4))
    assert told.capabilities == 0x7b
    assert poller.ask(field(7, field(1, told.hash) + field(2, 1))).hash is None
    (state, digest), = session.rows("SELECT policy_state, policy_hash FROM redoubt.device "
                                    "WHERE id = %s", certificates.ids["one"])
    assert (state, digest) == ("applied", told.hash.hex())
    put_policy(session, engine__threads=6)
    eventually("the next poll brings the change",
               lambda: (poller.ask().policy or {}).get("engine.threads") == 6)


def test_reports_are_stored_before_the_answer(active, database, certificates):
    poller = Poller(active, certificates)
    one = new_id()
    poller.hello(field(13, field(1, "com.redoubt.report/v1") + field(2, "reports")
                       + field(3, field(1, report(one, 1)))))
    assert one in rows(database, certificates)


def test_requests_and_answers_may_be_compressed(active, database, certificates):
    eventually("the policies are read", lambda: "policies groups=" in active.log_text())
    poller = Poller(active, certificates)
    body = poller.message(field(3, field(1, attribute("service.name", "other"))
                                + field(2, attribute("host.name", "zipped"))))
    answer = poller.post(gzip.compress(body), Content_Encoding="gzip",
                         Accept_Encoding="gzip, deflate")
    assert answer.status == 200 and answer.headers["Content-Encoding"] == "gzip"
    assert Told(parse(gzip.decompress(poller.body))).policy
    (name,), = database.query("SELECT name FROM redoubt.device WHERE id = %s",
                              certificates.ids["one"])
    assert name == "zipped"
    assert poller.post(poller.message()).headers["Content-Encoding"] is None


@pytest.mark.parametrize("make,status", [
    (lambda m: (gzip.compress(b"\0" * (1 << 20)), {"Content_Encoding": "gzip"}), 413),
    (lambda m: (gzip.compress(m)[:-3], {"Content_Encoding": "gzip"}), 400),
    (lambda m: (b"not gzip", {"Content_Encoding": "gzip"}), 400),
    (lambda m: (gzip.compress(m) + b"x", {"Content_Encoding": "gzip"}), 400),
    (lambda m: (m, {"Content_Encoding": "br"}), 415),
    (lambda m: (m, {"Content_Type": "application/json"}), 415),
    (lambda m: (b"\0" * 65537, {}), 413),
    (lambda m: (m, {"OpAMP_Instance_UID": str(uuid.uuid4())}), 400),
    (lambda m: (b"\xff" * 50, {}), 400),
    (lambda m: (b"", {}), 400),
    (lambda m: (field(1, uuid.uuid4().bytes) + field(2, 1), {}), 400),
], ids=["bomb", "cut", "no-gzip", "more", "encoding", "type", "long", "uid-header",
        "garbage", "empty", "other-uid"])
def test_wrong_requests_get_a_clear_status(active, certificates, make, status):
    poller = Poller(active, certificates)
    body, headers = make(poller.message())
    if "Content_Type" in headers:
        poller.link.request("POST", "/v1/opamp", body, {"Content-Type": "application/json"})
        assert poller.link.getresponse().status == status
    else:
        assert poller.post(body, **headers).status == status
    Poller(active, certificates).hello()


@pytest.mark.parametrize("head,status", [
    ("Content-Type: application/x-protobuf\r\n", "411"),
    ("Content-Type: application/x-protobuf\r\nTransfer-Encoding: chunked\r\n", "411"),
    ("Content-Type: application/x-protobuf\r\nContent-Length: 10\r\n"
     "Transfer-Encoding: chunked\r\n", "411"),
    ("Content-Type: application/x-protobuf\r\nContent-Length: -1\r\n", "400"),
    ("Content-Type: application/x-protobuf\r\nContent-Length: 1\r\nContent-Length: 2\r\n",
     "411"),
    ("Content-Type: application/x-protobuf\r\nContent-Length: 99999999999999999999\r\n", "400"),
], ids=["none", "chunks", "both", "negative", "two", "huge"])
def test_lengths_that_do_not_say_it_are_refused(active, certificates, head, status):
    poller = Poller(active, certificates)
    poller.link.connect()
    poller.link.sock.sendall(f"POST /v1/opamp HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode())
    assert poller.link.sock.recv(4096).split()[1].decode() == status


def whole_request(poller):
    body = poller.message()
    return (b"POST /v1/opamp HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\n"
            b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body)


def next_bytes(poller):
    got = poller.link.sock.recv(65536)
    assert got, "closed"
    return got


def test_several_requests_at_once_are_answered_in_order(active, certificates):
    poller = Poller(active, certificates)
    poller.hello()
    one = b"".join(whole_request(poller) for _ in range(5))
    sock = poller.link.sock
    for at in range(0, len(one), 37):
        sock.sendall(one[at:at + 37])
    got = b""
    while got.count(b"HTTP/1.1 200 OK") < 5 or not got.endswith(poller.uid):
        got += sock.recv(4096)
    assert got.count(poller.uid) == 5


def test_who_has_no_identity_is_a_stranger(active, certificates):
    certificates.sign("nobody", "nobody", "DNS:nobody", "clientAuth")
    poller = Poller(active, certificates, "nobody")
    assert poller.post(b"").status == 403


def test_a_revoked_device_is_refused(active, session, certificates):
    certificates.ids["gone"] = certificates.device("gone")
    poller = Poller(active, certificates, "gone")
    poller.hello()
    session.api("api_device_revoke", path={"id": certificates.ids["gone"]}, body={})

    def refused():
        with contextlib.suppress(http.client.HTTPException, OSError):
            return poller.post(poller.message()).status == 403
        return True
    eventually("the connection is closed", refused)
    again = Poller(active, certificates, "gone")
    assert again.post(again.message()).status == 403


def test_while_the_database_is_away_devices_come_later(active, database, certificates):
    poller = Poller(active, certificates)
    poller.hello()
    database.stop()
    try:
        eventually("it is seen", lambda: "database=down" in active.status())
        answer = poller.post(poller.message(field(5, field(1, 1))))
        assert answer.status == 503 and int(answer.headers["Retry-After"]) >= 30
        error = parse(parse(poller.body)[2][0])
        assert error[1] == [2], "UNAVAILABLE in the body, too"
    finally:
        database.start()


def test_a_device_that_floods_comes_later(active, certificates):
    poller = Poller(active, certificates)
    poller.hello()
    got, asked = b"", 0
    while b"HTTP/1.1 429 " not in got:  # many at a time: one by one may be slow enough
        assert asked < 5000
        poller.link.sock.sendall(b"".join(whole_request(poller) for _ in range(20)))
        asked += 20
        while b"HTTP/1.1 429 " not in got and got.count(b"HTTP/1.1 ") < asked:
            got += next_bytes(poller)
    while b"\r\n\r\n" not in got.partition(b"HTTP/1.1 429 ")[2]:
        got += next_bytes(poller)
    head = got.partition(b"HTTP/1.1 429 ")[2].partition(b"\r\n\r\n")[0]
    assert int(re.search(rb"Retry-After: (\d+)", head)[1]) >= 30


def test_letters_come_one_with_each_poll(active, session, certificates):
    poller = Poller(active, certificates)
    poller.hello()
    task, _ = start_scan(session, certificates.ids["one"])
    poller = Poller(active, certificates)
    told = [poller.hello(customs=(EVENTS, TASKS))]

    def runs():
        return [r for t in told if t.custom and t.custom[1] == "assign" for r in t.custom[2]["runs"]]

    def polled():
        told.append(poller.ask())
        return runs()

    eventually("it is assigned", polled)
    told += [poller.ask() for _ in range(4)]
    assert len(runs()) == 1
    stream = new_id()
    ack = poller.ask(custom(EVENTS, "batch", batch(stream, 1, event())))
    assert ack.custom[1:] == ("ack", {"stream": stream, "through": 1})
    session.api("api_task_cancel", path={"id": task})


def test_websocket_still_works_beside(active, certificates):
    from test_server import connect
    poller = Poller(active, certificates)
    poller.hello()
    device = connect(active, certificates)
    device.describe()
    poller.ask()
    device.send()
    device.receive()


def test_a_slow_body_is_given_up(active, certificates):
    poller = Poller(active, certificates)
    poller.hello()
    poller.link.sock.sendall(b"POST /v1/opamp HTTP/1.1\r\nContent-Type: application/x-protobuf"
                             b"\r\nContent-Length: 100\r\n\r\n")
    poller.link.sock.settimeout(15)
    with contextlib.suppress(ConnectionError, ssl.SSLError, socket.timeout, Refused):
        assert poller.link.sock.recv(4096) == b""
    eventually("it is closed", lambda: "too slow" in active.log_text())
