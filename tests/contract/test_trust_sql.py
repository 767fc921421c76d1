"""db/0004_trust.sql in a real PostgreSQL: enrolment, signing, revocation, clones."""
import contextlib
import hashlib
import json
import os
import select
import tempfile
import uuid

import psycopg2
import pytest

import device_world

ADMIN = {"kind": "local", "name": "root", "role": "administrator", "scope": None}
DAY = 86400


@pytest.fixture(scope="module", name="database")
def _database():
    with tempfile.TemporaryDirectory(prefix="redoubt-trust-") as folder:
        os.chmod(folder, 0o755)
        database = device_world.Postgres(folder)
        database.raise_fence(7)
        yield database
        database.stop()


class Session:
    """A session of the active node's manager or worker."""

    def __init__(self, database):
        self.link = database.connect()
        self.sql("SELECT redoubt.announce(7, 'test', %s)", device_world.NODE)
        self.sql("LISTEN redoubt")

    def sql(self, text, *values):
        with self.link.cursor() as cursor:
            cursor.execute(text, values or None)
            return cursor.fetchall() if cursor.description else []

    def one(self, text, *values):
        return self.sql(text, *values)[0][0]

    def told(self):
        """The notifications since the last call."""
        select.select([self.link], [], [], 0.05)
        self.link.poll()
        found = [json.loads(n.payload) for n in self.link.notifies]
        self.link.notifies.clear()
        return found

    def api(self, name, path=None, body=None, query=None, actor=None):
        return self.one(f"SELECT redoubt.api_{name}(%s, %s, %s, %s)",
                        *(json.dumps(x) for x in (actor or ADMIN, path or {}, query or {},
                                                  body)))

    def token(self, **body):
        return self.api("token_create", body={"name": "t", **body})["body"]

    def enrol(self, token, key=b"key", csr="CSR", name="host"):
        _, ident, secret, _ = token["token"].split(".")
        return self.one("SELECT redoubt.enrol(%s, %s, %s, %s, %s)", ident,
                        hashlib.sha256(secret.encode()).digest(),
                        hashlib.sha256(key).digest(), csr, name)

    def sign(self, serial, pem="PEM", days=90):
        """Signs everything that waits; what was stored, by request."""
        done = [{"id": str(i), "serial": f"{serial}{n:02x}", "not_before": 1000,
                 "not_after": 1000 + days * DAY, "pem": pem,
                 "csr_hash": hashlib.sha256(csr.encode()).hexdigest()}
                for n, (i, _, csr) in
                enumerate(self.sql("SELECT * FROM redoubt.signing_pending(10)"))]
        return self.one("SELECT redoubt.signing_done(%s)", json.dumps(done))

    def exchange(self, function, *items):
        return dict(self.sql(f"SELECT * FROM redoubt.{function}(%s)", json.dumps(items)))

    def hello(self, device, serial="aa", instance=None):
        answer = self.exchange("x_hello", {"device": device, "hello": {
            "serial": serial, "not_after": 2000000000, "address": "10.0.0.9",
            "instance": instance, "transport": "ws", "node": device_world.NODE}})
        return answer[1]["hello"]

    def events(self, device, kind):
        return self.sql("SELECT data FROM redoubt.event WHERE device_id = %s AND kind = %s",
                        device, kind)


@pytest.fixture(name="s")
def _session(database):
    session = Session(database)
    session.sql("SELECT redoubt.authority_set('PEM', 'digest')")
    session.sql("DELETE FROM redoubt.enrol_request")
    with contextlib.closing(session.link):
        yield session


@contextlib.contextmanager
def refused(status, ident=None):
    with pytest.raises(psycopg2.Error) as caught:
        yield
    assert caught.value.pgcode == f"RH{status}", caught.value
    if ident:
        assert caught.value.diag.constraint_name == ident


