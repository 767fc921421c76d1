"""Signature databases from a source, through redoubt-mirror with a real smbd and a real
PostgreSQL: by the active node only, whole sets only, whenever it is killed."""
import hashlib
import json
import os
import threading

import pytest

from signature_source import BUILT, Source, genuine, lay_out
from test_mirror import Store, _world, damage, eventually, read  # noqa: F401  pylint: disable=unused-import


@pytest.fixture(name="source")
def _source(tmp_path):
    source = Source(str(tmp_path / "source"))
    lay_out(source.folder, 4)
    yield source
    source.stop()


@pytest.fixture(name="store")
def _store(world, tmp_path, source):
    store = Store(world, tmp_path)
    store.write("UPDATE redoubt.signature_source SET url = %s, databases = '{test}', "
                "next_at = now(), blocked_until = NULL, error = '', version = version + 1",
                source.url + "/")
    yield store
    for mirror in store.mirrors:
        mirror.stop()
    store.write("DELETE FROM redoubt.signature_db")


def update_now(store):
    store.write("UPDATE redoubt.signature_source SET next_at = now()")
    store.write("SELECT pg_notify('redoubt', '{\"t\":\"upstream\"}')")


def state(store):
    (row,), = store.database.query("SELECT to_jsonb(s) FROM redoubt.signature_source s")
    return row


def version(store):
    rows = store.database.query("SELECT version FROM redoubt.signature_db WHERE name = 'test'")
    return rows[0][0] if rows else None


def sig(mirror):
    return sorted(path.removeprefix("public/sig/") for path in mirror.shown())


def active(store, **options):
    mirror = store.mirror(**options)
    mirror.lease(store.epoch)
    return mirror


def genuine_file(name):
    return read(os.path.join(genuine(), name))


def test_the_active_node_brings_a_set_and_then_what_is_newer(store, source):
    mirror = active(store)
    mirror.wait("version 4", lambda: version(store) == 4)
    mirror.prepared()
    assert sig(mirror) == ["test-2.cdiff", "test-3.cdiff", "test-4.cdiff", "test.cvd"]
    assert mirror.shown()["public/sig/test.cvd"] == genuine_file("test-4.cvd")
    shown = f"{mirror.store}/current/public/sig/test.cvd"
    assert os.stat(shown).st_mtime == BUILT[4]
    eventually("it is told", lambda: state(store)["success_at"])
    assert state(store)["error"] == "" and os.listdir(f"{mirror.store}/upstream") == []

    source.asked.clear()
    update_now(store)  # nothing newer: one request
    eventually("it looks", lambda: source.asked)
    eventually("it is told", lambda: store.database.query(
        "SELECT next_at > now() FROM redoubt.signature_source") == [(True,)])
    assert source.files() == ["test.cvd"]
    lay_out(source.folder, 6)
    update_now(store)
    mirror.wait("version 6", lambda: version(store) == 6)
    mirror.prepared()
    mirror.wait("its age is told", lambda: mirror.state()["signatures"] == "critical")
    assert "days old" in mirror.state()["signatures_detail"]
    assert "test-4.cdiff" not in source.files() and "test-5.cdiff" in source.files()
    assert mirror.shown()["public/sig/test-6.cdiff"] == genuine_file("test-6.cdiff")
    (told,), = store.database.query("SELECT data FROM redoubt.event WHERE kind = "
                                    "'signatures_published' ORDER BY id DESC LIMIT 1")
    assert told["databases"] == [{"name": "test", "from": 4, "to": 6}]
    assert source.url in told["source"]


def test_a_node_that_is_active_again_does_not_tell_the_age_of_before(store):
    mirror = active(store)
    mirror.wait("version 4", lambda: version(store) == 4)
    mirror.wait("its age is told", lambda: mirror.state()["signatures"] == "critical")
    mirror.lease(None)
    mirror.wait("it is told no more", lambda: mirror.state()["signatures"] == "")
    store.write("UPDATE redoubt.signature_source SET critical_h = 0, warning_h = 0")
    try:
        told = len(mirror.states)
        store.epoch += 1
        store.database.raise_fence(store.epoch)
        mirror.lease(store.epoch)
        mirror.wait("it is told again", lambda: mirror.state()["signatures"])
        assert not [s for s in mirror.states[told:] if s["signatures"] == "critical"]
    finally:
        store.write("UPDATE redoubt.signature_source SET critical_h = DEFAULT, "
                    "warning_h = DEFAULT")


def test_the_passive_node_asks_nobody(store, source):
    passive = store.mirror("node-b")
    mirror = active(store)
    mirror.wait("version 4", lambda: version(store) == 4)
    passive.prepared()
    mirror.prepared()
    assert sig(passive) == sig(mirror)
    count = len(source.asked)
    mirror.kill()
    store.mirrors.remove(mirror)
    os.close(mirror.page)
    update_now(store)
    store.publish({"public/custom/x.ndb": b"x"})
    passive.prepared()
    assert len(source.asked) == count


