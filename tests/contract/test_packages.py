"""Packages and the store from the command line: real smbd, PostgreSQL and redoubt-manager; signatures
by openssl."""
import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time

import psycopg2
import pytest

import test_ctl
from device_world import Certificates, Postgres, eventually
from manager_world import Manager
from package_tour import Signer, openssl

REDOUBT = os.environ["REDOUBT"]
CONF = """[cluster]
name = demo
node = node-a
peer = node-b
key_file = {dir}/cluster.key
run_dir = {run}
[share]
state = //127.0.0.1/state
data = //127.0.0.1/{share}
credentials = {dir}/smb.cred
port = {port}
[database]
conninfo = {conninfo}
[address]
mode = none
[trust]
folder = {dir}/trust
[web]
store = {dir}/store
"""
# The same folder, but the server says that of 16 MiB half are free.
SMALL = "[small]\npath = {dir}/data\nread only = no\ndfree command = {dir}/dfree\n"
SIZE = 32 * 1024 * 1024


class World:
    def __init__(self, folder):
        self.folder = folder
        self.database = Postgres(folder)
        with open(f"{folder}/dfree", "w", encoding="ascii") as file:
            file.write("#!/bin/sh\necho 16384 8192\n")
        os.chmod(f"{folder}/dfree", 0o755)
        conf, test_ctl.SMB_CONF = test_ctl.SMB_CONF, test_ctl.SMB_CONF + SMALL
        try:
            self.files = test_ctl.FileServer(folder)
        finally:
            test_ctl.SMB_CONF = conf
        self.certificates = Certificates(folder)
        self.trust = os.path.join(folder, "trust")
        os.mkdir(self.trust)
        shutil.copy(self.certificates.path("ca.pem"), self.trust)
        self.signer = self.new_signer("codeSigning")
        with open(f"{self.trust}/package.key", "w", encoding="ascii") as out:
            for name in ("signer.key", "signer.pem"):
                with open(f"{self.signer.folder}/{name}", encoding="ascii") as file:
                    out.write(file.read())
        self.manager = Manager(folder, self.database, self.certificates,
                               f"[trust]\nfolder={self.trust}\n")
        self.manager.wait_note("READY=1")
        self.database.raise_fence(1)
        self.manager.active(1)
        with open(f"{folder}/smb.cred", "w", encoding="ascii") as file:
            file.write("username=root\npassword=secret\n")
        os.chmod(f"{folder}/smb.cred", 0o600)

    def new_signer(self, purpose):
        return Signer(tempfile.mkdtemp(dir=self.folder), self.certificates.path("ca.pem"),
                      self.certificates.path("ca.key"), purpose)

    def stop(self):
        self.manager.stop()
        self.files.stop()
        self.database.stop()

    def argv(self, *args, share="data"):
        conf = f"{self.folder}/{share}.conf"
        with open(conf, "w", encoding="ascii") as file:
            file.write(CONF.format(dir=self.folder, run=self.manager.run, port=self.files.port,
                                   share=share, conninfo=self.database.conninfo()))
        return [REDOUBT, "--config", conf, *args]

    def run(self, *args, code=0, share="data"):
        done = subprocess.run(self.argv(*args, share=share), text=True, capture_output=True,
                              timeout=90, stdin=subprocess.DEVNULL, check=False)
        assert done.returncode == code, (args, done.returncode, done.stdout, done.stderr)
        return done

    def json(self, *args, code=0, share="data"):
        return json.loads(self.run(*args, "--json", code=code, share=share).stdout)

    def fenced(self, statement, *values):
        with contextlib.closing(self.database.connect()) as link, link.cursor() as cursor:
            cursor.execute("SELECT redoubt.announce(1, 'test', 'node-a')")
            cursor.execute(statement, values)

    def on_share(self, folder):
        with contextlib.suppress(FileNotFoundError):
            return sorted(n for n in os.listdir(f"{self.files.folder}/data/{folder}")
                          if n != "clock")
        return []

    def blob(self, sha256):
        return f"{self.files.folder}/data/blob/{sha256}"

    def events(self, kind):
        return [e["data"] for e in self.manager.get(f"/v1/events?after=0&kind={kind}").json["items"]]


@pytest.fixture(scope="module", name="world")
def _world():
    if os.getuid() != 0 or not shutil.which("smbd"):
        pytest.skip("needs root and smbd (package samba)")
    with tempfile.TemporaryDirectory(prefix="redoubt-packages-") as folder:
        os.chmod(folder, 0o755)
        world = World(folder)
        yield world
        world.stop()


