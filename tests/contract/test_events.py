"""Events and the audit trail in a real PostgreSQL: stored once, read in order, trimmed."""
import concurrent.futures
import contextlib
import datetime
import json
import os
import random
import sys
import tempfile
import threading
import time
import uuid

import psycopg2
import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import device_world as world  # noqa: E402

ADMIN = {"kind": "local", "name": "root", "role": "administrator", "scope": None}


class Session:
    """One session of a service, announced for an epoch."""

    def __init__(self, database, epoch=None):
        if epoch is None:
            (epoch,), = database.query("SELECT epoch FROM redoubt.fence")
        self.link = database.connect()
        self.one("SELECT redoubt.announce(%s::bigint, 'server', %s)", epoch, world.NODE)

    def rows(self, sql, *values):
        with self.link.cursor() as cursor:
            cursor.execute(sql, values or None)
            return cursor.fetchall() if cursor.description else []

    def one(self, sql, *values):
        (value,), = self.rows(sql, *values)
        return value

    def events(self, *items):
        """{n: answer} of one batch."""
        rows = self.rows("SELECT n, answer FROM redoubt.x_events(%s)", json.dumps(items))
        return {n: answer["events"] for n, answer in rows}

    def api(self, name, query=None, body=None, path=None, actor=None):
        return self.one(f"SELECT redoubt.{name}(%s, %s, %s, %s)", *[
            json.dumps(v) for v in (actor or ADMIN, path or {}, query or {}, body or {})])

    def device(self, name="a"):
        identity = str(uuid.uuid4())
        self.rows("INSERT INTO redoubt.device (id, name) VALUES (%s, %s)", identity, name)
        return identity

    def close(self):
        self.link.close()


@pytest.fixture(scope="module", name="database")
def fixture_database():
    with tempfile.TemporaryDirectory(prefix="redoubt-events-") as folder:
        os.chmod(folder, 0o755)
        database = world.Postgres(folder)
        database.raise_fence(1)
        yield database
        database.stop()


@pytest.fixture(name="session")
def fixture_session(database):
    with contextlib.closing(Session(database)) as session:
        yield session


def event(kind="threat_found", severity="critical", at=1_700_000_000_000_000, **data):
    return {"at": at, "kind": kind, "severity": severity, "data": data}


def batch(device, stream, first, *events):
    return {"device": device, "events": {"stream": stream, "first": first,
                                         "list": list(events)}}


def stored(session, device):
    return session.rows("SELECT seq, kind, data FROM redoubt.event WHERE device_id = %s "
                        "ORDER BY id", device)


def test_a_resend_is_not_stored_again(session):
    device, stream = session.device(), str(uuid.uuid4())
    first = batch(device, stream, 1, event(n=1), event(n=2))
    assert session.events(first) == {1: {"stream": stream, "through": 2}}
    assert session.events(first) == {1: {"stream": stream, "through": 2}}
    # Part of it is known, and the same batch is twice in one.
    more = batch(device, stream, 2, event(n=2), event(n=3))
    assert session.events(more, more) == {1: {"stream": stream, "through": 3},
                                          2: {"stream": stream, "through": 3}}
    assert [(s, d["n"]) for s, _, d in stored(session, device)] == [(1, 1), (2, 2), (3, 3)]


def test_a_gap_is_stored_and_told(session):
    device, stream = session.device(), str(uuid.uuid4())
    session.events(batch(device, stream, 1, event()))
    assert session.events(batch(device, stream, 5, event()))[1]["through"] == 5
    rows = stored(session, device)
    assert [(s, k) for s, k, _ in rows] == [(1, "threat_found"), (None, "stream_gap"),
                                            (5, "threat_found")]
    assert rows[1][2] == {"stream": stream, "expected": 2, "first": 5, "missing": 3}


