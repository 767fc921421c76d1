"""Devices of the lab that are enrolled, approved, revoked; by whichever node is active."""
import json
import uuid

import pytest


class Newcomer:
    """An agent on a client host beside the one of the lab, without an identity."""

    def __init__(self, scene):
        self.lab = scene.lab
        self.host = scene.host(next(h for h in scene.lab.managed() if h.startswith("client")))
        self.folder = f"/var/lib/newcomer/{uuid.uuid4()}"
        self.conf = f"{self.folder}/agent.conf"
        self.host.write(self.conf, f"""[agent]
certificate = {self.folder}/in/device.pem
key = {self.folder}/in/device.key
ca = {self.folder}/in/ca.pem
spool = {self.folder}/spool.db
state_dir = {self.folder}
clamd = /run/clamav/clamd.ctl
""")

    def enrol(self, token, *more, check=True):
        done = self.host.run("redoubt-agent", "enrol", "--config", self.conf, "--server", "redoubt",
                             "--token", token, "--json", *more, check=check)
        return json.loads(done.stdout)

    def start(self, scene):
        process = self.host.popen("redoubt-agent", "--config", self.conf)
        scene.later(process.stop)

    def status(self):
        done = self.host.run("redoubt-agent", "--config", self.conf, "status", "--json",
                             check=False)
        return json.loads(done.stdout) if done.returncode == 0 else {}

    def wait_connected(self, seconds=60):
        self.lab.wait_for(lambda: self.status().get("connection") == "connected", seconds,
                          "the newcomer is connected")


def redoubt(scene, *argv):
    done = scene.host(scene.lab.active()).run("redoubt", *argv, "--json")
    return json.loads(done.stdout)


@pytest.mark.parametrize("switch_first", [False, True], ids=["node that made it", "other node"])
def test_either_node_enrols_devices(scene, switch_first):
    if switch_first:
        scene.host(scene.active).run("redoubt", "switchover")
        scene.expect_switch()
    made = redoubt(scene, "token", "create", "newcomers", "--approval")
    device = Newcomer(scene)
    assert device.enrol(made["token"], check=False)["state"] == "pending"
    waiting = [d for d in redoubt(scene, "device", "list", "--state", "pending")["items"]]
    assert len(waiting) == 1
    redoubt(scene, "device", "approve", waiting[0]["id"])
    told = device.enrol(made["token"], "--wait")
    assert told["state"] == "issued" and told["device"] == waiting[0]["id"]
    device.start(scene)
    device.wait_connected()
    other = Newcomer(scene)
    assert other.enrol(made["token"], check=False)["error"]["id"] == "token_used"


def test_a_device_is_refused_from_the_moment_it_is_revoked(scene):
    device = Newcomer(scene)
    told = device.enrol(redoubt(scene, "token", "create", "one")["token"])
    device.start(scene)
    device.wait_connected()
    scene.host(scene.lab.active()).run("redoubt", "device", "revoke", told["device"], "--yes")
    scene.lab.wait_for(lambda: "revoked" in device.status().get("trouble", ""), 10,
                       "the device is told that it is revoked")
    # Nor by the other node, which gets the resumed session of another one.
    scene.host(scene.active).run("redoubt", "switchover")
    scene.expect_switch()
    rows = scene.lab.sql("SELECT state, connected_node FROM redoubt.device WHERE id = %s",
                         told["device"])
    assert rows[0][0] == "revoked" and rows[0][1] in (None, scene.active)