@pytest.fixture(name="empty")
def _empty(world):
    for package in world.json("package", "list")["items"]:
        world.run("package", "remove", package["id"], "--yes")
    world.fenced("DELETE FROM redoubt.blob")
    world.files.clear()
    shutil.rmtree(f"{world.folder}/store", ignore_errors=True)
    return world


@pytest.fixture(name="deb")
def _deb(tmp_path):
    root = tmp_path / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        "Package: redoubt-probe\nVersion: 1:2.0~rc1\nArchitecture: amd64\nMaintainer: me <m@e>\n"
        "Description: says hello\n and more\n")
    path = tmp_path / "Redoubt-Probe_2.0.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", root, path], check=True,
                   stdout=subprocess.DEVNULL)
    return path


@pytest.fixture(scope="module", name="large")
def _large(world):
    path = f"{world.folder}/large.bin"
    with open(path, "wb") as file:
        file.write(os.urandom(SIZE))
    return path


def sha256(path):
    return subprocess.run(["sha256sum", path], check=True, capture_output=True,
                          text=True).stdout.split()[0]


def verify_by_hand(world, package):
    """As docs/protocol/data.md says."""
    folder = tempfile.mkdtemp(dir=world.folder)
    signature = base64.b64decode(package["signature"])
    for name, content in (("s", signature[:64]), ("c.der", signature[64:]),
                          ("d", bytes.fromhex(package["sha256"]))):
        with open(f"{folder}/{name}", "wb") as file:
            file.write(content)
    openssl("x509", "-inform", "DER", "-in", f"{folder}/c.der", "-out", f"{folder}/c.pem")
    openssl("verify", "-CAfile", f"{world.trust}/ca.pem", f"{folder}/c.pem")
    key = openssl("x509", "-in", f"{folder}/c.pem", "-pubkey", "-noout")
    with open(f"{folder}/key.pem", "wb") as file:
        file.write(key)
    openssl("pkeyutl", "-verify", "-pubin", "-inkey", f"{folder}/key.pem", "-rawin", "-in",
            f"{folder}/d", "-sigfile", f"{folder}/s")


def test_a_deb_says_its_name_and_version_itself(empty, deb):
    made = empty.json("package", "publish", str(deb))
    assert (made["name"], made["version"], made["platform"]) == (
        "redoubt-probe", "1:2.0~rc1", "amd64")
    assert made["description"] == "says hello"
    assert made["path"] == "public/packages/redoubt-probe/1_2.0~rc1/redoubt-probe_2.0.deb"
    assert made["sha256"] == sha256(deb) == sha256(empty.blob(made["sha256"]))
    assert empty.on_share("upload") == []
    assert empty.json("package", "show", "redoubt-probe=1:2.0~rc1") == made
    assert empty.json("package", "list")["items"] == [made]
    table = empty.run("package", "list").stdout
    assert re.search(r"redoubt-probe +1:2.0~rc1 +amd64", table), table
    published, = empty.database.query("SELECT redoubt.publication_list()")[0]
    entry, = published["entries"]
    assert (entry["path"], entry["blob"], entry["size"]) == (
        made["path"], made["sha256"], os.path.getsize(deb))
    assert empty.events("package_published")[-1]["package"] == made["id"]
    verify_by_hand(empty, made)
    audit = empty.manager.get("/v1/audit?action=package_publish").json["items"]
    assert made["id"] in [a["object"] for a in audit]


def test_done_twice_it_is_done_once(empty, deb):
    made = empty.json("package", "publish", str(deb))
    before = os.stat(empty.blob(made["sha256"])).st_mtime_ns
    assert empty.json("package", "publish", str(deb)) == made
    # And between upload and registration: the bytes are there, the package is not.
    empty.run("package", "remove", "redoubt-probe", "--yes")
    assert empty.events("package_removed")[-1]["package"] == made["id"]
    assert empty.json("package", "publish", str(deb))["id"] != made["id"]
    assert os.stat(empty.blob(made["sha256"])).st_mtime_ns == before


def test_a_version_stands_for_its_bytes(empty, deb, large):
    empty.json("package", "publish", str(deb))
    same = ["--name", "redoubt-probe", "--version", "1:2.0~rc1", "--platform", "amd64"]
    told = empty.json("package", "publish", large, *same, code=6)
    assert told["error"]["id"] == "package_exists"
    other = empty.json("package", "publish", large, *same[:3], "2.1", "--private",
                       "--description", "The next\none.")
    assert other["path"] == "private/packages/redoubt-probe/2.1/large.bin"
    empty.run("package", "describe", "redoubt-probe=2.1", "Better.")
    assert empty.json("package", "show", other["id"][:8])["description"] == "Better."
    assert "more than one" in empty.run("package", "show", "redoubt-probe", code=1).stderr


