"""Groups, policies, rules and the status of devices: the functions of db/0005 and db/0011 on a
real PostgreSQL, against a model of inheritance and against core/policy."""
import contextlib
import json
import os
import random
import shutil
import subprocess
import tempfile
import time
import uuid

import psycopg2
import pytest

from device_world import Postgres

TOOL = os.environ.get("POLICY_TOOL", "build/tests/contract/policy_tool")
ADMIN = {"kind": "local", "name": "root", "role": "administrator", "scope": None}
ROOT = "00000000-0000-4000-8000-000000000000"
EPOCH = 7


class Api:
    """One session of the active node, which calls the functions as the manager does."""

    def __init__(self, database):
        self.link = database.connect()
        self.cursor = self.link.cursor()
        self.sql("SELECT redoubt.announce(%s, 'manager')", EPOCH)
        self.sql("SET statement_timeout = '20s'")

    def sql(self, text, *values):
        self.cursor.execute(text, values or None)
        return self.cursor.fetchall() if self.cursor.description else []

    def whole(self, function, path=None, query=None, body=None, actor=None):
        (answer,), = self.sql(f"SELECT redoubt.api_{function}(%s, %s, %s, %s)",
                              json.dumps(actor or ADMIN), json.dumps({"id": path}),
                              json.dumps(query or {}), json.dumps(body))
        return answer

    def __call__(self, function, path=None, query=None, body=None, actor=None):
        return self.whole(function, path, query, body, actor)["body"]

    def refused(self, status, function, *args, **kwargs):
        with pytest.raises(psycopg2.Error) as caught:
            self(function, *args, **kwargs)
        assert caught.value.pgcode == f"RH{status}", caught.value
        return caught.value.diag

    def group(self, parent, name):
        return self("group_create", body={"name": name, "parent": parent})

    def device(self, group=ROOT, **facts):
        """A device that has reported these facts ("protection." may be left out)."""
        identity = str(uuid.uuid4())
        told = {(k if "." in k else "protection." + k).replace("__", "."): v
                for k, v in facts.items()}
        self.sql("INSERT INTO redoubt.device (id, name, group_id, description) "
                 "VALUES (%s, 'd', %s, %s)", identity, group,
                 json.dumps({"identifying": {}, "non_identifying": told}) if told else None)
        return identity

    def judge(self, *devices):
        self.sql("SELECT redoubt.judge_devices(%s::uuid[])", list(devices))
        return self("device_get", devices[0])

    def effective(self):
        return {g: (s, h, d) for g, s, h, d in self.sql(
            "SELECT group_id, settings, hash, document FROM redoubt.effective")}


@pytest.fixture(scope="module", name="database")
def fixture_database():
    folder = tempfile.mkdtemp(prefix="groups.")
    os.chmod(folder, 0o755)
    database = Postgres(folder)
    database.raise_fence(EPOCH)
    yield database
    database.stop()
    shutil.rmtree(folder)


@pytest.fixture(name="api")
def fixture_api(database):
    """Each test in a transaction that is rolled back: a savepoint a call, as refusals end it."""
    api = Api(database)
    api.link.autocommit = False
    plain = api.sql

    def sql(text, *values):
        api.cursor.execute("SAVEPOINT one")
        try:
            return plain(text, *values)
        except psycopg2.Error:
            api.cursor.execute("ROLLBACK TO SAVEPOINT one")
            raise
    api.sql = sql
    with contextlib.closing(api.link):
        yield api
        api.link.rollback()


