"""Stock freshclam against redoubt-web and its nginx, with a store as redoubt-mirror lays it out: both
ways to be a client, nothing new, increments, throttled."""
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import pytest

from signature_source import BUILT, TOP, genuine

WEB = os.path.join(os.environ.get("REDOUBT_BUILD", "build"), "src/app/web/redoubt-web")
sys.path.insert(0, os.path.join(TOP, "tests/fault"))

pytestmark = pytest.mark.skipif(
    os.getuid() != 0 or not shutil.which("freshclam") or not os.path.exists("/usr/sbin/nginx"),
    reason="needs root, freshclam and nginx")


def web_tests():
    """tests/fault/test_web.py, which takes the program from its command line."""
    words, sys.argv = sys.argv, ["test_web.py", WEB]
    try:
        import test_web  # pylint: disable=import-outside-toplevel,import-error
    finally:
        sys.argv = words
    return test_web


class Server:
    """redoubt-web, active, with databases of a version and their increments."""

    def __init__(self, folder, *extra):
        self.daemon = web_tests().Daemon(str(folder), store=True, extra=extra)
        self.url = f"http://127.0.0.1:{self.daemon.port}/sig"
        self.version = 0

    def publish(self, version, chain=True):
        files = {"public/sig/test.cvd": f"test-{version}.cvd"}
        for n in range(2, version + 1) if chain else ():
            files[f"public/sig/test-{n}.cdiff"] = f"test-{n}.cdiff"
        bodies = {path: open(os.path.join(genuine(), name), "rb").read()
                  for path, name in files.items()}
        self.daemon.store.publish(bodies)
        os.utime(f"{self.daemon.store.folder}/current/public/sig/test.cvd",
                 (BUILT[version], BUILT[version]))
        if not self.version:
            self.daemon.activate()
        self.version = version


@pytest.fixture(name="server")
def _server(request):
    with tempfile.TemporaryDirectory(prefix="redoubt-freshclam-") as folder:
        os.chmod(folder, 0o755)
        server = Server(folder, *getattr(request, "param", ()))
        server.folder = folder
        yield server
        server.daemon.close()


WAYS = {"PrivateMirror": "PrivateMirror {url}\n",
        "DatabaseMirror": "DatabaseMirror {url}\nDNSDatabaseInfo no\nScriptedUpdates yes\n"}


class Client:
    def __init__(self, server, way):
        self.folder = tempfile.mkdtemp(dir=server.folder)
        self.conf = self.folder + ".conf"
        with open(self.conf, "w", encoding="ascii") as file:
            file.write(f"DatabaseDirectory {self.folder}\nDatabaseOwner root\nMaxAttempts 1\n"
                       "ExcludeDatabase main\nExcludeDatabase daily\nExcludeDatabase bytecode\n"
                       + WAYS[way].format(url=server.url))

    def run(self):
        done = subprocess.run(["freshclam", f"--config-file={self.conf}", "--update-db=test",
                               "--stdout"], capture_output=True, text=True, timeout=60,
                              check=False)
        return done.returncode, done.stdout + done.stderr

    def has(self):
        for name in ("test.cld", "test.cvd"):
            path = os.path.join(self.folder, name)
            if os.path.exists(path):
                with open(path, "rb") as file:
                    return name, int(file.read(512).split(b":")[2])
        return None


@pytest.mark.parametrize("way", WAYS)
def test_freshclam_follows_what_is_published(server, way):
    server.publish(3)
    client = Client(server, way)
    code, said = client.run()
    assert code == 0 and client.has() == ("test.cvd", 3), said
    code, said = client.run()
    assert code in (0, 1) and "up-to-date" in said, said
    server.publish(6)
    code, said = client.run()
    assert code == 0, said
    # Increments make a .cld; a private mirror is asked for whole databases.
    assert client.has() == (("test.cvd", 6) if way == "PrivateMirror" else ("test.cld", 6)), said
    code, said = client.run()
    assert code in (0, 1) and "up-to-date" in said, said


def test_a_chain_that_is_too_short_means_the_whole_database(server):
    server.publish(2)
    client = Client(server, "DatabaseMirror")
    assert client.run()[0] == 0
    server.publish(6, chain=False)
    code, said = client.run()
    assert code == 0 and client.has() == ("test.cvd", 6), said


@pytest.mark.parametrize("server", [("--sig-rate", "1")], indirect=True)
def test_a_throttled_freshclam_waits_as_long_as_it_is_told(server):
    server.publish(3)
    client = Client(server, "DatabaseMirror")
    # Somebody else at the same address asks too often, all the while.
    stop = threading.Event()

    def ask():
        while not stop.is_set():
            server.daemon.ask("/sig/test.cvd")
            time.sleep(0.005)
    other = threading.Thread(target=ask)
    other.start()
    try:
        assert web_tests().until(lambda: server.daemon.ask("/sig/test.cvd")[0] == 429)
        code, said = client.run()
    finally:
        stop.set()
        other.join()
    assert code != 0 and client.has() is None, said
    code, said = client.run()  # from now on it asks nobody until Retry-After has passed
    assert "cool-down" in said and "Trying to retrieve" not in said, said
