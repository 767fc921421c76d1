"""One file published to the lab's data share by `redoubt package publish`, beside `smbclient put`.

All run on the active node, with the same file, share and credentials, in turns; medians are
compared.  Ours does more in the same time: it computes the SHA-256, registers the package and looks
for it afterwards.  And it signs every packet, as a node must: who could change the packets of its
session could write to the state share.  smbclient does so only if it is told; the target is
that of smbclient as it comes, and the figure of one that signs is shown, too.  What was published
is taken away after each round, and the nodes have stopped fetching it when the next one begins.

Client and file server are one machine here and the share lies in its memory, so the first lines
compare CPU time, and the digest comes on top of what smbclient and smbd need.  The last
line is the same over a line of 1 Gbit/s between node and file server.
"""
import json
import mmap
import os
import statistics
import time

from redoubt_lab import LabError, plan

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


def theirs(host, share, *options):
    seconds, _ = timed(host, "smbclient", "//fileserver/data", "-A", CREDENTIALS, *options, "-c",
                       f"put {FILE} bench.bin")
    remove(share, "bench.bin")
    return seconds


def signed(host, share):
    return theirs(host, share, "--client-protection=sign")


def warm(mib):
    """Memory for the file on the share: a virtual machine gives back what it does not use, and has
    to be given it again, page by page, in the middle of the measurement."""
    mmap.mmap(-1, mib << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE).close()


def fetched(lab):
    """What each node has fetched from the share up to now."""
    return [lab.own_state(node)["content"]["fetched_bytes"] for node in plan.NODES]


def settle(lab):
    """Until the nodes fetch nothing any more of what was published and removed."""
    before = None
    for _ in range(120):
        now = fetched(lab)
        if now == before:
            return
        before = now
        time.sleep(0.5)
    raise LabError("the nodes do not stop fetching")


class Line:
    """A line of 1 Gbit/s from the host to the others, while this context lasts."""

    def __init__(self, host):
        self.host = host

    def __enter__(self):
        self.host.run("tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "1gbit",
                      "burst", "1mb", "latency", "20ms")

    def __exit__(self, *_):
        self.host.run("tc", "qdisc", "del", "dev", "eth0", "root", check=False)


def compare(lab, host, mib, rounds):
    """Megabytes a second of each, in turns; the first round only warms up."""
    share = lab.places.at("share", "data")
    with open(host.file(FILE), "wb") as file:
        for _ in range(mib):
            file.write(os.urandom(1 << 20))
    turns = (ours, signed, theirs)
    seen = {one.__name__: [] for one in turns}
    for number in range(rounds + 1):
        for one in turns if number % 2 else turns[::-1]:
            settle(lab)
            warm(mib + mib // 4)
            seen[one.__name__].append(mib / one(host, share))
    os.unlink(host.file(FILE))
    return {name: figures[1:] for name, figures in seen.items()}


def line_of(what, seen, other, target):
    return row(what, statistics.median(seen["ours"]), "MiB/s", statistics.median(seen[other]),
               "smbclient put", target)


def measure(lab, options):
    host = lab.host(lab.wait_ready(60))
    mib, slow_mib = options.publish_mib, min(options.publish_mib, SLOW_MIB)
    memory = compare(lab, host, mib, options.publish_rounds)
    with Line(host):
        line = compare(lab, host, slow_mib, SLOW_ROUNDS)
    return {"rows": [line_of(f"publishing {mib} MiB to the share", memory, "theirs", TARGET),
                     line_of("  beside smbclient that signs, too", memory, "signed", None),
                     line_of(f"publishing {slow_mib} MiB over 1 Gbit/s", line, "theirs", TARGET)],
            "rounds": {"memory": memory, "line": line}}
