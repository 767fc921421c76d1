"""The surroundings of redoubt-server and redoubt-agent, real and small: a PostgreSQL
instance, certificates, a node daemon that only tells roles, and a device of our own."""
import base64
import contextlib
import ctypes
import glob
import hashlib
import json
import os
import pwd
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import tempfile
import threading
import time
import uuid

import psycopg2

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ.get("REDOUBT_BUILD", os.path.join(TOP, "build"))
SERVER = os.path.join(BUILD, "src/app/server/redoubt-server")
AGENT = os.path.join(BUILD, "src/app/agent/redoubt-agent")
NODE = "node-a"


HELD = []


def free_port():
    """A port that is this test's to its end: bound and not listened on, it is given to nobody
    else, nor to a connection for its own end; a server that sets SO_REUSEADDR may bind it."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    HELD.append(held)
    return held.getsockname()[1]


def eventually(what, check, seconds=20.0):
    """Waits until check() is true; fails with `what` otherwise."""
    end = time.monotonic() + seconds
    while True:
        value = check()
        if value:
            return value
        assert time.monotonic() < end, f"did not happen in {seconds} s: {what}"
        time.sleep(0.02)


def run(*argv, **kwargs):
    done = subprocess.run(argv, capture_output=True, text=True, check=False,
                          stdin=subprocess.DEVNULL, **kwargs)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout


class Postgres:
    """One instance in a folder of its own, with the migrations of db/ applied."""

    def __init__(self, folder):
        self.bin = sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1]
        self.folder = os.path.join(folder, "pg")
        self.port = free_port()
        os.mkdir(self.folder)
        self.user = None
        if os.getuid() == 0:
            self.user = "postgres"
            shutil.chown(self.folder, self.user)
        self._as("initdb", "-D", self.folder, "-A", "trust", "-U", "postgres", "--no-sync")
        self.start()
        self.admin("CREATE ROLE redoubt LOGIN")
        self.admin("CREATE DATABASE redoubt OWNER redoubt")
        for path in sorted(glob.glob(os.path.join(TOP, "db", "0*.sql"))):
            with open(path, encoding="utf-8") as file:
                self.query(file.read() + ";SELECT 1")  # of comments only: refused by psycopg2

    def _as(self, program, *argv):
        command = [os.path.join(self.bin, program), *argv]
        if self.user:
            command = ["runuser", "-u", self.user, "--", *command]
        run(*command, cwd="/")

    def start(self):
        self._as("pg_ctl", "-D", self.folder, "-w", "-s", "-l", f"{self.folder}/log", "-o",
                 f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self.folder} -c fsync=off",
                 "start")

    def stop(self):
        self._as("pg_ctl", "-D", self.folder, "-w", "-s", "-m", "immediate", "stop")

    def pids(self):
        """The postmaster and its children."""
        with open(f"{self.folder}/postmaster.pid", encoding="ascii") as file:
            first = int(file.readline())
        found = [first]
        for path in glob.glob(f"/proc/{first}/task/*/children"):
            with open(path, encoding="ascii") as file:
                found += [int(n) for n in file.read().split()]
        return found

    def connect(self, user="redoubt", database="redoubt"):
        link = psycopg2.connect(host="127.0.0.1", port=self.port, user=user, dbname=database)
        link.autocommit = True
        return link

    def query(self, text, *values, user="redoubt"):
        with contextlib.closing(self.connect(user)) as link, link.cursor() as cursor:
            cursor.execute(text, values or None)
            return cursor.fetchall() if cursor.description else []

    def admin(self, text):
        with contextlib.closing(self.connect("postgres", "postgres")) as link:
            link.cursor().execute(text)

    def raise_fence(self, epoch, node=NODE):
        (ok, why), = self.query(
            "SELECT ok, why FROM redoubt.raise_fence(%s::bigint, %s)", epoch, node)
        assert ok, why

    def conninfo(self):
        return f"host=127.0.0.1 port={self.port} dbname=redoubt user=redoubt"


class Certificates:
    def __init__(self, folder):
        self.folder = folder
        self.authority("ca")
        self.sign("server", "redoubt", "DNS:redoubt,IP:127.0.0.1", "serverAuth")

    def path(self, name):
        return os.path.join(self.folder, name)

    def authority(self, name):
        run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
            "ec_paramgen_curve:P-256", "-nodes", "-keyout", self.path(name + ".key"), "-out",
            self.path(name + ".pem"), "-days", "2", "-subj", f"/CN={name}", "-addext",
            "basicConstraints=critical,CA:true")

    def sign(self, name, subject, alternative, usage, ca="ca"):
        more = ["-addext", f"subjectAltName={alternative}"] if alternative else []
        run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
            "ec_paramgen_curve:P-256", "-nodes", "-CA", self.path(ca + ".pem"), "-CAkey",
            self.path(ca + ".key"), "-keyout", self.path(name + ".key"), "-out",
            self.path(name + ".pem"), "-days", "2", "-subj", f"/CN={subject}", *more,
            "-addext", f"extendedKeyUsage={usage}", "-addext", "basicConstraints=CA:false")

    def device(self, name, ca="ca"):
        identity = str(uuid.uuid4())
        self.sign(name, name, f"URI:urn:uuid:{identity}", "clientAuth", ca)
        return identity


def boottime_us():
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * 1e6)


class Daemon:
    """Starts a service as the node daemon does, and tells it its role."""

    def __init__(self, folder, database, certificates, watchdog_us=0, program=SERVER,
                 sections="", cluster="", server="api_listen=\n", arguments=None):
        if arguments is None:  # one worker, without the master
            arguments = ["--worker"] if program == SERVER else []
        self.folder = tempfile.mkdtemp(dir=folder)
        self.port = free_port()
        self.conf = os.path.join(self.folder, "redoubt.conf")
        with open(self.conf, "w", encoding="utf-8") as file:
            file.write(f"""[cluster]
