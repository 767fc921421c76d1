"""The command line on a running cluster, on either node."""
import json
import signal
import subprocess

import pytest

from redoubt_lab import plan


def redoubt(scene, node, *words, check=True):
    return scene.host(node).run("redoubt", *words, check=check)


def seen(scene, name):
    """A node as the active one sees it."""
    return next(node for node in scene.status(scene.active)["nodes"] if node["name"] == name)


@pytest.mark.parametrize("which", ["active", "passive"])
def test_status_json_says_what_is_promised(scene, which):
    told = json.loads(redoubt(scene, getattr(scene, which), "status", "--json").stdout)
    for key in ("cluster", "epoch", "active", "address", "paused", "nodes", "last_switch"):
        assert key in told
    assert told["active"] == scene.active
    assert {node["name"]: node["role"] for node in told["nodes"]} == {
        scene.active: "active", scene.passive: "passive"}
    for node in told["nodes"]:
        for key in ("state", "ready", "not_ready_because", "maintenance", "services", "share",
                    "database"):
            assert key in node
        assert {service["name"] for service in node["services"]} == {
            "server", "web", "activation", "agent"}
        for service in node["services"]:
            assert {"name", "state", "since", "restarts"} <= set(service)
        assert node["share"]["ok"] and node["database"]["ok"]
        assert node["share"]["latency_ms"] >= 0


def test_status_for_people(scene):
    for node in (scene.active, scene.passive):
        told = redoubt(scene, node, "status").stdout
        assert scene.active in told and scene.passive in told
    # An alarm ends with the next look at what there is, a second after its cause.
    scene.lab.wait_for(lambda: not scene.alarms(scene.active), 30, "no alarm is left")
    assert redoubt(scene, scene.active, "status", "--check", check=False).returncode == 0


def test_check_finds_nothing_wrong(scene):
    told = redoubt(scene, scene.active, "check", check=False)
    assert told.returncode == 0, told.stdout
    assert "FAIL" not in told.stdout


def test_switchover_waits_until_it_is_done(scene):
    redoubt(scene, scene.passive, "switchover", "--to", scene.passive)
    scene.expect_switch(1)
    switch = scene.status(scene.passive)["last_switch"]
    assert "operator" in switch["reason"]
    assert switch["outage_ms"] is not None and switch["outage_ms"] < 5000


def test_switchover_to_a_node_that_is_not_ready_is_refused(scene):
    scene.host(scene.passive).power_off()
    told = redoubt(scene, scene.active, "switchover", check=False)
    # right after the power-off the peer's record is still fresh: then the switchover begins,
    # and the node takes the lease back
    assert told.returncode in (1, 6)
    scene.lab.wait_for(lambda: scene.lab.active() == scene.active, 30, "it is active")


def test_maintenance_keeps_a_node_from_taking_over(scene):
    redoubt(scene, scene.passive, "maintenance", "on")
    scene.later(lambda: redoubt(scene, scene.passive, "maintenance", "off"))
    scene.lab.wait_for(lambda: "peer_maintenance" in scene.alarms(scene.active), 10,
                       "the active node knows")
    told = redoubt(scene, scene.active, "switchover", check=False)
    assert told.returncode == 6 and "maintenance" in told.stderr
    redoubt(scene, scene.passive, "maintenance", "off")
    scene.expect_ready()


def test_log_tells_a_switch_with_its_reason(scene):
    redoubt(scene, scene.active, "switchover")
    scene.expect_ready()
    for node in (scene.active, scene.passive):
        told = redoubt(scene, node, "log").stdout
        assert scene.passive in told and "operator" in told
    entries = json.loads(redoubt(scene, scene.active, "log", "--json").stdout)["entries"]
    assert any(entry["kind"] == "switch" for entry in entries)


def test_explain(scene):
    for node in (scene.active, scene.passive):
        assert scene.active in redoubt(scene, node, "explain").stdout


def test_pause_and_resume(scene):
    redoubt(scene, scene.active, "pause")
    scene.later(lambda: redoubt(scene, scene.active, "resume"))
    scene.lab.wait_for(lambda: all(scene.status(node)["paused"] for node in
                                   (scene.active, scene.passive)), 10, "both nodes know")
    redoubt(scene, scene.passive, "resume")
    scene.lab.wait_for(lambda: not any(scene.status(node)["paused"] for node in
                                       (scene.active, scene.passive)), 10, "both nodes know")


