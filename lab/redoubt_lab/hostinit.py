"""Process 1 of a lab host: builds the host around itself, then keeps its programs running.

Started by host.py as a program of its own:  hostinit.py BOOT_FILE FD

BOOT_FILE (JSON, written by host.py) says what the host is.  FD is one end of a socket pair:
it carries our process number (seen from outside), then "net" from the lab once the network
card is plugged in, then "ready" from us.  After that the lab talks to the control socket in
/run/redoubt-lab.sock: one JSON request a connection, one JSON reply.

The host is a mount, network, process, IPC, UTS and cgroup namespace.  Its disk is an overlay:
below it the machine's own root and the programs under test, above it a folder of the lab,
which survives a power-off.
"""
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from redoubt_lab import kernel  # noqa: E402
from redoubt_lab.hostpaths import CONTROL, LOGS  # noqa: E402



class Unit:
    """One program of the host: started, and started again when it ends, if so wished."""

    def __init__(self, spec):
        self.spec = spec
        self.name = spec["name"]
        self.wanted = spec.get("autostart", True)
        self.process = None
        self.starts = 0
        self.again_at = 0.0

    def cgroup(self):
        return os.path.join("/sys/fs/cgroup", self.name)

    def start(self):
        os.makedirs(self.cgroup(), exist_ok=True)

        def enter():
            kernel.cgroup_write(self.cgroup(), "cgroup.procs", "0")

        user, argv = self.spec.get("user"), self.spec["argv"]
        if user:
            argv = ["setpriv", "--reuid", user, "--regid", user, "--init-groups", "--", *argv]
        with open(f"{LOGS}/{self.name}.log", "ab", buffering=0) as log:
            try:
                self.process = subprocess.Popen(  # pylint: disable=subprocess-popen-preexec-fn
                    argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
                    start_new_session=True, preexec_fn=enter,
                    env={**os.environ, **self.spec.get("env", {})})
            except (OSError, subprocess.SubprocessError) as error:
                log.write(f"[lab] {self.name} cannot be started: {error}\n".encode())
                self.again_at = time.monotonic() + 1.0
                return
        self.starts += 1

    def ended(self, now):
        """Its main process is gone: say when to start it again."""
        status = self.process.returncode
        with open(f"{LOGS}/{self.name}.log", "a", encoding="utf-8") as log:
            log.write(f"[lab] {self.name} ended with status {status}\n")
        self.process = None
        self.again_at = now + self.spec.get("restart_s", 1.0)

    def describe(self):
        return {"name": self.name, "wanted": self.wanted, "starts": self.starts,
                "running": self.process is not None,
                "pid": self.process.pid if self.process else None}


