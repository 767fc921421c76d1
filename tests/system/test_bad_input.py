"""Bad input gets one clear error that says what to do, and never an active node."""
import datetime
import os
import time

import pytest
from redoubt_lab import Lab, LabError, plan, templates

CONF = "/etc/redoubt/redoubt.conf"
NODE = "/usr/local/lib/redoubt/redoubt-node"
SOON_S = 60     # a bound for what is told moments after a start, not a measurement
HOLD_S = 1.5    # of the profile of the lab


@pytest.fixture(scope="module")
def ground():
    """A lab with a created cluster; the nodes are started by each test."""
    with Lab(f"bad-{os.getpid()}", devices=0) as lab:
        lab.up(cluster=False)
        lab.host("node-a").run("redoubt", "init", "--yes")
        yield lab


@pytest.fixture
def lab(ground):
    """Both nodes stopped, with their own configuration, before and after."""
    saved = {node: ground.host(node).read(CONF) for node in plan.NODES}
    yield ground
    for node in plan.NODES:
        ground.host(node).stop("redoubt-node", 9)
        ground.host(node).write(CONF, saved[node])


def change(lab, node, old, new):
    host = lab.host(node)
    text = host.read(CONF)
    assert old in text
    host.write(CONF, text.replace(old, new))


def start(lab, *nodes):
    for node in nodes:
        lab.host(node).start("redoubt-node")


def alarms(lab, node):
    try:
        return {alarm["id"] for alarm in lab.status(node)["alarms"]}
    except LabError:
        return set()


def expect_alarm(lab, node, alarm, seconds=SOON_S):
    lab.wait_for(lambda: alarm in alarms(lab, node), seconds, f"{node} tells {alarm}",
                 why=lambda: f"it tells {alarms(lab, node)}; its log ends\n"
                             + lab.host(node).log("redoubt-node")[-2000:])


def since(own):
    """When a node came to its state, by the clock of the machine."""
    return datetime.datetime.fromisoformat(own["since"]).timestamp()


def expect_refusal(lab, node, *words):
    """The daemon does not start, and its log says why."""
    lab.wait_for(lambda: all(word in lab.host(node).log("redoubt-node") for word in words), SOON_S,
                 f"the log of {node} has {words}",
                 why=lambda: lab.host(node).log("redoubt-node")[-2000:])


def expect_nobody(lab, seconds=4):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert lab.active() is None
        time.sleep(0.1)


def test_init_refuses_a_used_share(lab):
    told = lab.host("node-a").run("redoubt", "init", "--yes", check=False)
    assert told.returncode != 0 and "exists already" in told.stderr


def test_a_configuration_with_many_errors(lab):
    host = lab.host("node-a")
    lines = [f"wrong_{i} = {i}" for i in range(18)]
    host.write(CONF, host.read(CONF).replace("[share]", "\n".join(lines) + "\n[share]")
               .replace("profile = balanced", "profile = hasty")
               .replace("interface = eth0", ""))
    told = host.run("redoubt", "config", "check", check=False)
    assert told.returncode == 1
    for i in range(18):
        assert f"wrong_{i}" in told.stderr + told.stdout
    assert "hasty" in told.stderr + told.stdout
    start(lab, "node-a")
    expect_refusal(lab, "node-a", "wrong_0", "wrong_17")
    expect_nobody(lab, 2)


def test_two_nodes_with_the_same_name(lab):
    change(lab, "node-b", "node = node-b", "node = node-a")
    change(lab, "node-b", "peer = node-a", "peer = node-b")
    start(lab, "node-a")
    lab.wait_for(lambda: lab.active() == "node-a", SOON_S, "node-a is active")
    start(lab, "node-b")
    lab.wait_for(lambda: any("duplicate_name" in alarms(lab, node) for node in plan.NODES)
                 or "name" in lab.host("node-b").log("redoubt-node"), SOON_S, "it is noticed")
    time.sleep(4)
    actives = 0
    for node in plan.NODES:
        try:
            told = lab.status(node)
            actives += any(entry["state"] == "active" and told["lease"]["holder"] == "node-a"
                           for entry in told["nodes"] if entry["name"] == "node-a")
        except LabError:
            pass
    assert actives <= 1


