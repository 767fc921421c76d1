"""One file published to the lab's data share by `redoubt package publish`, beside `smbclient put`.

Both run on the active node, with the same file, share and credentials, in turns; medians are
compared.  Ours does more in the same time: it hashes the file, signs every packet, registers the
package and looks for it afterwards.  What was published is taken away after each round, so that
each one begins with an empty share, and nothing waits to be written.
"""
import json
import os
import statistics
import time

from . import row

TARGET = 0.8
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


def measure(lab, options):
    host, share = lab.host(lab.wait_ready(60)), lab.places.at("share", "data")
    with open(host.file(FILE), "wb") as file:
        for _ in range(options.publish_mib):
            file.write(os.urandom(1 << 20))
    seen = {ours: [], theirs: []}
    for number in range(options.publish_rounds + 1):
        for one in (ours, theirs) if number % 2 else (theirs, ours):
            seen[one].append(options.publish_mib / one(host, share))
    os.unlink(host.file(FILE))
    mine, other = (statistics.median(seen[one][1:]) for one in (ours, theirs))
    return {"rows": [row(f"publishing {options.publish_mib} MiB to the share", mine, "MiB/s", other,
                         "smbclient put", TARGET)],
            "rounds": {"ours": seen[ours][1:], "smbclient": seen[theirs][1:]}}
