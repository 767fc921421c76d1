"""`redoubt` as a client of the real redoubt-manager on a real PostgreSQL."""
import json
import os
import socket
import subprocess
import tempfile
import threading
import uuid

import pytest

from device_world import NODE, Certificates, Postgres, eventually
from manager_world import Manager

REDOUBT = os.environ["REDOUBT"]
DOCUMENT = """\
version: 1
groups: [/Servers, /Servers/Linux, /Desktops]
policies:
  /Servers:
    onaccess.mode: {value: block, locked: true}
    exclusions.paths: ["/srv/data", "/var/lib/mysql"]
  /Desktops:
    scan.cpu_percent: 20
rules:
  - {os: linux, group: /Servers/Linux}
  - {tag: desk, address: 10.1.0.0/16, group: /Desktops, override: true}
tasks:
  - name: nightly
    type: scan
    params: {mode: quick}
    target: {group: /Servers}
    schedule: {days: [mon, thu], time: "02:30", timezone: Europe/Zurich, spread_min: 30}
retention:
  default: {days: 30}
  kinds:
    threat_found: {days: 365, count_max: 100000}
"""


@pytest.fixture(scope="module", name="folder")
def _folder():
    with tempfile.TemporaryDirectory(prefix="redoubt-ctl-manage-") as path:
        os.chmod(path, 0o755)  # PostgreSQL runs as another user
        yield path


@pytest.fixture(scope="module", name="certificates")
def _certificates(folder):
    return Certificates(folder)


class World:
    def __init__(self, folder, database, certificates):
        self.folder = folder
        self.database = database
        self.epoch = database.query("SELECT epoch FROM redoubt.fence")[0][0]
        self.start = lambda: Manager(folder, database, certificates)
        self.manager = None
        self.run_dir = None
        self.begin()

    def begin(self):
        """As a node that becomes active: the fence goes up, then the role is told."""
        self.manager = self.start()
        self.manager.wait_note("READY=1")
        self.epoch += 1
        self.database.raise_fence(self.epoch)
        self.manager.active(self.epoch)
        eventually("the API answers",
                   lambda: self.manager.get("/v1/status").status == 200)
        if self.run_dir is None:
            self.run_dir = self.manager.run

    def restart(self):
        """Another manager, at the address that commands under way know."""
        self.manager.stop()
        path = os.path.join(self.run_dir, "manager.sock")
        self.begin()
        if os.path.lexists(path):
            os.unlink(path)
        os.symlink(os.path.join(self.manager.run, "manager.sock"), path)

    def argv(self, *args):
        return [REDOUBT, "--socket", os.path.join(self.run_dir, "node.sock"), "--config", "/none",
                *args]

    def redoubt(self, *args, code=0, stdin=""):
        done = subprocess.run(self.argv(*args), capture_output=True, text=True, timeout=60,
                              input=stdin, check=False)
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done

    def json(self, *args, **kwargs):
        return json.loads(self.redoubt(*args, "--json", **kwargs).stdout)

    def write(self, text, *values):
        """As the active node."""
        return self.database.query(
            f"SELECT set_config('redoubt.node', '{NODE}', false),"
            f" set_config('redoubt.epoch', '{self.epoch}', false); {text}", *values)


@pytest.fixture(name="world")
def _world(folder, certificates):
    with tempfile.TemporaryDirectory(dir=folder) as here:
        os.chmod(here, 0o755)
        database = Postgres(here)
        w = World(here, database, certificates)
        try:
            yield w
        finally:
            w.manager.stop()
            database.stop()


def apply(world, text, *args, code=0):
    return world.redoubt("apply", "-f", "-", *args, stdin=text, code=code)


def tables(world):
    """What apply may change, by content."""
    return world.database.query("""
        SELECT (SELECT array_agg(path ORDER BY path) FROM redoubt.device_group),
               (SELECT jsonb_agg(settings ORDER BY group_id) FROM redoubt.policy),
               (SELECT count(*) FROM redoubt.move_rule), (SELECT count(*) FROM redoubt.task),
               (SELECT jsonb_agg(to_jsonb(r) ORDER BY kind) FROM redoubt.event_retention r),
               (SELECT count(*) FROM redoubt.audit)""")


