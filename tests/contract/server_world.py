"""A server that agents connect to, written from docs/protocol/ without the product's code:
it answers as a test tells it to, and remembers what it was told."""
import base64
import contextlib
import hashlib
import json
import os
import socket
import ssl
import struct
import threading
import time
import uuid

from device_world import CAPABILITY, eventually, field, free_port, parse

EVENTS = "com.redoubt.events/v1"
TASKS = "com.redoubt.tasks/v1"
SESSION = "com.redoubt.session/v1"
APPLIED, APPLYING, FAILED = 1, 2, 3


def custom(capability, kind, data):
    if not isinstance(data, bytes):
        data = json.dumps(data).encode()
    return field(11, field(1, capability) + field(2, kind) + field(3, data))


def remote_config(digest, body, name="policy.json"):
    if not isinstance(body, (str, bytes)):
        body = json.dumps(body)
    file = field(1, body) + field(2, "application/json")
    return field(3, field(1, field(1, field(1, name) + field(2, file))) + field(2, digest))


def settings(digest, endpoint, heartbeat_s=120, certificate=b""):
    more = field(3, field(1, certificate)) if certificate else b""
    return field(4, field(1, digest)
                 + field(2, field(1, endpoint) + more + field(4, heartbeat_s)))


def attributes(description, number):
    """{key: value} of the identifying (1) or other (2) attributes."""
    found = {}
    for one in description.get(number, []):
        pair = parse(one)
        value = parse(pair[2][0])
        found[pair[1][0].decode()] = (value[1][0].decode() if 1 in value
                                      else value[3][0] if 3 in value else None)
    return found


