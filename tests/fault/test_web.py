"""redoubt-web with a real nginx: this file plays the node daemon.

Usage: test_web.py REDOUBT_WEB.  Prints TAP.  Needs nginx; no root.
"""

import base64
import hashlib
import http.client
import os
import queue
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time

PROGRAM = sys.argv[1]
PATIENCE = 30.0
NGINX = "/usr/sbin/nginx"
SECRET = b"a secret of thirty-two bytes, or"
MTIME = 1_700_000_000


RESERVED = []


def free_port():
    """Nobody else gets it while this program runs: only who asks for it by its number, as nginx
    does (both with SO_REUSEADDR), may listen there."""
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("127.0.0.1", 0))
    RESERVED.append(s)
    return s.getsockname()[1]


class Store:
    """What redoubt-mirror lays out: blobs, trees of links to them, and which tree is current."""

    def __init__(self, folder):
        self.folder, self.serial = folder, 0
        os.makedirs(folder + "/blob")

    def publish(self, files, switch=True):
        """files: path below public/ or private/ -> bytes."""
        self.serial += 1
        tree = f"{self.folder}/tree/{self.serial}"
        for path, body in files.items():
            name = hashlib.sha256(body).hexdigest()
            blob = f"{self.folder}/blob/{name}"
            if not os.path.exists(blob):
                with open(blob, "wb") as f:
                    f.write(body)
                os.utime(blob, (MTIME, MTIME))
            link = f"{tree}/{path}"
            os.makedirs(os.path.dirname(link), exist_ok=True)
            os.symlink("../" * (path.count("/") + 2) + f"blob/{name}", link)
        for part in ("public", "private"):
            os.makedirs(f"{tree}/{part}", exist_ok=True)
        if switch:
            self.switch(self.serial)

    def switch(self, serial):
        os.symlink(f"tree/{serial}", self.folder + "/current.new")
        os.rename(self.folder + "/current.new", self.folder + "/current")


def link(path, expires, secret=SECRET):
    """As src/sys/ca/ca_link.c makes it."""
    key = hashlib.sha256(secret).hexdigest()
    digest = hashlib.md5(f"{key}{expires} {path} {key}".encode()).digest()
    text = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    return f"{path}?md5={text}&expires={expires}"


def certificate(folder):
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                    "ec_paramgen_curve:P-256", "-nodes", "-keyout", folder + "/key.pem", "-out",
                    folder + "/cert.pem", "-days", "2", "-subj", "/CN=localhost"],
                   check=True, capture_output=True)


