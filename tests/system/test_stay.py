"""Where there is no reason to switch, nothing switches."""
import signal
import time


def test_nothing_happens(scene):
    told = scene.expect_stay(5)
    assert told["alarms"] == []
    assert not told["degraded"]


SURVIVED_S = 0.95       # by the balanced profile, whatever the moment


def stall(server, seconds):
    """How long smbd stood still: longer than wished if this machine did not let us go on."""
    began = time.monotonic()
    server.freeze_unit("smbd")
    time.sleep(seconds)
    server.freeze_unit("smbd", False)
    return time.monotonic() - began


def test_share_stalls_within_tolerance(scene):
    """Measured machines are noisy, so 0.6 s here; a stall that became too long says nothing."""
    survived = 0
    for _ in range(30):
        if stall(scene.host("fileserver"), 0.6) < SURVIVED_S:
            scene.expect_stay(0.7)
            survived += 1
        else:
            time.sleep(2)       # a switch that it brought about has begun
            scene.look()
        if survived == 5:
            break
    assert survived == 5
    scene.expect_stay(1)


def test_smbd_restarted(scene):
    server = scene.host("fileserver")
    for _ in range(3):
        server.stop("smbd")
        server.start("smbd")
        time.sleep(1.5)
    scene.expect_stay(1)


def test_the_passive_node_loses_the_share(scene):
    scene.lab.cut(scene.passive, "fileserver")
    time.sleep(4)
    scene.lab.heal(scene.passive)
    scene.expect_stay(2)


def test_dbms_restarted(scene):
    server = scene.host("dbms")
    server.stop("postgres", signal.SIGINT)
    server.start("postgres")
    scene.expect_stay(3)
    scene.expect_reports()


def test_dbms_gone_for_a_while(scene):
    """Services go on as far as they can, devices keep their reports, the status says so."""
    server = scene.host("dbms")
    server.stop("postgres", signal.SIGQUIT)
    scene.lab.wait_for(lambda: scene.status(scene.active)["degraded"], 30, "it says degraded")
    scene.expect_stay(3)
    scene.lab.wait_for(lambda: scene.status(scene.passive)["degraded"], 30,
                       "the passive node says the same")
    server.start("postgres")
    scene.lab.wait_for(lambda: not scene.status(scene.active)["degraded"], 60, "it is well again")
    scene.expect_stay()
    scene.expect_reports()


def test_dbms_frozen(scene):
    """A DBMS that accepts connections and answers nothing."""
    server = scene.host("dbms")
    server.freeze()
    scene.expect_stay(6)
    server.thaw()
    scene.expect_stay(2)
    scene.expect_reports()


def test_passive_node_powered_off(scene):
    host = scene.host(scene.passive)
    host.power_off()
    scene.expect_stay(3)

    def noticed():
        told = scene.status(scene.active)
        peer = next(node for node in told["nodes"] if node["name"] == scene.passive)
        return not peer["ready"] and peer["not_ready_because"] and any(
            alarm["id"] == "peer_silent" for alarm in told["alarms"])

    scene.lab.wait_for(noticed, 30, "the active node says that it is alone")
    host.power_on()
    scene.expect_ready()
    scene.expect_stay()


def test_services_of_the_passive_node_fail(scene):
    host = scene.host(scene.passive)
    for program in ("redoubt-server", "redoubt-web", "redoubt-activation"):
        host.send(program, signal.SIGKILL)
        time.sleep(0.5)
    scene.expect_stay(2)
    scene.expect_ready()


def test_passive_daemon_guard_and_keeper_killed(scene):
    for program in ("redoubt-keeper", "redoubt-guard", "redoubt-node"):
        host = scene.host(scene.passive)
        host.send(program, signal.SIGKILL)
        scene.expect_stay(2)
        scene.lab.wait_for(lambda: scene.lab.is_ready(), 60, "it is ready again")


def test_passive_node_frozen_and_thawed(scene):
    host = scene.host(scene.passive)
    host.freeze()
    time.sleep(5)
    host.thaw()
    scene.expect_stay(3)


def test_paused_cluster_does_not_switch(scene):
    scene.host(scene.active).run("redoubt", "pause")
    scene.later(lambda: scene.host(scene.passive).run("redoubt", "resume"))
    scene.lab.wait_for(lambda: scene.status(scene.passive)["paused"], 30, "both nodes know")
    scene.host(scene.active).power_off()
    time.sleep(5)
    assert scene.lab.active() is None
    scene.host(scene.passive).run("redoubt", "resume")
    scene.expect_switch()


def test_both_cores_busy_for_a_minute(scene):
    hogs = [scene.host(name).popen("sh", "-c", "while :; do :; done")
            for name in (scene.active, scene.passive)]
    try:
        scene.expect_stay(60)
    finally:
        for hog in hogs:
            hog.stop()
    scene.expect_reports()
