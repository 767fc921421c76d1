"""One file published to the lab's data share by `redoubt package publish`, beside `smbclient put`.

Both run on the active node, with the same file, share and credentials, in turns; medians are
compared.  Ours does more in the same time: it computes the SHA-256, signs every packet, registers
the package and looks for it afterwards.  What was published is taken away after each round, so
that each one begins with an empty share, and nothing waits to be written.

Client and file server are one machine here and the share lies in its memory, so the first line
compares CPU time, and digest and signatures come on top of what smbclient and smbd need.  The
second line is the same over a line of 1 Gbit/s between node and file server.
"""
import json
import os
import statistics
import time

from . import row

TARGET = 0.8
SLOW_MIB, SLOW_ROUNDS = 256, 3
FILE, CREDENTIALS = "/root/bench.bin", "/etc/redoubt/smb.cred"
PACKAGE = ("--name", "bench-publish", "--version", "1")


def arguments(parser):
    parser.add_argument("--publish-mib", type=int, default=1024, metavar="N",
                        help="publish: size of the file (default: %(default)s)")
    parser.add_argument("--publish-rounds", type=int, default=5, metavar="N",
                        help="publish: rounds of each (default: %(default)s)")


def timed(host, *command):
    os.sync()
    began = time.monotonic()
    done = host.run(*command, timeout=600)
    return time.monotonic() - began, done.stdout


def remove(share, name):
    path = os.path.join(share, name)
    if os.path.exists(path):
        os.unlink(path)


def ours(host, share):
    seconds, told = timed(host, "redoubt", "package", "publish", FILE, *PACKAGE, "--json")
    package = json.loads(told)
    host.run("redoubt", "package", "remove", package["id"], "--yes")
    remove(share, f"blob/{package['sha256']}")
    return seconds


def theirs(host, share):
    seconds, _ = timed(host, "smbclient", "//fileserver/data", "-A", CREDENTIALS, "-c",
                       f"put {FILE} bench.bin")
    remove(share, "bench.bin")
    return seconds


class Line:
    """A line of 1 Gbit/s from the host to the others, while this context lasts."""

    def __init__(self, host):
        self.host = host

    def __enter__(self):
        self.host.run("tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "1gbit",
                      "burst", "1mb", "latency", "20ms")

    def __exit__(self, *_):
        self.host.run("tc", "qdisc", "del", "dev", "eth0", "root", check=False)


def compare(host, share, mib, rounds):
    """Megabytes a second of both, a round each; the first round only warms up."""
    with open(host.file(FILE), "wb") as file:
        for _ in range(mib):
            file.write(os.urandom(1 << 20))
    seen = {ours: [], theirs: []}
    for number in range(rounds + 1):
        for one in (ours, theirs) if number % 2 else (theirs, ours):
            seen[one].append(mib / one(host, share))
    os.unlink(host.file(FILE))
    return seen[ours][1:], seen[theirs][1:]


def line_of(what, mine, other):
    return row(what, statistics.median(mine), "MiB/s", statistics.median(other), "smbclient put",
               TARGET)


def measure(lab, options):
    host, share = lab.host(lab.wait_ready(60)), lab.places.at("share", "data")
    mib, slow_mib = options.publish_mib, min(options.publish_mib, SLOW_MIB)
    memory = compare(host, share, mib, options.publish_rounds)
    with Line(host):
        line = compare(host, share, slow_mib, SLOW_ROUNDS)
    return {"rows": [line_of(f"publishing {mib} MiB to the share", *memory),
                     line_of(f"publishing {slow_mib} MiB over 1 Gbit/s", *line)],
            "rounds": {"memory": memory, "line": line}}