class Daemon:
    """What a node daemon gives to a service: notify socket, role, lease page.

    watchdog_ms: nginx has half of it to answer; 0: two seconds."""

    def __init__(self, folder, watchdog_ms=60000, root=None, store=False, extra=()):
        self.folder = folder
        self.port = free_port()
        if store:
            self.store = Store(folder + "/store")
            self.tls_port = free_port()
            certificate(folder)
            with open(folder + "/link.key", "wb") as f:
                f.write(SECRET)
            extra = ("--store", folder + "/store", "--link-key", folder + "/link.key", "--https",
                     f"127.0.0.1:{self.tls_port}", "--certificate", folder + "/cert.pem", "--key",
                     folder + "/key.pem", *extra)
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(folder + "/notify")
        self.notes = queue.Queue()
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()
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

    def _listen(self):
        """At once: the socket holds ten messages, and the next one is lost."""
        while message := self.notify.recv(4096):
            self.notes.put(message.decode())

    def hears(self, what, within=PATIENCE):
        """Waits for a notify message; everything else is skipped."""
        end = time.monotonic() + within
        try:
            while self.notes.get(timeout=max(0.0, end - time.monotonic())) != what:
                pass
        except queue.Empty:
            return False
        return True

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

    def ask(self, path, headers=None, tls=False, method="GET"):
        """(status, headers, body); the path is sent as it is."""
        if tls:
            context = ssl.create_default_context(cafile=self.folder + "/cert.pem")
            context.check_hostname = False
            connection = http.client.HTTPSConnection("127.0.0.1", self.tls_port, timeout=10,
                                                     context=context)
        else:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, headers=headers or {})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def get(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", "/")
            answer = connection.getresponse()
            return answer.status, answer.headers.get("X-Redoubt-Node"), answer.read()
        except (OSError, http.client.HTTPException):
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
        self.notify.shutdown(socket.SHUT_RDWR)
        self.listener.join()
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
    """Neither gone nor a zombie, nor one that is being collected."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as f:
            return f.read().rsplit(")", 1)[1].split()[0] not in "ZX"
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
    # Its connections are closed before it is gone: a health request may see it first.
    assert "the nginx worker" in d.text() or "health request" in d.text()


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


def what_is_public_is_on_both_ports_and_private_needs_a_link(d):
    d.store.publish({"public/packages/agent/1.0/a.deb": b"public package",
                     "public/install/agent.sh": b"#!/bin/sh\n",
                     "public/custom/own.ndb": b"custom",
                     "public/sig/daily.cvd": b"signatures",
                     "private/packages/agent/1.0/token.deb": b"with a token"})
    d.activate()
    for path, body in (("/packages/agent/1.0/a.deb", b"public package"),
                       ("/install/agent.sh", b"#!/bin/sh\n"), ("/custom/own.ndb", b"custom"),
                       ("/sig/daily.cvd", b"signatures"), ("/", b"published\n")):
        for tls in (False, True):
            status, headers, got = d.ask(path, tls=tls)
            assert (status, got) == (200, body), (path, tls, status, got)
            assert headers["X-Redoubt-Node"] == "node-a"
    path = "/private/packages/agent/1.0/token.deb"
    good = link(path, int(time.time()) + 60)
    status, headers, got = d.ask(good, tls=True)
    assert (status, got) == (200, b"with a token"), (status, got)
    assert headers["Cache-Control"] == "private, no-store"
    assert headers["X-Redoubt-Node"] == "node-a"
    status, _, got = d.ask(good)
    assert status == 404 and b"https only" in got, (status, got)
    assert d.ask(path, tls=True)[0] == 404
    wrong = link(path, int(time.time()) + 60, b"another secret of 32 bytes, this")
    status, headers, got = d.ask(wrong, tls=True)
    assert status == 404 and b"not complete" in got, (status, got)
    assert headers["Content-Type"] == "text/plain"
    longer = re.sub(r"expires=\d+", f"expires={int(time.time()) + 999}", good)
    assert d.ask(longer, tls=True)[0] == 404
    other = link("/private/packages/agent/1.0/other.deb", int(time.time()) + 60)
    assert d.ask(other, tls=True)[0] == 404
    status, _, got = d.ask(link(path, int(time.time()) - 2), tls=True)
    assert status == 410 and b"expired" in got, (status, got)


def a_request_that_climbs_or_is_odd_gets_nothing(d):
    d.store.publish({"public/sig/daily.cvd": b"signatures", "private/p/x.deb": b"hidden"})
    with open(d.folder + "/store/secret", "w", encoding="ascii") as f:
        f.write("out of reach\n")
    d.activate()
    stored = "/blob/" + hashlib.sha256(b"hidden").hexdigest()
    for path in ("/sig/../../secret", "/sig/%2e%2e/%2e%2e/secret", "/sig/..%2f..%2fsecret",
                 "/sig/../private/p/x.deb", "/sig/%2e%2e%2fprivate/p/x.deb", "/../secret",
                 "/sig/%00", "/sig/daily.cvd%00", "/sig/a%0ab", "/sig/%ff%fe", "/sig/" + "a" * 5000,
                 "/sig/", "/sig", "/packages/", "/packages", "/sig/daily.cvd/", "/sig//../x", stored,
                 "/tree/1/private/p/x.deb", "/current/private/p/x.deb", "/private/", "/private",
                 "/private/../private/p/x.deb", "//private//p//x.deb", "/PRIVATE/p/x.deb"):
        for tls in (False, True):
            status, headers, got = d.ask(path, tls=tls)
            assert status in (301, 400, 404, 414), (path, status)
            assert b"hidden" not in got and b"out of reach" not in got, path
            if status == 301:
                assert d.ask(headers["Location"], tls=tls)[0] == 404, headers["Location"]
    assert d.ask("/sig/daily.cvd", method="POST")[0] == 405
    assert d.ask("/sig/daily.cvd", method="DELETE")[0] == 405
    assert d.get() is not None


def freshclam_is_never_told_403(d):
    d.store.publish({"public/sig/daily.cvd": b"signatures", "public/sig/more/x.cdiff": b"x"})
    d.activate()
    blob = d.folder + "/store/blob/" + hashlib.sha256(b"signatures").hexdigest()
    assert d.ask("/sig/daily.cvd")[0] == 200
    os.chmod(blob, 0)
    statuses = [d.ask(path)[0] for path in ("/sig/daily.cvd", "/sig/", "/sig/more/", "/sig/none")]
    os.chmod(blob, 0o644)
    assert statuses == [404, 404, 404, 404], statuses


def the_validators_say_what_the_file_says(d):
    body = bytes(range(256)) * 64
    d.store.publish({"public/sig/daily.cvd": body, "public/packages/p/1/p.deb": body})
    d.activate()
    when, later = ("Tue, 14 Nov 2023 22:13:20 GMT", "Wed, 15 Nov 2023 22:13:20 GMT")
    tag = f'"{MTIME:x}-{len(body):x}"'
    for path in ("/sig/daily.cvd", "/packages/p/1/p.deb"):
        for tls in (False, True):
            status, headers, got = d.ask(path, tls=tls)
            assert (status, got) == (200, body)
            assert (headers["Last-Modified"], headers["ETag"]) == (when, tag), headers.items()
            status, headers, got = d.ask(path, {"Range": "bytes=100-", "If-Range": tag}, tls)
            assert (status, got) == (206, body[100:])
            assert d.ask(path, {"Range": "bytes=0-511"}, tls)[2] == body[:512]
            status, _, got = d.ask(path, {"Range": "bytes=100-", "If-Range": '"0-1"'}, tls)
            assert (status, got) == (200, body)
            assert d.ask(path, {"If-None-Match": tag}, tls)[0] == 304
            assert d.ask(path, {"If-Modified-Since": when}, tls)[0] == 304
            assert d.ask(path, {"Range": f"bytes={len(body)}-"}, tls)[0] == 416
    # freshclam asks with the time of its own copy, which may be later
    assert d.ask("/sig/daily.cvd", {"If-Modified-Since": later})[0] == 304


def who_asks_too_often_is_told_when_to_come_again(d):
    d.store.publish({"public/sig/daily.cvd": b"signatures", "public/install/a.sh": b"a"})
    d.activate()
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        status, headers, got = d.ask("/sig/daily.cvd")
        assert status in (200, 429), status
        if status == 429:
            break
    assert status == 429, "never refused"
    assert headers["Retry-After"] == "120" and b"120 seconds" in got
    assert headers["Content-Type"] == "text/plain" and headers["X-Redoubt-Node"] == "node-a"
    assert d.ask("/install/a.sh")[0] == 200          # only signatures are throttled
    assert until(lambda: d.ask("/sig/daily.cvd")[0] == 200)
    assert "limiting" not in d.text()                # no line of the log for each of them


def a_set_is_switched_at_once_under_load(d):
    """Each answer is of one set, whole; a connection that asks again after a switch gets the new."""
    sets = []
    for n in (1, 2):
        body = bytes([n]) * (300_000 + n)
        sets.append(body)
        d.store.publish({"public/sig/daily.cvd": body, "public/sig/serial": b"%d" % n},
                        switch=n == 1)
    d.activate()
    seen, wrong, stop = set(), [], threading.Event()

    def load():
        connection = http.client.HTTPConnection("127.0.0.1", d.port, timeout=10)
        while not stop.is_set() and not wrong:
            connection.request("GET", "/sig/daily.cvd")
            answer = connection.getresponse()
            got = answer.read()
            if got not in sets or int(answer.headers["Content-Length"]) != len(got):
                wrong.append((answer.status, len(got), set(got)))
            seen.add(got[:1])
        connection.close()

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        end, turn = time.monotonic() + PATIENCE, 0
        while turn < 200 or (len(seen) < 2 and time.monotonic() < end):
            turn += 1
            serial = turn % 2 + 1
            d.store.switch(serial)
            got = d.ask("/sig/serial")[2]
            assert got == b"%d" % serial, (serial, got)    # seen at once
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert not wrong, wrong[0]
    assert len(seen) == 2, "the load saw one set only"


def without_the_key_of_the_links_the_rest_is_served(d):
    d.store.publish({"public/sig/daily.cvd": b"signatures", "private/p/x.deb": b"hidden"})
    d.activate()
    assert d.ask("/sig/daily.cvd", tls=True)[0] == 200
    assert d.ask(link("/private/p/x.deb", int(time.time()) + 60), tls=True)[0] == 404
    assert "web_no_links" in d.text()


def the_configuration_keeps_its_secret(d):
    d.activate()
    key = hashlib.sha256(SECRET).hexdigest()
    for name in ("nginx.conf", "nginx-test.conf"):
        path = f"{d.folder}/run/{name}"
        with open(path, encoding="utf-8") as f:
            text = f.read()
        assert key in text and len(text) < 16384
        assert os.stat(path).st_mode & 0o777 == 0o600, name
    assert key not in d.text()


TESTS = [
    (in_standby_nothing_listens, {}),
    (told_active_it_serves, {}),
    (without_the_lease_it_does_not_serve, {}),
    (when_the_lease_runs_out_it_falls_silent, {}),
    (standby_means_that_nginx_is_gone, {}),
    (a_dead_worker_is_a_failure, {}),
    (a_dead_master_is_a_failure_and_leaves_nothing, {}),
    (a_stopped_worker_is_a_failure, {"watchdog_ms": 0}),
    (while_it_answers_the_watchdog_is_fed, {}),
    (it_ends_with_the_daemon, {}),
    (sigterm_ends_it_in_order, {}),
    (what_is_public_is_on_both_ports_and_private_needs_a_link, {"store": True}),
    (a_request_that_climbs_or_is_odd_gets_nothing, {"store": True}),
    (freshclam_is_never_told_403, {"store": True}),
    (the_validators_say_what_the_file_says, {"store": True}),
    (who_asks_too_often_is_told_when_to_come_again, {"store": True, "extra": ("--sig-rate", "4")}),
    (a_set_is_switched_at_once_under_load, {"store": True, "extra": ("--workers", "2")}),
    (
        without_the_key_of_the_links_the_rest_is_served,
        {"store": True, "extra": ("--link-key", "/nonexistent/link.key")},
    ),
    (the_configuration_keeps_its_secret, {"store": True}),
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
