#!/usr/bin/python3 -B
"""./dev demo: a whole cluster at work, the active node breaks, and what the devices notice."""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time

HERE = os.path.dirname(os.path.realpath(__file__))
FIXTURES = os.path.join(os.path.dirname(HERE), "tools", "signature-fixtures")
sys.path.insert(0, HERE)

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
            administrator's host, a vendor of licences and {len(self.clients)} client devices with a
            ClamAV engine (one more that nobody knows yet, and one without any program of ours), each
            in namespaces of its own on this machine; a switch connects them.""")
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

    def active(self):
        return self.lab.host(self.lab.wait_for(self.lab.active, 30, "a node is active"))

    def redoubt(self, *words):
        """A command of an administrator, on the active node; what it prints is shown."""
        shown = " ".join(f'"{word}"' if " " in word else word for word in words)
        self.tell.say(f"$ redoubt {shown}")
        told = self.active().run("redoubt", *words, "--no-color", timeout=120)
        return told.stdout

    def enrol(self):
        self.tell.chapter("A new device")
        self.tell.say("""A device that nobody has prepared. An administrator makes a token; the
            device makes a key that never leaves it, checks the server by the token, and gets its
            certificate.""")
        token = json.loads(self.active().run(
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
        self._in_order(plan.NEWCOMER)

    def bring(self, file, name=None):
        """A file that an administrator brings to the active node."""
        path = f"/root/{name or os.path.basename(file)}"
        shutil.copy(file, self.active().file(path))
        return path

    def install(self):
        self.tell.chapter("A computer installs the agent from the Web Server")
        self.tell.say("""The package of the agent is published: it goes to the data share, signed, and both
            nodes copy it. An installer is made of it, which brings the address of the cluster, its
            authority and a token. The computer runs one command.""")
        with tempfile.TemporaryDirectory(prefix="redoubt-demo-") as folder:
            self.tell.block(self.redoubt("package", "publish", self.bring(
                self.lab.programs.package("redoubt-agent", folder))))
        node = self.active()
        self.tell.say("$ redoubt package agent")
        told = self.lab.wait_for(lambda: json.loads(node.run(
            "redoubt", "package", "agent", "--json", check=False).stdout or "{}"), 60,
                                 "the installer is made", 0.2)
        fresh = self.lab.host(plan.FRESH)
        self.lab.wait_for(lambda: fresh.run("curl", "-fsSk", "-o", "/dev/null", told["script_url"],
                                            check=False).returncode == 0, 60,
                          "the Web Server has the installer", 0.1)
        self.tell.say("$ " + told["command"].replace(told["script_url"],
                                                     told["script_url"][:70] + "..."))
        done = fresh.run("bash", "-o", "pipefail", "-c", told["command"], timeout=120)
        self.tell.block("\n".join(done.stdout.strip().splitlines()[-3:]))
        fresh.start("agent")   # systemd does it where it runs
        self.lab.wait_for(lambda: self.lab.sql(
            "select 1 from redoubt.report r join redoubt.device d on d.id = r.device_id "
            "where d.name = %s", plan.FRESH), 60, "the installed device reports")
        self.tell.event("the first report of the installed agent is stored")
        self._in_order(plan.FRESH)

    def _in_order(self, name):
        self.lab.wait_for(lambda: self.lab.sql("select 1 from redoubt.device where name = %s and "
                                               "status = 'ok'", name), 30,
                          f"the protection of {name} is in order", 0.05, lambda: str(self.lab.sql(
                              "select reasons from redoubt.device where name = %s", name)))

    def signatures(self):
        self.tell.chapter("Signatures from the cluster's own mirror")
        fetched = subprocess.run([FIXTURES], capture_output=True, text=True, check=False)
        client = self.lab.host(self.clients[0])
        client.run("mkdir", "-p", "/root/db")
        mirror = f"http://redoubt:{plan.HTTP_PORT}"
        if fetched.returncode != 0:
            self.tell.say(f"""ClamAV's signed test databases cannot be had here: {fetched.stderr}
                A file of our own stands in for them.""")
            self._own_signatures(client, mirror)
            return
        folder = fetched.stdout.strip()
        self.tell.say("""An administrator imports a database, later its next version with the increment; each is
            published as a whole. On a client stock freshclam fetches them, then what changed.""")
        client.write("/root/freshclam.conf", f"""DatabaseDirectory /root/db
