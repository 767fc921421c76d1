"""./dev lab: the command line of the lab."""
import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time

from . import plan
from .errors import LabError
from .interrupt import interruptible
from .lab import Lab

_ABOUT = """A whole cluster on this machine: two nodes, an SMB file server, a DBMS computer, an
administrator's host and client devices, each in namespaces of its own.  Everything lives below
/run/redoubt-lab/NAME and one cgroup; `down` leaves nothing behind."""

_EXAMPLES = """examples:
  ./dev lab up                         bring it up with 5 devices, balanced profile
  ./dev lab exec node-a redoubt status
  ./dev lab power-off node-a           then watch:  ./dev lab exec node-b redoubt status --watch
  ./dev lab cut node-b fileserver      node-b loses the file server
  ./dev lab heal
  ./dev lab down"""


def _parser():
    parser = argparse.ArgumentParser(
        prog="./dev lab", description=_ABOUT, epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name, text):
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.add_argument("--name", default="lab", metavar="LAB",
                             help="which lab (default: %(default)s)")
        return command

    up = add("up", "bring a lab up and its cluster into service")
    up.add_argument("--profile", choices=plan.PROFILES, default="balanced",
                    help="timing profile (default: %(default)s)")
    up.add_argument("--devices", type=int, default=5, metavar="N",
                    help="number of client devices (default: %(default)s)")
    up.add_argument("--report-ms", type=int, default=1000, metavar="MS",
                    help="how often devices report (default: %(default)s)")
    up.add_argument("--bare", action="store_true",
                    help="hosts, file server and DBMS only: no cluster yet")
    up.add_argument("--debug", action="store_true", help="nodes log at level debug")
    up.add_argument("--build", metavar="DIR", help="build folder (default: build)")
    add("down", "forget a lab")
    status = add("status", "show hosts, faults and the cluster")
    status.add_argument("--json", action="store_true", help="as JSON")
    run = add("exec", "run a command in a host, with its exit status")
    run.add_argument("host", metavar="HOST")
    run.add_argument("words", metavar="COMMAND", nargs=argparse.REMAINDER)
    cut = add("cut", "drop the traffic between a host and another, or everybody")
    cut.add_argument("host", metavar="HOST")
    cut.add_argument("other", metavar="OTHER", nargs="?")
    cut.add_argument("--one-way", action="store_true", help="only what HOST sends")
    heal = add("heal", "end the cuts of a host, or all")
    heal.add_argument("host", metavar="HOST", nargs="?")
    for name, text in (("power-off", "kill every process of a host and take it off the network"),
                       ("power-on", "boot a host that is off"),
                       ("freeze", "stop every process of a host, as a paused virtual machine"),
                       ("thaw", "let a frozen host go on")):
        command = add(name, text)
        command.add_argument("host", metavar="HOST")
        if name == "freeze":
            command.add_argument("--keep-network", action="store_true",
                                 help="its kernel still answers on the network")
    return parser


def _up(args):
    began = time.monotonic()
    lab = Lab(args.name, profile=args.profile, devices=args.devices, build=args.build,
              report_ms=args.report_ms, debug=args.debug, newcomer=True, fresh=True,
              say=lambda text: print("  " + text, flush=True))
    print(f"lab '{lab.name}': {len(lab.hosts)} hosts, profile {lab.profile}", flush=True)
    lab.up(cluster=not args.bare)
    print(f"up after {time.monotonic() - began:.1f} s.  Try:", flush=True)
    extra = "" if args.name == "lab" else f" --name {args.name}"
    print(f"  ./dev lab exec{extra} node-a redoubt status\n"
          f"  ./dev lab power-off{extra} node-a\n  ./dev lab down{extra}")


def _down(args):
    lab = Lab(args.name)
    if not lab.exists():
        lab.about()
    with contextlib.suppress(LabError, ValueError):
        lab = Lab.open(args.name)
    lab.down()
    print(f"lab '{args.name}' is gone")


def _status(args):
    told = Lab.open(args.name).describe()
    if args.json:
        print(json.dumps(told, indent=2))
        return
    print(f"lab '{told['name']}': {told['state']}, profile {told['profile']}")
    for host in told["hosts"]:
        power = "frozen" if host["frozen"] else host["power"]
        print(f"  {host['name']:<12} {host['address']:<14} {power}")
    for item in told["cuts"]:
        print(f"  cut: {item['from']} -> {item['to']}")
    cluster = told["cluster"]
    if cluster is None:
        print("no node answers")
        return
    print(f"cluster: epoch {cluster['epoch']}, active {cluster['active'] or 'none'}")
    for node in cluster["nodes"]:
        because = "; ".join(node.get("not_ready_because", []))
        print(f"  {node['name']:<12} {node['role']:<8} {node['state']:<10} {because}")


def _exec(args):
    words = args.words[1:] if args.words[:1] == ["--"] else args.words
    if not words:
        raise LabError("exec: which command?", "./dev lab exec node-a redoubt status")
    host = Lab.open(args.name).host(args.host)
    # The command gets Ctrl-C from the terminal itself; we only wait for it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    command = subprocess.Popen(host.argv(*words), restore_signals=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    status = command.wait()
    return status if status >= 0 else 128 - status


def _fault(args):
    lab = Lab.open(args.name)
    if args.command == "cut":
        lab.cut(args.host, args.other, args.one_way)
    elif args.command == "heal":
        lab.heal(args.host)
    elif args.command == "power-off":
        lab.host(args.host).power_off()
    elif args.command == "power-on":
        lab.host(args.host).power_on()
    elif args.command == "freeze":
        lab.host(args.host).freeze(keep_network=args.keep_network)
    else:
        lab.host(args.host).thaw()


def main(argv=None):
    args = _parser().parse_args(argv)
    actions = {"up": _up, "down": _down, "status": _status, "exec": _exec}

    try:
        with interruptible():
            return actions.get(args.command, _fault)(args) or 0
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted; nothing is left behind", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
