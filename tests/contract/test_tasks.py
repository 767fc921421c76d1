"""Tasks in a real PostgreSQL: schedules, runs on devices, and what becomes of them."""
import concurrent.futures
import contextlib
import datetime
import json
import os
import random
import sys
import tempfile
import uuid
import zoneinfo

import psycopg2
import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import device_world as world  # noqa: E402
import test_events as events  # noqa: E402

UTC = datetime.timezone.utc
SCAN = {"name": "scan", "type": "scan", "params": {"mode": "quick"}}


class Session(events.Session):
    def tasks(self, *items):
        rows = self.rows("SELECT n, answer FROM redoubt.x_tasks(%s)", json.dumps(items))
        return dict(rows)

    def task(self, devices=None, **more):
        body = dict(SCAN, name=f"task {uuid.uuid4()}", **more)
        if devices:
            body["target"] = {"devices": devices}
        return self.api("api_task_create", body=body)["body"]["id"]

    def start(self, task):
        return self.api("api_task_start", path={"id": task})["body"]["id"]

    def act(self, verb, task):
        return self.api(f"api_task_{verb}", path={"id": task})["body"]

    def occurrence(self, identity):
        return self.api("api_occurrence_get", path={"id": identity})["body"]

    def runs(self, occurrence, **query):
        items = self.api("api_runs_list", query, path={"id": occurrence})["body"]["items"]
        return {r["device"]: r for r in items}

    def assigned(self, device):
        return self.one("SELECT redoubt.runs_of(%s::uuid)", device)

    def tell(self, device, kind, run, **data):
        """An event of the device about a run."""
        self.events(events.batch(device, str(uuid.uuid4()), 1,
                                 events.event(kind, "info", run=run, **data)))

    def due(self):
        return self.one("SELECT redoubt.tasks_due()")

    def refused(self, name, code, **call):
        with pytest.raises(psycopg2.Error) as refused:
            self.api(name, **call)
        assert refused.value.pgcode == code, refused.value
        return (refused.value.diag.message_detail or "").splitlines()


@pytest.fixture(scope="module", name="database")
def fixture_database():
    with tempfile.TemporaryDirectory(prefix="redoubt-tasks-") as folder:
        os.chmod(folder, 0o755)
        database = world.Postgres(folder)
        database.raise_fence(1)
        yield database
        database.stop()


@pytest.fixture(name="session")
def fixture_session(database):
    with contextlib.closing(Session(database)) as session:
        yield session


# --- schedules ---------------------------------------------------------------------------------

def expected_next(schedule, after):
    """The same in Python: the first local day whose time is after that moment."""
    zone = zoneinfo.ZoneInfo(schedule["timezone"])
    hour, minute = map(int, schedule["time"].split(":"))
    day = after.astimezone(zone).date() - datetime.timedelta(days=1)
    while True:
        name = day.strftime("%a").lower()
        if name in schedule.get("days", []) or day.day in schedule.get("monthdays", []):
            naive = datetime.datetime.combine(day, datetime.time(hour, minute))
            first, second = naive.replace(tzinfo=zone), naive.replace(tzinfo=zone, fold=1)
            gap = first.astimezone(UTC).astimezone(zone).replace(tzinfo=None) != naive
            at = (first if gap else second).astimezone(UTC)
            if at > after:
                return at
        day += datetime.timedelta(days=1)


@pytest.mark.parametrize("zone", ["Europe/Zurich", "America/New_York", "Australia/Lord_Howe",
                                  "Asia/Kolkata", "America/Sao_Paulo", "Pacific/Apia",
                                  "Africa/Casablanca", "Asia/Tehran", "UTC"])
def test_schedules_agree_with_zoneinfo(session, zone):
    chance = random.Random(zone)
    every = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
    for n in range(60):
        schedule = {"time": f"{chance.choice([0, 1, 2, 2, 3, 12, 23]):02}:"
                            f"{chance.choice([0, 15, 30, 59]):02}", "timezone": zone}
        if n % 3:
            schedule["days"] = chance.sample(every, chance.randint(1, 7))
        else:
            schedule["monthdays"] = chance.sample(range(1, 32), chance.randint(1, 3))
        after = datetime.datetime(2026, 1, 1, tzinfo=UTC) + datetime.timedelta(
            minutes=chance.randint(0, 2 * 366 * 1440))
        got = session.one("SELECT redoubt.schedule_next(%s, %s)", json.dumps(schedule), after)
        assert got == expected_next(schedule, after), (schedule, after)


