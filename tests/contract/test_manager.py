"""redoubt-manager against a real PostgreSQL: the frame of the API, whatever its routes do."""
import contextlib
import contextlib
import json
import os
import socket
import ssl
import subprocess
import tempfile
import threading
import time

import pytest

from device_world import Certificates, Postgres, eventually
from manager_world import MANAGER, Manager

@pytest.fixture(scope="module", name="folder")
def _folder():
    with tempfile.TemporaryDirectory(prefix="redoubt-manager-") as path:
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


@pytest.fixture(name="standby")
def _standby(folder, database, certificates):
    manager = Manager(folder, database, certificates)
    manager.wait_note("READY=1")
    yield manager
    manager.stop()
    text = manager.log_text()
    assert "BUG" not in text and "Sanitizer" not in text, text


@pytest.fixture(name="manager")
def _manager(standby, database):
    (now,), = database.query("SELECT epoch FROM redoubt.fence")
    database.raise_fence(now + 1)
    standby.epoch = now + 1
    standby.active(now + 1)
    return standby


# --- the role ------------------------------------------------------------------------------


def test_status_is_told_on_the_socket_of_the_node(manager):
    answer = manager.get("/v1/status")
    assert answer.status == 200, answer.text
    assert answer.json["epoch"] == manager.epoch and answer.json["node"] == "node-a"
    assert answer.headers["Content-Type"] == "application/json"


def test_a_standby_says_that_it_is_not_active(standby):
    for token in (None, ""):
        answer = standby.get("/v1/status", token)
        assert answer.error() == (503, "not_active") and answer.headers["Retry-After"] == "1"
        assert "redoubt status" in answer.json["error"]["suggestion"]


def test_without_the_lease_nobody_is_answered(manager):
    manager.lease(manager.epoch, 0)
    assert manager.get("/v1/status").error() == (503, "not_active")
    assert manager.post("/v1/api-tokens", {"name": "x", "role": "auditor"}).error() == (
        503, "not_active")
    manager.lease(manager.epoch + 1)  # a lease, but not of this epoch
    assert manager.get("/v1/status").error() == (503, "not_active")


def test_a_raised_fence_ends_its_writes(manager, database):
    database.raise_fence(manager.epoch + 1, "node-b")
    def refused():
        answer = manager.post("/v1/api-tokens", {"name": "late", "role": "auditor"})
        assert answer.status == 503, answer.text
        return answer.json["error"]["id"] == "not_active"
    eventually("not active", refused)
    assert database.query("SELECT 1 FROM redoubt.api_token WHERE name = 'late'") == []


def test_the_role_goes_and_comes_again(manager, database):
    manager.standby()
    assert manager.get("/v1/status").error() == (503, "not_active")
    database.raise_fence(manager.epoch + 1)
    manager.active(manager.epoch + 1)
    assert manager.get("/v1/status").json["epoch"] == manager.epoch + 1


# --- who asks -------------------------------------------------------------------------------


def test_over_the_network_a_token_is_needed(manager):
    answer = manager.get("/v1/status", "")
    assert answer.error() == (401, "not_authenticated")
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    made = manager.token("auditor")
    assert made["token"].startswith("rda1.") and made["state"] == "valid"
    assert manager.get("/v1/status", made["token"]).status == 200
    assert manager.get("/v1/status", "", Authorization="Basic eDp5").error()[0] == 401
    assert manager.get("/v1/status", "", Authorization="Bearer").error()[0] == 401
    assert manager.get("/v1/status", "x" * 600).error()[0] == 401
    # A token counts on the socket, too: a script may give away rights.
    assert manager.post("/v1/api-tokens", {"name": "x", "role": "auditor"},
                        Authorization=f"Bearer {made['token']}").error() == (403, "not_allowed")


def test_of_a_token_only_a_digest_is_stored(manager, database):
    made = manager.token("operator", name="secret one")
    (row,), = database.query("SELECT t::text FROM redoubt.api_token t WHERE name = 'secret one'")
    assert made["token"][5:] not in row
    dump = json.dumps(manager.get("/v1/api-tokens").json)
    assert made["token"] not in dump and made["id"] in dump
    (audit,), = database.query("SELECT string_agg(a::text, ' ') FROM redoubt.audit a")
    assert made["token"] not in audit and made["id"] in audit


