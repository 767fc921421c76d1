"""Sets of signature databases in the DBMS: only newer ones, chains of increments, the age, the
source and its patience; through the API of the running manager."""
import contextlib
import json
import os
import shutil
import tempfile
import threading

import pytest

from device_world import Certificates, Postgres, eventually
from manager_world import Manager
from package_tour import Signer
from signature_tour import blob, custom, database, increment

NODE = "node-a"


@pytest.fixture(scope="module", name="folder")
def _folder():
    with tempfile.TemporaryDirectory(prefix="redoubt-signatures-") as path:
        os.chmod(path, 0o755)  # PostgreSQL runs as another user
        yield path


@pytest.fixture(scope="module", name="dbms")
def _dbms(folder):
    dbms = Postgres(folder)
    yield dbms
    dbms.stop()


@pytest.fixture(scope="module", name="api")
def _api(folder, dbms):
    certificates = Certificates(folder)
    trust = tempfile.mkdtemp(dir=folder)
    shutil.copy(certificates.path("ca.pem"), trust)  # what signatures are verified with
    api = Manager(folder, dbms, certificates, f"[trust]\nfolder={trust}\n")
    api.wait_note("READY=1")
    dbms.raise_fence(1)
    api.active(1)
    yield api
    api.stop()
    text = api.log_text()
    assert "BUG" not in text and "Sanitizer" not in text, text


@pytest.fixture(scope="module", name="signer")
def _signer(folder, api):
    return Signer(folder, api.certificates.path("ca.pem"), api.certificates.path("ca.key"))


@pytest.fixture(name="sql")
def _sql(dbms, api):
    """Statements as the active node; ends with nothing published."""
    assert api

    def run(statement, *values):
        with contextlib.closing(dbms.connect()) as link, link.cursor() as cursor:
            cursor.execute("SELECT redoubt.announce((SELECT epoch FROM redoubt.fence))")
            cursor.execute(statement, values)
            return cursor.fetchall() if cursor.description else []
    yield run
    run("DELETE FROM redoubt.signature_db")
    run("SELECT redoubt.signatures_publish()")
    run("UPDATE redoubt.signature_source SET url = NULL, age_status = 'ok', keep = 90,"
        " error = '', blocked_until = NULL, told_at = NULL, next_at = now()")


def take(api, *files, **more):
    return api.post("/v1/signatures", {"files": list(files), **more})


def published(sql, below="public/sig/"):
    return sorted(path.removeprefix(below) for (path,) in sql(
        "SELECT path FROM redoubt.publication WHERE path LIKE %s", below + "%"))


def events(sql, kind):
    return [row for row in sql("SELECT severity, data FROM redoubt.event WHERE kind = %s"
                               " ORDER BY id", kind)]


def test_a_set_changes_as_a_whole_and_only_gets_newer(api, sql):
    answer = take(api, database("daily", 5), increment("daily", 5),
                  increment("daily", 5, "cvd.sign"))
    assert answer.json == {"changed": True,
                           "databases": [{"name": "daily", "from": None, "to": 5}]}
    assert published(sql) == ["daily-5.cdiff", "daily-5.cvd.sign", "daily.cvd"]
    serial = sql("SELECT serial FROM redoubt.publication_serial")
    again = take(api, database("daily", 5), increment("daily", 5))
    assert again.json == {"changed": False, "databases": []}
    assert sql("SELECT serial FROM redoubt.publication_serial") == serial

    assert take(api, database("daily", 4)).error() == (409, "signatures_older")
    assert take(api, database("daily", 5, "other")).error() == (409, "signatures_differ")
    assert sql("SELECT serial FROM redoubt.publication_serial") == serial
    # Of several, one that is refused keeps all.
    assert take(api, database("main", 1), database("daily", 4)).status == 409
    assert published(sql) == ["daily-5.cdiff", "daily-5.cvd.sign", "daily.cvd"]

    answer = take(api, database("daily", 4), force=True)
    assert answer.json["databases"] == [{"name": "daily", "from": 5, "to": 4}]
    assert published(sql) == ["daily.cvd"]
    told = events(sql, "signatures_published")
    assert [e["databases"][0]["to"] for _, e in told] == [5, 4]


def test_the_time_of_a_file_is_that_of_the_header(api, sql):
    take(api, database("daily", 5, built=1700000000))
    assert sql("SELECT extract(epoch FROM b.mtime)::bigint FROM redoubt.publication p"
               " JOIN redoubt.blob b ON b.sha256 = p.blob WHERE p.path = 'public/sig/daily.cvd'"
               ) == [(1700000005,)]


