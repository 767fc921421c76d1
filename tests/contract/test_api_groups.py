"""Groups, policies, rules and devices over the API of a running redoubt-manager: what is written
is what devices get, concurrent changes do not overwrite each other, and the manager's clock moves
and judges devices without anybody asking."""
import json
import os
import tempfile
import threading
import urllib.parse
import uuid

import pytest

from device_world import Certificates, Postgres, eventually
from manager_world import Manager

EPOCH = 3


@pytest.fixture(scope="module", name="folder")
def fixture_folder():
    with tempfile.TemporaryDirectory(prefix="redoubt-groups-") as path:
        os.chmod(path, 0o755)  # PostgreSQL runs as another user
        yield path


@pytest.fixture(scope="module", name="database")
def fixture_database(folder):
    database = Postgres(folder)
    yield database
    database.stop()


@pytest.fixture(scope="module", name="api")
def fixture_api(folder, database):
    api = Manager(folder, database, Certificates(folder))
    api.wait_note("READY=1")
    database.raise_fence(EPOCH)
    api.active(EPOCH)
    eventually("the API answers", lambda: api.get("/v1/groups").status == 200)
    yield api
    api.stop()
    text = api.log_text()
    assert "BUG" not in text and "Sanitizer" not in text, text


def of(path, *more):
    return "/v1/groups/" + "/".join([urllib.parse.quote(path, safe=""), *more])


def done(answer, status=200):
    assert answer.status == status, answer.text
    return answer.json


def exchange(database, *items):
    """What a worker of the server stores in one batch."""
    (answers,), = database.query(
        "SELECT redoubt.announce(%s, 'server'); "
        "SELECT jsonb_agg(x) FROM redoubt.device_exchange(%s) x", EPOCH, json.dumps(items))
    return answers


def device(database, address="198.51.100.7", **facts):
    """One that has connected and told these facts."""
    identity = str(uuid.uuid4())
    told = {"os.type": "linux", "protection.engine": "running", "protection.realtime": "notify"}
    told.update({"protection." + k: v for k, v in facts.items()})
    exchange(database, {
        "device": identity, "name": "kiosk", "hello": {
            "serial": uuid.uuid4().hex, "not_after": 4000000000, "address": address,
            "instance": "i", "transport": "ws", "node": "node-a"},
        "description": {"identifying": {}, "non_identifying": told}})
    return identity


def test_a_policy_reaches_the_document_of_each_group_below(api, database):
    for path, name in (("/", "Servers"), ("/Servers", "Linux"), ("/Servers/Linux", "Web & mail")):
        done(api.post("/v1/groups", {"parent": path, "name": name}), 201)
    one = device(database)
    done(api.call("PATCH", f"/v1/devices/{one}", {"group": "/Servers/Linux/Web & mail"}))
    done(api.call("PUT", of("/Servers", "policy"), {"settings": {
        "engine.threads": {"value": 6, "locked": True}, "scan.cpu_percent": 20}}))
    own = done(api.call("PUT", of("/Servers/Linux/Web & mail", "policy"), {"settings": {
        "engine.threads": 2, "scan.cpu_percent": 30}}))
    assert own["overruled"] == ["engine.threads"]
    now = done(api.get(f"/v1/devices/{one}/policy"))
    assert now["settings"]["engine.threads"] == {"value": 6, "from": "/Servers", "locked": True}
    assert now["settings"]["scan.cpu_percent"]["value"] == 30
    (hello,) = exchange(database, {"device": one, "refresh": True})
    assert hello["answer"]["hello"]["policy_hash"] == now["hash"]
    assert now["state"] == "none"
    exchange(database, {"device": one, "policy": {"hash": now["hash"], "state": "applied"}})
    assert done(api.get(f"/v1/devices/{one}"))["policy"] == {"state": "applied", "error": ""}
    done(api.call("DELETE", of("/Servers", "policy")))
    later = done(api.get(f"/v1/devices/{one}"))
    assert later["policy"]["state"] == "applying"
    done(api.call("PATCH", of("/Servers"), {"name": "Machines"}))
    assert done(api.get(f"/v1/devices/{one}"))["group"]["path"] == (
        "/Machines/Linux/Web & mail")
    assert done(api.get("/v1/devices?group=" + urllib.parse.quote("/Machines")))["items"][0][
        "id"] == one


