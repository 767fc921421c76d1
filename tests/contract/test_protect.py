"""The protection of a device, with a real clamd and freshclam, without the rest of the agent."""
import contextlib
import fcntl
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import uuid

import pytest

DRIVE = os.environ.get("PROTECT_DRIVE", "build/tests/contract/protect_drive")
MARKER = b"a harmless marker of our own"

pytestmark = pytest.mark.skipif(
    os.getuid() != 0 or not shutil.which("clamd") or not shutil.which("freshclam"),
    reason="needs root, clamd and freshclam")


def eventually(what, check, seconds=30.0):
    end = time.monotonic() + seconds
    while True:
        value = check()
        if value:
            return value
        assert time.monotonic() < end, f"did not happen in {seconds} s: {what}"
        time.sleep(0.02)


def text_of(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def put(path, data):
    with open(path, "wb") as file:
        file.write(data)
    return path


class Engine:
    """clamd, kept running by a loop, as a service manager would."""

    def __init__(self, folder):
        self.folder = folder
        self.socket = os.path.join(folder, "clamd.sock")
        self.conf = os.path.join(folder, "clamd.conf")
        self.databases = os.path.join(folder, "db")
        self.pid_file = os.path.join(folder, "clamd.pid")
        os.mkdir(self.databases)
        put(os.path.join(self.databases, "own.ndb"),
            b"Own.Marker:0:*:" + MARKER.hex().encode() + b"\n")
        put(self.conf, f"LocalSocket {self.socket}\nDatabaseDirectory {self.databases}\n"
            f"PidFile {self.pid_file}\nTemporaryDirectory {folder}\nForeground yes\n"
            "User root\nMaxThreads 3\n"
            "MaxFileSize 5M\n# a comment\n".encode())
        self.restart = os.path.join(folder, "restart")
        put(self.restart, f"#!/bin/sh\nkill $(cat {self.pid_file})\n".encode())
        os.chmod(self.restart, 0o755)
        self.begin()

    def begin(self):
        self.wanted = True
        self.process = None
        self.thread = threading.Thread(target=self.keep, daemon=True)
        self.thread.start()
        eventually("clamd answers", self.answers, 30)

    def keep(self):
        while self.wanted:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.socket)
            self.process = subprocess.Popen(["clamd", "--config-file", self.conf],
                                            stdout=subprocess.DEVNULL,
                                            stderr=subprocess.DEVNULL)
            self.process.wait()
            time.sleep(0.2)

    def answers(self):
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(10)
            try:
                s.connect(self.socket)
                s.sendall(b"zPING\0")
                return s.recv(16) == b"PONG\0"
            except OSError:
                return False

    def kill(self, how=signal.SIGKILL):
        self.process.send_signal(how)

    def renew(self):
        """Another clamd, which has read its configuration."""
        old = self.process
        old.terminate()
        eventually("clamd is back", lambda: self.process is not old and self.answers() and
                   text_of(self.pid_file).strip() == str(self.process.pid), 30)

    def stop(self):
        self.wanted = False
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.thread.join(10)


