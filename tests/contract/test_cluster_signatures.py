"""A device takes signatures from its cluster: the databases that there are, and files of the
administrator's own as a signed manifest lists them; with a real clamd and freshclam."""
import hashlib
import json
import os
import shutil
import subprocess
import tempfile

import pytest

from signature_source import Source, lay_out
from test_protect import Drive, Engine, eventually, put, scan_for

pytestmark = pytest.mark.skipif(
    os.getuid() != 0 or not shutil.which("clamd") or not shutil.which("freshclam"),
    reason="needs root, clamd and freshclam")


def openssl(*args, data=None):
    return subprocess.run(["openssl", *args], input=data, check=True,
                          capture_output=True).stdout


class Signer:
    """An authority, and a key of it with this extended usage."""

    def __init__(self, folder, usage="codeSigning", authority=None):
        self.folder = tempfile.mkdtemp(dir=folder)
        self.ca = authority.ca if authority else self.path("ca.pem")
        self.ca_key = authority.ca_key if authority else self.path("ca.key")
        if not authority:
            openssl("req", "-x509", "-newkey", "ed25519", "-nodes", "-keyout", self.ca_key,
                    "-out", self.ca, "-subj", "/CN=authority", "-days", "2", "-addext",
                    "basicConstraints=critical,CA:TRUE", "-addext",
                    "keyUsage=critical,keyCertSign")
        openssl("req", "-newkey", "ed25519", "-nodes", "-keyout", self.path("key"), "-out",
                self.path("csr"), "-subj", "/CN=signer")
        put(self.path("ext"), f"basicConstraints=critical,CA:FALSE\nkeyUsage=digitalSignature\n"
            f"extendedKeyUsage=critical,{usage}\n".encode())
        openssl("x509", "-req", "-in", self.path("csr"), "-CA", self.ca, "-CAkey", self.ca_key,
                "-out", self.path("cert"), "-days", "1", "-extfile", self.path("ext"))
        self.der = openssl("x509", "-in", self.path("cert"), "-outform", "DER")

    def path(self, name):
        return os.path.join(self.folder, name)

    def sign(self, data):
        put(self.path("digest"), hashlib.sha256(data).digest())
        return openssl("pkeyutl", "-sign", "-rawin", "-inkey", self.path("key"), "-in",
                       self.path("digest")) + self.der


class Cluster(Source):
    """The Web Server of a cluster, as far as a device knows."""

    def __init__(self, folder, signer):
        super().__init__(folder)
        self.signer = signer

    def publish(self, serial, files, kind="redoubt-signatures", signer=None, **wrong):
        listed = []
        for name, data in files.items():
            put(os.path.join(self.folder, name), data)
            listed.append({"name": name, "size": len(data), "mtime": 1,
                           "sha256": hashlib.sha256(data).hexdigest(), **wrong})
        manifest = json.dumps({"type": kind, "serial": serial, "files": listed}).encode()
        put(os.path.join(self.folder, "manifest.json"), manifest)
        put(os.path.join(self.folder, "manifest.json.sig"),
            (signer or self.signer).sign(manifest))


@pytest.fixture(scope="module", name="folder")
def _folder():
    with tempfile.TemporaryDirectory(prefix="redoubt-cluster-") as path:
        os.chmod(path, 0o755)
        yield path


@pytest.fixture(scope="module", name="engine")
def _engine(folder):
    engine = Engine(folder)
    yield engine
    engine.stop()


@pytest.fixture(scope="module", name="signer")
def _signer(folder):
    return Signer(folder)


@pytest.fixture(name="device")
def _device(folder, engine, signer):
    """A device that asks only the cluster; ends with the databases that there were."""
    own = tempfile.mkdtemp(dir=folder)
    known = set(os.listdir(engine.databases))
    cluster = Cluster(tempfile.mkdtemp(dir=folder), signer)
    before = open(engine.conf, "rb").read()
    device = Drive(own, engine, clamd_conf=engine.conf, web=cluster.url, ca=signer.ca)
    device.cluster = cluster
    yield device
    device.stop()
    cluster.stop()
    for name in set(os.listdir(engine.databases)) - known:
        path = os.path.join(engine.databases, name)
        folder = os.path.isdir(path) and not os.path.islink(path)
        (shutil.rmtree if folder else os.unlink)(path)
    put(engine.conf, before)
    engine.renew()