@pytest.mark.parametrize("zone, time, after, at", [
    # Zurich goes to summer time on 2027-03-28 at 02:00 and back on 2027-10-31 at 03:00.
    ("Europe/Zurich", "02:30", "2027-03-27T12:00Z", "2027-03-28T01:30Z"),
    ("Europe/Zurich", "02:30", "2027-10-30T12:00Z", "2027-10-31T01:30Z"),
    ("Europe/Zurich", "02:30", "2027-10-31T01:30Z", "2027-11-01T01:30Z"),
    ("America/New_York", "02:30", "2027-03-13T12:00Z", "2027-03-14T07:30Z"),
    ("Australia/Lord_Howe", "02:15", "2027-10-02T00:00Z", "2027-10-02T15:45Z")])
def test_the_hours_of_summer_time(session, zone, time, after, at):
    schedule = {"days": ["mon", "tue", "wed", "thu", "fri", "sat", "sun"], "time": time,
                "timezone": zone}
    got = session.one("SELECT redoubt.schedule_next(%s, %s)", json.dumps(schedule), after)
    assert got == datetime.datetime.fromisoformat(at.replace("Z", "+00:00"))


def test_each_local_day_has_one_time(session):
    schedule = {"days": ["mon", "tue", "wed", "thu", "fri", "sat", "sun"], "time": "02:30",
                "timezone": "Europe/Zurich"}
    zone, days = zoneinfo.ZoneInfo("Europe/Zurich"), []
    at = datetime.datetime(2027, 3, 20, tzinfo=UTC)
    for _ in range(230):
        at = session.one("SELECT redoubt.schedule_next(%s, %s)", json.dumps(schedule), at)
        days.append(at.astimezone(zone).date())
    assert [b - a for a, b in zip(days, days[1:])] == [datetime.timedelta(days=1)] * 229


def test_spread_is_fixed_and_within_bounds(session):
    task, devices = str(uuid.uuid4()), [str(uuid.uuid4()) for _ in range(400)]
    ask = "SELECT redoubt.spread_of(%s::uuid, %s::uuid, %s)"
    found = [session.one(ask, task, d, 600) for d in devices]
    assert all(0 <= s < 600 for s in found) and len(set(found)) > 200
    assert sum(s < 300 for s in found) in range(140, 260)
    assert found == [session.one(ask, task, d, 600) for d in devices]
    assert {session.one(ask, task, d, 0) for d in devices[:5]} == {0}


DAILY = {"days": ["mon", "tue", "wed", "thu", "fri", "sat", "sun"], "time": "02:00",
         "timezone": "Europe/Zurich"}


def set_next(session, task, ago):
    session.rows("UPDATE redoubt.task SET next_at = now() - %s::interval WHERE id = %s", ago, task)


def test_a_schedule_starts_its_task(session):
    devices = [session.device() for _ in range(20)]
    task = session.task(devices, schedule=dict(DAILY, spread_min=30, window_min=45))
    body = session.api("api_task_get", path={"id": task})["body"]
    at = session.one("SELECT redoubt.schedule_next(%s, now())", json.dumps(DAILY))
    assert datetime.datetime.fromisoformat(body["next_at"]) == at
    set_next(session, task, "1 second")
    session.due()
    (o,) = session.api("api_occurrences_list", path={"id": task})["body"]["items"]
    assert o["created_by"] == "schedule" and o["totals"]["total"] == 20
    start = datetime.datetime.fromisoformat(o["at"])
    late = [(datetime.datetime.fromisoformat(r["not_before"]) - start).total_seconds()
            for r in session.runs(o["id"]).values()]
    assert all(0 <= s < 1800 for s in late) and len(set(late)) > 10
    end = datetime.datetime.fromisoformat(o["not_after"])
    assert end - start == datetime.timedelta(minutes=45)
    session.due()
    assert len(session.api("api_occurrences_list", path={"id": task})["body"]["items"]) == 1
    assert session.api("api_task_get", path={"id": task})["body"]["next_at"] == body["next_at"]
    session.act("cancel", task)