def test_a_reload_counts_when_the_configurations_are_compared(scene):
    path = "/etc/redoubt/redoubt.conf"
    nodes = scene.active, scene.passive

    def write(node, text):
        scene.host(node).write(path, text)
        redoubt(scene, node, "reload")

    def mismatch(node):
        return "config_mismatch" in scene.alarms(node)

    for node in nodes:
        scene.later(lambda node=node, text=scene.host(node).read(path): write(node, text))
    for node, differ in zip(nodes, (True, False)):
        write(node, scene.host(node).read(path) + "\n[alert]\nmax_per_minute = 19\n")
        scene.lab.wait_for(lambda differ=differ: [mismatch(n) for n in nodes] == [differ] * 2,
                           30, "both nodes know whether their configurations differ")


def test_reload_changes_what_it_can_without_a_switch(scene):
    host = scene.host(scene.active)
    path = "/etc/redoubt/redoubt.conf"
    text = host.read(path)
    scene.later(lambda: (host.write(path, text), redoubt(scene, scene.active, "reload")))
    host.write(path, text.replace("level = info", "level = debug"))
    redoubt(scene, scene.active, "reload")
    scene.expect_stay(1)
    host.write(path, "[cluster]\nnonsense = 1\n")
    told = redoubt(scene, scene.active, "reload", check=False)
    assert told.returncode != 0
    scene.expect_stay(1)
    host.write(path, "[cluster]\nrubbish = 1\n")
    host.send("redoubt-node", signal.SIGHUP)
    scene.lab.wait_for(lambda: any("config_error" in line and "rubbish" in line for line in
                                   host.log("redoubt-node").splitlines()), 10,
                       "the log names the error")
    scene.expect_stay()


def test_debug_shows_the_ring(scene):
    assert redoubt(scene, scene.active, "debug").stdout.strip()


def test_without_daemon_the_share_still_tells(scene):
    host = scene.host(scene.passive)
    host.stop("redoubt-node")
    scene.later(lambda: host.start("redoubt-node"))
    told = redoubt(scene, scene.passive, "status", check=False)
    assert told.returncode == 3
    assert scene.active in told.stdout


def test_a_node_that_cannot_take_over_refuses_at_once(scene):
    redoubt(scene, scene.passive, "maintenance", "on")
    scene.later(lambda: redoubt(scene, scene.passive, "maintenance", "off"))
    told = redoubt(scene, scene.passive, "switchover", check=False)
    assert told.returncode == 6 and "maintenance" in told.stderr
    scene.lab.wait_for(lambda: "peer_maintenance" in scene.alarms(scene.active), 10,
                       "the active node knows")
    told = redoubt(scene, scene.active, "explain").stdout
    assert "nobody takes over, because the other node is in maintenance" in " ".join(told.split())


def test_maintenance_on_the_active_node_hands_over(scene):
    redoubt(scene, scene.active, "maintenance", "on")
    scene.later(lambda: redoubt(scene, scene.active, "maintenance", "off"))
    assert scene.expect_switch()["reason"] == "maintenance"


def test_when_nobody_is_active_the_other_node_says_so_and_why(scene):
    redoubt(scene, scene.passive, "maintenance", "on")
    scene.later(lambda: redoubt(scene, scene.passive, "maintenance", "off"))
    scene.lab.wait_for(lambda: "peer_maintenance" in scene.alarms(scene.active), 10,
                       "the active node knows")
    scene.host(scene.active).power_off()
    scene.lab.wait_for(lambda: "no_active_node" in scene.alarms(scene.passive), 20, "it is told")
    (alarm,) = [alarm for alarm in scene.status(scene.passive)["alarms"]
                if alarm["id"] == "no_active_node"]
    assert "maintenance" in alarm["detail"]
    redoubt(scene, scene.passive, "maintenance", "off")
    scene.expect_switch()
    scene.lab.wait_for(lambda: "no_active_node" not in scene.alarms(scene.passive), 10,
                       "it is over")


