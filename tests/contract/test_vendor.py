"""redoubt-activation and the vendor's service of lab/vendor over real HTTPS, with a real PostgreSQL
and the command line: codes, answers, grace, files, whatever the vendor does or a node breaks at."""
import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid

import pytest

import device_world as world
from manager_world import Manager
from test_activation import ACTIVATION, Vendor, refused, request, verify

SERVICE = os.path.join(world.TOP, "lab/vendor/service")
CTL = os.path.join(world.BUILD, "src/app/ctl/redoubt")
TIMEOUT_MS = 3000


class Service:
    """The vendor's service as a process; its books are files."""

    def __init__(self, folder):
        self.folder, self.process, self.port = folder, None, world.free_port()
        self.codes({})

    def codes(self, codes):
        self.write("codes.json", json.dumps(codes))

    def write(self, name, text):
        path = os.path.join(self.folder, name)
        with open(path + ".new", "w", encoding="utf-8") as file:
            file.write(text)
        os.rename(path + ".new", path)

    def mode(self, mode):
        self.write("mode", mode)

    def books(self):
        try:
            with open(os.path.join(self.folder, "books.json"), encoding="utf-8") as file:
                return json.load(file)
        except FileNotFoundError:
            return {"answers": {}, "activations": [], "requests": 0}

    def activations(self, code):
        return [a for a in self.books()["activations"] if a["code"] == code]

    def answer(self, text):
        """To a request that came as a file."""
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(text)
            file.flush()
            return world.run(sys.executable, "-B", SERVICE, "--folder", self.folder, "--answer",
                             file.name)

    def start(self):
        self.process = subprocess.Popen([sys.executable, "-B", SERVICE, "--folder", self.folder,
                                         "--port", str(self.port)], stdin=subprocess.DEVNULL)
        world.eventually("the vendor listens", self.listens, 30)

    def listens(self):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None


class Installation:
    """What the tests share: DBMS, authority, vendor, and a manager that stays active."""

    def __init__(self, folder):
        self.folder = folder
        self.database = world.Postgres(folder)
        self.certificates = world.Certificates(folder)
        self.certificates.devices = {n: self.certificates.device(n) for n in ("d1", "d2", "d3")}
        self.certificates.authority("vendor-ca")
        vendor = os.path.join(folder, "vendor")
        self.keys = Vendor(vendor)
        self.certificates.sign("vendor/tls", "localhost", "DNS:localhost,IP:127.0.0.1", "serverAuth",
                               "vendor-ca")
        self.service = Service(vendor)
        self.service.start()
        self.epoch = 0
        self.manager = None

    def sections(self, vendor=True, **more):
        keys = {"listen": f"127.0.0.1:{world.free_port()}",
                "licence": os.path.join(self.folder, "no-licence.json"),
                "anchor": f"{self.keys.folder}/licence.pub", "key": f"{self.keys.folder}/lease.key",
                "certificate": self.certificates.path("server.pem"),
                "tls_key": self.certificates.path("server.key"),
                "ca": self.certificates.path("ca.pem"), "vendor_timeout_ms": TIMEOUT_MS,
                "requests_per_minute": 10000}
        if vendor:
            keys["vendor"] = (vendor if isinstance(vendor, str)
                              else f"https://127.0.0.1:{self.service.port}")
            keys["vendor_ca"] = self.certificates.path("vendor-ca.pem")
        keys.update(more)
        return keys, "[activation]\n" + "".join(f"{k}={v}\n" for k, v in keys.items())

    def start(self, **options):
        """A proxy under a new epoch; the manager goes along."""
        keys, text = self.sections(**options)
        proxy = world.Daemon(self.folder, self.database, self.certificates, program=ACTIVATION,
                             sections=text)
        proxy.listen_port = int(keys["listen"].rpartition(":")[2])
        proxy.wait_note("READY=1", 10)
        self.activate(proxy)
        return proxy

    def activate(self, proxy):
        self.epoch += 1
        self.database.raise_fence(self.epoch)
        self.manager.active(self.epoch)
        proxy.active(self.epoch)

    def fenced(self, statement, *values):
        with contextlib.closing(self.database.connect()) as link, link.cursor() as cursor:
            cursor.execute("SELECT redoubt.announce(%s)", (self.epoch,))
            cursor.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def ctl(self, *words, code=0, stdin=None):
        done = subprocess.run([CTL, "--config", self.manager.conf, *words], capture_output=True,
                              text=True, check=False, input=stdin)
        assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        return done.stdout if code == 0 else done.stdout + done.stderr

    def licence(self, id_):
        return next(i for i in json.loads(self.ctl("licence", "list", "--json"))["items"]
                    if i["id"] == id_)

    def add(self, code):
        return json.loads(self.ctl("licence", "add", code, "--json"))["id"]

    def wait_state(self, id_, state):
        world.eventually(f"{state}: {self.licence(id_)}",
                         lambda: self.licence(id_)["state"] == state, 30)

    def ask_now(self):
        """As if the time of the next attempt had come."""
        self.fenced("UPDATE redoubt.licence SET next_try_at = now() WHERE next_try_at > now();"
                    "SELECT redoubt.licences_changed()")

    def asked_until(self, what, check):
        """Asks again and again: to a request that is under way it makes no difference."""
        world.eventually(what, lambda: (self.ask_now(), check())[1], 30)

    def events(self, kind):
        return [row[0] for row in self.database.query(
            "SELECT data FROM redoubt.event WHERE kind = %s ORDER BY id", kind)]

    def clean(self):
        self.fenced("DELETE FROM redoubt.licence; DELETE FROM redoubt.licence_code;"
                    "DELETE FROM redoubt.seat;"
                    "UPDATE redoubt.licensing SET t_max = 'epoch', clock = 'ok', state = 'none';"
                    "SELECT redoubt.licences_changed()")


