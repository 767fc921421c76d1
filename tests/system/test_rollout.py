"""Another version of the agent on the lab's clients: real packages, published, served by the Web
Server, installed by the real dpkg; whatever happens to the active node meanwhile."""
import json
import os
import sys

import pytest

from conftest import TOP
from redoubt_lab import plan
from test_management import Api, clients

sys.path.insert(0, os.path.join(TOP, "tests", "contract"))

from package_world import build_deb  # noqa: E402

LAB = {"devices": 2, "report_ms": 1000,
       "settings": {"cluster": {"switch_max": 100, "switch_window_s": 10}}}
OLD, NEW, BAD = "0.1.0", "0.2.0", "0.3.0"
STATE = "/var/lib/redoubt-agent/package"
EXPECTED_S = 60           # a bound, not a measurement

# It says what it is, and ends whenever it is to be an agent.
DYING = """#!/bin/sh
[ "$1" = --version ] && { echo "redoubt-agent VERSION"; exit 0; }
exit 1
"""


class World:
    def __init__(self, lab):
        self.lab, self.api = lab, Api(lab)
        self.clients = clients(lab)
        self.folder = lab.places.at("packages")
        os.makedirs(self.folder)
        self.prefix = lab.programs.prefix.strip("/")
        self.agent = os.path.join(lab.programs.build, "src/app/agent/redoubt-agent")
        self.debs = {OLD: self.deb(OLD, self.agent), NEW: self.deb(NEW, self.agent),
                     BAD: self.deb(BAD, DYING)}
        for name in self.clients:
            self.install_first(name)
        self.logged = {name: len(self.dpkg_log(name)) for name in self.clients}
        self.api("POST", "/v1/groups", {"name": "Upgraded"})
        for name in self.clients:
            self.api("PATCH", f"/v1/devices/{plan.device_id(name)}", {"group": "/Upgraded"})
        for version in (OLD, NEW, BAD):
            self.publish(version)
        lab.wait_for(lambda: all(self.has(n) == OLD for n in self.clients), EXPECTED_S,
                     "the devices say what they have")

    def deb(self, version, program):
        return build_deb(self.folder, version, program, prefix=self.prefix)

    def install_first(self, name):
        """The agent of this lab, as a package: what an administrator would have installed."""
        host = self.lab.host(name)
        where = "/root/" + os.path.basename(self.debs[OLD])
        self.copy(host, self.debs[OLD], where)
        host.run("dpkg", "--install", where)
        host.write("/etc/redoubt/agent.conf",
                   host.read("/etc/redoubt/agent.conf").replace(
                       "[agent]\n", "[agent]\nupgrade_confirm_s = 15\n", 1), 0o640)
        host.stop("agent")
        host.start("agent")

    @staticmethod
    def copy(host, source, target):
        with open(source, "rb") as file, open(host.file(target), "wb") as to:
            to.write(file.read())

    def publish(self, version):
        node = self.lab.host(self.lab.active())
        where = "/root/" + os.path.basename(self.debs[version])
        self.copy(node, self.debs[version], where)
        node.run("redoubt", "package", "publish", where)

    def has(self, name):
        ((found),) = self.lab.sql("SELECT version FROM redoubt.device_package"
                                  " WHERE device_id = %s", plan.device_id(name)) or [(None,)]
        return found[0]

    def redoubt(self, *words, check=True):
        """The command line, on whichever node is active."""
        return self.lab.host(self.lab.active()).run("redoubt", "rollout", *words, check=check,
                                                    timeout=120)

    def start(self, version):
        done = self.redoubt("start", f"redoubt-agent={version}", "--group", "/Upgraded", "--waves",
                            "50,100", "--soak", "0", "--json")
        return json.loads(done.stdout)["id"]

    def get(self, rollout):
        return self.api("GET", f"/v1/rollouts/{rollout}")

    def devices(self, rollout):
        return self.api("GET", f"/v1/rollouts/{rollout}/devices")["items"]

    def installed(self, name):
        """What dpkg has put in the place of what since then, in order."""
        words = [line.split() for line in self.dpkg_log(name)[self.logged[name]:]]
        return [w[5] for w in words if w[2] == "upgrade" and w[3].startswith("redoubt-agent:")]

    def dpkg_log(self, name):
        return self.lab.host(name).read("/var/log/dpkg.log").splitlines()

    def story(self):
        return "\n".join([json.dumps(self.api("GET", "/v1/rollouts"), indent=1)]
                         + [self.lab.host(n).log("agent")[-1500:] for n in self.clients])


