"""Signature databases on the real cluster: imported and published by the active node, fetched by
stock freshclam in both of its ways, over a switch; filled from a source; files of one's own on a
device."""
import json
import os
import shutil
import sys

import pytest

from conftest import TOP
from redoubt_lab import plan

sys.path.insert(0, os.path.join(TOP, "tests/contract"))

from signature_source import genuine, lay_out  # noqa: E402

LAB = {"devices": 1}
WEB = f"http://redoubt:{plan.HTTP_PORT}"
FRESHCLAM = """DatabaseDirectory /root/{way}
DatabaseOwner root
{lines}
ExcludeDatabase main
ExcludeDatabase daily
ExcludeDatabase bytecode
MaxAttempts 2
"""
WAYS = {"private": f"PrivateMirror {WEB}/sig",
        "mirror": f"DatabaseMirror {WEB}/sig\nDNSDatabaseInfo no"}
DATABASES = "/var/lib/redoubt-lab/clamav"


def copy(host, name, to):
    host.run("mkdir", "-p", os.path.dirname(to))
    shutil.copy(name if os.path.isabs(name) else os.path.join(genuine(), name), host.file(to))
    return to


def files_of(host, version):
    """The files that an administrator brings to a node: /root/N/test.cvd and its increment."""
    files = [copy(host, f"test-{version}.cvd", f"/root/{version}/test.cvd")]
    if version > 1:
        files.append(copy(host, f"test-{version}.cdiff", f"/root/{version}/test-{version}.cdiff"))
    return files


def tell(scene, node, *words, check=True):
    done = scene.host(node).run("redoubt", "signature", *words, "--json", check=check)
    return json.loads(done.stdout) if done.returncode == 0 else done


def published(scene, node):
    return {d["name"]: d["version"] for d in tell(scene, node, "status")["databases"]}


def wait_shown(scene, *nodes):
    """Until these nodes show what is published now."""
    serial = scene.lab.sql("SELECT serial FROM redoubt.publication_serial")[0][0]
    for node in nodes:
        scene.lab.wait_for(lambda n=node: scene.lab.has_published(n, serial), 60,
                           f"{node} has what is published")


@pytest.fixture(name="freshclam")
def _freshclam(scene):
    admin = scene.host("admin")
    for way, lines in WAYS.items():
        admin.run("rm", "-rf", f"/root/{way}")
        admin.run("mkdir", "-p", f"/root/{way}")
        admin.write(f"/root/{way}.conf", FRESHCLAM.format(way=way, lines=lines))

    def run(way):
        done = admin.run("freshclam", f"--config-file=/root/{way}.conf", "--update-db=test",
                         "--stdout", check=False)
        return done.returncode, done.stdout + done.stderr
    return run


def version(scene, way):
    """Of what freshclam has, and whether it made it from increments."""
    for name in ("test.cld", "test.cvd"):
        path = scene.host("admin").file(f"/root/{way}/{name}")
        if os.path.exists(path):
            with open(path, "rb") as file:
                return int(file.read(512).split(b":")[2]), name
    return None