def test_a_token_enrols_as_often_as_it_may(s):
    token = s.token(uses=2)
    assert token["token"].startswith("rdt1.") and token["token"].endswith(".digest")
    first = s.enrol(token, b"one")
    assert first["state"] == "approved"
    assert s.enrol(token, b"one")["device"] == first["device"], "the same key twice"
    s.enrol(token, b"two")
    with refused(403, "token_used"):
        s.enrol(token, b"three")
    assert s.enrol(token, b"one")["device"] == first["device"], "a repeat needs no use"
    assert s.events(first["device"], "device_enrolled")


def test_no_token_no_enrolment(s):
    token = s.token()
    with refused(403, "token_unknown"):
        s.enrol({"token": token["token"].replace(token["id"], "nobody")})
    with refused(403, "token_unknown"):
        s.enrol({"token": f"rdt1.{token['id']}.guess.digest"})
    s.sql("UPDATE redoubt.enrol_token SET expires_at = now() WHERE id = %s", token["id"])
    with refused(403, "token_expired"):
        s.enrol(token, b"late")
    token = s.token()
    s.api("token_delete", {"id": token["id"]})
    with refused(403, "token_revoked"):
        s.enrol(token, b"revoked")
    states = {t["id"]: t["state"] for t in s.api("tokens_list")["body"]["items"]}
    assert states[token["id"]] == "revoked"


def test_tokens_are_listed_in_pages(s):
    wanted = [s.token(name=f"page {i}")["id"] for i in range(3)]
    found, cursor = [], ""
    while cursor is not None:
        page = s.api("tokens_list", query={"limit": "2", "cursor": cursor})["body"]
        assert len(page["items"]) <= 2
        found += [t["id"] for t in page["items"]]
        cursor = page["next"]
    assert [i for i in found if i in wanted] == wanted


def test_bad_token_bodies(s):
    for body in ({"uses": 0}, {"uses": 1.5}, {"uses": "2"}, {"name": ""}, {"name": "a\nb"},
                 {"group": "/nowhere"}, {"approval": "yes"}, {"expires_hours": 99999},
                 {"other": 1}):
        with refused(400):
            s.token(**body)
    with refused(403):
        s.api("token_create", body={"name": "x"}, actor={**ADMIN, "role": "operator"})


def test_signing_stores_what_was_signed(s):
    got = s.enrol(s.token(), b"sign")
    assert s.sign("51") == {got["id"]: "PEM"}
    again = s.one("SELECT state FROM redoubt.enrol_request WHERE id = %s",
                                  got["id"])
    assert again == "issued"
    assert s.sql("SELECT * FROM redoubt.signing_pending(9)") == []
    assert s.one("SELECT device_id FROM redoubt.certificate WHERE serial = '5100'"
                 ) == got["device"]
    # Another signer comes late: what is stored counts.
    late = [{"id": got["id"], "serial": "99", "not_before": 0, "not_after": 1, "pem": "LATE",
             "csr_hash": hashlib.sha256(b"CSR").hexdigest()}]
    assert s.one("SELECT redoubt.signing_done(%s)", json.dumps(late)) == {got["id"]: "PEM"}


def test_a_wrong_request_is_refused(s):
    token = s.token()
    got = s.enrol(token, b"bad")
    s.one("SELECT redoubt.signing_done(%s)",
          json.dumps([{"id": got["id"], "refused": "an RSA key"}]))
    with refused(403, "enrolment_refused"):
        s.enrol(token, b"bad")


def test_approval_comes_first(s):
    token = s.token(approval=True)
    got = s.enrol(token, b"wait")
    assert got["state"] == "pending"
    assert s.sql("SELECT * FROM redoubt.signing_pending(9)") == []
    assert s.events(got["device"], "device_pending")
    s.told()
    s.api("device_approve", {"id": got["device"]})
    told = s.told()
    assert {"t": "sign"} in told and {"t": "device", "d": got["device"]} in told
    s.sign("52")
    assert s.enrol(token, b"wait")["state"] == "issued"
    assert s.enrol(token, b"wait")["pem"] == "PEM"