def test_increments_are_a_chain_that_ends_with_the_database(api, sql):
    take(api, database("daily", 10), *[increment("daily", n) for n in (6, 7, 9, 10)])
    assert published(sql) == ["daily-10.cdiff", "daily-9.cdiff", "daily.cvd"]
    take(api, database("daily", 11), increment("daily", 11), increment("daily", 11, "cdiff.sign"))
    assert published(sql) == ["daily-10.cdiff", "daily-11.cdiff", "daily-11.cdiff.sign",
                              "daily-9.cdiff", "daily.cvd"]
    sql("UPDATE redoubt.signature_source SET keep = 2")
    take(api, database("daily", 12), increment("daily", 12), increment("daily", 13))
    assert published(sql) == ["daily-11.cdiff", "daily-11.cdiff.sign", "daily-12.cdiff",
                              "daily.cvd"]
    take(api, database("daily", 20))  # the increments between are missing: none is of use
    assert published(sql) == ["daily.cvd"]
    assert take(api, increment("main", 3)).error() == (409, "signatures_no_database")


def test_a_change_of_the_source_publishes_what_others_publish_meanwhile(api, sql, dbms):
    take(api, database("daily", 5))
    files = json.dumps([database("daily", 6), increment("daily", 6)])
    answers = []
    with contextlib.closing(dbms.connect()) as link, link.cursor() as cursor:
        link.autocommit = False
        cursor.execute("SELECT redoubt.announce((SELECT epoch FROM redoubt.fence))")
        cursor.execute("SELECT redoubt.signatures_take(%s, 'upstream', false)", [files])
        other = threading.Thread(target=lambda: answers.append(
            api.call("PUT", "/v1/signatures/source", {"keep": 30})))
        other.start()
        eventually("it waits", lambda: dbms.query(
            "SELECT 1 FROM pg_locks WHERE NOT granted"), 30)
        link.commit()
    other.join()
    assert answers[0].status == 200
    assert published(sql) == ["daily-6.cdiff", "daily.cvd"]
    assert sql("SELECT blob FROM redoubt.publication WHERE path = 'public/sig/daily.cvd'") == [
        (database("daily", 6)["sha256"],)]


WRONG = [{"file": "../daily.cvd"}, {"file": "Daily.cvd"}, {"file": "daily.cld"},
         {"file": "daily-0.cdiff"}, {"file": "daily-4294967296.cdiff"}, {"file": None},
         {"sha256": "A" * 64}, {"sha256": None}, {"size": 0}, {"size": -1}, {"size": "1"},
         {"size": 1 << 40}, {"version": 0}, {"version": None}, {"built_at": -1}, {"more": 1}]


@pytest.mark.parametrize("wrong", WRONG, ids=[json.dumps(w) for w in WRONG])
def test_a_wrong_file_is_refused(api, sql, wrong):
    assert take(api, {**database("daily", 5), **wrong}).status == 400
    assert published(sql) == []


def test_the_age_is_told_once_when_it_changes(api, sql):
    (now,), = sql("SELECT extract(epoch FROM now())::bigint")

    def status(hours):
        take(api, database("daily", 5, str(hours), built=now - hours * 3600), force=True)
        sql("SELECT redoubt.signatures_upkeep()")
        sql("SELECT redoubt.signatures_upkeep()")
        return api.get("/v1/signatures").json["status"]
    before = len(events(sql, "signatures_old")), len(events(sql, "signatures_recovered"))
    assert [status(h) for h in (1, 49, 169, 3)] == ["ok", "warning", "critical", "ok"]
    old, well = events(sql, "signatures_old"), events(sql, "signatures_recovered")
    # The manager's own tick may have told one of them first, but never twice.
    assert [s for s, _ in old[before[0]:]] == ["warning", "critical"]
    assert [s for s, _ in well[before[1]:]] == ["info"]
    assert old[-1][1]["hours"] == 168


def due(sql):
    return sql("SELECT redoubt.upstream_due()")[0][0]


def told(sql, **result):
    sql("SELECT redoubt.upstream_told(%s)", json.dumps(result))