@pytest.mark.parametrize("missed, starts", [("skip", 0), ("run", 1)])
def test_missed(session, missed, starts):
    """The active node was away for three days: at most one run makes up for it."""
    task = session.task([session.device()], schedule=dict(DAILY, missed=missed))
    set_next(session, task, "3 days")
    session.due()
    session.due()
    found = session.api("api_occurrences_list", path={"id": task})["body"]["items"]
    assert len(found) == starts
    for o in found: # its time begins now, not three days ago
        assert datetime.datetime.fromisoformat(o["not_before"]) > datetime.datetime.now(
            UTC) - datetime.timedelta(minutes=1)
    told = session.api("api_events_list", {"kind": "task_missed"})["body"]["items"]
    assert (task in [e["data"]["task"] for e in told]) == (starts == 0)
    session.api("api_task_delete", path={"id": task})


def test_a_disabled_task_does_not_start(session):
    task = session.task([session.device()], schedule=DAILY)
    session.api("api_task_patch", body={"enabled": False}, path={"id": task})
    assert session.api("api_task_get", path={"id": task})["body"]["next_at"] is None
    session.api("api_task_patch", body={"enabled": True}, path={"id": task})
    assert session.api("api_task_get", path={"id": task})["body"]["next_at"] is not None
    session.api("api_task_delete", path={"id": task})


# --- what a task may be ------------------------------------------------------------------------

@pytest.mark.parametrize("change, path", [
    ({"target": {"devices": ["00000000-0000-0000-0000-000000000001"]}}, "target.devices[0]"),
    ({"target": {"devices": ["'; DROP TABLE redoubt.device; --"]}}, "target.devices[0]"),
    ({"target": {"group": "/nowhere"}}, "target.group"), ({"target": {}}, "target"),
    ({"target": {"select": {"colour": "red"}}}, "target.select.colour"),
    ({"target": {"select": {}}}, "target.select"), ({"target": None}, "target"),
    ({"type": "format_disk"}, "type"), ({"name": ""}, "name"), ({"name": "a\nb"}, "name"),
    ({"params": {"mode": "slow"}}, "params.mode"), ({"params": []}, "params"),
    ({"params": {"mode": "paths"}}, "params.paths"),
    ({"params": {"mode": "paths", "paths": ["relative"]}}, "params.paths"),
    ({"params": {"mode": "paths", "paths": ["/" + "x" * 4000] * 4}}, "params"),
    ({"params": {"mode": "quick", "cpu_percent": 0}}, "params.cpu_percent"),
    ({"type": "update", "params": {"x": 1}}, "params.x"),
    ({"type": "quarantine_delete", "params": {"item": "x"}}, "params.item"),
    ({"priority": 10}, "priority"), ({"expires_min": 0}, "expires_min"), ({"x": 1}, "x"),
    ({"schedule": {"time": "02:00", "timezone": "UTC"}}, "schedule"),
    ({"schedule": dict(DAILY, monthdays=[1])}, "schedule"),
    ({"schedule": dict(DAILY, days=["someday"])}, "schedule.days"),
    ({"schedule": dict(DAILY, time="24:00")}, "schedule.time"),
    ({"schedule": dict(DAILY, timezone="Mars/Olympus")}, "schedule.timezone"),
    ({"schedule": dict(DAILY, timezone="UTC+3")}, "schedule.timezone"),
    ({"schedule": dict(DAILY, spread_min=30, window_min=20)}, "schedule.spread_min"),
    ({"schedule": dict(DAILY, missed="later")}, "schedule.missed")])
def test_bad_tasks_are_refused_with_the_path(session, change, path):
    body = dict(SCAN, target={"devices": [session.device()]}, **change) if not (
        set(change) & {"target", "name", "type", "params"}) else dict(
            dict(SCAN, target={"devices": [session.device()]}), **change)
    lines = session.refused("api_task_create", "RH400", body=body)
    assert path in [line.split(":")[0] for line in lines], lines


def test_all_problems_are_told_at_once(session):
    lines = session.refused("api_task_create", "RH400", body={"name": 1, "type": "x"})
    assert [line.split(":")[0] for line in lines] == ["name", "type", "target"]


