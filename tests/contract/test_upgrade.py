"""The agent replaces itself with what the server offers, or stays as it is and says why.  The
packages are installed by the real dpkg, into a root of their own that the agent runs from."""
import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

import pytest

from device_world import AGENT, Certificates, eventually, parse
from package_world import (BACK, BROKEN, DOWNLOADING, INSTALLED, INSTALLING, INSTALL_FAILED,
                           SILENT, Signer, Web, available, build_deb, statuses)
from server_world import Server

OLD, NEW = "0.1.0", "0.2.0"
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="dpkg installs for root only")


@pytest.fixture(scope="module", name="folder")
def _folder():
    with tempfile.TemporaryDirectory(prefix="redoubt-upgrade-") as path:
        yield path


@pytest.fixture(scope="module", name="certificates")
def _certificates(folder):
    certificates = Certificates(folder)
    certificates.device("one")
    certificates.authority("other")
    return certificates


@pytest.fixture(scope="module", name="signer")
def _signer(certificates):
    return Signer(certificates)


@pytest.fixture(scope="module", name="shelf")
def _shelf(folder):
    """Where packages lie; the old and a new one, built once."""
    shelf = os.path.join(folder, "shelf")
    os.mkdir(shelf)
    return {"folder": shelf, OLD: build_deb(shelf, OLD), NEW: build_deb(shelf, NEW)}


@pytest.fixture(name="server")
def _server(certificates):
    server = Server(certificates)
    yield server
    server.stop()


@pytest.fixture(name="web")
def _web(shelf):
    web = Web(shelf["folder"])
    yield web
    web.stop()