def marker(word):
    return f"Own.{word}:0:*:".encode() + f"marker {word} of our own".encode().hex().encode() + b"\n"


def update(device):
    done = device.done(device.run("update"), 60)
    return done["outcome"], done["result"].get("error", "")


def test_own_files_come_and_go(device, folder, engine):
    device.policy()
    outcome, why = update(device)
    assert outcome == "failed" and "no source of signatures" in why
    device.policy(update__source="cluster")
    outcome, why = update(device)
    assert outcome == "failed" and "publishes no signature databases" in why

    device.cluster.publish(5, {"one.ndb": marker("one"), "two.ndb": marker("two")})
    assert update(device) == ("done", "")
    eventually("the engine has it", lambda: scan_for(device, folder, b"marker two of our own") == 1)
    asked = len(device.cluster.asked)
    assert update(device) == ("done", "")
    assert "one.ndb" not in device.cluster.files()[asked:], "it is there already"

    os.unlink(os.path.join(engine.databases, "one.ndb"))  # by hand
    assert update(device) == ("done", "")
    assert os.path.exists(os.path.join(engine.databases, "one.ndb"))

    device.cluster.publish(6, {"one.ndb": marker("changed")})
    assert update(device) == ("done", "")
    assert not os.path.exists(os.path.join(engine.databases, "two.ndb"))
    eventually("the engine has the change",
               lambda: scan_for(device, folder, b"marker changed of our own") == 1)
    device.cluster.publish(7, {})
    assert update(device) == ("done", "")
    assert set(os.listdir(engine.databases)) == {"own.ndb", "freshclam.dat"}


def test_only_what_the_authority_signed_is_taken(device, folder, engine, signer):
    cluster = device.cluster
    device.policy(update__source="cluster")
    cluster.publish(5, {"one.ndb": marker("one")})
    assert update(device) == ("done", "")
    manifest = os.path.join(cluster.folder, "manifest.json")

    def refused(why):
        outcome, error = update(device)
        assert outcome == "failed" and why in error, error
        assert open(os.path.join(engine.databases, "one.ndb"), "rb").read() == marker("one")
        assert not os.path.exists(os.path.join(engine.databases, "two.ndb"))

    cluster.publish(4, {"one.ndb": marker("old")})
    refused("older (serial 4)")
    cluster.publish(6, {"one.ndb": marker("new")}, signer=Signer(folder))
    refused("not")
    cluster.publish(6, {"one.ndb": marker("new")},
                    signer=Signer(folder, "clientAuth", authority=signer))
    refused("not")
    cluster.publish(6, {"one.ndb": marker("new")})
    put(manifest, open(manifest, "rb").read().replace(b'"serial": 6', b'"serial": 7'))
    refused("not")
    os.unlink(manifest + ".sig")
    refused("")
    # Signed, but nothing that a device would do.
    cluster.publish(6, {"two.ndb": marker("two")}, kind="something else")
    refused("makes no sense")
    cluster.publish(6, {"two.ndb": marker("two")}, name="../two.ndb")
    refused("makes no sense")
    cluster.publish(6, {"two.ndb": marker("two")}, name="main.cvd")
    refused("makes no sense")
    cluster.publish(6, {"two.ndb": marker("two")}, size=1 << 40)
    refused("makes no sense")
    # All files or none.
    cluster.publish(6, {"one.ndb": marker("new"), "two.ndb": marker("two")})
    put(os.path.join(cluster.folder, "two.ndb"), marker("bad"))
    refused("not what the manifest lists")
    os.unlink(os.path.join(cluster.folder, "two.ndb"))
    refused("does not have it")
    cluster.publish(6, {"one.ndb": marker("one")})
    assert update(device) == ("done", "")