def test_stock_freshclam_over_an_import_and_a_switch(scene, freshclam):
    active = scene.host(scene.active)
    assert tell(scene, scene.active, "import", *files_of(active, 4))["changed"]
    assert published(scene, scene.active)["test"] == 4
    wait_shown(scene, *plan.NODES)
    for way in WAYS:
        code, said = freshclam(way)
        assert code == 0 and version(scene, way) == (4, "test.cvd"), said
        code, said = freshclam(way)  # 304
        assert code in (0, 1) and "up-to-date" in said, said

    # The import of the next versions is under way when the node loses power.
    files = files_of(active, 5) + files_of(active, 6)[1:]
    copy(active, "test-6.cvd", files[0])
    importing = active.popen("redoubt", "signature", "import", *files)
    active.power_off()
    scene.expect_switch()
    importing.wait(30)
    there = published(scene, scene.passive)["test"]
    assert there in (4, 6)
    wait_shown(scene, scene.passive)
    for way in WAYS:
        code, said = freshclam(way)
        assert code in (0, 1) and version(scene, way)[0] == there, said
    other = scene.host(scene.passive)
    files = files_of(other, 5) + files_of(other, 6)[1:]
    copy(other, "test-6.cvd", files[0])
    tell(scene, scene.passive, "import", *files)
    assert published(scene, scene.passive)["test"] == 6

    def newest():
        codes = [freshclam(way)[0] for way in WAYS]
        return all(version(scene, way)[0] == 6 for way in WAYS) and not any(c > 1 for c in codes)
    scene.lab.wait_for(newest, 60, "freshclam has the newest", 0.2)
    if there == 4:
        assert version(scene, "mirror") == (6, "test.cld"), "by increments"
    # What is older than that is refused.
    done = tell(scene, scene.passive, "import", files_of(other, 1)[0], check=False)
    assert done.returncode != 0 and "older" in done.stdout + done.stderr


def test_the_active_node_fills_the_set_from_a_source(scene):
    admin, active = scene.host("admin"), scene.host(scene.active)
    admin.run("mkdir", "-p", "/root/source")
    lay_out(admin.file("/root/source"), 6)
    tell(scene, scene.active, "remove", "test", "--yes", check=False)
    source = admin.popen("/usr/bin/python3", "-m", "http.server", "8088", "--directory",
                         "/root/source")
    scene.later(source.stop)
    scene.later(lambda: tell(scene, scene.lab.active(), "source", "none"))
    scene.lab.wait_for(lambda: active.run("curl", "-fsS", "http://admin:8088/", check=False)
                       .returncode == 0, 30, "the source is there")
    told = tell(scene, scene.active, "source", "http://admin:8088", "--database", "test",
                "--interval", "600")
    assert told["url"] == "http://admin:8088"
    scene.lab.wait_for(lambda: published(scene, scene.active).get("test") == 6, 60,
                       "the set is filled", 0.2, lambda: active.log("redoubt-node")[-3000:])
    scene.lab.wait_for(lambda: tell(scene, scene.active, "status")["upstream"]["success_at"], 30,
                       "it is told")
    told = tell(scene, scene.active, "status")
    assert told["databases"][0]["increments"] == 5 and told["upstream"]["error"] is None
    # Databases of 2021: the alarm of their age.
    scene.lab.wait_for(lambda: "signatures_old" in active.run("redoubt", "events").stdout, 30,
                       "the age is told")
    assert active.run("redoubt", "signature", "status", "--check", check=False).returncode == 4
    scene.lab.wait_for(lambda: "signatures_stale" in scene.alarms(scene.active), 90,
                       "the alarm of their age", 0.5)


def test_files_of_ones_own_reach_a_device_and_leave_it(scene):
    active, client = scene.host(scene.active), scene.host("client-1")
    rule = f"Lab.Own:0:*:{b'a marker of the system test'.hex()}\n"
    active.write("/root/lab-own.ndb", rule)
    told = tell(scene, scene.active, "custom", "publish", "/root/lab-own.ndb")
    assert [f["name"] for f in told["files"]] == ["lab-own.ndb"]
    active.run("redoubt", "policy", "set", "/", "update.source=cluster")
    scene.later(lambda: scene.host(scene.lab.active()).run("redoubt", "policy", "unset", "/",
                                                           "update.source"))
    there = f"{DATABASES}/lab-own.ndb"

    active.run("redoubt", "task", "create", "signatures", "update", "--device", "client-1")

    def arrived():
        """The policy may come after the first task."""
        if client.run("test", "-e", there, check=False).returncode == 0:
            return True
        active.run("redoubt", "task", "start", "signatures", check=False)
        return False
    scene.lab.wait_for(arrived, 90, "the device has the file", 1.0)
    assert client.read(there) == rule
    told = tell(scene, scene.active, "custom", "remove", "lab-own.ndb")
    assert told["files"] == [] and told["serial"] == 2