class Device:
    """A root with the old package installed, and its agent running from there."""

    def __init__(self, folder, server, certificates, shelf, **conf):
        self.folder = tempfile.mkdtemp(dir=folder)
        self.root, self.state = (os.path.join(self.folder, n) for n in ("root", "state"))
        self.installs = os.path.join(self.folder, "installs")
        self.base = ["dpkg", f"--root={self.root}", f"--log={self.folder}/dpkg.log"]
        for sub in ("var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/dpkg/triggers"):
            os.makedirs(os.path.join(self.root, sub))
        open(os.path.join(self.root, "var/lib/dpkg/status"), "w", encoding="ascii").close()
        os.makedirs(os.path.join(self.state, "package"))
        shutil.copy(shelf[OLD], os.path.join(self.state, "package", OLD + ".deb"))
        self.dpkg("--install", shelf[OLD])
        self.program = os.path.join(self.root, "usr/lib/redoubt/redoubt-agent")
        # Counts what it is asked to do, and leaves the doing to dpkg.
        self.command = os.path.join(self.folder, "install")
        self.slow = os.path.join(self.folder, "slow")
        self.refused = os.path.join(self.folder, "refused")  # a package that does not install
        with open(self.command, "w", encoding="ascii") as file:
            file.write(f"#!/bin/sh\necho \"$1\" >>{self.installs}\n"
                       f"while [ -e {self.slow} ]; do sleep 0.1; done\n"
                       f"if [ \"$1\" = \"$(cat {self.refused})\" ]; then\n"
                       "    echo no room; exit 1\nfi\n"
                       f"exec {' '.join(self.base)} --install \"$1\"\n")
        os.chmod(self.command, 0o755)
        values = {"server": f"127.0.0.1:{server.port}", "server_name": "redoubt",
                  "certificate": certificates.path("one.pem"),
                  "key": certificates.path("one.key"), "ca": certificates.path("ca.pem"),
                  "spool": os.path.join(self.folder, "spool.db"), "state_dir": self.state,
                  "clamd": os.path.join(self.folder, "no-clamd"), "report_ms": 60000,
                  "upgrade": self.command, "upgrade_confirm_s": 30, **conf}
        self.conf = os.path.join(self.folder, "agent.conf")
        with open(self.conf, "w", encoding="ascii") as file:
            file.write("[agent]\n" + "".join(f"{k}={v}\n" for k, v in values.items())
                       + "[log]\nlevel=debug\n")
        self.process = None
        self.notes = []  # what the agent told systemd, or who plays it
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(os.path.join(self.folder, "notify"))
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        """At once: the socket holds ten of them, and the next one is lost."""
        while note := self.notify.recv(4096):
            self.notes.append(note.decode())

    def start(self):
        with open(os.path.join(self.folder, "log"), "ab") as log:
            self.process = subprocess.Popen(
                [self.program, "--config", self.conf], stderr=log, stdin=subprocess.DEVNULL,
                env=dict(os.environ, NOTIFY_SOCKET=os.path.join(self.folder, "notify")))
        return self

    def dpkg(self, *argv):
        return subprocess.run([*self.base, *argv], check=True, text=True,
                              capture_output=True).stdout

    def has(self):
        done = subprocess.run(["dpkg-query", f"--admindir={self.root}/var/lib/dpkg", "-W", "-f",
                               "${Version} ${Status}", "redoubt-agent"], check=True, text=True,
                              capture_output=True)
        return done.stdout.split(" ", 1)

    def installed(self):
        """What the command was asked to install, in order."""
        if not os.path.exists(self.installs):
            return []
        with open(self.installs, encoding="ascii") as file:
            return [os.path.basename(line.strip())[:-len(".deb")] for line in file]

    def running(self):
        """Processes of this root and of its folder: agents and supervisors."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    line = file.read().split(b"\0")
                with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
                    dead = file.read().rsplit(")", 1)[1].split()[0] == "Z"
            except OSError:
                continue
            if not dead and any(self.folder.encode() in word for word in line):
                found.append((int(pid), line))
        return found

    def agents(self):
        return [pid for pid, line in self.running() if b"--config" in line]

    def log_text(self):
        with open(os.path.join(self.folder, "log"), encoding="utf-8", errors="replace") as f:
            return f.read()

    def stop(self):
        """As a power cut does: none of them acts on the death of another."""
        for _ in range(500):
            left = self.running()
            if not left:
                break
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for pid, _ in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
            if self.process:
                self.process.poll()
            time.sleep(0.02)
        if self.process:
            self.process.wait(20)
            text = self.log_text()
            assert "BUG" not in text and "Sanitizer" not in text, text


@pytest.fixture(name="make")
def _make(folder, server, certificates, shelf):
    made = []

    def make(**conf):
        made.append(Device(folder, server, certificates, shelf, **conf).start())
        server.connected(30)
        eventually("says what it has", lambda: statuses(server), 30)
        return made[-1]

    yield make
    for device in made:
        device.stop()
        device.notify.shutdown(socket.SHUT_RDWR)


def offer(server, signer, web, path, version=NEW, **change):
    with open(path, "rb") as file:
        data = file.read()
    server.told_before = len(statuses(server))
    what = {"name": "redoubt-agent", "url": web.url(path),
            "digest": hashlib.sha256(data).digest(), "signature": signer.sign(data), **change}
    server.offer(available(version=version, **what))


def ends(server, status, seconds=60):
    """The last word of the device about what it was offered."""
    def told():
        found = [s for s in statuses(server)[server.told_before:] if s[2]]
        return found[-1] if found and found[-1][0] in (INSTALLED, INSTALL_FAILED) else None

    last = eventually("the device tells how it ended", told, seconds)
    assert last[0] == status, last
    return last


def test_the_new_agent_takes_over_and_says_so(make, server, web, shelf, signer):
    device = make()
    assert statuses(server)[-1][:3] == (INSTALLED, OLD, "")
    with server.lock:
        assert server.messages[-1][4][0] & 0x18 == 0x18
    offer(server, signer, web, shelf[NEW])
    assert ends(server, INSTALLED)[:3] == (INSTALLED, NEW, NEW)
    words = [s[0] for s in statuses(server)]
    assert DOWNLOADING in words and words.index(DOWNLOADING) < words.index(INSTALLING)
    assert device.has() == [NEW, "install ok installed"]
    eventually("the same process became the new program",
               lambda: device.agents() == [device.process.pid])
    eventually("systemd hears of it", lambda: device.notes.count("READY=1") == 2)
    assert server.description()[1]["agent.version"] == NEW
    eventually("the event", lambda: server.of_kind("agent_upgraded"))
    assert server.of_kind("agent_upgraded")[0]["data"] == {"version": NEW, "from": OLD}
    eventually("the supervisor ends",
               lambda: not [1 for _, line in device.running() if b"--supervise" in line])

    # Back goes it only when that is an order, as below.
    offer(server, signer, web, shelf[OLD], OLD)
    assert "lower" in ends(server, INSTALL_FAILED)[3] and device.installed() == [NEW]


def test_a_program_that_does_not_run_is_taken_back_at_once(make, server, web, shelf, signer):
    device = make()
    path = build_deb(shelf["folder"], "0.3.0", BROKEN)
    offer(server, signer, web, path, "0.3.0")
    why = ends(server, INSTALL_FAILED)[3]
    assert "does not run as version 0.3.0" in why and f"{OLD} was put back" in why
    assert device.has() == [OLD, "install ok installed"]
    assert device.installed() == ["0.3.0", OLD]
    eventually("an agent runs", device.agents, 20)
    eventually("the event", lambda: server.of_kind("agent_upgrade_failed"), 20)
    # The same offer again is answered, not tried.
    before = len(web.requests)
    server.connected(20)
    offer(server, signer, web, path, "0.3.0")
    ends(server, INSTALL_FAILED)
    assert len(web.requests) == before and device.installed() == ["0.3.0", OLD]


def test_an_agent_that_never_reaches_the_server_is_replaced(make, server, web, shelf, signer):
    device = make(upgrade_confirm_s=2)
    path = build_deb(shelf["folder"], "0.4.0", SILENT)
    offer(server, signer, web, path, "0.4.0")
    why = ends(server, INSTALL_FAILED)[3]
    assert "did not reach the server within 2 s" in why and f"{OLD} was put back" in why
    assert device.has() == [OLD, "install ok installed"]
    eventually("one agent runs", lambda: len(device.agents()) == 1)
    assert server.description()[1]["agent.version"] == OLD


def test_a_device_that_stops_in_the_middle_goes_back(make, server, web, shelf, signer):
    device = make()
    open(device.slow, "w", encoding="ascii").close()
    offer(server, signer, web, shelf[NEW])
    eventually("it is being installed", lambda: device.installed() == [NEW], 20)
    device.stop()  # with all its processes, as a power cut does
    os.remove(device.slow)
    device.start()
    why = ends(server, INSTALL_FAILED)[3]
    assert "stopped in the middle" in why and f"{OLD} was put back" in why
    assert device.has()[0] == OLD and device.installed() == [NEW, OLD]


def test_an_agent_that_dies_while_it_is_replaced_does_not_matter(make, server, web, shelf, signer):
    device = make()
    open(device.slow, "w", encoding="ascii").close()
    offer(server, signer, web, shelf[NEW])
    eventually("it is being installed", lambda: device.installed() == [NEW], 20)
    device.process.kill()
    device.process.wait()
    device.start()
    os.remove(device.slow)
    assert ends(server, INSTALLED)[:3] == (INSTALLED, NEW, NEW)
    assert device.installed() == [NEW], "once"


def refuse_the_way_back(device):
    with open(device.refused, "w", encoding="ascii") as file:
        file.write(os.path.join(device.state, "package", OLD + ".deb"))


def test_what_cannot_be_put_back_is_told_and_another_rollout_helps(make, server, web, shelf, signer):
    device = make()
    refuse_the_way_back(device)
    offer(server, signer, web, build_deb(shelf["folder"], "0.5.0", BROKEN), "0.5.0")
    why = ends(server, INSTALL_FAILED, 90)[3]
    assert "does not run as version 0.5.0" in why and f"{OLD} could not be put back" in why
    assert "no room" in why and "start another rollout" in why
    assert device.installed() == ["0.5.0"] + [OLD] * 3
    (event,) = eventually("the event", lambda: server.of_kind("agent_put_back_failed"))
    assert event["data"] == {"version": "0.5.0", "from": OLD, "why": why}
    offer(server, signer, web, shelf[NEW], order=b"2")
    assert ends(server, INSTALLED, 60)[:3] == (INSTALLED, NEW, NEW)
    assert device.has() == [NEW, "install ok installed"]
    eventually("the supervisor ends",
               lambda: not [1 for _, line in device.running() if b"--supervise" in line])
    assert device.installed()[-1] == NEW


def test_who_is_being_put_back_is_so_after_a_power_cut_too(make, server, web, shelf, signer):
    """Whatever else was offered meanwhile; and what was told is told once."""
    device = make()
    refuse_the_way_back(device)
    open(device.slow, "w", encoding="ascii").close()
    offer(server, signer, web, shelf[NEW])
    eventually("it is being installed", lambda: device.installed() == [NEW], 20)
    device.stop()
    os.remove(device.slow)
    device.start()
    assert "could not be put back" in ends(server, INSTALL_FAILED, 90)[3]
    offer(server, signer, web, shelf[NEW], "0.6.0", order=b"2")
    assert "not redoubt-agent 0.6.0" in ends(server, INSTALL_FAILED)[3]
    device.stop()
    os.remove(device.refused)
    tried = len(device.installed())
    device.start()
    eventually("it is put back", lambda: len(device.installed()) == tried + 1, 20)
    eventually("the supervisor ends",
               lambda: not [1 for _, line in device.running() if b"--supervise" in line])
    assert device.has() == [OLD, "install ok installed"]
    eventually("one agent runs", lambda: len(device.agents()) == 1)
    eventually("it was told", lambda: server.of_kind("agent_put_back_failed"))
    assert len(server.of_kind("agent_put_back_failed")) == 1


def test_another_offer_waits_until_the_first_has_ended(make, server, web, shelf, signer):
    device = make()
    open(device.slow, "w", encoding="ascii").close()
    offer(server, signer, web, shelf[NEW])
    eventually("it is being installed", lambda: device.installed() == [NEW], 20)
    with open(shelf[OLD], "rb") as file:
        data = file.read()
    back = available("redoubt-agent", OLD, web.url(shelf[OLD]), hashlib.sha256(data).digest(),
                     signer.sign(data), headers=[BACK], order=b"2")

    def insist(message, first):
        """As the real one does: whoever tells another hash is offered it again."""
        told = parse(message[8][0]).get(1) if 8 in message else None
        fresh = told and OLD.encode() not in parse(parse(told[0])[2][0]).get(4, [])
        return server.usual(message, first) + ([back] if fresh else [])

    server.answer = insist
    server.offer(back)
    before = len(server.messages)
    server.say(back)
    os.remove(device.slow)
    eventually("the old one is back", lambda: statuses(server)[-1][:3] == (INSTALLED, OLD, OLD), 60)
    assert device.installed() == [NEW, OLD]
    assert len(server.messages) - before < 60, "no ping-pong"


def test_another_installation_is_waited_for(make, server, web, shelf, signer):
    device = make()
    with open(os.path.join(device.root, "var/lib/dpkg/lock-frontend"), "w",
              encoding="ascii") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        offer(server, signer, web, shelf[NEW])
        eventually("it tries again", lambda: device.installed()[:2] == [NEW, NEW], 20)
        assert statuses(server)[-1][0] == INSTALLING
    ends(server, INSTALLED)
    assert set(device.installed()) == {NEW} and device.has()[0] == NEW


def test_a_download_goes_on_where_it_broke(make, server, web, shelf, signer):
    """And what is not there yet is asked for again."""
    device = make()
    web.cut, web.missing = 100_000, 1
    offer(server, signer, web, shelf[NEW], headers=[("X-Asked", "for")])
    ends(server, INSTALLED)
    ranges = [headers.get("Range") for _, headers in web.requests]
    assert ranges == [None, None, "bytes=100000-"], ranges
    assert web.requests[0][1]["X-Asked"] == "for"
    assert device.installed() == [NEW]


def test_what_ignores_ranges_is_asked_for_all(make, server, web, shelf, signer):
    device = make()
    web.cut, web.ranges = 100_000, False
    offer(server, signer, web, shelf[NEW])
    ends(server, INSTALLED)
    ranges = [headers.get("Range") for _, headers in web.requests]
    assert ranges == [None, "bytes=100000-", None] and device.installed() == [NEW]


def test_over_tls_the_web_server_must_be_the_clusters(make, server, shelf, signer, certificates):
    device = make()
    certificates.sign("fake", "redoubt", "DNS:redoubt,IP:127.0.0.1", "serverAuth", "other")
    stranger = Web(shelf["folder"], Names(certificates, "fake"))
    offer(server, signer, stranger, shelf[NEW])
    assert "certificate does not verify" in ends(server, INSTALL_FAILED)[3]
    stranger.stop()
    assert not stranger.requests and device.installed() == []
    own = Web(shelf["folder"], certificates)
    offer(server, signer, own, shelf[NEW], order=b"2")
    ends(server, INSTALLED)
    own.stop()
    assert device.installed() == [NEW]


class Names:
    """Certificates of which another one is the server's."""

    def __init__(self, certificates, name):
        self.certificates, self.name = certificates, name

    def path(self, name):
        return self.certificates.path(name.replace("server", self.name))


