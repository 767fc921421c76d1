"""Agent packages as an administrator would publish them: built, signed, and served by a Web
Server that can be told to misbehave."""
import hashlib
import http.server
import os
import re
import shutil
import ssl
import subprocess
import threading

from device_world import AGENT, field, parse, run

INSTALLED, PENDING, INSTALLING, INSTALL_FAILED, DOWNLOADING = range(5)
PLATFORM = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True,
                          check=True).stdout.strip()
BACK = ("Redoubt-Order", "roll-back")

# Says what it is, as a good one would, and then does nothing.
SILENT = """#!/bin/sh
[ "$1" = --version ] && { echo "redoubt-agent VERSION"; exit 0; }
exec sleep 1000
"""
BROKEN = "#!/bin/sh\necho something is missing >&2\nexit 3\n"


class Signer:
    """A key of the authority that signs packages (docs/protocol/data.md)."""

    def __init__(self, certificates, name="signer", ca="ca", usage="codeSigning"):
        self.key = certificates.path(name + ".key")
        pem = certificates.path(name + ".pem")
        run("openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-CA",
            certificates.path(ca + ".pem"), "-CAkey", certificates.path(ca + ".key"), "-keyout",
            self.key, "-out", pem, "-days", "2", "-subj", "/CN=package signing", "-addext",
            f"extendedKeyUsage={usage}", "-addext", "basicConstraints=CA:false", "-addext",
            "keyUsage=digitalSignature")
        self.der = subprocess.run(["openssl", "x509", "-in", pem, "-outform", "DER"],
                                  capture_output=True, check=True).stdout
        self.folder = certificates.folder

    def sign(self, data):
        digest = os.path.join(self.folder, "digest")
        with open(digest, "wb") as file:
            file.write(hashlib.sha256(data).digest())
        done = subprocess.run(["openssl", "pkeyutl", "-sign", "-rawin", "-inkey", self.key,
                               "-in", digest], capture_output=True, check=True)
        return done.stdout + self.der


def build_deb(folder, version, program=AGENT, name="redoubt-agent", platform=PLATFORM,
              prefix="usr"):
    """A package of the agent; program: a file, or the text of a script."""
    tree = os.path.join(folder, f"tree-{version}")
    shutil.rmtree(tree, ignore_errors=True)
    for sub in ("DEBIAN", f"{prefix}/lib/redoubt", f"{prefix}/share/redoubt-agent"):
        os.makedirs(os.path.join(tree, sub))
    target = os.path.join(tree, prefix, "lib/redoubt/redoubt-agent")
    if os.path.exists(program):
        shutil.copy(program, target)
    else:
        with open(target, "w", encoding="ascii") as file:
            file.write(program.replace("VERSION", version))
    os.chmod(target, 0o755)
    with open(os.path.join(tree, prefix, "share/redoubt-agent/version"), "w",
              encoding="ascii") as file:
        file.write(version + "\n")
    with open(os.path.join(tree, "DEBIAN/control"), "w", encoding="ascii") as file:
        file.write(f"Package: {name}\nVersion: {version}\nArchitecture: {platform}\n"
                   "Maintainer: nobody <nobody@localhost>\nDescription: the agent of a test\n")
    path = os.path.join(folder, f"{name}_{version}_{platform}.deb")
    run("dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", tree, path)
    shutil.rmtree(tree)
    return path


class Web:
    """Serves one folder with ranges.  cut: after so many bytes the connection breaks, once;
    ranges: False sends the whole file, whatever is asked for."""

    def __init__(self, folder, certificates=None):
        self.scheme = "https" if certificates else "http"
        self.folder, self.requests, self.cut, self.missing = folder, [], None, 0
        self.ranges = True
        world = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                world.requests.append((self.path, dict(self.headers)))
                world.answer(self)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if certificates:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificates.path("server.pem"),
                                    certificates.path("server.key"))
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def url(self, path):
        return f"{self.scheme}://127.0.0.1:{self.server.server_port}/{os.path.basename(path)}"

    def answer(self, handler):
        try:
            with open(os.path.join(self.folder, os.path.basename(handler.path)), "rb") as file:
                data = file.read()
        except FileNotFoundError:
            data = None
        if self.missing or data is None:
            self.missing = max(0, self.missing - 1)
            handler.send_error(404)
            return
        begin = 0
        asked = handler.headers.get("Range", "") if self.ranges else ""
        match = re.fullmatch(r"bytes=(\d+)-", asked)
        if match:
            begin = int(match.group(1))
        handler.send_response(206 if match else 200)
        handler.send_header("Content-Length", str(len(data) - begin))
        if match:
            handler.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        handler.end_headers()
        cut, self.cut = self.cut, None
        handler.wfile.write(data[begin:begin + cut] if cut else data[begin:])
        if cut:
            handler.close_connection = True

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


def available(name, version, url, digest, signature, order=b"1", headers=()):
    """The field packages_available of a ServerToAgent with one package, as the OpAMP
    specification has it; order is what makes the offer another one."""
    more = field(4, b"".join(field(1, field(1, k) + field(2, v)) for k, v in headers))
    file = field(1, url) + field(2, digest) + field(3, signature) + (more if headers else b"")
    identity = hashlib.sha256(order + version.encode() + digest).digest()
    package = field(2, version) + field(3, file) + field(4, identity)
    return field(5, field(1, field(1, name) + field(2, package))
                 + field(2, hashlib.sha256(identity).digest()))


def statuses(server):
    """Each PackageStatus of redoubt-agent that was told: (status, has, offered, why)."""
    found = []
    with server.lock:
        for message in server.messages:
            for told in message.get(8, []):
                for entry in parse(told).get(1, []):
                    s = parse(parse(entry)[2][0])
                    found.append((s.get(6, [INSTALLED])[0], s.get(2, [b""])[0].decode(),
                                  s.get(4, [b""])[0].decode(), s.get(7, [b""])[0].decode()))
    return found
