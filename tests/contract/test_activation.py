"""redoubt-activation as a device and as the node daemon see it, with a real PostgreSQL."""
import calendar
import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import device_world as world  # noqa: E402

ACTIVATION = os.path.join(world.BUILD, "src/app/activation/redoubt-activation")
VENDOR = os.path.join(world.TOP, "lab/vendor/licence")
FEATURES = ["antimalware", "updates"]


class Vendor:
    def __init__(self, folder):
        self.folder = folder
        world.run(VENDOR, "keygen", folder)
        world.run(VENDOR, "lease-key", f"{folder}/lease.key")

    def sign(self, **given):
        options = {"cluster": "test", "seats": 3, **given}
        words = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
        return world.run(VENDOR, "sign", "--key", f"{self.folder}/vendor.key", *words,
                         *[f"--feature={f}" for f in FEATURES])


class Activation(world.Daemon):
    def __init__(self, folder, database, certificates, vendor):
        self.vendor_folder = vendor.folder
        self.listen_port = world.free_port()
        self.licence = os.path.join(tempfile.mkdtemp(dir=folder), "licence.json")
        super().__init__(folder, database, certificates, program=ACTIVATION, sections=f"""
[activation]
listen=127.0.0.1:{self.listen_port}
licence={self.licence}
anchor={vendor.folder}/licence.pub
key={vendor.folder}/lease.key
certificate={certificates.path('server.pem')}
tls_key={certificates.path('server.key')}
ca={certificates.path('ca.pem')}
""")

    def install(self, text):
        with open(self.licence + ".new", "w", encoding="utf-8") as file:
            file.write(text)
        os.rename(self.licence + ".new", self.licence)


def verify(envelope, seed_path):
    """The document of a lease, if openssl finds its signature good; else None."""
    with open(seed_path, encoding="ascii") as file:
        seed = bytes.fromhex(file.read())
    with tempfile.TemporaryDirectory() as folder:
        files = {"key": bytes.fromhex("302e020100300506032b657004220420") + seed,
                 "document": envelope["document"].encode(),
                 "signature": bytes.fromhex(envelope["signature"])}
        for name, data in files.items():
            with open(f"{folder}/{name}", "wb") as file:
                file.write(data)
        done = subprocess.run(
            ["openssl", "pkeyutl", "-verify", "-rawin", "-inkey", f"{folder}/key", "-keyform",
             "DER", "-in", f"{folder}/document", "-sigfile", f"{folder}/signature"],
            capture_output=True, check=False)
    return json.loads(envelope["document"]) if done.returncode == 0 else None


@pytest.fixture(scope="module")
def database():
    with tempfile.TemporaryDirectory(prefix="redoubt-activation-") as folder:
        os.chmod(folder, 0o755)
        postgres = world.Postgres(folder)
        yield postgres
        postgres.stop()


@pytest.fixture(scope="module")
def certificates():
    with tempfile.TemporaryDirectory(prefix="redoubt-certificates-") as folder:
        found = world.Certificates(folder)
        found.authority("strangers")
        found.devices = {name: found.device(name) for name in ("d1", "d2", "d3", "d4")}
        found.device("stranger", "strangers")
        yield found


@pytest.fixture(scope="module")
def vendor():
    with tempfile.TemporaryDirectory(prefix="redoubt-vendor-") as folder:
        yield Vendor(folder)


EPOCH = [100]


@pytest.fixture
def service(database, certificates, vendor):
    with tempfile.TemporaryDirectory(prefix="redoubt-activation-") as folder:
        daemon = Activation(folder, database, certificates, vendor)
        daemon.wait_note("READY=1")
        EPOCH[0] += 1
        database.raise_fence(EPOCH[0])
        yield daemon
        daemon.stop()
        assert daemon.process.returncode == 0, daemon.log_text()[-2000:]


def request(service, certificates, name, method="POST", path="/v1/activate", body=None,
            timeout=20, source=None):  # pylint: disable=too-many-arguments
    """(status, answer) or None if there was no TLS connection or no answer."""
    context = ssl.create_default_context(cafile=certificates.path("ca.pem"))
    if name:
        context.load_cert_chain(certificates.path(name + ".pem"), certificates.path(name + ".key"))
    link = http.client.HTTPSConnection("127.0.0.1", service.listen_port, context=context,
                                       timeout=timeout, source_address=source)
    if body is None:
        body = json.dumps({"device": certificates.devices.get(name, "")})
    with contextlib.closing(link):
        try:
            link.request(method, path, body)
            answer = link.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException):
            return None
    return answer.status, json.loads(text) if text else None


