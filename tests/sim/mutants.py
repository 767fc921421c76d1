#!/usr/bin/python3
"""mutants: plants one bug at a time in a copy of the sources; the simulator must catch each.

A bug that escapes means that the weather is too mild.  In the copies CHECK does nothing, so
that the checker of the simulated world catches a bug and not the product's own invariants.

Usage: tests/sim/mutants.py [--only NAME] [--jobs N]
Prints one line a mutant and ends with "N passed, N failed".
"""
import argparse
import concurrent.futures
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

TOP = pathlib.Path(__file__).resolve().parents[2]
CORE = "src/core/cluster/"

# name, what it breaks, within how many seeds it must be caught, and the changes:
# (file, old, new); old must be there exactly once.
MUTANTS = [
    ("L1-skips-a-number", "L1: a claim that is not exactly one higher", 300,
     [(CORE + "watch.c", "node_submit(n, SHARE_CLAIM, n->seen.top + 1, out);",
       "node_submit(n, SHARE_CLAIM, n->seen.top + 1 + (n->conf.self[5] == 'b'), out);"),
      (CORE + "watch.c", "const uint64_t epoch = n->seen.top + 1;",
       "const uint64_t epoch = n->seen.top + 1 + (n->conf.self[5] == 'b');")]),
    ("L1-lost-claim-counts", "L1: the loser of the exclusive create believes to hold", 300,
     [(CORE + "node.c", "n->fence.stale = true;", ";"), # the DBMS would tell it
      (CORE + "watch.c", "if (a->err == ERR_OK &&\n",
       "if ((a->err == ERR_OK || a->err == ERR_EXISTS) &&\n")]),
    ("L1-no-walk", "L1: an epoch that is known to be used is used again", 300,
     [(CORE + "watch.c", "if (epoch <= n->known_epoch)", "if (false)"),
      (CORE + "watch.c", "return n->seen.top < n->known_epoch || node_just_connected(n);",
       "return node_just_connected(n);")]),
    ("L1-no-doubt", "L1: a share that went back in time is believed at once", 300,
     [(CORE + "watch.c", "return n->seen.top < n->known_epoch || node_just_connected(n);", "return false;")]),
    ("L1-new-connection", "L1: a crash of the file server goes unnoticed", 15000,
     [(CORE + "node.c", "if (epoch > n->seen.top) {", "if (false) {"), # the DBMS would tell it
      (CORE + "node.c", "if (connected || !n->seen.known ||", "if (!n->seen.known ||"),
      (CORE + "watch.c", "return !mono_reached(n->last, mono_after(n->seen.connected, wait_ms));",
       "return wait_ms == 0;")]),
    ("L1-known-elsewhere", "L1: an epoch that only the DBMS tells of does not begin the wait", 20000,
     [(CORE + "node.c", "if (epoch > n->seen.top) {", "if (false) {")]),
    ("L2-late-renewal", "L2: a renewal counts that was heard after the deadline", 16500,
     [(CORE + "node.c", "mono_reached(n->last, n->lease.deadline)) {",
       "ev->kind != NODE_EV_SHARE && mono_reached(n->last, n->lease.deadline)) {")]),
    ("L2-from-the-answer", "L2: the deadline counts from the answer, not from the question",
     1000,
     [(CORE + "serve.c", "struct mono deadline = mono_after(a->sent, n->conf.hold_ms);",
       "struct mono deadline = mono_after(n->last, n->conf.hold_ms);")]),
    ("L2-not-our-record", "L2: a holder rewrites whatever record it finds", 35000,
     [("src/run/node_run.c", "if (a->op != SHARE_CLAIM) {", "if (false) {")]),
    ("L3-read-sent-early", "L3: a read counts that was sent before the wait was over", 4000,
     [(CORE + "watch.c", "mono_reached(a->sent, node_claim_time(n))",
       "mono_reached(n->last, node_claim_time(n))")]),
    ("L4-own-hold", "L4: the wait is made from the watcher's own hold", 1000,
     [(CORE + "watch.c", "readable && !doubt ? rec->hold_ms", "readable && !doubt ? n->conf.hold_ms")]),
    ("L4-no-drift", "L4: no allowance for clocks that run apart", 1000,
     [(CORE + "node.c", "hold_ms + (hold_ms + 99) / 100 + conf->margin_ms",
       "hold_ms + conf->margin_ms")]),
    ("L5-from-the-answer", "L5: the first deadline counts from the answer", 7500,
     [(CORE + "watch.c", "const struct mono deadline = mono_after(a->sent, n->conf.hold_ms);",
       "const struct mono deadline = mono_after(n->last, n->conf.hold_ms);")]),
    ("L6-second-life", "L6: past the deadline the services go on", 300,
     [(CORE + "serve.c", "    node_act(out, NODE_ACT_REVOKE);\n    node_act(out, NODE_ACT_KILL);\n",
       ""),
      (CORE + "serve.c", "n->services.state[i] = SERVICE_CHANGING; /*",
       "n->services.state[i] = SERVICE_STOPPED; /*")]),
    ("L7-release-first", "L7: released before the services are down", 300,
     [(CORE + "serve.c", "if (!node_services_all(n, down) || n->address.request != 0) {",
       "if (false) {")]),
    ("L7-revoked-is-extended", "L7: an answer that comes late extends what was revoked", 300,
     [(CORE + "serve.c", "if (n->state == NODE_DEMOTING && n->demotion.revoked)\n        return false;",
       "if (false)\n        return false;")]),
    ("L8-timeout-is-success", "L8: no answer to a claim is taken for success", 3000,
     [(CORE + "node.c", "if (epoch > n->seen.top) {", "if (false) {"), # as above
      (CORE + "watch.c", "if (a->err == ERR_OK &&\n",
       "if ((a->err == ERR_OK || a->err == ERR_TIMEOUT) &&\n"),
      (CORE + "watch.c", "!mono_reached(n->last, mono_before(deadline, n->conf.demote_before_ms))",
       "true")]),
    ("stale-answer", "an answer counts that does not belong to the request in flight", 16000,
     [(CORE + "node.c", "if (ev->request == 0 || ev->request != n->io.request)\n        return; /* late",
       "if (n->io.request == 0)\n        return; /* late")]),
    ("torn-is-released", "a record that cannot be read is taken for a released one", 300,
     [(CORE + "watch.c", "if (readable && rec->released && !doubt)", "if ((!readable || rec->released) && !doubt)")]),
    ("old-role-counts", "the state of a service before it was told its role counts", 1000,
     [(CORE + "serve.c", "n->services.state[i] = SERVICE_CHANGING;\n}", "(void)0;\n}")]),
    ("order-fence", "promotion: services before the DBMS fence", 300,
     [(CORE + "serve.c", "if (n->fence.waiting && !mono_reached(n->last, n->fence.give_up))",
       "if (false)")]),
    ("order-address", "promotion: the address before the services", 300,
     [(CORE + "serve.c", "if (!node_services_all(n, SERVICE_BIT(SERVICE_ACTIVE)) &&\n        !mono_reached(n->last, n->promotion.limit))\n        return;", "")]),
    ("content-forbids", "nobody serves where not all published files are", 300,
     [(CORE + "watch.c", "NODE_OB_ADDRESS | NODE_OB_SCHEMA,", "NODE_OB_ADDRESS | NODE_OB_SCHEMA | NODE_OB_CONTENT,")]),
    ("layer-daemon", "layer 1 alone, off: the daemon never steps down in time", 300,
     [(CORE + "node.c", "mono_reached(n->last, n->lease.deadline)) {",
       "mono_reached(n->last, mono_after(n->lease.deadline, n->conf.hold_ms))) {"),
      (CORE + "serve.c", "if (mono_reached(n->last, mono_before(n->lease.deadline, n->conf.demote_before_ms))) {",
       "if (false) {"),
      (CORE + "serve.c", "n->lease.epoch != 0 ? n->lease.deadline : MONO_FOREVER",
       "n->lease.epoch != 0 ? mono_after(n->lease.deadline, n->conf.hold_ms) : MONO_FOREVER"),
      (CORE + "serve.c", "t = mono_min(t, mono_before(n->lease.deadline, n->conf.demote_before_ms));",
       ";")]),
    ("layer-guard", "layer 2 alone, off: the guard never kills", 300,
     [("tests/sim/host.c", 'sim_note(s, "%s guard: the deadline has passed", sim_node_name(i));',
       "return;")]),
    ("layer-kernel", "layer 3 off: the kernel's lease on the address never ends", 300,
     [("tests/sim/judge.c", "mono_is_set(h->nft) &&\n           !mono_reached(host_clock(s, i), h->nft)", "true")]),
    ("layer-service", "layer 4 alone, off: services do not look at the lease", 300,
     [("tests/sim/judge.c", "if (!s->layers.service)", "if (true)")]),
    ("layer-fence", "layer 5 off: the DBMS takes commits of any epoch", 1000,
     [("tests/sim/host.c", "if (s->layers.fence && e->arg2 != s->db.fence)", "if (false)")]),
]
SOURCES = ["src/base", "src/wire/json.c", "src/wire/json.h", "src/wire/record.c",
           "src/wire/record.h", "src/wire/uuid.h", "src/wire/uuid.c", "src/core/cluster", "src/port", "src/run", "tests/sim"]


