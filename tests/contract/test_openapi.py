"""docs/api/openapi.json against the running manager: every route is documented and every
documented one is there; what it answers is what the document says; who may not, may not."""
import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import urllib.parse
import uuid

import jsonschema
import pytest

import link_tour
import package_tour
import rollout_tour
import signature_tour
from device_world import NODE, TOP, Certificates, Postgres
from manager_world import MANAGER, Manager

with open(os.path.join(TOP, "docs/api/openapi.json"), encoding="utf-8") as _file:
    DOCUMENT = json.load(_file)
VENDOR = os.path.join(TOP, "lab/vendor/licence")
METHODS = ("get", "put", "post", "patch", "delete")
ROLES = ("auditor", "operator", "administrator")


def inline(schema):
    """The schema with its references (which are never circular) replaced."""
    if isinstance(schema, list):
        return [inline(s) for s in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return inline(look_up(schema["$ref"]))
    return {key: inline(value) for key, value in schema.items()}


def names(rows):
    """What pytest calls the rows of a table."""
    return [f"{n} {row[0]} {row[1][:40]}" for n, row in enumerate(rows)]


def look_up(reference):
    at = DOCUMENT
    for piece in reference.removeprefix("#/").split("/"):
        at = at[piece]
    return at


def operations():
    """(method, pattern, operation) of all."""
    for pattern, item in DOCUMENT["paths"].items():
        for method in METHODS:
            if method in item:
                yield method.upper(), pattern, item[method]


def validates(schema, value):
    jsonschema.Draft202012Validator(
        inline(schema), format_checker=jsonschema.FormatChecker()).validate(value)


class Documented(Manager):
    """A manager each answer of which is held against the document."""

    def __init__(self, *args):
        self.toured = set()
        super().__init__(*args)

    def call(self, method, path, body=None, token=None, **headers):
        answer = super().call(method, path, body, token, **headers)
        target = path.split("?")[0]
        found = [(pattern, item) for pattern, item in DOCUMENT["paths"].items()
                 if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", pattern), target)]
        if not found or method.lower() not in found[0][1]:
            assert answer.error()[0] in (404, 405), (method, path, answer.text)
            return answer
        pattern, item = found[0]
        told = item[method.lower()]["responses"]
        assert str(answer.status) in told, (method, path, answer.status, answer.text)
        response = told[str(answer.status)]
        if "$ref" in response:
            response = look_up(response["$ref"])
        if "content" in response:
            validates(response["content"]["application/json"]["schema"], answer.json)
            assert answer.headers["Content-Type"] == "application/json"
        if "ETag" in response.get("headers", {}):
            assert re.fullmatch('"v[0-9]+"', answer.headers["ETag"]), answer.headers
        if answer.status < 400:
            self.toured.add((method, pattern))
        return answer

    def done(self, method, path, body=None, token=None, **headers):
        """The body of an answer that must be a good one."""
        answer = self.call(method, path, body, token, **headers)
        assert 200 <= answer.status < 300, (method, path, answer.status, answer.text)
        return answer.json


@pytest.fixture(scope="module", name="folder")
def _folder():
    with tempfile.TemporaryDirectory(prefix="redoubt-openapi-") as path:
        os.chmod(path, 0o755)  # PostgreSQL runs as another user
        yield path


@pytest.fixture(scope="module", name="database")
def _database(folder):
    database = Postgres(folder)
    yield database
    database.stop()


@pytest.fixture(scope="module", name="api")
def _api(folder, database):
    certificates = Certificates(folder)
    trust = tempfile.mkdtemp(dir=folder)
    with open(os.path.join(trust, "link.key"), "wb") as file:
        file.write(link_tour.SECRET)
    shutil.copy(certificates.path("ca.pem"), trust)  # what signatures are verified with
    subprocess.run([VENDOR, "keygen", folder], check=True)
    api = Documented(folder, database, certificates,
                     f"[trust]\nfolder={trust}\nnames=redoubt.example localhost\n"
                     f"[activation]\nanchor={folder}/licence.pub\n")
    api.wait_note("READY=1")
    database.raise_fence(1)
    api.active(1)
    yield api
    api.stop()
    text = api.log_text()
    assert "BUG" not in text and "Sanitizer" not in text, text


class World:
    """Two groups side by side, a device in each, a task and a token."""

    def __init__(self, api, database):
        self.api = api
        self.database = database
        # The authority, as enrolment would have told it.
        self.fenced("SELECT redoubt.authority_set('PEM', 'digest')")
        self.a = api.done("POST", "/v1/groups", {"name": "A"})
        self.b = api.done("POST", "/v1/groups", {"name": "B"})
        self.below = api.done("POST", "/v1/groups", {"name": "Below", "parent": "/A"})
        self.in_a = self.device("a-device", "/A/Below")
        self.in_b = self.device("b-device", "/B")
        self.task = api.done("POST", "/v1/tasks", task("nightly", {"group": "/B"}))
        self.token = api.done("POST", "/v1/tokens", {"name": "for B", "group": "/B"})
        self.scoped = {role: api.token(role, ["/A"])["token"] for role in ROLES}
        self.tokens = {role: api.token(role)["token"] for role in ROLES}

    def fenced(self, *statements):
        with contextlib.closing(self.database.connect()) as link, link.cursor() as cursor:
            cursor.execute("SELECT redoubt.announce((SELECT epoch FROM redoubt.fence), 'test',"
                           " %s)", (NODE,))
            for statement in statements:
                cursor.execute(*statement if isinstance(statement, tuple) else (statement,))
            return cursor.fetchall() if cursor.description else []

    def exchange(self, *items):
        return self.fenced(("SELECT * FROM redoubt.device_exchange(%s)", (json.dumps(items),)))

    def device(self, name, group):
        device = str(uuid.uuid4())
        self.exchange({"device": device, "name": name,
                       "description": {"host.name": name, "os.type": "linux"},
                       "hello": {"serial": uuid.uuid4().hex, "not_after": 4102444800,
                                 "address": "192.0.2.7", "instance": None, "transport": "ws",
                                 "node": NODE}})
        self.api.done("PATCH", f"/v1/devices/{device}", {"group": group})
        return device

    def events(self, device, *kinds, first=1, stream=None):
        self.exchange({"device": device, "events": {
            "stream": stream or str(uuid.uuid4()), "first": first,
            "list": [{"at": 1795000000000000, "kind": kind, "severity": "warning", "data": {}}
                     for kind in kinds]}})


def task(name, target, **more):
    return {"name": name, "type": "scan", "params": {"mode": "quick"}, "target": target,
            "schedule": None, **more}


@pytest.fixture(scope="module", name="world")
def _world(api, database):
    return World(api, database)


# --- the document --------------------------------------------------------------------------


def test_the_document_is_sound():
    ids = [operation["operationId"] for _, _, operation in operations()]
    assert len(ids) == len(set(ids))
    for name, schema in DOCUMENT["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(inline(schema))
        assert json.dumps(DOCUMENT).count(f"#/components/schemas/{name}\"") > 0, f"{name} is unused"
    for method, pattern, operation in operations():
        wanted = re.findall(r"\{(\w+)\}", pattern)
        given = [inline(p) for p in operation.get("parameters", [])]
        assert [p["name"] for p in given if p["in"] == "path"] == wanted, (method, pattern)
        assert operation["summary"] and operation["tags"], (method, pattern)
        for response in operation["responses"].values():
            assert inline(response)["description"]


def test_every_route_is_documented_and_vice_versa():
    listed = subprocess.run([MANAGER, "--routes"], check=True, capture_output=True, text=True)
    there = {}
    for line in listed.stdout.splitlines():
        method, pattern, role, *query = line.split()
        there[method, pattern] = (role, sorted(query))
    documented = {}
    for method, pattern, operation in operations():
        query = [inline(p)["name"] for p in operation.get("parameters", [])
                 if inline(p)["in"] == "query"]
        documented[method, pattern] = (operation.get("x-role", "public"), sorted(query))
        assert operation["security"] == ([{"token": []}] if "x-role" in operation else [])
    assert there == documented


def test_the_server_tells_the_document(api):
    for token in (None, ""):
        assert api.done("GET", "/v1/openapi.json", None, token) == DOCUMENT


# --- who may what --------------------------------------------------------------------------


def sample(world, method, pattern):
    """An address and a body that the route takes, as far as roles are concerned."""
    ids = {"devices": world.in_b, "groups": world.b["id"], "tasks": world.task["id"],
           "tokens": world.token["id"], "api-tokens": str(uuid.uuid4()),
           "occurrences": str(uuid.uuid4()), "packages": str(uuid.uuid4()),
           "licences": str(uuid.uuid4()),
           "rollouts": str(uuid.uuid4())}
    path = re.sub(r"\{id\}", lambda _: ids[pattern.split("/")[2]], pattern)
    path = path.replace("{name}", "daily").replace("{sha256}", "0" * 64)
    return path, None if method in ("GET", "DELETE") else {"nonsense": 1}


@pytest.mark.parametrize("method, pattern, operation", list(operations()),
                         ids=names(list(operations())))
def test_each_route_needs_its_role(api, world, method, pattern, operation):
    least = operation.get("x-role")
    path, body = sample(world, method, pattern)
    if not least:
        assert api.call(method, path, body, "").status not in (401, 403)
        return
    assert api.call(method, path, body, "").error() == (401, "not_authenticated")
    for role in ROLES:
        if ROLES.index(role) < ROLES.index(least):
            answer = api.call(method, path, body, world.tokens[role])
            assert answer.error() == (403, "not_allowed"), role
    if method in ("GET", "POST", "PUT", "PATCH"):  # a wrong body: nothing is changed by it
        answer = api.call(method, path, body, world.tokens[least])
        assert answer.status not in (401, 403), answer.text


def test_a_scope_hides_what_is_outside(api, world):
    token = world.scoped["administrator"]
    assert [d["id"] for d in api.done("GET", "/v1/devices", None, token)["items"]] == [
        world.in_a]
    assert [g["path"] for g in api.done("GET", "/v1/groups", None, token)["items"]] == [
        "/A", "/A/Below"]
    assert api.done("GET", "/v1/status", None, token)["devices"]["total"] == 1
    assert api.done("GET", f"/v1/devices/{world.in_a}", None, token)["id"] == world.in_a
    world.events(world.in_a, "threat_found")
    world.events(world.in_b, "threat_found")
    told = api.done("GET", "/v1/events", None, token)["items"]
    assert told and {e["device"] for e in told} == {world.in_a}
    assert world.task["id"] not in json.dumps(api.done("GET", "/v1/tasks", None, token))
    assert api.done("GET", "/v1/tokens", None, token)["items"] == []


OUTSIDE = [
    ("GET", "/v1/devices/{in_b}", None, 404),
    ("PATCH", "/v1/devices/{in_b}", {"tags": ["x"]}, 404),
    ("DELETE", "/v1/devices/{in_b}", None, 404),
    ("POST", "/v1/devices/{in_b}/revoke", {}, 404),
    ("GET", "/v1/devices/{in_b}/policy", None, 404),
    ("GET", "/v1/devices/{in_b}/quarantine", None, 404),
    ("PATCH", "/v1/devices/{in_a}", {"group": "/B"}, 404),
    ("GET", "/v1/groups/{b}", None, 404),
    ("PUT", "/v1/groups/{b}/policy", {"settings": {}}, 404),
    ("DELETE", "/v1/groups/{b}", None, 404),
    ("POST", "/v1/groups", {"name": "New", "parent": "/"}, 404),
    ("POST", "/v1/groups", {"name": "New", "parent": "/B"}, 404),
    ("PATCH", "/v1/groups/{below}", {"parent": "/B"}, 404),
    ("PUT", "/v1/rules", {"rules": []}, 403),
    ("GET", "/v1/audit", None, 403),
    ("PUT", "/v1/retention", {}, 403),
    ("POST", "/v1/signatures", {"files": []}, 403),
    ("PUT", "/v1/signatures/source", {}, 403),
    ("PUT", "/v1/signatures/custom", {}, 403),
    ("POST", "/v1/signatures/update", {}, 403),
    ("DELETE", "/v1/signatures/databases/daily", None, 403),
    ("POST", "/v1/packages", {"name": "x"}, 403),
    ("DELETE", "/v1/packages/{task}", None, 403),
    ("POST", "/v1/store/collect", {}, 403),
    ("GET", "/v1/tasks/{task}", None, 404),
    ("POST", "/v1/tasks/{task}/start", {}, 404),
    ("DELETE", "/v1/tasks/{task}", None, 404),
    ("DELETE", "/v1/tokens/{token}", None, 404),
    ("POST", "/v1/licences", {"code": "SOME-CODE"}, 403),
    ("DELETE", "/v1/licences/x", None, 403),
    ("POST", "/v1/licences/x/request", {}, 403),
    ("POST", "/v1/tokens", {"name": "x", "group": "/B"}, 400),
    ("POST", "/v1/tokens", {"name": "x"}, 400),
    ("POST", "/v1/api-tokens", {"name": "x", "role": "auditor"}, 403),
    ("POST", "/v1/api-tokens", {"name": "x", "role": "auditor", "scope": ["/B"]}, 400),
]


@pytest.mark.parametrize("method, path, body, status", OUTSIDE, ids=names(OUTSIDE))
def test_a_scope_keeps_hands_off(api, world, method, path, body, status):
    path = path.format(in_a=world.in_a, in_b=world.in_b, b=world.b["id"],
                       below=world.below["id"], task=world.task["id"], token=world.token["id"])
    answer = api.call(method, path, body, world.scoped["administrator"])
    assert answer.status == status, answer.text


def test_tokens_end(api, world):
    made = api.token("auditor", name="short")
    assert api.done("GET", "/v1/status", None, made["token"])
    assert api.done("DELETE", f"/v1/api-tokens/{made['id']}")["state"] == "revoked"
    assert api.get("/v1/status", made["token"]).error() == (401, "token_revoked")
    made = api.token("auditor", name="old")
    world.fenced(("UPDATE redoubt.api_token SET expires_at = now() WHERE id = %s",
                  (made["id"],)))
    answer = api.get("/v1/status", made["token"])
    assert answer.error() == (401, "token_expired")
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert api.get("/v1/status", made["token"] + "x").error() == (401, "token_unknown")
    states = {t["name"]: t["state"] for t in api.done("GET", "/v1/api-tokens")["items"]}
    assert states["short"] == "revoked" and states["old"] == "expired"


# --- ETag, idempotency, pages ----------------------------------------------------------------


def test_a_change_can_insist_on_a_version(api, world):
    for path, change in ((f"/v1/devices/{world.in_a}", {"tags": ["one"]}),
                         (f"/v1/groups/{world.below['id']}", {"name": "Lower"}),
                         (f"/v1/tasks/{world.task['id']}", {"name": "nightlier"})):
        before = api.get(path).headers["ETag"]
        assert api.get(path, If_None_Match=before).status == 304
        assert api.call("PATCH", path, change, If_Match='"v99999"').error() == (412, "changed")
        assert api.get(path).headers["ETag"] == before
        changed = api.call("PATCH", path, change, If_Match=before)
        assert changed.status == 200 and changed.headers["ETag"] != before
        assert api.get(path).headers["ETag"] == changed.headers["ETag"]
        assert api.call("PATCH", path, change, If_Match=before).error() == (412, "changed")
        assert api.call("PATCH", path, change, If_Match="v1").error() == (400, "invalid")
    for path, body in ((f"/v1/groups/{world.a['id']}/policy", {"settings": {"engine.threads": 3}}),
                       ("/v1/rules", {"rules": [{"tag": "x", "group": "/A"}]}),
                       ("/v1/retention", {"default": {"days": 33}})):
        before = api.get(path).headers["ETag"]
        assert api.call("PUT", path, body, If_Match=before).status == 200
        assert api.call("PUT", path, body, If_Match=before).error() == (412, "changed")
    api.done("PUT", "/v1/rules", {"rules": []})


def test_a_repetition_is_answered_and_not_done_again(api):
    body = {"name": "Once"}
    first = api.post("/v1/groups", body, Idempotency_Key="k-1")
    again = api.post("/v1/groups", body, Idempotency_Key="k-1")
    assert (first.status, again.status) == (201, 201) and first.json == again.json
    assert again.headers["Idempotency-Replayed"] == "true"
    assert first.headers["ETag"] == again.headers["ETag"]
    assert api.post("/v1/groups", body).status == 409
    assert api.post("/v1/groups", {"name": "Twice"}, Idempotency_Key="k-1").error() == (
        422, "idempotency_key_reused")
    # A key of somebody else is another one; a refusal does not use a key up.
    other = api.token("administrator")["token"]
    assert api.post("/v1/groups", body, other, Idempotency_Key="k-1").status == 409
    assert api.post("/v1/groups", {"name": "Else"}, other, Idempotency_Key="k-1").status == 201
    # Secrets are told once.
    body = {"name": "t", "role": "auditor"}
    assert "token" in api.post("/v1/api-tokens", body, Idempotency_Key="k-2").json
    assert "token" not in api.post("/v1/api-tokens", body, Idempotency_Key="k-2").json
    assert api.post("/v1/groups", body, Idempotency_Key="a b").error() == (400, "invalid")


def pages(api, path, limit):
    items, cursor = [], ""
    while cursor is not None:
        page = api.done("GET", f"{path}?limit={limit}{cursor}")
        assert len(page["items"]) <= limit
        items += page["items"]
        cursor = page["next"] and "&cursor=" + urllib.parse.quote(page["next"])
    return items


@pytest.mark.parametrize("path", ["/v1/devices", "/v1/groups", "/v1/tasks", "/v1/events",
                                  "/v1/audit", "/v1/tokens", "/v1/api-tokens"])
def test_a_list_comes_in_pages(api, world, path):
    world.events(world.in_a, *["threat_found"] * 4)
    for _ in range(5):      # an event of the manager's own may come in between: then again
        everything = pages(api, path, 1000)
        ones, twos = pages(api, path, 1), pages(api, path, 2)
        if pages(api, path, 1000) == everything:
            break
    assert len(everything) > 1 or path in ("/v1/tokens", "/v1/tasks")
    assert ones == everything
    assert twos == everything


# --- wrong input -------------------------------------------------------------------------------

WRONG = [
    ("GET", "/v1/devices?limit=0", None, 400),
    ("GET", "/v1/devices?limit=1001", None, 400),
    ("GET", "/v1/devices?limit=x", None, 400),
    ("GET", "/v1/devices?limit=1&limit=2", None, 400),
    ("GET", "/v1/devices?colour=red", None, 400),
    ("GET", "/v1/devices?cursor=';DROP", None, 400),
    ("GET", "/v1/devices?q=%00", None, 400),
    ("GET", "/v1/devices?q=%ff", None, 400),
    ("GET", "/v1/devices?q=" + "x" * 2000, None, 400),
    ("GET", "/v1/devices?status=green", None, 400),
    ("GET", "/v1/devices?group=/Nowhere", None, 404),
    ("GET", "/v1/devices/x", None, 404),
    ("GET", "/v1/devices/00000000-0000-0000-0000-000000000000", None, 404),
    ("GET", "/v1/devices/'%20OR%201=1--", None, 404),
    ("GET", "/v1/groups/..%2F..%2Fetc", None, 404),
    ("GET", "/v1/events?after=x", None, 400),
    ("GET", "/v1/events?since=yesterday", None, 400),
    ("GET", "/v1/events?wait_s=31", None, 400),
    ("GET", "/v1/events?wait_s=-1", None, 400),
    ("POST", "/v1/groups", None, 400),
    ("POST", "/v1/groups", "", 400),
    ("POST", "/v1/groups", "{", 400),
    ("POST", "/v1/groups", "[]", 400),
    ("POST", "/v1/groups", '{"name":"a","name":"b"}', 400),
    ("POST", "/v1/groups", '{"name":"a\\u0000b"}', 400),
    ("POST", "/v1/groups", '{"name":"\\ud800"}', 400),
    ("POST", "/v1/groups", b'{"name":"\xff"}', 400),
    ("POST", "/v1/groups", "[" * 10000, 400),
    ("POST", "/v1/groups", '{"name":' + "[" * 17 + "]" * 17 + "}", 400),
    ("POST", "/v1/groups", {"name": "a/b"}, 400),
    ("POST", "/v1/groups", {"name": "'; DROP TABLE redoubt.device; --"}, 400),
    ("POST", "/v1/groups", {"name": "x", "parent": "/Nowhere"}, 404),
    ("POST", "/v1/groups", {"name": "A"}, 409),
    ("POST", "/v1/groups", {"name": "x", "size": 1}, 400),
    ("PUT", "/v1/groups/%2FA/policy", {"settings": {"engine.threads": 0}}, 422),
    ("PUT", "/v1/groups/%2FA/policy", {"settings": {"no.such": 1}}, 422),
    ("PUT", "/v1/rules", {"rules": [{"group": "/A"}]}, 422),
    ("PUT", "/v1/retention", {"default": {"days": 0}}, 400),
    ("POST", "/v1/signatures", {"files": []}, 400),
    ("PUT", "/v1/signatures/source", {"url": "file:///etc"}, 400),
    ("PUT", "/v1/signatures/custom", {"serial": 0, "files": []}, 400),
    ("DELETE", "/v1/signatures/databases/..%2Fx", None, 404),
    ("POST", "/v1/packages", {"name": "x"}, 400),
    ("GET", "/v1/packages?cursor=x", None, 400),
    ("GET", "/v1/packages/..%2F..%2Fx", None, 400),
    ("GET", "/v1/store/blobs/..%2F..%2Fetc", None, 404),
    ("POST", "/v1/store/collect", {"grace_s": -1}, 400),
    ("POST", "/v1/store/collect", {"all": True}, 400),
    ("POST", "/v1/tasks", {"name": "x"}, 400),
    ("POST", "/v1/tasks", task("x", {"devices": ["00000000-0000-0000-0000-000000000000"]}), 400),
    ("POST", "/v1/licences", {"code": "short"}, 400),
    ("POST", "/v1/licences", {"code": "a\nb-c-d-e-f"}, 400),
    ("POST", "/v1/licences/import", {"document": "{}", "signature": "00"}, 422),
    ("GET", "/v1/licences/no-such", None, 404),
    ("DELETE", "/v1/licences/no-such", None, 404),
    ("GET", "/v1/seats?licence=x", None, 400),
    ("POST", "/v1/rollouts", {"group": "/A"}, 400),
    ("POST", "/v1/rollouts", {"package": "x", "group": "/A", "waves": [50]}, 400),
    ("POST", "/v1/rollouts", {"package": "x", "group": "/A"}, 422),
    ("POST", "/v1/rollouts/nonsense/stop", {}, 404),
    ("POST", "/v1/tokens", {"name": ""}, 400),
    ("POST", "/v1/tokens", {"name": "x", "uses": 0}, 400),
    ("POST", "/v1/api-tokens", {"name": "x", "role": "king"}, 400),
    ("POST", "/v1/api-tokens", {"name": "x\n", "role": "auditor"}, 400),
    ("DELETE", "/v1/groups/%2F", None, 409),
    ("DELETE", "/v1/groups/%2FA", None, 409),
    ("DELETE", "/v1/devices/x", "{}", 400),
    ("POST", "/v1/status", {}, 405),
    ("GET", "/v1/nothing", None, 404),
    ("GET", "/v1/status/", None, 404),
    ("GET", "/", None, 404),
]


@pytest.mark.parametrize("method, path, body, status", WRONG, ids=names(WRONG))
def test_wrong_input_is_refused_as_documented(api, world, method, path, body, status):
    assert world
    answer = api.call(method, path, body)
    assert answer.error()[0] == status, answer.text
    assert answer.json["error"]["title"]


# --- everything ----------------------------------------------------------------------------------


def tour_devices(api, world):
    device = world.device("tourist", "/A")
    path = f"/v1/devices/{device}"
    assert api.done("GET", path)["name"] == "tourist"
    assert api.done("GET", "/v1/devices?q=tour&connected=true&status=unknown")
    assert api.done("PATCH", path, {"name": "Guest", "tags": ["b", "a"]})["tags"] == ["a", "b"]
    assert [d["id"] for d in api.done("GET", "/v1/devices?tag=a&q=guest")["items"]] == [device]
    assert api.done("GET", path + "/policy")["state"] in ("none", "applying", "drift")
    item = str(uuid.uuid4())
    world.exchange({"device": device, "events": {
        "stream": str(uuid.uuid4()), "first": 1, "list": [
            {"at": 1795000000000000, "kind": "quarantine_added", "severity": "warning",
             "data": {"item": item, "path": "/tmp/bad", "threat": "Eicar", "size": 68,
                      "sha256": "0" * 64}}]}})
    assert [q["item"] for q in api.done("GET", path + "/quarantine")["items"]] == [item]
    world.fenced(("UPDATE redoubt.device SET state = 'pending' WHERE id = %s", (device,)))
    assert api.done("POST", path + "/approve")["state"] == "active"
    assert api.done("POST", path + "/revoke", {"reason": "test"})["state"] == "revoked"
    assert api.call("POST", path + "/approve").status == 409
    api.done("DELETE", path)
    assert api.get(path).status == 404


def tour_groups(api, world):
    group = api.done("POST", "/v1/groups", {"name": "Tour", "parent": "/A"})
    by_path = "/v1/groups/" + urllib.parse.quote("/A/Tour", safe="")
    assert api.done("GET", by_path) == group == api.done("GET", f"/v1/groups/{group['id']}")
    put = api.done("PUT", by_path + "/policy", {"settings": {
        "engine.threads": {"value": 5, "locked": True}, "onaccess.mode": "off"}})
    assert put["settings"]["engine.threads"] == {"value": 5, "locked": True}
    assert api.done("GET", by_path + "/policy")["settings"] == put["settings"]
    effective = api.done("GET", by_path + "/effective")["settings"]
    assert effective["engine.threads"] == {"value": 5, "locked": True, "from": "/A/Tour"}
    assert api.done("DELETE", by_path + "/policy")["settings"] == {}
    assert len(api.done("GET", "/v1/settings")["items"]) == len(effective)
    api.done("PATCH", by_path, {"name": "Toured"})
    assert api.get(by_path).status == 404
    api.done("DELETE", f"/v1/groups/{group['id']}")
    rules = api.done("PUT", "/v1/rules", {"rules": [{"os": "linux", "group": "/B"}]})
    assert api.done("GET", "/v1/rules") == rules
    api.done("PUT", "/v1/rules", {"rules": []})
    assert world


def tour_tasks(api, world):
    made = api.done("POST", "/v1/tasks", task("tour", {"devices": [world.in_b]}, priority=3))
    path = f"/v1/tasks/{made['id']}"
    assert api.done("GET", path)["name"] == "tour"
    assert api.done("GET", "/v1/tasks")["items"]
    api.done("PATCH", path, {"name": "tour 2"})
    api.done("POST", path + "/start")
    api.done("POST", path + "/pause")
    api.done("POST", path + "/resume")
    occurrence = api.done("GET", path + "/occurrences")["items"][0]
    at = f"/v1/occurrences/{occurrence['id']}"
    assert api.done("GET", at)["id"] == occurrence["id"]
    runs = api.done("GET", at + "/runs")["items"]
    assert [r["device"] for r in runs] == [world.in_b]
    api.done("POST", path + "/cancel")
    assert api.done("GET", at + "/runs?state=finished")["items"][0]["outcome"] == "cancelled"
    api.done("DELETE", path)


def tour_rest(api, world):
    assert api.done("GET", "/v1/status")["devices"]["total"] == 2
    world.events(world.in_b, "threat_found", "threat_cured")
    told = api.done("GET", f"/v1/events?after=0&device={world.in_b}&kind=threat_found,threat_cured")
    kinds = [e["kind"] for e in told["items"]]
    assert kinds[-2:] == ["threat_found", "threat_cured"]
    assert api.done("GET", "/v1/audit?action=group_create&actor=root")["items"]
    retention = api.done("GET", "/v1/retention")
    assert api.done("PUT", "/v1/retention", retention) == retention
    token = api.done("POST", "/v1/tokens", {"name": "tour", "uses": 2})
    assert token["token"].startswith("rdt1.")
    assert token["id"] in [t["id"] for t in api.done("GET", "/v1/tokens")["items"]]
    assert api.done("DELETE", f"/v1/tokens/{token['id']}")["state"] == "revoked"
    token = api.token("auditor")
    assert api.done("GET", "/v1/api-tokens")["items"]
    api.done("DELETE", f"/v1/api-tokens/{token['id']}")
    exported = api.done("GET", "/v1/export")
    api.done("POST", "/v1/apply?dry_run=1", exported)
    api.done("POST", "/v1/apply", exported)


def signed(folder, **given):
    """A licence as the vendor would send it."""
    words = [f"--{key}={value}" for key, value in given.items()]
    return json.loads(subprocess.run([VENDOR, "sign", "--key", f"{folder}/vendor.key", *words],
                                     check=True, capture_output=True).stdout)


def tour_licences(api, world, folder):
    world.fenced(("SELECT FROM redoubt.licence_sync(now(), 'test', %s, NULL)", ("ab" * 32,)))
    code = api.done("POST", "/v1/licences", {"code": "TOUR-CODE-0001"})
    assert (code["state"], code["code"], code["licence"]) == ("pending", "...0001", None)
    at = f"/v1/licences/{code['id']}"
    request = api.done("POST", at + "/request")
    assert (request["code"], request["lease_key"]) == ("TOUR-CODE-0001", "ab" * 32)
    assert api.done("POST", at + "/request")["nonce"] == request["nonce"]
    licence = api.done("POST", "/v1/licences/import", signed(folder, seats=5))
    assert (licence["state"], licence["seats"], licence["used"]) == ("valid", 5, 0)
    world.fenced((
        "SELECT FROM redoubt.take_seats(jsonb_build_array(jsonb_build_object('device', %s, 'key', "
        "'00', 'serial', '1')), jsonb_build_array(jsonb_build_object('licence', %s, 'seats', 5, "
        "'limit', 5, 'until', extract(epoch FROM now() + interval '1 day')::bigint)), 3600, 60, "
        "now())", (str(world.in_a), licence["licence"])))
    assert [s["device"] for s in api.done("GET", f"/v1/seats?licence={licence['licence']}")[
        "items"]] == [world.in_a]
    assert api.done("GET", f"/v1/licences/{licence['id']}")["used"] == 1
    assert api.done("GET", "/v1/licences")["state"] == "ok"
    for id_ in (code["id"], licence["id"]):
        api.done("DELETE", f"/v1/licences/{id_}")
    assert api.done("GET", "/v1/licences")["state"] == "ended"
    # The installation is not extended; what protects goes on.
    for method, path, body in (
            ("POST", "/v1/tokens", {"name": "x"}), ("POST", "/v1/groups", {"name": "x"}),
            ("PUT", "/v1/groups/%2FA/policy", {"settings": {}}), ("PUT", "/v1/rules", {"rules": []}),
            ("POST", "/v1/apply", {})):
        assert api.call(method, path, body).error() == (403, "licence_ended"), path
    made = api.done("POST", "/v1/tasks", task("unlicensed", {"devices": [world.in_a]}))
    api.done("POST", f"/v1/tasks/{made['id']}/start")
    api.done("DELETE", f"/v1/tasks/{made['id']}")
    assert api.done("GET", "/v1/devices")["items"]
    world.fenced(("UPDATE redoubt.licensing SET state = 'none'", ()))


@pytest.mark.parametrize("change", [
    {"signature": "00" * 64}, {"document": "{}"}, {"document": None}, {"more": 1}])
def test_what_the_vendor_did_not_sign_is_not_imported(api, folder, change):
    envelope = {**signed(folder), **change}
    if change == {"more": 1}:  # another signer
        subprocess.run([VENDOR, "keygen", f"{folder}/other"], check=True)
        envelope = signed(f"{folder}/other")
    assert api.post("/v1/licences/import", envelope).error() == (422, "licence_invalid")


def test_a_licence_of_another_cluster_is_not_imported(api, folder):
    answer = api.post("/v1/licences/import", signed(folder, cluster="elsewhere"))
    assert answer.error() == (422, "licence_invalid") and "elsewhere" in answer.text


def test_a_tour_through_everything(api, world, folder):
    tour_devices(api, world)
    tour_groups(api, world)
    tour_tasks(api, world)
    tour_rest(api, world)
    tour_licences(api, world, folder)
    signer = package_tour.Signer(api.run, api.certificates.path("ca.pem"),
                                 api.certificates.path("ca.key"))
    signature_tour.tour(api, signer)
    package_tour.tour(api, signer)
    link_tour.tour(api, world)
    rollout_tour.tour(api, world)
    api.done("GET", "/v1/openapi.json")
    # Enrolment has tests of its own, with a real authority: tests/contract/test_enrol.py.
    elsewhere = {("GET", "/v1/ca"), ("POST", "/v1/enrol")}
    missing = {(m, p) for m, p, _ in operations()} - api.toured - elsewhere
    assert not missing
