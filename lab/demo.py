#!/usr/bin/python3 -B
"""./dev demo: a whole cluster at work, the active node breaks, and what the devices notice."""
import argparse
import json
import os
import sys
import textwrap
import time

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

from redoubt_lab import Lab, LabError, plan  # noqa: E402
from redoubt_lab.checker import Checker, stored_as_told  # noqa: E402
from redoubt_lab.events import EVENTS  # noqa: E402
from redoubt_lab.interrupt import interruptible  # noqa: E402
from redoubt_lab.probes import Prober, outage, overlap  # noqa: E402

BEGAN = time.monotonic()


class Teller:
    """Prints what happens, when it happens; bold headings on a terminal."""

    def __init__(self):
        self.color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self.chapters = 0

    def chapter(self, title):
        self.chapters += 1
        text = f"{self.chapters}. {title}"
        print(f"\n\033[1m{text}\033[0m" if self.color else f"\n{text}", flush=True)

    @staticmethod
    def say(text):
        print("\n".join(textwrap.wrap(" ".join(text.split()), 92, initial_indent="   ",
                                      subsequent_indent="   ")), flush=True)

    @staticmethod
    def event(text):
        print(f"   [{time.monotonic() - BEGAN:6.2f} s] {text}", flush=True)

    @staticmethod
    def block(text):
        print(textwrap.indent(text.rstrip(), "     "), flush=True)


class Demo:
    def __init__(self, lab, teller):
        self.lab, self.tell = lab, teller
        self.clients = [host for host in lab.managed() if host not in plan.NODES]
        self.results = []

    def build(self):
        self.tell.chapter("Computers")
        self.tell.say(f"""Two nodes, a file server (Samba), a DBMS computer (PostgreSQL), an
            administrator's host and {len(self.clients)} client devices with a ClamAV engine, each
            in namespaces of its own on this machine; a switch connects them.""")
        self.lab.up()

    def introduce(self):
        self.tell.chapter("The cluster")
        self.tell.say(f"""The nodes share nothing but the file server, which decides who is active.
            Clients know one address, {plan.VIRTUAL4}, and the active node has it.
            On either node:  redoubt status""")
        self.tell.block(self.lab.host("node-b").run("redoubt", "status", "--no-color").stdout)

    def devices(self):
        self.tell.chapter("Devices at work")
        self.tell.say("""Each device asks its engine how it is and reports to the active node. It
            keeps the report until it is told that PostgreSQL has it. Now in the database:""")
        self.lab.wait_for(lambda: all(len(self.lab.acknowledged(host)) >= 3
                                      for host in self.clients), 30, "each device has reported")
        self.tell.block(self.table())

    def table(self):
        rows = self.lab.sql("""
            select d.id::text, count(*), max(r.seq), max(r.epoch) from redoubt.device d
            join redoubt.report r on r.device_id = d.id group by 1""")
        by_id = {row[0]: row for row in rows}
        lines = [f"{'device':<12} {'reports':>8} {'newest':>8} {'epoch':>6}  told it is stored"]
        for host in self.lab.managed():
            row = by_id.get(plan.device_id(host))
            told = len(self.lab.acknowledged(host))
            if row:
                lines.append(f"{host:<12} {row[1]:>8} {row[2]:>8} {row[3]:>6}  {told}")
        return "\n".join(lines)

    def happen(self, name, words):
        """One event at the active node: what clients see of it, measured."""
        event = EVENTS[name]
        active = self.lab.wait_ready(60)
        other = self.lab.other(active)
        told = {host: len(self.lab.acknowledged(host)) for host in self.clients}
        with Prober(self.lab) as prober:
            seen = prober.wait_until_good(20, active)
            when = event.begin(self.lab, active)
            self.tell.event(words.format(active=active))
            seen += prober.wait_until_good(60, other)
            self.tell.event(f"{other} answers at {plan.VIRTUAL4}")
            self.lab.wait_for(lambda: all(len(self.lab.acknowledged(host)) > told[host]
                                          for host in self.clients), 60,
                              "each device goes on reporting", 0.02)
            self.tell.event(f"all {len(self.clients)} devices report to {other}")
            time.sleep(0.3)
            seen += prober.answers()
        server = outage(seen, "tls", when).seconds
        web = outage(seen, "http", when).seconds
        self.results.append((event.text, server, web, overlap(seen)))
        self.tell.say(f"""Seen from the administrator's host, which asks every 5 ms: the
            Administration Server was away for {server:.2f} s, the Web Server for {web:.2f} s.""")
        return active

    def planned(self):
        self.tell.chapter("A planned switchover")
        self.happen("switchover", "redoubt switchover: {active} hands over")

    def disaster(self):
        self.tell.chapter("The active node loses power")
        self.tell.say("""Its processes end at this instant and its network goes dark. The other
            node cannot know that: it sees a lease that is no longer renewed, waits until the
            dead node must have stopped by itself, and takes over.""")
        active = self.happen("power-off", "power off: {active}")
        self.tell.chapter("Was anything lost?")
        number = stored_as_told(self.lab)
        self.tell.say(f"""The devices were told of {number} reports that they are stored. All
            {number} are in PostgreSQL, each once.""")
        self.tell.block(self.table())
        self.tell.chapter("The roles have swapped")
        self.lab.host(active).power_on()
        self.tell.event(f"power on: {active}")
        now = self.lab.wait_ready(60)
        self.tell.event(f"{active} is passive and ready; {now} stays active")
        self.tell.say("What the nodes themselves noted (redoubt log shows it with its evidence):")
        told = json.loads(self.lab.host(now).run("redoubt", "log", "--json").stdout)
        self.tell.block("\n".join(
            f"{entry['at'][11:23]} {entry['text']} Outage {entry['outage_ms'] / 1000:.2f} s."
            for entry in told["entries"]
            if entry["kind"] == "switch" and entry["outage_ms"] is not None))

    def small(self):
        self.tell.chapter("A service is killed")
        self.happen("server-killed", "kill -9 of redoubt-server at {active}")

    def sum_up(self, checker):
        self.tell.chapter("In short")
        checker.verify()
        lines = [f"{'event':<40} {'server away':>12} {'web away':>10} {'both active':>12}"]
        lines += [f"{text:<40} {server:>10.2f} s {web:>8.2f} s {both:>10.2f} s"
                  for text, server, web, both in self.results]
        self.tell.block("\n".join(lines))
        samples = checker.samples()
        self.tell.say(f"""Two watchers, each bound to one node's network card, took
            {sum(samples.values())} answers: never did two nodes answer at the same time.
            {stored_as_told(self.lab)} reports acknowledged, none lost, none doubled.""")