BAD = [["--name", "a\nb", "--version", "1"], ["--name", "a", "--version", "1\n"],
       ["--name", "../a", "--version", "1"], ["--name", "a/b", "--version", "1"],
       ["--name", "A", "--version", "1"], ["--name", "", "--version", "1"],
       ["--name", "a", "--version", "../1"], ["--name", "a", "--version", "1", "--platform", "x y"],
       ["--name", "a"], ["--name", "a" * 65, "--version", "1"],
       ["--name", "\x1b[31ma", "--version", "1"]]


def test_names_that_climb_or_break_lines_are_refused_before_anything_is_sent(empty, large, tmp_path):
    for wrong in BAD:
        told = empty.run("package", "publish", large, *wrong, code=2).stderr
        assert "\x1b" not in told and told.count("\n") <= 2, told
    for name in ("a b.bin", ".hidden", "a\nb.bin"):
        shutil.copy(large, tmp_path / name)
        empty.run("package", "publish", str(tmp_path / name), "--name", "a", "--version", "1",
                  code=2)
    assert empty.on_share("blob") == empty.on_share("upload") == []
    good = empty.signer.package()
    for change in ({"name": "a\nb"}, {"name": "a\n"}, {"version": "..\n"}, {"file": "../x"},
                   {"file": ".x"}, {"file": "a/b"}, {"sha256": "../" + "0" * 61},
                   {"platform": "a\r"}, {"description": "\x1b[31m"}, {"size": -1},
                   {"visibility": "secret"}, {"owner": "me"}):
        answer = empty.manager.post("/v1/packages", {**good, **change})
        assert answer.status in (400, 422), (change, answer.text)
    assert empty.json("package", "list")["items"] == []


def test_only_a_signature_of_this_cluster_for_these_bytes_is_taken(empty, large, tmp_path):
    mine = ["package", "publish", large, "--name", "a", "--version", "1", "--signature"]
    digest = sha256(large)
    server = empty.new_signer("serverAuth")
    wrong = {"other bytes": empty.signer.sign("00" * 32), "another purpose": server.sign(digest),
             "no certificate": empty.signer.sign(digest)[:64], "nothing": b"",
             "too long": empty.signer.sign(digest) + bytes(9000)}
    for name, signature in wrong.items():
        (tmp_path / "sig").write_bytes(signature)
        told = empty.json(*mine, str(tmp_path / "sig"), code=1)
        assert told["error"]["id"] == "signature_wrong", name
    assert empty.on_share("blob") == []
    for body in (server.package(), {**empty.signer.package(), "sha256": "00" * 32},
                 {**empty.signer.package(), "signature": "AAAA"},
                 {**empty.signer.package(), "signature": "no base64!"}):
        answer = empty.manager.post("/v1/packages", body)
        assert answer.error() == (422, "signature_wrong"), answer.text
    (tmp_path / "sig").write_bytes(empty.signer.sign(digest))
    assert empty.json(*mine, str(tmp_path / "sig"))["sha256"] == digest


def test_a_full_share_is_refused_before_anything_is_there(empty, large):
    told = empty.json("package", "publish", large, "--name", "a", "--version", "1", code=1,
                      share="small")
    assert told["error"]["id"] == "store_failed" and "KiB free" in told["error"]["text"]
    assert empty.on_share("blob") == empty.on_share("upload") == []
    assert empty.json("package", "list")["items"] == []


def part(world):
    """How much of an upload is on the share."""
    for name in world.on_share("upload"):
        with contextlib.suppress(FileNotFoundError):
            return os.path.getsize(f"{world.files.folder}/data/upload/{name}")
    return 0


def interrupt_upload(world, argv):
    """Ctrl-C while the server stands still in the middle; (code, stdout), or None if the upload was
    faster than this process: it is not the upload then that was interrupted."""
    group = world.files.process.pid
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 30
        while part(world) == 0 and process.poll() is None and time.monotonic() < end:
            pass
        os.killpg(group, signal.SIGSTOP)
        process.send_signal(signal.SIGINT)
        os.killpg(group, signal.SIGCONT)
        out, _ = process.communicate(timeout=60)
    done = process.returncode == 0 or world.on_share("blob")
    return None if done else (process.returncode, out)


def test_ctrl_c_ends_it_in_order_and_the_next_goes_on(empty, large):
    words = ("package", "publish", large, "--name", "a", "--version", "1")
    told = None
    for _ in range(10):
        told = interrupt_upload(empty, empty.argv(*words, "--json"))
        if told:
            break
        empty.files.clear()
    assert told[0] == 1 and json.loads(told[1])["error"]["id"] == "interrupted", told
    assert 0 < part(empty) <= SIZE and empty.on_share("blob") == []
    made = empty.json(*words)
    assert sha256(empty.blob(made["sha256"])) == sha256(large)
    assert empty.on_share("upload") == []


