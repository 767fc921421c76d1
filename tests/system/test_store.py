"""What is published is on both nodes before the passive one calls itself ready; and nobody is worse
off while it is not."""
import contextlib
import json
import os
import signal

import pytest

from redoubt_lab import plan

LAB = {"devices": 1, "settings": {"cluster": {"switch_max": 100, "switch_window_s": 10},
                                  "web": {"mirror_kib_s": 2048}}}
PATH = "public/packages/big/1/big.bin"
REASON = "published files are not all here yet"


def fetched(scene, path=PATH):
    """As a client gets it, from whichever node is active."""
    admin = scene.host("admin")
    admin.run("curl", "-fsS", "--retry", "10", "--retry-connrefused", "-o", "/root/got",
              f"http://redoubt:{plan.HTTP_PORT}/{path.removeprefix('public/')}")
    with open(admin.file("/root/got"), "rb") as file:
        return file.read()


def own(scene, node):
    return scene.lab.own_state(node) or {}


def unready(scene):
    """As the active node sees it, from whose view decisions are made."""
    told = next(n for n in scene.status(scene.active)["nodes"] if n["name"] == scene.passive)
    return not told["ready"] and REASON in told["not_ready_because"]


def test_the_passive_node_is_ready_only_when_it_has_what_is_published(scene):
    body = os.urandom(24 << 20)
    serial = scene.lab.publish({PATH: body}, wait=None)
    scene.lab.wait_for(lambda: unready(scene), 30, "the passive node lacks the file", 0.02)
    told = own(scene, scene.passive)["content"]
    assert told["missing"] == 1 and told["missing_bytes"] == len(body) and not told["prepared"]
    refused = scene.host(scene.active).run("redoubt", "switchover", check=False)
    assert refused.returncode != 0 and "not ready" in refused.stderr
    text = scene.host(scene.active).run("redoubt", "status").stdout
    assert "Published files" in text and "1 missing (24.0 MiB)" in text
    scene.expect_stay()
    for node in (scene.passive, scene.active):
        scene.lab.wait_for(lambda n=node: scene.lab.has_published(n, serial), 60, "it has it")
    scene.expect_ready()
    assert fetched(scene) == body
    scene.host(scene.active).power_off()
    scene.expect_switch()
    assert fetched(scene) == body, "the other node serves it"


def test_a_failed_service_moves_to_a_node_that_still_fetches(scene):
    before = scene.lab.publish({PATH: b"before"})
    assert before
    scene.lab.publish({PATH: os.urandom(64 << 20)}, wait=None)
    scene.later(lambda: scene.lab.publish({}))
    scene.lab.wait_for(lambda: unready(scene), 30, "the passive node lacks the file", 0.02)
    scene.host(scene.active).send("redoubt-server", signal.SIGKILL)
    scene.expect_switch()
    assert fetched(scene) == b"before", "the set before, whole"


@pytest.mark.parametrize("which", ["active", "passive"])
def test_a_killed_mirror_is_started_again_and_nothing_else_happens(scene, which):
    node = getattr(scene, which)
    serial = scene.lab.publish({PATH: b"some bytes"})
    first = set(scene.host(node).pids("redoubt-mirror"))
    assert first
    scene.host(node).send("redoubt-mirror", signal.SIGKILL)
    scene.lab.wait_for(lambda: set(scene.host(node).pids("redoubt-mirror")) - first, 30,
                       "another mirror", 0.05)
    assert own(scene, scene.passive)["ready"], "it is as prepared as before"
    scene.lab.wait_for(lambda: scene.lab.content(node).get("running")
                       and scene.lab.has_published(node, serial), 30, "it tells the same")
    scene.expect_stay()
    assert fetched(scene) == b"some bytes"


def test_readiness_does_not_depend_on_the_dbms_for_what_is_here(scene):
    scene.lab.publish({PATH: b"some bytes"})
    dbms = scene.host("dbms")
    dbms.power_off()
    scene.later(scene.expect_ready)
    scene.later(dbms.power_on)
    scene.lab.wait_for(lambda: not own(scene, scene.passive).get("ready", True), 30,
                       "the DBMS is missed", 0.05)
    for node in plan.NODES:
        assert scene.lab.content(node)["prepared"]
        assert REASON not in own(scene, node)["not_ready_because"]
    assert fetched(scene) == b"some bytes"


def test_a_damaged_copy_is_reported_and_healed(scene):
    scene.lab.publish({PATH: b"precious" * 1000})
    node = scene.host(scene.passive)
    store = node.file("/var/lib/redoubt/store")
    path = os.path.join(store, "blob", os.path.basename(os.readlink(f"{store}/current/{PATH}")))
    with open(path, "r+b") as file:
        file.write(b"X")
    answer = node.run("curl", "-fsS", "--unix-socket", "/run/redoubt/node.sock", "-X", "POST",
                      "http://node/v1/content/verify").stdout
    assert json.loads(answer)["state"] == "started"
    scene.lab.wait_for(lambda: scene.lab.content(scene.passive).get("healed"), 30, "it is healed")
    with open(path, "rb") as file:
        assert file.read() == b"precious" * 1000
    scene.lab.wait_for(lambda: "content_damaged" in scene.alarms(scene.passive), 10, "an alarm")
    scene.expect_stay()


def parts(scene):
    """Sizes of the uploads that are on their way, as they lie on the file server."""
    found = []
    with contextlib.suppress(FileNotFoundError):    # there is none yet, or it is over
        for entry in os.scandir(scene.lab.places.at("share", "data") + "/upload"):
            if entry.name.endswith(".part"):
                found.append(entry.stat().st_size)
    return found


def test_a_package_whose_node_dies_in_the_upload_is_published_from_the_other_one(scene):
    body = os.urandom(16 << 20)
    words = ("redoubt", "package", "publish", "/root/app.bin", "--name", "app", "--version", "1",
             "--json")
    for node in plan.NODES:
        with open(scene.host(node).file("/root/app.bin"), "wb") as file:
            file.write(body)
    slow = scene.host(scene.active)
    slow.run("tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "20mbit", "burst", "64kb",
             "latency", "100ms")
    scene.later(lambda: slow.is_on() and slow.run("tc", "qdisc", "del", "dev", "eth0", "root",
                                                  check=False))
    before = len(parts(scene))
    with slow.popen(*words):
        scene.lab.wait_for(lambda: len(parts(scene)) > before and max(parts(scene)) > 1 << 20, 30,
                           "the upload is on its way", 0.02)
        slow.power_off()
    scene.expect_switch()
    other = scene.host(scene.passive)
    assert json.loads(other.run("redoubt", "package", "list", "--json").stdout)["items"] == []
    made = json.loads(other.run(*words).stdout)
    again = json.loads(other.run(*words).stdout)
    assert made == again, "done twice it is done once"
    scene.lab.wait_for(lambda: os.path.exists(other.file(
        f"/var/lib/redoubt/store/current/{made['path']}")), 60, "the node shows it")
    assert fetched(scene, made["path"]) == body
    assert json.loads(other.run("redoubt", "store", "verify", "--json").stdout)["problems"] == []
    other.run("redoubt", "package", "remove", "app", "--yes")
