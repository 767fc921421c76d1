"""Rollouts as the DBMS decides them: who is in which wave, when the next begins, what stops it;
devices are what a worker of the server would hand on."""
import base64
import contextlib
import hashlib
import json
import os
import tempfile
import uuid

import psycopg2
import pytest

from device_world import Postgres

NODE, NAME = "node-a", "redoubt-agent"
OLD, NEW = "0.1.0", "0.2.0"
ROOT = {"kind": "local", "name": "root", "role": "administrator"}


class World:
    def __init__(self, dbms):
        self.dbms, self.epoch = dbms, 0
        self.takeover()

    def takeover(self):
        """Another node becomes active: every connection of a device is gone."""
        self.epoch += 1
        self.dbms.raise_fence(self.epoch)

    def sql(self, statement, *values):
        with contextlib.closing(self.dbms.connect()) as link, link.cursor() as cursor:
            cursor.execute("SELECT redoubt.announce(%s::bigint)", (self.epoch,))
            cursor.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    def api(self, name, path=None, body=None, actor=None, query=None, write=True):
        ((answer,),) = self.sql(
            "SELECT redoubt.api_call(%s, %s, %s, %s, %s, write => %s)", name,
            json.dumps(actor or ROOT), json.dumps(path or {}), json.dumps(query or {}),
            json.dumps(body) if body is not None else "{}", write)
        return answer.get("body")

    def refused(self, *args, **more):
        with pytest.raises(psycopg2.Error) as error:
            self.api(*args, **more)
        return error.value.pgcode, str(error.value)

    def exchange(self, *items):
        return dict(self.sql("SELECT * FROM redoubt.device_exchange(%s)", json.dumps(items)))

    def package(self, version, platform="amd64", visibility="public", name=NAME):
        return self.api("api_package_create", body={
            "name": name, "version": version, "platform": platform, "visibility": visibility,
            "file": f"{name}_{version}_{platform}.deb", "size": 3,
            "sha256": hashlib.sha256((version + platform).encode()).hexdigest(),
            "signature": base64.b64encode(bytes(100)).decode()})

    def group(self, parent="/"):
        name = "g" + uuid.uuid4().hex[:8]
        self.api("api_group_create", body={"name": name, "parent": parent})
        return (parent if parent != "/" else "") + "/" + name

    def devices(self, group, count, **more):
        return [Device(self, group, **more) for _ in range(count)]

    def start(self, group, **more):
        body = {"package": NAME, "version": NEW, "group": group, "soak_s": 0, **more}
        return self.api("api_rollout_create", body=body)["id"]

    def due(self, times=1):
        for _ in range(times):
            self.sql("SELECT redoubt.rollouts_due()")

    def pass_time(self, rollout, seconds):
        """As if so much time had passed since anything happened, looked after all the while."""
        back = f"- interval '{seconds} s'"
        self.dbms.query("ALTER TABLE redoubt.fence DISABLE TRIGGER USER;"
                        f"UPDATE redoubt.fence SET raised_at = raised_at {back};"
                        "ALTER TABLE redoubt.fence ENABLE TRIGGER USER; SELECT 1", user="postgres")
        self.sql(f"UPDATE redoubt.rollout SET awake_at = awake_at {back}, "
                 f"soak_until = soak_until {back} WHERE id = %s", rollout)
        self.sql(f"UPDATE redoubt.rollout_device SET changed_at = changed_at {back}"
                 " WHERE rollout_id = %s", rollout)

    def get(self, rollout):
        return self.api("api_rollout_get", {"id": rollout}, write=False)

    def act(self, rollout, what):
        return self.api(f"api_rollout_{what}", {"id": rollout})

    def states(self, rollout):
        items = self.api("api_rollout_devices", {"id": rollout}, write=False)["items"]
        return {i["device"]: i for i in items}

    def kinds(self, rollout):
        return [k for (k,) in self.sql(
            "SELECT kind FROM redoubt.event WHERE data ->> 'rollout' = %s ORDER BY id", rollout)]


