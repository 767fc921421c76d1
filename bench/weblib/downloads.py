"""Downloads from redoubt-web and from a plain nginx: the same file, node, network and run.

The plain nginx runs on the active node beside ours, with the configuration that Debian installs;
the client is on another host.  Rounds alternate, so that whatever disturbs the machine disturbs
both; medians are compared.  On a busy machine the two get different shares of it, as they are in
different control groups: what a request costs in CPU is told for that reason, too.
"""
import os
import re
import statistics

from redoubt_lab import plan

from . import row

PLAIN_HTTP, PLAIN_HTTPS = 18060, 18061
FOLDER = "/run/bench-nginx"
LARGE_TARGET, SMALL_TARGET = 0.95, 0.9
NAMES = {"large": "public/packages/bench/1/large.bin", "small": "public/packages/bench/1/small.bin",
         "sig": "public/sig/bench.cdiff"}
SMALL_BYTES = 4096

# /etc/nginx/nginx.conf and sites-available/default of Debian 12, with other ports and paths, and the
# user who may read the store.
PLAIN = """
user redoubt-web;
worker_processes auto;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 768; }}
http {{
    sendfile on;
    tcp_nopush on;
    types_hash_max_size 2048;
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    ssl_protocols TLSv1 TLSv1.1 TLSv1.2 TLSv1.3;
    ssl_prefer_server_ciphers on;
    access_log {folder}/access.log;
    gzip on;
    server {{
        listen {http};
        listen {https} ssl;
        ssl_certificate /var/lib/redoubt/secret/web.pem;
        ssl_certificate_key /var/lib/redoubt/secret/web.key;
        root /var/lib/redoubt/store/current/public;
        location / {{ try_files $uri $uri/ =404; }}
    }}
}}
"""


def arguments(parser):
    parser.add_argument("--mib", type=int, default=512, metavar="N",
                        help="downloads: size of the large file (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, metavar="N",
                        help="downloads: rounds of each (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=1, metavar="S",
                        help="downloads: of a round with small files (default: %(default)s)")


class Plain:
    """A plain nginx on a node, while this context lasts."""

    def __init__(self, lab, node):
        self.lab, self.host = lab, lab.host(node)

    def __enter__(self):
        self.host.run("mkdir", "-p", FOLDER)
        self.host.write(f"{FOLDER}/nginx.conf",
                        PLAIN.format(folder=FOLDER, http=PLAIN_HTTP, https=PLAIN_HTTPS))
        self.process = self.host.popen("nginx", "-c", f"{FOLDER}/nginx.conf", "-e",
                                       f"{FOLDER}/error.log", "-g", "daemon off;")
        admin = self.lab.host("admin")
        self.lab.wait_for(lambda: admin.run(
            "curl", "-s", "-o", "/dev/null", f"http://{self.host.name}:{PLAIN_HTTP}/",
            check=False).returncode == 0, 10, "the plain nginx answers")
        return self

    def __exit__(self, *_):
        self.process.stop()


def large_file(admin, url, _seconds):
    """MiB a second, and how many."""
    told = admin.run("curl", "-fsSk", "-o", "/dev/null", "-w", "%{speed_download} %{size_download}",
                     url, timeout=120).stdout.split()
    return (float(told[0]) / 2**20, int(told[1]) / 2**20)


def small_files(admin, url, seconds):
    """Requests a second, and how many."""
    told = admin.run("wrk", "-t1", "-c16", f"-d{seconds}", url, timeout=60).stdout
    if re.search(r"Non-2xx|Socket errors", told):
        raise RuntimeError(f"requests failed: {told}")
    return (float(re.search(r"Requests/sec:\s*([0-9.]+)", told)[1]),
            int(re.search(r"([0-9]+) requests in", told)[1]))


def cpu_s(host, ours):
    """CPU that the workers of our nginx, or of the plain one, have used so far."""
    used = 0
    for pid in host.pids("nginx"):
        try:
            with open(f"/proc/{pid}/cgroup", encoding="ascii") as file:
                if ("services" in file.read()) != ours:
                    continue
            with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
                fields = file.read().rsplit(")", 1)[1].split()
        except OSError:
            continue
        used += int(fields[11]) + int(fields[12])
    return used / os.sysconf("SC_CLK_TCK")


class Cost:
    """What each nginx has sent, and the CPU that it took."""

    def __init__(self, host, one):
        self.host, self.one, self.used, self.count = host, one, {}, {}

    def round(self, admin, url, ours, seconds):
        before = cpu_s(self.host, ours)
        rate, count = self.one(admin, url, seconds)
        self.used[ours] = self.used.get(ours, 0) + cpu_s(self.host, ours) - before
        self.count[ours] = self.count.get(ours, 0) + count
        return rate

    def us(self, ours):
        return 1e6 * self.used[ours] / self.count[ours]


def compare(rounds, ours, theirs, one):
    """Medians of both, measured in turns; the first turn only warms up."""
    seen = {ours: [], theirs: []}
    for number in range(rounds + 1):
        for url in (ours, theirs) if number % 2 else (theirs, ours):
            seen[url].append(one(url))
    return (statistics.median(seen[ours][1:]), statistics.median(seen[theirs][1:]))


PARTS = (
    ("large", "large file", "MiB/s", large_file, LARGE_TARGET),
    ("small", "package of 4 KiB", "requests/s", small_files, SMALL_TARGET),
    ("sig", "signatures of 4 KiB", "requests/s", small_files, SMALL_TARGET))


def measure(lab, options):
    """Large and small files, over HTTP and TLS."""
    node = lab.wait_ready(60)
    lab.publish({NAMES["large"]: b"\0" * (options.mib << 20), NAMES["small"]: b"s" * SMALL_BYTES,
                 NAMES["sig"]: b"c" * SMALL_BYTES})
    admin, rows = lab.host("admin"), []
    with Plain(lab, node):
        for scheme, port, plain in (("http", plan.HTTP_PORT, PLAIN_HTTP),
                                    ("https", plan.HTTPS_PORT, PLAIN_HTTPS)):
            def urls(name):
                path = NAMES[name].removeprefix("public")
                # By number: the plain one has no IPv6, and IPv6 costs more.
                address = plan.address4(node)
                return (f"{scheme}://{address}:{port}{path}", f"{scheme}://{address}:{plain}{path}")

            for name, text, unit, one, target in PARTS:
                cost, (ours_at, theirs_at) = Cost(lab.host(node), one), urls(name)
                ours, theirs = compare(
                    options.rounds, ours_at, theirs_at,
                    lambda url: cost.round(admin, url, url == ours_at, options.seconds))
                rows.append(row(f"{text}, {scheme}", ours, unit, theirs, "plain nginx", target))
                if one is small_files:    # of a large one, much is what the receiver makes of it
                    rows.append(row("  CPU of one", cost.us(True), "us", cost.us(False),
                                    "plain nginx"))
    return {"rows": rows}