def test_patch_delete_and_audit(session):
    task = session.task([session.device()])
    before = session.api("api_task_get", path={"id": task})
    after = session.api("api_task_patch", body={"priority": 9}, path={"id": task})
    assert after["version"] == before["version"] + 1
    assert after["body"] == dict(before["body"], priority=9, version=2,
                                 changed_at=after["body"]["changed_at"])
    session.refused("api_task_patch", "RH400", body={"priority": "high"}, path={"id": task})
    other = session.task([session.device()])
    session.refused("api_task_patch", "RH409", body={"name": after["body"]["name"]},
                    path={"id": other})
    session.api("api_task_delete", path={"id": task})
    session.refused("api_task_get", "RH404", path={"id": task})
    trail = session.api("api_audit_list", {"object": task})["body"]["items"]
    assert [a["action"] for a in trail] == ["task_delete", "task_patch", "task_create"]
    assert trail[1]["before"]["priority"] == 5 and trail[1]["after"]["priority"] == 9


def test_roles(session):
    task = session.task([session.device()])
    auditor = dict(events.ADMIN, role="auditor")
    assert session.api("api_task_get", path={"id": task}, actor=auditor)["status"] == 200
    for verb in ("start", "cancel", "pause", "resume", "delete", "patch"):
        session.refused(f"api_task_{verb}", "RH403", path={"id": task}, actor=auditor)
    foreign = dict(events.ADMIN, scope=[str(uuid.uuid4())])
    session.refused("api_task_get", "RH404", path={"id": task}, actor=foreign)
    assert session.api("api_tasks_list", actor=foreign)["body"]["items"] == []


# --- targets -----------------------------------------------------------------------------------

def group(session, name, parent="/"):
    return session.api("api_group_create", body={"name": name, "parent": parent})["body"]["id"]


def test_targets(session):
    top, sub = group(session, "targets"), None
    sub = group(session, "sub", "/targets")
    one, two, three = (session.device() for _ in range(3))
    session.rows("UPDATE redoubt.device SET group_id = %s, tags = '{blue}' WHERE id = %s", top, one)
    session.rows("UPDATE redoubt.device SET group_id = %s, tags = '{blue,red}' WHERE id = %s",
                 sub, two)
    session.rows("UPDATE redoubt.device SET group_id = %s, tags = '{blue}', state = 'revoked' "
                 "WHERE id = %s", sub, three)
    for target, reached in [({"group": "/targets"}, {one, two}), ({"group": sub}, {two}),
                            ({"group": "/targets", "subgroups": False}, {one}),
                            ({"select": {"tag": "blue"}}, {one, two}),
                            ({"select": {"tag": ["red", "green"]}}, {two}),
                            ({"select": {"tag": "blue", "connected": True}}, set()),
                            ({"devices": [two, three, two]}, {two})]:
        task = session.task(target=target)
        assert set(session.runs(session.start(task))) == reached, target
        session.api("api_task_delete", path={"id": task})
    # An actor limited to the group below reaches no further, whatever it asks for.
    small = dict(events.ADMIN, scope=[sub])
    session.refused("api_task_create", "RH400", actor=small,
                    body=dict(SCAN, target={"devices": [one]}))
    body = dict(SCAN, name="small", target={"select": {"tag": "blue"}})
    task = session.api("api_task_create", body=body, actor=small)["body"]["id"]
    assert set(session.runs(session.start(task))) == {two}
    session.api("api_task_delete", path={"id": task}, actor=small)


def test_who_was_connected_to_the_node_before_is_not_connected(session):
    """It broke, and could not store the end of the connections."""
    (epoch,), = session.rows("SELECT epoch FROM redoubt.fence")
    here, before = (session.device() for _ in range(2))
    for device, connected in ((here, epoch), (before, epoch - 1)):
        session.rows("UPDATE redoubt.device SET tags = '{asked}', connected_epoch = %s, "
                     "connected_at = now() WHERE id = %s", connected, device)
    for connected, reached in ((True, {here}), (False, {before})):
        task = session.task(target={"select": {"tag": "asked", "connected": connected}})
        assert set(session.runs(session.start(task))) == reached
        session.api("api_task_delete", path={"id": task})


