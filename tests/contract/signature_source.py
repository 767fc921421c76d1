"""Really signed databases of ClamAV's own tests, and a mirror of them that can misbehave."""
import functools
import http.server
import os
import shutil
import subprocess
import threading

import pytest

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILT = {1: 1624388302, 2: 1624395301, 3: 1624408809, 4: 1624411776, 5: 1624411902,
         6: 1624412045}


@functools.lru_cache(maxsize=None)
def _fetched():
    return subprocess.run([os.path.join(TOP, "tools/signature-fixtures")], capture_output=True,
                          text=True, check=False, timeout=300)


def genuine():
    """The folder with test-1.cvd to test-6.cvd and test-2.cdiff to test-6.cdiff; or skips."""
    got = _fetched()
    if got.returncode == 77:
        pytest.skip(got.stderr.strip().splitlines()[-1])
    assert got.returncode == 0, got.stderr
    return got.stdout.strip()


def lay_out(folder, version, *, chain=True, names=("test",)):
    """A mirror of that version, as ClamAV's are."""
    os.makedirs(folder, exist_ok=True)
    for name in names:
        path = os.path.join(folder, f"{name}.cvd")
        shutil.copy(os.path.join(genuine(), f"test-{version}.cvd"), path)
        os.utime(path, (BUILT[version], BUILT[version]))
        for n in range(2, version + 1) if chain else ():
            shutil.copy(os.path.join(genuine(), f"test-{n}.cdiff"),
                        os.path.join(folder, f"{name}-{n}.cdiff"))


class Source(http.server.ThreadingHTTPServer):
    """Serves a folder with ranges and conditions; what a test sets makes it worse."""
    daemon_threads = True

    def __init__(self, folder, address="127.0.0.1", port=0):
        super().__init__((address, port), Handler)
        self.folder = folder
        self.asked = []      # (path, Range, If-Modified-Since)
        self.statuses = {}   # file: (status, headers)
        self.cut = {}        # file: bytes after which the connection ends
        self.ranges = True
        self.hold = None     # (file, bytes, Event): the rest comes when it is set
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def files(self):
        return [path for path, _, _ in self.asked]

    def stop(self):
        self.shutdown()
        self.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, headers=(), body=b""):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        return body

    def do_GET(self):
        source, file = self.server, self.path.rsplit("/", 1)[1]
        source.asked.append((file, self.headers["Range"], self.headers["If-Modified-Since"]))
        if file in source.statuses:
            status, headers = source.statuses[file]
            self.answer(status, headers)
            return
        try:
            with open(os.path.join(source.folder, file), "rb") as opened:
                data = opened.read()
                mtime = int(os.fstat(opened.fileno()).st_mtime)
        except FileNotFoundError:
            self.answer(404)
            return
        since = self.headers["If-Modified-Since"]
        modified = self.date_time_string(mtime)
        if since and since == modified:
            self.answer(304)
            return
        status, first, last = 200, 0, len(data) - 1
        if self.headers["Range"] and source.ranges:
            low, high = self.headers["Range"].removeprefix("bytes=").split("-")
            first, last = int(low), min(int(high or last), last)
            status = 206
            if first > last:
                self.answer(416)
                return
        body = self.answer(status, {"Last-Modified": modified, **(
            {"Content-Range": f"bytes {first}-{last}/{len(data)}"} if status == 206 else {})},
            data[first:last + 1])
        short = source.cut.get(file)
        if short is not None and len(body) > short:
            self.wfile.write(body[:short])
            self.close_connection = True
            return
        hold = source.hold
        if hold and hold[0] == file and len(body) > hold[1]:
            self.wfile.write(body[:hold[1]])
            self.wfile.flush()
            hold[2].wait(60)
            body = body[hold[1]:]
        try:
            self.wfile.write(body)
        except ConnectionError:
            self.close_connection = True
