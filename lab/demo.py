#!/usr/bin/python3 -B
"""./dev demo: a whole cluster at work, the active node breaks, and what the devices notice."""
import argparse
import json
import os
import sys
import textwrap
import time

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

from redoubt_lab import Lab, LabError, confs, plan  # noqa: E402
from redoubt_lab.checker import Checker, stored_as_told  # noqa: E402
from redoubt_lab.events import EVENTS  # noqa: E402
from redoubt_lab.interrupt import interruptible  # noqa: E402
from redoubt_lab.probes import Prober, outage, overlap  # noqa: E402

BEGAN = time.monotonic()
FOLDER = "/srv/files"


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
            administrator's host and {len(self.clients)} client devices with a ClamAV engine (and one
            that nobody knows yet), each in namespaces of its own on this machine; a switch connects them.""")
        self.lab.up()

    def introduce(self):
        self.tell.chapter("The cluster")
        self.tell.say(f"""The nodes share nothing but the file server, which decides who is active.
            Clients know one address, {plan.VIRTUAL4}, and the active node has it.
            On either node:  redoubt status""")
        self.lab.wait_for(lambda: self.lab.status("node-b")["active"], 20, "both know who is active")
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

    def redoubt(self, *words):
        """A command of an administrator, on the active node; what it prints is shown."""
        shown = " ".join(f'"{word}"' if " " in word else word for word in words)
        self.tell.say(f"$ redoubt {shown}")
        told = self.lab.host(self.lab.active()).run("redoubt", *words, "--no-color", timeout=120)
        return told.stdout

    def enrol(self):
        self.tell.chapter("A new device")
        self.tell.say("""A device that nobody has prepared. An administrator makes a token; the
            device makes a key that never leaves it, checks the server by the token, and gets its
            certificate.""")
        token = json.loads(self.lab.host(self.lab.active()).run(
            "redoubt", "token", "create", "one new device", "--json").stdout)["token"]
        newcomer = self.lab.host(plan.NEWCOMER)
        self.tell.say(f"$ redoubt-agent enrol --server redoubt --token {token[:24]}...")
        self.tell.block(newcomer.run("redoubt-agent", "enrol", "--server", "redoubt", "--token",
                                     token).stdout)
        newcomer.start("agent")
        self.lab.wait_for(lambda: self.lab.sql(
            "select 1 from redoubt.report r join redoubt.device d on d.id = r.device_id "
            "where d.name = %s", plan.NEWCOMER), 30, "the new device reports")
        self.tell.event("its first report is stored")
        self.lab.wait_for(lambda: self.lab.sql("select 1 from redoubt.device where name = %s and "
                                               "status = 'ok'", plan.NEWCOMER), 30,
                          "its protection is in order")

    def policy(self):
        self.tell.chapter("A policy reaches the devices")
        began = time.monotonic()
        self.tell.block(self.redoubt("policy", "set", "/", "scan.cpu_percent=3",
                                     "agent.heartbeat_s=60"))
        self.lab.wait_for(lambda: not self.lab.sql("""
            select 1 from redoubt.device d join redoubt.effective e using (group_id)
            where d.policy_hash is distinct from e.hash or d.policy_state <> 'applied' limit 1"""),
                          60, "every device applies it", 0.02)
        self.tell.event(f"applied by every device, {time.monotonic() - began:.2f} s after the "
                        f"command")
        self.tell.block(self.redoubt("device", "list"))

    def scan(self):
        """A scan is under way; what was planted for it to find."""
        self.tell.chapter("A scan, and the active node loses power in its middle")
        for host in self.clients:
            self.lab.host(host).run("sh", "-ec", f"""
                mkdir -p {FOLDER}; cd {FOLDER}
                for i in $(seq 1500); do echo "clean $i" > file-$i; done
                echo "x{confs.MARKER}x" > invoice.pdf""")
        self.tell.say(f"""On each client lies {FOLDER}/invoice.pdf, which its engine knows by a
            signature of this lab.""")
        self.redoubt("task", "create", "demo scan", "scan", "--path", FOLDER, "--group", "/")
        self.redoubt("task", "start", "demo scan")
        self.lab.wait_for(lambda: self.lab.sql(
            "select 1 from redoubt.run where state = 'running' and percent between 1 and 90"), 60,
                          "the scan is under way", 0.02)
        self.tell.event("devices are in the middle of the scan")

    def scanned(self):
        self.lab.wait_for(lambda: not self.lab.sql(
            "select 1 from redoubt.run where state <> 'finished'"), 120, "the scan ends", 0.05)
        self.tell.event("every device has finished its scan, without beginning again")
        self.tell.block(self.redoubt("task", "results", "demo scan"))
        ((finished, runs),) = self.lab.sql(
            "select count(*), count(distinct data ->> 'run') from redoubt.event "
            "where kind = 'run_finished'")
        ((found,),) = self.lab.sql("select count(*) from redoubt.event where kind = 'threat_found'")
        ((held,),) = self.lab.sql("select count(*) from redoubt.quarantine where state = 'held'")
        if finished != runs or not found == held == len(self.clients):
            raise LabError(f"{finished} ends of {runs} runs, {found} found, {held} held")
        self.tell.say(f"""{runs} runs, each told once. {found} planted files, each found once and in
            quarantine:""")
        self.tell.block(self.redoubt("device", "quarantine", self.clients[0]))

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
        self.scan()
        self.tell.say("""The processes of the active node end at this instant and its network goes dark. The other
            node cannot know that: it sees a lease that is no longer renewed, waits until the
            dead node must have stopped by itself, and takes over.""")
        active = self.happen("power-off", "power off: {active}")
        self.scanned()
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
  ./dev lab exec node-a redoubt device list      (and policy, task, events, token: README)
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
    lab = Lab(f"demo-{os.getpid()}", profile=args.profile, devices=args.devices, report_ms=500, newcomer=True,
              say=teller.event)
    demo = Demo(lab, teller)
    with interruptible(), lab:
        demo.build()
        demo.introduce()
        demo.devices()
        with Checker(lab) as checker:
            demo.enrol()
            demo.policy()
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
