"""One host of a lab: power, freezing, running commands in it, its programs."""
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

from . import kernel, plan
from .errors import LabError
from .hostpaths import CONTROL, LOGS

_INIT = os.path.join(os.path.dirname(os.path.realpath(__file__)), "hostinit.py")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Process:
    """A command running in a host.  It ends when this object's owner does."""

    def __init__(self, host, popen):
        self.host = host
        self.popen = popen

    def signal(self, number):
        """Send a signal to the command itself, once nsenter has made its process."""
        kernel.wait_until(lambda: self._kids() or self.popen.poll() is not None, 10)
        for pid in self._kids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _kids(self):
        try:
            with open(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children",
                      encoding="ascii") as file:
                return [int(pid) for pid in file.read().split()]
        except OSError:
            return []

    def wait(self, timeout=None):
        return self.popen.wait(timeout)

    def stop(self, seconds=3):
        """Ask it to end, insist after a while; what it had printed."""
        self.signal(signal.SIGTERM)
        try:
            return self.popen.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            self.popen.kill()
            return self.popen.communicate()[0]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.popen.poll() is None:
            self.stop()


class Host:
    def __init__(self, name, places, cgroup, switch):
        self.name = name
        self.places = places
        self.cgroup = cgroup          # of the whole host
        self.switch = switch

    # -- power ------------------------------------------------------------------------------

    def pid(self):
        """The host's first process as the machine sees it; None while powered off."""
        try:
            with open(self.places.host(self.name, "pid"), encoding="ascii") as file:
                pid = int(file.read())
        except (OSError, ValueError):
            return None
        return pid if self.is_on() and os.path.isdir(f"/proc/{pid}") else None

    def is_on(self):
        return bool(kernel.cgroup_event(self.cgroup, "populated"))

    def begin_boot(self):
        """Start the first process; the network card comes next."""
        if self.is_on():
            raise LabError(f"{self.name} is on already")
        os.makedirs(self.cgroup, exist_ok=True)
        kernel.cgroup_delegate(os.path.dirname(self.cgroup))
        ours, theirs = socket.socketpair()

        def enter():
            kernel.cgroup_write(self.cgroup, "cgroup.procs", "0")

        with open(self.places.host(self.name, "init.log"), "ab") as log:
            parent = subprocess.Popen(  # pylint: disable=subprocess-popen-preexec-fn
                [sys.executable, "-ISB", _INIT, self.places.host(self.name, "boot.json"),
                 str(theirs.fileno())],
                pass_fds=[theirs.fileno()], preexec_fn=enter, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True)
        theirs.close()
        ours.settimeout(60)
        return ours, parent

    def first_pid(self, boot):
        line, parent = boot
        pid = line.recv(16).decode()
        parent.wait()
        if not pid:
            raise LabError(f"{self.name} does not start: {self._init_log()}")
        with open(self.places.host(self.name, "pid"), "w", encoding="ascii") as file:
            file.write(pid)
        return int(pid)

    def end_boot(self, boot):
        line, _ = boot
        line.sendall(b"net")
        if line.recv(16) != b"ready":
            raise LabError(f"{self.name} does not start: {self._init_log()}")
        line.close()

    def _init_log(self):
        try:
            with open(self.places.host(self.name, "init.log"), encoding="utf-8") as file:
                return file.read().strip()[-600:]
        except OSError:
            return "no log"

    def power_off(self):
        """Network gone, every process killed at once, nothing cleaned up."""
        if not self.is_on():
            raise LabError(f"{self.name} is off already")
        self.switch.port_down(self.name)
        began = time.monotonic()
        kernel.cgroup_kill(self.cgroup)
        self.switch.unplug(self.name)
        kernel.cgroup_remove(self.cgroup)
        return began

    def power_on(self):
        boot = self.begin_boot()
        pid = self.first_pid(boot)
        self.switch.unsilence(self.name)
        self.switch.plug({self.name: pid})
        self.end_boot(boot)

    # -- freezing ---------------------------------------------------------------------------

    def freeze(self, keep_network=False):
        """Stop every process, as a paused virtual machine; its network is silent too."""
        self._must_be_on()
        if not keep_network:
            self.switch.silence(self.name)
        began = time.monotonic()
        kernel.cgroup_write(self.cgroup, "cgroup.freeze", "1")
        if not kernel.wait_until(self.is_frozen, 20, 0.001):
            raise LabError(f"{self.name} does not freeze")
        return began

    def thaw(self):
        self._must_be_on()
        kernel.cgroup_write(self.cgroup, "cgroup.freeze", "0")
        self.switch.unsilence(self.name)

    def is_frozen(self):
        return bool(kernel.cgroup_event(self.cgroup, "frozen"))

    # -- commands ---------------------------------------------------------------------------

    def argv(self, *command):
        """The command line that runs a command in this host; it dies with its caller."""
        pid = self._must_be_on()
        if self.is_frozen():
            raise LabError(f"{self.name} is frozen: nothing runs in it",
                           f"./dev lab thaw {self.name}")
        return ["sh", "-c", 'echo 0 > "$0/system/cgroup.procs" && exec "$@"', self.cgroup,
                "nsenter", "-t", str(pid), "-a", "--",
                "/usr/bin/env", "-i", f"PATH={PATH}", "LANG=C.UTF-8", "HOME=/root",
                f"TERM={os.environ.get('TERM', 'dumb')}",
                "setpriv", "--pdeathsig", "KILL", "--", *[str(word) for word in command]]

    def popen(self, *command, **options):
        """Start a command; see Process.  Options are those of subprocess.Popen."""
        options.setdefault("stdin", subprocess.DEVNULL)
        options.setdefault("text", True)
        return Process(self, subprocess.Popen(self.argv(*command), **options))

    def run(self, *command, check=True, timeout=60, text_in=None):
        """Run a command to its end.  Raises LabError when it fails and check is true."""
        done = subprocess.run(self.argv(*command), input=text_in, text=True, timeout=timeout,
                              capture_output=True, check=False,
                              stdin=subprocess.DEVNULL if text_in is None else None)
        if check and done.returncode != 0:
            raise LabError(f"{self.name}: {' '.join(str(word) for word in command)}: exit status "
                           f"{done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done

    def in_network(self, *command):
        """What a command of the machine prints, run in this host's network only.

        Works while the host is frozen: nothing of it takes part."""
        done = subprocess.run(["nsenter", "-t", str(self._must_be_on()), "-n", "--", *command],
                              text=True, capture_output=True, check=False, timeout=60,
                              stdin=subprocess.DEVNULL)
        return done.stdout

    def _must_be_on(self):
        pid = self.pid()
        if pid is None:
            raise LabError(f"{self.name} is powered off",
                           f"./dev lab power-on {self.name}")
        return pid

    # -- files ------------------------------------------------------------------------------

    def file(self, path):
        """Where the machine finds a file of this host, powered on or off."""
        pid = self.pid()
        if pid is not None:
            return f"/proc/{pid}/root{path}"
        return self.places.host(self.name, "upper") + path

    def read(self, path):
        with open(self.file(path), encoding="utf-8", errors="replace") as file:
            return file.read()

    def write(self, path, text, mode=0o644, owner=None):
        where = self.file(path)
        os.makedirs(os.path.dirname(where), exist_ok=True)
        handle = os.open(where, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(where, mode)
        if owner is not None:
            os.chown(where, owner, owner)

    def log(self, unit):
        """What a program of the host has printed so far."""
        try:
            return self.read(f"{LOGS}/{unit}.log")
        except FileNotFoundError:
            return ""

    # -- programs ---------------------------------------------------------------------------

    def _ask(self, message):
        self._must_be_on()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.settimeout(30)
            line.connect(self.file(CONTROL))
            line.sendall(json.dumps(message).encode())
            reply = json.loads(line.recv(65536))
        if "error" in reply:
            raise LabError(f"{self.name}: {reply['error']}")
        return reply

    def units(self):
        return {unit["name"]: unit for unit in self._ask({"op": "list"})["units"]}

    def start(self, unit):
        self._ask({"op": "start", "unit": unit})

    def stop(self, unit, number=signal.SIGTERM, seconds=30):
        """Signal a program's main process, do not start it again, wait for its end."""
        self._ask({"op": "stop", "unit": unit, "signal": int(number)})
        if not kernel.wait_until(lambda: not self.units()[unit]["running"], seconds, 0.01):
            raise LabError(f"{self.name}: {unit} does not end within {seconds} s")

    def kill_all(self, unit):
        """Kill every process of a program; the host starts it again after its pause."""
        kernel.cgroup_write(os.path.join(self.cgroup, unit), "cgroup.kill", "1")

    def freeze_unit(self, unit, on=True):
        """Stop (or continue) every process of one program."""
        kernel.cgroup_write(os.path.join(self.cgroup, unit), "cgroup.freeze", "1" if on else "0")

    def pids(self, program, unit=None):
        """Machine process numbers of a program (by the name of its file) in this host."""
        found = []
        for pid in kernel.cgroup_pids(os.path.join(self.cgroup, unit) if unit else self.cgroup):
            try:
                if os.path.basename(os.readlink(f"/proc/{pid}/exe")) == program:
                    found.append(pid)
            except OSError:
                pass
        return sorted(found)

    def send(self, program, number):
        """Signal every process of a program; when that was (monotonic), for measurements."""
        pids = self.pids(program)
        if not pids:
            raise LabError(f"{self.name}: no process {program}")
        when = time.monotonic()
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass
        return when

    def describe(self):
        power = self.is_on()
        return {"name": self.name, "address": plan.address4(self.name),
                "power": "on" if power else "off", "frozen": power and self.is_frozen()}
