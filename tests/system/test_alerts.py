"""The alert hook, the metrics and the health endpoint of a node: what monitoring lives on."""
import json
import os

HOOK = """#!/bin/sh
cat >> /tmp/events
if [ -e /tmp/hang ]; then echo >> /tmp/hung; sleep 1000; fi
"""
LAB = {"devices": 1, "settings": {
    "alert": {"hook": "/usr/local/bin/hook", "timeout_ms": 5000, "max_per_minute": 8},
    "address": {"health_listen": "0.0.0.0:8008"}}}


def arm(scene):
    """The hook on both nodes; what it got so far is forgotten."""
    for node in (scene.active, scene.passive):
        scene.host(node).write("/usr/local/bin/hook", HOOK, 0o755)
        scene.host(node).write("/tmp/events", "")


def events(scene, node):
    lines = scene.host(node).read("/tmp/events").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]     # else: half written


def health(scene, node):
    return scene.host("admin").run("curl", "-sS", "-m", "20", "-o", "/dev/null", "-w",
                                   "%{http_code}", f"http://{node}:8008/").stdout


def metric(scene, node, name):
    text = scene.host(node).run("curl", "-sS", "-m", "20", "http://127.0.0.1:9180/metrics").stdout
    return next(float(line.split()[1]) for line in text.splitlines()
                if line.startswith(name + " "))


def maintenance(scene, word):
    scene.host(scene.passive).run("redoubt", "maintenance", word)


def test_a_switch_reaches_the_hook_as_json(scene):
    arm(scene)
    scene.host(scene.active).run("redoubt", "switchover")
    scene.expect_switch()
    scene.lab.wait_for(lambda: any(event["kind"] == "switch" for event in
                                   events(scene, scene.passive)), 30, "the hook gets the switch")
    (event,) = [event for event in events(scene, scene.passive) if event["kind"] == "switch"]
    assert (event["from"], event["to"]) == (scene.active, scene.passive)
    scene.expect_ready()
    for node in (scene.active, scene.passive):  # a planned switch wakes nobody
        assert "peer_not_ready" not in {event.get("id") for event in events(scene, node)}


def test_a_hook_that_hangs_is_killed_with_what_it_started(scene):
    arm(scene)
    active = scene.host(scene.active)
    active.write("/tmp/hang", "")
    scene.later(lambda: active.run("rm", "-f", "/tmp/hang", "/tmp/hung"))
    maintenance(scene, "on")
    scene.later(lambda: maintenance(scene, "off"))
    scene.lab.wait_for(lambda: os.path.exists(active.file("/tmp/hung")), 30, "the hook hangs")
    scene.lab.wait_for(lambda: "alert_hook_timeout" in active.log("redoubt-node"), 30,
                       "the daemon has enough of it")
    scene.lab.wait_for(lambda: not active.pids("sleep"), 30, "it is killed")
    scene.expect_stay()


def test_more_events_than_allowed_are_left_out_and_said(scene):
    arm(scene)
    active = scene.host(scene.active)
    for _ in range(10):
        for word, there in (("on", True), ("off", False)):
            maintenance(scene, word)
            scene.lab.wait_for(lambda there=there: there == (
                "peer_maintenance" in scene.alarms(scene.active)), 30, f"maintenance {word}")
    assert len(events(scene, scene.active)) < 20
    assert "alert_dropped" in active.log("redoubt-node")


def test_a_load_balancer_finds_the_active_node(scene):
    assert (health(scene, scene.active), health(scene, scene.passive)) == ("200", "503")
    scene.host(scene.active).run("redoubt", "switchover")
    scene.expect_switch()
    assert (health(scene, scene.active), health(scene, scene.passive)) == ("503", "200")


def test_metrics_add_up_over_both_nodes(scene):
    assert metric(scene, scene.active, "redoubt_active") == 1
    assert metric(scene, scene.passive, "redoubt_active") == 0
    assert metric(scene, scene.passive, "redoubt_ready") == 1
    assert metric(scene, scene.active, "redoubt_epoch") == scene.epoch
