"""Managing devices while the active node breaks in every way: nothing is lost, doubled or undone."""
import json
import random
import time
import uuid

import pytest

from redoubt_lab import plan
from redoubt_lab.confs import MARKER
from redoubt_lab.events import EVENTS

FOLDER = "/srv/files"
CLEAN, BAD = 1500, 3      # files planted on each device
EXPECTED_S = 90           # a bound, not a measurement


def clients(lab):
    return [host for host in lab.managed() if host not in plan.NODES]


class Api:
    """The API as an administrator on a node uses it: over its Unix socket, again until it works."""

    def __init__(self, lab):
        self.lab = lab

    def once(self, node, method, path, body, key):
        argv = ["curl", "-sS", "-m", "10", "--unix-socket", "/run/redoubt/manager.sock", "-X",
                method, "-w", "\n%{http_code}", "-H", "Content-Type: application/json"]
        if key:
            argv += ["-H", f"Idempotency-Key: {key}"]
        if body is not None:
            argv += ["-d", json.dumps(body)]
        done = self.lab.host(node).run(*argv, "http://localhost" + path, check=False, timeout=20)
        if done.returncode != 0:
            return 0, done.stderr
        text, _, status = done.stdout.rpartition("\n")
        return int(status), json.loads(text) if text.strip() else None

    def __call__(self, method, path, body=None, seconds=30):
        """What a good answer holds.  A request is repeated with its key while the cluster switches."""
        key = str(uuid.uuid4()) if method == "POST" else None
        end = time.monotonic() + seconds
        while True:
            node = self.lab.active()
            status, told = self.once(node, method, path, body, key) if node else (0, "nobody")
            if 200 <= status < 300:
                return told
            assert status in (0, 500, 503) and time.monotonic() < end, (method, path, status, told)
            time.sleep(0.1)

    def all(self, path):
        items, cursor = [], None
        while True:
            page = self("GET", path + (f"&cursor={cursor}" if cursor else ""))
            items += page["items"]
            cursor = page["next"]
            if not cursor:
                return items


@pytest.fixture
def api(scene):
    return Api(scene.lab)


def root_of(api):
    return next(group["id"] for group in api("GET", "/v1/groups")["items"] if group["path"] == "/")


def set_policy(api, settings):
    api("PUT", f"/v1/groups/{root_of(api)}/policy",
        {"settings": {key: {"value": value} for key, value in settings.items()}})


def expect_policy(scene, hosts=None):
    """Every device says that it has applied what its group comes to now."""
    ids = [plan.device_id(host) for host in hosts or clients(scene.lab)]

    def applied():
        return scene.lab.sql("""
            select count(*) from redoubt.device d join redoubt.effective e using (group_id)
            where d.id = any(%s::uuid[]) and d.policy_hash = e.hash
              and d.policy_state = 'applied'""", ids)[0][0] == len(ids)

    def why():
        return str(scene.lab.sql("""
            select d.name, d.policy_state, d.policy_error, d.policy_hash = e.hash
            from redoubt.device d join redoubt.effective e using (group_id)"""))

    scene.lab.wait_for(applied, EXPECTED_S, "the policy is applied on every device", 0.1, why)


def plant(scene, word):
    """Files with and without the marker; what a scan must find."""
    for host in clients(scene.lab):
        folder = f"{FOLDER}/{word}"
        scene.host(host).run("sh", "-ec", f"""
            mkdir -p {folder}
            for i in $(seq {CLEAN}); do echo "clean $i" > {folder}/clean-$i; done
            for i in $(seq {BAD}); do echo "x{MARKER}x $i" > {folder}/bad-$i; done""")
    return {f"{FOLDER}/{word}/bad-{i + 1}" for i in range(BAD)}


def scan(api, word, cpu=50):
    """A task that scans what was planted, started; its occurrence."""
    task = api("POST", "/v1/tasks", {
        "name": f"scan {word}", "type": "scan",
        "params": {"mode": "paths", "paths": [f"{FOLDER}/{word}"], "cpu_percent": cpu},
        "target": {"group": "/", "subgroups": True}, "priority": 5, "expires_min": 30})
    return api("POST", f"/v1/tasks/{task['id']}/start")["id"]


def runs_of(scene, occurrence):
    return scene.lab.sql("""
        select r.id::text, d.id::text, r.state, r.outcome from redoubt.run r
        join redoubt.device d on d.id = r.device_id where r.occurrence_id = %s::uuid""", occurrence)