class Init:
    def __init__(self, boot):
        self.boot = boot
        self.units = {spec["name"]: Unit(spec) for spec in boot["units"]}
        self.selector = selectors.DefaultSelector()

    # -- building the host ------------------------------------------------------------------

    def mounts(self):
        boot, root = self.boot, self.boot["root"]
        kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
        below = f"{boot['system']}:/" if boot["system"] else "/"
        kernel.mount("overlay", root, "overlay", 0,
                     f"lowerdir={below},upperdir={boot['upper']},workdir={boot['work']}")
        for kind, where in (("proc", "proc"), ("sysfs", "sys"), ("tmpfs", "run")):
            os.makedirs(f"{root}/{where}", exist_ok=True)
            kernel.mount(kind, f"{root}/{where}", kind)
        kernel.mount("/dev", f"{root}/dev", None, kernel.MS_BIND | kernel.MS_REC)
        kernel.mount("tmpfs", f"{root}/dev/shm", "tmpfs")
        kernel.mount("cgroup2", f"{root}/sys/fs/cgroup", "cgroup2")
        for source, target in boot["binds"]:
            os.makedirs(root + target, exist_ok=True)
            kernel.mount(source, root + target, None, kernel.MS_BIND)
        for folder, user in boot["folders"]:
            os.makedirs(root + folder, exist_ok=True)
            if user:
                os.chown(root + folder, *user)
        os.chdir(root)
        kernel.pivot_root(".", ".")
        kernel.umount(".", kernel.MNT_DETACH)
        os.chdir("/")

    def network(self):
        boot = self.boot
        for knob, value in (("all/accept_dad", 0), ("default/accept_dad", 0),
                            ("all/accept_ra", 0), ("default/accept_ra", 0)):
            path = f"/proc/sys/net/ipv6/conf/{knob}"
            if os.path.exists(path):
                with open(path, "w", encoding="ascii") as file:
                    file.write(str(value))
        lines = ["link set lo up", "link set eth0 up", f"addr add {boot['address4']}/24 dev eth0"]
        if os.path.exists("/proc/sys/net/ipv6"):
            lines.append(f"addr add {boot['address6']}/64 dev eth0 nodad")
        subprocess.run(["ip", "-batch", "-"], input="\n".join(lines) + "\n", text=True, check=True)

    # -- running it -------------------------------------------------------------------------

    def reap(self):
        now = time.monotonic()
        for unit in self.units.values():
            if unit.process and unit.process.poll() is not None:
                unit.ended(now)
        known = {unit.process.pid for unit in self.units.values() if unit.process}
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            if found.si_pid in known:
                return self.reap()
            os.waitpid(found.si_pid, 0)

    def start_due(self):
        """Start what should run and does not; how long until the next start, in seconds."""
        wait = None
        for unit in self.units.values():
            if unit.process or not unit.wanted:
                continue
            left = unit.again_at - time.monotonic()
            if left <= 0:
                unit.start()
            else:
                wait = left if wait is None else min(wait, left)
        return wait

    def request(self, message):
        if message["op"] == "list":
            return {"units": [unit.describe() for unit in self.units.values()]}
        unit = self.units.get(message.get("unit"))
        if unit is None:
            return {"error": f"no program {message.get('unit')} here; there are "
                             + ", ".join(self.units)}
        if message["op"] == "start":
            unit.wanted, unit.again_at = True, 0.0
            return {}
        if message["op"] == "stop":
            unit.wanted = False
            if unit.process:
                unit.process.send_signal(message["signal"])
            return {}
        return {"error": f"unknown request {message['op']}"}

    def answer(self, listener):
        client, _ = listener.accept()
        with client:
            client.settimeout(20)
            try:
                reply = self.request(json.loads(client.recv(65536)))
                client.sendall(json.dumps(reply).encode())
            except (OSError, ValueError, KeyError) as error:
                print(f"lab init: bad request: {error}", file=sys.stderr)

    def loop(self, listener, wakeup):
        self.selector.register(listener, selectors.EVENT_READ)
        self.selector.register(wakeup, selectors.EVENT_READ)
        while True:
            self.reap()
            for key, _ in self.selector.select(self.start_due()):
                if key.fileobj is listener:
                    self.answer(listener)
                else:
                    wakeup.recv(4096)


def run(boot, lab):
    """The life of process 1."""
    init = Init(boot)
    os.setsid()
    socket.sethostname(boot["host"])
    init.mounts()
    if lab.recv(16) != b"net":
        raise RuntimeError("the lab went away")
    init.network()
    # Processes may not sit in a cgroup that hands controllers to its children.
    os.makedirs("/sys/fs/cgroup/system", exist_ok=True)
    kernel.cgroup_write("/sys/fs/cgroup/system", "cgroup.procs", "0")
    kernel.cgroup_delegate("/sys/fs/cgroup")
    os.makedirs(LOGS, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(CONTROL)
    listener.listen(16)
    wakeup, wakeup_in = socket.socketpair()
    wakeup_in.setblocking(False)
    signal.set_wakeup_fd(wakeup_in.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    lab.sendall(b"ready")
    lab.close()
    init.loop(listener, wakeup)


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        boot = json.load(file)
    lab = socket.socket(fileno=int(sys.argv[2]))
    os.environ.clear()
    os.environ.update(PATH=boot["path"], LANG="C.UTF-8", HOME="/root")
    kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWUTS
                   | kernel.CLONE_NEWIPC | kernel.CLONE_NEWPID | kernel.CLONE_NEWCGROUP)
    pid = os.fork()
    if pid:
        lab.sendall(str(pid).encode())
        os._exit(0)
    with open(boot["log"], "ab", buffering=0) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    run(boot, lab)


main()