name=test
node={NODE}
peer=node-b
{cluster}[share]
state=//fileserver/state
[database]
conninfo={database.conninfo()}
[address]
mode=none
[server]
listen=127.0.0.1:{self.port}
certificate={certificates.path('server.pem')}
key={certificates.path('server.key')}
ca={certificates.path('ca.pem')}
{server}[log]
level=debug
{sections}""")
        self.log = open(os.path.join(self.folder, "log"), "wb")
        self.notes = []
        self.said = threading.Condition()
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        path = os.path.join(self.folder, "notify")
        self.notify.bind(path)
        threading.Thread(target=self._listen, daemon=True).start()
        role_read, self.role = os.pipe()
        self.page = os.memfd_create("lease", 0)
        os.ftruncate(self.page, 4096)
        os.pwrite(self.page, struct.pack("=IIQQ", 0x52444C50, 1, 0, 0), 0)
        env = dict(os.environ, NOTIFY_SOCKET=path, REDOUBT_ROLE_FD=str(role_read),
                   REDOUBT_LEASE_FD=str(self.page), REDOUBT_SERVICE="server",
                   REDOUBT_NODE=NODE, REDOUBT_CONF=self.conf)
        if watchdog_us:
            env["WATCHDOG_USEC"] = str(watchdog_us)
        self.process = subprocess.Popen([program, *arguments], env=env, stderr=self.log,
                                        stdin=subprocess.DEVNULL,
                                        pass_fds=(role_read, self.page))
        os.close(role_read)

    def _listen(self):
        with contextlib.suppress(OSError):
            while True:
                text = self.notify.recv(4096).decode()
                with self.said:
                    self.notes.append(text)
                    self.said.notify_all()

    def wait_note(self, text, seconds=20.0):
        with self.said:
            assert self.said.wait_for(lambda: text in self.notes, seconds), (
                f"no {text!r} in {self.notes[-5:]}\n{self.log_text()}")

    def status(self):
        with self.said:
            told = [n[7:] for n in self.notes if n.startswith("STATUS=")]
        return told[-1] if told else ""

    def metrics(self):
        """What it told last for the node's /metrics: {name or name:state: number}."""
        with self.said:
            told = [n[16:] for n in self.notes if n.startswith("REDOUBT_METRICS=")]
        pairs = (pair.split("=") for pair in (told[-1] if told else "").split())
        return {name: int(number) for name, number in pairs}

    def lease(self, epoch, seconds=600.0):
        deadline = boottime_us() + int(seconds * 1e6) if seconds else 0
        os.pwrite(self.page, struct.pack("=QQ", epoch, deadline), 8)

    def active(self, epoch):
        self.lease(epoch)
        os.write(self.role, f"active {epoch}\n".encode())
        self.wait_note(f"REDOUBT_ROLE=active {epoch}")

    def standby(self):
        with self.said:
            self.notes = [n for n in self.notes if n != "REDOUBT_ROLE=standby"]
        os.write(self.role, b"standby\n")
        self.wait_note("REDOUBT_ROLE=standby")

    def log_text(self):
        with open(os.path.join(self.folder, "log"), encoding="utf-8", errors="replace") as f:
            return f.read()

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.notify.close()
        self.log.close()
        os.close(self.role)
        os.close(self.page)


# A second implementation of what the C code speaks, written from docs/protocol/opamp.md.

def varint(value):
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, str):
        value = value.encode()
    return varint(number << 3 | 2) + varint(len(value)) + value


def fixed64(number, value):
    return varint(number << 3 | 1) + struct.pack("<Q", value)


def parse(data):
    """{number: [values]} of one protobuf level."""
    found, at = {}, 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        tag = number()
        if tag & 7 == 0:
            value = number()
        elif tag & 7 == 1:
            value = struct.unpack_from("<Q", data, at)[0]
            at += 8
        else:
            assert tag & 7 == 2, tag
            size = number()
            value = data[at:at + size]
            at += size
        found.setdefault(tag >> 3, []).append(value)
    return found


CAPABILITY = "com.redoubt.report/v1"