@pytest.fixture(scope="module", name="place")
def _place():
    with tempfile.TemporaryDirectory(prefix="redoubt-vendor-") as folder:
        os.chmod(folder, 0o755)  # PostgreSQL runs as another user
        found = Installation(folder)
        found.manager = Manager(folder, found.database, found.certificates, found.sections()[1])
        found.manager.wait_note("READY=1", 10)
        yield found
        found.manager.stop()
        found.service.stop()
        found.database.stop()


@pytest.fixture(name="proxy")
def _proxy(place):
    daemon = place.start()
    yield daemon
    place.clean()
    place.service.mode("ok")
    daemon.stop()
    assert daemon.process.returncode == 0, daemon.log_text()[-3000:]
    assert "vendor.key" not in daemon.log_text()


def lease(place, proxy, name):
    status, envelope = request(proxy, place.certificates, name)
    assert status == 200, envelope
    return verify(envelope, f"{place.keys.folder}/lease.key")


def test_a_code_is_activated_once_and_devices_get_leases(place, proxy):
    place.service.codes({"CODE-ONE-0001": {"seats": 7, "features": ["x"]}})
    assert refused(request(proxy, place.certificates, "d1")) == (403, "no_licence")
    entry = place.add("CODE-ONE-0001")
    place.wait_state(entry, "valid")
    assert place.add("CODE-ONE-0001") == entry  # the same once more changes nothing
    told = place.licence(entry)
    assert (told["code"], told["seats"], told["features"]) == ("...0001", 7, ["x"])
    world.eventually("leases", lambda: request(proxy, place.certificates, "d1")[0] == 200)
    one = lease(place, proxy, "d1")
    assert (one["licence"], one["seats"]) == (told["licence"], 7)
    assert len(place.service.activations("CODE-ONE-0001")) == 1
    states = [e["state"] for e in place.events("licence_state") if e["id"] == entry]
    assert states == ["pending", "valid"]
    assert "CODE-ONE-0001" not in proxy.log_text()
    assert place.ctl("licence", "seats").count(place.certificates.devices["d1"]) == 1


