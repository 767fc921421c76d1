"""redoubt-web with a real nginx: this file plays the node daemon.

Usage: test_web.py REDOUBT_WEB.  Prints TAP.  Needs nginx; no root.
"""

import http.client
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

PROGRAM = sys.argv[1]
PATIENCE = 10.0
NGINX = "/usr/sbin/nginx"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Daemon:
    """What a node daemon gives to a service: notify socket, role, lease page."""

    def __init__(self, folder, watchdog_ms=0, root=None, extra=()):
        self.folder = folder
        self.port = free_port()
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(folder + "/notify")
        self.role, theirs = socket.socketpair()
        self.lease = os.memfd_create("lease")
        os.ftruncate(self.lease, 4096)
        os.pwrite(self.lease, struct.pack("<II", 0x52444C50, 1), 0)
        os.makedirs(folder + "/root", exist_ok=True)
        with open(folder + "/root/index.html", "w", encoding="ascii") as f:
            f.write("published\n")
        env = dict(
            os.environ,
            NOTIFY_SOCKET=folder + "/notify",
            REDOUBT_ROLE_FD=str(theirs.fileno()),
            REDOUBT_LEASE_FD=str(self.lease),
            REDOUBT_SERVICE="web",
            REDOUBT_NODE="node-a",
            RUNTIME_DIRECTORY=folder + "/run",
        )
        env.pop("REDOUBT_CONF", None)
        if watchdog_ms:
            env["WATCHDOG_USEC"] = str(watchdog_ms * 1000)
        self.errors = open(folder + "/stderr", "w+", encoding="utf-8")
        self.web = subprocess.Popen(
            [PROGRAM, "--http", f"127.0.0.1:{self.port}", "--root", root or folder + "/root", *extra],
            env=env,
            pass_fds=(theirs.fileno(), self.lease),
            stderr=self.errors,
            start_new_session=True,
        )
        theirs.close()

    def hears(self, what, within=PATIENCE):
        """Waits for a notify message; everything else is skipped."""
        end = time.monotonic() + within
        while time.monotonic() < end:
            self.notify.settimeout(max(0.01, end - time.monotonic()))
            try:
                message = self.notify.recv(4096).decode()
            except socket.timeout:
                return False
            if message == what:
                return True
        return False

    def hold(self, epoch, seconds):
        deadline = int((time.clock_gettime(time.CLOCK_BOOTTIME) + seconds) * 1e6)
        os.pwrite(self.lease, struct.pack("<Q", 0), 16)
        os.pwrite(self.lease, struct.pack("<Q", epoch), 8)
        os.pwrite(self.lease, struct.pack("<Q", deadline), 16)

    def tell(self, line):
        self.role.send(line.encode() + b"\n")

    def activate(self, epoch=41):
        assert self.hears("READY=1"), self.text()
        self.hold(epoch, 600)
        self.tell(f"active {epoch}")
        assert self.hears(f"REDOUBT_ROLE=active {epoch}"), self.text()

    def get(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/")
            answer = connection.getresponse()
            return answer.status, answer.headers.get("X-Redoubt-Node"), answer.read()
        except OSError:
            return None
        finally:
            connection.close()

    def nginx(self):
        """The pids of nginx: (master, [workers]); (None, []) if it does not run."""
        masters = children(self.web.pid)
        return (masters[0], children(masters[0])) if masters else (None, [])

    def ends(self):
        try:
            return self.web.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            return None

    def text(self):
        self.errors.flush()
        with open(self.folder + "/stderr", encoding="utf-8") as f:
            return f.read()

    def close(self):
        if self.web.poll() is None:
            self.web.terminate()
            try:
                self.web.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.web.kill()
                self.web.wait()
        for thing in (self.notify, self.role, self.errors):
            thing.close()
        os.close(self.lease)


def children(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as f:
            return [int(p) for p in f.read().split()]
    except OSError:
        return []


def alive(pid):
    """Neither gone nor a zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as f:
            return f.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def until(condition):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.005)
    return False


def in_standby_nothing_listens(d):
    assert d.hears("READY=1"), d.text()
    assert d.get() is None
    assert d.nginx() == (None, [])


def told_active_it_serves(d):
    d.activate()
    assert d.get() == (200, "node-a", b"published\n")


def without_the_lease_it_does_not_serve(d):
    assert d.hears("READY=1"), d.text()
    d.tell("active 41")
    assert not d.hears("REDOUBT_ROLE=active 41", 0.3)
    assert d.get() is None
    d.hold(40, 600)  # the lease of another epoch is not ours
    assert not d.hears("REDOUBT_ROLE=active 41", 0.3)
    d.hold(41, 600)
    assert d.hears("REDOUBT_ROLE=active 41"), d.text()
    assert d.get() is not None


def when_the_lease_runs_out_it_falls_silent(d):
    d.activate()
    d.hold(41, 0.2)
    assert until(lambda: d.get() is None)
    assert d.web.poll() is None
    d.tell("standby")
    assert d.hears("REDOUBT_ROLE=standby"), d.text()


def standby_means_that_nginx_is_gone(d):
    d.activate()
    master, workers = d.nginx()
    assert len(workers) == 1
    d.tell("standby")
    assert d.hears("REDOUBT_ROLE=standby"), d.text()
    assert not alive(master) and not alive(workers[0])
    assert d.get() is None
    d.hold(42, 600)
    d.tell("active 42")
    assert d.hears("REDOUBT_ROLE=active 42"), d.text()
    assert d.get() is not None


def a_dead_worker_is_a_failure(d):
    d.activate()
    os.kill(d.nginx()[1][0], signal.SIGKILL)
    assert d.ends() == 1
    assert "worker" in d.text()


def a_dead_master_is_a_failure_and_leaves_nothing(d):
    d.activate()
    master, workers = d.nginx()
    os.kill(master, signal.SIGKILL)
    assert d.ends() == 1
    assert until(lambda: not alive(workers[0]))


def a_stopped_worker_is_a_failure(d):
    d.activate()
    master, workers = d.nginx()
    os.kill(workers[0], signal.SIGSTOP)
    assert d.ends() == 1
    assert until(lambda: not alive(master) and not alive(workers[0]))


def while_it_answers_the_watchdog_is_fed(d):
    assert d.hears("READY=1"), d.text()
    assert d.hears("WATCHDOG=1")
    d.hold(41, 600)
    d.tell("active 41")
    assert d.hears("REDOUBT_ROLE=active 41"), d.text()
    assert d.hears("WATCHDOG=1") and d.hears("WATCHDOG=1")
    assert d.web.poll() is None


def it_ends_with_the_daemon(d):
    d.activate()
    master, workers = d.nginx()
    d.role.close()
    assert d.ends() == 3
    assert until(lambda: not alive(master) and not alive(workers[0]))


def sigterm_ends_it_in_order(d):
    d.activate()
    d.web.terminate()
    assert d.ends() == 0


def a_missing_folder_is_named_and_served_empty(d):
    d.activate()
    assert d.get()[0] == 404
    assert "/nonexistent/folder" in d.text()


def a_missing_certificate_is_refused_before_ready(d):
    assert d.ends() == 2
    assert "/nonexistent/cert.pem" in d.text()
    assert not d.hears("READY=1", 0.1)


TESTS = [
    (in_standby_nothing_listens, {}),
    (told_active_it_serves, {}),
    (without_the_lease_it_does_not_serve, {}),
    (when_the_lease_runs_out_it_falls_silent, {}),
    (standby_means_that_nginx_is_gone, {}),
    (a_dead_worker_is_a_failure, {}),
    (a_dead_master_is_a_failure_and_leaves_nothing, {}),
    (a_stopped_worker_is_a_failure, {}),
    (while_it_answers_the_watchdog_is_fed, {"watchdog_ms": 600}),
    (it_ends_with_the_daemon, {}),
    (sigterm_ends_it_in_order, {}),
    (a_missing_folder_is_named_and_served_empty, {"root": "/nonexistent/folder"}),
    (
        a_missing_certificate_is_refused_before_ready,
        {
            "extra": (
                "--https",
                "127.0.0.1:1",
                "--certificate",
                "/nonexistent/cert.pem",
                "--key",
                "/nonexistent/key.pem",
            )
        },
    ),
]


def main():
    if not os.access(NGINX, os.X_OK):
        print("1..0 # SKIP nginx is not installed")
        return
    print(f"1..{len(TESTS)}")
    for number, (test, options) in enumerate(TESTS, 1):
        folder = tempfile.mkdtemp(prefix="redoubt-web-")
        os.chmod(folder, 0o755)  # started by root, nginx gives up root
        daemon = Daemon(folder, **options)
        result, note = "ok", ""
        try:
            test(daemon)
        except AssertionError as e:
            result = "not ok"
            note = "\n".join("# " + line for line in (str(e) + "\n" + daemon.text()).split("\n"))
        finally:
            daemon.close()
            shutil.rmtree(folder, ignore_errors=True)
        print(result, number, "-", test.__name__.replace("_", " "))
        if note:
            print(note)
        sys.stdout.flush()


main()