class Device:
    def __init__(self, world, group, has=OLD, arch="x86_64", takes=True):
        self.world, self.id, self.has, self.arch, self.takes = (world, str(uuid.uuid4()), has,
                                                                arch, takes)
        self.offer = None
        self.hello()
        world.api("api_device_patch", {"id": self.id}, {"group": group})

    def item(self, **more):
        return {"device": self.id, **more}

    def take(self, answer):
        for one in answer.values():
            if "package" in one:
                self.offer = one["package"]
        return self.offer

    def hello(self, **more):
        return self.take(self.world.exchange(self.item(
            name="device-" + self.id[:4], health={"healthy": True},
            description={"non_identifying": {"host.arch": self.arch}},
            hello={"serial": uuid.uuid4().hex, "not_after": 4102444800, "address": "192.0.2.7",
                   "transport": "ws", "node": NODE},
            packages=self.packages("installed", **more))))

    def packages(self, state, **more):
        status = {"name": NAME, "has": self.has, "hash": (self.offer or {}).get("hash", ""),
                  "state": state, "percent": 0, "error": "", **more}
        return {"takes": self.takes, "list": [status]}

    def look(self):
        """As when a worker was told that there is something for the device."""
        return self.take(self.world.exchange(self.item(
            refresh={"serial": self.serial(), "instance": ""})))

    def serial(self):
        ((serial,),) = self.world.sql("SELECT serial FROM redoubt.device WHERE id = %s", self.id)
        return serial

    def tell(self, state, **more):
        self.world.exchange(self.item(packages=self.packages(state, **more)))

    def install(self):
        self.tell("downloading", percent=40)
        self.tell("installing")
        self.has = self.offer["version"]
        self.hello()

    def gone(self):
        ((since,),) = self.world.sql(
            "SELECT to_jsonb(connected_at) #>> '{}' FROM redoubt.device WHERE id = %s", self.id)
        self.world.exchange(self.item(gone=since))


@pytest.fixture(scope="module", name="world")
def _world():
    with tempfile.TemporaryDirectory(prefix="redoubt-rollouts-") as path:
        os.chmod(path, 0o755)  # PostgreSQL runs as another user
        dbms = Postgres(path)
        world = World(dbms)
        world.package(OLD)
        world.package(NEW)
        world.package("0.3.0")
        yield world
        dbms.stop()


def offered(devices):
    return [d for d in devices if d.look()]


def test_waves_follow_each_other_and_a_takeover_changes_nothing(world):
    group = world.group()
    devices = world.devices(group, 8)
    rollout = world.start(group, waves=[25, 100])
    assert not offered(devices) and world.get(rollout)["wave"] == 0
    world.due()
    first = offered(devices)
    assert len(first) == 2 and world.get(rollout)["wave"] == 1
    offer = first[0].offer
    assert (offer["name"], offer["version"], offer["back"]) == (NAME, NEW, False)
    assert offer["path"] == f"packages/{NAME}/{NEW}/{NAME}_{NEW}_amd64.deb"

    world.takeover()
    world.due(3)
    for device in devices:
        device.hello()
    assert offered(devices) == first and first[0].offer == offer
    first[0].install()
    world.due(5)
    assert world.get(rollout)["wave"] == 1, "one of the wave is not done"
    assert world.states(rollout)[first[0].id]["state"] == "installed"
    first[1].tell("downloading", percent=33)
    assert world.states(rollout)[first[1].id]["percent"] == 33
    first[1].install()
    world.due(4)
    rest = offered(devices)
    assert world.get(rollout)["wave"] == 2 and len(rest) == 6, "those who have it need nothing"
    for device in devices:
        if device not in first:
            device.install()
    world.due(5)
    assert world.get(rollout)["state"] == "done", world.get(rollout)
    assert world.get(rollout)["totals"]["healthy"] == 8
    assert world.kinds(rollout) == ["rollout_started", "rollout_wave", "rollout_wave",
                                    "rollout_finished"]
    # Who joins later gets what the group has.
    late = Device(world, group)
    world.sql("UPDATE redoubt.rollout SET looked_at = now() - interval '1 hour'")
    world.due()
    assert late.look()["version"] == NEW


def test_a_wave_is_watched_for_a_while(world):
    group = world.group()
    devices = world.devices(group, 2)
    rollout = world.start(group, waves=[50, 100], soak_s=3600)
    world.due()
    (one,) = offered(devices)
    one.install()
    world.due(5)
    got = world.get(rollout)
    assert got["wave"] == 1 and got["soak_until"] > got["changed_at"]

    over = "UPDATE redoubt.rollout SET soak_until = now() - interval '1 s' WHERE id = %s"
    one.gone()
    world.sql(over, rollout)
    world.due(3)
    got = world.get(rollout)
    assert got["wave"] == 1 and "is not connected" in got["why"]
    one.hello()
    world.sql("UPDATE redoubt.device SET status = 'critical' WHERE id = %s", one.id)
    world.due()
    assert "critical since the upgrade" in world.get(rollout)["why"]
    world.sql("UPDATE redoubt.device SET status = 'ok' WHERE id = %s", one.id)
    world.due()
    assert world.get(rollout)["wave"] == 2