def test_apply_and_export_round_trip(world):
    before = tables(world)
    dry = apply(world, DOCUMENT, "--dry-run").stdout
    assert tables(world) == before  # nothing was done, not even in the audit trail
    done = apply(world, DOCUMENT).stdout
    assert dry.splitlines()[:-1] == done.splitlines()[:-1]
    assert dry.endswith("nothing was done (dry run).\n") and done.endswith("changes, done.\n")
    for words in ("create group /Servers/Linux", "create policy /Servers",
                  '+ onaccess.mode: {"locked":true,"value":"block"}', "change rules",
                  "create task nightly", "change retention"):
        assert words in done, words
    exported = world.redoubt("export").stdout
    assert world.redoubt("export").stdout == exported
    for again in (DOCUMENT, exported, world.redoubt("export", "--json").stdout):
        assert apply(world, again).stdout == "Nothing differs.\n"
        assert apply(world, again, "--prune").stdout == "Nothing differs.\n"
    assert world.json("policy", "effective", "/Servers/Linux")["settings"][
        "onaccess.mode"] == {"value": "block", "from": "/Servers", "locked": True}

    # A clean installation comes to the same state by the export alone.
    world.redoubt("apply", "-f", "-", "--prune", stdin="version: 1\ngroups: []\npolicies: {}\n"
                  "rules: []\ntasks: []\nretention: {}\n")
    assert world.json("export")["groups"] == []
    apply(world, exported)
    assert world.redoubt("export").stdout == exported


def test_prune_and_absent_sections(world):
    apply(world, DOCUMENT)
    less = "groups: [/Servers, /Desktops]\npolicies: {/Desktops: {scan.cpu_percent: 20}}\n"
    assert apply(world, less).stdout == "Nothing differs.\n"
    # /Servers/Linux is the goal of a rule, and rules are not in this document.
    err = apply(world, less, "--prune", code=1).stderr
    assert "groups (without /Servers/Linux)" in err and "A rule moves devices into it" in err
    out = apply(world, less + "rules: []\n", "--prune").stdout
    assert "remove group /Servers/Linux" in out and "remove policy /Servers" in out
    left = world.json("export")
    assert left["groups"] == ["/Desktops", "/Servers"]
    assert [t["name"] for t in left["tasks"]] == ["nightly"]  # the document has no tasks


def test_all_errors_with_their_paths_and_nothing_done(world):
    before = tables(world)
    err = world.json("apply", "-f", "-", code=1, stdin="""
groups: [/A, /B//C, 7, /X/Y]
policies:
  /A: {onaccess.mode: sometimes, no.such: 1}
  /None: {scan.cpu_percent: 5}
  /: {scan.cpu_percent: {value: 101}, engine.threads: 3}
tasks:
  - {name: t, type: dance, target: {group: /A}}
  - {type: scan}
rules: [{group: /A}]
retention: {default: {days: 0}}
""")["error"]
    assert err["id"] == "apply_invalid"
    for path in ("groups[1]", "groups[2]", "groups[3] (/X/Y)", "policies./A.onaccess.mode: must be",
                 "policies./A.no.such: there is no such setting",
                 "policies./None: there is no such group",
                 "policies./.scan.cpu_percent: must be", "tasks[0] (t): ", "tasks[1]: must be",
                 "rules: ", "retention: "):
        assert path in err["text"], (path, err["text"])
    assert tables(world) == before
    for text, words in (("{version: 2}", "version: must be 1"), ("{grups: []}", "grups: is not"),
                        ("{groups: {}}", "groups: must be of the type array"), ("[]", "JSON object")):
        assert words in apply(world, text, code=1).stderr