def test_a_vendor_that_misbehaves_is_not_believed_and_asked_again(place, proxy):
    place.service.codes({"CODE-BAD-0001": {"seats": 5}})
    place.service.mode("nonsense")
    entry = place.add("CODE-BAD-0001")
    # "slow" and "never" end with the same words, so other ones lie between them.
    for mode, why in (("slow", "imed out"), ("nonsense", "it is not"), ("forged", "signature"),
                      ("refuse", "HTTP 403"), ("busy", "HTTP 503"), ("never", "imed out")):
        place.service.mode(mode)
        place.asked_until(mode, lambda: why in place.licence(entry)["error"])
        assert place.licence(entry)["state"] == "pending", mode
        assert refused(request(proxy, place.certificates, "d1")) == (503, "pending"), mode
    (nonce,), = place.database.query("SELECT nonce FROM redoubt.licence")
    place.service.stop()
    place.asked_until("it is away",
                      lambda: "connect" in place.licence(entry)["error"].lower())
    place.service.mode("ok")
    place.service.start()
    place.asked_until("valid", lambda: place.licence(entry)["state"] == "valid")
    # Every attempt was the same request.
    assert [a["nonce"] for a in place.service.activations("CODE-BAD-0001")] == [nonce]


class Proxy:
    """An HTTP proxy that knows CONNECT only, and counts."""

    def __init__(self):
        self.asked = []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                link, _ = self.socket.accept()
                threading.Thread(target=self._tunnel, args=(link,), daemon=True).start()

    def _tunnel(self, link):
        head = b""
        while b"\r\n\r\n" not in head:
            more = link.recv(4096)
            if not more:
                return
            head += more
        verb, target, _ = head.split(b" ", 2)
        self.asked.append((verb.decode(), target.decode()))
        host, port = target.decode().rsplit(":", 1)
        with link, socket.create_connection((host, int(port))) as other:
            link.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
            with contextlib.suppress(OSError), selectors.DefaultSelector() as both:
                both.register(link, selectors.EVENT_READ, other)
                both.register(other, selectors.EVENT_READ, link)
                while True:
                    for key, _ in both.select():
                        data = key.fileobj.recv(65536)
                        if not data:
                            return
                        key.data.sendall(data)


def test_the_vendor_is_asked_through_a_proxy(place):
    proxy = Proxy()
    place.service.codes({"CODE-WAY-0001": {}})
    service = place.start(vendor_proxy=f"http://127.0.0.1:{proxy.port}")
    place.wait_state(place.add("CODE-WAY-0001"), "valid")
    assert set(proxy.asked) == {("CONNECT", f"127.0.0.1:{place.service.port}")}
    proxy.socket.close()
    place.clean()
    service.stop()


def test_a_service_that_is_not_the_vendors_is_not_asked(place):
    place.service.codes({"CODE-MIM-0001": {}})
    asked = place.service.books()["requests"]
    service = place.start(vendor_ca=place.certificates.path("ca.pem"))  # not its authority
    entry = place.add("CODE-MIM-0001")
    world.eventually("refused", lambda: "certificate" in place.licence(entry)["error"], 30)
    assert place.service.books()["requests"] == asked
    place.clean()
    service.stop()


def test_name_servers_that_do_not_answer_hold_nobody_up(place, monkeypatch):
    with open(ACTIVATION, "rb") as file:
        if b"libasan" in file.read():
            pytest.skip("this sanitizer does not go with LD_PRELOAD")
    preload = [os.environ.get("LD_PRELOAD", ""),
               os.path.join(world.BUILD, "tests/contract/libslow_names.so")]
    monkeypatch.setenv("LD_PRELOAD", ":".join(p for p in preload if p))
    monkeypatch.setenv("SLOW_NAMES_S", "20")
    service = place.start(vendor="https://vendor.invalid:8443", vendor_timeout_ms=3000)
    entry = place.add("CODE-DNS-0001")
    longest, end = 0.0, time.monotonic() + 30
    while "timed out" not in place.licence(entry)["error"]:
        assert time.monotonic() < end, place.licence(entry)
        began = time.monotonic()
        assert request(service, place.certificates, None, "GET", "/v1/health",
                       timeout=30)[0] == 200
        longest = max(longest, time.monotonic() - began)
    assert longest < 10  # of 17 seconds that the lookup takes longer than the vendor may
    service.standby()
    place.ask_now()
    place.activate(service)
    world.eventually("it asks", lambda: "vendor=asking" in service.status(), 30)
    service.standby()  # at once, too
    place.clean()
    service.stop()