def copy(to):
    for name in SOURCES:
        source, target = TOP / name, to / name
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)


def replace(path, old, new):
    text = path.read_text()
    if text.count(old) != 1:
        raise ValueError(f"{path.name}: the place to change is there {text.count(old)} times")
    path.write_text(text.replace(old, new))


CC = ["cc", "-std=gnu17", "-O2", "-w", "-D_GNU_SOURCE"]
CHECK = "#define CHECK(expr) ((expr) ? (void)0 : check_fail(#expr, __FILE__, __LINE__))"


def includes(*tops):
    """Later ones are looked at if the file is not in the earlier ones."""
    where = [f"-I{top / folder}" for top in tops for folder in ("src", "tests/sim")]
    return [*where, "-include", str(tops[0] / "src/base/banned.h")]


def compile_all(at, names, folders):
    subprocess.run([*CC, *includes(*folders), "-c", *[str(name) for name in names]], cwd=at,
                   check=True, capture_output=True, text=True)


def prepare(base):
    """The copy without CHECKs that the mutants share, and its objects."""
    copy(base)
    replace(base / "src/base/check.h", CHECK, "#define CHECK(expr) ((void)sizeof(!(expr)))")
    names = sorted(base.rglob("*.c"))
    compile_all(base, names, [base])
    return {name.relative_to(base): base / (name.stem + ".o") for name in names}