class Drive:
    """The protection of a device; everything that its hooks say is kept."""

    def __init__(self, folder, engine, **settings):
        self.folder = folder
        self.state = os.path.join(folder, "state")
        self.conf = os.path.join(folder, "agent.conf")
        values = {"server": "127.0.0.1:1", "clamd": engine.socket, "state_dir": self.state,
                  "engine_restart": engine.restart, **settings}
        put(self.conf, ("[agent]\n" + "".join(f"{k}={v}\n" for k, v in values.items()))
            .encode())
        self.said = []
        self.start()

    def start(self):
        self.log = open(os.path.join(self.folder, "log"), "ab")
        self.process = subprocess.Popen([DRIVE, self.conf], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=self.log)
        threading.Thread(target=self.read, args=[self.process.stdout], daemon=True).start()

    def read(self, stream):
        for line in stream:
            self.said.append(json.loads(line))

    def send(self, **message):
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def policy(self, **settings):
        """Settings with '__' for '.'; waits for the answer."""
        tag = uuid.uuid4().hex * 2
        settings = {"onaccess__mode": "off", **settings}
        self.send(do="policy", hash=tag,
                  policy={k.replace("__", "."): v for k, v in settings.items()})
        assert not any(m["hook"] == "bad_policy" for m in self.said), self.said
        return eventually("the policy is applied",
                          lambda: next((m for m in self.said if m["hook"] == "policy"
                                        and m["hash"] == tag), None), 60)

    def run(self, what, **params):
        run = str(uuid.uuid4())
        self.send(do="run", run=run, type=what, params=params)
        return run

    def done(self, run, seconds=30):
        return eventually(f"the end of the run\n{text_of(os.path.join(self.folder, 'log'))[-2000:]}"
                          f"\n{self.said[-10:]}",
                          lambda: next((m for m in self.said if m["hook"] == "done"
                                        and m["run"] == run), None), seconds)

    def events(self, kind):
        return [m["data"] for m in self.said if m["hook"] == "event" and m["kind"] == kind]

    def facts(self):
        before = len([m for m in self.said if m["hook"] == "facts"])
        self.send(do="facts")
        return eventually("facts", lambda: [m for m in self.said if m["hook"] == "facts"]
                          [before:])[-1]

    def progress(self, run):
        return [m for m in self.said if m["hook"] == "progress" and m["run"] == run]

    def quarantined(self):
        folder = os.path.join(self.state, "quarantine")
        return [n for n in os.listdir(folder) if len(n) == 36]

    def stop(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        assert self.process.wait(30) == 0
        log = text_of(os.path.join(self.folder, "log"))
        assert "BUG" not in log and "Sanitizer" not in log, log


@pytest.fixture(scope="module", name="engine")
def _engine():
    with tempfile.TemporaryDirectory(prefix="redoubt-protect-") as folder:
        os.chmod(folder, 0o755)
        engine = Engine(folder)
        yield engine
        engine.stop()


@pytest.fixture(name="folder")
def _folder():
    """A folder without symbolic links in its path."""
    with tempfile.TemporaryDirectory(prefix="redoubt-protect-") as folder:
        yield os.path.realpath(folder)


@pytest.fixture(name="drive")
def _drive(folder, engine):
    drive = Drive(folder, engine)
    yield drive
    drive.stop()


@pytest.fixture(name="tree")
def _tree(folder):
    """Two hundred files, three of them infected, and what a walker may fall over."""
    top = os.path.join(folder, "tree")
    for d in range(10):
        os.makedirs(os.path.join(top, f"d{d}", "e"))
        for n in range(20):
            put(os.path.join(top, f"d{d}", "e", f"f{n}"), f"file {d} {n}\n".encode() * 50)
    evil = [put(os.path.join(top, p), b"x" * 100 + MARKER)
            for p in ("evil", "d3/e/evil: OK", "d7/\udce9vil")]
    os.mkfifo(os.path.join(top, "fifo"))
    os.symlink(top, os.path.join(top, "d1", "loop"))
    os.symlink("/proc/kcore", os.path.join(top, "d1", "kcore"))
    put(os.path.join(top, "empty"), b"")
    with open(os.path.join(top, "huge"), "wb") as file:
        file.truncate(3 << 20)
    return top, evil


def test_a_scan_finds_and_cures(drive, tree):
    top, evil = tree
    drive.policy(engine__max_file_size_mib=2)
    run = drive.run("scan", mode="paths", paths=[top], cpu_percent=100)
    done = drive.done(run)
    assert done["outcome"] == "done", done
    counts = done["result"]["counts"]
    assert counts["found"] == counts["cured"] == 3 and counts["errors"] == 0, counts
    assert counts["scanned"] == 204 and counts["skipped"] == 1, counts
    assert counts["total"] == 205
    assert not any(os.path.lexists(p) for p in evil)
    assert len(drive.quarantined()) == 3
    found = drive.events("threat_found")
    assert sorted(f["path"] for f in found) == sorted(
        [evil[0], evil[1], evil[2].replace("\udce9", "?")])
    assert {f["threat"] for f in found} == {"Own.Marker.UNOFFICIAL"}
    assert all(len(f["sha256"]) == 64 and f["size"] == 100 + len(MARKER) for f in found)
    assert len(drive.events("threat_cured")) == len(drive.events("quarantine_added")) == 3
    for name in drive.quarantined():
        with open(os.path.join(drive.state, "quarantine", name), "rb") as file:
            assert MARKER not in file.read()
    assert drive.facts()["threats"] == 0 and drive.facts()["last_scan"] == 0


def test_restore_and_delete(drive, tree):
    top, evil = tree
    drive.policy()
    drive.done(drive.run("scan", mode="paths", paths=[top], cpu_percent=100))
    added = {a["path"]: a for a in drive.events("quarantine_added")}
    run = drive.run("quarantine_restore", item=added[evil[0]]["item"])
    assert drive.done(run)["outcome"] == "done"
    with open(evil[0], "rb") as file:
        assert file.read() == b"x" * 100 + MARKER
    assert drive.events("quarantine_restored")[0]["item"] == added[evil[0]]["item"]
    again = drive.done(drive.run("quarantine_restore", item=added[evil[0]]["item"]))
    assert again["outcome"] == "failed"
    assert drive.done(drive.run("quarantine_delete", item=added[evil[1]]["item"]))["outcome"] \
        == "done"
    assert len(drive.quarantined()) == 1
    # A file that was restored on purpose is not taken again.
    counts = drive.done(drive.run("scan", mode="paths", paths=[top],
                                  cpu_percent=100))["result"]["counts"]
    assert counts["found"] == 0 and os.path.exists(evil[0])


def test_without_quarantine_threats_stay_open(drive, tree):
    top, evil = tree
    drive.policy(quarantine__enabled=False)
    done = drive.done(drive.run("scan", mode="paths", paths=[top], cpu_percent=100))
    assert done["result"]["counts"]["found"] == 3 and done["result"]["counts"]["cured"] == 0
    assert len(drive.events("threat_not_cured")) == 3
    assert drive.facts()["threats"] == 3
    os.unlink(evil[0])
    drive.done(drive.run("scan", mode="paths", paths=[top], cpu_percent=100))
    assert drive.facts()["threats"] == 2
    drive.stop()
    drive.start()  # and it is known after a restart
    assert drive.facts()["threats"] == 2


def test_threats_that_found_no_place_on_the_disk_are_kept_later(drive, tree):
    drive.policy(quarantine__enabled=False)
    full = os.path.join(drive.state, "protect.json.redoubt-new")
    os.mkdir(full)  # as a full disk
    drive.done(drive.run("scan", mode="paths", paths=[tree[0]], cpu_percent=100))
    os.rmdir(full)
    kept = os.path.join(drive.state, "protect.json")
    eventually("they are kept", lambda: os.path.exists(kept))
    drive.process.kill()
    drive.process.wait()
    drive.start()
    assert drive.facts()["threats"] == 3


def test_exclusions(drive, tree):
    top, evil = tree
    drive.policy(exclusions__paths=[f"{top}/d*", f"{top}/huge"])
    counts = drive.done(drive.run("scan", mode="paths", paths=[top],
                                  cpu_percent=100))["result"]["counts"]
    assert counts["total"] == 2 and counts["found"] == 1
    assert os.path.exists(evil[1]) and not os.path.exists(evil[0])


def test_quick_scan_counts_as_the_last_one(drive, tree):
    drive.policy(scan__quick_paths=[tree[0]], scan__cpu_percent=100)
    assert drive.done(drive.run("scan", mode="quick"))["outcome"] == "done"
    assert abs(drive.facts()["last_scan"] - time.time()) < 60


def slow_tree(folder, files=400, size=200_000):
    top = os.path.join(folder, "slow")
    os.mkdir(top)
    for n in range(files):
        put(os.path.join(top, f"f{n}"), os.urandom(32) * (size // 32))
    return top


def test_pause_resume_cancel(drive, folder):
    top = slow_tree(folder)
    drive.policy()
    run = drive.run("scan", mode="paths", paths=[top], cpu_percent=5)
    eventually("it makes progress", lambda: any(m["counts"] and m["counts"]["scanned"] > 3
                                                for m in drive.progress(run)))
    drive.send(do="pause", run=run)
    eventually("it pauses", lambda: drive.progress(run)[-1]["state"] == "paused")
    time.sleep(1)
    first = drive.progress(run)[-1]["counts"]["scanned"]
    time.sleep(1.2)
    assert drive.progress(run)[-1]["counts"]["scanned"] == first
    drive.send(do="resume", run=run)
    eventually("it goes on", lambda: drive.progress(run)[-1]["counts"]["scanned"] > first)
    percents = [m["percent"] for m in drive.progress(run)]
    assert percents == sorted(percents) and percents[-1] < 100
    drive.send(do="cancel", run=run)
    done = drive.done(run)
    assert done["outcome"] == "cancelled" and done["result"]["counts"]["scanned"] < 400


def test_a_limit_of_the_processor_is_kept(drive, folder, engine):
    top = slow_tree(folder, 60, 400_000)
    drive.policy()

    def cpu():
        fields = text_of(f"/proc/{engine.process.pid}/stat").rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    begin, used = time.monotonic(), cpu()
    run = drive.run("scan", mode="paths", paths=[top], cpu_percent=20)
    assert drive.done(run, 120)["outcome"] == "done"
    wall, used = time.monotonic() - begin, cpu() - used
    assert used / wall < 0.30, (used, wall)


def test_clamd_killed_in_the_middle(drive, folder, engine):
    top = slow_tree(folder)
    put(os.path.join(top, "zz-evil"), MARKER)
    drive.policy()
    run = drive.run("scan", mode="paths", paths=[top], cpu_percent=30)
    for n in (1, 2):
        eventually("it makes progress", lambda n=n: any(
            m["counts"] and m["counts"]["scanned"] > 20 * n for m in drive.progress(run)))
        engine.kill()
        eventually("clamd is back", engine.answers, 30)
    done = drive.done(run, 120)
    assert done["outcome"] == "done", done
    counts = done["result"]["counts"]
    assert counts["scanned"] == 401 and counts["found"] == 1 and counts["errors"] == 0, counts


def test_files_that_vanish_are_nothing(drive, folder):
    top = slow_tree(folder, 200, 50_000)
    drive.policy()
    run = drive.run("scan", mode="paths", paths=[top], cpu_percent=20)
    eventually("it began", lambda: any(m["counts"] for m in drive.progress(run)))
    for n in range(0, 200, 2):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(top, f"f{n}"))
    done = drive.done(run, 60)
    assert done["outcome"] == "done" and done["result"]["counts"]["errors"] == 0


@contextlib.contextmanager
def held_quarantine(drive):
    """Whoever wants something of the quarantine waits meanwhile."""
    drive.policy()
    drive.done(drive.run("quarantine_delete", item=str(uuid.uuid4())))
    with open(os.path.join(drive.state, "quarantine", "lock"), "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_a_scan_waits_for_a_free_worker(drive, folder):
    top = slow_tree(folder, 10, 1000)
    with held_quarantine(drive):
        many = [drive.run("quarantine_delete", item=str(uuid.uuid4())) for _ in range(20)]
        scan = drive.run("scan", mode="paths", paths=[top], cpu_percent=100)
        time.sleep(1)
        assert drive.facts()
    assert [drive.done(run)["outcome"] for run in many] == ["failed"] * 20
    assert drive.done(scan)["outcome"] == "done"


def test_a_crash_before_the_server_can_know_loses_no_item(drive, tree):
    """The agent is killed when a file is in the quarantine, and has not heard of it yet."""
    top, evil = tree
    folder = os.path.join(drive.state, "quarantine")
    with held_quarantine(drive):
        drive.run("scan", mode="paths", paths=[top], cpu_percent=100)
        eventually("it has found one", lambda: drive.events("threat_found"))
        drive.process.send_signal(signal.SIGSTOP)
    eventually("all are taken", lambda: not any(os.path.lexists(p) for p in evil))
    time.sleep(0.5)
    assert len(drive.quarantined()) == 3 and not drive.events("quarantine_added")
    drive.process.kill()
    drive.process.wait()
    drive.start()
    eventually("they are told", lambda: len(drive.events("threat_cured")) == 3)
    assert len(drive.events("quarantine_added")) == 3
    assert {e["item"] for e in drive.events("threat_cured")} == set(drive.quarantined())
    drive.stop()
    assert not [n for n in os.listdir(folder) if n.endswith(".untold")]
    drive.start()
    drive.policy()
    drive.done(drive.run("quarantine_delete", item=str(uuid.uuid4())), 30)
    assert len(drive.events("quarantine_added")) == 3


def test_bad_tasks_are_refused_with_words(drive):
    drive.policy()
    for what, params in (("dance", {}), ("scan", {"mode": "all"}), ("scan", {}),
                         ("scan", {"mode": "paths", "paths": ["relative"]}),
                         ("scan", {"mode": "full", "cpu_percent": 500}),
                         ("quarantine_restore", {"item": "../../etc/passwd"}),
                         ("quarantine_delete", {}), ("update", {})):
        done = drive.done(drive.run(what, **params))
        assert done["outcome"] == "failed" and done["result"]["error"], (what, done)


def test_inventory(drive):
    drive.policy()
    assert drive.done(drive.run("inventory"), 60)["outcome"] == "done"
    data, = drive.events("inventory")
    assert data["packages"]["count"] > 50 and data["cpu"]["count"] == os.cpu_count()
    assert data["system"]["kernel"] == os.uname().release and data["disks"]
    assert len(json.dumps(data)) < 16384


# ---- the engine's configuration ----


@pytest.fixture(name="managed")
def _managed(folder, engine):
    before = text_of(engine.conf)
    drive = Drive(folder, engine, clamd_conf=engine.conf)
    yield drive
    drive.stop()
    put(engine.conf, before.encode())
    engine.renew()


def test_the_policy_reaches_the_engine(managed, engine):
    pid = engine.process.pid
    answer = managed.policy(engine__max_file_size_mib=9, engine__threads=4)
    assert answer["ok"], answer
    assert engine.process.pid != pid and engine.answers()
    conf = text_of(engine.conf)
    assert "MaxFileSize 9M\n" in conf and "MaxFileSize 5M" not in conf
    assert "MaxThreads 4\n" in conf and "# a comment\n" in conf and engine.socket in conf
    pid = engine.process.pid
    assert managed.policy(engine__max_file_size_mib=9, engine__threads=4)["ok"]
    assert engine.process.pid == pid, "nothing changed, so it was not restarted"
    eventually("a probe sees the engine", lambda: managed.facts()["up"], 30)
    assert managed.facts()["engine"][0].isdigit()
    own = os.path.getmtime(os.path.join(engine.databases, "own.ndb"))
    assert managed.facts()["built"] == int(own), "clamd tells no date of such databases"


def test_drift_is_seen_and_corrected(managed, engine):
    assert managed.policy(engine__max_file_size_mib=9)["ok"]
    wanted = text_of(engine.conf)
    with open(engine.conf, "a", encoding="ascii") as file:
        file.write("MaxFileSize 1M\n")
    eventually("drift is told", lambda: managed.events("policy_drift"), 30)
    assert text_of(engine.conf) == wanted and engine.answers()
    assert managed.events("policy_drift")[0]["corrected"] is True
    os.unlink(engine.conf)
    eventually("drift is told", lambda: len(managed.events("policy_drift")) == 2, 30)
    assert text_of(engine.conf) == wanted


def test_drift_that_cannot_be_corrected_is_told(managed, engine):
    assert managed.policy(engine__max_file_size_mib=9)["ok"]
    script = text_of(engine.restart)
    try:
        put(engine.restart, b"#!/bin/sh\nexit 7\n")
        with open(engine.conf, "a", encoding="ascii") as file:
            file.write("MaxFileSize 1M\n")
        said = eventually("the policy has failed", lambda: [
            m for m in managed.said if m["hook"] == "policy" and not m["ok"]], 30)
        assert said[0]["why"].startswith("drift: "), said
        assert managed.events("policy_drift")[0]["corrected"] is False
        time.sleep(11)  # it is tried again, and said once
        assert len(managed.events("policy_drift")) == 1
        assert [m["ok"] for m in managed.said if m["hook"] == "policy"] == [True, False]
    finally:
        put(engine.restart, script.encode())
    eventually("it is over", lambda: [m for m in managed.said
                                      if m["hook"] == "policy"][-1]["ok"], 30)


def test_a_crash_before_the_engine_is_restarted_is_made_up_for(managed, engine):
    assert managed.policy(engine__max_file_size_mib=9)["ok"]
    script = text_of(engine.restart)
    try:
        put(engine.restart, b"#!/bin/sh\nexec sleep 60\n")
        managed.send(do="policy", hash="b" * 64,
                     policy={"engine.max_file_size_mib": 7, "onaccess.mode": "off"})
        eventually("it is written", lambda: "MaxFileSize 7M\n" in text_of(engine.conf))
        managed.process.kill()
        managed.process.wait()
    finally:
        put(engine.restart, script.encode())
    pid = engine.process.pid
    managed.start()
    assert managed.policy(engine__max_file_size_mib=7)["ok"]
    assert engine.process.pid != pid, "it never read what was told as applied"
    pid = engine.process.pid
    assert managed.policy(engine__max_file_size_mib=7)["ok"]
    assert engine.process.pid == pid


def test_an_engine_that_cannot_be_restarted_keeps_its_configuration(folder, engine):
    drive = Drive(folder, engine, clamd_conf=engine.conf, engine_restart="/bin/false")
    before = text_of(engine.conf)
    answer = drive.policy(engine__max_file_size_mib=33)
    assert not answer["ok"] and "/bin/false" in answer["why"]
    assert text_of(engine.conf) == before
    done = drive.done(drive.run("restart_engine"))
    assert done["outcome"] == "failed" and "/bin/false" in done["result"]["error"]
    drive.stop()


def test_restart_engine(drive, engine):
    drive.policy()
    pid = engine.process.pid
    assert drive.done(drive.run("restart_engine"), 60)["outcome"] == "done"
    assert engine.process.pid != pid and engine.answers()


# ---- signatures ----


class Mirror:
    """A mirror that serves a folder, or one status for everything."""

    def __init__(self, folder, status=None):
        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *args):
                super().__init__(*args, directory=folder)

            def do_GET(self):  # pylint: disable=invalid-name
                mirror.asked.append(self.path)
                if status:
                    self.send_error(status)
                else:
                    super().do_GET()

            def log_message(self, *_):  # pylint: disable=arguments-differ
                pass

        mirror = self
        self.asked = []
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(name="updating")
def _updating(folder, engine):
    """A device whose engine's folder is known; what it fetched goes away again."""
    known = set(os.listdir(engine.databases))
    own = put(os.path.join(folder, "own-freshclam.conf"), b"")
    drive = Drive(folder, engine, clamd_conf=engine.conf, freshclam_conf=own)
    before = text_of(engine.conf)
    yield drive
    drive.stop()
    for name in set(os.listdir(engine.databases)) - known:
        path = os.path.join(engine.databases, name)
        if os.path.isdir(path):  # .redoubt, of an update that was under way
            shutil.rmtree(path)
        else:
            os.unlink(path)
    put(engine.conf, before.encode())
    engine.renew()


def scan_for(drive, folder, data):
    top = tempfile.mkdtemp(dir=folder)
    put(os.path.join(top, "file"), data)
    done = drive.done(drive.run("scan", mode="paths", paths=[top], cpu_percent=100))
    return done["result"]["counts"]["found"]


@pytest.mark.parametrize("by", ["http", "file"])
def test_own_signatures_reach_the_engine(updating, folder, by):
    source = tempfile.mkdtemp(dir=folder)
    os.chmod(folder, 0o755)
    os.chmod(source, 0o755)
    fresh = f"a fresh marker by {by}".encode()
    put(os.path.join(source, f"{by}.ndb"),
        f"Fresh.{by}:0:*:".encode() + fresh.hex().encode() + b"\n")
    mirror = Mirror(source)
    if by == "http":  # as the policy says
        updating.policy(update__custom_urls=[f"{mirror.url}/{by}.ndb"])
    else:             # as the device's own freshclam.conf says
        put(os.path.join(folder, "own-freshclam.conf"),
            f"DatabaseMirror localhost\nDNSDatabaseInfo no\nChecks 5\nExcludeDatabase main\n"
            f"ExcludeDatabase daily\nExcludeDatabase bytecode\n"
            f"DatabaseCustomURL file://{source}/{by}.ndb\n".encode())
        updating.policy()
    done = updating.done(updating.run("update"), 60)
    assert done["outcome"] == "done", done
    assert updating.events("signatures_updated")
    eventually("the engine has it", lambda: scan_for(updating, folder, fresh) == 1, 30)
    eventually("it is told", lambda: abs(updating.facts()["built"] - time.time()) < 60)
    before = len(updating.events("signatures_updated"))
    assert updating.done(updating.run("update"), 60)["outcome"] == "done"
    assert len(updating.events("signatures_updated")) == before, "nothing new"
    mirror.stop()


def test_a_mirror_that_refuses_is_told(updating, folder):
    mirror = Mirror(folder, 403)
    updating.policy(update__source=mirror.url)
    done = updating.done(updating.run("update"), 60)
    assert done["outcome"] == "failed" and "ends with 11" in done["result"]["error"], done
    assert mirror.asked
    failed = updating.events("signature_update_failed")
    assert failed and failed[0]["exit"] == 11 and "ERROR" in failed[0]["output"]
    assert 270 <= failed[0]["again_s"] <= 330, "nobody's mirror is asked by all, all the time"
    # freshclam waits for a day now, and ends with 0: that is no success.
    done = updating.done(updating.run("update"), 60)
    assert done["outcome"] == "failed" and "waits until 2" in done["result"]["error"], done
    later = [event["again_s"] for event in updating.events("signature_update_failed")[1:]]
    assert later and 540 <= later[0] <= 660, later
    mirror.stop()
    # Another source may be asked at once.
    put(os.path.join(folder, "else.ndb"), b"Else:0:*:" + b"elsewhere".hex().encode() + b"\n")
    mirror = Mirror(folder)
    updating.policy(update__custom_urls=[f"{mirror.url}/else.ndb"])
    done = updating.done(updating.run("update"), 60)
    assert done["outcome"] == "done", done
    mirror.stop()


def test_the_policy_schedules_updates(updating, folder):
    mirror = Mirror(folder)
    put(os.path.join(folder, "plan.ndb"), b"Plan:0:*:" + b"planned".hex().encode() + b"\n")
    updating.policy(update__custom_urls=[f"{mirror.url}/plan.ndb"])
    # The first one comes within a minute, at a moment of its own.
    eventually("freshclam asks", lambda: "/plan.ndb" in mirror.asked, 90)
    mirror.stop()


# ---- on-access ----


def can_watch():
    """fanotify with permission events needs the right to administrate the system."""
    import ctypes  # pylint: disable=import-outside-toplevel
    fd = ctypes.CDLL(None).fanotify_init(0x4, 0)
    if fd >= 0:
        os.close(fd)
    return fd >= 0


@pytest.fixture(name="watched")
def _watched(folder, engine):
    """A file system of its own: nobody else's files wait for us, whatever goes wrong."""
    if not can_watch():
        pytest.skip("fanotify is not permitted here")
    top = os.path.join(folder, "watched")
    os.mkdir(top)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", top], check=True)
    drive = Drive(folder, engine)
    drive.top = top
    yield drive
    drive.stop()
    subprocess.run(["umount", "--lazy", top], check=True)  # clamd may look at a file still


def watch(drive, mode, **settings):
    drive.policy(onaccess__mode=mode, onaccess__paths=[drive.top], **settings)
    eventually(f"it watches\n{drive.said[-5:]}", lambda: drive.facts()["realtime"] == mode)


def can_open(path, seconds=20):
    """None while it waits for longer; else whether it may be opened, and how long it took."""
    begin = time.monotonic()
    done = subprocess.run(["cat", path], capture_output=True, timeout=seconds, check=False)
    return done.returncode == 0, time.monotonic() - begin


def children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(n) for n in file.read().split()]


def listener_of(drive):
    """(watchman, listener)"""
    for pid in children_of(drive.process.pid):
        if text_of(f"/proc/{pid}/comm").strip() == "redoubt-watch":
            kids = children_of(pid)
            if kids:
                return pid, kids[0]
    return None


def test_notify_takes_what_is_written(watched):
    watch(watched, "notify")
    path = put(os.path.join(watched.top, "evil"), MARKER)
    eventually("it is gone", lambda: not os.path.exists(path))
    eventually("it is told", lambda: watched.events("threat_cured"))
    assert watched.events("threat_found")[0]["by"] == "on-access"
    assert watched.events("threat_found")[0]["path"] == path
    good = put(os.path.join(watched.top, "good"), b"nothing")
    time.sleep(0.5)
    assert os.path.exists(good) and len(watched.events("threat_found")) == 1


def test_what_is_written_while_the_engine_is_away_is_not_forgotten(watched, engine):
    watch(watched, "notify")
    engine.wanted = False
    engine.kill()
    engine.thread.join()
    paths = [put(os.path.join(watched.top, f"evil{n}"), MARKER + b"%d" % n) for n in range(100)]
    time.sleep(1)
    engine.begin()
    eventually("all are taken", lambda: not any(os.path.exists(p) for p in paths), 40)
    eventually("all are told", lambda: len(watched.events("threat_cured")) == 100)


def test_a_threat_that_no_worker_can_cure_is_told(watched):
    watch(watched, "notify")
    watched.done(watched.run("quarantine_delete", item=str(uuid.uuid4())))
    key = os.path.join(watched.state, "quarantine", "key")
    os.chmod(key, 0o644)  # as one that is damaged
    evil = put(os.path.join(watched.top, "evil"), b"x" + MARKER)
    told, = eventually("it is told", lambda: watched.events("threat_not_cured"))
    assert told["path"] == evil and told["threat"] == "Own.Marker.UNOFFICIAL"
    assert told["by"] == "on-access" and "key" in told["why"], told
    assert len(watched.events("threat_found")) == 1
    os.chmod(key, 0o600)
    put(os.path.join(watched.top, "more"), b"x" + MARKER)
    eventually("the next one is cured", lambda: watched.events("threat_cured"))


def test_a_worker_that_dies_is_followed_by_another(watched):
    with held_quarantine(watched):
        watch(watched, "notify")
        evil = put(os.path.join(watched.top, "evil"), b"x" + MARKER)
        worker, = eventually("one is at it", lambda: workers(watched))
        os.kill(worker, signal.SIGKILL)
    eventually("it is cured", lambda: watched.events("threat_cured"))
    assert not os.path.exists(evil)


def workers(drive):
    children = text_of(f"/proc/{drive.process.pid}/task/{drive.process.pid}/children").split()
    return [int(p) for p in children if "redoubt-scanner" in text_of(f"/proc/{p}/comm")]


def test_a_new_policy_loses_no_threat_while_many_wait(watched):
    def write(name):
        put(os.path.join(watched.top, name), b"x" + MARKER)

    with held_quarantine(watched):
        watch(watched, "notify")
        for n in range(80):
            write(f"evil{n}")
        eventually("it has as many as it takes", lambda: held_files(watched) >= 64)
        watch(watched, "notify", onaccess__max_file_mib=7)
        for n in range(3):
            write(f"more{n}")
        time.sleep(1)
    eventually("they are cured", lambda: not [
        n for n in os.listdir(watched.top) if n.startswith("more")])


def held_files(drive):
    folder = f"/proc/{drive.process.pid}/fd"
    return sum(drive.top in os.readlink(os.path.join(folder, n)) for n in os.listdir(folder))


def test_block_refuses_the_open(watched):
    evil = put(os.path.join(watched.top, "evil"), MARKER)
    good = put(os.path.join(watched.top, "good"), b"nothing")
    excluded = put(os.path.join(watched.top, "excluded"), MARKER)
    watch(watched, "block", quarantine__enabled=False, exclusions__paths=[excluded],
          onaccess__timeout_ms=15000)
    assert can_open(good)[0] and can_open(excluded)[0]
    assert not can_open(evil)[0] and not can_open(evil)[0]
    eventually("it is told", lambda: watched.events("threat_not_cured"))
    assert len(watched.events("threat_found")) == 1, "once, though it was tried twice"
    put(good, MARKER)  # what was clean is looked at again when it changed
    assert not can_open(good)[0]
    watched.policy(onaccess__mode="off")
    assert can_open(evil)[0] and watched.facts()["realtime"] == "off"


def test_a_file_that_was_restored_may_be_opened(watched):
    evil = put(os.path.join(watched.top, "evil"), MARKER)
    watch(watched, "block", onaccess__timeout_ms=15000)
    assert not can_open(evil)[0]
    item = eventually("it is taken", lambda: watched.events("quarantine_added"))[0]["item"]
    assert not os.path.exists(evil)
    assert watched.done(watched.run("quarantine_restore", item=item))["outcome"] == "done"
    assert can_open(evil)[0]


def test_a_hanging_engine_delays_nobody_longer_than_allowed(watched, engine):
    evil = put(os.path.join(watched.top, "evil"), MARKER)
    watch(watched, "block", onaccess__timeout_ms=600, quarantine__enabled=False)
    engine.kill(signal.SIGSTOP)
    try:
        allowed, took = can_open(evil)
        assert allowed and 0.4 < took < 4.5, took
    finally:
        engine.kill(signal.SIGCONT)
    # The verdict came after all.
    eventually("it is told", lambda: watched.events("threat_found"))
    eventually("it is refused now", lambda: not can_open(evil)[0])
    eventually("what passed is told", lambda: watched.events("onaccess_missed"), 90)
    assert watched.events("onaccess_missed")[0]["late"] >= 1


def test_a_dead_engine_lets_everybody_pass(watched, engine):
    files = [put(os.path.join(watched.top, f"f{n}"), b"nothing %d" % n) for n in range(5)]
    watch(watched, "block", onaccess__timeout_ms=2000)
    engine.kill()
    for path in files:
        allowed, took = can_open(path)
        assert allowed and took < 5, took
    eventually("clamd is back", engine.answers, 30)


def test_a_hanging_listener_is_ended(watched):
    path = put(os.path.join(watched.top, "f"), b"nothing")
    watch(watched, "block")
    _, listener = listener_of(watched)
    os.kill(listener, signal.SIGSTOP)
    allowed, took = can_open(path)
    assert allowed and took < 10, took
    eventually("it is told", lambda: watched.events("realtime_failed"))
    assert "hung" in watched.events("realtime_failed")[0]["why"]
    eventually("it watches again", lambda: watched.facts()["realtime"] == "block", 20)
    assert can_open(path)[0]


@pytest.mark.parametrize("who", ["listener", "watchman", "agent"])
def test_a_dead_part_hangs_nobody(watched, who):
    path = put(os.path.join(watched.top, "f"), b"nothing")
    watch(watched, "block")
    watchman, listener = listener_of(watched)
    victim = {"listener": listener, "watchman": watchman, "agent": watched.process.pid}[who]
    os.kill(victim, signal.SIGKILL)
    allowed, took = can_open(path)
    assert allowed and took < 6, took
    eventually("the old listener is gone", lambda: not os.path.exists(f"/proc/{listener}"))
    if who == "agent":
        watched.process.wait()
        watched.start()
    else:
        eventually("it watches again", lambda: watched.facts()["realtime"] == "block", 20)


def test_a_stopped_agent_delays_nobody(watched):
    good = put(os.path.join(watched.top, "good"), b"nothing")
    evil = put(os.path.join(watched.top, "evil"), MARKER)
    watch(watched, "block", quarantine__enabled=False, onaccess__timeout_ms=15000)
    watched.process.send_signal(signal.SIGSTOP)
    try:
        assert can_open(good)[0]
        assert not can_open(evil)[0]
    finally:
        watched.process.send_signal(signal.SIGCONT)
    eventually("it is told", lambda: watched.events("threat_found"))


def test_a_scan_and_on_access_do_not_wait_for_each_other(watched):
    for n in range(100):
        put(os.path.join(watched.top, f"f{n}"), b"nothing %d" % n)
    watch(watched, "block", onaccess__timeout_ms=20000)
    begin = time.monotonic()
    run = watched.run("scan", mode="paths", paths=[watched.top], cpu_percent=100)
    counts = watched.done(run)["result"]["counts"]
    assert counts["scanned"] == 100 and counts["errors"] == 0
    assert time.monotonic() - begin < 20