def test_the_source_is_asked_in_its_interval_and_with_patience(api, sql):
    assert due(sql)["wait_s"] == 3600

    def put(body):
        assert api.call("PUT", "/v1/signatures/source", body).status == 200
    put({"url": "http://mirror/sig", "databases": ["daily"],
         "interval_min": 100})
    take(api, database("daily", 5))
    asked = due(sql)
    assert (asked["wait_s"], asked["url"]) == (0, "http://mirror/sig")
    assert asked["have"]["daily"]["version"] == 5

    told(sql, error="", version=asked["version"])
    assert due(sql)["wait_s"] == 3600  # and then again
    assert api.post("/v1/signatures/update", {}).status == 202
    assert due(sql)["wait_s"] == 0
    count = len(events(sql, "signatures_failed"))
    for _ in range(3):
        told(sql, error="no answer", version=asked["version"])
    assert len(events(sql, "signatures_failed")) == count + 1
    assert 0 < due(sql)["wait_s"] <= 33 * 60
    told(sql, error="asked for patience", blocked_s=7200, version=asked["version"])
    assert due(sql)["wait_s"] == 3600
    assert api.post("/v1/signatures/update", {}).error() == (409, "signatures_blocked")
    shown = api.get("/v1/signatures").json["upstream"]
    assert shown["error"] == "asked for patience" and shown["blocked_until"]
    # What was seen of another source says nothing about this one.
    put({"url": "http://other/sig"})
    told(sql, error="late", version=asked["version"])
    assert due(sql)["wait_s"] == 0


BAD_SOURCES = [{"url": "ftp://x"}, {"url": "https://"}, {"url": "https://x/?a"}, {"url": 7},
               {"url": "https://a b"}, {"url": "http://u@h/"}, {"proxy": "socks5://x"},
               {"proxy": "http://x/path"}, {"ca": "nothing"}, {"databases": []},
               {"databases": ["../x"]}, {"databases": "daily"}, {"interval_min": 1},
               {"keep": 501}, {"warning_h": -1}, {"interval_min": "240"}, {"what": 1}]


@pytest.mark.parametrize("body", BAD_SOURCES, ids=[json.dumps(b) for b in BAD_SOURCES])
def test_a_wrong_source_is_refused(api, body):
    assert api.call("PUT", "/v1/signatures/source", body).status == 400


def test_the_source_is_told_as_it_was_given(api, sql):
    names = ["main", "daily", "bytecode", "daily"]
    answer = api.call("PUT", "/v1/signatures/source", {"url": "http://m/s", "databases": names})
    assert answer.json["databases"] == due(sql)["databases"] == names[:3]


def test_a_password_of_a_proxy_is_kept_and_not_told(api, sql):
    url = "http://me:secret@proxy:3128"
    for given in (url, "http://me:***@proxy:3128"):
        answer = api.call("PUT", "/v1/signatures/source", {"url": "http://m/s", "proxy": given})
        assert answer.json["proxy"] == "http://me:***@proxy:3128"
        assert due(sql)["proxy"] == url
    assert "secret" not in api.get("/v1/audit").text


def test_files_of_ones_own_have_one_serial_after_the_other(api, sql, signer):
    def put(*args):
        return api.call("PUT", "/v1/signatures/custom", custom(signer, *args))
    assert put(1, "own.ndb", "own.hdb").json["serial"] == 1
    assert published(sql, "public/custom/") == ["manifest.json", "manifest.json.sig",
                                               "own.hdb", "own.ndb"]
    assert put(1, "own.ndb").error() == (409, "custom_serial")
    assert put(3, "own.ndb").error() == (409, "custom_serial")
    assert put(2).json["files"] == []
    assert published(sql, "public/custom/") == ["manifest.json", "manifest.json.sig"]
    for names in (["../x"], ["Own.ndb"], ["manifest.json"], ["a.ndb", "a.ndb"], [".a"]):
        assert put(3, *names).status == 400, names


def test_only_a_manifest_that_this_cluster_signed_is_published(api, sql, signer, folder):
    before = api.get("/v1/signatures/custom").json
    good = custom(signer, before["serial"] + 1, "own.ndb")
    server = Signer(tempfile.mkdtemp(dir=folder), api.certificates.path("ca.pem"),
                    api.certificates.path("ca.key"), "serverAuth")
    wrong = [custom(server, good["serial"], "own.ndb"),
             {**good, "manifest": blob("another manifest")}]
    wrong += [{**good, "signature": {**good["signature"], **change}} for change in (
        {"bytes": "AAAA"}, {"bytes": "no base64!"}, {"bytes": None}, {"bytes": "A" * 12000},
        {"sha256": "00" * 32}, {"size": 7})]
    wrong.append({**good, "signature": blob("signature")})
    for body in wrong:
        answer = api.call("PUT", "/v1/signatures/custom", body)
        assert answer.error() == (422, "signature_wrong"), answer.text
    for body in ({**good, "signature": "text"}, {**good, "signature": None},
                 {**good, "manifest": [1]}, {**good, "manifest": {"sha256": "x", "size": 1}}):
        assert api.call("PUT", "/v1/signatures/custom", body).status == 400, body
    assert api.get("/v1/signatures/custom").json == before
    assert api.call("PUT", "/v1/signatures/custom", good).status == 200
    assert "own.ndb" in published(sql, "public/custom/")