def test_a_device_that_does_not_get_well_stops_it(world):
    group = world.group()
    devices = world.devices(group, 2)
    rollout = world.start(group, waves=[50, 100])
    world.due()
    (one,) = offered(devices)
    one.install()
    world.sql("UPDATE redoubt.device SET status = 'critical' WHERE id = %s", one.id)
    world.sql("UPDATE redoubt.rollout SET grace_s = 0 WHERE id = %s", rollout)
    world.due(8)
    got = world.get(rollout)
    assert got["state"] == "stopped" and "critical since the upgrade" in got["why"]
    assert len(offered(devices)) == 0, "nobody is told anything until somebody decides"
    one.hello()
    assert world.states(rollout)[one.id]["state"] == "failed", "to have it is not to be well"
    # Who is sick of it is taken back first of all.
    assert world.act(rollout, "rollback")["totals"]["returning"] == 1
    assert one.look()["version"] == OLD and one.offer["back"]
    one.install()
    world.due()
    assert world.get(rollout)["finished_at"]


def test_too_many_failures_stop_it_loudly(world):
    group = world.group()
    devices = world.devices(group, 4)
    rollout = world.start(group, waves=[75, 100], max_failures=1)
    world.due()
    wave = offered(devices)
    assert len(wave) == 3
    wave[0].tell("failed", error="it does not start")
    world.due(3)
    assert world.get(rollout)["state"] == "running"
    wave[1].tell("failed", error="the disk is full")
    world.due()
    got = world.get(rollout)
    assert got["state"] == "stopped" and got["wave"] == 1 and "2 failed in wave 1" in got["why"]
    assert "the disk is full" in got["why"] and got["finished_at"]
    assert not offered(devices), "nobody is offered it any more"
    assert world.states(rollout)[wave[2].id]["state"] == "withdrawn"
    ((severity,),) = world.sql("SELECT severity FROM redoubt.event WHERE kind = 'rollout_stopped'"
                               " AND data ->> 'rollout' = %s", rollout)
    assert severity == "error"


def test_who_says_nothing_has_failed(world):
    group = world.group()
    devices = world.devices(group, 1)
    rollout = world.start(group)
    world.due()
    devices[0].look()
    devices[0].tell("installing")
    devices[0].gone()
    world.due(3)
    assert world.get(rollout)["state"] == "running", "it may be on its way"
    world.pass_time(rollout, 7200)
    world.due(2)
    assert "said nothing for 1200 s while it was installing" in world.get(rollout)["why"]


def test_who_is_heard_of_after_all_counts(world):
    group = world.group()
    devices = world.devices(group, 2)
    rollout = world.start(group, waves=[100], max_failures=2)
    world.due()
    assert len(offered(devices)) == 2
    for one in devices:
        one.tell("installing")
        one.gone()
    world.pass_time(rollout, 7200)
    world.due()
    assert world.get(rollout)["totals"]["failed"] == 2
    devices[0].has = NEW
    devices[0].hello()
    assert world.states(rollout)[devices[0].id]["state"] == "installed"
    # The other one comes when all of them were sent back.
    assert world.act(rollout, "rollback")["totals"]["returning"] == 1
    devices[1].has = NEW
    assert devices[1].hello()["version"] == OLD and devices[1].offer["back"]


def test_an_outage_is_nobodys_silence(world):
    group = world.group()
    devices = world.devices(group, 3)
    rollout = world.start(group, waves=[100])
    world.due()
    offered(devices)
    for one in devices[:2]:
        one.install()
    devices[2].tell("downloading")
    world.pass_time(rollout, 7200)
    world.takeover()
    world.due(3)
    assert world.get(rollout)["state"] == "running", "a switch: nobody could be back yet"
    # The DBMS was away, and the node that is active stayed it.
    world.pass_time(rollout, 7200)
    world.sql("UPDATE redoubt.rollout SET stepped_at = now() - interval '2 hours' WHERE id = %s",
              rollout)
    world.due(3)
    assert world.get(rollout)["state"] == "running", "nobody listened"
    for one in devices:
        one.hello()
    devices[2].install()
    world.due(5)
    assert world.get(rollout)["state"] == "done"