@pytest.mark.parametrize("how", ["killed", "passive", "fenced"])
def test_who_is_stopped_in_the_middle_leaves_nothing_half(store, source, how):
    mirror = active(store)
    mirror.wait("version 4", lambda: version(store) == 4)
    mirror.prepared()
    before = mirror.shown()
    lay_out(source.folder, 6)
    go_on = threading.Event()
    source.hold = ("test.cvd", 5000, go_on)
    update_now(store)
    part = f"{mirror.store}/upstream/test-6.cvd.part"
    mirror.wait("the download", lambda: os.path.exists(part) and os.path.getsize(part) == 5000)
    if how == "killed":
        mirror.kill()
    elif how == "passive":
        mirror.lease(None)
    else:  # it does not know yet that it is active no more
        store.epoch += 1
        store.database.raise_fence(store.epoch)
    go_on.set()
    source.hold = None
    if how == "killed":
        mirror.start()
    else:
        store.publish({"public/custom/x.ndb": b"x"})
        before = {**before, "public/custom/x.ndb": b"x"}
        mirror.prepared()
        assert mirror.shown() == before and version(store) == 4
        mirror.lease(store.epoch)
    mirror.wait("version 6", lambda: version(store) == 6, 90)
    mirror.prepared()
    assert mirror.shown()["public/sig/test.cvd"] == genuine_file("test-6.cvd")
    if how == "killed":
        assert ("test.cvd", "bytes=5000-", None) in source.asked


def test_a_slow_source_keeps_the_active_node_from_nothing(store, source):
    mirror = active(store)
    mirror.wait("version 4", lambda: version(store) == 4)
    mirror.prepared()
    lay_out(source.folder, 6)
    go_on = threading.Event()
    source.hold = ("test.cvd", 5000, go_on)
    update_now(store)
    part = f"{mirror.store}/upstream/test-6.cvd.part"
    try:
        mirror.wait("the download", lambda: os.path.exists(part)
                    and os.path.getsize(part) == 5000)
        source.hold = ("test.cvd", 1, go_on)  # nor does it get on when it is asked again
        # A copy of the share is damaged: the other node says so.
        body = mirror.shown()["public/sig/test.cvd"]
        damage(store.on_share(body))
        store.write("SELECT pg_notify('redoubt_mirror', %s)",
                    f"damaged {hashlib.sha256(body).hexdigest()}")
        mirror.wait("healed", lambda: mirror.state()["healed"] == 1)
        assert read(store.on_share(body)) == body
        # And its session with the DBMS ends.
        store.database.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                             "WHERE application_name = 'redoubt-mirror/node-a'")
        store.publish({"public/custom/y.ndb": b"y"})
        mirror.prepared()
        assert version(store) == 4 and "public/custom/y.ndb" in mirror.shown()
    finally:
        go_on.set()
        source.hold = None
    mirror.wait("version 6", lambda: version(store) == 6, 90)


def test_patience_and_lies_are_told(store, source):
    source.statuses["test.cvd"] = (429, {"Retry-After": "3000"})
    mirror = active(store)
    eventually("it is told", lambda: state(store)["blocked_until"])
    assert "patience" in state(store)["error"] and len(source.asked) == 1
    update_now(store)
    store.publish({"public/custom/x.ndb": b"x"})
    mirror.prepared()
    assert len(source.asked) == 1
    # Another address, which lies.
    source.statuses.clear()
    path = f"{source.folder}/test.cvd"
    with open(path, "r+b") as file:
        file.seek(5000)
        file.write(b"lies")
    store.write("UPDATE redoubt.signature_source SET blocked_until = NULL, next_at = now(), "
                "version = version + 1")
    update_now(store)
    eventually("it is told", lambda: "MD5" in state(store)["error"])
    assert version(store) is None
    kinds = store.database.query("SELECT data ->> 'why' FROM redoubt.event "
                                 "WHERE kind = 'signatures_failed' ORDER BY id DESC LIMIT 2")
    assert "MD5" in kinds[0][0] and "patience" in kinds[1][0], json.dumps(kinds)


@pytest.mark.parametrize("code, kept", [("40P01", True), ("RH409", False)])
def test_only_what_the_dbms_refuses_for_good_is_thrown_away(store, code, kept):
    store.database.query(f"""CREATE FUNCTION redoubt.test_fails() RETURNS trigger
        LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{code}'; END $$;
        CREATE TRIGGER test_fails BEFORE INSERT ON redoubt.signature_db
        FOR EACH ROW EXECUTE FUNCTION redoubt.test_fails()""")
    try:
        mirror = active(store)
        mirror.wait("it is told", lambda: state(store)["error"])
        assert ("test-4.cvd" in os.listdir(f"{mirror.store}/upstream")) == kept
    finally:
        store.database.query("DROP FUNCTION redoubt.test_fails CASCADE")
    assert version(store) is None


def test_a_share_that_takes_nothing_is_no_reason_to_ask_each_minute(store, source):
    upload = f"{store.share}/upload"
    os.rmdir(upload)
    with open(upload, "wb"):
        pass  # nothing can be put there
    mirror = active(store)
    mirror.wait("it is told", lambda: state(store)["error"])
    assert "upload/" in state(store)["error"]
    assert store.database.query("SELECT next_at > now() + interval '25 minutes' "
                                "FROM redoubt.signature_source") == [(True,)]
    assert version(store) is None and "test-4.cvd" in os.listdir(f"{mirror.store}/upstream")
    source.asked.clear()
    os.unlink(upload)
    update_now(store)
    mirror.wait("version 4", lambda: version(store) == 4, 90)
    eventually("it is told", lambda: state(store)["success_at"])
    assert (state(store)["error"], os.listdir(f"{mirror.store}/upstream")) == ("", [])
    assert all(how for name, how, _ in source.asked if name == "test.cvd"), "fetched once"