@pytest.mark.parametrize("bad, why", [
    (17, "not an object"), ({}, "kind"), (event("Big"), "kind"), (event("x" * 65), "kind"),
    (event(severity="loud"), "severity"), (event(at=-1), "at"), (event(at=10**18), "at"),
    (event(at="now"), "at"), (dict(event(), data=[]), "data"),
    (event(big="x" * 25000), "too big")])
def test_a_bad_event_is_refused_and_the_others_stored(session, bad, why):
    device, stream = session.device(), str(uuid.uuid4())
    answer = session.events(batch(device, stream, 1, event(), bad, event()))[1]
    assert answer["through"] == 3
    (refused,) = answer["refused"]
    assert refused["seq"] == 2 and why in refused["why"]
    assert [s for s, _, _ in stored(session, device)] == [1, 3]


def test_a_bad_batch_does_not_harm_the_others(session):
    device, stream = session.device(), str(uuid.uuid4())
    bad = [batch(device, "x", 1, event()), batch(device, stream, 0, event()),
           batch(device, stream, 1, *[event()] * 101), batch(str(uuid.uuid4()), stream, 1, event()),
           {"device": device, "events": {"stream": stream, "first": 1, "list": {}}},
           {"device": device, "events": 7}]
    answers = session.events(*bad, batch(device, stream, 1, event()))
    assert answers.pop(7) == {"stream": stream, "through": 1}
    assert len(answers) == 6 and all("error" in a for a in answers.values())


def test_streams_interleave(session):
    one, two = session.device(), session.device()
    streams = [str(uuid.uuid4()) for _ in range(3)]
    answers = session.events(
        batch(one, streams[0], 1, event(n=1)), batch(two, streams[2], 1, event(n=1)),
        batch(one, streams[1], 1, event(n=10)), batch(one, streams[0], 2, event(n=2)),
        batch(two, streams[2], 2, event(n=2)))
    assert [answers[n]["through"] for n in range(1, 6)] == [1, 1, 1, 2, 2]
    assert [d["n"] for _, _, d in stored(session, one)] == [1, 10, 2]
    assert [d["n"] for _, _, d in stored(session, two)] == [1, 2]


def test_a_device_keeps_16_streams(session):
    device = session.device()
    for _ in range(20):
        session.events(batch(device, str(uuid.uuid4()), 1, event()))
    assert session.one("SELECT count(*) FROM redoubt.event_cursor WHERE device_id = %s",
                       device) == 16


def test_sessions_that_send_the_same_at_once(database, session):
    """Two nodes' workers, or one device that reconnects, cannot double or disorder."""
    devices = [session.device() for _ in range(4)]
    streams = {d: str(uuid.uuid4()) for d in devices}

    def send(seed):
        chance = random.Random(seed)
        with contextlib.closing(Session(database)) as mine:
            at = {d: 1 for d in devices}
            while min(at.values()) <= 60:
                some = chance.sample(devices, 3)
                answers = mine.events(*[
                    batch(d, streams[d], at[d], *[event(n=at[d] + i) for i in range(3)])
                    for d in some])
                for n, d in enumerate(some, 1):
                    at[d] = answers[n]["through"] + 1

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(send, range(4)))
    for device in devices:
        rows = stored(session, device)
        assert [s for s, _, _ in rows] == list(range(1, len(rows) + 1))
        assert all(s == d["n"] for s, _, d in rows)


def test_what_it_says_about_quarantine(session):
    device, stream, item = session.device(), str(uuid.uuid4()), str(uuid.uuid4())
    session.events(batch(device, stream, 1,
                         event("quarantine_added", item=item, path="/tmp/x", threat="Eicar",
                               size=68, sha256="a" * 64),
                         event("quarantine_added", item="no uuid", path="/tmp/x")))
    (got,) = session.api("api_device_quarantine", path={"id": device})["body"]["items"]
    assert (got["item"], got["path"], got["state"], got["size"]) == (item, "/tmp/x", "held", 68)
    session.events(batch(device, stream, 3, event("quarantine_restored", item=item)))
    (got,) = session.api("api_device_quarantine", path={"id": device})["body"]["items"]
    assert got["state"] == "restored"
    assert session.api("api_device_quarantine", {"state": "held"},
                       path={"id": device})["body"]["items"] == []