def build(at, base, objects, changes):
    """Only what a mutant changes is compiled anew."""
    changed = sorted({pathlib.Path(file) for file, _, _ in changes})
    for file in changed:
        (at / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(base / file, at / file)
    for file, old, new in changes:
        replace(at / file, old, new)
    compile_all(at, [at / file for file in changed], [base])
    parts = [at / (file.stem + ".o") if file in changed else made
             for file, made in objects.items()]
    subprocess.run(["cc", "-o", "sim", *map(str, parts), "-lsodium"], cwd=at, check=True,
                   capture_output=True, text=True)


def one(mutant, base, objects):
    """(caught, what happened)"""
    _, _, seeds, changes = mutant
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="redoubt-mutant-") as directory:
        at = pathlib.Path(directory)
        try:
            build(at, base, objects, changes)
        except ValueError as error:
            return False, str(error)
        except subprocess.CalledProcessError as error:
            return False, "does not build: " + error.stderr[-300:]
        try:
            run = subprocess.run([str(at / "sim"), "--runs", str(seeds)], capture_output=True,
                                 text=True, timeout=300)
        except subprocess.TimeoutExpired:
            return False, "no end within 300 s"
    took = f"{time.monotonic() - began:.1f} s"
    if run.returncode == 0:
        return False, f"escaped {seeds} seeds, {took}"
    if run.returncode != 1:
        return False, f"ended with {run.returncode}, {took}"
    number = int(run.stdout.split("--seed ")[-1].split()[0])
    return True, f"seed {number} of {seeds}, {took}: {run.stdout.splitlines()[0]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="the mutants whose name contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args()
    chosen = [m for m in MUTANTS if not args.only or args.only in m[0]]
    passed = 0
    with tempfile.TemporaryDirectory(prefix="redoubt-mutants-") as directory, \
            concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        base = pathlib.Path(directory)
        objects = prepare(base)
        results = pool.map(lambda mutant: one(mutant, base, objects), chosen)
        for mutant, (caught, what) in zip(chosen, results):
            passed += caught
            print(f"{'ok  ' if caught else 'FAIL'} {mutant[0]}: {mutant[1]}: {what}", flush=True)
    print(f"{passed} passed, {len(chosen) - passed} failed")
    return 0 if passed == len(chosen) and chosen else 1


if __name__ == "__main__":
    sys.exit(main())
