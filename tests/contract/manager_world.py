"""redoubt-manager as its master starts it, and a client of its API."""
import contextlib
import http.client
import json
import os
import socket
import ssl
import tempfile

from device_world import BUILD, Daemon, free_port

MANAGER = os.path.join(BUILD, "src/app/manager/redoubt-manager")


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=20)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Answer:
    def __init__(self, reply):
        self.status = reply.status
        self.headers = reply.headers
        self.text = reply.read().decode()
        self.json = json.loads(self.text) if self.text else None

    def error(self):
        assert set(self.json) == {"error"}, self.text
        assert set(self.json["error"]) == {"id", "title", "text", "suggestion"}, self.text
        return self.status, self.json["error"]["id"]


class Manager(Daemon):
    """redoubt-manager as a child of a master that the test plays."""

    def __init__(self, folder, database, certificates, sections=""):
        self.api_port = free_port()
        self.run = tempfile.mkdtemp(dir=folder)
        self.certificates = certificates
        super().__init__(folder, database, certificates, watchdog_us=2000000, program=MANAGER,
                         cluster=f"run_dir={self.run}\n",
                         server=f"api_listen=127.0.0.1:{self.api_port}\n", sections=sections)

    def connection(self, network=False):
        if not network:
            return UnixConnection(os.path.join(self.run, "manager.sock"))
        context = ssl.create_default_context(cafile=self.certificates.path("ca.pem"))
        return http.client.HTTPSConnection("127.0.0.1", self.api_port, timeout=20,
                                           context=context)

    def call(self, method, path, body=None, token=None, **headers):
        """token None: over the Unix socket; "": over TLS without a token."""
        with contextlib.closing(self.connection(token is not None)) as link:
            headers = {name.replace("_", "-"): value for name, value in headers.items()}
            if token:
                headers["Authorization"] = f"Bearer {token}"
            if body is not None and not isinstance(body, (str, bytes)):
                body = json.dumps(body)
            link.request(method, path, body, headers)
            return Answer(link.getresponse())

    def get(self, path, token=None, **headers):
        return self.call("GET", path, None, token, **headers)

    def post(self, path, body=None, token=None, **headers):
        return self.call("POST", path, body, token, **headers)

    def token(self, role, scope=None, name="a token"):
        made = self.post("/v1/api-tokens", {"name": name, "role": role, "scope": scope})
        assert made.status == 201, made.text
        return made.json
