"""Renewals of leases at redoubt-activation: devices with certificates and connections that stay open.

Each device has taken its seat; what is measured are renewals of a fresh lease, which the proxy
answers from memory with a signature made anew.  First as fast as they are answered, then at the
target's rate, for the times that a device sees.
"""
import json
import os
import subprocess

from redoubt_lab import LabError, plan

from . import row

TARGET = 2000


def arguments(parser):
    parser.add_argument("--renewers", type=int, default=200, metavar="N",
                        help="activation: connections, each of a device (default: %(default)s)")
    parser.add_argument("--renew-seconds", type=int, default=5, metavar="S",
                        help="activation: of each of the two runs (default: %(default)s)")


def renew(lab, options, *words):
    """What bench/renew.c says, run on the host admin."""
    argv = ["nsenter", "-t", str(lab.host("admin").pid()), "-n", os.path.join(
        lab.build, "bench", "renew"), "--ca", lab.places.at("pki", "ca.pem"), "--ca-key",
        lab.places.at("pki", "ca.key"), "--count", str(options.renewers), "--seconds",
        str(options.renew_seconds), *words, plan.VIRTUAL4, str(plan.ACTIVATION_PORT)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"renew: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout)


def measure(lab, options):
    most = renew(lab, options)
    paced = renew(lab, options, "--rate", str(TARGET))
    (seats,), = lab.sql("SELECT count(*) FROM redoubt.seat WHERE device::text LIKE '7265646f%'")
    if seats != options.renewers:
        raise LabError(f"{options.renewers} devices have {seats} seats")
    return {
        "most": most, "paced": paced,
        "rows": [
            row("leases renewed from cache", most["per_second"], "per s", target=TARGET),
            row(f"  at {TARGET} per s: half within", paced["p50_ms"] * 1000, "us"),
            row("  95 per cent within", paced["p95_ms"] * 1000, "us"),
        ]}