def test_what_the_vendor_refuses_is_told_and_can_be_tried_again(place, proxy):
    place.service.codes({})
    entry = place.add("CODE-NEW-0001")
    place.wait_state(entry, "refused")
    assert "not known" in place.licence(entry)["error"]
    assert refused(request(proxy, place.certificates, "d1")) == (403, "refused")
    place.service.codes({"CODE-NEW-0001": {"seats": 5}})
    assert place.add("CODE-NEW-0001") == entry
    place.wait_state(entry, "valid")
    place.service.codes({"CODE-NEW-0001": {"revoked": True}})
    place.asked_until("refused", lambda: place.licence(entry)["state"] == "refused")
    assert refused(request(proxy, place.certificates, "d1")) == (403, "refused")


def test_a_licence_of_another_cluster_gives_no_lease(place, proxy):
    place.service.codes({"CODE-FAR-0001": {"cluster": "elsewhere"}})
    place.wait_state(place.add("CODE-FAR-0001"), "other_cluster")
    world.eventually("refused", lambda: request(proxy, place.certificates, "d1")[0] == 403)
    assert refused(request(proxy, place.certificates, "d1")) == (403, "other_cluster")


def test_an_answer_is_renewed_early_and_served_within_its_grace(place, proxy):
    codes = {"CODE-OLD-0001": {"valid_s": 4, "grace_s": 3600}}
    place.service.codes(codes)
    entry = place.add("CODE-OLD-0001")
    place.wait_state(entry, "valid")
    first = place.licence(entry)["valid_until"]
    world.eventually("renewed", lambda: place.licence(entry)["valid_until"] > first, 30)
    place.wait_state(entry, "valid")
    place.service.stop()
    place.wait_state(entry, "grace")
    place.fenced("SELECT redoubt.licences_changed()")  # or it is noticed ten seconds later
    lease(place, proxy, "d1")
    lease(place, proxy, "d2")  # a new seat, too
    world.eventually("it says so", lambda: "licence=grace" in proxy.status())
    # The grace is over (by the clocks), then the vendor is back.
    place.fenced("UPDATE redoubt.licence SET stale_until = now() - interval '2 s';"
                 "SELECT redoubt.licences_changed()")
    place.wait_state(entry, "stale")
    world.eventually("refused", lambda: request(proxy, place.certificates, "d3")[0] == 403)
    assert refused(request(proxy, place.certificates, "d3")) == (403, "stale")
    place.service.start()
    place.asked_until("valid", lambda: place.licence(entry)["state"] == "valid")
    assert len(place.service.activations("CODE-OLD-0001")) == 1


