"""The Web Server talks to everybody.  Whoever takes it over reads what it serves, and no secret."""
import json
import os
import pathlib
import shutil
import signal
import stat
import subprocess

import pytest

from redoubt_lab import confs, plan

LAB = {"devices": 1}
TOP = pathlib.Path(__file__).resolve().parents[2]
CONF, SECRET, RUN = "/etc/redoubt/redoubt.conf", "/var/lib/redoubt/secret", "/run/redoubt"
STORE, PAGE = "/var/lib/redoubt/store", "public/packages/one/1/one.bin"
OWN_SECRETS = {f"{SECRET}/{name}" for name in ("web.pem", "web.key", "link.key")}
OTHERS = {f"{SECRET}/{name}" for name in ("ca.key", "server.key", "lease.key", "package.key",
                                          "ticket.key")}
OTHERS |= {f"/etc/redoubt/{name}" for name in ("cluster.key", "pgpass", "smb.cred", "agent.key")}
OTHERS_SOCKETS = {f"{RUN}/{name}" for name in ("node.sock", "manager.sock", "notify/server")}
OWN_SOCKETS = {f"{RUN}/service/web/health.sock", f"{RUN}/notify/web"}
# What is for every user of the computer; of the secrets nothing is.
PUBLIC = {f"/etc/redoubt/{name}" for name in ("redoubt.conf", "ca.pem", "agent.pem", "agent-ca.pem",
                                              "licence.json", "licence.pub", "vendor-ca.pem")}
PUBLIC |= {"/var/lib/redoubt/history.jsonl"}
# Run in the node as somebody: which of these paths can be read, written, connected to.
PROBE = """
import json, os, socket, stat, sys
def reads(path):
    with open(path, "rb") as file:
        file.read(1)
def writes(path):
    if not os.access(path, os.W_OK):
        raise PermissionError
def connects(path):
    kind = socket.SOCK_DGRAM if "/notify/" in path else socket.SOCK_STREAM
    with socket.socket(socket.AF_UNIX, kind) as s:
        s.connect(path)
told = {}
for what, paths in json.load(sys.stdin).items():
    told[what] = []
    for path in paths:
        try:
            globals()[what](path)
            told[what].append(path)
        except OSError:
            pass
json.dump(told, sys.stdout)
"""


@pytest.fixture(scope="module", autouse=True)
def published(cluster):
    cluster.publish({PAGE: b"one", "private/two.bin": b"two"})


def identity(pid):
    """As the kernel has it: all user ids, all group ids, the groups, what it is capable of."""
    text = pathlib.Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    lines = dict(line.split(":", 1) for line in text.splitlines())
    return {key: lines[key].split() for key in ("Uid", "Gid", "Groups", "CapEff", "CapPrm",
                                                "NoNewPrivs")}


def files(host, *folders):
    """(files, folders, sockets) below some folders of a host, by their names there."""
    found = ([], [], [])
    root = host.file("")
    for folder in folders:
        for where, inner, names in os.walk(root + folder):
            found[1].append(where.removeprefix(root))
            for name in [*inner, *names]:
                path = os.path.join(where, name)
                try:
                    mode = os.lstat(path).st_mode
                except FileNotFoundError:       # of a program at work
                    continue
                if stat.S_ISREG(mode) or stat.S_ISSOCK(mode):
                    found[2 if stat.S_ISSOCK(mode) else 0].append(path.removeprefix(root))
    return found


def probe(host, who, asked):
    """What the kernel lets a process do that is what `who` is: {"reads": set of paths, ...}"""
    done = host.run("setpriv", "--reuid", who["Uid"][0], "--regid", who["Gid"][0], "--groups",
                    ",".join(who["Groups"]), "--no-new-privs", "--inh-caps=-all",
                    "/usr/bin/python3", "-c", PROBE, text_in=json.dumps(asked))
    return {what: set(paths) for what, paths in json.loads(done.stdout).items()}


def below(paths, *folders):
    return {path for path in paths if path.startswith(tuple(f"{f}/" for f in folders))}


def processes(host):
    """The machine's numbers of redoubt-web, of nginx and of its workers."""
    pids = host.pids("redoubt-web") + host.pids("nginx")
    assert len(pids) >= 3
    return pids


def fetch(scene, node):
    return scene.host("admin").run(
        "curl", "-fsS", "--cacert", "/etc/redoubt/ca.pem", "--resolve",
        f"redoubt:{plan.HTTPS_PORT}:{plan.address4(node)}",
        f"https://redoubt:{plan.HTTPS_PORT}/{PAGE.removeprefix('public/')}", check=False).stdout


def checked(host):
    """What `redoubt check` says of the Web Server's user."""
    told = json.loads(host.run("redoubt", "check", "--json", check=False).stdout)
    return {one["name"]: one for one in told["checks"]}["secrets.web"]


def test_its_processes_are_nobody_else(scene):
    for pid in processes(scene.host(scene.active)):
        uid = str(plan.WEB_UID)
        assert identity(pid) == {"Uid": [uid] * 4, "Gid": [uid] * 4, "Groups": [uid],
                                 "CapEff": ["0" * 16], "CapPrm": ["0" * 16], "NoNewPrivs": ["1"]}


