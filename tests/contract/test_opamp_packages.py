"""The server offers packages to the devices that take them, and hears what becomes of them:
redoubt-server and a PostgreSQL, spoken to by a device that shares no code with them."""
import base64
import hashlib
import struct

import pytest

from device_world import attribute, eventually, field, parse
from test_opamp_ws import Agent, _session  # noqa: F401
from test_server import (_active, _certificates, _daemon, _database, _epoch,  # noqa: F401
                         _folder)

NAME, OLD, NEW = "redoubt-agent", "0.1.0", "0.2.0"
TAKES, REPORTS = 0x8, 0x10
INSTALLED, INSTALLING, FAILED, DOWNLOADING = 0, 2, 3, 4


def status(has=OLD, state=INSTALLED, offered=b"", why="", percent=None):
    details = b""
    if percent is not None:
        details = field(8, b"\x09" + struct.pack("<d", percent))
    one = (field(1, NAME) + field(2, has) + field(5, offered) + field(6, state)
           + field(7, why) + details)
    return field(8, field(1, field(1, NAME) + field(2, one)))


class Taker(Agent):
    """A device that may take packages; every offer collects in `offers`."""

    def __init__(self, *args, capabilities=TAKES | REPORTS, has=OLD, **more):
        self.bits, self.has, self.offers = capabilities, has, []
        super().__init__(*args, **more)

    def hello(self, *more):
        identifying = field(1, attribute("service.name", NAME))
        return self.ask(field(3, identifying + field(2, attribute("host.name", "h"))
                              + field(2, attribute("host.arch", "x86_64"))),
                        field(12, b"".join(field(1, c) for c in self.customs)),
                        status(self.has), *more)

    def send(self, *fields):
        self.device.sequence += 1
        self.device.frame(b"\0" + field(1, self.device.uid) + field(2, self.device.sequence)
                          + field(4, 0x1 | 0x2000 | self.bits) + b"".join(fields))

    def hear(self):
        fields = self.device.receive()
        if 5 in fields:
            self.offers.append(parse(fields[5][0]))
        return fields

    def offer(self):
        """The next offer, as {name, version, url, digest, signature, hash, headers}."""
        self.device.socket.settimeout(10)
        while not self.offers:
            self.hear()
        told = self.offers.pop(0)
        entry = parse(told[1][0])
        package = parse(entry[2][0])
        file = parse(package[3][0])
        headers = {}
        for one in parse(file[4][0])[1] if 4 in file else []:
            got = parse(one)
            headers[got[1][0].decode()] = got[2][0].decode()
        assert len(told[1]) == 1 and 1 not in package, "one top-level package is the whole set"
        return {"name": entry[1][0].decode(), "version": package[2][0].decode(),
                "url": file[1][0].decode(), "digest": file[2][0], "signature": file[3][0],
                "hash": package[4][0], "all": told[2][0], "headers": headers}

    def error(self):
        """(type, text) of the next error."""
        while True:
            fields = self.hear()
            if 2 in fields:
                told = parse(fields[2][0])
                return told[1][0], told[2][0].decode()

    def nothing(self):
        """No offer comes with the answers to what it says."""
        for _ in range(3):
            self.ask()
        assert not self.offers


@pytest.fixture(name="packages")
def _packages(session):
    made = {}
    for version in (OLD, NEW):
        digest = hashlib.sha256(version.encode()).digest()
        session.api("api_package_create", body={
            "name": NAME, "version": version, "platform": "amd64", "size": 3,
            "file": f"{NAME}_{version}_amd64.deb", "sha256": digest.hex(),
            "signature": base64.b64encode(b"S" * 64 + version.encode()).decode()})
        made[version] = digest
    return made


def states(session, rollout):
    return dict(session.rows("SELECT state, percent FROM redoubt.rollout_device"
                             " WHERE rollout_id = %s", rollout))


def becomes(session, rollout, expected):
    eventually(f"it is {expected}", lambda: states(session, rollout) == expected)


def start(session):
    made = session.api("api_rollout_create", body={"package": NAME, "version": NEW, "group": "/",
                                                   "waves": [100], "soak_s": 0})["body"]["id"]
    session.rows("SELECT redoubt.rollouts_due()")
    return made