def test_numbers_for_monitoring(place, tmp_path):
    proxy = place.start()
    world.eventually("no licence", lambda: proxy.metrics().get("licence_seats") == 0)
    assert not any(proxy.metrics().values())
    assert "licence_remaining_seconds" not in proxy.metrics()
    long, short = 30 * 86400, 4 * 86400
    place.service.codes({"CODE-NUM-0001": {"seats": 7, "valid_s": 3600, "grace_s": short}})
    before = int(time.time())
    entry = place.add("CODE-NUM-0001")
    place.wait_state(entry, "valid")
    place.wait_state(place.add("CODE-NOT-KNOWN"), "refused")
    licence = tmp_path / "one.json"
    licence.write_text(place.keys.sign(seats=5, lasts_s=long))
    place.ctl("licence", "import", str(licence))
    lease(place, proxy, "d1")
    place.fenced("SELECT redoubt.licences_changed()")  # or it is noticed ten seconds later
    world.eventually("a seat", lambda: proxy.metrics()["licence_seats_taken"] == 1)
    told = proxy.metrics()
    assert {n: v for n, v in told.items() if n.startswith("licences:") and v} == {
        "licences:valid": 2, "licences:refused": 1}
    assert told["licence_seats"] == 12
    assert long - 3660 < told["licence_remaining_seconds"] <= long - 3600  # begins an hour ago
    assert short + 3540 < told["licence_answer_remaining_seconds"] <= short + 3600
    assert before - 1 <= told["licence_answer_timestamp_seconds"] <= time.time() + 1
    place.service.stop()
    place.fenced("UPDATE redoubt.licence SET valid_until = now() - interval '2 s'"
                 " WHERE source = 'code'; SELECT redoubt.licences_changed()")
    world.eventually("grace", lambda: proxy.metrics()["licences:grace"] == 1)
    assert proxy.metrics()["licence_seats"] == 12  # it still counts
    place.service.start()
    proxy.standby()
    world.eventually("the active node tells them", lambda: proxy.metrics() == {})
    place.clean()
    proxy.stop()


def test_a_node_that_breaks_while_it_asks_activates_nothing_twice(place):
    place.service.codes({"CODE-HA-0001": {"seats": 5}, "CODE-HA-0002": {"seats": 5}})
    for code, mode in (("CODE-HA-0001", "slow"), ("CODE-HA-0002", "never")):
        place.service.mode(mode)
        asked = place.service.books()["requests"]
        first = place.start(vendor_timeout_ms=60000)
        entry = place.add(code)
        world.eventually("it asks", lambda p=first: "vendor=asking" in p.status())
        if mode == "slow":  # the answer is in the books, and on its way
            world.eventually("asked", lambda n=asked: place.service.books()["requests"] > n)
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
        place.service.mode("ok")
        second = place.start()
        place.wait_state(entry, "valid")
        assert len(place.service.activations(code)) == 1
        first.stop()
        second.stop()
    place.clean()


def test_a_code_that_was_removed_and_comes_back_is_activated_once(place, proxy):
    assert proxy.process.poll() is None
    code = "CODE-TWO-0001"
    place.service.codes({code: {"seats": 5}})
    place.service.mode("slow")  # the vendor has it in the books, and the answer does not come
    entry = place.add(code)
    world.eventually("asked", lambda: place.service.activations(code), 30)
    place.ctl("licence", "remove", entry[:8], "--yes")
    place.service.mode("ok")
    entry = place.add(code)
    place.wait_state(entry, "valid")
    place.ctl("licence", "remove", entry[:8], "--yes")  # after the answer there is no nonce
    entry = place.add(code)
    place.wait_state(entry, "valid")
    assert len(place.service.activations(code)) == 1
    # One that the vendor refuses is forgotten, and may be activated anew.
    place.service.codes({})
    place.asked_until("refused", lambda: place.licence(entry)["state"] == "refused")
    place.ctl("licence", "remove", entry[:8], "--yes")
    place.service.codes({code: {"seats": 5, "max": 2}})
    place.wait_state(place.add(code), "valid")
    assert len(place.service.activations(code)) == 2


