"""The secrets of a cluster: made or taken by `redoubt init`, fetched and listed by `redoubt secret`,
on a real smbd and a real PostgreSQL."""
import json
import os
import re
import shutil
import subprocess

import pytest

from test_ctl import Node, _node, _world  # noqa: F401  pylint: disable=unused-import

SHARED = ["ca.key", "ca.pem", "lease.key", "link.key", "package.key", "ticket.key", "web.key"]
FILES = sorted(SHARED + ["server.key", "server.pem", "web.pem"])


def openssl(*argv):
    return subprocess.run(["openssl", *argv], capture_output=True, text=True, check=True,
                          stdin=subprocess.DEVNULL).stdout


def listed(node, code=0):
    return {s["name"]: s for s in json.loads(node.run("secret", "list", "--json", code=code)
                                             .stdout)}


def sealed(node, name):
    with open(f"{node.server.folder}/data/secret/{name}", "rb") as file:
        return file.read()


@pytest.fixture(name="other")
def _other(node, world, tmp_path):
    """The other node of the same cluster."""
    node.init()
    folder = tmp_path / "node-b"
    folder.mkdir()
    files = node.server
    clear, files.clear = files.clear, lambda: None  # the share stays
    database, admin = world[1], world[1].admin
    database.admin = lambda text: None
    try:
        other = Node(world, folder)
    finally:
        files.clear, database.admin = clear, admin
    other.configure(a=("node = node-a", "node = node-b"), b=("peer = node-b", "peer = node-a"))
    shutil.copy(tmp_path / "cluster.key", folder)
    return other


def test_init_makes_and_installs_an_authority(node):
    node.init()
    folder = node.folder / "secret"
    assert sorted(os.listdir(folder)) == FILES
    assert folder.stat().st_mode & 0o777 == 0o751
    for name in FILES:
        mode = 0o600 if name == "package.key" else 0o640
        assert (folder / name).stat().st_mode & 0o777 == mode, name
    assert (folder / "ticket.key").stat().st_size == 64
    assert (folder / "link.key").stat().st_size == 32
    assert re.fullmatch("[0-9a-f]{64}", (folder / "lease.key").read_text())
    text = openssl("x509", "-in", folder / "package.key", "-noout", "-text")
    assert "Code Signing" in text and "ED25519" in text
    openssl("verify", "-CAfile", folder / "ca.pem", folder / "package.key")
    assert re.fullmatch("[0-9a-f]{64}", (folder / "lease.key").read_text())
    openssl("verify", "-CAfile", folder / "ca.pem", "-purpose", "sslserver",
            folder / "server.pem")
    text = openssl("x509", "-in", folder / "server.pem", "-noout", "-text")
    for name in ("DNS:redoubt.example.com", "IP Address:10.9.8.7", "DNS:node-a", "DNS:node-b"):
        assert name in text
    assert "CA:TRUE" in openssl("x509", "-in", folder / "ca.pem", "-noout", "-text")
    assert all(s["here"] for s in listed(node).values())


def test_what_lies_on_the_share_is_sealed(node):
    node.init()
    key = (node.folder / "secret" / "ca.key").read_bytes()
    assert b"PRIVATE KEY" in key
    for name in SHARED:
        assert sealed(node, name).startswith(b"RDSEAL1\n")
        assert (node.folder / "secret" / name).read_bytes() not in sealed(node, name)
    assert b"PRIVATE" not in sealed(node, "ca.key")


def test_the_other_node_fetches_them(node, other):
    assert listed(other, code=1)["ca.key"] == {"name": "ca.key", "shared": True, "here": False,
                                               "same": False}
    assert "authority" in other.run("secret", "fetch").stdout
    for name in SHARED:
        assert (node.folder / "secret" / name).read_bytes() == (
            other.folder / "secret" / name).read_bytes()
    mine, theirs = (open(f"{n.folder}/secret/server.key", "rb").read() for n in (node, other))
    assert mine != theirs, "each node has a key of its own"
    for one in (node, other):           # but for the Web Server, which is pinned
        folder = one.folder / "secret"
        openssl("verify", "-CAfile", folder / "ca.pem", "-purpose", "sslserver", folder / "web.pem")
        assert openssl("x509", "-in", folder / "web.pem", "-noout", "-pubkey") == openssl(
            "pkey", "-in", folder / "web.key", "-pubout")
    openssl("verify", "-CAfile", node.folder / "secret" / "ca.pem",
            other.folder / "secret" / "server.pem")
    listed(other)
    assert "on this node" in other.run("secret", "list").stdout


