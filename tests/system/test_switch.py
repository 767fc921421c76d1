"""Each reason to switch: the other node takes over, never are two active, nothing is lost."""
import contextlib
import json
import os
import signal
import time

import pytest
from redoubt_lab.events import EVENTS


def do(scene, name):
    event = EVENTS[name]
    scene.later(lambda: event.end(scene.lab, scene.active))
    event.begin(scene.lab, scene.active)


def send_at_once(pids, number):
    """Nobody can answer the end of one before the next is signalled, as all are known before."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@pytest.mark.parametrize("name", sorted(EVENTS))
def test_event(scene, name):
    do(scene, name)
    scene.expect_switch()
    scene.expect_reports()


def test_a_node_that_comes_back_is_passive_and_ready(scene):
    do(scene, "power-off")
    scene.expect_switch()
    scene.host(scene.active).power_on()
    assert scene.expect_ready() == scene.passive


def test_a_reboot_that_is_faster_than_the_wait(scene):
    host = scene.host(scene.active)
    host.power_off()
    host.power_on()
    active = scene.expect_ready()
    assert scene.status(active)["epoch"] > scene.epoch


def test_there_and_back(scene):
    do(scene, "switchover")
    scene.expect_switch()
    assert scene.expect_ready() == scene.passive
    EVENTS["switchover"].begin(scene.lab, scene.passive)
    scene.lab.wait_for(lambda: scene.lab.active() == scene.active, 20, "it comes back")


def test_a_process_of_a_service_dies_while_its_main_process_lives(scene):
    """nginx is a child of redoubt-web."""
    main = scene.host(scene.active).pids("redoubt-web")
    assert main
    scene.host(scene.active).send("nginx", signal.SIGKILL)
    scene.expect_switch()


def parent(pid):
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def test_a_worker_of_nginx_dies_alone(scene):
    """Only a worker, a child of nginx, which would start a new one: it counts all the same."""
    running = scene.host(scene.active).pids("nginx")
    workers = [pid for pid in running if parent(pid) in running]
    assert workers
    os.kill(workers[-1], signal.SIGKILL)
    scene.expect_switch()
    scene.expect_reports()


def test_all_services_die_at_once(scene):
    host = scene.host(scene.active)
    pids = [host.pids(program) for program in ("redoubt-server", "redoubt-web",
                                               "redoubt-activation")]
    assert all(pids)
    send_at_once(sum(pids, []), signal.SIGKILL)
    scene.expect_switch()


def expect_logged(scene, node, alarm):
    def logged():
        told = scene.host(node).run("redoubt", "log", "--json", check=False).stdout
        return any(e["node"] == node and e.get("id") == alarm
                   for e in json.loads(told or "{}").get("entries", []))

    scene.lab.wait_for(logged, 60, f"{alarm} is in the log of {node}")


def test_guard_killed(scene):
    """Without its guard a node steps down by itself."""
    scene.host(scene.active).send("redoubt-guard", signal.SIGKILL)
    scene.expect_switch()
    expect_logged(scene, scene.active, "guard_lost")


def test_guard_and_daemon_killed(scene):
    """The worst double failure short of the kernel: nobody is left to kill the services."""
    host = scene.host(scene.active)
    pids = host.pids("redoubt-node") + host.pids("redoubt-guard")
    assert len(pids) >= 2
    send_at_once(pids, signal.SIGSTOP)      # so that neither acts on the end of the other
    send_at_once(pids, signal.SIGKILL)
    scene.expect_switch()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_keeper_killed_or_hung(scene, number):
    """A lost keeper is replaced; whether in time or not, one node is active in the end."""
    scene.host(scene.active).send("redoubt-keeper", number)
    time.sleep(2.5)
    scene.expect_ready()
    scene.expect_reports()


@pytest.mark.parametrize("sender, receiver", [("active", "fileserver"), ("fileserver", "active")])
def test_share_lost_one_way(scene, sender, receiver):
    names = {"active": scene.active, "fileserver": "fileserver"}
    scene.lab.cut(names[sender], names[receiver], one_way=True)
    scene.expect_switch()
    scene.expect_reports()


def test_share_connection_reset_again_and_again(scene):
    """smbd loses its sessions of the active node; the node reconnects or hands over."""
    for _ in range(5):
        scene.host("fileserver").kill_all("smbd")
        time.sleep(0.7)
    scene.expect_ready()


@pytest.mark.parametrize("seconds", [0.5, 3, 10])
@pytest.mark.parametrize("keep_network", [False, True], ids=["vm", "processes"])
def test_frozen(scene, seconds, keep_network):
    """A paused virtual machine that wakes up again can do no harm."""
    host = scene.host(scene.active)
    host.freeze(keep_network=keep_network)
    time.sleep(seconds)
    host.thaw()
    if seconds > 2:
        scene.expect_switch()
        expect_logged(scene, scene.active, "clock_jump")
    scene.expect_ready()
    scene.expect_reports()


def test_frozen_while_reports_are_on_their_way(scene):
    """Many short pauses: what was acknowledged in between must be stored."""
    host = scene.host(scene.active)
    for pause in range(12):
        host.freeze(keep_network=True)
        time.sleep(0.05 * pause)
        host.thaw()
        time.sleep(0.15)
    scene.expect_ready()


def test_dbms_cut_from_the_new_node_only(scene):
    """The DBMS is no reason to stay: the new node is active without it, and says degraded."""
    def database_ok():
        own = scene.lab.own_state(scene.passive)
        return bool(own and own["database"]["ok"])

    scene.lab.cut(scene.passive, "dbms")
    scene.later(lambda: scene.lab.heal(scene.passive))
    scene.host(scene.active).power_off()
    scene.lab.wait_for(scene.has_switched, 30, "the other node takes over without the DBMS")
    scene.lab.wait_for(lambda: scene.status(scene.passive)["degraded"], 30, "it says degraded")
    scene.lab.heal(scene.passive)
    scene.lab.wait_for(database_ok, 60, "the DBMS is back")
    scene.expect_reports()


def test_switchover_under_load(scene):
    for turn in range(4):
        active = scene.lab.wait_ready(60)
        EVENTS["switchover"].begin(scene.lab, active)
        scene.lab.wait_for(lambda node=active: scene.lab.active() == scene.lab.other(node), 20,
                           f"switchover {turn}")
    scene.expect_reports()
