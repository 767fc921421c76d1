"""The system calls that Python 3.11 lacks, and the cgroup tree.

Nothing here knows what a lab is.
"""
import contextlib
import ctypes
import os
import time

from .errors import LabError

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_CHILD_SUBREAPER = 36
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result, what):
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags):
    _check(_libc.unshare(flags), "unshare")


def setns(fd, flags):
    _check(_libc.setns(fd, flags), "setns")


def mount(source, target, kind=None, flags=0, data=None):
    def raw(value):
        return None if value is None else os.fsencode(value)

    _check(_libc.mount(raw(source), raw(target), raw(kind), ctypes.c_ulong(flags), raw(data)),
           f"mount {kind or source} on {target}")


def umount(target, flags=0):
    _check(_libc.umount2(os.fsencode(target), flags), f"umount {target}")


def pivot_root(new, old):
    number = SYS_PIVOT_ROOT[os.uname().machine]
    _check(_libc.syscall(ctypes.c_long(number), os.fsencode(new), os.fsencode(old)), "pivot_root")


def adopt_orphans():
    """From now on the orphans below this process become its children; see reap_orphans()."""
    _check(_libc.prctl(PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), 0, 0, 0), "prctl")


def reap_orphans():
    """Collect the dead of inner process namespaces that we adopted.

    The first process of a namespace cannot end before all others in it are collected, and a
    command that was run in a host from outside is collected by us, not by it.  Our own
    subprocesses are in our namespace: they are left to whoever started them."""
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children", encoding="ascii") as file:
                children = file.read().split()
        except OSError:
            continue   # a thread that has just ended
        for pid in children:
            try:
                with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
                    status = dict(line.split(":", 1) for line in file if ":" in line)
                if status["State"].strip().startswith("Z") and len(status["NSpid"].split()) > 1:
                    os.waitpid(int(pid), os.WNOHANG)
            except (OSError, KeyError):
                pass


def cgroup_root():
    """Where cgroup v2 is mounted: alone, or beside version 1."""
    found = None
    with open("/proc/self/mountinfo", encoding="utf-8") as mounts:
        for line in mounts:
            left, _, right = line.partition(" - ")
            if right.startswith("cgroup2 "):
                found = left.split()[4]
                if found == "/sys/fs/cgroup":
                    break
    if found is None:
        raise LabError("cgroup v2 is not mounted on this machine",
                       "mount -t cgroup2 none /sys/fs/cgroup/unified")
    return found


def cgroup_write(path, name, text):
    with open(os.path.join(path, name), "w", encoding="ascii") as file:
        file.write(text)


def cgroup_delegate(path):
    """Give the children of a cgroup every controller there is (there may be none)."""
    try:
        with open(os.path.join(path, "cgroup.controllers"), encoding="ascii") as file:
            for controller in file.read().split():
                if controller in ("cpu", "memory", "pids"):
                    cgroup_write(path, "cgroup.subtree_control", "+" + controller)
    except OSError:
        pass  # the limits of services are then not enforced; everything else works


def cgroup_event(path, key):
    """One value of cgroup.events, or None when the cgroup is gone."""
    try:
        with open(os.path.join(path, "cgroup.events"), encoding="ascii") as file:
            for line in file:
                name, value = line.split()
                if name == key:
                    return int(value)
    except FileNotFoundError:
        pass
    return None


def cgroup_pids(path):
    """Every process of a cgroup and of those below it."""
    pids = []
    for folder, _, _ in os.walk(path):
        try:
            with open(os.path.join(folder, "cgroup.procs"), encoding="ascii") as file:
                pids += [int(line) for line in file]
        except OSError:
            pass
    return pids


def cgroup_kill(path, seconds=30):
    """Kill everything in a cgroup and wait until it is gone; frozen processes too."""
    if not os.path.isdir(path):
        return

    def ended():
        # Again and again: a process that was forked before may still be on its way in.
        cgroup_write(path, "cgroup.kill", "1")
        reap_orphans()
        return not cgroup_event(path, "populated")

    if not wait_until(ended, seconds):
        raise LabError(f"processes in {path} do not end: {cgroup_pids(path)}",
                       "a process is stuck in the kernel; look at /proc/PID/stack")


def cgroup_remove(path):
    """Remove a cgroup without processes, and the ones below it."""
    for folder, _, _ in os.walk(path, topdown=False):
        # A process that was just reaped may hold its cgroup for a moment.
        wait_until(lambda: _rmdir(folder), 10)  # pylint: disable=cell-var-from-loop


def _rmdir(folder):
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        pass
    except OSError:
        # One that came in after the kill; only where the folder is still there.
        with contextlib.suppress(OSError):
            cgroup_write(folder, "cgroup.kill", "1")
        return False
    return True


def wait_until(condition, seconds, step=0.005):
    """Poll until the condition holds; its last value."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value or time.monotonic() >= end:
            return value
        time.sleep(step)
