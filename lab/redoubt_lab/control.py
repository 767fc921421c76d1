"""The control socket of a node: HTTP with JSON over a Unix socket, from outside the host."""
import http.client
import json
import socket

SOCKET = "/run/redoubt/node.sock"


class _Unix(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def request(host, method, path, body=None, timeout=10.0):
    """(HTTP status, decoded reply).  OSError when nobody answers, ValueError when it is no JSON."""
    line = _Unix(host.file(SOCKET), timeout)
    try:
        line.request(method, path, None if body is None else json.dumps(body),
                     {"Content-Type": "application/json"} if body is not None else {})
        reply = line.getresponse()
        return reply.status, json.loads(reply.read() or b"null")
    except http.client.HTTPException as error:
        raise OSError(f"no HTTP reply: {error!r}") from error
    finally:
        line.close()


def get(host, path, timeout=10.0):
    status, reply = request(host, "GET", path, None, timeout)
    if status != 200:
        raise ValueError(f"{path}: HTTP status {status}: {reply}")
    return reply
