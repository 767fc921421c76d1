"""Were two nodes ever active at once?  Was anything lost that a device was told is stored?

The watchers are two clients of the virtual address, each with a neighbour table that is fixed
to one node's network card.  So each always talks to its node, whoever holds the address by
right, as a client with the stalest possible ARP cache would; and no cut concerns them.  They
ask both the Administration Server and the Web Server, the Web Server every 5 ms.
"""
import contextlib
import dataclasses
import os
import subprocess
import threading
import time

from . import kernel, plan
from .errors import LabError
from .probes import Prober, worst_overlap

_CARDS = {"watch-a": 201, "watch-b": 202}


class _Watcher:
    """A network namespace on the switch, with one sleeping process to hold it."""

    def __init__(self, lab, name, node):
        self.lab, self.name, self.node = lab, name, node
        self.cgroup = os.path.join(lab.cgroup, name)
        self.holder = None

    def start(self):
        os.makedirs(self.cgroup, exist_ok=True)

        def enter():
            kernel.cgroup_write(self.cgroup, "cgroup.procs", "0")
            kernel.unshare(kernel.CLONE_NEWNET)

        self.holder = subprocess.Popen(  # pylint: disable=subprocess-popen-preexec-fn
            ["sleep", "infinity"], preexec_fn=enter, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self.lab.switch.plug_raw(self.name, self.holder.pid, _CARDS[self.name])
        card = plan.mac(self.node)
        lines = ["link set lo up", "link set eth0 up",
                 f"addr add {plan.NET4}.{_CARDS[self.name]}/24 dev eth0",
                 f"neigh replace {plan.VIRTUAL4} lladdr {card} nud permanent dev eth0"]
        subprocess.run(["nsenter", "-t", str(self.holder.pid), "-n", "ip", "-batch", "-"],
                       input="\n".join(lines) + "\n", text=True, check=True)

    def pid(self):
        return self.holder.pid

    def stop(self):
        if self.holder is not None:
            with contextlib.suppress(LabError):
                kernel.cgroup_kill(self.cgroup)
            self.holder.wait()
            self.lab.switch.unplug(self.name)
            kernel.cgroup_remove(self.cgroup)


class Checker:
    """Watches from the start of the `with` block; verify() says whether all was well."""

    def __init__(self, lab):
        self.lab = lab
        self.watchers = [_Watcher(lab, name, node)
                         for name, node in zip(_CARDS, plan.NODES)]
        self.probers, self.answers = [], []
        self._thread, self._stop, self._error = None, threading.Event(), None

    def __enter__(self):
        try:
            for watcher in self.watchers:
                watcher.start()
                for kinds, every in ((("http",), 5), (("tls",), 25)):
                    prober = Prober(self.lab, kinds=kinds, interval_ms=every, timeout_ms=400,
                                    source=watcher)
                    prober.__enter__()
                    self.probers.append((watcher.node, prober))
        except BaseException:
            self.__exit__()
            raise
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        for _, prober in self.probers:
            prober.__exit__()
        for watcher in self.watchers:
            watcher.stop()

    def _collect(self):
        while not self._stop.wait(0.1):
            try:
                self._take()
            except (LabError, ValueError) as error:
                self._error = error
                return

    def _take(self):
        for node, prober in self.probers:
            for answer in prober.answers():
                if not answer.good:
                    continue
                if answer.node not in ("?", node):
                    raise LabError(f"{answer.node} answered at the card of {node}")
                self.answers.append(dataclasses.replace(answer, node=node))

    def samples(self):
        """How many good answers there were from each node."""
        return {node: sum(answer.node == node for answer in list(self.answers))
                for node in plan.NODES}

    def verify(self):
        """Raise LabError if two nodes answered at once or something acknowledged is missing."""
        time.sleep(0.25)          # what is on its way arrives
        if self._error:
            raise self._error
        if not self.answers:
            raise LabError("the watchers saw no answer at all: nothing was checked")
        both, who = worst_overlap(list(self.answers))
        if both > 0:
            raise LabError(f"two nodes answered at once, for {both * 1000:.1f} ms at least: {who}")
        stored_as_told(self.lab)
        epochs_in_order(self.lab)


def stored_as_told(lab):
    """Everything acknowledged is stored, once; how many reports that were."""
    told = {}
    for host in lab.managed():
        for device, report, number in lab.acknowledged(host):
            told[(device, report)] = number
    rows = lab.sql("select device_id::text, report_id::text, seq from redoubt.report")
    stored = {(device, report): number for device, report, number in rows}
    lost = [key for key, number in told.items() if stored.get(key) != number]
    if lost:
        raise LabError(f"{len(lost)} of {len(told)} acknowledged reports are not stored, "
                       f"for example {lost[0]} (number {told[lost[0]]})")
    doubled = lab.sql("select device_id::text, seq, count(*) from redoubt.report "
                      "group by 1, 2 having count(*) > 1")
    if doubled:
        raise LabError(f"{len(doubled)} reports are stored twice, for example {doubled[0]}")
    return len(told)


def epochs_in_order(lab):
    """No epoch wrote after a later one had: the fence held."""
    late = lab.sql("""
        select one.epoch, two.epoch, one.last, two.first
        from (select epoch, max(received_at) as last from redoubt.report group by 1) one
        join (select epoch, min(received_at) as first from redoubt.report group by 1) two
          on two.epoch > one.epoch and two.first < one.last""")
    if late:
        raise LabError(f"epoch {late[0][0]} wrote at {late[0][2]}, after epoch {late[0][1]} had "
                       f"begun at {late[0][3]}")
