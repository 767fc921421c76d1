"""Trouble that concerns both nodes: nobody is active without right, it is loud, and it heals."""
import os
import signal
import time

from redoubt_lab import LabError
from redoubt_lab.kernel import wait_until

STATE = "/srv/state"


def told(scene, alarm, nodes=None):
    try:
        return all(alarm in scene.alarms(node) for node in nodes or (scene.active, scene.passive))
    except LabError:      # a daemon that is just starting
        return False


def expect_alarm(scene, alarm, nodes=None, seconds=60):
    scene.lab.wait_for(lambda: told(scene, alarm, nodes), seconds, f"alarm {alarm}",
                       why=scene.story)


def expect_silence(scene, *alarms):
    """Back to normal: somebody is active, and the alarms have gone."""
    scene.expect_ready()
    scene.lab.wait_for(lambda: not any(told(scene, alarm, [node]) for alarm in alarms
                                       for node in (scene.active, scene.passive)), 60,
                       f"the alarms {alarms} end")


def test_file_server_lost_for_both(scene):
    scene.host("fileserver").power_off()
    scene.expect_nobody()
    expect_alarm(scene, "share_unreachable")
    time.sleep(1)
    assert scene.lab.active() is None
    scene.host("fileserver").power_on()
    expect_silence(scene, "share_unreachable")


def test_file_server_frozen_for_both(scene):
    scene.host("fileserver").freeze()
    scene.expect_nobody()
    time.sleep(3)
    assert scene.lab.active() is None
    scene.host("fileserver").thaw()
    scene.expect_ready()


def test_rights_on_the_share_withdrawn(scene):
    folder = scene.host("fileserver").file(STATE)
    for name in (folder, os.path.join(folder, "epoch")):
        scene.later(lambda name=name, mode=os.stat(name).st_mode & 0o777: os.chmod(name, mode))
        scene.later(lambda name=name: os.chown(name, 977, 977))
        os.chmod(name, 0)
        os.chown(name, 0, 0)
    scene.expect_nobody()
    expect_alarm(scene, "share_denied")
    for action in reversed(scene.undo):
        action()
    expect_silence(scene, "share_denied")


def test_share_read_only(scene):
    conf = "/etc/samba/redoubt-lab.conf"
    server = scene.host("fileserver")
    text = server.read(conf)

    def writable():
        if server.read(conf) != text:      # once: each time the nodes lose their sessions
            server.write(conf, text)
            server.kill_all("smbd")

    scene.later(writable)
    server.write(conf, text.replace("path = /srv/state\n    read only = no",
                                    "path = /srv/state\n    read only = yes"))
    server.kill_all("smbd")
    scene.expect_nobody()
    expect_alarm(scene, "share_denied")
    writable()
    expect_silence(scene, "share_denied")


def test_share_full(scene):
    """The holder may go on renewing in place; nobody can take over; space heals it."""
    filler = scene.host("fileserver").file(STATE + "/filler")

    def make_room():
        if os.path.exists(filler):
            os.unlink(filler)

    scene.later(make_room)
    with open(filler, "wb", buffering=0) as file:
        assert not wait_until(lambda: not fill(file), 10, 0)
        scene.host(scene.active).power_off()
        fill(file)      # what the active node may have removed meanwhile
    time.sleep(5)
    assert scene.lab.own_state(scene.passive)["role"] == "passive"
    expect_alarm(scene, "share_full", [scene.passive])
    make_room()
    scene.expect_switch(30)


def fill(file):
    """Write until there is no room; true once it is full."""
    try:
        while True:
            file.write(bytes(65536))
    except OSError:
        return True


def test_both_nodes_lose_power(scene):
    for node in (scene.active, scene.passive):
        scene.host(node).power_off()
    time.sleep(0.5)
    for node in (scene.active, scene.passive):
        scene.host(node).power_on()
    active = scene.expect_ready()
    assert scene.status(active)["epoch"] > scene.epoch


def test_everything_loses_power(scene):
    """File server, DBMS and both nodes come back in the least convenient order."""
    for name in (scene.active, scene.passive, "dbms", "fileserver"):
        scene.host(name).power_off()
    for name in (scene.active, scene.passive, "fileserver", "dbms"):
        scene.host(name).power_on()
        time.sleep(1)
    scene.expect_ready()
    scene.expect_reports()


def test_network_between_nodes_is_not_needed(scene):
    scene.lab.cut(scene.active, scene.passive)
    scene.expect_stay(3)
    scene.expect_ready()


def test_both_lose_the_share_in_turn(scene):
    """Whoever holds the lease loses the file server; the other has it, until its turn comes."""
    for _ in range(2):
        active = scene.lab.wait_ready(60)
        scene.lab.cut(active, "fileserver")
        scene.lab.wait_for(lambda node=active: scene.lab.active() == scene.lab.other(node), 20,
                           "the other node takes over")
        scene.lab.heal(active)


def test_newest_epoch_vanished(scene):
    """A file server crash may forget the newest record: the holder notices and gives way."""
    folder = scene.host("fileserver").file(STATE + "/epoch")
    os.unlink(os.path.join(folder, str(scene.epoch)))
    scene.lab.wait_for(lambda: (scene.whole() or (None, 0))[1] > scene.epoch, 60,
                       "the cluster goes on with a later epoch")


def test_share_restored_from_an_old_copy(scene):
    """Small gaps are walked; many epochs back waits for the operator, loudly."""
    folder = scene.host("fileserver").file(STATE + "/epoch")
    for turn in range(10):
        active = scene.lab.wait_ready(60)
        scene.host(active).run("redoubt", "switchover")
        scene.lab.wait_for(lambda node=active: scene.lab.active() == scene.lab.other(node), 20,
                           f"switchover {turn}")
    scene.lab.wait_ready(60)
    for node in (scene.active, scene.passive):
        scene.host(node).stop("redoubt-node", signal.SIGKILL)
    for node in (scene.active, scene.passive):      # it may outlive its daemon, and write
        scene.lab.wait_for(lambda host=scene.host(node): not host.pids("redoubt-keeper"), 20,
                           "the keeper has ended")
    for name in os.listdir(folder):
        if int(name) > 1:
            os.unlink(os.path.join(folder, name))
    for node in (scene.active, scene.passive):
        scene.host(node).start("redoubt-node")
    expect_alarm(scene, "share_regressed")
    time.sleep(4)
    assert scene.lab.active() is None
    scene.host(scene.active).run("redoubt", "lease", "adopt", "--yes")
    expect_silence(scene, "share_regressed")
    assert scene.status(scene.expect_ready())["epoch"] > scene.epoch


def test_record_of_the_holder_forged(scene):
    """Who has no key cannot write a release or a later record that anybody believes.

    (Who may write to the share can hide the holder's renewals by writing all the time; then
    only the fence in the DBMS holds.)"""
    path = os.path.join(scene.host("fileserver").file(STATE + "/epoch"), str(scene.epoch))
    with open(path, "rb") as file:
        record = file.read()
    assert b'"state":"held"' in record, record
    forged = record.replace(b'"held"', b'"released"').replace(b"    \n", b"\n", 1)
    assert len(forged) == len(record)
    for _ in range(8):
        with open(path, "r+b") as file:
            file.write(forged)
        time.sleep(0.4)
    scene.expect_stay(1)
    scene.expect_reports()


def test_record_of_the_holder_torn(scene):
    path = os.path.join(scene.host("fileserver").file(STATE + "/epoch"), str(scene.epoch))
    for _ in range(20):
        os.truncate(path, 100)
        time.sleep(0.05)
    scene.expect_ready()
    scene.expect_reports()