def test_another_key(lab):
    host = lab.host("node-b")
    key = host.read("/etc/redoubt/cluster.key")
    host.write("/etc/redoubt/cluster.key", "0123456789abcdef" * 4 + "\n", 0o600)
    try:
        start(lab, "node-b")
        lab.wait_for(lambda: alarms(lab, "node-b") & {"share_foreign", "record_mac"}, SOON_S,
                     "node-b says that the share is not its own")
        expect_nobody(lab)
    finally:
        host.write("/etc/redoubt/cluster.key", key, 0o600)


def test_configurations_that_do_not_fit_together(lab):
    change(lab, "node-b", f"name = {lab.name}", "name = another")
    start(lab, "node-a", "node-b")
    lab.wait_for(lambda: "config_mismatch" in alarms(lab, "node-a") | alarms(lab, "node-b"),
                 SOON_S, "one of them says that the configurations differ")


def test_key_readable_by_others(lab):
    path = lab.host("node-a").file("/etc/redoubt/cluster.key")
    os.chmod(path, 0o644)
    try:
        start(lab, "node-a")
        expect_refusal(lab, "node-a", "cluster.key")
        expect_nobody(lab, 2)
    finally:
        os.chmod(path, 0o600)


def test_wrong_password_of_the_share(lab):
    host = lab.host("node-a")
    path = "/etc/redoubt/smb.cred"
    text = host.read(path)
    host.write(path, text.replace(templates.SMB_PASSWORD, "wrong"), 0o600)
    try:
        start(lab, "node-a")
        expect_alarm(lab, "node-a", "share_denied")
        expect_nobody(lab)
    finally:
        host.write(path, text, 0o600)


def test_program_of_a_service_is_missing(lab):
    change(lab, "node-a", "lib/redoubt/redoubt-web", "lib/redoubt/redoubt-nothing")
    start(lab, "node-a")
    lab.wait_for(lambda: "service_missing" in alarms(lab, "node-a")
                 or "redoubt-nothing" in lab.host("node-a").log("redoubt-node"), SOON_S,
                 "it says that the program is missing")
    expect_nobody(lab)


def test_schema_of_a_newer_version(lab):
    lab.sql("insert into redoubt.schema_version select 9999, name, 9999, applied_at "
            "from redoubt.schema_version order by version desc limit 1")
    try:
        start(lab, "node-a")
        expect_alarm(lab, "node-a", "database_schema")
        expect_nobody(lab)
        told = " ".join(lab.host("node-a").run("redoubt", "explain").stdout.split())
        assert "does not take over until what is said above is mended" in told
    finally:
        lab.sql("delete from redoubt.schema_version where version = 9999")


def test_share_emptied(lab):
    cluster = lab.host("fileserver").file("/srv/state/cluster")
    os.rename(cluster, cluster + ".away")
    try:
        start(lab, "node-a")
        expect_alarm(lab, "node-a", "share_empty")
        expect_nobody(lab)
    finally:
        os.rename(cluster + ".away", cluster)


def test_record_too_long(lab):
    """A lease of a megabyte is no lease, and no reason to fall over."""
    folder = lab.host("fileserver").file("/srv/state/epoch")
    top = max([int(name) for name in os.listdir(folder)] or [0]) + 1
    path = os.path.join(folder, str(top))
    with open(path, "wb") as file:
        file.write(b"x" * (1 << 20))
    os.chown(path, 977, 977)
    began = time.time()
    start(lab, "node-a", "node-b")
    lab.wait_for(lambda: lab.active() is not None
                 or alarms(lab, "node-a") & {"record_torn", "record_mac", "record_version"}, SOON_S,
                 "it is told, or passed over after the wait")
    # Nobody may call it released; after a full wait it may be walked over.
    time.sleep(1.0)
    for node in plan.NODES:
        own = lab.own_state(node)
        assert not own or own["state"] != "active" or since(own) - began >= HOLD_S


def test_smb1_is_refused(lab):
    server = lab.host("fileserver")
    conf = "/etc/samba/redoubt-lab.conf"
    text = server.read(conf)
    server.write(conf, text.replace("server min protocol = SMB2_02",
                                    "server min protocol = NT1\n    server max protocol = NT1"))
    server.kill_all("smbd")
    try:
        start(lab, "node-a")
        lab.wait_for(lambda: alarms(lab, "node-a") & {"share_unreachable", "share_denied"}, SOON_S,
                     "it does not speak SMB1")
        expect_nobody(lab)
    finally:
        server.write(conf, text)
        server.kill_all("smbd")
