"""The lab itself: faults do what they say, labs are apart, and nothing is left behind."""
import os
import signal
import socket
import struct
import subprocess
import sys
import time

import pytest
from conftest import TOP
from redoubt_lab import Lab, LabError, kernel, plan

LAB = [sys.executable, "-B", os.path.join(TOP, "lab", "lab")]


def reaches(lab, one, two, seconds=20.0):
    """Do packets of `one` reach `two`?  Counted there, so that the way back does not matter."""
    def refused():
        counters = lab.host(two).in_network("cat", "/proc/net/snmp").splitlines()
        names, values = [line.split() for line in counters if line.startswith("Udp:")]
        return int(values[names.index("NoPorts")])

    def sent_and_seen():
        lab.host(one).in_network("bash", "-c", f"echo > /dev/udp/{plan.address4(two)}/9")
        return refused() > before

    before = refused()
    return kernel.wait_until(sent_and_seen, seconds, 0.05)


def silent(lab, one, two):
    return not reaches(lab, one, two, 0.3)


def leftovers(name):
    """What remains of a lab; the kernel gets a moment to finish."""
    kernel.wait_until(lambda: not traces(name), 20, 0.05)
    return traces(name)


def traces(name):
    """Everything of a lab that can be found on the machine."""
    found = []
    if os.path.exists(os.path.join(plan.BASE, name)):
        found.append(os.path.join(plan.BASE, name))
    cgroup = os.path.join(kernel.cgroup_root(), "redoubt-lab", name)
    if os.path.exists(cgroup):
        found.append(cgroup)
    with open("/proc/mounts", encoding="utf-8") as file:
        found += [line for line in file if f"{plan.BASE}/{name}/" in line]
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cgroup", encoding="ascii") as file:
                ours = f"/redoubt-lab/{name}/" in file.read()
            with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
                dead = file.read().rpartition(")")[2].split()[0] == "Z"
            if ours and not dead:
                found.append(f"process {pid}")
        except OSError:
            pass
    return found


def command(*words):
    return subprocess.run([*LAB, *words], text=True, capture_output=True, check=False,
                          stdin=subprocess.DEVNULL, timeout=120)


def test_hosts_know_each_other(bare_lab):
    for host in ("node-a", "client-1"):
        bare_lab.host(host).run("ping", "-c1", "-w20", "fileserver")
        bare_lab.host(host).run("ping", "-6", "-c1", "-w20", "dbms")


def test_file_server_and_database_answer_a_node(bare_lab):
    node = bare_lab.host("node-a")
    told = node.run("smbclient", "-A", "/etc/redoubt/smb.cred", "//fileserver/state", "-c", "ls")
    assert "blocks" in told.stdout
    told = node.run("env", "PGPASSFILE=/etc/redoubt/pgpass", "psql", "-AtX", "-h", "dbms", "-U",
                    "redoubt", "redoubt", "-c", "select current_user")
    assert told.stdout.strip() == "redoubt"


def engine_of(host):
    """A connection to the engine of a host, or None: it reads its databases first."""
    engine = socket.socket(socket.AF_UNIX)
    engine.settimeout(60)
    try:
        engine.connect(host.file("/run/clamav/clamd.ctl"))
    except OSError:
        engine.close()
        return None
    return engine


def test_engine_finds_the_marker(bare_lab):
    text = b"some REDOUBT-LAB-MARKER text"
    with bare_lab.wait_for(lambda: engine_of(bare_lab.host("client-1")), 60, "it runs") as engine:
        engine.sendall(b"zINSTREAM\0" + struct.pack(">I", len(text)) + text + bytes(4))
        assert b"Redoubt.Lab.Marker" in engine.recv(1000)


def test_a_host_does_not_touch_the_machine(bare_lab):
    bare_lab.host("node-a").run("sh", "-c", "echo x > /etc/redoubt-was-here; kill -9 -1 || true")
    assert not os.path.exists("/etc/redoubt-was-here")
    assert bare_lab.host("node-a").run("cat", "/etc/redoubt-was-here").stdout == "x\n"
    assert bare_lab.host("node-a").run("hostname").stdout == "node-a\n"


def test_cut_both_ways_and_heal(bare_lab):
    bare_lab.cut("node-a", "dbms")
    assert silent(bare_lab, "node-a", "dbms")
    assert silent(bare_lab, "dbms", "node-a")
    assert reaches(bare_lab, "node-a", "fileserver")
    bare_lab.heal("dbms")
    assert reaches(bare_lab, "node-a", "dbms")
    assert bare_lab.switch.cuts() == []


def test_cut_from_everything(bare_lab):
    bare_lab.cut("node-a")
    assert silent(bare_lab, "node-a", "client-1")
    assert silent(bare_lab, "admin", "node-a")
    assert reaches(bare_lab, "node-b", "client-1")
    bare_lab.heal()
    assert reaches(bare_lab, "node-a", "client-1")


