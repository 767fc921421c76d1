"""Licences on the whole cluster while it breaks: the vendor activates each code once, and no seat is
lost or doubled, whatever moment the active node breaks at."""
import concurrent.futures
import json
import signal
import threading

import pytest

from redoubt_lab import LabError, confs, pki, plan

LAB = {"devices": 2}
SEATS, LIMIT = 40, 44
DEVICES = 60
LEASE_S = 300     # an agent that got no answer asks again in 60 to 90 s
# Asks for one device after the other until each has a lease; tells every answer.
LOADER = """
import json, socket, ssl, sys, time
folder, names, url = sys.argv[1], sys.argv[2].split(","), (sys.argv[3], int(sys.argv[4]))
def ask(name):
    context = ssl.create_default_context(cafile="/etc/redoubt/agent-ca.pem")
    context.load_cert_chain(f"{folder}/{name}.pem", f"{folder}/{name}.key")
    with socket.create_connection(url, 1) as raw:
        with context.wrap_socket(raw, server_hostname="redoubt") as link:
            link.settimeout(4)
            link.sendall(b"POST /v1/activate HTTP/1.1\\r\\nHost: redoubt\\r\\nConnection: close\\r\\n"
                         b"Content-Length: 2\\r\\n\\r\\n{}")
            data = b""
            while piece := link.recv(65536):
                data += piece
    head, _, body = data.partition(b"\\r\\n\\r\\n")
    return int(head.split()[1]), json.loads(body)
for name in names:
    while True:
        try:
            status, body = ask(name)
        except (OSError, ValueError, IndexError):
            status, body = 0, {}
        if status in (200, 409):
            print(json.dumps([name, status, body.get("document")]), flush=True)
            break
        time.sleep(0.05)
    time.sleep(float(sys.argv[5]))
"""


def vendor_write(scene, name, text):
    scene.host("vendor").write(f"{confs.VENDOR}/{name}", text)


def books(scene):
    try:
        return json.loads(scene.host("vendor").read(f"{confs.VENDOR}/books.json"))
    except (FileNotFoundError, ValueError):
        return {"activations": [], "requests": 0}


def redoubt(scene, *words):
    """On the node that is active now."""
    active = scene.lab.active()
    told = scene.host(active).run("redoubt", "licence", *words, "--json")
    return json.loads(told.stdout)


def licence(scene, code):
    return next((i for i in redoubt(scene, "list")["items"] if i["code"] == f"...{code[-4:]}"), None)


def told(scene, code, member="state"):
    """None while nobody is active, or knows the code."""
    try:
        return licence(scene, code)[member]
    except (LabError, TypeError, ValueError):
        return None


@pytest.fixture(name="devices", scope="module")
def _devices(cluster):
    """Certificates of devices that only ask for leases."""
    folder = cluster.places.at("pki")
    names = [f"seat-{n}" for n in range(DEVICES)]

    def make(name):
        pki.make_certificate(folder, name, name, f"URI:urn:uuid:{plan.device_id(name)}",
                             "clientAuth")

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(make, names))
    client = cluster.host("client-1")
    for name in names:
        for kind in ("pem", "key"):
            with open(f"{folder}/{name}.{kind}", encoding="ascii") as file:
                client.write(f"/tmp/seats/{name}.{kind}", file.read())
    client.write("/tmp/seats/loader.py", LOADER)
    return names


class Load:
    """Devices that ask for leases, in a thread; answers: [(name, status, document or None)]."""

    def __init__(self, scene, names, pause_s):
        self.host, self.answers, self.error = scene.host("client-1"), [], None
        self.argv = ["python3", "-B", "/tmp/seats/loader.py", "/tmp/seats", ",".join(names),
                     plan.VIRTUAL4, str(plan.ACTIVATION_PORT), str(pause_s)]
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        try:
            told = self.host.run(*self.argv, timeout=300).stdout
            self.answers = [json.loads(line) for line in told.splitlines()]
        except Exception as error:  # pylint: disable=broad-except
            self.error = error

    def done(self):
        self.thread.join(310)
        assert not self.thread.is_alive() and self.error is None, self.error
        return self.answers


def metrics(scene, node):
    """The licences in what a node tells Prometheus: {name{labels}: number}."""
    text = scene.host(node).run("curl", "-sS", "-m", "3", "http://127.0.0.1:9180/metrics").stdout
    pairs = (line.split() for line in text.splitlines() if line.startswith("redoubt_licence"))
    return {name: int(number) for name, number in pairs}


def breaks(scene, node, way):
    host = scene.host(node)
    if way == "power":
        host.power_off()
    elif way == "share":
        scene.lab.cut(node, "fileserver")
    else:
        host.send("redoubt-activation", signal.SIGKILL if way == "kill" else signal.SIGSTOP)