def test_a_device_may_be_refused(s):
    token = s.token(approval=True)
    got = s.enrol(token, b"never")
    s.api("device_revoke", {"id": got["device"]}, {"reason": "not ours"})
    with refused(403, "enrolment_refused"):
        s.enrol(token, b"never")
    with refused(409, "device_revoked"):
        s.api("device_approve", {"id": got["device"]})


def test_an_unknown_device_is_adopted(s):
    device = str(uuid.uuid4())
    told = s.hello(device, "a1")
    assert told["state"] == "ok" and told["streams"] == {} and told["group"]
    assert s.events(device, "device_adopted")
    s.hello(device, "a1")
    assert len(s.events(device, "device_adopted")) == 1
    row = s.sql("SELECT serial, connected_epoch, connected_node, host(address) "
                "FROM redoubt.device WHERE id = %s", device)
    assert row == [("a1", 7, device_world.NODE, "10.0.0.9")]


def test_revocation_of_a_device(s):
    device = str(uuid.uuid4())
    s.hello(device, "b1")
    s.told()
    s.api("device_revoke", {"id": device}, {"reason": "stolen"})
    assert {"t": "device", "d": device} in s.told()
    assert s.exchange("x_hello", {"device": device, "refresh": True})[1][
        "hello"] == {"state": "revoked"}
    assert s.hello(device, "b1") == {"state": "revoked"}
    assert s.hello(device, "b2") == {"state": "revoked"}, "another certificate of it"
    assert s.events(device, "device_revoked")


def test_revocation_of_a_certificate(s):
    device = str(uuid.uuid4())
    s.hello(device, "c1")
    s.hello(device, "c2")
    s.api("device_revoke", {"id": device}, {"serial": "c1"})
    assert s.hello(device, "c1") == {"state": "revoked"}
    assert s.hello(device, "c2")["state"] == "ok"
    with refused(404):
        s.api("device_revoke", {"id": device}, {"serial": "b1"})
    assert s.one("SELECT serial FROM redoubt.device WHERE id = %s", device) == "c2"


def test_a_removed_device_is_not_adopted_again(s):
    device = str(uuid.uuid4())
    s.hello(device, "d1")
    s.sql("DELETE FROM redoubt.device WHERE id = %s", device)
    assert s.hello(device, "d1") == {"state": "revoked"}


def test_a_clone_gets_an_identity_of_its_own(s):
    device = str(uuid.uuid4())
    assert s.hello(device, "e1", "A")["state"] == "ok"
    assert s.hello(device, "e1", "B")["state"] == "ok", "a restart looks the same"
    assert s.hello(device, "e1", "A")["state"] == "ok"
    told = s.hello(device, "e1", "B")
    assert told["state"] == "clone"
    assert s.hello(device, "e1", "A")["state"] == "ok"
    assert s.hello(device, "e1", "B")["new_id"] == told["new_id"]
    (event,), = s.events(device, "device_clone")
    assert event["clone"] == "B" and event["new_device"] == told["new_id"]
    # It asks for the certificate of its new identity, by the old one.
    s.told()
    ask = {"device": device, "csr": {"pem": "CLONE CSR", "instance": "B"}}
    assert s.exchange("x_csr", ask) == {}
    assert {"t": "sign"} in s.told()
    s.sign("e5", "CLONE PEM")
    assert {"t": "device", "d": device} in s.told()
    assert s.exchange("x_csr", ask)[1]["csr"] == {"device": told["new_id"],
                                                  "certificate": "CLONE PEM"}
    assert s.hello(device, "e1", "B")["certificate"] == "CLONE PEM"
    assert "certificate" not in s.hello(device, "e1", "A")
    assert s.hello(told["new_id"], "e500", "B")["state"] == "ok"


def test_many_clones_of_one_image(s):
    device = str(uuid.uuid4())
    for instance in "ABCDA":
        assert s.hello(device, "f1", instance)["state"] == "ok"
    new = {s.hello(device, "f1", i)["new_id"] for i in "BCD"}
    assert len(new) == 3