NEXT = """
Try next:
  ./dev lab up                                   the same hosts, to play with
  ./dev lab exec node-a redoubt status --watch   (in a second terminal)
  ./dev lab power-off node-a                     or:  cut node-a fileserver, freeze node-a
  ./dev lab exec node-b redoubt explain
  ./dev lab down
  ./dev bench failover --trials 5                every failure, measured
"""


def main():
    parser = argparse.ArgumentParser(prog="./dev demo", description="Brings up a cluster on this "
                                     "machine, breaks its active node, shows what happens, and "
                                     "cleans up. Takes about a minute.")
    parser.add_argument("--devices", type=int, default=5, metavar="N",
                        help="client devices (default: %(default)s)")
    parser.add_argument("--profile", choices=plan.PROFILES, default="balanced",
                        help="timing profile (default: %(default)s)")
    args = parser.parse_args()
    if args.devices < 1:
        parser.error("--devices: at least 1")
    teller = Teller()
    lab = Lab(f"demo-{os.getpid()}", profile=args.profile, devices=args.devices, report_ms=500,
              say=teller.event)
    demo = Demo(lab, teller)
    with interruptible(), lab:
        demo.build()
        demo.introduce()
        demo.devices()
        with Checker(lab) as checker:
            demo.planned()
            demo.disaster()
            demo.small()
            demo.sum_up(checker)
    teller.event("everything is cleaned up")
    print(NEXT)


if __name__ == "__main__":
    try:
        main()
    except LabError as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit("\ndemo: interrupted; nothing is left behind")