def switched(scene, before):
    scene.lab.wait_for(lambda: scene.lab.active() == scene.lab.other(before), 30,
                       f"{scene.lab.other(before)} takes over", 0.05, scene.story)


def seats(scene, of=None):
    """{device: how many seats}, of one licence or all."""
    return dict(scene.lab.sql("select device::text, count(*) from redoubt.seat where "
                              "expires_at > now() and coalesce(licence = %s::uuid, true) "
                              "group by device", of))


def test_whatever_breaks_each_code_is_activated_once_and_seats_add_up(scene, devices):
    agents = {plan.device_id(host) for host in scene.lab.managed()}
    scene.lab.wait_for(lambda: set(seats(scene)) == agents, LEASE_S,
                       "the agents have their leases")
    ways = ("kill", "power", "share", "freeze")
    codes = {way: f"LAB0-BREAK-900{n}" for n, way in enumerate(ways)}
    # Those are of no use here: what counts is how often the vendor was asked for them.
    terms = {code: {"cluster": "elsewhere"} for code in codes.values()}
    vendor_write(scene, "codes.json", json.dumps({**terms, confs.CODE: {"seats": SEATS}}))
    redoubt(scene, "add", confs.CODE)
    scene.lab.wait_for(lambda: told(scene, confs.CODE) == "valid", 30, "the code is active")
    load = Load(scene, devices, 0.3)
    for way, code in codes.items():
        node = scene.lab.wait_ready(60)
        vendor_write(scene, "mode", "slow")   # the answer is in its books, and on its way
        asked = books(scene)["requests"]
        redoubt(scene, "add", code)
        scene.lab.wait_for(lambda n=asked: books(scene)["requests"] > n, 30, "the vendor is asked")
        breaks(scene, node, way)
        vendor_write(scene, "mode", "ok")
        switched(scene, node)
        scene.lab.wait_for(lambda c=code: told(scene, c) == "other_cluster", 120,
                           f"{way}: the code is active", 0.2)
        scene.lab.heal_everything()
    answers = load.done()
    assert [a[0] for a in answers] == devices
    activations = [a["code"] for a in books(scene)["activations"]]
    assert sorted(activations) == sorted([*codes.values(), confs.CODE])

    mine = licence(scene, confs.CODE)
    granted = {plan.device_id(name) for name, status, _ in answers if status == 200}
    assert seats(scene, mine["licence"]) == {device: 1 for device in granted}
    assert len(granted) == LIMIT == SEATS + SEATS // 10 == mine["used"]
    assert sum(status == 409 for _, status, _ in answers) == DEVICES - LIMIT
    assert set(seats(scene)) == granted | agents  # those keep the leases that they have
    active, passive = scene.lab.active(), scene.lab.other(scene.lab.active())
    scene.lab.wait_for(lambda: metrics(scene, active).get("redoubt_licence_seats_taken") == LIMIT,
                       60, "the metrics tell it")
    shown = metrics(scene, active)
    assert (shown["redoubt_licence_seats"], shown['redoubt_licences{state="valid"}'],
            shown['redoubt_licences{state="other_cluster"}']) == (SEATS, 2, len(codes))
    assert 0 < shown["redoubt_licence_answer_remaining_seconds"] \
        < shown["redoubt_licence_remaining_seconds"]
    assert metrics(scene, passive) == {}
    crossed = scene.lab.sql("select kind, count(*) from redoubt.event where kind like "
                         "'licence_seats_1%' or kind = 'licence_seats_90' group by kind")
    assert dict(crossed) == {f"licence_seats_{n}": 1 for n in (90, 100, 110)}


def test_the_vendor_is_away_and_the_nodes_switch(scene, devices):
    code = "LAB0-ACTIVATION-CODE-0002"
    for item in redoubt(scene, "list")["items"]:
        if item["source"] == "code":
            redoubt(scene, "remove", item["id"], "--yes")
    vendor_write(scene, "codes.json", json.dumps({code: {"valid_s": 5, "grace_s": 3600}}))
    redoubt(scene, "add", code)
    scene.lab.wait_for(lambda: told(scene, code) == "valid", 30, "the code is active")
    first = Load(scene, devices[:2], 0).done()
    scene.host("vendor").power_off()
    scene.lab.wait_for(lambda: told(scene, code) == "grace", 30, "the answer is overdue")
    before = scene.lab.active()
    scene.host(before).run("redoubt", "switchover")
    switched(scene, before)
    again = Load(scene, devices[:3], 0).done()
    assert again[:2] == first          # the lease is the same on either node
    assert again[2][1] == 200          # and a new seat is given
    scene.lab.wait_for(lambda: "connect" in (told(scene, code, "error") or "").lower(), 30,
                       "the other node asks, too")
    scene.host("vendor").power_on()
    scene.lab.wait_for(lambda: told(scene, code) == "valid", 300, "the vendor is asked again")
    assert [a["code"] for a in books(scene)["activations"]].count(code) == 1
