"""Fixtures of the system tests: labs, one shared by a module where possible."""
import contextlib
import os
import sys
import time

import pytest

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
sys.path.insert(0, os.path.join(TOP, "lab"))

from redoubt_lab import Lab, LabError, plan  # noqa: E402
from redoubt_lab.checker import Checker  # noqa: E402

PURE = ("test_probes",)
SWITCH_S = 20       # a bound for any switch, not a measurement
READY_S = 60


def pytest_collection_modifyitems(items):
    if os.geteuid() != 0:
        for item in items:
            if item.module.__name__ not in PURE:
                item.add_marker(pytest.mark.skip(reason="needs root: the lab makes namespaces"))


@pytest.fixture(scope="module")
def bare_lab():
    """Hosts, file server and DBMS; no cluster."""
    with Lab(f"bare-{os.getpid()}", devices=1) as lab:
        yield lab.up(cluster=False)


class Scene:
    """A running cluster that is watched: what the tests ask of it."""

    def __init__(self, lab, checker):
        self.lab, self.checker = lab, checker
        self.undo = []
        self.look()

    def look(self):
        """Who is active now, which is what the test starts from."""
        self.active, self.epoch = self.lab.wait_for(self.whole, READY_S, "one node is active")
        self.passive = self.lab.other(self.active)

    def whole(self):
        """The active node and its epoch, as both nodes see them; None if none is active now.

        On a machine that is loaded a cluster that was ready may be on its way again."""
        with contextlib.suppress(LabError):
            active = self.lab.ready()
            told = self.lab.status(active) if active else {}
            if active and told["active"] == active:
                return active, told["epoch"]
        return None

    def host(self, name):
        return self.lab.host(name)

    def later(self, action):
        """Run at the end of the test, whatever happens, last one first."""
        self.undo.append(action)

    def status(self, node=None):
        return self.lab.status(node)

    def has_switched(self):
        own = self.lab.own_state(self.passive)
        return bool(own and own["role"] == "active" and own["state"] == "active")

    def expect_switch(self, seconds=SWITCH_S):
        """The other node becomes active, with a later epoch and a reason."""
        self.lab.wait_for(self.has_switched, seconds, f"{self.passive} takes over", 0.02,
                          self.story)
        told = self.status(self.passive)
        assert told["epoch"] > self.epoch
        switch = told["last_switch"]
        assert (switch["from"], switch["to"]) == (self.active, self.passive), switch
        assert switch["reason"]
        return switch

    def expect_stay(self, seconds=0.0):
        """Nothing switched, and nothing does for a while."""
        end = time.monotonic() + seconds
        while True:
            told = self.status(self.active)
            assert (told["active"], told["epoch"]) == (self.active, self.epoch), self.story()
            if time.monotonic() >= end:
                return told
            time.sleep(0.1)

    def expect_nobody(self, seconds=SWITCH_S):
        self.lab.wait_for(lambda: self.lab.active() is None, seconds, "nobody is active", 0.02)

    def expect_ready(self, seconds=READY_S):
        return self.lab.wait_ready(seconds)

    def expect_reports(self, seconds=90):
        """Every client gets another report acknowledged."""
        clients = [name for name in self.lab.managed() if name not in plan.NODES]
        before = {name: len(self.lab.acknowledged(name)) for name in clients}
        self.lab.wait_for(lambda: all(len(self.lab.acknowledged(name)) > before[name]
                                      for name in clients), seconds,
                          "every device gets a report acknowledged")

    def alarms(self, node):
        return {alarm["id"] for alarm in self.status(node)["alarms"]}

    def story(self):
        """The end of what both nodes logged, for the message of a failed test."""
        return "\n".join(f"== {node}\n" + "\n".join(
            self.host(node).log("redoubt-node").splitlines()[-25:]) for node in plan.NODES)


def make_cluster(name, **options):
    options.setdefault("devices", 3)
    options.setdefault("report_ms", 250)
    return Lab(f"{name}-{os.getpid()}", **options)


@pytest.fixture(scope="module")
def cluster(request):
    """A cluster for one module; its LAB names what Lab() is to be given.

    Failed services in test after test are no ping-pong, so the limit is out of the way."""
    options = {"settings": {"cluster": {"switch_max": 100, "switch_window_s": 10}}}
    options.update(getattr(request.module, "LAB", {}))
    with make_cluster(request.module.__name__.removeprefix("test_").replace("_", "-"),
                      **options) as lab:
        yield lab.up()


@pytest.fixture
def scene(cluster):
    """One test's view of the module's cluster, whole before it and checked after it."""
    lab = cluster
    try:
        lab.heal_everything()
        lab.wait_ready(READY_S)
    except LabError:         # the test before has left a ruin: a new one
        lab.down()
        lab.up()
    with Checker(lab) as checker:
        scene = Scene(lab, checker)
        try:
            yield scene
        finally:
            with contextlib.ExitStack() as stack:
                for action in scene.undo:
                    stack.callback(action)
            lab.heal_everything()
        lab.wait_ready(READY_S)
        scene.expect_reports()
        checker.verify()