def test_without_a_way_to_the_vendor_files_are_carried(place, tmp_path):
    place.service.codes({"CODE-OFF-0001": {"seats": 3}})
    proxy = place.start(vendor=False)
    world.eventually("the lease key is known", lambda: place.database.query(
        "SELECT lease_key <> '' FROM redoubt.licensing")[0][0])
    entry = place.add("CODE-OFF-0001")
    asked = place.ctl("licence", "request")
    assert json.loads(asked)["code"] == "CODE-OFF-0001"
    answer = tmp_path / "answer.json"
    answer.write_text(place.service.answer(asked))
    forged = tmp_path / "forged.json"
    forged.write_text(answer.read_text().replace("grace_s", "grace_z"))
    assert "signature" in place.ctl("licence", "import", str(forged), code=1)
    place.ctl("licence", "import", str(answer))
    assert place.licence(entry)["state"] == "valid"
    (kept,), = place.database.query("SELECT after FROM redoubt.audit WHERE object = %s"
                                    " AND action = 'licence_import'", entry)
    assert kept["state"] == "ok" and not {"code", "nonce"} & set(kept)
    world.eventually("leases", lambda: request(proxy, place.certificates, "d1")[0] == 200)
    assert "imported before" in place.ctl("licence", "import", str(answer), code=6)
    again = json.loads(place.ctl("licence", "request", entry[:8]))
    assert again["purpose"] == "refresh" and again["nonce"] != json.loads(asked)["nonce"]
    place.ctl("licence", "remove", entry[:8], "--yes")
    assert refused(request(proxy, place.certificates, "d2"))[0] == 403
    place.clean()
    proxy.stop()


def test_an_old_copy_of_a_licence_is_not_imported(place, proxy, tmp_path):
    assert proxy.process.poll() is None
    path, id_ = tmp_path / "licence.json", str(uuid.uuid4())
    for serial, code in ((2, 0), (1, 6), (2, 0), (3, 0)):
        path.write_text(place.keys.sign(id=id_, serial=serial, seats=10 + serial))
        told = place.ctl("licence", "import", str(path), code=code)
        assert code == 0 or "older copy" in told
    assert [i["seats"] for i in json.loads(place.ctl("licence", "list", "--json"))["items"]] == [13]


# --- seats -----------------------------------------------------------------------------------


def test_seats_are_told_at_90_100_and_110_per_cent_once_each(place, proxy, tmp_path):
    path = tmp_path / "licence.json"
    path.write_text(place.keys.sign(seats=20))
    place.ctl("licence", "import", str(path))
    licence = json.loads(json.loads(path.read_text())["document"])["licence"]
    usable = json.dumps([{"licence": licence, "seats": 20, "limit": 22,
                          "until": int(time.time()) + 86400}])

    def take(numbers):
        asked = json.dumps([{"device": str(uuid.UUID(int=n)), "key": "k", "serial": "1"}
                            for n in numbers])
        return [row[0] for row in place.fenced(
            "SELECT outcome FROM redoubt.take_seats(%s, %s, 86400, 3600, now())", asked, usable)]

    def told():
        return [len(place.events(f"licence_seats_{n}")) for n in (90, 100, 110)]

    assert take(range(1, 18)) == ["taken"] * 17 and told() == [0, 0, 0]
    assert take([18]) == ["taken"] and told() == [1, 0, 0]
    assert take([19, 19, 20]) == ["taken", "kept", "taken"] and told() == [1, 1, 0]
    assert take([21, 22, 23, 24]) == ["taken", "taken", "full", "full"] and told() == [1, 1, 1]
    assert take([5, 22, 23]) == ["kept", "kept", "full"] and told() == [1, 1, 1]
    assert refused(request(proxy, place.certificates, "d1")) == (409, "seats_full")
    place.fenced("UPDATE redoubt.seat SET expires_at = now() WHERE device > %s;"
                 "UPDATE redoubt.licensing SET upkeep_at = 'epoch'", str(uuid.UUID(int=10)))
    place.fenced("SELECT redoubt.licences_upkeep()")
    assert place.events("licence_seats_reclaimed")[-1] == {"seats": 12}
    assert take(range(11, 20)) == ["taken"] * 9 and told() == [2, 1, 1]  # crossed again