def whole_message(link):
    """A request or an answer, however many pieces it comes in; b"" at the end."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = link.recv(65536)
        if not more:
            return b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower(), head
    size = next((int(line.split(b":")[1]) for line in head.split(b"\r\n")
                 if line.lower().startswith(b"content-length:")), 0)
    while len(body) < size:
        more = link.recv(65536)
        assert more, "cut off"
        body += more
    return head + b"\r\n\r\n" + body


class Cutter:
    """Passes requests on to the manager, but cuts the answer of the first `cuts` POSTs."""

    def __init__(self, path, target, cuts):
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(path)
        self.server.listen()
        self.target = target
        self.left = cuts
        self.posts = 0
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                client, _ = self.server.accept()
            except OSError:
                return
            with client:
                data = whole_message(client)
                if not data:
                    continue
                with socket.socket(socket.AF_UNIX) as there:
                    there.connect(self.target)
                    there.sendall(data)
                    answer = whole_message(there)
                if data.startswith(b"POST"):
                    self.posts += 1
                    if self.left > 0:
                        self.left -= 1
                        continue
                client.sendall(answer)


def test_a_create_whose_answer_was_lost_is_done_once(world, folder):
    with tempfile.TemporaryDirectory(dir=folder) as between:
        cutter = Cutter(f"{between}/manager.sock",
                        os.path.join(world.run_dir, "manager.sock"), cuts=2)
        where = ["--socket", f"{between}/node.sock"]
        done = world.redoubt(*where, "group", "create", "/Once")
        assert done.stdout == "/Once is made.\n" and "trying again" in done.stderr
        assert cutter.posts == 3
        assert world.database.query(
            "SELECT count(*) FROM redoubt.audit WHERE action = 'group_create'") == [(1,)]
        # A token whose text was lost with the answer is revoked, and another one made.
        cutter.left = 1
        token = world.redoubt(*where, "api-token", "create", "robot", "--role",
                              "auditor").stdout.strip()
        assert token.startswith("rda1.")
        states = [t["state"] for t in world.json("api-token", "list")["items"]]
        assert sorted(states) == ["revoked", "valid"]
        cutter.server.close()


def test_follow_shows_each_event_once_over_a_restart(world):
    def add(first, last):
        for i in range(first, last + 1):
            world.write("SELECT redoubt.event_add(NULL, 'test_event', 'info', %s::jsonb)",
                        json.dumps({"n": i}))

    add(1, 3)
    with subprocess.Popen(world.argv("events", "--follow", "--json", "--kind", "test_event"),
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as p:
        seen = [json.loads(p.stdout.readline())["data"]["n"] for _ in range(3)]
        add(4, 6)
        seen += [json.loads(p.stdout.readline())["data"]["n"] for _ in range(3)]
        world.restart()
        add(7, 9)
        seen += [json.loads(p.stdout.readline())["data"]["n"] for _ in range(3)]
        p.terminate()
    assert seen == list(range(1, 10))
    shown = world.redoubt("events", "--kind", "test_event", "--limit", "2").stdout.splitlines()
    assert [line.split()[-1] for line in shown] == ["n=8", "n=9"]


def device(world, name, group="/"):
    identity = str(uuid.uuid4())
    world.write("""INSERT INTO redoubt.device (id, name, group_id)
        SELECT %s, %s, g.id FROM redoubt.device_group g WHERE g.path = %s""",
                identity, name, group)
    return identity


def test_devices_groups_policies_and_tokens(world):
    one, two = device(world, "alpha"), device(world, "b\x1b[2Jeta")
    world.redoubt("group", "create", "/S")
    world.redoubt("group", "create", "/S/L")
    assert "is in /S/L." in world.redoubt("device", "move", "alpha", one[:8], "/S/L").stdout
    world.redoubt("device", "tag", "alpha", "x", "y")
    assert "the tags: y" in world.redoubt("device", "untag", "alpha", "x").stdout
    world.redoubt("device", "rename", "alpha", "first")
    shown = world.json("device", "show", "first")
    assert (shown["id"], shown["group"]["path"], shown["tags"]) == (one, "/S/L", ["y"])
    listed = world.redoubt("device", "list").stdout
    assert "b\\x1b[2Jeta" in listed and "\x1b" not in listed
    assert world.redoubt("device", "list", "--group", "S", "--tag", "y").stdout.count("\n") == 2
    for args in (["device", "show", "first"], ["device", "policy", two[:8]], ["group", "list"],
                 ["group", "show", "/S"], ["device", "quarantine", "first"],
                 ["policy", "catalogue"], ["policy", "effective", "/S"], ["rules", "show"],
                 ["retention", "show"], ["task", "list"], ["audit"], ["token", "list"],
                 ["api-token", "list"], ["events"]):
        assert world.redoubt(*args).stdout, args
        world.json(*args) if args != ["events"] else None
    world.redoubt("policy", "set", "/S", "scan.cpu_percent=30", "onaccess.mode=off", "--lock")
    assert "locked  30" in world.redoubt("policy", "show", "/S").stdout
    err = world.redoubt("policy", "set", "/S", "scan.cpu_percent=300", code=1).stderr
    assert "scan.cpu_percent: must be a whole number" in err
    world.redoubt("policy", "unlock", "/S", "onaccess.mode")
    world.redoubt("policy", "unset", "/S", "onaccess.mode")
    assert world.json("policy", "show", "/S")["settings"] == {
        "scan.cpu_percent": {"value": 30, "locked": True}}
    world.redoubt("group", "rename", "/S/L", "M")
    world.redoubt("group", "move", "/S/M", "/")
    assert world.redoubt("group", "remove", "/M", "-y", code=6).stderr  # it has a device
    world.redoubt("retention", "set", "threat_found", "--days", "400")
    assert world.json("retention", "show")["kinds"]["threat_found"]["days"] == 400
    world.redoubt("device", "revoke", "first", "-y", "--reason", "lost")
    assert world.json("device", "show", one)["state"] == "revoked"
    world.redoubt("device", "remove", one, two, "-y")
    assert world.redoubt("device", "list").stdout == "No devices.\n"


def test_tasks(world):
    identity = device(world, "alpha")
    made = world.json("task", "create", "look", "scan", "-d", "alpha", "--mode", "quick")
    started = world.json("task", "start", "look")
    assert started, made
    runs = world.json("task", "results", "look")["items"]
    assert [r["state"] for r in runs] == ["pending"], runs
    for what in ("pause", "resume"):
        world.redoubt("task", what, "look")
    assert "alpha" in world.redoubt("task", "results", "look").stdout
    world.redoubt("task", "cancel", "look")
    eventually("cancelled", lambda: world.redoubt(
        "task", "watch", "look", code=1).stderr)
    assert "look" in world.redoubt("task", "show", "look").stdout
    world.redoubt("task", "remove", "look", "-y")
    assert world.redoubt("task", "list").stdout == "No tasks.\n"
    err = world.redoubt("task", "create", "x", "scan", "-d", str(uuid.uuid4()), code=1).stderr
    assert err and identity


def test_over_tls_with_a_token(world, folder):
    token = world.redoubt("api-token", "create", "reader", "--role", "auditor").stdout
    path = os.path.join(world.folder, "token")
    with open(path, "w", encoding="ascii", opener=lambda p, f: os.open(p, f, 0o600)) as file:
        file.write(token)
    there = ["--server", f"127.0.0.1:{world.manager.api_port}", "--token-file", path, "--ca",
             os.path.join(folder, "ca.pem")]
    assert world.redoubt("group", "list", *there).stdout.startswith("/")
    err = world.redoubt("group", "create", "/N", *there, code=1).stderr
    assert "Not allowed" in err and "administrator" in err
    identity = world.json("api-token", "list")["items"][0]["id"]
    world.redoubt("api-token", "revoke", identity)
    assert "revoked" in world.redoubt("group", "list", *there, code=1).stderr