def test_following_never_skips(database, session):
    """Writers commit in any order; a follower sees each event once, in the order of ids."""
    stop, written, seen = threading.Event(), [], []
    start = session.api("api_events_list", {"after": "end"})["body"]["after"]

    def write(number):
        chance = random.Random(number)
        with contextlib.closing(Session(database)) as mine:
            mine.link.autocommit = False
            for i in range(40):
                for part in range(chance.randint(1, 3)):
                    mine.rows("SELECT redoubt.event_add(NULL, 'order', 'info', %s)",
                              json.dumps({"w": number, "i": i, "part": part}))
                    time.sleep(chance.random() * 0.01)
                if chance.random() < 0.2:
                    mine.link.rollback()
                else:
                    mine.link.commit()

    def follow():
        after = start
        with contextlib.closing(Session(database)) as mine:
            last = False
            while True:
                body = mine.api("api_events_list", {"after": after, "limit": "7"})["body"]
                seen.extend(e["id"] for e in body["items"])
                after = body["after"]
                if last and not body["items"]:
                    return
                last = stop.is_set()

    follower = threading.Thread(target=follow)
    follower.start()
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        list(pool.map(write, range(5)))
    stop.set()
    follower.join(30)
    written = [i for i, in session.rows(
        "SELECT id FROM redoubt.event WHERE id > %s ORDER BY id", int(start))]
    assert len(written) > 100
    assert seen == written


def test_an_open_writer_holds_back_what_came_after(database, session):
    start = session.api("api_events_list", {"after": "end"})["body"]["after"]
    with contextlib.closing(Session(database)) as slow:
        slow.link.autocommit = False
        slow.rows("SELECT redoubt.event_add(NULL, 'slow', 'info')")
        session.rows("SELECT redoubt.event_add(NULL, 'fast', 'info')")
        body = session.api("api_events_list", {"after": start})["body"]
        assert body == {"items": [], "next": None, "after": start}
        slow.link.commit()
    items = session.api("api_events_list", {"after": start})["body"]["items"]
    assert [e["kind"] for e in items] == ["slow", "fast"]


def test_the_list_and_its_filters(session):
    device, stream = session.device("filtered"), str(uuid.uuid4())
    session.events(batch(device, stream, 1, *[
        event(f"kind_{n % 3}", ["info", "critical"][n % 2], n=n) for n in range(10)]))

    def ask(**query):
        body = session.api("api_events_list", dict(query, device=device))["body"]
        return [e["data"]["n"] for e in body["items"]], body

    assert ask()[0] == list(range(9, -1, -1))
    assert ask(kind="kind_0")[0] == [9, 6, 3, 0]
    assert ask(kind="kind_0,kind_1", severity="critical")[0] == [9, 7, 3, 1]
    page, body = ask(limit="4")
    assert page == [9, 8, 7, 6]
    assert ask(limit="4", cursor=body["next"])[0] == [5, 4, 3, 2]
    page, body = ask(limit="4", after="0")
    assert page == [0, 1, 2, 3]
    assert ask(limit="4", after=body["after"])[0] == [4, 5, 6, 7]
    assert ask(since="2020-01-01")[0] and not ask(until="2020-01-01T00:00:00Z")[0]
    assert body["items"][0]["device_name"] == "filtered"
    assert body["items"][0]["source"] == "device"
    for bad in ({"after": "x"}, {"cursor": "-1"}, {"since": "1' OR 1=1"}, {"until": "2027-13-99"},
                {"device": "x"}, {"limit": "0"}):
        with pytest.raises(psycopg2.Error) as refused:
            session.api("api_events_list", bad)
        assert refused.value.pgcode == "RH400", bad