def test_restarts_are_no_clones(s):
    device = str(uuid.uuid4())
    for i in range(20):
        for _ in range(2):
            assert s.hello(device, "f2", f"start {i}")["state"] == "ok"
    assert s.events(device, "device_clone") == []


def test_renewal(s):
    device = str(uuid.uuid4())
    s.hello(device, "1a", "A")
    ask = {"device": device, "csr": {"pem": "NEW CSR", "instance": "A"}}
    assert s.exchange("x_csr", ask) == {}
    s.exchange("x_csr", ask)
    assert len(s.sql("SELECT * FROM redoubt.signing_pending(9)")) == 1
    # Not more than one a minute, however many it sends.
    s.exchange("x_csr", {"device": device, "csr": {"pem": "ANOTHER"}})
    assert [r[2] for r in s.sql("SELECT * FROM redoubt.signing_pending(9)")] == ["NEW CSR"]
    s.sign("1b", "NEW PEM")
    assert s.exchange("x_hello", {"device": device, "refresh": True})[1]["hello"][
        "certificate"] == "NEW PEM"
    assert s.hello(device, "1a", "A")["certificate"] == "NEW PEM"
    assert "certificate" not in s.hello(device, "1b00", "A"), "it uses it now"
    assert s.sql("SELECT * FROM redoubt.enrol_request WHERE device_id = %s", device) == []
    assert s.hello(device, "1a", "A")["state"] == "ok", "the old one stays good"


def test_a_revoked_device_renews_nothing(s):
    device = str(uuid.uuid4())
    s.hello(device, "2a")
    s.api("device_revoke", {"id": device}, {})
    assert s.exchange("x_csr", {"device": device, "csr": {"pem": "CSR"}}) == {}
    assert s.sql("SELECT * FROM redoubt.signing_pending(9)") == []


def test_everything_is_fenced(s, database):
    token = s.token()
    with contextlib.closing(database.connect()) as link, link.cursor() as cursor:
        for text in ("SELECT redoubt.enrol('x', '', '', '', '')",
                     "SELECT redoubt.signing_done('[]')",
                     "SELECT redoubt.authority_set('x', 'y')",
                     f"UPDATE redoubt.enrol_token SET uses = 0 WHERE id = '{token['id']}'",
                     "SELECT * FROM redoubt.x_hello('[{\"device\": \""
                     f"{uuid.uuid4()}\", \"hello\": {{}}}}]')"):
            with pytest.raises(psycopg2.Error) as caught:
                cursor.execute(text)
            assert caught.value.pgcode == "RD001", text


def test_a_batch_of_first_contacts_costs_the_same_however_many_there_are(s):
    """Plans that were made for a few devices are kept for thousands."""
    def contact():
        device = str(uuid.uuid4())
        return {"device": device, "name": "x", "hello": {
            "serial": uuid.uuid4().hex, "not_after": 2000000000, "address": "10.0.0.9",
            "instance": device, "transport": "ws", "node": device_world.NODE},
            "description": {"non_identifying": {"protection.engine": "running"}},
            "policy": {"hash": "ab" * 32, "state": "applied"},
            "events": {"stream": device, "first": 1, "list": [
                {"at": 1, "kind": "x", "severity": "info"}]}}

    def rows_read():
        """By this session, of all tables, since the last call."""
        s.sql("SELECT pg_stat_force_next_flush()")
        now = s.one("SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::bigint "
                    "FROM pg_stat_user_tables WHERE schemaname = 'redoubt'")
        before, rows_read.last = rows_read.last, now
        return now - before

    rows_read.last = 0
    for size in (1,) * 12 + (4,) * 12:
        s.exchange("device_exchange", *(contact() for _ in range(size)))
    costs = []
    for _ in range(20):
        rows_read()
        answers = s.exchange("device_exchange", *(contact() for _ in range(64)))
        assert {a["hello"]["state"] for a in answers.values()} == {"ok"}
        costs.append(rows_read())
    assert max(costs[10:]) < 1.2 * max(costs[:3]), costs
