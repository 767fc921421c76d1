"""address = none: a load balancer asks the health endpoint of both nodes."""
import signal

from redoubt_lab import plan

LAB = {"devices": 0,
       "settings": {"address": {"mode": "none", "ipv4": None, "ipv6": None,
                                "health_listen": "0.0.0.0:8008"}}}


def health(lab, node):
    told = lab.host("admin").run("curl", "-s", "-m", "20", "-o", "/dev/null", "-w",
                                 "%{http_code}", f"http://{plan.address4(node)}:8008/",
                                 check=False)
    return told.stdout


def test_health_endpoint_follows_the_roles(cluster):
    active = cluster.wait_ready(60)
    passive = cluster.other(active)
    assert (health(cluster, active), health(cluster, passive)) == ("200", "503")
    cluster.host(active).send("redoubt-node", signal.SIGKILL)
    cluster.wait_for(lambda: cluster.active() == passive, 20, "the other node takes over")
    assert health(cluster, passive) == "200"
    cluster.wait_ready(60)
    assert health(cluster, active) == "503"


def test_no_node_carries_the_address(cluster):
    for node in plan.NODES:
        assert plan.VIRTUAL4 not in cluster.host(node).run("ip", "addr").stdout