def test_many_devices_in_pieces(session):
    top = group(session, "many")
    session.rows("INSERT INTO redoubt.device (id, group_id) SELECT gen_random_uuid(), %s "
                 "FROM generate_series(1, 5100)", top)
    task = session.task(target={"group": "/many"})
    o = session.start(task)
    assert session.occurrence(o)["totals"]["total"] == 5000
    session.due()
    assert session.occurrence(o)["totals"]["total"] == 5100
    assert session.occurrence(o)["complete"]
    session.api("api_task_delete", path={"id": task})


# --- runs --------------------------------------------------------------------------------------

def test_the_life_of_a_run(session):
    device = session.device("a")
    task = session.task([device], priority=7)
    o = session.start(task)
    (a,) = session.assigned(device)
    run = a["run"]
    assert (a["type"], a["params"], a["priority"]) == ("scan", {"mode": "quick"}, 7)
    assert a["not_after"] - a["not_before"] == 7 * 86400
    session.tell(device, "run_accepted", run)
    assert session.runs(o)[device]["state"] == "accepted"
    assert session.tasks({"device": device, "progress": [
        {"run": run, "state": "running", "percent": 40, "counts": {"scanned": 7}}]}) == {}
    r = session.runs(o)[device]
    assert (r["state"], r["percent"], r["counts"]) == ("running", 40, {"scanned": 7})
    assert session.occurrence(o)["totals"]["percent"] == 40
    session.tell(device, "run_finished", run, outcome="done", counts={"scanned": 9, "found": 1})
    r = session.runs(o)[device]
    assert (r["state"], r["outcome"], r["percent"]) == ("finished", "done", 100)
    assert r["counts"] == {"scanned": 9, "found": 1}
    assert session.assigned(device) == []
    session.due()
    got = session.occurrence(o)
    assert got["state"] == "finished" and got["totals"]["done"] == 1
    # Its word counts once: late news change nothing.
    session.tell(device, "run_finished", run, outcome="failed")
    session.tasks({"device": device, "progress": [{"run": run, "state": "running"}]})
    assert session.runs(o)[device]["outcome"] == "done"


@pytest.mark.parametrize("kind, data, outcome, result", [
    ("run_refused", {"why": "no engine"}, "refused", {"why": "no engine"}),
    ("run_finished", {"outcome": "failed", "error": "clamd"}, "failed", {"error": "clamd"}),
    ("run_finished", {"outcome": "expired"}, "expired", {}),
    ("run_finished", {"outcome": "perfect"}, None, None)])
def test_results(session, kind, data, outcome, result):
    device = session.device()
    o = session.start(session.task([device]))
    session.tell(device, kind, session.assigned(device)[0]["run"], **data)
    r = session.runs(o)[device]
    assert (r["outcome"], r["result"]) == (outcome, result)


def test_a_run_of_another_device_is_not_touched(session):
    device, thief = session.device(), session.device()
    o = session.start(session.task([device]))
    run = session.assigned(device)[0]["run"]
    session.tell(thief, "run_finished", run, outcome="done")
    answer = session.tasks({"device": thief, "progress": [{"run": run, "state": "running"}]})
    assert answer == {1: {"cancel": [run]}}
    assert session.runs(o)[device]["state"] == "pending"


def test_a_device_that_returns_is_reconciled(session):
    device = session.device()
    for mode in ("quick", "full"):
        session.start(session.task([device], params={"mode": mode}))
    known, unknown = (a["run"] for a in session.assigned(device))
    stray = str(uuid.uuid4())
    answer = session.tasks({"device": device, "running": [known, stray, "no uuid"]})[1]
    assert [a["run"] for a in answer.pop("runs")] == [unknown]
    assert answer == {"cancel": [stray]}
    answer = session.tasks({"device": device, "running": []})[1]
    assert {a["run"] for a in answer["runs"]} == {known, unknown}


def test_cancel(session):
    waits, works = session.device(), session.device()
    task = session.task([waits, works])
    o = session.start(task)
    run = session.assigned(works)[0]["run"]
    sent = session.assigned(waits)[0]["run"]
    session.tell(works, "run_accepted", run)
    session.act("cancel", task)
    assert session.runs(o)[waits]["outcome"] == "cancelled"
    assert session.assigned(waits) == [] and session.assigned(works) == []
    # Both are told: the one that had not answered may have it by now.
    assert session.tasks({"device": works, "refresh": True}, {"device": waits, "hello": {}}) == {
        1: {"cancel": [run]}, 2: {"cancel": [sent]}}
    assert session.occurrence(o)["state"] == "cancelled"
    assert session.occurrence(o)["finished_at"] is None
    session.tell(works, "run_finished", run, outcome="cancelled")
    session.tell(waits, "run_finished", sent, outcome="done") # it was quicker than we were
    session.due()
    got = session.occurrence(o)
    assert got["finished_at"] and got["state"] == "cancelled"
    assert (got["totals"]["cancelled"], got["totals"]["done"]) == (1, 1)
    session.refused("api_task_cancel", "RH409", path={"id": task})