def test_what_was_installed_before_a_switch_has_its_time_to_come_back(world):
    group = world.group()
    devices = world.devices(group, 1)
    rollout = world.start(group, waves=[100], soak_s=60)
    world.due()
    offered(devices)
    devices[0].install()
    world.due(4)
    assert world.get(rollout)["soak_until"]
    world.pass_time(rollout, 7200)
    world.takeover()
    world.due(3)
    got = world.get(rollout)
    assert got["state"] == "running" and "is not connected" in got["why"]
    world.act(rollout, "pause")
    world.pass_time(rollout, 7200)
    world.act(rollout, "resume")
    world.due(3)
    got = world.get(rollout)
    assert got["state"] == "running" and got["soak_until"] > got["changed_at"], "soaks anew"


def test_who_is_away_does_not_hold_the_others(world):
    group = world.group()
    devices = world.devices(group, 3)
    rollout = world.start(group, waves=[100])
    world.due()
    offered(devices)
    devices[2].gone()
    devices[0].install()
    devices[1].install()
    world.due(5)
    assert world.get(rollout)["state"] == "done"
    assert devices[2].hello()["version"] == NEW
    devices[2].install()
    assert world.states(rollout)[devices[2].id]["state"] == "installed"


def test_a_wave_is_of_those_who_are_there(world):
    group = world.group()
    devices = world.devices(group, 8)
    for one in devices[:6]:
        one.gone()
    rollout = world.start(group, waves=[25, 100])
    world.due()
    assert set(world.states(rollout)) == {d.id for d in devices[6:]}
    for one in devices[6:]:
        one.gone()
    world.due(3)
    assert "no device of wave 1 is connected: waits for device-" in world.get(rollout)["why"]


def test_newcomers_do_not_begin_the_soak_anew(world):
    group = world.group()
    devices = world.devices(group, 3)
    devices[2].gone()
    rollout = world.start(group, waves=[100], soak_s=3600)
    world.due(2)
    for one in devices[:2]:
        one.look()
        one.install()
    world.due(3)
    soak = world.get(rollout)["soak_until"]
    assert soak
    late = Device(world, group)
    world.sql("UPDATE redoubt.rollout SET looked_at = now() - interval '1 hour' WHERE id = %s",
              rollout)
    world.due(2)
    for one in (late, devices[2]):
        assert one.hello()["version"] == NEW
        one.tell("downloading")
    world.due(2)
    assert world.get(rollout)["soak_until"] == soak
    world.sql("UPDATE redoubt.rollout SET soak_until = now() WHERE id = %s", rollout)
    world.due(3)
    got = world.get(rollout)
    assert got["state"] == "done" and got["totals"]["healthy"] == 2
    late.install()
    assert world.states(rollout)[late.id]["state"] == "installed"
    # Who was at it when it ended, and is never heard of again, is not at it for ever.
    world.pass_time(rollout, 7200)
    world.due()
    assert world.states(rollout)[devices[2].id]["state"] == "failed"


def test_a_group_may_be_renamed_meanwhile(world):
    group = world.group()
    devices = world.devices(group, 4)
    rollout = world.start(group, waves=[50, 100])
    world.due()
    ((one,),) = world.sql("SELECT id::text FROM redoubt.device_group WHERE path = %s", group)
    world.api("api_group_patch", {"id": one}, {"name": "moved" + group[1:]})
    assert world.get(rollout)["group"]["path"] == "/moved" + group[1:]
    for device in offered(devices):
        device.install()
    world.due(5)
    assert world.get(rollout)["wave"] == 2 and len(world.states(rollout)) == 4
    assert world.refused("api_rollout_create", body={
        "package": NAME, "version": NEW, "group": "/moved" + group[1:]})[0] == "RH409"


def test_no_rollout_waits_for_the_steps_of_others(world):
    started = []
    for _ in range(22):
        group = world.group()
        world.devices(group, 1)[0].gone()
        started.append(world.start(group))
    world.sql("UPDATE redoubt.rollout SET stepped_at = now() - interval '5 s'")
    world.due(2)
    assert {world.get(r)["wave"] for r in started} == {1}
    for rollout in started:
        world.act(rollout, "stop")