def refused(answer):
    assert answer is not None
    return answer[0], answer[1]["error"]["id"]


def seconds(text):
    return calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ"))


def seats(database, licence):
    return database.query("SELECT count(*) FROM redoubt.seat WHERE licence = %s::uuid",
                          licence)[0][0]


def long_unseen(database, certificates, name):
    """The lease of a device has run out (which nobody remembers otherwise)."""
    database.query("SELECT redoubt.announce(%s);"
                   "UPDATE redoubt.seat SET expires_at = now() WHERE device = %s::uuid;"
                   "UPDATE redoubt.licensing SET upkeep_at = 'epoch';"
                   "SELECT redoubt.licences_upkeep();"
                   "SELECT redoubt.licences_changed()", EPOCH[0], certificates.devices[name])


def licence_id(text):
    return json.loads(json.loads(text)["document"])["licence"]


def test_a_lease_is_signed_and_says_what_was_agreed(service, certificates, vendor, database):
    licence = vendor.sign(seats=3)
    service.install(licence)
    service.active(EPOCH[0])
    status, envelope = request(service, certificates, "d1")
    assert status == 200
    lease = verify(envelope, f"{vendor.folder}/lease.key")
    assert lease and not verify({**envelope, "document": envelope["document"] + " "},
                                f"{vendor.folder}/lease.key")
    assert lease["device"] == certificates.devices["d1"]
    assert lease["licence"] == licence_id(licence)
    assert lease["features"] == FEATURES and lease["seats"] == 3
    assert lease["cluster"] == "test" and lease["format"] == 1
    when = [seconds(lease[key]) for key in ("issued", "renew_after", "expires")]
    assert abs(when[0] - time.time()) < 60
    assert when[1] - when[0] == 7 * 86400 and when[2] - when[0] == 30 * 86400
    assert seats(database, licence_id(licence)) == 1


def test_the_same_device_keeps_its_seat_and_a_full_licence_is_full(service, certificates,
                                                                   vendor, database):
    licence = vendor.sign(seats=2)
    service.install(licence)
    service.active(EPOCH[0])
    for name in ("d1", "d1", "d2", "d1"):
        assert request(service, certificates, name)[0] == 200
    assert seats(database, licence_id(licence)) == 2
    assert refused(request(service, certificates, "d3")) == (409, "seats_full")
    assert request(service, certificates, "d2")[0] == 200  # who has one goes on
    long_unseen(database, certificates, "d1")
    world.eventually("a seat ran out", lambda: request(service, certificates, "d3")[0] == 200)
    assert refused(request(service, certificates, "d1")) == (409, "seats_full")


def test_a_lease_ends_with_the_licence(service, certificates, vendor):
    service.install(vendor.sign(begins_s=-10, lasts_s=86400))
    service.active(EPOCH[0])
    lease = verify(request(service, certificates, "d1")[1], f"{vendor.folder}/lease.key")
    document = json.loads(json.loads(open(service.licence, encoding="utf-8").read())["document"])
    assert lease["expires"] == document["expires"]
    half = (seconds(lease["expires"]) - seconds(lease["issued"])) // 2
    assert seconds(lease["renew_after"]) == seconds(lease["issued"]) + half


@pytest.mark.parametrize("change, expected", [
    ({"cluster": "another"}, "other_cluster"),
    ({"begins_s": 3600}, "not_yet_valid"),
    ({"begins_s": -7200, "lasts_s": 3600}, "expired"),
])
def test_a_licence_that_does_not_fit_gives_no_lease(service, certificates, vendor, change,
                                                    expected):
    service.install(vendor.sign(**change))
    service.active(EPOCH[0])
    assert refused(request(service, certificates, "d1")) == (403, expected)
    service.install(vendor.sign())  # and a good one is taken up without a restart
    assert request(service, certificates, "d1")[0] == 200


def test_a_forged_licence_gives_no_lease(service, certificates, vendor):
    service.active(EPOCH[0])
    assert refused(request(service, certificates, "d1")) == (403, "no_licence")
    good = vendor.sign(seats=3)
    with tempfile.TemporaryDirectory() as folder:
        forged = Vendor(folder).sign()
    for text in (good.replace('\\"seats\\": 3', '\\"seats\\": 9'), forged, "nonsense", "{}", "",
                 good + "x" * 70000):
        service.install(text)
        assert refused(request(service, certificates, "d1")) == (403, "bad_licence")
    service.install(good)
    assert request(service, certificates, "d1")[0] == 200