def test_the_audit_trail(session):
    for n in range(3):
        session.rows("SELECT redoubt.audit_add(%s, 'paint', %s, NULL, %s)", json.dumps(ADMIN),
                     f"wall {n}", json.dumps({"n": n}))
    body = session.api("api_audit_list", {"action": "paint", "limit": "2"})["body"]
    assert [a["object"] for a in body["items"]] == ["wall 2", "wall 1"]
    body = session.api("api_audit_list", {"action": "paint", "cursor": body["next"]})["body"]
    assert [(a["object"], a["before"], a["after"]) for a in body["items"]] == [
        ("wall 0", None, {"n": 0})]
    assert body["items"][0]["actor"]["name"] == "root"
    with pytest.raises(psycopg2.Error) as refused:
        session.api("api_audit_list", actor=dict(ADMIN, scope=[str(uuid.uuid4())]))
    assert refused.value.pgcode == "RH403"


# --- retention ---------------------------------------------------------------------------------

def upkeep(session, times=40):
    for _ in range(times):
        session.rows("UPDATE redoubt.event_upkeep SET drop_at = '-infinity', ahead_at = "
                     "now() + interval '1 hour'")
        session.rows("SELECT redoubt.events_upkeep()")


def old_events(session, kind, days, count, part=True):
    if part:
        assert session.one("SELECT redoubt.event_part_make(redoubt.utc_day(now()) - %s)", days)
    session.rows("INSERT INTO redoubt.event (received_at, at, kind, severity, data, epoch) "
                 "SELECT now() - make_interval(days => %s), now(), %s, 'info', '{}', 1 "
                 "FROM generate_series(1, %s)", days, kind, count)


def left(session, kind):
    return session.one("SELECT count(*) FROM redoubt.event WHERE kind = %s", kind)


def parts(session):
    return session.one("SELECT count(*) FROM pg_inherits "
                       "WHERE inhparent = 'redoubt.event'::regclass")


def test_retention(session):
    before = session.api("api_retention_get")
    put = session.api("api_retention_put", body={
        "default": {"days": 30, "count_max": 50},
        "kinds": {"short": {"days": 5}, "long": {"days": 100, "count_max": None}}})
    assert put["version"] == before["version"] + 1
    assert put["body"]["kinds"]["short"] == {"days": 5, "count_max": None}
    assert put["body"]["audit"] == {"days": 365}
    had = parts(session)
    old_events(session, "short", 40, 7)    # the whole day goes
    old_events(session, "short", 10, 7)    # expired, but the day has others
    old_events(session, "others", 10, 3)
    old_events(session, "long", 50, 70)    # kept: 100 days, no limit of count
    old_events(session, "many", 20, 40)    # 40 + 30 are more than 50: the oldest go
    old_events(session, "many", 1, 30)
    old_events(session, "stray", 60, 9, part=False) # no partition: in event_other
    assert session.one("SELECT count(*) FROM ONLY redoubt.event_other") == 9
    upkeep(session)
    assert [left(session, k) for k in ("short", "others", "long", "many", "stray")] == [
        0, 3, 70, 50, 0]
    assert session.one("SELECT count(*) FROM redoubt.event WHERE kind = 'many' "
                       "AND received_at < now() - interval '5 days'") == 20
    assert parts(session) == had + 3, "the partition of 40 days ago is gone"
    held = session.one("SELECT sum(held) FROM redoubt.event_count")
    assert held == session.one("SELECT count(*) FROM redoubt.event")
    for bad in ({"default": {"days": 0}}, {"default": {}}, {"kinds": {"Big": {"days": 1}}},
                {"audit": {"days": 1, "count_max": 1}}, {"kinds": {"x": {"days": "1"}}}, {"x": 1}):
        with pytest.raises(psycopg2.Error) as refused:
            session.api("api_retention_put", body=bad)
        assert refused.value.pgcode == "RH400", bad