def test_what_the_user_of_freshclam_lays_out_is_not_followed(device, engine, tmp_path):
    stage = os.path.join(engine.databases, ".redoubt")
    secret = tmp_path / "one.ndb"
    secret.write_bytes(marker("one"))
    secret.chmod(0o600)
    device.policy(update__source="cluster")
    device.cluster.publish(5, {"one.ndb": marker("one"), "two.ndb": marker("two")})

    def refused(why):
        outcome, error = update(device)
        assert outcome == "failed" and why in error, error
        assert secret.stat().st_mode & 0o777 == 0o600
        assert "two.ndb" not in os.listdir(engine.databases)

    os.symlink(tmp_path, stage)
    refused("must be a folder")
    assert os.listdir(tmp_path) == ["one.ndb"]
    os.unlink(stage)
    os.mkdir(stage)
    put(os.path.join(stage, "mine"), b"")
    os.chown(stage, 65534, 65534)
    refused("belongs to another user")
    assert os.listdir(stage) == ["mine"]
    os.chown(stage, 0, 0)
    os.chmod(stage, 0o777)
    refused("others may write there")
    os.chmod(stage, 0o755)
    os.unlink(os.path.join(stage, "mine"))
    # A name within it that is no file.
    os.symlink(secret, os.path.join(stage, "one.ndb"))
    assert update(device) == ("done", "")
    assert secret.stat().st_mode & 0o777 == 0o600 and not os.path.exists(stage)
    assert {"one.ndb", "two.ndb"} <= set(os.listdir(engine.databases))


def test_files_of_others_are_neither_replaced_nor_removed(device, engine):
    one, two, three = (os.path.join(engine.databases, n)
                       for n in ("one.ndb", "two.ndb", "three.ndb"))
    device.policy(update__source="cluster")
    put(one, marker("local"))
    os.utime(one, (1 << 31, 1 << 31))
    device.cluster.publish(5, {"one.ndb": marker("one"), "two.ndb": marker("two")})
    outcome, why = update(device)
    assert outcome == "failed" and "one.ndb: another file of this name" in why, why
    assert open(one, "rb").read() == marker("local") and not os.path.exists(two)
    os.unlink(one)
    assert update(device) == ("done", "")
    # One of ours that was changed by hand is not ours to remove.
    put(two, marker("local"))
    device.cluster.publish(6, {})
    assert update(device) == ("done", "")
    assert open(two, "rb").read() == marker("local") and not os.path.exists(one)
    # Ours is also what was installed of a set that as a whole could not be.
    device.cluster.publish(7, {"three.ndb": marker("three"), "zero.ndb": b"this is nothing\n"})
    assert update(device)[0] == "failed" and os.path.exists(three)
    device.cluster.publish(8, {"three.ndb": marker("new"), "zero.ndb": b"nor is this\n"})
    assert update(device)[0] == "failed"
    assert open(three, "rb").read() == marker("new")
    device.cluster.publish(9, {})
    assert update(device) == ("done", "")
    assert not os.path.exists(three)


def test_what_the_engine_cannot_load_is_not_installed(device, engine):
    device.policy(update__source="cluster")
    device.cluster.publish(5, {"broken.ndb": b"this is no signature\n"})
    outcome, why = update(device)
    assert outcome == "failed", why
    assert "broken.ndb" not in os.listdir(engine.databases)


def test_databases_come_from_the_cluster(device, engine):
    lay_out(device.cluster.folder, 4, chain=False, names=("daily",))
    device.policy(update__source="cluster", update__cluster_files=False)
    assert update(device) == ("done", "")
    assert "daily.cvd" in os.listdir(engine.databases)
    assert "manifest.json" not in device.cluster.files()
    # These are called daily, but hold test.*: its increments would not apply.
    lay_out(device.cluster.folder, 6, chain=False, names=("daily",))
    device.cluster.asked.clear()
    assert update(device) == ("done", "")
    assert "daily-5.cdiff" in device.cluster.files(), "increments are tried first"
    device.cluster.statuses["daily.cvd"] = (429, {"Retry-After": "600"})
    outcome, why = update(device)
    assert outcome == "failed" and "patience" in why, why


def test_a_cluster_without_a_web_server_is_no_failure_of_other_sources(device, folder):
    device.cluster.stop()
    put(os.path.join(folder, "else.ndb"), marker("else"))
    elsewhere = Source(folder)
    device.policy(update__custom_urls=[f"{elsewhere.url}/else.ndb"])
    assert update(device) == ("done", "")
    elsewhere.stop()