def test_a_device_asks_for_itself_only(service, certificates, vendor):
    service.install(vendor.sign())
    service.active(EPOCH[0])
    other = json.dumps({"device": certificates.devices["d2"]})
    assert refused(request(service, certificates, "d1", body=other)) == (403, "other_device")
    assert request(service, certificates, "d1", body="{}")[0] == 200
    assert refused(request(service, certificates, None)) == (403, "stranger")
    answer = request(service, certificates, "stranger")  # not our authority
    assert answer is None or refused(answer) == (403, "stranger")
    answer = request(service, certificates, "server")  # a certificate, but no device's
    assert answer is None or refused(answer) == (403, "stranger")


def test_bad_requests_are_refused_and_harm_nobody(service, certificates, vendor):
    service.install(vendor.sign())
    service.active(EPOCH[0])
    for body in ("", "[]", "{", '{"device": 7}', '{"device": "x", "device": "y"}',
                 "x" * 5000, "x" * 500000):
        assert refused(request(service, certificates, "d1", body=body)) == (400, "bad_request")
    for method, path in (("GET", "/v1/activate"), ("POST", "/"), ("PUT", "/v1/health")):
        assert refused(request(service, certificates, "d1", method, path))[0] == 400
    assert request(service, certificates, "d1")[0] == 200


def test_one_address_cannot_keep_the_others_out(service, certificates, vendor):
    service.install(vendor.sign())
    service.active(EPOCH[0])
    links = []
    with contextlib.ExitStack() as stack:
        for _ in range(520):
            links.append(stack.enter_context(socket.socket()))
            links[-1].connect(("127.0.0.1", service.listen_port))
        # Well within the time after which idle connections are closed.
        assert request(service, certificates, "d2", timeout=6, source=("127.0.0.2", 0))[0] == 200
    world.eventually("and those again", lambda: request(service, certificates, "d1"))


def test_only_the_active_node_that_holds_the_lease_answers(service, certificates, vendor):
    service.install(vendor.sign())
    assert request(service, certificates, "d1") is None  # nobody listens
    service.active(EPOCH[0])
    assert request(service, certificates, "d1")[0] == 200
    assert request(service, certificates, None, "GET", "/v1/health") == (
        200, {"node": world.NODE, "epoch": EPOCH[0]})
    service.lease(EPOCH[0], 0)  # the deadline passed
    assert refused(request(service, certificates, "d1")) == (503, "not_active")
    assert request(service, certificates, None, "GET", "/v1/health")[0] == 503
    service.lease(EPOCH[0] + 1)  # held, but for an epoch that is not this role's
    assert refused(request(service, certificates, "d1")) == (503, "not_active")
    service.lease(EPOCH[0])
    assert request(service, certificates, "d1")[0] == 200
    service.standby()
    assert request(service, certificates, "d1") is None


def test_behind_the_fence_no_seat_is_given(service, certificates, vendor, database):
    licence = vendor.sign()
    service.install(licence)
    service.active(EPOCH[0])
    EPOCH[0] += 1
    database.raise_fence(EPOCH[0], "node-b")  # the other node took over, this one knows nothing

    def told():
        answer = refused(request(service, certificates, "d1"))
        assert answer in ((503, "not_active"), (503, "database_unavailable"))
        return answer == (503, "not_active")

    world.eventually("it knows", told)
    assert seats(database, licence_id(licence)) == 0


def test_without_the_dbms_it_says_so_and_comes_back(service, certificates, vendor, database):
    service.install(vendor.sign())
    service.active(EPOCH[0])
    first = request(service, certificates, "d1")
    assert first[0] == 200
    frozen = database.pids()
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    answer = refused(request(service, certificates, "d2"))
    again = request(service, certificates, "d1")  # a fresh lease needs no DBMS
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)
    assert answer == (503, "database_unavailable") and again == first
    database.stop()
    try:
        assert refused(request(service, certificates, "d2")) == (503, "database_unavailable")
    finally:
        database.start()
    world.eventually("leases again", lambda: request(service, certificates, "d2")[0] == 200)
    assert service.process.poll() is None
