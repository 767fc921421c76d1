"""A service that fails wherever it runs: a bounded number of switches, then loud and in place."""
import contextlib
import signal
import time

from redoubt_lab import LabError

LAB = {"settings": {"cluster": {"switch_max": 2, "switch_window_s": 600}}}


def kill(cluster, node):
    with contextlib.suppress(LabError):     # it is just being restarted
        cluster.host(node).send("redoubt-activation", signal.SIGKILL)


def kill_and_see_again(cluster, node):
    """It runs, is killed, and another one runs."""
    def running():
        return set(cluster.host(node).pids("redoubt-activation"))

    before = cluster.wait_for(running, 60, "it runs")
    kill(cluster, node)
    cluster.wait_for(lambda: running() - before, 60, "it is started again in place")


def test_a_service_that_fails_on_both_nodes(cluster):
    epochs = set()
    end = time.monotonic() + 120
    limited = False
    while time.monotonic() < end and not limited:
        active = cluster.active()
        if active is None:
            time.sleep(0.05)
            continue
        told = cluster.status(active)
        epochs.add(told["epoch"])
        limited = any(alarm["id"] == "switch_limit" for alarm in told["alarms"])
        if cluster.is_ready() and not limited:
            kill(cluster, active)
        time.sleep(0.3)
    assert limited, "no alarm switch_limit"
    assert len(epochs) <= 4, f"{len(epochs)} epochs: the cluster plays ping-pong"

    active = cluster.active()
    epoch = cluster.status(active)["epoch"]
    for _ in range(3):
        kill_and_see_again(cluster, active)
        time.sleep(0.5)
    told = cluster.status(active)
    assert (told["active"], told["epoch"]) == (active, epoch)
    assert told["degraded"]
    service = next(service for node in told["nodes"] if node["name"] == active
                   for service in node["services"] if service["name"] == "activation")
    assert service["restarts"] >= 1
