"""redoubt-server as the node daemon starts it: a master, its workers, and the manager."""
import contextlib
import os
import signal
import socket
import ssl
import tempfile
import time

import pytest

from device_world import Daemon, Device, Refused, eventually
from test_server import (_certificates, _database, _epoch, _folder, new_id,  # noqa: F401
                         store)

WORKERS = 3


def children(daemon):
    """{pid: arguments} of what the master started."""
    found = {}
    with open(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children",
              encoding="ascii") as file:
        for pid in file.read().split():
            with contextlib.suppress(FileNotFoundError):
                with open(f"/proc/{pid}/cmdline", encoding="ascii") as line:
                    found[int(pid)] = line.read()
    return found


def workers(daemon):
    return [pid for pid, line in children(daemon).items() if "--worker" in line]


def gone(pids):
    return not any(os.path.exists(f"/proc/{pid}/exe") for pid in pids)


def start(folder, database, certificates, count, trust="", **more):
    run = tempfile.mkdtemp(dir=folder)
    trust = f"[trust]\nfolder={trust or run}\n"
    return Daemon(folder, database, certificates, arguments=[], cluster=f"run_dir={run}\n",
                  server=f"workers={count}\napi_listen=\n", sections=trust, **more)


@pytest.fixture(name="daemon")
def _daemon(folder, database, certificates):
    daemon = start(folder, database, certificates, WORKERS)
    daemon.wait_note("READY=1")
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


def connect(daemon, certificates, name="one"):
    return Device(daemon.port, certificates, name, certificates.ids[name])


def test_all_workers_take_devices(active, certificates):
    assert len(workers(active)) == WORKERS
    devices = [connect(active, certificates, name) for name in ("one", "two")]
    for device in devices:
        device.describe()
        store(device, new_id())
    eventually("both are counted, over all workers",
               lambda: active.status().startswith("active epoch=")
               and "connections=2 " in active.status())


def test_a_device_that_connects_to_another_worker_replaces_its_old_connection(
        active, certificates):
    old = connect(active, certificates)
    store(old, new_id())
    for _ in range(6):  # one of them meets another worker
        new = connect(active, certificates)
        store(new, new_id())
        with pytest.raises(Refused):
            while True:
                old.receive()
        old = new
    eventually("one connection is left", lambda: "connections=1 " in active.status())


def test_standby_is_acknowledged_by_all(active, certificates):
    device = connect(active, certificates)
    device.describe()
    active.standby()
    with pytest.raises(Refused):
        device.receive()
    with pytest.raises(Refused, match="refused"):
        connect(active, certificates)


def test_a_frozen_worker_holds_the_acknowledgement_back(active):
    victim = workers(active)[0]
    os.kill(victim, signal.SIGSTOP)
    try:
        with active.said:
            active.notes.clear()
        os.write(active.role, b"standby\n")
        with pytest.raises(AssertionError):
            active.wait_note("REDOUBT_ROLE=standby", 0.7)
    finally:
        os.kill(victim, signal.SIGCONT)
    active.wait_note("REDOUBT_ROLE=standby")


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "ended"])
def test_the_end_of_a_worker_ends_the_service(active, sig):
    before = children(active)
    os.kill(workers(active)[0], sig)
    assert active.process.wait(20) == 1
    eventually("nobody is left", lambda: gone(before))


def test_the_end_of_the_master_ends_the_workers(active):
    before = children(active)
    active.process.kill()
    active.process.wait(20)
    eventually("nobody is left", lambda: gone(before))


def test_a_silent_worker_makes_the_service_silent(folder, database, certificates):
    daemon = start(folder, database, certificates, 2, watchdog_us=300000)
    try:
        daemon.wait_note("READY=1")
        daemon.wait_note("WATCHDOG=1")
        victim = workers(daemon)[1]
        os.kill(victim, signal.SIGSTOP)
        time.sleep(1)
        with daemon.said:
            daemon.notes.clear()
        time.sleep(0.5)
        assert "WATCHDOG=1" not in daemon.notes
        os.kill(victim, signal.SIGCONT)
        daemon.wait_note("WATCHDOG=1")
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(20) == 0
    finally:
        daemon.stop()


def session_of(daemon, certificates, session=None):
    """(was it resumed?, the session of a new connection)"""
    context = session[0] if session else ssl.create_default_context(
        cafile=certificates.path("ca.pem"))
    if not session:
        context.load_cert_chain(certificates.path("one.pem"), certificates.path("one.key"))
    plain = socket.create_connection(("127.0.0.1", daemon.port), 5)
    with context.wrap_socket(plain, server_hostname="redoubt",
                             session=session and session[1]) as link:
        link.sendall(b"GET /v1/health HTTP/1.1\r\n\r\n")
        link.recv(4096)
        return link.session_reused, (context, link.session)


def test_sessions_are_resumed_by_any_worker(active, certificates):
    """One key seals the tickets of all workers."""
    _, session = session_of(active, certificates)
    for _ in range(7):
        resumed, session = session_of(active, certificates, session)
        assert resumed


def test_sessions_are_resumed_by_the_other_node(folder, database, certificates, epoch):
    """The key of the cluster lies on both nodes; without it the other one knows nothing."""
    trust = tempfile.mkdtemp(dir=folder)
    with open(os.path.join(trust, "ticket.key"), "wb") as file:
        file.write(os.urandom(64))
    nodes = [start(folder, database, certificates, 1, where) for where in (trust, trust, "")]
    try:
        database.raise_fence(epoch)
        for node in nodes:
            node.wait_note("READY=1")
            node.active(epoch)
        _, session = session_of(nodes[0], certificates)
        assert session_of(nodes[1], certificates, session)[0]
        assert not session_of(nodes[2], certificates, session)[0]
    finally:
        for node in nodes:
            node.stop()


def test_a_ticket_key_that_is_none_is_refused(folder, database, certificates):
    trust = tempfile.mkdtemp(dir=folder)
    with open(os.path.join(trust, "ticket.key"), "wb") as file:
        file.write(b"short")
    daemon = start(folder, database, certificates, 1, trust)
    assert daemon.process.wait(20) == 1
    assert "not a key of 64 bytes" in daemon.log_text()
    daemon.stop()