def attribute(key, text):
    return field(1, key) + field(2, field(1, text))


def report(identity, seq, text="x", at=None):
    at = int(time.time() * 1e6) if at is None else at
    return (field(1, uuid.UUID(identity).bytes) + field(2, seq) + fixed64(3, at)
            + field(4, attribute("engine.version", text)))


class Refused(Exception):
    """The port, or the server behind it, did not take the connection."""


class Device:
    """A device that speaks OpAMP over WebSocket, written without the product's code."""

    def __init__(self, port, certificates, name, identity, upgrade=True, timeout=20):
        context = ssl.create_default_context(cafile=certificates.path("ca.pem"))
        if name:
            context.load_cert_chain(certificates.path(name + ".pem"),
                                    certificates.path(name + ".key"))
        self.uid = uuid.UUID(identity).bytes if identity else bytes(16)
        self.sequence = 0
        self.left = b""
        try:
            plain = socket.create_connection(("127.0.0.1", port), timeout)
            self.socket = context.wrap_socket(plain, server_hostname="redoubt")
            if upgrade:
                self.upgrade()
        except (OSError, ssl.SSLError) as e:
            raise Refused(str(e)) from e

    def upgrade(self, path="/v1/opamp"):
        key = base64.b64encode(os.urandom(16)).decode()
        head = self.request(f"GET {path} HTTP/1.1\r\nHost: redoubt\r\nUpgrade: websocket\r\n"
                            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
                            "Sec-WebSocket-Version: 13\r\n\r\n")
        if not head.startswith("HTTP/1.1 101 "):
            raise Refused(head)
        digest = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode())
        assert base64.b64encode(digest.digest()).decode() in head

    def request(self, text):
        self.socket.sendall(text.encode())
        got = b""
        while b"\r\n\r\n" not in got:
            more = self.socket.recv(4096)
            if not more:
                raise Refused("closed")
            got += more
        head, self.left = got.split(b"\r\n\r\n", 1)
        return head.decode()

    def body(self):
        got = self.left
        while more := self.socket.recv(4096):
            got += more
        return got.decode()

    def frame(self, payload, first=0x82):
        mask = os.urandom(4)
        size = len(payload)
        head = bytes([first]) + (
            bytes([0x80 | size]) if size < 126 else
            bytes([0x80 | 126]) + struct.pack(">H", size) if size < 65536 else
            bytes([0x80 | 127]) + struct.pack(">Q", size))
        masked = bytes(b ^ mask[i & 3] for i, b in enumerate(payload))
        self.socket.sendall(head + mask + masked)

    def read_frame(self):
        """(opcode, payload); raises Refused at the end of the connection."""
        def take(size):
            while len(self.left) < size:
                try:
                    more = self.socket.recv(65536)
                except (ConnectionError, ssl.SSLError) as e:
                    raise Refused(str(e)) from e
                if not more:
                    raise Refused("closed")
                self.left += more
            out, self.left = self.left[:size], self.left[size:]
            return out

        first, size = take(2)
        if size == 126:
            size = struct.unpack(">H", take(2))[0]
        elif size == 127:
            size = struct.unpack(">Q", take(8))[0]
        return first & 15, take(size)

    def send(self, *fields, uid=None):
        self.sequence += 1
        self.frame(b"\0" + field(1, uid or self.uid) + field(2, self.sequence)
                   + field(4, 1) + b"".join(fields))

    def receive(self):
        """One ServerToAgent as a dict of fields; a close frame raises Refused(code)."""
        while True:
            opcode, payload = self.read_frame()
            if opcode == 8:
                raise Refused(str(struct.unpack(">H", payload[:2])[0]))
            if opcode == 2:
                assert payload[0] == 0
                return parse(payload[1:])

    def describe(self, host="a-host"):
        self.send(field(3, field(1, attribute("service.name", "test"))
                        + field(2, attribute("host.name", host))),
                  field(5, field(1, 1) + field(4, "fine")))
        return self.receive()

    def send_reports(self, *reports):
        self.send(field(13, field(1, CAPABILITY) + field(2, "reports")
                        + field(3, b"".join(field(1, r) for r in reports))))

    def receipts(self):
        """[(report_id, seq, refused)] of the next answer; an error is an AssertionError."""
        answer = self.receive()
        assert 2 not in answer, parse(answer[2][0])
        return self.unpack(answer)

    @staticmethod
    def unpack(answer):
        data = parse(parse(answer[11][0])[3][0])
        out = []
        for one in data.get(1, []):
            got = parse(one)
            out.append((str(uuid.UUID(bytes=got[1][0])), got[2][0],
                        got.get(3, [b""])[0].decode()))
        return out

    def error(self):
        """(type, text, retry in ns) of the next answer, which must be an error."""
        got = parse(self.receive()[2][0])
        retry = parse(got[3][0])[1][0] if 3 in got else 0
        return got.get(1, [0])[0], got.get(2, [b""])[0].decode(), retry

    def close(self):
        with contextlib.suppress(OSError):
            self.socket.close()