def test_trimming_does_not_block_writers(database, session):
    """A transaction that writes stays open: trimming gives up quickly, and writers go on."""
    session.api("api_retention_put", body={"default": {"days": 30, "count_max": 10}})
    old_events(session, "ancient", 90, 5)
    old_events(session, "crowd", 1, 500)
    session.rows("UPDATE redoubt.event_upkeep SET drop_at = now() + interval '1 hour'")
    session.rows("SELECT redoubt.events_upkeep()") # counts them
    device, stream = session.device(), str(uuid.uuid4())
    slowest, stop = [0.0], threading.Event()

    def write():
        with contextlib.closing(Session(database)) as mine:
            n = 1
            while not stop.is_set():
                start = time.monotonic()
                mine.events(batch(device, stream, n, event("written")))
                slowest[0] = max(slowest[0], time.monotonic() - start)
                n += 1

    writer = threading.Thread(target=write)
    with contextlib.closing(Session(database)) as holder:
        holder.link.autocommit = False
        holder.rows("SELECT redoubt.event_add(NULL, 'held', 'info')")
        writer.start()
        start = time.monotonic()
        upkeep(session, 10)
        took = time.monotonic() - start
        assert left(session, "ancient") == 5, "its partition cannot be dropped now"
        assert left(session, "crowd") == 10, "deleting needs nobody to stop"
        holder.link.commit()
    stop.set()
    writer.join(10)
    assert took < 20.0 and slowest[0] < 5.0, (took, slowest)
    upkeep(session, 3)
    assert left(session, "ancient") == 0


def test_partitions_are_made_ahead(session):
    tomorrow = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=3)
    name = f"redoubt.event_{tomorrow:%Y%m%d}"
    session.rows(f"DROP TABLE {name}")
    session.rows("UPDATE redoubt.event_upkeep SET ahead_at = '-infinity'")
    session.rows("SELECT redoubt.events_upkeep()")
    assert session.one("SELECT to_regclass(%s) IS NOT NULL", name)


def test_reports_audit_and_quarantine_by_age(session):
    device = session.device()
    session.rows("INSERT INTO redoubt.quarantine (device_id, item, path, state, at) SELECT %s, "
                 "gen_random_uuid(), '/x', s, now() - d FROM unnest('{held,deleted}'::text[]) s, "
                 "unnest('{1 day,1000 days}'::interval[]) d", device)
    session.rows("INSERT INTO redoubt.report (device_id, report_id, seq, at, received_at, epoch, "
                 "body) SELECT %s, gen_random_uuid(), n, now(), now() - make_interval(days => n), "
                 "1, '{}' FROM generate_series(1, 60) n", device)
    session.rows("INSERT INTO redoubt.audit (at, actor, action, object, epoch) VALUES "
                 "(now() - interval '400 days', '{}', 'old', 'x', 1)")
    upkeep(session, 1)
    assert session.one("SELECT max(seq) FROM redoubt.report WHERE device_id = %s", device) == 29
    assert session.one("SELECT count(*) FROM redoubt.audit WHERE action = 'old'") == 0
    assert session.one("SELECT array_agg(state ORDER BY state) FROM redoubt.quarantine "
                       "WHERE device_id = %s", device) == ["deleted", "held", "held"]


# Last: it raises the fence.
def test_the_fence_rises_in_the_middle(database, session):
    device, stream = session.device(), str(uuid.uuid4())
    session.events(batch(device, stream, 1, event(n=1)))
    session.link.autocommit = False
    session.events(batch(device, stream, 2, event(n=2))) # not committed: not acknowledged
    database.raise_fence(2)
    with pytest.raises(psycopg2.Error):
        session.link.commit()
    with contextlib.closing(Session(database, 1)) as late, pytest.raises(psycopg2.Error) as no:
        late.events(batch(device, stream, 2, event(n=2)))
    assert no.value.pgcode == "RD001"
    with contextlib.closing(Session(database)) as new:
        assert new.events(batch(device, stream, 2, event(n=2), event(n=3)))[1]["through"] == 3
        assert [s for s, _, _ in stored(new, device)] == [1, 2, 3]
