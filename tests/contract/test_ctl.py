"""`redoubt init`, `check`, `database migrate` and `status` without a daemon, on a real smbd and
a real PostgreSQL."""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import pytest

from device_world import TOP, Postgres, free_port

REDOUBT = os.environ["REDOUBT"]
FRESH = ["cluster", "epoch", "epoch/1", "node", "request"]
SECRETS = ["secret", "secret/ca.key", "secret/ca.pem", "secret/lease.key", "secret/link.key",
           "secret/package.key", "secret/ticket.key", "secret/web.key"]
SMB_CONF = """[global]
server role = standalone server
interfaces = lo
bind interfaces only = yes
smb ports = {port}
disable netbios = yes
lock directory = {dir}/lock
state directory = {dir}/lock
cache directory = {dir}/lock
private dir = {dir}/private
pid directory = {dir}/lock
ncalrpc dir = {dir}/lock/rpc
log file = {dir}/smbd.log
passdb backend = tdbsam:{dir}/private/passdb.tdb
load printers = no
printcap name = /dev/null
server min protocol = SMB2_02
map to guest = never
[state]
path = {dir}/state
read only = no
[data]
path = {dir}/data
read only = no
[ro]
path = {dir}/state
read only = yes
"""
NODE_CONF = """[cluster]
name = demo
node = node-a
peer = node-b
key_file = {dir}/cluster.key
run_dir = {dir}/run
[share]
state = //127.0.0.1/state
data = //127.0.0.1/data
credentials = {dir}/smb.cred
port = {port}
[database]
conninfo = {conninfo}
[address]
mode = none
[trust]
folder = {dir}/secret
names = redoubt.example.com 10.9.8.7
"""