def test_it_reads_its_own_and_no_other_secret(scene):
    host = scene.host(scene.active)
    there, folders, sockets = files(host, "/etc/redoubt", "/var/lib/redoubt",
                                    "/var/lib/redoubt-agent", RUN, confs.WWW)
    assert OTHERS | OWN_SECRETS <= set(there) and OTHERS_SOCKETS | OWN_SOCKETS <= set(sockets)
    who = identity(processes(host)[-1])
    environs = {f"/proc/{line.split()[0]}/environ": line.split()[1]
                for line in host.run("ps", "-eo", "pid=,comm=").stdout.splitlines()}
    assert {"redoubt-server", "redoubt-manager", "redoubt-node", "nginx"} <= set(environs.values())
    may = probe(host, who, {"reads": there + list(environs), "writes": there + folders,
                            "connects": sockets})

    for path in OTHERS:
        assert path not in may["reads"], path
    own = OWN_SECRETS | below(there, f"{STORE}/blob", confs.WWW, f"{RUN}/service/web")
    assert len(own) > 3 + 3, "something is published"
    assert own <= may["reads"]
    assert may["reads"] - own - below(there, STORE) - PUBLIC - set(environs) == set()
    assert {environs[path] for path in may["reads"] & set(environs)} <= {"redoubt-web", "nginx"}
    assert may["connects"] == OWN_SOCKETS
    assert may["writes"] - below(may["writes"], f"{RUN}/service/web") == {f"{RUN}/service/web"}

    assert fetch(scene, scene.active) == "one"
    assert checked(host)["result"] == "ok"


def test_with_the_group_of_the_others_it_would_read_them(scene):
    """So the test before would notice."""
    host = scene.host(scene.active)
    who = identity(processes(host)[-1])
    who["Groups"].append(str(plan.SERVICE_UID))
    may = probe(host, who, {"reads": sorted(OTHERS), "connects": sorted(OTHERS_SOCKETS)})
    assert f"{SECRET}/ca.key" in may["reads"] and f"{RUN}/manager.sock" in may["connects"]


def test_a_configuration_of_an_older_version_goes_on_and_is_told_of(scene):
    """There the Web Server was redoubt.  What it left in the run directory is in nobody's way."""
    host, lab = scene.host(scene.passive), scene.lab
    text = host.read(CONF)

    def restart_as(user, uid, number=signal.SIGTERM):
        host.write(CONF, text.replace("user = redoubt-web", f"user = {user}"))
        host.stop("redoubt-node", number)
        host.start("redoubt-node")
        lab.wait_ready(60)
        assert {identity(pid)["Uid"][0] for pid in host.pids("redoubt-web")} == {str(uid)}

    scene.later(lambda: host.write(CONF, text))
    restart_as("redoubt", plan.SERVICE_UID)
    told = checked(host)
    assert told["result"] == "warn" and "ca.key" in told["text"]
    assert "user = redoubt-web" in told["suggestion"]
    scene.host(scene.active).run("redoubt", "switchover")
    scene.expect_switch()
    lab.wait_for(lambda: fetch(scene, scene.passive) == "one", 20, "it serves as redoubt")
    restart_as("redoubt-web", plan.WEB_UID, signal.SIGKILL)     # nothing is put away
    assert checked(host)["result"] == "ok"
    if lab.active() != scene.passive:
        host.run("redoubt", "switchover")
        lab.wait_for(lambda: lab.active() == scene.passive, 60, "it is active")
    lab.wait_for(lambda: fetch(scene, scene.passive) == "one", 20, "it serves as redoubt-web")


def test_an_upgrade_gives_the_files_to_their_groups(scene):
    """An older version left all to the group redoubt; postinst runs systemd-tmpfiles."""
    host = scene.host(scene.passive)
    names = sorted(os.listdir(host.file(SECRET)))

    def rights():
        done = host.run("stat", "-c", "%n %U %G %a", SECRET, STORE,
                        *[f"{SECRET}/{name}" for name in names])
        return done.stdout.splitlines()

    fresh = rights()
    assert f"{SECRET}/web.key root redoubt-web 640" in fresh
    assert f"{SECRET}/ca.key root redoubt 640" in fresh
    host.run("sh", "-c", f"chgrp redoubt {SECRET} {SECRET}/*; chmod 750 {SECRET}")
    assert rights() != fresh
    scene.later(lambda: host.run("redoubt", "secret", "fetch"))
    host.write("/root/redoubt.tmpfiles", (TOP / "packaging/redoubt.tmpfiles").read_text())
    host.run("systemd-tmpfiles", "--create", "/root/redoubt.tmpfiles")
    assert rights() == fresh


@pytest.mark.parametrize("before", [True, False])
def test_the_package_makes_the_users(before, tmp_path):
    """On a machine where an older version has made redoubt, and on a new one."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "usr/lib/sysusers.d").mkdir(parents=True)
    shutil.copy(TOP / "packaging/redoubt.sysusers", tmp_path / "usr/lib/sysusers.d/redoubt.conf")
    (tmp_path / "etc/passwd").write_text("redoubt:x:977:977::/var/lib/redoubt:/bin/false\n" * before)
    (tmp_path / "etc/group").write_text("redoubt:x:977:\n" * before)
    subprocess.run(["systemd-sysusers", f"--root={tmp_path}", "redoubt.conf"], check=True,
                   capture_output=True)
    groups = dict(line.split(":")[::3] for line in
                  (tmp_path / "etc/group").read_text().splitlines())
    users = {line.split(":")[0] for line in (tmp_path / "etc/passwd").read_text().splitlines()}
    assert (users, groups) == (set(groups), {"redoubt": "", "redoubt-web": "redoubt"})