def test_an_offer_comes_at_once_and_what_becomes_of_it_is_kept(active, certificates, session,
                                                               packages):
    certificates.ids["three"] = certificates.device("three")
    agent = Taker(active, certificates)
    other = Taker(active, certificates, "two", capabilities=REPORTS)
    foreign = Taker(active, certificates, "three", capabilities=0)
    rollout = start(session)
    offer = agent.offer()
    assert (offer["name"], offer["version"], offer["digest"]) == (NAME, NEW, packages[NEW])
    assert offer["signature"] == b"S" * 64 + NEW.encode() and offer["headers"] == {}
    assert offer["url"] == f"http://redoubt:8060/packages/{NAME}/{NEW}/{NAME}_{NEW}_amd64.deb"
    assert len(offer["hash"]) == 32 and len(offer["all"]) == 32

    agent.ask(status(OLD, DOWNLOADING, offer["hash"], percent=42.7))
    becomes(session, rollout, {"downloading": 42})
    agent.ask(status(OLD, INSTALLING, offer["hash"]))
    becomes(session, rollout, {"installing": 42})
    agent.nothing()
    # The new agent comes with a connection of its own, and is offered nothing it has.
    agent.device.close()
    agent = Taker(active, certificates, has=NEW)
    assert agent.offer()["hash"] == offer["hash"], "it did not say yet that it knows"
    agent.ask(status(NEW, INSTALLED, offer["hash"]))
    becomes(session, rollout, {"installed": 100})
    agent.nothing()
    eventually("the rollout ends", lambda: session.rows("SELECT redoubt.rollouts_due()")
               and session.one("SELECT state FROM redoubt.rollout WHERE id = %s", rollout)
               == "done")

    session.api("api_rollout_rollback", path={"id": rollout})
    back = agent.offer()
    assert back["version"] == OLD and back["digest"] == packages[OLD]
    assert back["headers"] == {"Redoubt-Order": "roll-back"} and back["hash"] != offer["hash"]
    agent.ask(status(NEW, FAILED, back["hash"], "no space"))
    eventually("it is kept", lambda: session.rows(
        "SELECT why FROM redoubt.rollout_device WHERE rollout_id = %s", rollout)
        == [("roll-back: no space",)])
    for one in (other, foreign):
        one.nothing()
    (who,) = session.rows("SELECT device_id::text FROM redoubt.rollout_device"
                          " WHERE rollout_id = %s", rollout)
    assert who == (certificates.ids["one"],)


def test_statuses_beyond_all_bounds_are_bad_messages(active, certificates, session):
    agent = Taker(active, certificates)
    many = b"".join(field(1, field(1, f"p{n}") + field(2, field(1, f"p{n}"))) for n in range(9))
    agent.send(field(8, many))
    kind, text = agent.error()
    assert kind == 1 and "more than 8" in text
    agent.send(status(has="v" * 129))
    assert "package version" in agent.error()[1]
    agent.send(status(OLD, 99))
    eventually("the first is kept", lambda: session.one(
        "SELECT count(*) FROM redoubt.device_package WHERE device_id = %s",
        certificates.ids["one"]) == 1)


@pytest.mark.usefixtures("packages")
def test_who_installs_is_offered_the_next_once_and_again_at_its_end(active, certificates, session):
    agent = Taker(active, certificates)
    rollout = start(session)
    offer = agent.offer()
    agent.ask(status(OLD, INSTALLING, offer["hash"]))
    becomes(session, rollout, {"installing": 0})
    session.api("api_rollout_rollback", path={"id": rollout})
    back = agent.offer()
    assert back["version"] == OLD
    for _ in range(3):
        agent.ask(status(OLD, INSTALLING, offer["hash"]))
        agent.nothing()
    agent.ask(status(NEW, INSTALLED, offer["hash"]))
    assert agent.offer()["hash"] == back["hash"]
    agent.ask(status(OLD, INSTALLED, back["hash"]))
    becomes(session, rollout, {"rolled_back": 100})