class FileServer:
    def __init__(self, folder, env=None):
        self.folder = folder
        self.port = free_port()
        for name in ("lock", "private", "state", "data"):
            os.mkdir(f"{folder}/{name}", 0o700)
        with open(f"{folder}/smb.conf", "w", encoding="ascii") as file:
            file.write(SMB_CONF.format(dir=folder, port=self.port))
        subprocess.run(["smbpasswd", "-c", f"{folder}/smb.conf", "-a", "-s", "root"],
                       input="secret\nsecret\n", text=True, check=True,
                       stdout=subprocess.DEVNULL)
        # A process group of its own, so that its children end with it.
        self.process = subprocess.Popen(
            ["smbd", "-F", "--no-process-group", "-s", f"{folder}/smb.conf"], stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            env=dict(os.environ, **(env or {})))
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("smbd does not listen")

    def stop(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def files(self, share="state"):
        found = []
        for path, folders, files in os.walk(f"{self.folder}/{share}"):
            found += [os.path.relpath(f"{path}/{n}", f"{self.folder}/{share}")
                      for n in folders + files]
        return sorted(found)

    def clear(self):
        for share in ("state", "data"):
            shutil.rmtree(f"{self.folder}/{share}")
            os.mkdir(f"{self.folder}/{share}", 0o700)


@pytest.fixture(scope="module", name="world")
def _world():
    if os.getuid() != 0 or not shutil.which("smbd"):
        pytest.skip("needs root and smbd (package samba)")
    with tempfile.TemporaryDirectory(prefix="redoubt-ctl-") as folder:
        os.chmod(folder, 0o755)
        database = Postgres(folder)
        server = None
        try:
            server = FileServer(folder)
            yield server, database
        finally:
            if server:
                server.stop()
            database.stop()


class Node:
    def __init__(self, world, tmp_path):
        self.server, self.database = world
        self.server.clear()
        self.folder = tmp_path
        self.database.admin("DROP DATABASE IF EXISTS fresh")
        self.database.admin("CREATE DATABASE fresh OWNER redoubt")
        self.conninfo = self.database.conninfo().replace("dbname=redoubt", "dbname=fresh")
        cred = tmp_path / "smb.cred"
        cred.write_text("username=root\npassword=secret\n")
        cred.chmod(0o600)
        self.conf = tmp_path / "redoubt.conf"
        self.configure()

    def configure(self, **changes):
        text = NODE_CONF.format(dir=self.folder, port=self.server.port,
                                conninfo=self.conninfo)
        for old, new in changes.values():
            assert old in text
            text = text.replace(old, new)
        self.conf.write_text(text)

    def run(self, *args, code=0):
        done = subprocess.run([REDOUBT, "--config", str(self.conf), *args], text=True,
                              capture_output=True, timeout=90, stdin=subprocess.DEVNULL,
                              check=False)
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done

    def init(self, code=0):
        return self.run("init", "--yes", "--folder", f"{TOP}/db", code=code)

    def checks(self, code):
        out = json.loads(self.run("check", "--json", code=code).stdout)
        assert out["failures"] == sum(c["result"] == "FAIL" for c in out["checks"])
        return {c["name"]: c for c in out["checks"]}


@pytest.fixture(name="node")
def _node(world, tmp_path):
    return Node(world, tmp_path)


def test_init_makes_key_schema_folders_and_record(node):
    out = node.init().stdout
    assert "The cluster demo is created" in out and "copy" in out
    assert node.server.files() == FRESH
    key = node.folder / "cluster.key"
    assert len(key.read_text()) == 65 and key.stat().st_mode & 0o777 == 0o600
    record = open(f"{node.server.folder}/state/cluster", encoding="ascii").read()
    body = json.loads(record.split("\n")[0])
    assert body["v"] == 1 and body["name"] == "demo" and len(body["cluster"]) == 32
    assert key.read_text().strip() not in record
    assert "at version" in node.run("database", "migrate", "--folder", f"{TOP}/db").stdout


def test_init_refuses_what_is_in_use(node):
    node.init()
    files, key = node.server.files(), (node.folder / "cluster.key").read_text()
    assert "exists already" in node.init(code=1).stderr
    (node.folder / "cluster.key").unlink()  # another cluster comes along
    err = node.init(code=1).stderr
    assert "another cluster" in err and "copy its cluster.key" in " ".join(err.split())
    assert not (node.folder / "cluster.key").exists(), "a key of no use is left behind"
    assert node.server.files() == files
    (node.folder / "cluster.key").write_text(key)
    (node.folder / "cluster.key").chmod(0o600)
    node.server.clear()
    for name in ("photos", "epoch"):
        os.mkdir(f"{node.server.folder}/state/{name}")
    err = node.init(code=1).stderr
    assert "not empty" in err and "photos" in err and "epoch" not in err
    os.rmdir(f"{node.server.folder}/state/photos")
    with open(f"{node.server.folder}/state/epoch/7", "w", encoding="ascii"):
        pass
    assert "epoch/7" in node.init(code=1).stderr
    os.remove(f"{node.server.folder}/state/epoch/7")
    node.init()  # only an empty folder of an init that was broken off


def test_init_without_yes_does_nothing(node):
    assert "not confirmed" in node.run("init", code=1).stderr
    assert node.server.files() == [] and not (node.folder / "cluster.key").exists()


@pytest.mark.parametrize("change, words", [
    (("//127.0.0.1/state", "//127.0.0.1/nothing"), "state share cannot be used"),
    (("//127.0.0.1/state", "//127.0.0.1/ro"), "state share cannot be used"),
    (("dbname=fresh", "dbname=nothing"), "DBMS could not be prepared"),
])
def test_init_that_cannot_leaves_no_cluster(node, change, words):
    node.configure(a=change)
    err = node.init(code=1).stderr
    assert words in err and "What to do" in err
    assert "cluster" not in node.server.files()


def test_check_of_a_good_cluster(node):
    node.init()
    (node.folder / "cluster.key").chmod(0o600)
    checks = node.checks(code=1)  # file server and DBMS are on this machine
    bad = {n for n, c in checks.items() if c["result"] == "FAIL"}
    assert bad <= {"share.separate", "database.separate", "programs", "share.profile"}, checks
    assert {"share.separate", "database.separate"} <= bad
    for name in ("config", "config.machine", "share.protocol", "share.login", "share.rights",
                 "share.exclusive", "share.cluster", "share.latency", "share.data",
                 "share.bandwidth", "database"):
        assert checks[name]["result"] == "ok", checks[name]
    assert "3.1.1" in checks["share.protocol"]["text"]
    assert "not yet published" in checks["nodes.compared"]["text"]
    assert node.server.files() == FRESH
    assert node.server.files("data") == SECRETS


def test_check_says_what_is_wrong(node):
    checks = node.checks(code=1)
    assert "redoubt init" in checks["share.cluster"]["suggestion"]
    assert "schema_missing" in checks["database"]["text"]
    for name in ("share.cluster", "database"):  # before init that is as it should be
        assert checks[name]["result"] == "warn", checks[name]
    node.init()
    key = (node.folder / "cluster.key").read_text()
    (node.folder / "cluster.key").unlink()
    assert node.checks(code=1)["cluster.key"]["result"] == "FAIL"
    (node.folder / "cluster.key").write_text(key)
    (node.folder / "cluster.key").chmod(0o600)
    node.configure(a=("//127.0.0.1/state", "//127.0.0.1/ro"))
    checks = node.checks(code=1)
    assert checks["share.rights"]["result"] == "FAIL"
    assert "rights" in checks["share.rights"]["suggestion"]
    (node.folder / "smb.cred").write_text("username=root\npassword=wrong\n")
    assert node.checks(code=1)["share.login"]["result"] == "FAIL"
    node.configure(a=(f"port = {node.server.port}", f"port = {free_port()}"))
    assert node.checks(code=1)["share.protocol"]["result"] == "FAIL"


def test_check_knows_another_clusters_share(node):
    node.init()
    (node.folder / "cluster.key").write_text("cd" * 32)
    checks = node.checks(code=1)
    assert checks["share.cluster"]["result"] == "FAIL"


def test_check_as_text(node):
    node.init()
    out = node.run("check", "--quick", code=1).stdout
    assert "ok    share.exclusive: of two who created" in out
    assert "FAIL  share.separate: the file server (127.0.0.1) is this node" in out
    assert "share.bandwidth" not in out


def test_status_without_daemon_reads_the_share(node):
    node.init()
    done = node.run("status", code=3)
    assert "not running" in done.stderr
    assert "What the state share tells" in done.stdout
    assert "No node is active" in done.stdout
    status = json.loads(node.run("status", "--json", code=3).stdout)
    assert status["source"] == "share" and status["active"] is None
    assert [n["name"] for n in status["nodes"]] == ["node-a", "node-b"]


def test_migrate_says_what_fails(node):
    node.configure(a=("dbname=fresh", "dbname=nothing"))
    err = node.run("database", "migrate", "--folder", f"{TOP}/db", code=1).stderr
    assert "nothing" in err
    node.configure()
    assert "version" in node.run("database", "migrate", "--folder", f"{TOP}/db").stdout
    assert "already" in node.run("database", "migrate", "--folder", f"{TOP}/db").stdout