def tool(what, text=""):
    done = subprocess.run([TOOL, what], input=text, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, done.stdout


# --- the catalogue -------------------------------------------------------------------------

def test_the_catalogue_of_the_dbms_is_that_of_the_code(api):
    rows = api.sql("SELECT key, type, min, max, array_to_string(words, '|'), \"default\"::text, "
                   "doc FROM redoubt.setting ORDER BY position")
    code, text = tool("catalogue")
    assert code == 0
    assert ["\t".join(map(str, row)) for row in rows] == text.splitlines()
    assert len(rows) > 30


def test_defaults_are_what_the_code_takes_for_an_empty_document(api):
    assert tool("parse", "{}") == (0, api.effective()[ROOT][2])


SETTINGS = [
    {}, {"engine.threads": 1}, {"engine.threads": 64}, {"engine.threads": 0},
    {"engine.threads": 65}, {"engine.threads": -1}, {"engine.threads": 1.5},
    {"engine.threads": "2"}, {"engine.threads": True}, {"engine.threads": None},
    {"engine.threads": []}, {"engine.threads": 123456789012345678901234567890},
    {"engine.threads": {"value": 3}}, {"engine.threads": {"value": 3, "locked": True}},
    {"engine.threads": {"value": 3, "locked": 1}}, {"engine.threads": {"locked": True}},
    {"engine.threads": {}}, {"engine.threads": {"value": 3, "lock": True}},
    {"engine.threads": {"value": {"value": 3}}}, {"engine.threads": {"value": 99}},
    {"engine.detect_pua": True}, {"engine.detect_pua": 1}, {"engine.detect_pua": "true"},
    {"onaccess.mode": "block"}, {"onaccess.mode": "Block"}, {"onaccess.mode": ""},
    {"onaccess.mode": "off|notify"}, {"onaccess.mode": 0}, {"status.threat": "ok"},
    {"update.source": ""}, {"update.source": "cluster"}, {"update.source": "clusters"},
    {"update.source": "https://mirror.example/sig"},
    {"update.source": "http://m"}, {"update.source": "http://"}, {"update.source": "http:///x"},
    {"update.source": "ftp://x"}, {"update.source": "https://a b"}, {"update.source": None},
    {"update.source": "https://x/" + "a" * 190}, {"update.source": "https://x/" + "a" * 191},
    {"update.custom_urls": ["https://x/y"]}, {"update.custom_urls": [""]},
    {"update.custom_urls": "https://x/y"}, {"update.custom_urls": {"value": ["http://x"]}},
    {"exclusions.paths": []}, {"exclusions.paths": ["/a b/é"]}, {"exclusions.paths": ["a"]},
    {"exclusions.paths": ["/a/../b"]}, {"exclusions.paths": ["/.."]},
    {"exclusions.paths": ["/..a/b.."]}, {"exclusions.paths": ["/a", 1]},
    {"exclusions.paths": ["/" + "a" * 199]}, {"exclusions.paths": ["/" + "a" * 200]},
    {"exclusions.paths": ["/" + "é" * 100]}, {"exclusions.paths": ["/a\nDatabaseDirectory /x"]},
    {"exclusions.paths": ['/a"b']}, {"exclusions.paths": ["/a\\b"]},
    {"exclusions.paths": ["/a\x7f"]}, {"exclusions.paths": ["/'; DROP TABLE redoubt.device; --"]},
    {"exclusions.paths": ["/x"] * 32}, {"exclusions.paths": ["/x"] * 33},
    {"exclusions.paths": [["/x"]]},
    {"engine": 1}, {"": 1}, {"engine.threads ": 1}, {"x" * 99: 1},
    {"engine.threads": 99, "nothing": 1, "onaccess.mode": "of", "scan.cpu_percent": 7},
    [], 1, "x", None,
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: json.dumps(s)[:60])
def test_the_code_and_the_dbms_refuse_the_same_for_the_same_reason(api, settings):
    text = json.dumps(settings, ensure_ascii=False)
    said = api.sql("SELECT path, why FROM redoubt.policy_problems(%s)", text)
    code, out = tool("validate", text)
    assert sorted(tuple(line.split("\t")) for line in out.splitlines()) == sorted(said)
    assert code == (1 if said else 0)


def test_a_policy_that_is_not_valid_is_refused_with_the_path_of_each_error(api):
    api("policy_put", "/", body={"settings": {"engine.threads": 4}})
    before = api.effective()
    said = api.refused(422, "policy_put", "/", body={"settings": {
        "engine.threads": 99, "nothing": 1, "exclusions.paths": ["a"]}})
    assert said.message_detail.splitlines() == [
        'engine.threads: must be a whole number from 1 to 64',
        'exclusions.paths: must be an absolute path without ".."',
        "nothing: there is no such setting"]
    api.refused(422, "policy_put", "/", body={"settings": 5})
    api.refused(422, "policy_put", "/", body={})
    api.refused(400, "policy_put", "/", body={"settings": {}, "more": 1})
    api.refused(400, "policy_put", "/", body=None)
    assert api.effective() == before
    assert api("policy_get", "/")["settings"] == {
        "engine.threads": {"value": 4, "locked": False}}


# --- inheritance -----------------------------------------------------------------------------

VALUES = {"engine.threads": [1, 2, 3, 4], "onaccess.mode": ["off", "notify", "block"],
          "exclusions.paths": [[], ["/a"], ["/b", "/c d"]], "engine.detect_pua": [True, False],
          "update.source": ["", "https://m/x"], "status.threat": ["ok", "critical"]}


class Model:
    """The tree as a person would do it: walk down from the root."""

    def __init__(self):
        self.parent, self.names, self.policies = {ROOT: None}, {ROOT: ""}, {ROOT: {}}

    def lineage(self, group):
        return ([] if self.parent[group] is None else self.lineage(self.parent[group])) + [group]

    def path(self, group):
        return "/" + "/".join(self.names[g] for g in self.lineage(group)[1:])

    def effective(self, group, defaults):
        settings, locked = dict(defaults), set()
        for g in self.lineage(group):
            for key, said in self.policies[g].items():
                if key not in locked:
                    settings[key] = said["value"]
            locked |= {k for k, said in self.policies[g].items() if said["locked"]}
        return settings


def random_policy(rng):
    return {key: {"value": rng.choice(VALUES[key]), "locked": rng.random() < 0.3}
            for key in rng.sample(sorted(VALUES), rng.randint(0, len(VALUES)))}


def one_change(api, rng, model):
    """A change that is drawn, made in both."""
    group, other = rng.choice(sorted(model.parent)), rng.choice(sorted(model.parent))
    draw = rng.random()
    if draw < 0.35:
        name = f"g{len(model.parent)}"
        made = api.group(group, name)["id"]
        model.parent[made], model.names[made], model.policies[made] = group, name, {}
    elif draw < 0.75:
        model.policies[group] = random_policy(rng)
        api("policy_put", group, body={"settings": model.policies[group]})
    elif draw < 0.8:
        model.policies[group] = {}
        api("policy_delete", group)
    elif group != ROOT and group not in model.lineage(other):
        body = {"parent": model.path(other)}
        model.parent[group] = other
        if rng.random() < 0.5:
            model.names[group] = body["name"] = f"r{rng.randrange(10 ** 9)}"
        api("group_patch", group, body=body)


@pytest.mark.parametrize("seed", range(6))
def test_what_groups_inherit_is_what_the_model_says(api, seed):
    rng, model = random.Random(seed), Model()
    defaults = api.effective()[ROOT][0]
    for _ in range(40):
        one_change(api, rng, model)
        now = api.effective()
        assert set(now) == set(model.parent)
        for group, (settings, digest, document) in now.items():
            assert settings == model.effective(group, defaults)
            assert json.loads(document) == settings
            (same,), = api.sql("SELECT encode(sha256(convert_to(%s, 'UTF8')), 'hex') = %s",
                               document, digest)
            assert same
        paths = dict(api.sql("SELECT id, path FROM redoubt.device_group"))
        assert paths == {g: model.path(g) for g in model.parent}
    for document in {d for _, _, d in now.values()}:
        assert tool("parse", document) == (0, document)


def test_where_each_setting_comes_from_is_told(api):
    top = api.group("/", "Servers")
    low = api.group("/Servers", "Linux")
    api("policy_put", "/Servers", body={"settings": {
        "engine.threads": {"value": 8, "locked": True}, "scan.cpu_percent": 10}})
    own = api("policy_put", low["id"], body={"settings": {
        "engine.threads": 4, "scan.cpu_percent": 20}})
    assert own["overruled"] == ["engine.threads"]
    now = api("effective_get", "/Servers/Linux")
    assert now["settings"]["engine.threads"] == {"value": 8, "from": "/Servers", "locked": True}
    assert now["settings"]["scan.cpu_percent"] == {"value": 20, "from": "/Servers/Linux",
                                                   "locked": False}
    assert now["settings"]["engine.max_recursion"] == {"value": 17, "from": None,
                                                       "locked": False}
    device = api.device(low["id"])
    assert api("device_policy", device)["settings"] == now["settings"]
    assert api("policy_get", top["id"])["overruled"] == []
    assert api("settings_list")["items"][0]["key"] == "engine.max_file_size_mib"


def test_a_policy_has_versions(api):
    first = api.whole("policy_get", "/")
    second = api.whole("policy_put", "/", body={"settings": {"engine.threads": 3}})
    again = api.whole("policy_put", "/", body={"settings": {"engine.threads": 3}})
    gone = api.whole("policy_delete", "/")
    assert [a["version"] - first["version"] for a in (second, again, gone)] == [1, 1, 2]


def test_a_change_is_told_to_workers_and_to_the_audit_trail(database):
    with contextlib.closing(database.connect()) as link, link.cursor() as cursor:
        cursor.execute("SET lock_timeout = '5s'; LISTEN redoubt")
        writer = Api(database)
        writer("policy_put", "/", body={"settings": {"engine.threads": 5}})
        writer("policy_delete", "/")
        cursor.execute("SELECT")
        link.poll()
        told = [json.loads(n.payload) for n in link.notifies]
    assert {"t": "policy"} in told
    rows = writer.sql("SELECT action, object, after FROM redoubt.audit ORDER BY id")
    assert ("policy_change", "/", {"engine.threads": {"value": 5, "locked": False}}) in rows
    assert ("policy_delete", "/", {}) in rows


# --- the tree ----------------------------------------------------------------------------------

@pytest.mark.parametrize("name", [
    "", " a", "a ", "a/b", "..", ".", "a\nb", "a\tb", "a\x7fb", "a\x85b", "a\u202eb", "a\u200bb",
    "x" * 65, "'; DROP TABLE redoubt.device; --", "a'b", 'a"b', "a\\b", "a`b", "a%", "$a", "<b>",
    None, 5, ["a"]], ids=repr)
def test_names_with_tricks_are_refused(api, name):
    said = api.refused(400, "group_create", body={"name": name})
    assert said.message_detail.startswith("It m") and said.constraint_name == "group_name"
    assert len(api("groups_list")["items"]) == 1


@pytest.mark.parametrize("name", ["a", "Büro 3. OG", "日本", "x" * 64, "a-b_c (d), e & f+g@h#1",
                                  "..a"])
def test_names_of_people_are_taken(api, name):
    made = api.group("/", name)
    assert api("group_get", "/" + name)["id"] == made["id"]


def test_the_tree_keeps_its_shape(api):
    a = api.group("/", "a")
    b = api.group(a["id"], "b")
    api.group("/a/b", "c")
    assert api.refused(409, "group_create", body={"name": "a"}).constraint_name == "group_exists"
    for below in ("/a", "/a/b", "/a/b/c"):
        said = api.refused(409, "group_patch", a["id"], body={"parent": below})
        assert said.constraint_name == "group_cycle"
    api.refused(409, "group_patch", "/", body={"name": "x"})
    api.refused(409, "group_delete", "/")
    assert "groups below" in api.refused(409, "group_delete", "/a").message_detail
    api.refused(404, "group_get", "/nowhere")
    api.refused(404, "group_create", body={"name": "x", "parent": str(uuid.uuid4())})
    api.refused(400, "group_patch", "/a", body={"nam": "x"})
    moved = api("group_patch", b["id"], body={"parent": "/", "name": "B"})
    assert (moved["path"], moved["version"]) == ("/B", 2)
    assert api("group_get", "/B/c")["depth"] == 2
    api("group_delete", "/a")
    api.refused(404, "group_get", a["id"])
    device = api.device(b["id"])
    api("group_delete", "/B/c")
    assert "devices in it" in api.refused(409, "group_delete", "/B").message_detail
    api("device_delete", device)
    api("group_delete", "/B")
    assert [g["path"] for g in api("groups_list")["items"]] == ["/"]


def test_the_tree_has_a_deepest_level(api):
    path = "/"
    for i in range(15):
        path = api.group(path, f"l{i}")["path"]
    assert api.refused(409, "group_create", body={"name": "x", "parent": path}
                       ).constraint_name == "group_too_deep"
    api.group("/", "a")
    api.group("/a", "b")
    up = path.rsplit("/", 1)[0]
    assert api.refused(409, "group_patch", "/a", body={"parent": up}
                       ).constraint_name == "group_too_deep"
    assert api("group_patch", "/a/b", body={"parent": up})["depth"] == 15


def test_what_is_outside_the_scope_is_not_there(api):
    mine, other = api.group("/", "mine"), api.group("/", "other")
    below = api.group("/mine", "below")
    inside, outside = api.device(below["id"]), api.device(other["id"])
    actor = dict(ADMIN, kind="token", scope=[mine["id"]])
    assert [g["path"] for g in api("groups_list", actor=actor)["items"]] == ["/mine",
                                                                          "/mine/below"]
    assert [d["id"] for d in api("devices_list", actor=actor)["items"]] == [inside]
    for call, path in (("group_get", "/"), ("group_get", "/other"), ("device_get", outside),
                       ("device_policy", outside), ("effective_get", other["id"]),
                       ("policy_get", "/")):
        api.refused(404, call, path, actor=actor)
    api.refused(404, "device_patch", inside, body={"group": "/other"}, actor=actor)
    api.refused(404, "group_create", body={"name": "x"}, actor=actor)
    api.refused(404, "group_patch", below["id"], body={"parent": "/other"}, actor=actor)
    api.refused(403, "rules_put", body={"rules": []}, actor=actor)
    assert api("group_patch", below["id"], body={"name": "b"}, actor=actor)["path"] == "/mine/b"
    auditor = dict(ADMIN, role="auditor")
    for call, path, body in (("group_patch", "/mine", {"name": "x"}),
                             ("policy_put", "/mine", {"settings": {}}),
                             ("group_delete", "/mine", None), ("device_delete", inside, None),
                             ("device_patch", inside, {"name": "x"}),
                             ("rules_put", None, {"rules": []})):
        api.refused(403, call, path, body=body, actor=auditor)
    assert api("device_patch", inside, body={"name": "x"},
               actor=dict(ADMIN, role="operator"))["name"] == "x"


# --- devices -----------------------------------------------------------------------------------

def test_a_device_is_named_tagged_and_moved(api):
    group = api.group("/", "a")
    device = api.device()
    now = api.whole("device_patch", device, body={"name": "Kiosk", "tags": ["b", "a", "b"],
                                                  "group": "/a"})
    assert (now["body"]["name"], now["body"]["told_name"]) == ("Kiosk", "d")
    assert (now["body"]["tags"], now["body"]["group"]["path"]) == (["a", "b"], "/a")
    assert now["body"]["by_hand"] and now["version"] == 2
    assert api.whole("device_patch", device, body={"group": group["id"]})["version"] == 2
    assert api("device_patch", device, body={"name": None})["name"] == "d"
    assert not api("device_patch", device, body={"group": None})["by_hand"]
    for body in ({"tags": ["a b"]}, {"tags": [None]}, {"tags": ["x" * 65]}, {"tags": "a"},
                 {"tags": ["x"] * 33}, {"tags": ["-a"]}, {"name": "a\nb"}, {"name": 5},
                 {"state": "revoked"}, []):
        api.refused(400, "device_patch", device, body=body)
    api.refused(404, "device_patch", device, body={"group": "/b"})
    api.refused(404, "device_get", "' OR 1=1 --")
    api.refused(404, "device_get", str(uuid.uuid4()))
    api("device_delete", device)
    api.refused(404, "device_get", device)
    assert api.sql("SELECT count(*) FROM redoubt.audit WHERE action = 'device_delete'") == [(1,)]


def pages(api, limit, between=None, **query):
    found, cursor = [], None
    while True:
        page = api("devices_list", query=dict(query, limit=str(limit),
                                              **({"cursor": cursor} if cursor else {})))
        found += [d["id"] for d in page["items"]]
        cursor = page["next"]
        if not cursor:
            return found
        assert len(page["items"]) == limit
        if between:
            between()


def test_pages_neither_skip_nor_repeat_while_devices_come(api):
    before = {api.device() for _ in range(50)}
    seen = pages(api, 7, between=lambda: [api.device() for _ in range(3)])
    assert len(seen) == len(set(seen)) and before <= set(seen)
    assert seen == sorted(seen)
    groups = {api.group("/", f"g{i:02}")["path"] for i in range(12)}
    first = api("groups_list", query={"limit": "5"})
    api.group("/", "g00a")
    rest = api("groups_list", query={"cursor": first["next"]})
    assert groups <= {g["path"] for g in first["items"] + rest["items"]}
    assert rest["next"] is None


def test_lists_are_filtered(api):
    a, b = api.group("/", "a"), api.group("/a", "b")
    api("group_patch", a["id"], body={"name": "A"})
    one, two, three = api.device(a["id"]), api.device(b["id"], engine="down"), api.device()
    api("device_patch", one, body={"tags": ["till", "x"], "name": "Front desk"})
    api.judge(two)
    api.sql("UPDATE redoubt.device SET connected_epoch = %s, address = '192.0.2.7' WHERE id = %s",
            EPOCH, three)
    api.sql("UPDATE redoubt.device SET connected_epoch = %s WHERE id = %s", EPOCH - 1, two)

    def listed(**query):
        return {d["id"] for d in api("devices_list", query=query)["items"]}
    assert listed() == {one, two, three}
    assert listed(group="/A") == {one, two} == listed(group=a["id"])
    assert listed(group="/A", subgroups="false") == {one}
    assert listed(status="critical") == {two}
    assert listed(status="critical", group="/A/b") == {two}
    assert listed(tag="till") == {one} and listed(tag="til") == set()
    assert listed(q="FRONT") == {one} and listed(q="192.0.2") == {three}
    assert listed(q=two[:13]) == {two} and listed(q="%") == set()
    assert listed(connected="true") == {three} and listed(connected="false") == {one, two}
    assert listed(state="active") == {one, two, three} and listed(state="revoked") == set()
    assert listed(policy="none") == {one, two, three} and listed(policy="drift") == set()
    for wrong in ({"status": "bad"}, {"connected": "yes"}, {"limit": "0"}, {"limit": "1001"},
                  {"limit": "x"}, {"cursor": "x"}, {"colour": "red"}):
        api.refused(400, "devices_list", query=wrong)
    api.refused(404, "devices_list", query={"group": "/nowhere"})


# --- the status of a device ------------------------------------------------------------------

HOUR, NOW = 3600, int(time.time())
FINE = {"engine": "running", "realtime": "notify", "licence": "ok", "threats_open": 0,
        "signatures__built": NOW - HOUR, "last_scan": NOW - HOUR}
VERDICTS = [
    # what differs, what the policy says, status, reasons
    ({}, {}, "ok", []),
    ({"engine": "down"}, {}, "critical", ["engine_down"]),
    ({"engine": "down"}, {"status.engine_down": "warning"}, "warning", ["engine_down"]),
    ({"engine": "down"}, {"status.engine_down": "ok"}, "ok", []),
    ({"realtime": "off"}, {}, "warning", ["realtime_off"]),
    ({"realtime": "failed"}, {"status.realtime_off": "critical"}, "critical", ["realtime_off"]),
    ({"realtime": "block"}, {}, "ok", []),
    ({"licence": "missing"}, {}, "ok", []),
    ({"licence": "expired"}, {"status.licence_missing": "warning"}, "warning",
     ["licence_missing"]),
    ({"threats_open": 1}, {}, "critical", ["threat"]),
    ({"threats_open": 2}, {"status.threat": "ok"}, "ok", []),
    ({"signatures__built": NOW - 71 * HOUR}, {}, "ok", []),
    ({"signatures__built": NOW - 73 * HOUR}, {}, "warning", ["signatures_old"]),
    ({"signatures__built": NOW - 169 * HOUR}, {}, "critical", ["signatures_old"]),
    ({"signatures__built": NOW - 169 * HOUR}, {"status.signatures_critical_h": 0}, "warning",
     ["signatures_old"]),
    ({"signatures__built": NOW - 169 * HOUR}, {"status.signatures_warning_h": 0,
                                               "status.signatures_critical_h": 0}, "ok", []),
    ({"signatures__built": 0}, {}, "critical", ["signatures_missing"]),
    ({"signatures__built": 0}, {"status.signatures_critical_h": 0}, "warning",
     ["signatures_missing"]),
    ({"signatures__built": 0}, {"status.signatures_warning_h": 0,
                                "status.signatures_critical_h": 0}, "ok", []),
    ({"signatures__built": NOW + 365 * 24 * HOUR}, {}, "ok", []),
    ({"last_scan": 0}, {}, "ok", []),
    ({"last_scan": 0}, {"status.scan_warning_days": 7}, "warning", ["scan_old"]),
    ({"last_scan": NOW - 8 * 24 * HOUR}, {"status.scan_warning_days": 7}, "warning",
     ["scan_old"]),
    ({"last_scan": NOW - 6 * 24 * HOUR}, {"status.scan_warning_days": 7}, "ok", []),
    ({"engine": "down", "threats_open": 1, "realtime": "off"}, {}, "critical",
     ["threat", "engine_down", "realtime_off"]),
    # An agent that nobody here wrote may say anything.
    ({"threats_open": "many", "signatures__built": 1e300, "last_scan": -5, "realtime": 7}, {},
     "ok", []),
    ({"engine": None}, {}, "unknown", ["no_facts"]),
    ({"engine": 5, "threats_open": 1}, {}, "critical", ["threat", "no_facts"]),
]


@pytest.mark.parametrize("facts,policy,status,reasons", VERDICTS,
                         ids=[f"{f} {p}" for f, p, _, _ in VERDICTS])
def test_a_status_follows_from_facts_and_policy(api, facts, policy, status, reasons):
    api("policy_put", "/", body={"settings": policy})
    now = api.judge(api.device(**{**FINE, **facts}))
    assert (now["status"], [r["id"] for r in now["reasons"]]) == (status, reasons)
    assert all(r["text"].endswith(".") and r["severity"] for r in now["reasons"])


@pytest.mark.parametrize("hours,policy,status", [
    (1, {}, "ok"), (25, {}, "warning"), (25, {"status.unseen_warning_h": 0}, "ok"),
    (25, {"status.unseen_critical_h": 2}, "critical"),
    (25, {"status.unseen_critical_h": 48}, "warning")])
def test_a_device_that_is_not_heard_of(api, hours, policy, status):
    api("policy_put", "/", body={"settings": policy})
    device = api.device(**FINE)
    api.sql("UPDATE redoubt.device SET last_seen = now() - make_interval(hours => %s)", hours)
    assert api.judge(device)["status"] == status


def test_time_alone_changes_a_status(api):
    device = api.device(**FINE)
    api.judge(device)
    (due,), = api.sql("SELECT status_due - now() FROM redoubt.device")
    assert 23 * HOUR < due.total_seconds() <= 24 * HOUR  # unseen, before the signatures
    assert api.sql("SELECT redoubt.judge_stale(100)") == [(0,)]
    api.sql("UPDATE redoubt.device SET last_seen = now() - interval '25 hours', "
            "status_due = now() - interval '1 hour'")
    assert api.sql("SELECT redoubt.judge_stale(100)") == [(1,)]
    assert api("device_get", device)["status"] == "warning"
    assert api.sql("SELECT kind, severity, data ->> 'before', data ->> 'status' FROM redoubt.event"
                   " WHERE device_id = %s ORDER BY id", device) == [
        ("protection_changed", "info", "unknown", "ok"),
        ("protection_changed", "warning", "ok", "warning")]
    # A reason more is no other status, and no event.
    api.sql("""UPDATE redoubt.device SET description = jsonb_set(description,
               '{non_identifying,protection.realtime}', '"off"')""")
    assert [r["id"] for r in api.judge(device)["reasons"]] == ["realtime_off", "unseen"]
    assert api.sql("SELECT count(*) FROM redoubt.event WHERE device_id = %s", device) == [(2,)]


@pytest.mark.parametrize("age,warning,critical,due", [
    (1, 72, 168, 71), (73, 72, 168, 95), (169, 72, 168, None), (1, 0, 168, 167),
    (1, 72, 0, 71), (73, 72, 0, None), (1, 168, 72, 71), (73, 168, 72, None), (1, 0, 0, None)])
def test_the_next_look_is_when_the_age_counts(api, age, warning, critical, due):
    api("policy_put", "/", body={"settings": {
        "status.unseen_warning_h": 0, "status.signatures_warning_h": warning,
        "status.signatures_critical_h": critical}})
    api.judge(api.device(**{**FINE, "signatures__built": int(time.time()) - age * HOUR}))
    (seconds,), = api.sql("SELECT extract(epoch FROM status_due - now()) FROM redoubt.device")
    assert (seconds is None) if due is None else abs(float(seconds) - due * HOUR) < 60


def test_a_policy_that_changes_the_rules_of_status_judges_its_devices_anew(api):
    group = api.group("/", "a")
    devices = [api.device(group["id"], **{**FINE, "realtime": "off"}) for _ in range(5)]
    other = api.device(**{**FINE, "realtime": "off"})
    api.judge(*devices, other)
    api("policy_put", "/a", body={"settings": {"engine.threads": 3}})
    assert api.sql("SELECT redoubt.judge_stale(100)") == [(0,)]
    api("policy_put", "/a", body={"settings": {"status.realtime_off": "critical"}})
    assert [api.sql("SELECT redoubt.judge_stale(3)") for _ in range(3)] == [
        [(3,)], [(2,)], [(0,)]]
    assert {api("device_get", d)["status"] for d in devices} == {"critical"}
    assert api("device_get", other)["status"] == "warning"


def test_a_device_that_is_not_managed_has_no_status(api):
    device = api.device(**{**FINE, "engine": "down"})
    api.judge(device)
    api.sql("UPDATE redoubt.device SET state = 'revoked'")
    assert api.sql("SELECT redoubt.judge_stale(9)") == [(1,)]
    now = api("device_get", device)
    assert (now["status"], [r["id"] for r in now["reasons"]]) == ("unknown", ["not_managed"])
    new = api.judge(api.device())
    assert (new["status"], new["reasons"][0]["id"]) == ("unknown", "no_facts")


# --- what devices say of their policy ---------------------------------------------------------

def test_a_device_says_what_became_of_its_policy(api):
    device = api.device(**FINE)
    wanted = api.effective()[ROOT][1]

    def say(**status):
        api.sql("SELECT * FROM redoubt.x_policy(%s)", json.dumps(
            [{"device": device, "policy": {"hash": "0" * 64, "state": "applying"}},
             {"device": device}, {"device": device, "policy": status}]))
        shown = api.judge(device)
        return shown["policy"]["state"], shown["status"]
    assert api("device_get", device)["policy"]["state"] == "none"
    assert say(hash=wanted, state="applying") == ("applying", "ok")
    assert say(hash=wanted, state="applied") == ("applied", "ok")
    assert say(hash=wanted, state="failed", error="drift: clamd.conf was changed") == (
        "drift", "warning")
    assert say(hash=wanted, state="failed", error="no clamd") == ("failed", "warning")
    assert "no clamd" in api("device_get", device)["reasons"][0]["text"]
    assert say(hash=wanted, state="applied", error="x") == ("applied", "ok")
    api("policy_put", "/", body={"settings": {"engine.threads": 3}})
    assert api("device_get", device)["policy"]["state"] == "applying"
    assert api("device_policy", device)["reported_hash"] == wanted
    assert say(hash="' OR 1=1", state="won", error=5) == ("none", "ok")


# --- rules that move devices ------------------------------------------------------------------

def rules(api, *list_):
    return api("rules_put", body={"rules": list(list_)})


def where(api, device):
    return api("device_get", device)["group"]["path"]


def test_rules_move_by_tag_address_and_os(api):
    for name in ("tag", "net", "os", "all"):
        api.group("/", name)
    rules(api, {"tag": "till", "os": "linux", "address": "192.0.2.0/24", "group": "/all"},
          {"tag": "till", "group": "/tag"}, {"address": "192.0.2.0/24", "group": "/net"},
          {"os": "debian", "group": "/os"})
    def one(tags, address, os_type=None, os_text=None):
        device = api.device(**{"os.type": os_type, "os.description": os_text})
        api.sql("UPDATE redoubt.device SET tags = %s, address = %s WHERE id = %s", tags, address,
                device)
        return api.judge(device)["group"]["path"]
    assert one([], "198.51.100.1") == "/"
    assert one(["till"], "198.51.100.1") == "/tag"
    assert one(["till2"], "192.0.2.9") == "/net"
    assert one(["x", "till"], "192.0.2.9", "Linux") == "/all"
    assert one(["till"], "192.0.2.9", "windows") == "/tag"
    assert one([], None, "linux", "Debian GNU/Linux 12") == "/os"
    assert one([], "2001:db8::1", "debian") == "/os"


def test_who_was_moved_by_hand_stays_unless_a_rule_overrides(api):
    for name in ("hand", "rule"):
        api.group("/", name)
    device = api.device()
    rules(api, {"tag": "t", "group": "/rule"})
    assert api("device_patch", device, body={"tags": ["t"]})["group"]["path"] == "/rule"
    assert api("device_patch", device, body={"group": "/hand"})["group"]["path"] == "/hand"
    api.judge(device)
    assert where(api, device) == "/hand"
    rules(api, {"tag": "t", "group": "/rule", "override": True})
    assert where(api, device) == "/hand"  # not yet: in pieces, each second
    assert api.sql("SELECT redoubt.judge_stale(10)") == [(1,)]
    assert where(api, device) == "/rule"
    rules(api, {"tag": "t", "group": "/rule"})
    api("device_patch", device, body={"group": "/hand"})
    assert api("device_patch", device, body={"group": None})["group"]["path"] == "/rule"
    api("device_patch", device, body={"group": "/hand"})
    assert "A rule moves" in api.refused(409, "group_delete", "/rule").message_detail


def test_rules_have_a_version_and_are_checked(api):
    api.group("/", "a")
    first = api.whole("rules_get")
    second = api.whole("rules_put", body={"rules": [{"name": "r", "tag": "t",
                                                            "group": "/a"}]})
    assert second["version"] == first["version"] + 1
    assert second["body"]["rules"][0]["group"]["path"] == "/a"
    assert second["body"]["rules"][0]["name"] == "r"
    back = api("rules_put", body={"rules": second["body"]["rules"]})
    assert back["rules"] == second["body"]["rules"]
    for wrong in (5, {}, {"group": "/a"}, {"tag": "", "group": "/a"}, {"tag": 5, "group": "/a"},
                  {"address": "x", "group": "/a"}, {"os": "a\nb", "group": "/a"},
                  {"tag": "t", "group": "/a", "override": "yes"},
                  {"tag": "t", "group": "/a", "more": 1}):
        said = api.refused(422, "rules_put", body={"rules": [{"tag": "t", "group": "/a"}, wrong]})
        assert said.message_detail.startswith("Rule 2: ")
    api.refused(404, "rules_put", body={"rules": [{"tag": "t", "group": "/b"}]})
    api.refused(404, "rules_put", body={"rules": [{"tag": "t"}]})
    for body in ({"rules": {}}, {"rules": [{"tag": "t", "group": "/a"}] * 101}, {}):
        api.refused(400, "rules_put", body=body)
    assert api("rules_get")["rules"] == second["body"]["rules"]


# --- the fence ---------------------------------------------------------------------------------

def test_a_session_of_another_epoch_changes_nothing(api):
    api.sql("SELECT redoubt.announce(%s)", EPOCH - 1)
    device = ROOT
    for call in ("SELECT redoubt.recompute(redoubt.root_group())", "SELECT redoubt.judge_stale(1)",
                 "SELECT redoubt.judge_devices('{}')", "SELECT * FROM redoubt.x_policy('[]')",
                 f"""SELECT redoubt.api_group_create('{json.dumps(ADMIN)}', '{{}}', '{{}}',
                 '{{"name": "x"}}')""",
                 f"""SELECT redoubt.api_device_patch('{json.dumps(ADMIN)}', '{{"id": "{device}"}}',
                 '{{}}', '{{"name": "x"}}')"""):
        with pytest.raises(psycopg2.Error) as caught:
            api.sql(call)
        assert caught.value.pgcode == "RD001"
