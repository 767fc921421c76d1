"""A lab: twelve computers or so in namespaces, and what can be done to them."""
import concurrent.futures
import contextlib
import json
import os
import shutil
import time

from . import confs, control, kernel, pki, plan, programs, published, roles, templates
from .errors import LabError
from .host import PATH, Host
from .switch import Switch

_SIZE = "8g"       # a limit of the lab's tmpfs, not what it takes


def _quiet(_text):
    """Where progress goes when nobody watches."""


class Lab:
    """One lab by name.  up() makes it, down() forgets it; as a context manager it goes down.

    profile    timing profile of the cluster
    devices    number of client hosts
    settings   changes to redoubt.conf: {section: {key: value}}; a value of None drops the key
    report_ms  how often devices report
    newcomer   one more device, which is not enrolled
    fresh      one more computer, which has an engine, but none of our programs
    build      the build folder whose programs are tested
    say        called with a line of text at each step
    """

    def __init__(self, name="lab", profile="balanced", devices=5, settings=None, report_ms=1000,
                 build=None, say=_quiet, debug=False, newcomer=False,
                 fresh=False):
        if not plan.valid_name(name):
            raise LabError(f"'{name}' cannot name a lab",
                           "use lower-case letters, digits and '-', at most 31")
        if profile not in plan.PROFILES:
            raise LabError(f"no profile '{profile}'", "there are " + ", ".join(plan.PROFILES))
        if not 0 <= devices <= plan.DEVICES_MAX:
            raise LabError(f"{devices} devices: a lab has 0 to {plan.DEVICES_MAX}")
        self.name, self.profile, self.devices = name, profile, devices
        self.settings, self.report_ms, self.debug = settings or {}, report_ms, debug
        self.newcomer, self.fresh = newcomer, fresh
        self.say = say
        kernel.adopt_orphans()
        self.places = plan.Places(name)
        self.build = build or programs.default_build()
        self._programs = None
        self.cgroup = os.path.join(kernel.cgroup_root(), "redoubt-lab", name)
        self.switch = Switch(os.path.join(self.cgroup, "switch"), self.places.at("switch.pid"))
        self.hosts = {}
        self._makers = None
        self._set_hosts()

    def _set_hosts(self):
        self.hosts = {host: Host(host, self.places, os.path.join(self.cgroup, host), self.switch)
                      for host in plan.host_names(self.devices, self.newcomer, self.fresh)}

    @property
    def programs(self):
        if self._programs is None:
            self._programs = programs.Programs(self.build)
        return self._programs

    @classmethod
    def open(cls, name="lab"):
        """A lab that is up already."""
        lab = cls(name)
        about = lab.about()
        lab.profile, lab.devices = about["profile"], about["devices"]
        lab.build, lab.settings = about["build"], about["settings"]
        lab.report_ms, lab.debug = about["report_ms"], about["debug"]
        lab.newcomer, lab.fresh = about["newcomer"], about["fresh"]
        lab._set_hosts()
        return lab

    @staticmethod
    def names():
        """The labs of this machine, up or half up."""
        try:
            return sorted(os.listdir(plan.BASE))
        except FileNotFoundError:
            return []

    def about(self):
        try:
            with open(self.places.at("lab.json"), encoding="utf-8") as file:
                return json.load(file)
        except FileNotFoundError:
            others = [name for name in self.names() if name != self.name]
            hint = "./dev lab up starts one"
            if others:
                hint += "; these exist (choose with --name): " + ", ".join(others)
            raise LabError(f"no lab '{self.name}' is up", hint) from None

    def exists(self):
        return os.path.exists(self.places.root) or os.path.exists(self.cgroup)

    # -- up ---------------------------------------------------------------------------------

    def up(self, cluster=True):
        """Bring everything up; with cluster false the nodes stay without a cluster.

        Whatever interrupts it, nothing is left behind."""
        programs.check_machine()
        if self.exists():
            raise LabError(f"lab '{self.name}' is there already",
                           f"./dev lab down --name {self.name}, or another --name")
        self._makers = concurrent.futures.ThreadPoolExecutor(4)
        try:
            template = self._step("templates", lambda: templates.get(self.build))
            self._step("disks", lambda: self._disks(template))
            self._step("hosts", self._boot_all)
            self._step("file server and DBMS", self._wait_servers)
            if cluster:
                self.start_cluster()
            self._remember("up")
        except BaseException:
            # An interruption may have come while they were waited for: they would make anew
            # what goes down now.
            self._makers.shutdown()
            with contextlib.suppress(Exception):
                self._keep_logs()
            self.down()
            raise
        return self

    def start_cluster(self):
        """Create the cluster, start both nodes, then the devices."""
        self._step("redoubt init", lambda: self.host("node-a").run(
            "redoubt", "init", "--yes", "--ca-certificate", "/etc/redoubt/ca.pem", "--ca-key",
            "/etc/redoubt/ca.key"))
        self._step("redoubt secret fetch",
                   lambda: self.host("node-b").run("redoubt", "secret", "fetch"))
        self._step("nodes", self._start_nodes)
        if self.devices:
            self._step("devices", self._start_devices)

    def _step(self, name, work):
        began = time.monotonic()
        result = work()
        self.say(f"{name:<22} {time.monotonic() - began:5.1f} s")
        return result

    def _disks(self, template):
        os.makedirs(self.places.root, mode=0o711)
        kernel.mount("redoubt-lab", self.places.root, "tmpfs", kernel.MS_NOSUID,
                     f"mode=0711,size={_SIZE}")
        self._remember("starting")
        os.makedirs(self.cgroup)
        with self._makers as pool:
            jobs = [pool.submit(self.programs.install, self.places.at("system")),
                    pool.submit(self._make_share),
                    pool.submit(self._make_database, template),
                    pool.submit(pki.make_all, self.places.at("pki"), self.devices)]
            for job in jobs:
                job.result()
        for host in self.hosts:
            self._make_disk(host, template)

    def _make_share(self):
        for share in ("state", "data"):
            folder = self.places.at("share", share)
            os.makedirs(folder)
            if share == "state":
                kernel.mount("redoubt-lab-share", folder, "tmpfs", kernel.MS_NOSUID,
                             f"size={plan.STATE_SHARE_MIB}m")
            os.chown(folder, plan.SERVICE_UID, plan.SERVICE_UID)
            os.chmod(folder, 0o770)

    def _make_database(self, template):
        data = self.places.at("pgdata")
        templates.unpack(template, "pgdata", self.places.root)
        with open(f"{data}/postgresql.conf", "a", encoding="utf-8") as file:
            file.write(confs.POSTGRES)
        with open(f"{data}/pg_hba.conf", "w", encoding="utf-8") as file:
            file.write(confs.POSTGRES_HBA)

    def _make_disk(self, host, template):
        role = roles.describe(self, host)
        upper = self.places.host(host, "upper")
        for folder in ("upper", "work", "root"):
            os.makedirs(self.places.host(host, folder))
        os.makedirs(f"{upper}/etc")
        for name, change in (("passwd", templates.with_user), ("group", templates.with_group)):
            with open(f"/etc/{name}", encoding="utf-8") as file:
                self._put(upper, f"/etc/{name}", change(file.read()), 0o644, None)
        self._put(upper, "/etc/hosts", confs.hosts_file(host, list(self.hosts)), 0o644, None)
        for path, (text, mode, owner) in role.files.items():
            self._put(upper, path, text, mode, owner)
        for part, folder in role.unpack:
            templates.unpack(template, part, upper + folder)
        boot = {"lab": self.name, "host": host, "address4": plan.address4(host),
                "address6": plan.address6(host), "path": PATH, "log": self.places.host(
                    host, "init.log"), "system": self.places.at("system") if host != plan.FRESH
                else None,
                "upper": upper, "work": self.places.host(host, "work"),
                "root": self.places.host(host, "root"), "binds": role.binds,
                "folders": role.folders, "units": role.units}
        self._write_boot(host, boot)

    def _write_boot(self, host, boot):
        with open(self.places.host(host, "boot.json"), "w", encoding="utf-8") as file:
            json.dump(boot, file, indent=1)

    def _autostart(self, host, unit):
        """From now on this program starts with its host."""
        with open(self.places.host(host, "boot.json"), encoding="utf-8") as file:
            boot = json.load(file)
        for spec in boot["units"]:
            if spec["name"] == unit:
                spec["autostart"] = True
        self._write_boot(host, boot)

    @staticmethod
    def _put(upper, path, text, mode, owner):
        os.makedirs(os.path.dirname(upper + path), exist_ok=True)
        with open(upper + path, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(upper + path, mode)
        if owner is not None:
            os.chown(upper + path, owner, owner)

    def _boot_all(self):
        self.switch.start()
        boots = {name: host.begin_boot() for name, host in self.hosts.items()}
        pids = {name: self.hosts[name].first_pid(boot) for name, boot in boots.items()}
        self.switch.plug(pids)
        for name, boot in boots.items():
            self.hosts[name].end_boot(boot)

    def _wait_servers(self):
        ask = ("bash", "-c", "exec 3<>/dev/tcp/fileserver/445 4<>/dev/tcp/dbms/5432")
        # The DBMS listens before it has started, and refuses everybody until then.
        started = (f"{programs.postgres_bin()}/pg_isready", "-q", "-h", "/run/postgresql")
        self.wait_for(lambda: all(self.host(host).run(*words, check=False).returncode == 0
                                  for host, words in (("admin", ask), ("dbms", started))), 60,
                      "the file server and the DBMS answer", 0.05)

    def _start_nodes(self):
        for node in plan.NODES:
            self._autostart(node, "redoubt-node")
            self.host(node).start("redoubt-node")
        self.wait_ready(90)

    def _start_devices(self):
        for host in plan.managed(self.devices)[len(plan.NODES):]:
            self._autostart(host, "agent")
            self.host(host).start("agent")
        self.wait_for(lambda: all(self.acknowledged(host) for host in self.hosts
                                  if host.startswith("client-")), 60,
                      "every device has reported once", 0.05)

    def _remember(self, state):
        with open(self.places.at("lab.json"), "w", encoding="utf-8") as file:
            json.dump({"name": self.name, "state": state, "profile": self.profile,
                       "devices": self.devices, "build": self.build, "settings": self.settings,
                       "report_ms": self.report_ms, "debug": self.debug,
                       "newcomer": self.newcomer, "fresh": self.fresh}, file)

    def _keep_logs(self):
        """A lab that did not come up takes its logs with it: keep the end of them."""
        text = []
        for name, host in self.hosts.items():
            for unit in ("redoubt-node", "smbd", "postgres", "agent"):
                log = host.log(unit)
                if log and name != "admin":
                    text.append(f"== {name}: {unit}\n{log[-4000:]}")
        if text:
            with open(f"/tmp/redoubt-lab-{self.name}.log", "w", encoding="utf-8") as file:
                file.write("\n".join(text))
            self.say(f"the logs of the hosts are in {file.name}")

    # -- down -------------------------------------------------------------------------------

    def down(self):
        """Forget the lab: no process, namespace, mount, cgroup or file remains."""
        if os.path.isdir(self.cgroup):
            for host in self.hosts.values():
                if os.path.isdir(host.cgroup):
                    kernel.cgroup_write(host.cgroup, "cgroup.freeze", "0")
            kernel.cgroup_kill(self.cgroup)
            self.switch.collect()
            kernel.reap_orphans()
            kernel.cgroup_remove(self.cgroup)
        for folder in (self.places.at("share", "state"), self.places.root):
            if os.path.ismount(folder):
                # The last namespace that sees it may still be on its way out.
                if not kernel.wait_until(lambda: self._unmount(folder), 5, 0.02):
                    kernel.umount(folder, kernel.MNT_DETACH)
        if os.path.isdir(self.places.root):
            shutil.rmtree(self.places.root)
        for folder in (os.path.dirname(self.cgroup), plan.BASE):
            with contextlib.suppress(OSError):
                os.rmdir(folder)      # another lab may be using it

    @staticmethod
    def _unmount(folder):
        try:
            kernel.umount(folder)
        except OSError:
            return False
        return True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.down()

    # -- hosts and faults -------------------------------------------------------------------

    def host(self, name):
        if name not in self.hosts:
            raise LabError(f"no host '{name}' in lab '{self.name}'",
                           "there are " + ", ".join(self.hosts))
        return self.hosts[name]

    def cut(self, host, other=None, one_way=False):
        """Drop what goes between host and other (or everybody).

        one_way: only what host sends."""
        self.host(host)
        others = [self.host(other).name] if other else [
            name for name in self.hosts if name != host]
        if host in others:
            raise LabError(f"{host} cannot be cut from itself")
        pairs = {(host, name) for name in others}
        if not one_way:
            pairs |= {(name, host) for name in others}
        self.switch.cut(sorted(pairs - set(self.switch.cuts())))

    def heal(self, host=None):
        """End the cuts that concern host, or all of them."""
        if host:
            self.host(host)
        self.switch.heal([pair for pair in self.switch.cuts() if host is None or host in pair])

    def heal_everything(self):
        """Power on, thawed, no cuts: what a test leaves for the next one."""
        self.heal()
        for host in self.hosts.values():
            if not host.is_on():
                host.power_on()
            if host.is_frozen():
                host.thaw()

    # -- the cluster ------------------------------------------------------------------------

    def status(self, node=None, timeout=10.0):
        """`redoubt status` as a dictionary, as told by one node (or by any that answers)."""
        error = None
        for name in [node] if node else plan.NODES:
            host = self.host(name)
            if host.pid() is None or host.is_frozen():
                error = LabError(f"{name} is off or frozen")
                continue
            try:
                return control.get(host, "/v1/status", timeout)
            except (OSError, ValueError) as problem:
                error = LabError(f"{name} does not answer: {problem}")
        raise error

    def own_state(self, node):
        """What a node says about itself: its entry in nodes[], or None when it says nothing."""
        try:
            told = self.status(node)
        except LabError:
            return None
        return self._entry(told, node)

    def active(self):
        """The node that says of itself that it is active; None if none does."""
        for node in plan.NODES:
            own = self.own_state(node)
            if own and own["role"] == "active" and own["state"] == "active":
                return node
        return None

    @staticmethod
    def other(node):
        return plan.NODES[1 - plan.NODES.index(node)]

    def passive(self):
        active = self.active()
        return None if active is None else self.other(active)

    @staticmethod
    def _entry(told, node):
        return next((entry for entry in told["nodes"] if entry["name"] == node), None)

    @staticmethod
    def _renews(active, lease):
        """A holder that cannot renew any more is active until its lease has run out."""
        return (lease is not None and lease["holder"] == active
                and lease["remaining_ms"] is not None
                and 2 * lease["remaining_ms"] > lease["hold_ms"])

    def ready(self):
        """The active node, if the other is prepared, and each knows it of the other; else None."""
        active = self.active()
        if active is None:
            return None
        other = self.other(active)
        try:
            told, seen = self.status(other), self.status(active)
        except LabError:
            return None
        own, peer = self._entry(told, other), self._entry(seen, other)
        # A node that has just lost the share says "ready" until it has noticed.
        knows = (own and peer and told["active"] == active and own["ready"]
                 and own["state"] == "ready" and own["share"]["ok"]
                 and peer["ready"] and peer["state"] == "ready")
        return active if knows and self._renews(active, seen["lease"]) else None

    def is_ready(self):
        return self.ready() is not None

    def wait_ready(self, seconds=30):
        return self.wait_for(self.ready, seconds, "one node is active and the other is ready",
                             0.02, self._why_not_ready)

    def _why_not_ready(self):
        lines = []
        for node in plan.NODES:
            own = self.own_state(node)
            if own is None:
                log = self.host(node).log("redoubt-node").strip().splitlines()
                lines.append(f"{node} says nothing; its log ends: " + "\n   ".join(log[-8:]))
            else:
                because = "; ".join(own.get("not_ready_because", []))
                lines.append(f"{node}: {own['role']}, {own['state']} {because}")
        return "\n  ".join(lines)

    def managed(self):
        """The hosts with an agent."""
        return plan.managed(self.devices)

    def acknowledged(self, host):
        """What the agent of a host was told is stored: lines of (device, report, sequence)."""
        path = confs.NODE_ACKS if host in plan.NODES else confs.ACK_LOG
        try:
            text = self.host(host).read(path)
        except FileNotFoundError:
            return []
        # a line without its end is being written
        lines = [line.split() for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [(line[0], line[1], int(line[2])) for line in lines if len(line) == 3]

    @staticmethod
    def wait_for(condition, seconds, what, step=0.05, why=None):
        """Poll until the condition holds; LabError says what did not happen, and why."""
        value = kernel.wait_until(condition, seconds, step)
        if not value:
            raise LabError(f"waited {seconds} s in vain: {what}", why() if why else "")
        return value

    # -- the database -----------------------------------------------------------------------

    def database(self):
        """A psycopg2 connection as the superuser, by the Unix socket: no network involved."""
        import psycopg2  # pylint: disable=import-outside-toplevel
        connection = psycopg2.connect(host=self.host("dbms").file("/run/postgresql"),
                                      dbname="redoubt", user="postgres")
        connection.autocommit = True
        return connection

    def sql(self, statement, *values):
        """The rows a statement gives (an empty list when it gives none)."""
        connection = self.database()
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement, values or None)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    # -- what is published --------------------------------------------------------------------

    def publish(self, files, wait=60):
        """{"public/sig/x": bytes}: these and no others of ours.  Waits until all nodes that run
        have them; wait None: does not."""
        serial = published.publish(self, files)
        if wait is not None:
            self.wait_for(lambda: all(self.has_published(node, serial) for node in plan.NODES
                                      if self.host(node).pid() is not None), wait,
                          f"every node has what is published ({serial})", 0.05)
        return serial

    def content(self, node):
        """What a node says of its copy of what is published, or {}."""
        return (self.own_state(node) or {}).get("content") or {}

    def has_published(self, node, serial):
        told = self.content(node)
        return bool(told.get("prepared") and told["shown"] >= serial and not told["missing"])

    # -- for people -------------------------------------------------------------------------

    def describe(self):
        """Everything `./dev lab status` shows."""
        about = self.about()
        cluster = None
        with contextlib.suppress(LabError):
            cluster = self.status(timeout=1.0)
        return {"name": self.name, "state": about["state"], "profile": self.profile,
                "hosts": [host.describe() for host in self.hosts.values()],
                "cuts": [{"from": one, "to": two} for one, two in self.switch.cuts()],
                "cluster": cluster}