def test_a_lease_is_bound_to_the_key_of_the_device(place, proxy, tmp_path):
    path = tmp_path / "licence.json"
    path.write_text(place.keys.sign(seats=5))
    place.ctl("licence", "import", str(path))
    first = lease(place, proxy, "d1")
    der = subprocess.run(["sh", "-c", f"openssl x509 -in {place.certificates.path('d1.pem')} "
                          "-noout -pubkey | openssl pkey -pubin -outform DER | sha256sum"],
                         check=True, capture_output=True, text=True).stdout.split()[0]
    assert first["device_key"] == der
    assert lease(place, proxy, "d1") == first  # fresh: the same one
    device = place.certificates.devices["d1"]
    place.certificates.sign("d1new", "d1", f"URI:urn:uuid:{device}", "clientAuth")
    place.certificates.devices["d1new"] = device
    second = lease(place, proxy, "d1new")  # another key: another lease, the same seat
    assert second["device_key"] != der
    assert place.database.query("SELECT count(*) FROM redoubt.seat WHERE device = %s::uuid",
                                device) == [(1,)]


def test_a_revoked_device_loses_its_seat_and_gets_none(place, proxy, tmp_path):
    path = tmp_path / "licence.json"
    path.write_text(place.keys.sign(seats=5))
    place.ctl("licence", "import", str(path))
    device = place.certificates.devices["d3"]
    place.fenced("SELECT redoubt.device_store(%s)", json.dumps([{"device": device, "name": "d3"}]))
    lease(place, proxy, "d3")
    place.ctl("device", "revoke", "d3", "--yes")
    assert device not in place.ctl("licence", "seats")
    world.eventually("refused", lambda: request(proxy, place.certificates, "d3")[0] == 403)
    assert refused(request(proxy, place.certificates, "d3")) == (403, "revoked")


def test_a_revoked_certificate_gets_no_lease_out_of_memory(place, proxy, tmp_path):
    path = tmp_path / "licence.json"
    path.write_text(place.keys.sign(seats=5))
    place.ctl("licence", "import", str(path))
    device = str(uuid.uuid4())
    place.certificates.sign("cut", "cut", f"URI:urn:uuid:{device}", "clientAuth")
    place.certificates.devices["cut"] = device
    serial = subprocess.run(["openssl", "x509", "-noout", "-serial", "-in",
                             place.certificates.path("cut.pem")], check=True,
                            capture_output=True, text=True).stdout.strip().split("=")[1].lower()
    place.fenced("SELECT redoubt.device_store(%s)",
                 json.dumps([{"device": device, "name": "cut"}]))
    place.fenced("INSERT INTO redoubt.certificate (serial, device_id, not_after)"
                 " VALUES (%s, %s, now() + interval '1 day')", serial.lstrip("0"), device)
    lease(place, proxy, "cut")
    place.fenced("SELECT redoubt.api_device_revoke(%s, %s, '{}', %s)",
                 json.dumps({"kind": "local", "name": "root", "role": "administrator",
                             "scope": None}),
                 json.dumps({"id": device}), json.dumps({"serial": serial.lstrip("0")}))
    world.eventually("refused", lambda: request(proxy, place.certificates, "cut")[0] == 403)
    assert refused(request(proxy, place.certificates, "cut")) == (403, "revoked")


def test_a_licence_counts_from_the_moment_it_is_there(place, proxy, tmp_path):
    path = tmp_path / "licence.json"
    path.write_text(place.keys.sign(seats=5))
    place.ctl("licence", "import", str(path))
    place.fenced("UPDATE redoubt.licence SET refused = 'so'; SELECT redoubt.licences_changed()")
    world.eventually("it is known", lambda: request(proxy, place.certificates, "d1")[0] == 403)
    place.fenced("UPDATE redoubt.licence SET refused = NULL")  # the notification is still on its way
    assert request(proxy, place.certificates, "d1")[0] == 200


def test_one_device_that_asks_all_the_time_is_held_back(place, tmp_path):
    proxy = place.start(requests_per_minute=30)
    path = tmp_path / "licence.json"
    path.write_text(place.keys.sign(seats=5))
    place.ctl("licence", "import", str(path))
    answers = [request(proxy, place.certificates, "d1", body="{}") for _ in range(60)]
    assert [a[0] for a in answers] == [200] * 60
    while answers[-1][0] == 200 and len(answers) < 200:  # a slow machine: more are allowed meanwhile
        answers.append(request(proxy, place.certificates, "d1", body="{}"))
    assert refused(answers[-1]) == (429, "too_often")
    assert request(proxy, place.certificates, "d2")[0] == 200
    world.eventually("it is told", lambda: place.events("licence_flood"))
    assert len(place.events("licence_flood")) == 1
    place.clean()
    proxy.stop()