def test_paused_means_that_nobody_begins(world):
    group = world.group()
    devices = world.devices(group, 2)
    rollout = world.start(group, waves=[50, 100])
    world.due()
    (one,) = offered(devices)
    assert world.act(rollout, "pause")["state"] == "paused"
    assert not offered(devices)
    world.due(3)
    assert world.act(rollout, "resume")["state"] == "running"
    assert offered(devices) == [one]
    assert world.refused("api_rollout_resume", {"id": rollout})[0] == "RH409"
    assert world.act(rollout, "stop")["state"] == "stopped"
    assert not offered(devices)
    assert world.refused("api_rollout_pause", {"id": rollout})[0] == "RH409"


def test_a_roll_back_is_an_order_to_those_who_have_it(world):
    group = world.group()
    devices = world.devices(group, 3)
    devices[0].has = "0.0.9"
    devices[0].hello()
    rollout = world.start(group, waves=[100])
    world.due()
    offered(devices)
    devices[0].install()
    devices[1].install()
    code, text = world.refused("api_rollout_rollback", {"id": rollout})
    assert code == "RH409" and "0.0.9 (amd64)" in text
    world.package("0.0.9")
    assert world.act(rollout, "rollback")["totals"]["returning"] == 2
    assert {d.id: d.look()["version"] for d in devices[:2]} == {devices[0].id: "0.0.9",
                                                                devices[1].id: OLD}
    assert devices[0].offer["back"] is True and devices[2].look() is None
    # What they are to go back to stays until they are there.
    ((package,),) = world.sql("SELECT id::text FROM redoubt.package WHERE version = '0.0.9'")
    assert world.refused("api_package_delete", {"id": package})[0] == "RH409"
    devices[0].install()
    world.due()
    assert world.get(rollout)["finished_at"] is None
    devices[1].install()
    world.due()
    got = world.get(rollout)
    assert got["state"] == "rolled_back" and got["finished_at"]
    assert got["totals"]["rolled_back"] == 2 and got["totals"]["withdrawn"] == 1
    assert world.kinds(rollout)[-2:] == ["rollout_stopped", "rollout_finished"]
    world.api("api_package_delete", {"id": package})


def test_a_roll_back_does_not_wait_for_ever(world):
    group = world.group()
    (device,) = world.devices(group, 1)
    rollout = world.start(group, waves=[100])
    world.due()
    device.look()
    device.install()
    device.gone()
    world.act(rollout, "rollback")
    world.due()
    assert world.get(rollout)["finished_at"] is None
    world.pass_time(rollout, 7200)
    world.due()
    got = world.get(rollout)
    assert got["finished_at"] and "1 are not back yet" in got["why"]
    assert device.hello()["version"] == OLD, "it is sent back when it comes, all the same"
    device.install()
    assert world.states(rollout)[device.id]["state"] == "rolled_back"


def test_the_newest_rollout_that_says_anything_counts(world):
    group = world.group()
    (device,) = world.devices(group, 1)
    first = world.start(group, waves=[100])
    world.due()
    device.look()
    device.install()
    world.due(5)
    second = world.start(group, waves=[100], version="0.3.0")
    world.due()
    assert device.look()["version"] == "0.3.0"
    device.tell("failed", error="no")
    world.due(2)
    assert device.look() is None, "it has what it should have"
    # What the first one brought can be taken back, although the second one failed since.
    assert world.act(first, "rollback")["totals"]["returning"] == 1
    assert device.look()["version"] == OLD
    device.install()
    third = world.start(group, waves=[100], version="0.3.0")
    world.due()
    device.look()
    device.install()
    world.due(5)
    assert world.get(third)["state"] == "done" and world.get(second)["state"] == "stopped"
    device.has = "0.1.5"
    device.hello()
    assert device.look()["version"] == "0.3.0", "somebody has installed another one by hand"


def test_a_roll_back_leaves_alone_what_another_one_brought(world):
    group = world.group()
    (device,) = world.devices(group, 1)
    first = world.start(group, waves=[100])
    world.due()
    device.look()
    device.install()
    world.due(5)
    world.start(group, waves=[100], version="0.3.0")
    world.due()
    device.look()
    device.install()
    assert world.act(first, "rollback")["totals"]["returning"] == 0
    assert device.look() is None and device.has == "0.3.0"