def test_pause_and_resume(session):
    waits, works = session.device(), session.device()
    task = session.task([waits, works])
    o = session.start(task)
    run = session.assigned(works)[0]["run"]
    session.tasks({"device": works, "progress": [{"run": run, "state": "running", "percent": 5}]})
    session.act("pause", task)
    assert session.occurrence(o)["state"] == "paused"
    assert session.assigned(waits) == [], "it does not begin now"
    assert session.tasks({"device": works, "refresh": True}) == {1: {"pause": [run]}}
    answer = session.tasks({"device": works, "progress": [{"run": run, "state": "paused"}]})
    assert answer == {}, "it is as it should be"
    session.act("resume", task)
    assert len(session.assigned(waits)) == 1
    assert session.tasks({"device": works, "refresh": True}) == {1: {"resume": [run]}}
    session.tasks({"device": works, "progress": [{"run": run, "state": "running"}]})
    assert session.tasks({"device": works, "refresh": True}) == {}
    session.refused("api_task_resume", "RH409", path={"id": task})


def test_a_second_scan_is_answered_by_the_first(session):
    device, other = session.device(), session.device()
    first = session.start(session.task([device]))
    second = session.start(session.task([device, other]))
    third = session.start(session.task([device], params={"mode": "full"}))
    assigned = {a["run"] for a in session.assigned(device)}
    one, two = session.runs(first)[device], session.runs(second)[device]
    assert two["same_as"] == one["id"] and two["state"] == "pending"
    assert assigned == {one["id"], session.runs(third)[device]["id"]}
    session.tasks({"device": device, "progress": [
        {"run": one["id"], "state": "running", "percent": 30}]})
    assert session.runs(second)[device]["percent"] == 30
    session.tell(device, "run_finished", one["id"], outcome="done", counts={"scanned": 1})
    two = session.runs(second)[device]
    assert (two["outcome"], two["counts"]) == ("done", {"scanned": 1})
    session.due()
    assert session.occurrence(second)["state"] == "running", "the other device is not done"


def test_a_scan_after_one_that_is_being_cancelled(session):
    """The device works on the first and has not told that it stopped; one waits for it, one is new."""
    device = session.device()
    task = session.task([device])
    first, waits = session.start(task), session.start(session.task([device]))
    run = session.assigned(device)[0]["run"]
    session.tell(device, "run_accepted", run)
    session.act("cancel", task)
    new = session.start(session.task([device]))
    assert [a["run"] for a in session.assigned(device)] == [session.runs(waits)[device]["id"]]
    session.tell(device, "run_finished", run, outcome="cancelled")
    assert session.runs(first)[device]["outcome"] == "cancelled"
    assert session.runs(new)[device]["same_as"] == session.runs(waits)[device]["id"]
    session.tell(device, "run_finished", session.runs(waits)[device]["id"], outcome="failed")
    assert session.runs(new)[device]["outcome"] == "failed"


