"""What can happen to an active node: done and undone, for the bench, the demo and the tests."""
import contextlib
import signal
import time

from . import control
from .errors import LabError

SERVICES = ("server", "agent", "web", "activation")


class Event:
    """name; begin(lab, node) gives the time of the deed; end(lab, node) undoes it."""

    def __init__(self, name, text, begin, end=None, target=None):
        self.name, self.text = name, text
        self.begin = begin
        self.end = end or (lambda _lab, _node: None)
        self.target = target    # seconds of p95 with the balanced profile, or None


def _send(program, number):
    return lambda lab, node: lab.host(node).send(program, number)


def _power_on(lab, node):
    if not lab.host(node).is_on():
        lab.host(node).power_on()


def _daemon_thaw(lab, node):
    # The guard may have killed what was frozen, or does so now: there is nothing to thaw.
    with contextlib.suppress(LabError):
        lab.host(node).send("redoubt-node", signal.SIGCONT)


def _service_continue(program):
    def end(lab, node):
        with contextlib.suppress(LabError):     # it was killed, and is not there again
            lab.host(node).send(program, signal.SIGCONT)
    return end


def _switchover(lab, node):
    began = time.monotonic()
    other = lab.other(node)
    status, reply = control.request(lab.host(node), "POST", "/v1/switchover", {"to": other})
    if status >= 300:
        raise LabError(f"switchover refused: {reply}")
    return began


def _cut(other=None):
    def begin(lab, node):
        began = time.monotonic()
        lab.cut(node, other)
        return began
    return begin


def _heal(lab, node):
    lab.heal(node)


EVENTS = {event.name: event for event in (
    Event("power-off", "the active node loses power", lambda lab, node:
          lab.host(node).power_off(), _power_on, 2.2),
    Event("daemon-killed", "the node daemon is killed (-9)",
          _send("redoubt-node", signal.SIGKILL), None, 0.5),
    Event("daemon-frozen", "the node daemon is stopped (SIGSTOP)",
          _send("redoubt-node", signal.SIGSTOP), _daemon_thaw, 2.2),
    *(Event(f"{name}-killed", f"redoubt-{name} is killed (-9)",
            _send(f"redoubt-{name}", signal.SIGKILL), None, 0.3) for name in SERVICES),
    Event("service-hung", "redoubt-server is stopped (SIGSTOP)",
          _send("redoubt-server", signal.SIGSTOP), _service_continue("redoubt-server")),
    Event("switchover", "an operator's planned switchover", _switchover, None, 0.2),
    Event("sigterm", "the node daemon is asked to end (SIGTERM)",
          _send("redoubt-node", signal.SIGTERM), None, 0.2),
    Event("share-cut", "the node loses the file server", _cut("fileserver"), _heal, 2.2),
    Event("node-cut", "the node is cut from everything", _cut(), _heal, 2.2),
)}