def test_the_socket_is_for_root_and_its_group(manager):
    mode = os.stat(os.path.join(manager.run, "manager.sock")).st_mode & 0o777
    assert mode in (0o600, 0o660)


def test_another_method_is_told_which_there_are(manager):
    answer = manager.call("PUT", "/v1/groups", "{}")
    assert answer.error() == (405, "method") and answer.headers["Allow"] == "GET, POST"


# --- TLS --------------------------------------------------------------------------------------


def peer_certificate(manager):
    context = ssl.create_default_context(cafile=manager.certificates.path("ca.pem"))
    with socket.create_connection(("127.0.0.1", manager.api_port)) as plain:
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as link:
            return link.getpeercert(True)


def test_a_renewed_certificate_is_used_at_once(manager, certificates):
    first = peer_certificate(manager)
    assert peer_certificate(manager) == first
    os.unlink(certificates.path("server.key"))  # half of it: the old one stays
    assert peer_certificate(manager) == first
    certificates.sign("server", "redoubt", "DNS:redoubt,IP:127.0.0.1", "serverAuth")
    second = peer_certificate(manager)
    assert second != first
    with open(certificates.path("server.pem"), "a", encoding="ascii") as file:
        file.write("nonsense")
    with open(certificates.path("server.key"), "w", encoding="ascii") as file:
        file.write("nonsense")
    assert peer_certificate(manager) == second
    assert "certificate_unusable" in manager.log_text()
    certificates.sign("server", "redoubt", "DNS:redoubt,IP:127.0.0.1", "serverAuth")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_old_tls_is_refused(manager):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", manager.api_port)) as plain:
        with pytest.raises(ssl.SSLError):
            context.wrap_socket(plain)


def test_a_key_of_another_certificate_is_a_wrong_configuration(folder, database, certificates):
    certificates.sign("other", "redoubt", "DNS:redoubt", "serverAuth")
    class Wrong:
        path = staticmethod(lambda name: certificates.path(
            "other.key" if name == "server.key" else name))
    manager = Manager(folder, database, Wrong)
    assert manager.process.wait(20) == 78
    manager.stop()
    assert "is not the key of" in manager.log_text()


# --- bounds -----------------------------------------------------------------------------------


def head_only(manager, head):
    """What comes back for a request whose body never comes."""
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(5)
        link.connect(os.path.join(manager.run, "manager.sock"))
        link.sendall(head.encode() + b"\r\nHost: x\r\n\r\n")
        return link.recv(4096).decode()


def test_what_is_too_long_is_refused_unread(manager):
    reply = head_only(manager, "POST /v1/groups HTTP/1.1\r\nContent-Length: 70000")
    assert reply.startswith("HTTP/1.1 413 ") and "64 KiB" in reply
    reply = head_only(manager, "PUT /v1/groups/x/policy HTTP/1.1\r\nContent-Length: 1100000")
    assert reply.startswith("HTTP/1.1 413 ") and "1024 KiB" in reply
    body = json.dumps({"settings": {"x" * 900000: 1}})
    token = manager.token("administrator")["token"]
    for who in (None, token):
        assert manager.call("PUT", "/v1/groups/%2F/policy", body, who).error() == (
            422, "policy_invalid")