def test_what_a_silent_node_said_last_does_not_pass_for_the_present(scene):
    scene.host(scene.passive).power_off()
    # The alarm may still be the one of the test before.
    scene.lab.wait_for(lambda: seen(scene, scene.passive)["state"] == "silent", 30, "it is silent")
    scene.lab.wait_for(lambda: "peer_silent" in scene.alarms(scene.active), 30, "it is noticed")
    node = seen(scene, scene.passive)
    assert (node["state"], node["ready"]) == ("silent", False)
    assert {service["state"] for service in node["services"]} == {"unknown"}
    told = " ".join(redoubt(scene, scene.active, "explain").stdout.split())
    assert "nobody takes over, because the other node is silent" in told


def test_explain_knows_what_a_paused_cluster_does(scene):
    redoubt(scene, scene.active, "pause")
    scene.later(lambda: redoubt(scene, scene.active, "resume"))
    scene.lab.wait_for(lambda: scene.status(scene.passive)["paused"], 10, "the passive node knows")
    told = " ".join(redoubt(scene, scene.passive, "explain").stdout.split())
    assert "does not take over while the cluster is paused" in told


def test_maintenance_of_the_other_node_is_asked_for_by_way_of_the_share(scene):
    told = redoubt(scene, scene.active, "maintenance", "on", "--node", scene.passive)
    scene.later(lambda: redoubt(scene, scene.passive, "maintenance", "off"))
    assert "asked" in told.stdout
    scene.lab.wait_for(lambda: (scene.lab.own_state(scene.passive) or {}).get("maintenance"), 30,
                       "it is done")
    told = redoubt(scene, scene.passive, "maintenance", "on", "--node", scene.active, check=False)
    assert told.returncode == 6 and "not ready" in told.stderr
    scene.expect_stay()


def test_device_commands_say_which_node_is_active(scene):
    assert "client-1" in redoubt(scene, scene.active, "device", "list").stdout
    told = redoubt(scene, scene.passive, "device", "list", check=False)
    assert told.returncode == 5 and f"{scene.active} is active" in told.stderr


def test_a_scan_is_watched_from_elsewhere_through_a_power_off(scene):
    """Over the cluster's address with a token: a created task, its progress, its events."""
    active, admin = scene.host(scene.active), scene.host("admin")
    token = active.run("redoubt", "api-token", "create", "console", "--role", "operator").stdout
    admin.write("/root/token", token, mode=0o600)
    admin.write("/root/ca.pem", active.run("cat", "/var/lib/redoubt/secret/ca.pem").stdout)

    def remote(*words):
        return ["redoubt", *words, "--server", plan.VIRTUAL4, "--token-file", "/root/token",
                "--ca", "/root/ca.pem"]

    client = scene.host("client-1")
    client.run("sh", "-c", "mkdir -p /srv/big; for i in $(seq 1500); do "
                           "head -c 20000 /dev/urandom > /srv/big/$i; done")
    scene.later(lambda: client.run("rm", "-rf", "/srv/big"))
    with admin.popen(*remote("events", "--follow", "--json", "--kind",
                             "task_started,run_finished,task_finished"), stdout=subprocess.PIPE,
                     text=True) as follow:
        admin.run(*remote("task", "create", "slow", "scan", "--device", "client-1", "--path",
                          "/srv/big", "--cpu", "10"))
        with admin.popen(*remote("task", "start", "slow", "--watch"), stderr=subprocess.PIPE,
                         text=True) as watch:
            scene.lab.wait_for(lambda: scene.lab.sql(
                "select 1 from redoubt.run where state = 'running'"), 20, "the scan runs", 0.05)
            active.power_off()
            scene.expect_switch()
            assert watch.wait(240) == 0, watch.popen.stderr.read()
        results = json.loads(admin.run(*remote("task", "results", "slow", "--json")).stdout)
        (run,) = results["items"]
        assert (run["outcome"], run["counts"]["scanned"]) == ("done", 1500)
        seen = []
        while not seen or seen[-1] != "task_finished":
            seen.append(json.loads(follow.popen.stdout.readline())["kind"])
    assert seen == ["task_started", "run_finished", "task_finished"]