def test_a_policy_that_is_not_valid_is_refused_with_each_path(api):
    before = done(api.get(of("/", "policy")))
    said = api.call("PUT", of("/", "policy"), {"settings": {
        "engine.threads": 99, "no.such": 1, "exclusions.paths": ["/a\nb"]}})
    assert said.error() == (422, "policy_invalid")
    assert sorted(said.json["error"]["text"].splitlines()) == [
        "engine.threads: must be a whole number from 1 to 64",
        'exclusions.paths: may not contain control characters, " or \\',
        "no.such: there is no such setting"]
    for settings in (5, [], None, {f"k{i}": 1 for i in range(5000)}, {"é" * 300: 1}):
        said = api.call("PUT", of("/", "policy"), {"settings": settings})
        assert said.error() == (422, "policy_invalid")
    assert api.call("PUT", of("/", "policy"), {}).error() == (422, "policy_invalid")
    assert done(api.get(of("/", "policy"))) == before


def test_of_many_writers_with_one_version_one_wins(api):
    done(api.post("/v1/groups", {"name": "Contended"}), 201)
    etag = api.get(of("/Contended", "policy")).headers["ETag"]
    answers = []

    def write(n):
        answers.append(api.call("PUT", of("/Contended", "policy"),
                                {"settings": {"engine.threads": n}}, If_Match=etag).status)
    threads = [threading.Thread(target=write, args=(n,)) for n in range(2, 10)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(answers) == [200] + [412] * 7
    now = api.get(of("/Contended", "policy"))
    assert now.json["version"] == 2 and now.headers["ETag"] == '"v2"'


def test_changes_of_the_tree_at_the_same_time_leave_a_tree(api):
    for name in ("x", "y"):
        done(api.post("/v1/groups", {"name": name}), 201)
    both = [of("/x"), of("/y")]
    ids = [done(api.get(path))["id"] for path in both]
    answers = []

    def move(i):
        answers.append(api.call("PATCH", of(ids[i]), {"parent": ids[1 - i]}).status)
    threads = [threading.Thread(target=move, args=(i,)) for i in (0, 1)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(answers) == [200, 409]  # the second would close the circle
    paths = {g["path"] for g in done(api.get("/v1/groups"))["items"]}
    assert paths & {"/x/y", "/y/x"} and len(paths & {"/x/y", "/y/x"}) == 1


def test_the_clock_of_the_manager_moves_by_rules(api, database):
    done(api.post("/v1/groups", {"name": "Branch"}), 201)
    inside, outside = device(database, "192.0.2.9"), device(database, "198.51.100.9")
    done(api.call("PUT", "/v1/rules", {"rules": [{"name": "branch", "address": "192.0.2.0/24",
                                                  "group": "/Branch"}]}))

    def where(identity):
        return done(api.get(f"/v1/devices/{identity}"))["group"]["path"]
    eventually("moved by the rule", lambda: where(inside) == "/Branch")
    assert where(outside) == "/"
    later = device(database, "192.0.2.10")
    assert where(later) == "/Branch"  # in the transaction of its hello
    done(api.call("PUT", "/v1/rules", {"rules": []}))


def test_the_clock_of_the_manager_judges_what_the_policy_changes(api, database):
    one = device(database, realtime="off")

    def status():
        return done(api.get(f"/v1/devices/{one}"))["status"]
    assert status() == "warning"
    done(api.call("PUT", of("/", "policy"), {"settings": {"status.realtime_off": "critical"}}))
    eventually("judged by the new policy", lambda: status() == "critical")
    done(api.call("DELETE", of("/", "policy")))
    eventually("judged by the defaults", lambda: status() == "warning")
    told = [(e["data"]["before"], e["data"]["status"]) for e in done(
        api.get(f"/v1/events?device={one}&kind=protection_changed"))["items"]]
    assert told[::-1] == [("unknown", "warning"), ("warning", "critical"), ("critical", "warning")]


def test_a_device_is_forgotten_with_its_certificates(api, database):
    one = device(database)
    serial = done(api.get(f"/v1/devices/{one}"))["certificate"]["serial"]
    done(api.call("DELETE", f"/v1/devices/{one}"))
    assert api.get(f"/v1/devices/{one}").status == 404
    (answer,) = exchange(database, {"device": one, "hello": {
        "serial": serial, "not_after": 4000000000, "address": "198.51.100.7", "instance": "i",
        "transport": "ws", "node": "node-a"}})
    assert answer["answer"]["hello"]["state"] == "revoked"
    assert api.get(f"/v1/devices/{one}").status == 404


def test_who_did_what_is_in_the_audit_trail(api):
    done(api.post("/v1/groups", {"name": "Audited"}), 201)
    done(api.call("PUT", of("/Audited", "policy"), {"settings": {"engine.threads": 3}}))
    done(api.call("DELETE", of("/Audited")))
    mine = [(a["action"], a["before"] is None, a["after"] is None)
            for a in done(api.get("/v1/audit?limit=1000"))["items"] if a["object"] == "/Audited"]
    assert sorted(mine) == [("group_create", True, False), ("group_delete", False, True),
                            ("policy_change", False, False)]