def test_a_full_disk_is_a_reason(make, server, web, shelf, signer):
    device = make()
    package = os.path.join(device.state, "package")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", package], check=True)
    try:
        offer(server, signer, web, shelf[NEW])
        assert "No space left" in ends(server, INSTALL_FAILED)[3]
        assert device.installed() == [] and device.has()[0] == OLD
        assert not os.listdir(package)
    finally:
        subprocess.run(["umount", "-l", package], check=True)


def test_who_cannot_note_what_it_is_at_does_not_begin(make, server, web, shelf, signer):
    """Its successor would not know that it has to say so, and would be put back."""
    device = make()
    os.mkdir(os.path.join(device.state, "upgrade.new"))  # as a full disk
    offer(server, signer, web, shelf[NEW])
    assert "upgrade" in ends(server, INSTALL_FAILED)[3]
    assert device.installed() == [] and device.has()[0] == OLD
    os.rmdir(os.path.join(device.state, "upgrade.new"))
    offer(server, signer, web, shelf[NEW], order=b"2")
    assert ends(server, INSTALLED)[:3] == (INSTALLED, NEW, NEW)


def foreign(shelf, signer, certificates):
    del shelf, signer
    other = Signer(certificates, "foreign", "other")
    return {"sign": other}, "authority"


def not_for_code(shelf, signer, certificates):
    del shelf, signer
    return {"sign": Signer(certificates, "tls", usage="serverAuth")}, "sign"


