"""What a client on the administrator's host sees: bench/prober.c, and how to read it."""
import dataclasses
import os
import subprocess

from . import kernel, plan
from .errors import LabError

BLINK = 0.1     # seconds without a good answer that count as an interruption


@dataclasses.dataclass(frozen=True)
class Answer:
    """One probe.  Times are seconds of CLOCK_MONOTONIC, as time.monotonic() tells."""

    kind: str       # "tls" (Administration Server) or "http" (Web Server)
    start: float
    end: float
    node: str       # who answered; "?" when the answer does not say; "" for none
    epoch: int
    reason: str     # why there was no good answer; "" for a good one

    @property
    def good(self):
        return not self.reason


def parse(line):
    kind, start, end, node, last = line.split()
    start, end = int(start) / 1e6, int(end) / 1e6
    if node == "-":
        return Answer(kind, start, end, "", 0, last)
    return Answer(kind, start, end, node, int(last), "")


class Prober:
    """Probes from the start of the `with` block to its end; answers() at any time."""

    def __init__(self, lab, address=plan.VIRTUAL4, kinds=("tls", "http"), interval_ms=5,
                 timeout_ms=1000, source=None):
        self.lab, self.source = lab, source or lab.host("admin")
        program = os.path.join(lab.build, "bench", "prober")
        pki = lab.places.at("pki")
        self.argv = [program, "--address", address, "--interval-ms", str(interval_ms),
                     "--timeout-ms", str(timeout_ms)]
        if "tls" in kinds:
            self.argv += ["--tls-port", str(plan.SERVER_PORT), "--ca", f"{pki}/ca.pem",
                          "--cert", f"{pki}/admin.pem", "--key", f"{pki}/admin.key",
                          "--name", "redoubt"]
        if "http" in kinds:
            self.argv += ["--http-port", str(plan.HTTP_PORT)]
        self.path = lab.places.at(f"prober-{os.getpid()}-{id(self)}.log")
        self.process = None
        self._file, self._rest = None, ""

    def __enter__(self):
        if not os.path.exists(self.argv[0]):
            raise LabError(f"{self.argv[0]} is not there", "./dev build")
        pid = self.source.pid()
        with open(self.path, "w", encoding="ascii") as out:
            self.process = subprocess.Popen(["nsenter", "-t", str(pid), "-n", *self.argv],
                                            stdin=subprocess.DEVNULL, stdout=out)
        self._file = open(self.path, encoding="ascii")  # pylint: disable=consider-using-with
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        self._file.close()
        if os.path.exists(self.path):
            os.unlink(self.path)

    def answers(self):
        """What came since the last call."""
        if self.process.poll() is not None:
            raise LabError(f"the prober ended with status {self.process.returncode}")
        lines = (self._rest + self._file.read()).split("\n")
        self._rest = lines.pop()
        return [parse(line) for line in lines]

    def wait_until_good(self, seconds=20, node=None):
        """Every kind of probe gets good answers (from this node); what came meanwhile."""
        got, kinds = [], {kind for kind in ("tls", "http") if f"--{kind}-port" in self.argv}

        def good():
            got.extend(self.answers())
            answered = {answer.kind for answer in got if answer.good
                        and node in (None, answer.node)}
            return answered == kinds

        if not kernel.wait_until(good, seconds, 0.02):
            tail = {answer.kind: answer.reason or answer.node for answer in got[-20:]}
            raise LabError(f"no good answers {'of ' + node if node else ''} within {seconds} s: "
                           f"{tail}")
        return got


@dataclasses.dataclass(frozen=True)
class Outage:
    seconds: float      # from the last good answer before to the first good one after
    last_good: float    # monotonic time
    first_good: float


def outage(answers, kind, since):
    """How long one kind of request was without service from `since` on.

    From the last good answer before the first interruption to the first good answer after
    the last one, if it stuttered; the longest pause between answers if nothing interrupted."""
    ends = sorted(answer.end for answer in answers if answer.good and answer.kind == kind)
    pauses = [(one, two) for one, two in zip(ends, ends[1:]) if two >= since]
    if not pauses:
        raise LabError(f"no good {kind} answers on both sides of the event")
    blinks = [pause for pause in pauses if pause[1] - pause[0] >= BLINK]
    if blinks:
        return Outage(blinks[-1][1] - blinks[0][0], blinks[0][0], blinks[-1][1])
    longest = max(pauses, key=lambda pause: pause[1] - pause[0])
    return Outage(longest[1] - longest[0], *longest)


def _earliest(answers):
    """{epoch: when it may have begun}: not while one before it went on answering."""
    begun, last = {}, 0.0
    for epoch in sorted({answer.epoch for answer in answers if answer.epoch}):
        begun[epoch] = last
        last = max(last, *(answer.start for answer in answers if answer.epoch == epoch))
    return begun


def with_epochs(answers):
    """(answer, epoch) of the good answers, in order of their ends.

    The Web Server does not tell an epoch.  Its answer has the one that its node told last.  Once
    the one that the node tells next may have begun, it may be either: such an answer proves
    nothing."""
    answers = sorted((a for a in answers if a.good and a.node != "?"), key=lambda a: a.end)
    begun, upcoming, later = _earliest(answers), {}, []
    for answer in reversed(answers):
        if answer.epoch:
            upcoming[answer.node] = answer.epoch
        later.append(upcoming.get(answer.node, 0))
    told, known = {}, []
    for answer, after in zip(answers, reversed(later)):
        if answer.epoch:
            told[answer.node] = answer.epoch
        epoch = told.get(answer.node, 0)
        if epoch and (after in (0, epoch) or answer.end <= begun[after]):
            known.append((answer, epoch))
    return known


def worst_overlap(answers):
    """(seconds, who) for which an older epoch went on answering after a newer one had answered.

    An answer was given at some time between the start and the end of its probe.  Only what
    is certain counts: an older answer that began after a newer one had ended."""
    worst, newest = (0.0, ""), (0.0, 0, None)
    for answer, epoch in with_epochs(answers):
        end, top, first = newest
        if epoch > top:
            newest = (answer.end, epoch, answer)
        elif epoch < top and answer.start - end > worst[0]:
            worst = (answer.start - end,
                     f"{answer.node} ({answer.kind}, epoch {epoch}) after {first.node} "
                     f"({first.kind}, epoch {top}) at {first.end:.3f}")
    return worst


def overlap(answers):
    return worst_overlap(answers)[0]