class Server:
    """Listens; stores reports and events as the real one does; may be told to misbehave."""

    def __init__(self, certificates, name="server", host="127.0.0.1"):
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificates.path(name + ".pem"),
                                     certificates.path(name + ".key"))
        self.context.load_verify_locations(certificates.path("ca.pem"))
        self.context.verify_mode = ssl.CERT_REQUIRED
        self.host, self.port = host, free_port()
        self.lock, self.writing = threading.RLock(), threading.Lock()
        self.messages = []        # every AgentToServer, parsed
        self.events = {}          # stream -> [event...], as a database would have them
        self.gaps = []            # (stream, first, through) where numbers were missing
        self.batches = []         # every batch as it came
        self.progress, self.running = [], []
        self.connections, self.epoch = 0, 1
        self.hello = []           # fields of the first answer, beside the capabilities
        self.capabilities = [CAPABILITY, EVENTS, TASKS, SESSION]
        self.answer = self.usual  # called for each message; returns a list of messages
        self.ack = True           # False: events are stored, and nobody is told
        self.deaf = False         # True: pings are not answered
        self.link = None
        self.uid = None
        self.listener = None
        self.start()

    def start(self):
        self.listener = socket.create_server((self.host, self.port))
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def stop(self):
        listener, self.listener = self.listener, None
        if listener:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.cut()

    def cut(self):
        """Breaks the connection without a word."""
        link, self.link = self.link, None
        if link:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener):
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain):
        link = None
        with contextlib.suppress(OSError, ConnectionError, EOFError, ValueError):
            with self.context.wrap_socket(plain, server_side=True) as link:
                self._upgrade(link)
                first = True
                self.connections += 1
                while True:
                    opcode, payload = self._frame(link)
                    if opcode == 8:
                        return
                    if opcode == 9 and not self.deaf:
                        self._write(link, payload, 0x8A)
                    if opcode != 2:
                        continue
                    message = parse(payload[1:])
                    with self.lock:
                        self.messages.append(message)
                        self.uid = message[1][0]
                        answers = self.answer(message, first)
                        if first:  # before anybody sees the message, and speaks to its sender
                            self._answer(link, answers)
                            self.link = link
                    if not first:
                        self._answer(link, answers)
                    first = False
        with self.lock:
            if self.link is link:
                self.link = None  # a test that waits for the next one has no use for it

    def _answer(self, link, answers):
        for one in answers:
            self._write(link, b"\0" + field(1, self.uid) + one)

    @staticmethod
    def _take(link, size):
        out = b""
        while len(out) < size:
            more = link.recv(size - len(out))
            if not more:
                raise EOFError
            out += more
        return out

    def _upgrade(self, link):
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self._take(link, 1)
        key = [line.split(b": ")[1] for line in head.split(b"\r\n")
               if line.lower().startswith(b"sec-websocket-key")][0]
        digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        link.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                     b"Connection: Upgrade\r\nSec-WebSocket-Accept: "
                     + base64.b64encode(digest) + b"\r\n\r\n")

    def _frame(self, link):
        first, size = self._take(link, 2)
        size &= 127
        if size == 126:
            size = struct.unpack(">H", self._take(link, 2))[0]
        elif size == 127:
            size = struct.unpack(">Q", self._take(link, 8))[0]
        mask = self._take(link, 4)
        data = self._take(link, size)
        return first & 15, bytes(b ^ mask[i & 3] for i, b in enumerate(data))

    def _write(self, link, payload, first=0x82):
        size = len(payload)
        head = bytes([first]) + (bytes([size]) if size < 126 else
                                 bytes([126]) + struct.pack(">H", size) if size < 65536 else
                                 bytes([127]) + struct.pack(">Q", size))
        with self.writing:  # one frame at a time: the test speaks, too
            link.sendall(head + payload)

    # -- what it says --

    def say(self, *fields):
        """A ServerToAgent that nothing asked for."""
        self._write(self.link, b"\0" + field(1, self.uid) + b"".join(fields))

    def offer(self, packages):
        """Offers it now, and to each connection that comes, as the real one does."""
        self.hello = [packages]
        self.say(packages)

    def assign(self, *runs):
        self.say(custom(TASKS, "assign", {"runs": list(runs)}))

    def usual(self, message, first):
        answers = []
        if first:
            answers.append(field(7, 0x7b) + field(10, b"".join(
                field(1, c) for c in self.capabilities)) + b"".join(self.hello))
            answers += [custom(EVENTS, "ack", {"stream": s, "through": len(e)})
                        for s, e in self.events.items() if self.ack]
        if 13 in message:
            inner = parse(message[13][0])
            capability, kind = inner[1][0].decode(), inner[2][0].decode()
            taken = self.take(capability, kind, inner[3][0])
            if taken:
                answers.append(taken)
        return answers or [b""]

    def take(self, capability, kind, data):
        if capability == CAPABILITY:
            receipts = b""
            for one in parse(data)[1]:
                got = parse(one)
                receipts += field(1, field(1, got[1][0]) + field(2, got[2][0]))
            return custom(CAPABILITY, "receipts", receipts + field(2, self.epoch))
        body = json.loads(data)
        if (capability, kind) == (EVENTS, "batch"):
            return self.store(body)
        if (capability, kind) == (TASKS, "progress"):
            self.progress += body["runs"]
        if (capability, kind) == (TASKS, "running"):
            self.running.append(body["runs"])
        return None

    def store(self, batch):
        """Exactly once by the cursor, as redoubt.x_events does it."""
        assert len(batch["events"]) <= 100
        self.batches.append(batch)
        stored = self.events.setdefault(batch["stream"], [])
        if batch["first"] > len(stored) + 1:
            self.gaps.append((batch["stream"], batch["first"], len(stored)))
            stored += [None] * (batch["first"] - len(stored) - 1)
        stored += batch["events"][len(stored) + 1 - batch["first"]:]
        if not self.ack:
            return None
        return custom(EVENTS, "ack", {"stream": batch["stream"], "through": len(stored)})

    # -- what it was told --

    def kinds(self):
        with self.lock:
            return [e["kind"] for stream in self.events.values() for e in stream if e]

    def of_kind(self, kind):
        with self.lock:
            return [e for stream in self.events.values() for e in stream
                    if e and e["kind"] == kind]

    def states(self, number):
        """(hash, status, error) of remote_config_status (7), connection settings (15)."""
        found = []
        with self.lock:
            for m in self.messages:
                for one in m.get(number, []):
                    got = parse(one)
                    found.append((got.get(1, [b""])[0], got.get(2, [0])[0],
                                  got.get(3, [b""])[0].decode()))
        return found

    def description(self):
        """The latest one: (identifying, other)."""
        with self.lock:
            told = [parse(m[3][0]) for m in self.messages if 3 in m]
        return (attributes(told[-1], 1), attributes(told[-1], 2)) if told else ({}, {})

    def connected(self, seconds=10):
        eventually("the agent connects", lambda: self.link, seconds)


def run_id():
    return str(uuid.uuid4())


def unix_s():
    return int(time.time())


def digest_of(text):
    return hashlib.sha256(text.encode()).digest()


__all__ = ["Server", "custom", "remote_config", "settings", "run_id", "unix_s", "digest_of",
           "EVENTS", "TASKS", "SESSION", "APPLIED", "APPLYING", "FAILED", "os"]
