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


def start(folder, database, certificates, count, **more):
    run = tempfile.mkdtemp(dir=folder)
    return Daemon(folder, database, certificates, arguments=[], cluster=f"run_dir={run}\n",
                  server=f"workers={count}\napi_listen=\n", **more)


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
    assert active.process.wait(5) == 1
    eventually("nobody is left", lambda: gone(before))


def test_the_end_of_the_master_ends_the_workers(active):
    before = children(active)
    active.process.kill()
    active.process.wait(5)
    eventually("nobody is left", lambda: gone(before))


def test_a_silent_worker_makes_the_service_silent(folder, database, certificates):
    daemon = start(folder, database, certificates, 2, watchdog_us=300000)
    try:
        daemon.wait_note("READY=1")
        daemon.wait_note("WATCHDOG=1")
        victim = workers(daemon)[1]
        os.kill(victim, signal.SIGSTOP)
        time.sleep(0.3)
        with daemon.said:
            daemon.notes.clear()
        time.sleep(0.5)
        assert "WATCHDOG=1" not in daemon.notes
        os.kill(victim, signal.SIGCONT)
        daemon.wait_note("WATCHDOG=1")
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(5) == 0
    finally:
        daemon.stop()


def test_sessions_are_resumed_by_any_worker(active, certificates):
    """One key seals the tickets of all workers."""
    context = ssl.create_default_context(cafile=certificates.path("ca.pem"))
    context.load_cert_chain(certificates.path("one.pem"), certificates.path("one.key"))
    session, resumed = None, 0
    for _ in range(8):
        plain = socket.create_connection(("127.0.0.1", active.port), 5)
        with context.wrap_socket(plain, server_hostname="redoubt", session=session) as link:
            resumed += link.session_reused
            link.sendall(b"GET /v1/health HTTP/1.1\r\n\r\n")
            link.recv(4096)
            session = link.session
    assert resumed == 7