def platform(shelf, signer, certificates):
    del signer, certificates
    return {"path": build_deb(shelf["folder"], NEW, platform="s390x")}, "platform s390x"


def another_name(shelf, signer, certificates):
    del signer, certificates
    return {"path": build_deb(shelf["folder"], NEW, name="other-agent")}, "other-agent"


def another_version(shelf, signer, certificates):
    del signer, certificates
    return {"version": "0.2.5"}, "not redoubt-agent 0.2.5"


def wrong_digest(shelf, signer, certificates):
    del shelf, signer, certificates
    return {"digest": bytes(32)}, "SHA-256"


def truncated(shelf, signer, certificates):
    del certificates
    with open(shelf[NEW], "rb") as file:
        data = file.read()
    path = os.path.join(shelf["folder"], "half.deb")
    with open(path, "wb") as file:
        file.write(data[:len(data) // 2])
    return {"path": path, "digest": hashlib.sha256(data).digest(),
            "signature": signer.sign(data)}, "SHA-256"


def no_address(shelf, signer, certificates):
    del shelf, signer, certificates
    return {"url": "file:///etc/passwd"}, "http(s)"


def climbing(shelf, signer, certificates):
    del shelf, signer, certificates
    return {"version": "1/../../x"}, "version"


def test_what_is_not_right_is_refused(make, server, web, shelf, signer, certificates):
    device = make()
    for number, case in enumerate((foreign, not_for_code, platform, another_name,
                                   another_version, wrong_digest, truncated, no_address,
                                   climbing)):
        change, why = case(shelf, signer, certificates)
        offer(server, change.pop("sign", signer), web, change.pop("path", shelf[NEW]),
              change.pop("version", NEW), order=str(number).encode(), **change)
        assert why in ends(server, INSTALL_FAILED)[3], case
        left = os.listdir(os.path.join(device.state, "package"))
        assert not [name for name in left if name.endswith(".part")], (case, left)
    eventually("the events", lambda: len(server.of_kind("agent_upgrade_failed")) == 9)
    assert device.installed() == [] and device.has()[0] == OLD


def test_what_is_too_big_is_refused(make, server, web, shelf, signer):
    device = make(upgrade_max_mib=1)
    path = os.path.join(shelf["folder"], "big.deb")
    with open(path, "wb") as file:
        file.write(os.urandom(1 << 20) + b"x")
    offer(server, signer, web, path)
    assert "longer than 1048576 bytes" in ends(server, INSTALL_FAILED)[3]
    assert device.installed() == []


def test_without_a_command_packages_are_refused(make, server, web, shelf, signer):
    device = make(upgrade="")
    offer(server, signer, web, shelf[NEW])
    assert "[agent] upgrade in agent.conf is empty" in ends(server, INSTALL_FAILED)[3]
    assert device.installed() == [] and not web.requests


def test_nothing_is_installed_without_a_way_back(make, server, web, shelf, signer):
    device = make()
    os.remove(os.path.join(device.state, "package", OLD + ".deb"))
    offer(server, signer, web, shelf[NEW])
    assert "no way back" in ends(server, INSTALL_FAILED)[3]
    assert device.installed() == [] and device.has()[0] == OLD


def test_a_damaged_package_is_no_way_back(make, server, web, shelf, signer):
    device = make()
    with open(shelf[OLD], "rb") as file:
        whole = file.read()
    for number, left in enumerate((b"", bytes(len(whole)), whole[:100])):
        with open(os.path.join(device.state, "package", OLD + ".deb"), "wb") as file:
            file.write(left)
        offer(server, signer, web, shelf[NEW], order=str(number).encode())
        assert "no way back" in ends(server, INSTALL_FAILED)[3]
    assert device.installed() == [] and device.has()[0] == OLD


def test_the_version_is_that_of_the_package():
    done = subprocess.run([AGENT, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("redoubt-agent ")