def test_a_clock_that_was_set_back_is_told_and_takes_nothing_away(place, proxy, tmp_path):
    path = tmp_path / "licence.json"
    path.write_text(place.keys.sign(seats=5))
    place.ctl("licence", "import", str(path))
    mine = lease(place, proxy, "d1")
    # For the cluster it was two days later once: as if both clocks had been set back now.
    place.fenced("UPDATE redoubt.licensing SET t_max = now() + interval '2 days';"
                 "SELECT redoubt.licences_changed()")
    world.eventually("it says so", lambda: "clock=suspect" in proxy.status(), 30)
    assert [e["state"] for e in place.events("licence_clock")][-1] == "suspect"
    assert lease(place, proxy, "d1") == mine
    assert refused(request(proxy, place.certificates, "d2")) == (503, "clock_suspect")
    assert "hours behind" in place.ctl("licence", "list")
    place.fenced("UPDATE redoubt.licensing SET t_max = now(); SELECT redoubt.licences_changed()")
    world.eventually("it is over", lambda: request(proxy, place.certificates, "d2")[0] == 200, 30)
    assert [e["state"] for e in place.events("licence_clock")][-2:] == ["suspect", "ok"]


def test_one_clock_that_runs_ahead_burns_no_licence(place, proxy):
    assert proxy.process.poll() is None
    place.fenced("SELECT FROM redoubt.licence_clock(now() + interval '400 days')")
    (late, now), = place.database.query("SELECT t_max > now() + interval '1 hour',"
                                        " redoubt.licence_now() - now() FROM redoubt.licensing")
    assert not late and abs(now.total_seconds()) < 60
    (t, suspect), = place.fenced("SELECT * FROM redoubt.licence_clock(now() - interval '2 days')")
    assert suspect and abs(t.timestamp() - time.time()) < 600
    place.fenced("SELECT FROM redoubt.licence_clock(now())")


def test_a_clock_of_the_vendors_that_is_ahead_ends_nothing(place, proxy, tmp_path):
    path = tmp_path / "licence.json"
    path.write_text(place.keys.sign(seats=5))
    place.ctl("licence", "import", str(path))
    world.eventually("leases", lambda: request(proxy, place.certificates, "d1")[0] == 200)
    place.service.codes({"CODE-SOON-001": {"ahead_s": 400 * 86400},
                         "CODE-SOON-002": {"ahead_s": 20 * 3600}})
    first = place.add("CODE-SOON-001")
    world.eventually("answered", lambda: place.licence(first)["fetched_at"], 30)
    assert place.events("licence_vendor_clock")
    (late, soon), = place.database.query(
        "SELECT k.t_max > now() + interval '1 hour', l.next_try_at < now() + interval '7 days'"
        " FROM redoubt.licensing k, redoubt.licence l WHERE l.id = %s::uuid", first)
    assert not late and soon  # nor is the vendor asked a year later only
    told = len(place.events("licence_vendor_clock"))
    second = place.add("CODE-SOON-002")  # within a day it is believed
    world.eventually("answered", lambda: place.licence(second)["fetched_at"], 30)
    assert place.database.query("SELECT t_max > now() + interval '19 hours', clock"
                                " FROM redoubt.licensing") == [(True, "ok")]
    place.fenced("UPDATE redoubt.licensing SET upkeep_at = 'epoch';"
                 "SELECT redoubt.licences_upkeep()")
    assert place.database.query("SELECT count(*) FROM redoubt.seat") == [(1,)]
    assert len(place.events("licence_vendor_clock")) == told
    lease(place, proxy, "d2")
