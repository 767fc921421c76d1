"""The switch: a bridge in a network namespace of its own, with rules that drop traffic.

The namespace is held by one sleeping process in the cgroup <lab>/switch, so it ends with
the lab's other processes.  Ports carry the names of their hosts.
"""
import contextlib
import json
import os
import subprocess

from . import kernel, plan
from .errors import LabError

_RULES = """
table bridge lab {
    set cut { type ifname . ifname; }
    set silent { type ifname; }
    chain relay {
        type filter hook forward priority 0; policy accept;
        iifname . oifname @cut drop
        iifname @silent drop
        oifname @silent drop
    }
}
"""


class Switch:
    def __init__(self, cgroup, pid_file):
        self.cgroup = cgroup
        self.pid_file = pid_file
        self.holder = None

    def start(self):
        os.makedirs(self.cgroup, exist_ok=True)

        def enter():
            kernel.cgroup_write(self.cgroup, "cgroup.procs", "0")
            kernel.unshare(kernel.CLONE_NEWNET)

        self.holder = subprocess.Popen(  # pylint: disable=subprocess-popen-preexec-fn
            ["sleep", "infinity"], preexec_fn=enter, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with open(self.pid_file, "w", encoding="ascii") as file:
            file.write(str(self.holder.pid))
        self._ip(["link add name br0 type bridge stp_state 0 mcast_snooping 0",
                  "link set br0 up"])
        self._nft(_RULES)

    def collect(self):
        """After the lab's processes were killed: let go of ours."""
        if self.holder is not None:
            self.holder.wait()

    def plug(self, cards):
        """cards: {host: pid of its first process}; each gets eth0, linked to our port."""
        lines = []
        for host, pid in cards.items():
            lines += [f"link add {host} type veth peer name eth0 address {plan.mac(host)} "
                      f"netns {pid}",
                      f"link set {host} master br0", f"link set {host} up"]
        self._ip(lines)

    def plug_raw(self, name, pid, number):
        """A network card for something that is no host; number is the end of its address."""
        self._ip([f"link add {name} type veth peer name eth0 "
                  f"address 02:77:00:00:00:{number:02x} netns {pid}",
                  f"link set {name} master br0", f"link set {name} up"])

    def port_down(self, host):
        self._ip([f"link set {host} down"])

    def unplug(self, host):
        """Take a port away; its other end goes with it."""
        if host in self.ports():
            with contextlib.suppress(LabError):     # it may be going at this moment
                self._ip([f"link del {host}"])
        if host in self.ports():
            raise LabError(f"the port of {host} does not go away")

    def ports(self):
        reply = self._run(["ip", "-j", "link", "show", "master", "br0"])
        return [port["ifname"] for port in json.loads(reply or "[]")]

    def cut(self, pairs):
        """Drop what comes from the first host for the second, for each pair."""
        if pairs:
            items = ", ".join(f'"{one}" . "{two}"' for one, two in pairs)
            self._nft(f"add element bridge lab cut {{ {items} }}")

    def heal(self, pairs):
        if pairs:
            items = ", ".join(f'"{one}" . "{two}"' for one, two in pairs)
            self._nft(f"delete element bridge lab cut {{ {items} }}")

    def cuts(self):
        return sorted(tuple(item["concat"]) for item in self._elements("cut"))

    def silence(self, host):
        self._nft(f'add element bridge lab silent {{ "{host}" }}')

    def unsilence(self, host):
        if host in self._elements("silent"):
            self._nft(f'delete element bridge lab silent {{ "{host}" }}')

    def _elements(self, name):
        reply = json.loads(self._run(["nft", "-j", "list", "set", "bridge", "lab", name]))
        for item in reply["nftables"]:
            if "set" in item:
                return item["set"].get("elem", [])
        return []

    def _pid(self):
        try:
            with open(self.pid_file, encoding="ascii") as file:
                return int(file.read())
        except (OSError, ValueError) as error:
            raise LabError("the lab's switch is not there", "./dev lab down, then up") from error

    def _ip(self, lines):
        self._run(["ip", "-batch", "-"], "\n".join(lines) + "\n")

    def _nft(self, rules):
        self._run(["nft", "-f", "-"], rules)

    def _run(self, argv, text=""):
        done = subprocess.run(["nsenter", "-t", str(self._pid()), "-n", "--", *argv], input=text,
                              text=True, capture_output=True, check=False)
        if done.returncode != 0:
            raise LabError(f"switch: {' '.join(argv)}: {done.stderr.strip()}\n{text.strip()}")
        return done.stdout