def test_starts_cancels_and_results_at_once(database, session):
    """Administrators start and cancel the same scan while devices finish: nothing hangs, and
    no device is given a thing twice at a time."""
    devices = sorted(session.device() for _ in range(12))
    streams = {d: (str(uuid.uuid4()), []) for d in devices}
    given = {d: set() for d in devices}

    def administrate(number):
        chance = random.Random(number)
        with contextlib.closing(Session(database)) as mine:
            for _ in range(8):
                task = mine.task(chance.sample(devices, 8))
                mine.start(task)
                if chance.random() < 0.4:
                    mine.act("cancel", task)

    def work(number):
        chance = random.Random(number)
        with contextlib.closing(Session(database)) as mine:
            for _ in range(60):
                device = chance.choice(devices[number::2])
                assigned = mine.assigned(device)
                assert len(assigned) <= 1
                stream, sent = streams[device]
                for a in assigned:
                    assert a["run"] not in given[device]
                    given[device].add(a["run"])
                    sent.append(a["run"])
                    answer = mine.events(events.batch(device, stream, len(sent), events.event(
                        "run_finished", "info", run=a["run"], outcome="done")))
                    assert answer[1]["through"] == len(sent)

    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        jobs = [pool.submit(administrate, n) for n in range(3)]
        jobs += [pool.submit(work, n) for n in range(2)]
        for job in jobs:
            job.result()
    for device in devices:
        while assigned := session.assigned(device):
            (a,) = assigned
            session.tell(device, "run_finished", a["run"], outcome="done")
    session.due()
    assert session.one("SELECT count(*) FROM redoubt.run WHERE state <> 'finished' "
                       "AND device_id = ANY (%s::uuid[])", devices) == 0
    assert session.one("SELECT count(*) FROM redoubt.run WHERE outcome = 'done' AND same_as IS "
                       "NOT NULL AND device_id = ANY (%s::uuid[])", devices) > 0


def test_cancelling_the_first_lets_the_second_begin(session):
    device = session.device()
    task = session.task([device])
    first = session.start(task)
    others = [session.start(session.task([device], params={"mode": "quick", "cpu_percent": n}))
              for n in (10, 20)]
    session.act("cancel", task)
    assert session.runs(first)[device]["outcome"] == "cancelled"
    (a,) = session.assigned(device)
    assert a["run"] == session.runs(others[0])[device]["id"] and a["params"]["cpu_percent"] == 10
    session.tell(device, "run_finished", a["run"], outcome="done")
    assert [session.runs(o)[device]["outcome"] for o in others] == ["done", "done"]


def test_expiry(session):
    never, silent, late = (session.device() for _ in range(3))
    o = session.start(session.task([never, silent, late], expires_min=1))
    run = session.assigned(silent)[0]["run"]
    session.tell(silent, "run_accepted", run)
    done = session.assigned(late)[0]["run"]
    session.rows("UPDATE redoubt.run SET not_after = now() - interval '3 minutes' "
                 "WHERE occurrence_id = %s", o)
    session.due()
    found = session.runs(o)
    assert (found[never]["outcome"], found[silent]["outcome"]) == ("missed", None)
    session.rows("UPDATE redoubt.run SET not_after = now() - interval '25 hours' "
                 "WHERE occurrence_id = %s", o)
    session.due()
    assert session.runs(o)[silent]["outcome"] == "expired"
    assert session.occurrence(o)["state"] == "finished"
    # It had done it in time, but could not tell: what it says counts.
    session.tell(late, "run_finished", done, outcome="done")
    assert session.runs(o)[late]["outcome"] == "done"
    assert session.occurrence(o)["totals"]["done"] == 1
    assert session.occurrence(o)["totals"]["missed"] == 1


def test_old_occurrences_are_forgotten(session):
    device = session.device()
    task = session.task([device])
    o = session.start(task)
    session.tell(device, "run_finished", session.assigned(device)[0]["run"], outcome="done")
    session.due()
    session.api("api_task_delete", path={"id": task})
    session.rows("UPDATE redoubt.occurrence SET finished_at = now() - interval '100 days' "
                 "WHERE id = %s", o)
    session.due()
    for table in ("task WHERE id", "occurrence WHERE task_id"):
        assert session.one(f"SELECT count(*) FROM redoubt.{table} = %s", task) == 0


def test_runs_are_told_by_notification(session):
    session.rows("LISTEN redoubt")
    o = session.start(session.task([session.device()]))
    session.rows("SELECT 1")
    session.link.poll()
    told = [json.loads(n.payload) for n in session.link.notifies]
    assert {"t": "run", "o": o} in told and {"t": "events"} in told


# Last: it raises the fence.
def test_the_fence_rises_in_the_middle(database, session):
    device = session.device()
    task = session.task([device])
    session.link.autocommit = False
    session.start(task)
    database.raise_fence(2)
    with pytest.raises(psycopg2.Error):
        session.link.commit()
    with contextlib.closing(Session(database)) as new:
        assert new.api("api_occurrences_list", path={"id": task})["body"]["items"] == []
        new.start(task)
        assert len(new.assigned(device)) == 1