def test_an_answer_to_another_offer_says_nothing(world):
    group = world.group()
    (device,) = world.devices(group, 1)
    rollout = world.start(group)
    world.due()
    device.look()
    device.tell("failed", hash="00" * 32, error="of last year")
    device.tell("failed", hash="", error="of nothing")
    device.tell("installed", has=OLD)
    assert world.states(rollout)[device.id]["state"] == "offered"
    # The failure of one rollout is none of the next: it is another offer.
    device.tell("failed", error="no")
    world.due()
    assert world.get(rollout)["state"] == "stopped"
    before = device.offer["hash"]
    world.start(group)
    world.due()
    assert device.look()["hash"] != before


def test_only_those_who_can_take_it_are_offered_it(world):
    group = world.group()
    (good,) = world.devices(group, 1)
    others = (world.devices(group, 1, takes=False) + world.devices(group, 1, arch="aarch64")
              + world.devices(group, 1, has="0.10.0") + world.devices(group, 1, has=NEW)
              + world.devices(world.group(), 1))
    below = Device(world, world.group(group))
    rollout = world.start(group, waves=[100])
    world.due()
    assert set(world.states(rollout)) == {good.id, below.id}
    assert not offered(others)


def test_what_makes_no_sense_is_refused(world):
    group = world.group()
    body = {"package": NAME, "version": NEW, "group": group}
    create = "api_rollout_create"
    code, text = world.refused(create, body=body)
    assert code == "RH422" and "No device" in text
    world.devices(group, 1)
    for change, expected in (({"version": "9.9"}, "RH422"), ({"package": "other"}, "RH422"),
                             ({"waves": []}, "RH400"), ({"waves": [50]}, "RH400"),
                             ({"waves": [50, 20, 100]}, "RH400"), ({"waves": [0, 100]}, "RH400"),
                             ({"waves": "all"}, "RH400"), ({"soak_s": -1}, "RH400"),
                             ({"max_failures": "x"}, "RH400"), ({"group": "/none"}, "RH404"),
                             ({"more": 1}, "RH400"), ({"package": 1}, "RH400")):
        assert world.refused(create, body={**body, **change})[0] == expected, change
    world.package("0.2.1", visibility="private")
    assert world.refused(create, body={**body, "version": "0.2.1"})[0] == "RH422"
    for role in ("auditor", "operator"):
        assert world.refused(create, body=body, actor={**ROOT, "role": role})[0] == "RH403"
    rollout = world.api(create, body=body)["id"]
    assert world.refused(create, body=body)[0] == "RH409"
    assert world.refused(create, body={**body, "group": "/"})[0] == "RH409"
    ((package,),) = world.sql("SELECT id::text FROM redoubt.package WHERE version = %s", NEW)
    code, text = world.refused("api_package_delete", {"id": package})
    assert code == "RH409" and "rollout" in text
    ((other,),) = world.sql("SELECT id::text FROM redoubt.device_group WHERE path = %s",
                            world.group())
    assert world.refused("api_rollout_get", {"id": rollout}, write=False,
                         actor={**ROOT, "scope": [other]})[0] == "RH404"
    assert world.api("api_rollouts_list", write=False, query={"state": "running"},
                     actor={**ROOT, "scope": [other]})["items"] == []
    world.act(rollout, "stop")
    audit = world.sql("SELECT action FROM redoubt.audit WHERE object = %s ORDER BY id", rollout)
    assert [a for (a,) in audit] == ["rollout_create", "rollout_stop"]


def test_old_rollouts_are_forgotten_but_not_what_a_group_has(world):
    group = world.group()
    (device,) = world.devices(group, 1)
    made = []
    for version in (NEW, "0.3.0"):
        made.append(world.start(group, waves=[100], version=version))
        world.due()
        device.look()
        device.install()
        world.due(5)
    world.sql("UPDATE redoubt.rollout SET finished_at = now() - interval '91 days'"
              " WHERE id = ANY (%s::uuid[])", made)
    world.due(2)
    left = [r["id"] for r in world.api("api_rollouts_list", write=False)["items"]]
    assert made[0] not in left and made[1] in left


def test_names_that_a_device_makes_up_are_forgotten(world):
    (device,) = world.devices(world.group(), 1)
    for name in ("one", "two", "three"):
        device.tell("installed", name=name)
    assert world.sql("SELECT name FROM redoubt.device_package WHERE device_id = %s",
                     device.id) == [("three",)]


def test_without_the_fence_nothing_moves(world):
    with contextlib.closing(world.dbms.connect()) as link, link.cursor() as cursor:
        with pytest.raises(psycopg2.Error):
            cursor.execute("SELECT redoubt.rollouts_due()")