def test_a_server_that_restarts_in_the_middle_is_waited_for(empty, large):
    argv = empty.argv("package", "publish", large, "--name", "a", "--version", "1", "--json")
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as process:
        eventually("the upload begins",  # it may be over before this process looks
                   lambda: empty.on_share("upload") or empty.on_share("blob"), 30)
        # Every process of smbd that serves a connection; the one that listens makes new ones.
        children = subprocess.run(["pgrep", "-P", str(empty.files.process.pid)], check=False,
                                  capture_output=True, text=True).stdout.split()
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        out, err = process.communicate(timeout=90)
    assert process.returncode == 0, (out, err)
    assert sha256(empty.blob(json.loads(out)["sha256"])) == sha256(large)


def test_what_is_missing_or_damaged_is_told_and_repaired(empty, deb, large):
    first = empty.json("package", "publish", str(deb))
    second = empty.json("package", "publish", large, "--name", "b", "--version", "1")
    told = empty.json("store", "status", "--check", code=4)
    assert sorted(told["missing_here"]) == sorted([first["sha256"], second["sha256"]])
    assert told["missing_on_share"] == [] and told["blobs"] == told["share"]["files"] == 2
    # This node gets its copies, as redoubt-mirror would bring them.
    assert empty.json("store", "verify", code=1)["problems"]
    told = empty.json("store", "verify", "--repair")["problems"]
    assert {p["here"] for p in told} == {"repaired"}
    assert "what their names say" in empty.run("store", "verify").stdout
    empty.run("store", "status", "--check")

    with open(empty.blob(second["sha256"]), "r+b") as file:
        file.seek(SIZE // 2)
        file.write(b"damage")
    os.unlink(empty.blob(first["sha256"]))
    told = empty.json("store", "verify", code=1)["problems"]
    assert {p["sha256"]: p["share"] for p in told} == {
        first["sha256"]: "missing", second["sha256"]: "damaged"}
    assert empty.json("store", "status")["missing_on_share"] == [first["sha256"]]
    told = empty.json("store", "verify", "--repair")["problems"]
    assert {p["share"] for p in told} == {"repaired"}
    assert sha256(empty.blob(second["sha256"])) == second["sha256"]
    with open(f"{empty.folder}/store/blob/{first['sha256']}", "r+b") as file:
        file.write(b"damage")
    told = empty.json("store", "verify", "--repair")["problems"]
    assert told == [{"sha256": first["sha256"], "share": "good", "here": "repaired"}]


def two_days_pass(world, *more):
    old = time.time() - 2 * 86400
    clock = f"{world.files.folder}/data/upload/clock"  # what ages are told by
    for path in (clock, *more, *(world.blob(b) for b in world.on_share("blob"))):
        with open(path, "ab"):
            os.utime(path, (old, old))
    world.fenced("UPDATE redoubt.blob SET added_at = added_at - interval '2 days'")


def stop_while_it_reads(process, path):
    """Stops it with this file open; false: it was too fast for us."""
    folder = f"/proc/{process.pid}/fd"
    while process.poll() is None:
        with contextlib.suppress(OSError):
            if path in [os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder)]:
                process.send_signal(signal.SIGSTOP)
                os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
                if path in [os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder)]:
                    return True
                process.send_signal(signal.SIGCONT)
    return False


@pytest.mark.parametrize("collected", [False, True])
def test_what_is_withdrawn_and_removed_meanwhile_is_no_problem(empty, large, tmp_path, collected):
    first = empty.json("package", "publish", large, "--name", "a", "--version", "1")["sha256"]
    later = next(n for n in range(10000)
                 if hashlib.sha256(b"%d" % n).hexdigest() > first)
    (tmp_path / "b.bin").write_bytes(b"%d" % later)
    second = empty.json("package", "publish", str(tmp_path / "b.bin"), "--name", "b",
                        "--version", "1")
    empty.run("store", "verify", "--repair")
    folder = f"{empty.folder}/store/blob"
    for _ in range(20):
        shutil.copy(tmp_path / "b.bin", f"{folder}/{second['sha256']}")
        with subprocess.Popen(empty.argv("store", "verify", "--json"), stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, text=True) as process:
            try:
                stopped = stop_while_it_reads(process, f"{folder}/{first}")
                if stopped:
                    empty.run("package", "remove", second["id"], "--yes")
                    os.unlink(f"{folder}/{second['sha256']}")
                    if collected:
                        two_days_pass(empty)
                        empty.run("store", "collect")
                        assert not os.path.exists(empty.blob(second["sha256"]))
            finally:
                process.send_signal(signal.SIGCONT)
            out, _ = process.communicate(timeout=60)
        if stopped:
            break
    assert stopped and json.loads(out) == {"verified": 2, "problems": []}
    assert process.returncode == 0