@pytest.fixture(scope="module", name="world")
def _world(cluster):
    return World(cluster)


def test_a_rollout_goes_on_at_the_other_node(world, scene):
    rollout = world.start(NEW)

    def begun():
        """Those who are in it when the first of them has begun: soon the next wave begins."""
        found = world.devices(rollout)
        return found if [d for d in found if d["state"] != "offered"] else None

    first = {d["device"]: d["wave"] for d in scene.lab.wait_for(
        begun, EXPECTED_S, "a device of the first wave has begun", 0.02, world.story)}
    assert list(first.values()) == [1]
    scene.host(scene.active).power_off()
    scene.expect_switch()
    watched = world.redoubt("watch", rollout[:8], check=False)
    assert watched.returncode == 0 and "done  wave 2/2" in watched.stderr, world.story()
    told = world.get(rollout)
    assert told["state"] == "done" and told["totals"]["healthy"] == 2, world.story()
    waves = {d["device"]: d["wave"] for d in world.devices(rollout)}
    assert sorted(waves.values()) == [1, 2] and first.items() <= waves.items()
    for name in world.clients:
        host = scene.host(name)
        assert world.installed(name) == [NEW], "once"
        # Who was well before the switch may come back later than the other one gets well.
        scene.lab.wait_for(lambda h=host: json.loads(
            h.run("redoubt-agent", "status", "--json").stdout)["connected"], EXPECTED_S,
            f"{name} is connected", 0.1, world.story)
        status = json.loads(host.run("redoubt-agent", "status", "--json").stdout)
        assert status["version"] == NEW, status
        query = host.run("dpkg-query", "-W", "-f", "${Version} ${Status}", "redoubt-agent").stdout
        assert query == f"{NEW} install ok installed"
        assert host.run("ls", STATE).stdout.split().count(f"{OLD}.deb") == 1, "the way back"


def test_a_bad_agent_is_put_back_and_stops_the_rollout(world, scene):
    rollout = world.start(BAD)
    scene.lab.wait_for(lambda: world.get(rollout)["state"] == "stopped", 90, "it stops", 0.2,
                       world.story)
    told = world.get(rollout)
    assert told["wave"] == 1 and told["totals"]["total"] == 1, told
    shown = world.redoubt("show", rollout).stdout
    assert "stopped" in shown and "failed" in shown and NEW in shown
    assert "did not reach the server within 15 s" in told["why"], told["why"]
    (device,) = world.devices(rollout)
    assert device["state"] == "failed" and device["has"] == NEW
    name = next(n for n in world.clients if plan.device_id(n) == device["device"])
    host = scene.host(name)
    scene.lab.wait_for(lambda: host.run("redoubt-agent", "status", check=False).returncode == 0,
                       30, "an agent runs there")
    status = json.loads(host.run("redoubt-agent", "status", "--json").stdout)
    assert status["version"] == NEW and status["upgrade"]["state"] == "failed"
    kinds = [e["kind"] for e in world.api.all("/v1/events?kind=rollout_stopped&limit=10")]
    assert kinds == ["rollout_stopped"]
    # And everything goes back to what it was, by an order.
    done = world.api.all("/v1/rollouts?state=done")[0]["id"]
    world.redoubt("rollback", done, "--yes")
    scene.lab.wait_for(lambda: world.get(done)["finished_at"], 60, "they are back", 0.2,
                       world.story)
    assert world.get(done)["totals"]["rolled_back"] == 2
    assert [world.has(n) for n in world.clients] == [OLD, OLD]