def test_with_another_cluster_key_nothing_opens(node, other):
    (other.folder / "cluster.key").write_text("11" * 32 + "\n")
    assert "not sealed with this cluster key" in other.run("secret", "fetch", code=1).stderr
    assert not (other.folder / "secret").exists()
    # Nor when a secret is passed off as another, or changed.
    shutil.copy(node.folder / "cluster.key", other.folder)
    data = f"{node.server.folder}/data/secret"
    shutil.copy(f"{data}/ca.pem", f"{data}/ticket.key")
    assert "ticket.key on the share was not sealed" in other.run(
        "secret", "fetch", code=1).stderr
    assert not (other.folder / "secret").exists()


def test_a_given_authority_is_taken(node, tmp_path):
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-keyout", tmp_path / "my.key", "-out", tmp_path / "my.pem", "-days", "30",
            "-subj", "/CN=Mine", "-addext", "basicConstraints=critical,CA:true")
    assert "go together" in node.run("init", "--yes", "--ca-key", tmp_path / "my.key",
                                     code=2).stderr
    node.run("init", "--yes", "--folder", f"{os.path.dirname(__file__)}/../../db",
             "--ca-certificate", tmp_path / "my.pem", "--ca-key", tmp_path / "my.key")
    assert (node.folder / "secret" / "ca.pem").read_text() == (tmp_path / "my.pem").read_text()
    openssl("verify", "-CAfile", tmp_path / "my.pem", node.folder / "secret" / "server.pem")


def test_what_is_no_authority_is_refused(node, tmp_path):
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-keyout", tmp_path / "leaf.key", "-out", tmp_path / "leaf.pem", "-days", "30",
            "-subj", "/CN=Leaf", "-addext", "basicConstraints=critical,CA:false")
    err = node.run("init", "--yes", "--folder", f"{os.path.dirname(__file__)}/../../db",
                   "--ca-certificate", tmp_path / "leaf.pem", "--ca-key",
                   tmp_path / "leaf.key", code=1).stderr
    assert "not one of an authority" in err
    assert "cluster" not in node.server.files(), "no cluster without an authority"
    node.init()  # and nothing stands in the way of the next


def test_without_a_data_share_they_lie_on_the_state_share(node):
    node.configure(a=("data = //127.0.0.1/data\n", ""))
    node.init()
    assert os.path.exists(f"{node.server.folder}/state/secret/ca.key")
    listed(node)


def test_a_cluster_made_before_there_were_packages_gets_what_it_lacks(node, other):
    for name in ("package.key", "link.key", "web.key"):
        os.remove(f"{node.server.folder}/data/secret/{name}")
        os.remove(node.folder / "secret" / name)
    assert not listed(node, code=1)["package.key"]["here"]
    node.run("secret", "fetch")
    other.run("secret", "fetch")
    for name in SHARED:
        assert (node.folder / "secret" / name).read_bytes() == (
            other.folder / "secret" / name).read_bytes(), name
    listed(node)
    listed(other)


def test_a_broken_off_init_goes_on(node):
    node.init()
    before = (node.folder / "secret" / "ca.pem").read_text()
    for name in ("cluster", "epoch/1"):
        os.remove(f"{node.server.folder}/state/{name}")
    node.init()
    assert (node.folder / "secret" / "ca.pem").read_text() == before


def test_check_tells_of_certificates_that_end(node):
    assert node.checks(code=1)["secrets"]["result"] == "warn"  # before init
    node.init()
    told = node.checks(code=1)["secrets"]
    assert told["result"] == "ok" and "396 days" in told["text"]
    node.configure(a=("names =", "server_days = 10\nnames ="))
    node.run("secret", "fetch")
    told = node.checks(code=1)["secrets"]
    assert told["result"] == "warn" and "secret fetch" in told["suggestion"]
    os.remove(node.folder / "secret" / "server.key")
    assert node.checks(code=1)["secrets"]["result"] == "FAIL"


def test_check_tells_who_may_read_them(node):
    node.init()
    assert "secrets.web" not in node.checks(code=1), "there is no Web Server"
    program = node.folder / "redoubt-web"
    program.touch(0o755)

    def told(user):
        node.configure(a=("[trust]", f"[service web]\nexec = {program}\nuser = {user}\n[trust]"))
        return node.checks(code=1)

    everything = told("root")["secrets.web"]
    assert everything["result"] == "warn" and "can read" in everything["text"]
    assert "user = redoubt-web" in everything["suggestion"]
    nothing = told("nobody")["secrets.web"]
    assert nothing["result"] == "FAIL" and "cannot read" in nothing["text"]
    assert "redoubt secret fetch" in nothing["suggestion"]
    missing = told("no-such-user")
    assert "there is no user no-such-user" in missing["config.machine"]["text"]
    assert "secrets.web" not in missing