def expect_under_way(scene, occurrence):
    """A device is in the middle of its run."""
    scene.lab.wait_for(lambda: scene.lab.sql(
        "select 1 from redoubt.run where occurrence_id = %s::uuid and state = 'running' "
        "and percent between 1 and 90", occurrence), 30, "a device is in the middle of its run",
                       0.05, lambda: str(runs_of(scene, occurrence)))
    time.sleep(random.random())


def expect_finished(scene, occurrence):
    """Each device has done its run, and has said so once."""
    ids = {plan.device_id(host) for host in clients(scene.lab)}

    def finished():
        runs = [run for run in runs_of(scene, occurrence) if run[1] in ids]
        return len(runs) == len(ids) and all(run[2] == "finished" for run in runs)

    scene.lab.wait_for(finished, EXPECTED_S, "every device has finished its run", 0.1,
                       lambda: str(runs_of(scene, occurrence)) + scene.story())
    for run, device, _, outcome in runs_of(scene, occurrence):
        if device not in ids:
            continue
        assert outcome == "done", (run, outcome)
        ((count,),) = scene.lab.sql("select count(*) from redoubt.event where kind = 'run_finished' "
                                    "and data ->> 'run' = %s", run)
        assert count == 1, f"run {run} was finished {count} times"


def expect_found(scene, planted):
    """Each planted file was found once on each device, and is in quarantine, not on the disk."""
    for host in clients(scene.lab):
        device = plan.device_id(host)

        def told(device=device):
            return scene.lab.sql("""
                select data ->> 'path' from redoubt.event where kind = 'threat_found'
                and device_id = %s::uuid and data ->> 'path' = any(%s) order by 1""",
                                 device, sorted(planted))
        scene.lab.wait_for(lambda told=told: len(told()) >= len(planted), EXPECTED_S,
                           f"what {host} found has arrived")
        assert [row[0] for row in told()] == sorted(planted)
        held = scene.lab.sql("select path from redoubt.quarantine where device_id = %s::uuid "
                             "and state = 'held' and path = any(%s) order by 1",
                             device, sorted(planted))
        assert [row[0] for row in held] == sorted(planted)
        for path in planted:
            assert scene.host(host).run("test", "-e", path, check=False).returncode == 1


def expect_sound_events(scene):
    """None doubled, none missing, in order: each stream is 1, 2, 3, ..."""
    bad = scene.lab.sql("""
        select device_id::text, stream::text, count(*), count(distinct seq), min(seq), max(seq)
        from redoubt.event where device_id is not null and stream is not null group by 1, 2
        having count(*) <> count(distinct seq) or max(seq) - min(seq) + 1 <> count(*)
            or min(seq) <> 1""")
    assert not bad, bad


def test_a_policy_reaches_every_device(scene, api):
    set_policy(api, {"scan.cpu_percent": 61})
    expect_policy(scene)
    set_policy(api, {"scan.cpu_percent": 62, "agent.heartbeat_s": 60})
    expect_policy(scene)


def test_a_policy_that_is_wrong_changes_nothing(scene, api):
    set_policy(api, {"scan.cpu_percent": 63})
    node = scene.active
    status, told = api.once(node, "PUT", f"/v1/groups/{root_of(api)}/policy",
                            {"settings": {"scan.cpu_percent": {"value": 5000},
                                          "no.such": {"value": 1}}}, None)
    assert status == 422 and "scan.cpu_percent" in json.dumps(told) \
        and "no.such" in json.dumps(told)
    ((value,),) = scene.lab.sql("select settings -> 'scan.cpu_percent' ->> 'value' "
                                "from redoubt.policy where group_id = %s::uuid", root_of(api))
    assert value == "63"


def test_a_scan_finds_and_cures(scene, api):
    planted = plant(scene, "once")
    expect_finished(scene, scan(api, "once", 100))
    expect_found(scene, planted)
    expect_sound_events(scene)


@pytest.mark.parametrize("name", sorted(EVENTS))
def test_management_goes_on_whatever_breaks(scene, api, name):
    """A scan is on its way and a policy is changed when the active node breaks."""
    event, word = EVENTS[name], f"{name}-{random.randrange(1 << 32):x}"
    planted = plant(scene, word)
    occurrence = scan(api, word, 3)
    expect_under_way(scene, occurrence)
    event.begin(scene.lab, scene.active)
    scene.later(lambda: event.end(scene.lab, scene.active))
    set_policy(api, {"scan.cpu_percent": 20 + random.randrange(60)})
    scene.expect_switch()
    event.end(scene.lab, scene.active)
    scene.expect_ready()
    expect_finished(scene, occurrence)
    expect_found(scene, planted)
    expect_policy(scene)
    expect_sound_events(scene)