def test_a_client_may_go_away_while_it_waits(manager, database):
    with contextlib.closing(database.connect()) as link, link.cursor() as cursor:
        cursor.execute("BEGIN; LOCK redoubt.api_token")
        for _ in range(20):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(os.path.join(manager.run, "manager.sock"))
                client.sendall(b"GET /v1/api-tokens HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.2)
        cursor.execute("ROLLBACK")
    assert manager.get("/v1/api-tokens").status == 200


def test_more_requests_than_sessions_wait_their_turn(manager, database):
    answers = []
    with contextlib.closing(database.connect()) as link, link.cursor() as cursor:
        cursor.execute("BEGIN; LOCK redoubt.api_token")
        threads = [threading.Thread(target=lambda: answers.append(
            manager.get("/v1/api-tokens").status)) for _ in range(12)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        assert answers == []
        cursor.execute("ROLLBACK")
    for thread in threads:
        thread.join(10)
    assert answers == [200] * 12


def test_two_with_one_key_at_the_same_time_do_it_once(manager, database):
    answers = []
    body = {"name": "at once", "role": "auditor"}
    threads = [threading.Thread(target=lambda: answers.append(
        manager.post("/v1/api-tokens", body, Idempotency_Key="once"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert [a.status for a in answers] == [201] * 6
    assert len({a.json["id"] for a in answers}) == 1
    assert sum("token" in a.json for a in answers) == 1
    (count,), = database.query("SELECT count(*) FROM redoubt.api_token WHERE name = 'at once'")
    assert count == 1


# --- the DBMS ---------------------------------------------------------------------------------


def test_a_lost_database_is_told_and_comes_back(manager, database):
    database.stop()
    answer = eventually("an error", lambda: (
        lambda a: a if a.status == 503 else None)(manager.get("/v1/status")), 15)
    assert answer.error()[1] in ("database_unavailable", "database_timeout")
    database.start()
    eventually("an answer", lambda: manager.get("/v1/status").status == 200, 15)


def fenced(database, *statement):
    with contextlib.closing(database.connect()) as link, link.cursor() as cursor:
        cursor.execute("SELECT redoubt.announce((SELECT epoch FROM redoubt.fence), 'test',"
                       " 'node-a')")
        cursor.execute(*statement)


def test_who_waits_for_events_is_told_at_once(manager, database):
    after = manager.get("/v1/events?after=end").json["after"]
    start = time.monotonic()
    assert manager.get(f"/v1/events?after={after}&wait_s=1").json["items"] == []
    assert 0.9 < time.monotonic() - start < 5
    told = []
    thread = threading.Thread(target=lambda: told.append(
        (manager.get(f"/v1/events?after={after}&wait_s=20"), time.monotonic())))
    thread.start()
    time.sleep(0.5)
    start = time.monotonic()
    fenced(database, "SELECT redoubt.event_add(NULL, 'test_event', 'info', '{}')")
    thread.join(10)
    assert [e["kind"] for e in told[0][0].json["items"]] == ["test_event"]
    assert told[0][1] - start < 5


def test_who_waits_is_told_when_the_role_ends(manager):
    told = []
    thread = threading.Thread(target=lambda: told.append(
        manager.get("/v1/events?after=end&wait_s=20")))
    thread.start()
    time.sleep(0.5)
    manager.standby()
    thread.join(10)
    assert told[0].error() == (503, "not_active")


def test_each_second_the_upkeep_runs(manager, database):
    fenced(database, "INSERT INTO redoubt.idempotency (actor, key, request_hash, at)"
           " VALUES ('x', 'old', '', now() - interval '25 hours')")
    eventually("forgotten", lambda: database.query(
        "SELECT 1 FROM redoubt.idempotency WHERE key = 'old'") == [])


# --- the program ------------------------------------------------------------------------------


def test_the_watchdog_is_fed_and_signals_end_it(manager):
    eventually("a watchdog", lambda: "WATCHDOG=1" in manager.notes)
    eventually("a status", lambda: "active epoch=" in manager.status())
    manager.process.terminate()
    assert manager.process.wait(20) == 0


def test_it_checks_its_configuration(standby):
    environment = dict(os.environ, REDOUBT_CONF=standby.conf)
    done = subprocess.run([MANAGER, "--check"], env=environment, check=False,
                          capture_output=True, text=True)
    assert done.returncode == 1 and "manager.sock" in done.stderr  # it is served already
    for argv, code in ((["--help"], 0), (["--version"], 0), (["--nonsense"], 64), (["x"], 64)):
        done = subprocess.run([MANAGER, *argv], check=False, capture_output=True, text=True)
        assert done.returncode == code, argv


def test_one_address_cannot_take_all_connections(manager):
    context = ssl.create_default_context(cafile=manager.certificates.path("ca.pem"))
    with contextlib.ExitStack() as stack:
        def one_more():
            plain = stack.enter_context(socket.create_connection(("127.0.0.1", manager.api_port)))
            plain.settimeout(5)
            return stack.enter_context(context.wrap_socket(plain, server_hostname="127.0.0.1"))
        for _ in range(64):
            one_more()
        with pytest.raises((ssl.SSLError, OSError)):
            one_more()
        assert manager.get("/v1/status").status == 200  # the node's own socket is another matter
    made = manager.token("auditor")
    eventually("room again", lambda: manager.get("/v1/status", made["token"]).status == 200)
