"""Licence activation on the whole cluster: seats belong to devices, whichever node hands them out."""
import json
import os
import subprocess

import pytest

from conftest import TOP
from redoubt_lab import pki, plan

LAB = {"devices": 2}
URL = f"https://redoubt:{plan.ACTIVATION_PORT}/v1/activate"
VENDOR = os.path.join(TOP, "lab/vendor/licence")
LICENCE = "/etc/redoubt/licence.json"
LEASE_S = 300     # an agent that got no answer asks again in 60 to 90 s
KEPT = "/var/lib/redoubt-agent/licence.json"


def ask(host, certificate="/etc/redoubt/agent.pem", key="/etc/redoubt/agent.key", device=None):
    """(status, answer) of a request by a host with its device certificate; (0, None): none."""
    body = json.dumps({"device": device} if device else {})
    told = host.run("curl", "-sS", "-m", "5", "-w", "\n%{http_code}", "--cacert",
                    "/etc/redoubt/agent-ca.pem", "--cert", certificate, "--key", key,
                    "-d", body, URL, check=False)
    text, _, status = told.stdout.rpartition("\n")
    return int(status or 0), json.loads(text) if text else None


def lease(host):
    status, answer = ask(host)
    assert status == 200, (status, answer)
    return json.loads(answer["document"])


def seats(scene):
    return dict(scene.lab.sql("select device::text, count(*) from redoubt.seat group by device"))


def licences(scene):
    """What devices say of their licence: {device: state}."""
    return dict(scene.lab.sql("""
        select id::text, description -> 'non_identifying' ->> 'protection.licence'
        from redoubt.device"""))


@pytest.fixture(autouse=True)
def everybody_has_a_lease(scene):
    """The agents ask for themselves; from then on the seats change no more."""
    devices = {plan.device_id(host) for host in scene.lab.managed()}
    scene.lab.wait_for(lambda: all(licences(scene).get(device) == "ok" for device in devices),
                       LEASE_S, "every device has a lease", 0.2, lambda: str(licences(scene)))


def test_agents_lease_by_themselves_and_tell_it_once(scene):
    devices = {plan.device_id(host) for host in scene.lab.managed()}
    assert set(seats(scene)) == devices

    def told():
        return scene.lab.sql("select device_id::text, data ->> 'state' from redoubt.event "
                             "where kind = 'licence_changed'")

    # After an interruption what a device is comes before its events.
    scene.lab.wait_for(lambda: {row[0] for row in told()} >= devices, 60, "each has told it")
    assert sorted(told()) == sorted((device, "ok") for device in devices)
    assert kept_lease(scene.host("client-1"))["device"] == plan.device_id("client-1")


def kept_lease(host):
    return json.loads(json.loads(host.read(KEPT))["document"])


def switch_over(scene):
    scene.host(scene.active).run("redoubt", "switchover")
    scene.expect_switch(5)


def install(scene, seats):
    """A licence of another identity, on both nodes, until the test ends: no seat is taken."""
    text = subprocess.run(
        [VENDOR, "sign", "--key", scene.lab.places.at("pki", "vendor.key"), "--seats", str(seats)],
        capture_output=True, text=True, check=True).stdout
    for node in plan.NODES:
        host = scene.host(node)
        scene.later(lambda host=host, before=host.read(LICENCE): host.write(LICENCE, before))
        host.write(LICENCE, text)


def test_a_device_gets_a_lease_and_keeps_its_seat(scene):
    device = plan.device_id("client-1")
    first = lease(scene.host("client-1"))
    assert first["device"] == device and first["seats"] == pki.SEATS
    second = lease(scene.host("client-1"))
    assert second["device"] == device and second["licence"] == first["licence"]
    assert seats(scene)[device] == 1


def test_after_a_switchover_it_is_the_same_seat(scene):
    before = lease(scene.host("client-1"))
    taken = seats(scene)
    switch_over(scene)
    scene.lab.wait_for(lambda: ask(scene.host("client-1"))[0] == 200, 10,
                       "the other node hands out leases")
    after = lease(scene.host("client-1"))
    assert (after["device"], after["licence"]) == (before["device"], before["licence"])
    assert seats(scene) == taken


def test_after_a_crash_it_is_the_same_seat(scene):
    lease(scene.host("client-1"))
    taken = seats(scene)
    scene.host(scene.active).power_off()
    scene.expect_switch()
    scene.lab.wait_for(lambda: ask(scene.host("client-1"))[0] == 200, 10,
                       "the other node hands out leases")
    assert seats(scene) == taken


def test_when_all_seats_are_taken_those_who_have_one_renew(scene):
    install(scene, 1)
    assert lease(scene.host("client-1"))["seats"] == 1
    status, answer = ask(scene.host("client-2"))
    assert (status, answer["error"]["id"]) == (409, "seats_full")
    switch_over(scene)
    scene.lab.wait_for(lambda: ask(scene.host("client-1"))[0] == 200, 10,
                       "who has a seat renews at the other node")
    status, answer = ask(scene.host("client-2"))
    assert (status, answer["error"]["id"]) == (409, "seats_full")


def test_a_lease_that_was_copied_from_another_device_is_none(scene):
    one, other = scene.host("client-1"), scene.host("client-2")
    kept = other.read(KEPT)
    other.stop("agent")
    other.write(KEPT, one.read(KEPT))
    other.start("agent")
    scene.lab.wait_for(lambda: kept_lease(other)["device"] == plan.device_id("client-2"), 30,
                       "the device asks for its own")
    assert "for another device" in other.log("agent")
    assert kept_lease(other)["device_key"] == json.loads(json.loads(kept)["document"])["device_key"]


def test_a_device_cannot_ask_for_another(scene):
    status, answer = ask(scene.host("client-1"), device=plan.device_id("client-2"))
    assert (status, answer["error"]["id"]) == (403, "other_device")


def test_a_foreign_certificate_gets_nothing(scene, tmp_path):
    taken = seats(scene)
    pki.make_ca(tmp_path)
    pki.make_certificate(tmp_path, "stranger", "stranger",
                         f"URI:urn:uuid:{plan.device_id('client-1')}", "clientAuth")
    client = scene.host("client-1")
    for kind in ("pem", "key"):
        client.write(f"/tmp/stranger.{kind}", (tmp_path / f"stranger.{kind}").read_text())
    status, answer = ask(client, "/tmp/stranger.pem", "/tmp/stranger.key")
    assert status in (0, 403), answer
    assert seats(scene) == taken


def test_the_passive_node_gives_no_leases(scene):
    told = scene.host("client-1").run(
        "curl", "-sSk", "-m", "5", "--cert", "/etc/redoubt/agent.pem", "--key",
        "/etc/redoubt/agent.key", "-d", "{}", "-w", "\n%{http_code}",
        f"https://{plan.address4(scene.passive)}:{plan.ACTIVATION_PORT}/v1/activate", check=False)
    assert told.stdout.rpartition("\n")[2] in ("000", "503")
    assert "signature" not in told.stdout
