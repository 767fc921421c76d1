"""redoubt-mirror alone, with a real smbd and a real PostgreSQL: the test plays the node daemon."""
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time

import pytest

from device_world import BUILD, boottime_us, eventually
from test_ctl import FileServer, _world  # noqa: F401  pylint: disable=unused-import

MIRROR = os.path.join(BUILD, "src/app/mirror/redoubt-mirror")
PATIENT = 30
CONF = """[cluster]
name = demo
node = {node}
peer = {peer}
[share]
state = //127.0.0.1/state
data = //127.0.0.1/data
credentials = {dir}/smb.cred
port = {port}
[database]
conninfo = {conninfo}
[address]
mode = none
[web]
store = {store}
mirror_kib_s = {kib_s}
[log]
level = debug
"""


class Mirror:
    """redoubt-mirror of one node, and what it tells its daemon."""

    def __init__(self, store, node="node-a", kib_s=0, env=None, name="store"):
        self.world, self.node = store, node
        self.env = dict(os.environ, **(env or {}))
        self.folder = str(store.folder / node)
        os.makedirs(self.folder, exist_ok=True)
        self.store = f"{self.folder}/{name}"
        self.conf = f"{self.folder}/redoubt.conf"
        peer = {"node-a": "node-b", "node-b": "node-a"}[node]
        with open(self.conf, "w", encoding="utf-8") as file:
            file.write(CONF.format(node=node, peer=peer, dir=store.folder, kib_s=kib_s,
                                   port=store.server.port, conninfo=store.conninfo,
                                   store=self.store))
        self.page = os.memfd_create("lease", 0)
        os.ftruncate(self.page, 4096)
        self.lease(None)
        self.states, self.events = [], []
        self.start()

    def lease(self, epoch, seconds=600):
        """epoch None: this node is passive."""
        deadline = boottime_us() + seconds * 1000000 if epoch else 0
        os.pwrite(self.page, struct.pack("=IIQQ", 0x52444C50, 1, epoch or 0, deadline), 0)

    def start(self):
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.log = f"{self.folder}/log"
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [MIRROR, "--config", self.conf, "--daemon-fd", str(theirs.fileno()),
                 "--lease-fd", str(self.page)], pass_fds=(theirs.fileno(), self.page),
                stdin=subprocess.DEVNULL, stderr=log, env=self.env)
        theirs.close()
        self.states.clear()
        self.listener = threading.Thread(target=self._listen, args=(self.socket,), daemon=True)
        self.listener.start()

    def _listen(self, link):
        while True:
            try:
                packet = link.recv(8192)
            except OSError:
                return
            if not packet:
                return
            told = json.loads(packet)
            (self.events if "event" in told else self.states).append(told)

    def state(self):
        return self.states[-1] if self.states else {}

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.hang_up()

    def hang_up(self):
        """What was told until then was heard; nothing of it comes later."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.listener.join(PATIENT)
        self.socket.close()

    def stop(self):
        self.hang_up()
        self.process.wait(timeout=PATIENT)
        os.close(self.page)

    def say(self, text):
        self.socket.send(text.encode())

    def wait(self, what, check, seconds=PATIENT):
        try:
            return eventually(what, check, seconds)
        except AssertionError:
            with open(self.log, encoding="utf-8", errors="replace") as log:
                raise AssertionError(f"{what}: {self.state()}\n{log.read()[-3000:]}") from None

    def prepared(self, serial=None):
        wanted = serial or self.world.serial()
        self.wait("prepared", lambda: self.state().get("prepared")
                  and self.state()["shown"] == wanted and self.state()["missing"] == 0)

    def shown(self):
        """{path: bytes} below current."""
        found = {}
        top = os.path.realpath(f"{self.store}/current")
        for folder, _, files in os.walk(top):
            for name in files:
                path = os.path.join(folder, name)
                with open(path, "rb") as file:
                    found[os.path.relpath(path, top)] = file.read()
        return found

    def blob(self, body):
        return f"{self.store}/blob/{hashlib.sha256(body).hexdigest()}"


class Store:
    """What is published, put on the share and into the DBMS as a publisher does."""

    def __init__(self, world, folder):
        self.server, self.database = world
        self.folder = folder
        self.conninfo = self.database.conninfo()
        cred = folder / "smb.cred"
        cred.write_text("username=root\npassword=secret\n")
        cred.chmod(0o600)
        self.server.clear()
        self.share = f"{self.server.folder}/data"
        for name in ("blob", "upload"):
            os.mkdir(f"{self.share}/{name}", 0o700)
        (self.epoch,), = self.database.query("SELECT epoch + 1 FROM redoubt.fence")
        self.database.raise_fence(self.epoch)
        self.write("SELECT redoubt.publish(p.owner, '[]') FROM "
                   "(SELECT DISTINCT owner FROM redoubt.publication) p")
        self.write("DELETE FROM redoubt.blob")
        self.mirrors = []

    def write(self, text, *values):
        with contextlib.closing(self.database.connect()) as link, link.cursor() as cursor:
            cursor.execute("SELECT redoubt.announce(%s, 'test', 'node-a')", [self.epoch])
            cursor.execute(text, values or None)
            return cursor.fetchall() if cursor.description else []

    def serial(self):
        return self.database.query("SELECT serial FROM redoubt.publication_serial")[0][0]

    def put(self, body):
        digest = hashlib.sha256(body).hexdigest()
        with open(f"{self.share}/blob/{digest}", "wb") as file:
            file.write(body)
        self.write("SELECT redoubt.blob_add(%s, %s)", digest, len(body))
        return digest

    def publish(self, files, owner="custom"):
        entries = [{"path": path, "blob": self.put(body)} for path, body in files.items()]
        self.write("SELECT redoubt.publish(%s, %s::jsonb)", owner, json.dumps(entries))
        return self.serial()

    def on_share(self, body):
        return f"{self.share}/blob/{hashlib.sha256(body).hexdigest()}"

    def mirror(self, *args, **options):
        self.mirrors.append(Mirror(self, *args, **options))
        return self.mirrors[-1]


@pytest.fixture(name="store")
def _store(world, tmp_path):
    store = Store(world, tmp_path)
    yield store
    for mirror in store.mirrors:
        mirror.stop()


def read(path):
    with open(path, "rb") as file:
        return file.read()


def damage(path):
    """One bit, with size and times as they were."""
    before = os.stat(path)
    with open(path, "r+b") as file:
        first = file.read(1)[0]
        file.seek(0)
        file.write(bytes([first ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


FILES = {"public/sig/main.cvd": b"signatures" * 1000,
         "public/packages/agent/1.0/agent.deb": b"a package",
         "private/packages/agent/1.0/agent.deb": b"a package",
         "private/packages/x/2/empty": b""}


def test_everything_published_is_laid_out_and_prepared(store):
    serial = store.publish(FILES)
    mirror = store.mirror()
    mirror.prepared(serial)
    assert mirror.shown() == FILES
    told = mirror.state()
    assert (told["files"], told["bytes"]) == (4, 10009) and told["fetched_bytes"] == 10009
    (mtime,), = store.database.query(
        "SELECT extract(epoch FROM mtime)::bigint FROM redoubt.blob WHERE sha256 = %s",
        hashlib.sha256(b"a package").hexdigest())
    kept = os.stat(mirror.blob(b"a package"))
    assert kept.st_mtime == mtime and kept.st_mode & 0o777 == 0o644
    link = os.readlink(f"{mirror.store}/current/public/sig/main.cvd")
    assert link.startswith("../../../../blob/")


def test_nothing_published_is_prepared_at_once(store):
    mirror = store.mirror()
    mirror.prepared()
    assert mirror.shown() == {} and mirror.state()["files"] == 0


def test_no_more_is_published_than_a_node_can_take(store):
    blob = store.put(b"x")

    def publish(owner, count):
        return store.write(
            "SELECT redoubt.publish(%s, (SELECT coalesce(jsonb_agg(jsonb_build_object('path', "
            "'public/' || %s || '/' || i, 'blob', %s::text)), '[]') "
            "FROM generate_series(1, %s) i))", owner, owner, blob, count)
    publish("a", 10000)
    publish("b", 9999)
    publish("c", 1)
    with pytest.raises(Exception, match="Too many files are published"):
        publish("c", 2)
    publish("a", 9999)
    publish("c", 2)


def test_a_set_is_seen_whole_or_not_at_all(store):
    first = {f"public/set/{i}": b"old %d" % i for i in range(20)}
    second = {f"public/set/{i}": os.urandom(65536) for i in range(20)}
    store.publish(first)
    mirror = store.mirror(kib_s=1024)
    mirror.prepared()
    seen, stop = [], threading.Event()

    def look():
        while not stop.is_set():
            folder = os.path.realpath(f"{mirror.store}/current")
            seen.append(frozenset(read(f"{folder}/public/set/{i}") for i in range(20)))
            time.sleep(0.002)
    watcher = threading.Thread(target=look)
    watcher.start()
    serial = store.publish(second)
    unready = eventually("unprepared meanwhile",
                         lambda: any(not s["prepared"] for s in mirror.states[1:]), PATIENT)
    mirror.prepared(serial)
    stop.set()
    watcher.join()
    assert unready and set(seen) <= {frozenset(first.values()), frozenset(second.values())}
    assert mirror.shown() == second
    # Those who still read the old set may go on.
    assert os.path.exists(mirror.blob(b"old 3"))


def test_killed_in_the_middle_it_goes_on_where_it_was(store):
    large = os.urandom(12 << 20)
    store.publish({"public/large": large})
    mirror = store.mirror(kib_s=2048)
    part = mirror.blob(large).replace("/blob/", "/part/")
    mirror.wait("some of it", lambda: os.path.exists(part) and os.stat(part).st_size > 2 << 20)
    mirror.kill()
    assert not os.path.exists(f"{mirror.store}/current")
    had = os.stat(part).st_size
    mirror.start()
    mirror.prepared()
    assert next(s["fetched_bytes"] for s in mirror.states if s["fetched_bytes"]) >= had
    assert mirror.shown() == {"public/large": large}


def test_what_was_known_stays_known_without_dbms_and_share(store):
    store.publish(FILES)
    mirror = store.mirror()
    mirror.prepared()
    serial = store.serial()
    store.database.stop()
    store.server.process.send_signal(signal.SIGSTOP)
    port, store.server.port = store.server.port, 1
    try:
        mirror.wait("the DBMS is away", lambda: "database" in read(mirror.log).decode())
        assert all(s["prepared"] for s in mirror.states if s["shown"])
        mirror.kill()
        with open(mirror.conf, encoding="ascii") as file:
            text = file.read()
        with open(mirror.conf, "w", encoding="ascii") as file:
            file.write(text.replace(f"port = {port}", "port = 1"))
        mirror.start()  # not even a restart needs them
        mirror.prepared(serial)
        mirror.wait("the share is away", lambda: not mirror.state()["share_ok"]
                    and mirror.state()["share_why"])
        assert mirror.state()["prepared"] and mirror.shown() == FILES
    finally:
        store.server.port = port
        store.server.process.send_signal(signal.SIGCONT)
        store.database.start()


def test_a_damaged_file_of_the_disk_is_fetched_again(store):
    store.publish(FILES)
    mirror = store.mirror()
    mirror.prepared()
    path = mirror.blob(FILES["public/sig/main.cvd"])
    damage(path)
    mirror.say("verify")
    mirror.wait("healed", lambda: mirror.state()["healed"] == 1)
    mirror.prepared()
    assert read(path) == FILES["public/sig/main.cvd"]
    assert [e["event"] for e in mirror.events] == ["blob_damaged", "blob_healed"]
    assert mirror.events[0]["where"] == "disk"
    os.remove(path)  # and one that is gone
    mirror.say("verify")
    mirror.wait("fetched again", lambda: os.path.exists(path))


def test_a_damaged_file_of_the_share_is_healed_by_the_active_node_only(store):
    body = b"precious" * 5000
    store.publish({"public/one": body})
    active = store.mirror("node-a")
    active.prepared()
    damage(store.on_share(body))
    active.say("verify")
    active.wait("a look at everything", lambda: active.state()["scrubbed"] > 0
                and not active.state()["scrubbing"])
    assert read(store.on_share(body)) != body, "a passive node writes nothing"
    passive = store.mirror("node-b")  # finds it, and asks
    passive.wait("found", lambda: passive.state().get("damaged_now") == 1)
    assert not passive.state()["prepared"] and not os.path.exists(f"{passive.store}/current")
    active.lease(store.epoch)
    active.say("verify")
    active.wait("healed", lambda: active.state()["healed"] == 1)
    assert read(store.on_share(body)) == body
    passive.prepared()
    assert passive.state()["damaged_now"] == 0 and passive.shown() == {"public/one": body}


@pytest.mark.parametrize("left", [True, False], ids=["damaged", "missing"])
def test_the_only_good_copy_may_be_that_of_the_passive_node(store, left):
    body = b"precious" * 5000
    store.publish({"public/one": body})
    active, passive = store.mirror("node-a"), store.mirror("node-b")
    active.lease(store.epoch)
    for one in (active, passive):
        one.prepared()
    damage(active.blob(body))
    if left:
        damage(store.on_share(body))
    else:
        os.unlink(store.on_share(body))
    active.say("verify")
    active.wait("its own is healed", lambda: os.path.exists(active.blob(body))
                and read(active.blob(body)) == body)
    assert read(store.on_share(body)) == body
    for one in (active, passive):
        one.wait("no alarm", lambda: one.state()["damaged_now"] == 0)
        one.prepared()
        assert one.state()["lost"] == 0 and one.shown() == {"public/one": body}


def test_without_a_good_copy_nothing_is_overwritten(store):
    body = b"precious" * 5000
    store.publish({"public/one": body, "public/two": b"two"})
    damage(store.on_share(body))
    mirror = store.mirror()
    mirror.lease(store.epoch)
    mirror.wait("found", lambda: mirror.state().get("damaged_now") == 1)
    mirror.wait("the other file came all the same", lambda: os.path.exists(mirror.blob(b"two")))
    assert not os.path.exists(f"{mirror.store}/current"), "no set of which a file is missing"
    # Nobody has it: to wait for it would keep an operator from switching for ever.
    mirror.wait("nobody has it", lambda: mirror.state()["lost"] == 1
                and mirror.state()["prepared"])
    assert mirror.state()["missing"] == 1 and "custom" in mirror.state()["why"]
    store.publish({"public/two": b"two"})  # and what is not published any more is no trouble
    mirror.prepared()
    assert mirror.state()["damaged_now"] == 0


def test_what_cannot_be_had_keeps_nothing_else_away(store):
    """Its owner keeps what it showed before, or shows nothing; nobody else notices."""
    store.publish({"public/set/1": b"old 1", "public/set/2": b"old 2"}, "custom")
    store.publish({"public/sig/x": b"first"}, "signatures")
    mirror = store.mirror("node-b")
    mirror.prepared()
    good = b"never came whole" * 100
    bad = store.put(good)
    damage(store.on_share(good))
    for owner, entries in (("package:1", {"public/packages/1": bad}),
                           ("custom", {"public/set/1": store.put(b"new 1"),
                                       "public/set/2": bad})):
        store.write("SELECT redoubt.publish(%s, %s::jsonb)", owner, json.dumps(
            [{"path": path, "blob": blob} for path, blob in entries.items()]))
    store.publish({"public/sig/x": b"second"}, "signatures")
    shown = {"public/set/1": b"old 1", "public/set/2": b"old 2", "public/sig/x": b"second"}
    mirror.wait("the others' files", lambda: mirror.shown() == shown)
    mirror.wait("unprepared: the active node may have it",
                lambda: not mirror.state()["prepared"])
    active = store.mirror("node-a")
    active.lease(store.epoch)
    active.wait("nobody has it", lambda: active.state().get("lost") == 1
                and active.state()["prepared"])
    assert active.shown() == {"public/sig/x": b"second"}
    mirror.wait("and so the other one waits no more", lambda: mirror.state()["prepared"])
    assert mirror.state()["damaged_now"] == 1 and "custom" in mirror.state()["why"]
    mirror.kill()
    mirror.start()  # it knows what it showed
    store.publish({"public/sig/x": b"third"}, "signatures")
    shown["public/sig/x"] = b"third"
    mirror.wait("the others' files again", lambda: mirror.shown() == shown)
    os.remove(store.on_share(good))
    store.put(good)  # published again
    store.write("SELECT pg_notify('redoubt_mirror', %s)", f"healed {bad}")
    for one in (mirror, active):
        one.prepared()
        assert one.shown() == {"public/set/1": b"new 1", "public/set/2": good,
                               "public/sig/x": b"third", "public/packages/1": good}


def test_what_is_healed_while_others_are_fetched_is_had_at_once(store):
    """Not with the next try: that comes later and later."""
    bad, large = b"precious" * 100, os.urandom(4 << 20)
    digest = hashlib.sha256(bad).hexdigest()
    while hashlib.sha256(large).hexdigest() < digest:  # it is fetched behind the other one
        large = os.urandom(4 << 20)
    store.publish({"public/bad": bad})
    damage(store.on_share(bad))
    with contextlib.closing(store.database.connect()) as link, link.cursor() as cursor:
        cursor.execute("LISTEN redoubt_mirror")
        mirror = store.mirror(kib_s=1024)
        mirror.wait("four tries", lambda: link.poll() or len(link.notifies) >= 4)
    store.publish({"public/large": large}, "other")
    part = mirror.blob(large).replace("/blob/", "/part/")
    mirror.wait("the other file is on its way", lambda: os.path.exists(part))
    damage(store.on_share(bad))  # the same bit
    store.write("SELECT pg_notify('redoubt_mirror', %s)", f"healed {digest}")
    mirror.wait("the other file came", lambda: os.path.exists(mirror.blob(large)))
    mirror.wait("healed", lambda: mirror.state()["prepared"], 12)  # else 16 s
    assert mirror.shown() == {"public/bad": bad, "public/large": large}


@pytest.mark.parametrize("size", [3, 7, None], ids=["shorter", "longer", "none"])
def test_what_was_named_wrongly_keeps_nothing_else_away(store, size):
    """Whoever may publish says which blob it is, and may be wrong."""
    blob = hashlib.sha256(b"wrong").hexdigest()
    if size:
        with open(store.on_share(b"wrong"), "wb") as file:
            file.write(b"wrong")
    store.write("SELECT redoubt.blob_add(%s, %s)", blob, size or 5)
    store.write("SELECT redoubt.publish('package:1', %s::jsonb)",
                json.dumps([{"path": "public/packages/1", "blob": blob}]))
    store.publish(FILES)
    mirror = store.mirror()
    mirror.lease(store.epoch)
    mirror.wait("the others' files", lambda: mirror.shown() == FILES)
    mirror.wait("nobody has it", lambda: mirror.state()["lost"] == 1
                and mirror.state()["prepared"])
    assert "package:1" in mirror.state()["why"]


def bad_sector(path):
    """What it names in its file cannot be read (EIO), by whom it is loaded into."""
    if b"libasan" in read(MIRROR):
        pytest.skip("this sanitizer does not go with LD_PRELOAD")
    return {"LD_PRELOAD": os.path.join(BUILD, "tests/contract/libbad_sector.so"),
            "BAD_SECTOR": str(path)}


def test_a_sector_of_the_disk_that_cannot_be_read_is_damage(store, tmp_path):
    store.publish(FILES)
    mirror = store.mirror(env=bad_sector(tmp_path / "bad"))
    mirror.prepared()
    path = mirror.blob(b"a package")
    with open(path, "rb") as first:  # open, so that its inode is given to no other file
        (tmp_path / "bad").write_text(os.path.basename(path) + "\n")
        mirror.say("verify")
        mirror.wait("found", lambda: mirror.state()["damaged"] >= 1)
        (tmp_path / "bad").write_text("")
        mirror.wait("healed", lambda: mirror.state()["healed"] >= 1)
        mirror.prepared()
        assert not os.path.samestat(os.stat(path), os.fstat(first.fileno()))
    assert mirror.shown() == FILES
    assert mirror.events[0]["where"] == "disk"


def test_a_file_of_the_share_that_cannot_be_read_keeps_none_away(world, tmp_path):
    os.mkdir(tmp_path / "smbd", 0o755)
    server = FileServer(str(tmp_path / "smbd"), bad_sector(tmp_path / "bad"))
    store = Store((server, world[1]), tmp_path)
    try:
        files = {f"public/{i}": b"file %d" % i for i in range(8)}
        store.publish(files)
        # The first by digest: all others come behind it.
        first = min(files.values(), key=lambda body: hashlib.sha256(body).hexdigest())
        active = store.mirror("node-a")
        active.prepared()
        (tmp_path / "bad").write_text(f"blob/{hashlib.sha256(first).hexdigest()}\n")
        passive = store.mirror("node-b")
        passive.wait("all but one", lambda: passive.state().get("missing") == 1)
        active.lease(store.epoch)
        passive.wait("told", lambda: passive.state()["damaged"] >= 1)
        # What was set aside keeps its sector; a file that is written anew has another.
        active.wait("written anew", lambda: active.state()["damaged"] >= 1)
        (tmp_path / "bad").write_text("")
        active.wait("healed", lambda: active.state()["healed"] >= 1)
        passive.prepared()
        assert passive.shown() == files and read(store.on_share(first)) == first
    finally:
        for mirror in store.mirrors:
            mirror.stop()
        server.stop()


def test_a_list_that_climbs_changes_nothing(store):
    paths = ["public/../../etc/passwd", "/etc/passwd", "public/a\nb", "public/.hidden", "secret/x"]
    store.publish(FILES)
    mirror = store.mirror()
    mirror.prepared()
    store.database.query("ALTER TABLE redoubt.publication DROP CONSTRAINT publication_path_check")
    try:
        digest = store.put(b"evil")
        for path in paths:
            trees = sorted(os.listdir(f"{mirror.store}/tree"))
            store.write("INSERT INTO redoubt.publication VALUES (%s, %s, 'custom')", path, digest)
            store.write("UPDATE redoubt.publication_serial SET serial = serial + 1")
            store.database.query("NOTIFY redoubt, 'published'")
            mirror.wait(f"{path} is refused", lambda: mirror.state()["refused"])
            assert mirror.shown() == FILES and not os.path.exists(mirror.blob(b"evil"))
            assert sorted(os.listdir(f"{mirror.store}/tree")) == trees
            store.write("DELETE FROM redoubt.publication WHERE path = %s", path)
            store.database.query("NOTIFY redoubt, 'published'")
            mirror.wait("the good list", lambda: not mirror.state()["refused"])
            mirror.prepared()  # its tree is there, too
    finally:
        store.write("DELETE FROM redoubt.publication WHERE blob = %s", digest)
        store.database.query("ALTER TABLE redoubt.publication ADD CONSTRAINT "
                             "publication_path_check CHECK (redoubt.publication_path_ok(path))")


def test_a_character_that_is_cut_silences_nobody(store):
    """Words are cut by bytes; JSON takes whole characters only."""
    head = len(f"{store.folder}/node-a/")
    mirror = store.mirror(name="x" * ((head + 1) % 2) + "\u00e4" * 60)  # byte 100 is its half
    mirror.prepared()
    shutil.rmtree(f"{mirror.store}/tree")
    store.publish(FILES)
    mirror.wait("told", lambda: "?/tree" in mirror.state()["why"])
    os.mkdir(f"{mirror.store}/tree")
    mirror.prepared()


def test_old_sets_and_what_only_they_needed_go(store):
    store.publish({"public/a": b"old"})
    mirror = store.mirror()
    mirror.prepared()
    old = os.path.realpath(f"{mirror.store}/current")
    store.publish({"public/a": b"new"})
    mirror.prepared()
    assert os.path.exists(f"{old}/public/a"), "a download may go on"
    mirror.kill()
    os.utime(old, (0, 0))
    shutil.copy(mirror.blob(b"new"), mirror.blob(b"nobody's"))
    mirror.start()
    mirror.wait("the old set is gone", lambda: not os.path.exists(old))
    mirror.wait("and its file", lambda: not os.path.exists(mirror.blob(b"old"))
                and not os.path.exists(mirror.blob(b"nobody's")))
    assert mirror.shown() == {"public/a": b"new"}


def test_what_nothing_refers_to_leaves_the_share_after_a_day(store):
    store.publish({"public/a": b"stays"})
    old, young, orphan = b"old", b"young", b"orphan"
    for body in (old, young):
        store.put(body)
    store.write("UPDATE redoubt.blob SET added_at = now() - interval '25 hours' "
                "WHERE sha256 <> %s", hashlib.sha256(young).hexdigest())
    with open(store.on_share(orphan), "wb") as file:
        file.write(orphan)
    day_ago = time.time() - 25 * 3600
    for body in (old, young, orphan, b"stays"):
        os.utime(store.on_share(body), (day_ago, day_ago))
    passive = store.mirror("node-b")
    passive.prepared()
    assert os.path.exists(store.on_share(old))
    active = store.mirror("node-a")
    active.lease(store.epoch)
    active.wait("collected", lambda: not os.path.exists(store.on_share(old))
                and not os.path.exists(store.on_share(orphan)))
    assert os.path.exists(store.on_share(young)) and os.path.exists(store.on_share(b"stays"))
    assert store.database.query("SELECT count(*) FROM redoubt.blob")[0][0] == 2


def test_a_node_that_lost_its_lease_collects_nothing(store):
    store.put(b"old")
    store.write("UPDATE redoubt.blob SET added_at = now() - interval '25 hours'")
    store.database.raise_fence(store.epoch + 1, "node-b")
    mirror = store.mirror("node-a")
    mirror.lease(store.epoch)  # its clock stood still, say
    mirror.wait("refused", lambda: "task_failed" in read(mirror.log).decode())
    assert os.path.exists(store.on_share(b"old"))
    assert store.database.query("SELECT count(*) FROM redoubt.blob")[0][0] == 1


def test_it_ends_with_its_daemon_and_is_modest(store):
    mirror = store.mirror()
    mirror.prepared()
    pid = mirror.process.pid
    assert os.getpriority(os.PRIO_PROCESS, pid) >= 10
    with open(f"/proc/{pid}/oom_score_adj", encoding="ascii") as file:
        assert int(file.read()) == 500
    mirror.socket.shutdown(socket.SHUT_RDWR)
    assert mirror.process.wait(timeout=PATIENT) == 0


def test_wrong_usage_and_configuration_are_said(store):
    def run(*argv):
        return subprocess.run([MIRROR, *argv], capture_output=True, text=True, check=False,
                              timeout=20)
    assert run("--help").returncode == 0 and "redoubt-node starts it" in run("--help").stdout
    assert run("--nonsense").returncode == 2 and run("surplus").returncode == 2
    assert run("--daemon-fd", "x").returncode == 2
    assert run("--config", "/nonexistent").returncode == 2
    mirror = store.mirror()
    with open(mirror.conf, encoding="ascii") as file:
        text = file.read()
    with open(f"{mirror.conf}.2", "w", encoding="ascii") as file:
        file.write(text.replace("data = //127.0.0.1/data\n", ""))
    done = run("--config", f"{mirror.conf}.2")
    assert done.returncode == 1 and "there is no store" in done.stderr