def test_cut_one_way(bare_lab):
    # Neighbours must be known beforehand: address resolution needs both ways.
    for one, two in (("node-a", "fileserver"), ("fileserver", "node-a")):
        bare_lab.host(one).run("ping", "-4", "-c1", "-w20", two)
    bare_lab.cut("node-a", "fileserver", one_way=True)
    assert silent(bare_lab, "node-a", "fileserver")
    assert reaches(bare_lab, "fileserver", "node-a")
    bare_lab.heal("node-a")


def test_power_off_is_sudden_and_the_disk_remains(bare_lab):
    host = bare_lab.host("client-1")
    host.run("sh", "-c", "echo kept > /var/lib/kept; echo lost > /run/lost")
    with host.popen("sleep", "1000") as sleeper:
        host.power_off()
        assert sleeper.wait(30) != 0
    assert bare_lab.describe()["hosts"][-1]["power"] == "off"
    assert kernel.cgroup_pids(host.cgroup) == []
    with pytest.raises(LabError, match="powered off"):
        host.run("true")
    host.power_on()
    assert host.run("cat", "/var/lib/kept").stdout == "kept\n"
    assert host.run("cat", "/run/lost", check=False).returncode != 0
    bare_lab.host("admin").run("ping", "-c1", "-w20", "client-1")


def test_freeze_stops_everything_and_thaw_goes_on(bare_lab):
    host = bare_lab.host("client-1")
    with host.popen("sh", "-c", "while :; do echo x >> /run/ticks; sleep 0.01; done"):
        bare_lab.wait_for(lambda: os.path.exists(host.file("/run/ticks")), 30, "it ticks")
        host.freeze()
        before = len(host.read("/run/ticks"))
        assert silent(bare_lab, "admin", "client-1")
        time.sleep(0.2)
        assert len(host.read("/run/ticks")) == before
        with pytest.raises(LabError, match="frozen"):
            host.run("true")
        host.thaw()
        bare_lab.wait_for(lambda: len(host.read("/run/ticks")) > before, 30, "it ticks again")
    assert reaches(bare_lab, "admin", "client-1")


def test_a_program_that_ends_is_started_again(bare_lab):
    host = bare_lab.host("client-1")
    starts = host.units()["clamd"]["starts"]
    host.kill_all("clamd")
    bare_lab.wait_for(lambda: host.units()["clamd"]["starts"] == starts + 1
                      and host.units()["clamd"]["running"], 60, "clamd is started again")


def test_two_labs_do_not_disturb_each_other(bare_lab):
    with Lab(f"other-{os.getpid()}", devices=0) as other:
        other.up(cluster=False)
        other.cut("node-a")
        other.host("dbms").power_off()
        assert reaches(bare_lab, "node-a", "client-1")
        assert bare_lab.sql("select 1") == [(1,)]
        name = other.name
    assert leftovers(name) == []
    assert bare_lab.sql("select 1") == [(1,)]


def test_an_interrupted_up_leaves_nothing():
    for delay in (0.05, 0.4, 0.8):
        name = f"cut-{os.getpid()}"
        with subprocess.Popen([*LAB, "up", "--bare", "--name", name], stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, text=True) as up:
            time.sleep(delay)
            up.send_signal(signal.SIGINT)
            told, _ = up.communicate(timeout=120)
        if "up after" in told:     # it was faster than we are
            command("down", "--name", name)
        assert leftovers(name) == [], f"after {delay} s"


def test_down_tidies_up_after_an_up_that_was_killed():
    name = f"dead-{os.getpid()}"
    with subprocess.Popen([*LAB, "up", "--bare", "--name", name], stdout=subprocess.DEVNULL) as up:
        kernel.wait_until(lambda: os.path.exists(os.path.join(kernel.cgroup_root(), "redoubt-lab",
                                                              name, "node-a")), 60)
        up.kill()
        up.wait()
    assert "is there already" in command("up", "--name", name).stderr
    assert command("down", "--name", name).returncode == 0
    assert leftovers(name) == []


def test_errors_say_what_to_do():
    assert "./dev lab up" in command("status", "--name", "nowhere").stderr
    assert command("status", "--name", "nowhere").returncode == 1
    assert command("up", "--profile", "hasty").returncode == 2
    assert "0 to" in command("up", "--devices", "1000").stderr
    assert "lower-case" in command("up", "--name", "Big Lab").stderr
    assert command("--help").returncode == 0
    for word in ("up", "down", "status", "exec", "cut", "heal", "power-off", "power-on", "freeze",
                 "thaw"):
        assert "--name" in command(word, "--help").stdout


def test_exec_hands_on_exit_status_and_unknown_hosts_are_named(bare_lab):
    assert command("exec", "--name", bare_lab.name, "node-a", "sh", "-c",
                   "exit 7").returncode == 7
    told = command("exec", "--name", bare_lab.name, "nosuch", "true")
    assert told.returncode == 1 and "client-1" in told.stderr