DatabaseOwner root
DatabaseMirror {mirror}/sig
DNSDatabaseInfo no
ExcludeDatabase main
ExcludeDatabase daily
ExcludeDatabase bytecode
""")
        for version in (5, 6):
            files = [self.bring(f"{folder}/test-{version}.cvd", "test.cvd"),
                     self.bring(f"{folder}/test-{version}.cdiff")]
            self.tell.block(self.redoubt("signature", "import", *files))
            said = self.lab.wait_for(lambda v=version: self._freshclam(client, v), 60,
                                     f"freshclam has version {version}", 0.2)
            self.tell.say("$ freshclam --update-db=test")
            self.tell.block(said)

    @staticmethod
    def _freshclam(client, version):
        """The lines about the database, once freshclam has this version."""
        said = client.run("freshclam", "--config-file=/root/freshclam.conf", "--update-db=test",
                          "--stdout", check=False).stdout
        lines = [line for line in said.splitlines() if line.startswith(("test.", "Downloaded"))]
        return "\n".join(lines) if f"version: {version}," in said else None

    def _own_signatures(self, client, mirror):
        self.active().write("/root/own.ndb", confs.SIGNATURES)
        self.tell.block(self.redoubt("signature", "custom", "publish", "/root/own.ndb"))
        client.write("/root/freshclam.conf", f"""DatabaseDirectory /root/db
DatabaseOwner root
DatabaseCustomURL {mirror}/custom/own.ndb
ExcludeDatabase main
ExcludeDatabase daily
ExcludeDatabase bytecode
PrivateMirror {mirror}/sig
""")
        self.lab.wait_for(lambda: client.run(
            "freshclam", "--config-file=/root/freshclam.conf", "--stdout",
            check=False).returncode == 0 or os.path.exists(client.file("/root/db/own.ndb")), 60,
                          "freshclam has the file", 0.2)
        self.tell.event("stock freshclam has it")

    def licence(self):
        self.tell.chapter("A licence, and the vendor goes away")
        self.tell.say("""An activation code goes to the vendor, who answers with a signed licence; the cluster keeps
            the answer. Then the vendor loses power, and the nodes will switch.""")
        self.redoubt("licence", "add", confs.CODE)
        self.lab.wait_for(lambda: self.lab.sql(
            "select 1 from redoubt.licence where code = %s and envelope is not null", confs.CODE),
                          60, "the vendor has answered", 0.1)
        self.tell.block(self.redoubt("licence", "list"))
        self.lab.host("vendor").power_off()
        self.tell.event("power off: vendor")

    def renewed(self):
        """A lease is renewed by a device, at whichever node is active."""
        client = self.lab.host(self.clients[0])

        def ask():
            told = client.run("curl", "-sS", "-m", "5", "--cacert", "/etc/redoubt/agent-ca.pem",
                              "--cert", "/etc/redoubt/agent.pem", "--key", "/etc/redoubt/agent.key",
                              "-d", "{}", f"https://redoubt:{plan.ACTIVATION_PORT}/v1/activate",
                              check=False).stdout
            answer = json.loads(told or "{}")
            return json.loads(answer["document"]) if "document" in answer else None

        lease = self.lab.wait_for(ask, 30, "the lease is renewed", 0.1)
        ((devices, seats),) = self.lab.sql(
            "select count(distinct device), count(*) from redoubt.seat")
        if devices != seats:
            raise LabError(f"{seats} seats of {devices} devices")
        self.tell.say(f"""The vendor is away and the nodes have switched: {self.clients[0]} renews its
            lease of the licence of {lease['customer']} all the same; it is good until
            {lease['expires']}. {devices} devices hold {seats} seats.""")
        self.lab.host("vendor").power_on()

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
        self.renewed()

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
              fresh=True, say=teller.event)
    demo = Demo(lab, teller)
    with interruptible(), lab:
        demo.build()
        demo.introduce()
        demo.devices()
        with Checker(lab) as checker:
            demo.enrol()
            demo.install()
            demo.policy()
            demo.signatures()
            demo.licence()
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