def test_what_nothing_refers_to_is_collected_when_it_is_old(empty, deb, large):
    kept = empty.json("package", "publish", str(deb))
    gone = empty.json("package", "publish", large, "--name", "b", "--version", "1")
    empty.run("package", "remove", gone["id"], "--yes")
    stale = f"{empty.files.folder}/data/upload/{'1' * 64}.part"
    with open(stale, "wb") as file:
        file.write(b"half")
    with open(empty.blob("2" * 64), "wb") as file:
        file.write(b"put by nobody we know")
    assert empty.json("store", "collect") == {"forgotten": 0, "files_removed": 0,
                                              "leavings_removed": 0, "leavings_bytes": 0}
    assert len(empty.on_share("blob")) == 3 and os.path.exists(stale)
    two_days_pass(empty, stale)
    told = empty.json("store", "collect")
    assert (told["forgotten"], told["files_removed"], told["leavings_removed"]) == (1, 2, 1)
    assert empty.on_share("blob") == [kept["sha256"]] and empty.on_share("upload") == []
    assert empty.json("store", "verify", "--repair")["verified"] == 1


def refused(world, statement, *values):
    with pytest.raises(psycopg2.Error) as told:
        world.fenced(statement, *values)
    return told.value.pgcode


def test_the_list_of_what_is_published_changes_as_a_whole(empty):
    def listed():
        (told,), = empty.database.query("SELECT redoubt.publication_list()")
        return told["serial"], {e["path"]: e["blob"] for e in told["entries"]}

    publish = "SELECT redoubt.publish(%s, %s::jsonb)"
    one, two = "1" * 64, "2" * 64
    for blob in (one, two):
        empty.fenced("SELECT redoubt.blob_add(%s, 5)", blob)
    serial, _ = listed()
    both = json.dumps([{"path": "public/sig/a", "blob": one}, {"path": "public/sig/b", "blob": two}])
    empty.fenced(publish, "mine", both)
    assert listed() == (serial + 1, {"public/sig/a": one, "public/sig/b": two})
    empty.fenced(publish, "mine", both)
    assert listed()[0] == serial + 1, "nothing changed"
    swapped = json.dumps([{"path": "public/sig/b", "blob": one}])
    empty.fenced(publish, "mine", swapped)
    assert listed() == (serial + 2, {"public/sig/b": one})
    # Nothing of a set that is wrong in one place.
    for path in ("public/../x", "public//x", "/public/x", "public/.x", "public/X", "secret/x", "public",
                 "public/a b", "public/a\n", "public/" + "a" * 400, "public/a/", None):
        wrong = json.dumps([{"path": "public/sig/c", "blob": one}, {"path": path, "blob": two}])
        assert refused(empty, publish, "mine", wrong) == "RH400", path
    assert refused(empty, publish, "other", swapped) == "RH409", "the path is taken"
    missing = json.dumps([{"path": "public/sig/c", "blob": "3" * 64}])
    assert refused(empty, publish, "mine", missing) == "RH409"
    assert refused(empty, "SELECT redoubt.blob_add(%s, 6)", one) == "RH409", "another size"
    assert refused(empty, "SELECT redoubt.blob_add(%s, 6)", "../" + "0" * 61) == "RH400"
    assert listed() == (serial + 2, {"public/sig/b": one})
    # What is published is not forgotten; what is not, is.
    empty.fenced("SELECT * FROM redoubt.blobs_forget('0')")
    assert [b for b, in empty.database.query("SELECT sha256 FROM redoubt.blob")] == [one]
    with pytest.raises(psycopg2.Error) as told:
        empty.database.query(publish, "mine", "[]")
    assert told.value.pgcode == "RD001", "a session behind no fence"
    empty.fenced(publish, "mine", "[]")


def test_without_the_api_nothing_is_sent(empty, large):
    argv = empty.argv("package", "publish", large, "--name", "a", "--version", "1")
    argv[1:1] = ["--socket", "/nowhere/node.sock"]
    done = subprocess.run([*argv, "--timeout", "1"], capture_output=True, text=True, timeout=60,
                          check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 3, (done.stdout, done.stderr)
    assert empty.on_share("blob") == empty.on_share("upload") == []
