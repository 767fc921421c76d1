"""Devices: what they are told is stored is stored, whatever happens on the way."""
import time

from redoubt_lab import plan


def engine(scene, host="client-1"):
    """The newest stored word of a device about its engine: (sequence number, body)."""
    return scene.lab.sql("select seq, body from redoubt.report where device_id = %s "
                         "order by seq desc limit 1", plan.device_id(host))[0]


def test_reports_carry_what_the_engine_says(scene):
    scene.expect_reports()
    scene.lab.wait_for(lambda: engine(scene)[1]["engine.state"] == "running", 30,
                       "a report says that the engine is up")
    _, body = engine(scene)
    version = scene.host("client-1").run("clamd", "--version").stdout
    assert body["engine.version"] in version


def test_nodes_are_managed_devices_too(scene):
    for node in plan.NODES:
        scene.lab.wait_for(lambda node=node: scene.lab.sql(
            "select 1 from redoubt.report where device_id = %s limit 1", plan.device_id(node)), 60,
                           f"{node} has reported")


def test_an_engine_that_dies_is_reported(scene):
    client = scene.host("client-1")
    client.stop("clamd")
    scene.later(lambda: client.start("clamd"))
    scene.lab.wait_for(lambda: engine(scene)[1]["engine.state"] != "running", 30,
                       "a report says that the engine is down")
    client.start("clamd")
    scene.lab.wait_for(lambda: engine(scene)[1]["engine.state"] == "running", 30,
                       "a report says that it is back")


def test_acknowledgements_lost(scene):
    """What the server sends is lost: the device sends again, and there is one row all the same."""
    for _ in range(3):
        scene.lab.cut(scene.active, "client-1", one_way=True)
        time.sleep(1.2)
        scene.lab.heal("client-1")
        time.sleep(1)
    scene.expect_reports()


def test_a_device_keeps_its_reports_while_it_is_cut_off(scene):
    """All of them arrive later, in order, without a gap."""
    client = scene.host("client-1")
    first = max(number for _, _, number in scene.lab.acknowledged("client-1"))
    scene.lab.cut("client-1")
    time.sleep(5)
    scene.lab.heal("client-1")
    scene.lab.wait_for(lambda: max(number for _, _, number in
                                   scene.lab.acknowledged("client-1")) > first + 10, 40,
                       "what was kept is acknowledged")
    numbers = [row[0] for row in scene.lab.sql(
        "select seq from redoubt.report where device_id = %s and seq >= %s order by seq",
        plan.device_id("client-1"), first)]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert client.units()["agent"]["starts"] == 1


def test_a_device_loses_power_and_keeps_its_spool(scene):
    client = scene.host("client-2")
    scene.lab.cut("client-2")
    time.sleep(2)
    client.power_off()
    scene.lab.heal("client-2")
    client.power_on()
    scene.expect_reports()


def test_a_device_frozen(scene):
    client = scene.host("client-3")
    client.freeze()
    time.sleep(4)
    client.thaw()
    scene.expect_reports()


def test_a_stranger_is_not_served(scene):
    """Without a certificate of our authority there is no answer."""
    told = scene.host("admin").run(
        "openssl", "s_client", "-connect", f"{plan.VIRTUAL4}:{plan.SERVER_PORT}", "-quiet",
        "-no_ign_eof", check=False, text_in="GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert "epoch" not in told.stdout


def test_both_addresses_and_the_web_server_serve(scene):
    for address in (plan.VIRTUAL4, f"[{plan.VIRTUAL6}]"):
        told = scene.host("client-1").run("curl", "-sS", "-g", "-m", "5", "-D", "-",
                                          f"http://{address}:{plan.HTTP_PORT}/").stdout
        assert "Redoubt lab" in told
        assert f"x-redoubt-node: {scene.active}" in told.lower()
    told = scene.host("client-1").run(
        "curl", "-sS", "-m", "5", "--cacert", "/etc/redoubt/agent-ca.pem", "--resolve",
        f"redoubt:{plan.HTTPS_PORT}:{plan.VIRTUAL4}", f"https://redoubt:{plan.HTTPS_PORT}/").stdout
    assert "Redoubt lab" in told
