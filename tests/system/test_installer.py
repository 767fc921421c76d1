"""A computer on which nothing of ours was ever installed becomes a managed device by one command."""
import json
import os
import shutil
import tempfile

import pytest

from redoubt_lab import plan

LAB = {"devices": 1, "fresh": True}
AGENT = "/usr/local/bin/redoubt-agent"      # where the build that is tested installs to
BROUGHT = "/etc/redoubt/enrolment.json"
BASE = "/root/base.deb"


@pytest.fixture(scope="module", autouse=True)
def base(cluster):
    """The package of the agent, as ./dev package makes it, from the build that is tested."""
    with tempfile.TemporaryDirectory(prefix="redoubt-base-") as folder:
        made = cluster.programs.package("redoubt-agent", folder)
        for node in plan.NODES:
            shutil.copy(made, cluster.host(node).file(BASE))


def installer(scene, *words):
    """Made as soon as the node has the package of the agent, and both nodes what was made."""
    node = scene.lab.wait_ready(60)

    def made():
        done = scene.host(node).run("redoubt", "package", "agent", *words, "--json", check=False)
        return json.loads(done.stdout) if done.returncode == 0 else None

    told = scene.lab.wait_for(made, 30, "the installer is made", 0.2)
    serial = scene.lab.sql("SELECT serial FROM redoubt.publication_serial")[0][0]
    for one in plan.NODES:
        scene.lab.wait_for(lambda n=one: scene.lab.has_published(n, serial), 60, f"{one} has it")
    for key in ("script_url", "package_url"):
        scene.lab.wait_for(lambda url=told[key]: scene.host("admin").run(
            "curl", "-fsS", "-o", "/dev/null", "--cacert", "/etc/redoubt/ca.pem", url,
            check=False).returncode == 0, 30, f"the Web Server has {told[key]}", 0.1)
    return told


def is_installed(fresh):
    return os.path.lexists(fresh.file(AGENT))


def purge(fresh):
    """As it was."""
    fresh.run("dpkg", "--purge", "redoubt-agent")
    fresh.run("rm", "-rf", "/etc/redoubt", "/var/lib/redoubt-agent")
    assert not is_installed(fresh)


def device(scene):
    """The groups of the active devices of that name, and their reports."""
    return scene.lab.sql(
        "select g.path, (select count(*) from redoubt.report r where r.device_id = d.id) "
        "from redoubt.device d join redoubt.device_group g on g.id = d.group_id "
        "where d.name = %s and d.state = 'active' order by d.first_seen desc", plan.FRESH)


def test_one_command_installs_and_enrols(scene):
    fresh = scene.host(plan.FRESH)
    redoubt = scene.host(scene.active)
    redoubt.run("redoubt", "group", "create", "/Laptops")
    redoubt.run("redoubt", "package", "publish", BASE)
    told = installer(scene, "--group", "/Laptops", "--uses", "2", "--days", "2")
    assert told["command"] == (f"curl -fsS -k --pinnedpubkey '{told['pin']}' "
                               f"'{told['script_url']}' | sh")
    wrong = told["command"].replace("sha256//", "sha256//AAAA", 1)
    refused = fresh.run("bash", "-o", "pipefail", "-c", wrong, check=False)
    assert refused.returncode == 90 and not is_installed(fresh), refused.stderr

    # The pin holds on the other node, too.
    scene.host(scene.active).run("redoubt", "switchover")
    scene.expect_switch()
    done = fresh.run("bash", "-o", "pipefail", "-c", told["command"], timeout=120)
    assert "this device is enrolled" in done.stdout, done.stdout + done.stderr
    assert is_installed(fresh) and not os.path.exists(fresh.file(BROUGHT))
    fresh.start("agent")
    scene.later(lambda: purge(fresh))
    scene.later(lambda: fresh.stop("agent"))
    scene.lab.wait_for(lambda: device(scene) and device(scene)[0][1] > 0, 90,
                       "the new device reports", 0.1, lambda: fresh.log("agent")[-2000:])
    assert device(scene)[0][0] == "/Laptops"
    # All that this machine has there is below: on some it is much.
    left = fresh.run("grep", "-rlsF", f"rdt1.{told['token']}", "/etc", "/tmp", "/usr/local", "/var",
                     check=False, timeout=600)
    assert left.stdout == "", "the token is left somewhere"


def postinst(fresh):
    """What it says, and what it has systemctl do, as if systemd ran here."""
    fresh.run("mkdir", "-p", "/run/systemd/system")
    fresh.write("/root/systemctl", '#!/bin/sh\necho "$@" >>/root/systemctl.log\n', 0o755)
    fresh.run("rm", "-f", "/root/systemctl.log")
    done = fresh.run("unshare", "-m", "sh", "-ec", "mount --bind /root/systemctl /usr/bin/systemctl;"
                     "/var/lib/dpkg/info/redoubt-agent.postinst configure ''")
    fresh.run("rm", "-r", "/run/systemd")
    return done.stderr, fresh.read("/root/systemctl.log").splitlines()


def test_the_package_waits_for_a_server_that_is_away(scene):
    fresh = scene.host(plan.FRESH)
    told = installer(scene, "--base", BASE)
    fresh.run("curl", "-fsS", "-k", "--pinnedpubkey", told["pin"], "-o", "/root/redoubt-agent.deb",
              told["package_url"])
    scene.lab.cut(plan.FRESH)
    scene.later(lambda: purge(fresh))
    done = fresh.run("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y",
                     "/root/redoubt-agent.deb", timeout=120)
    assert "not enrolled" in done.stdout + done.stderr
    mode = os.stat(fresh.file(BROUGHT))
    assert (mode.st_mode & 0o777, mode.st_uid) == (0o600, 0)
    assert fresh.run("setpriv", "--reuid", "nobody", "--clear-groups", "cat", BROUGHT,
                     check=False).returncode != 0
    fresh.run("cp", "-p", BROUGHT, "/root/brought")
    fresh.run("chmod", "644", BROUGHT)           # a reason to fail at once
    said, asked = postinst(fresh)
    assert "goes on trying" in said and asked == [
        "daemon-reload", "enable redoubt-agent.service redoubt-agent-enrol.service",
        "--no-block start redoubt-agent-enrol.service"]
    fresh.run("chmod", "600", BROUGHT)
    before = len(device(scene))
    with fresh.popen("redoubt-agent", "enrol", "--wait", "--from", BROUGHT) as waiting:
        scene.lab.heal()
        assert waiting.wait(60) == 0
    assert not os.path.exists(fresh.file(BROUGHT))
    assert len(device(scene)) == before + 1
    fresh.run("cp", "-p", "/root/brought", BROUGHT)
    said, asked = postinst(fresh)
    assert not os.path.exists(fresh.file(BROUGHT)), said
    assert asked[1:] == ["enable redoubt-agent.service redoubt-agent-enrol.service",
                         "--no-block start redoubt-agent.service"]


def test_links_are_made_for_packages_by_name_version_and_id(scene):
    redoubt, admin = scene.host(scene.active), scene.host("admin")
    told = installer(scene, "--base", BASE)

    def link(*words):
        return json.loads(redoubt.run("redoubt", "package", "link", *words, "--json").stdout)

    newest = link("agent-installer", "--hours", "1")
    assert newest["version"] == told["version"]
    again = [newest, link(f"agent-installer={told['version']}"), link(newest["package"])]
    assert len({one["path"] for one in again}) == 1
    for one in again:
        admin.run("curl", "-fsS", "--cacert", "/etc/redoubt/ca.pem", "-o", "/root/got", one["url"])
        assert admin.run("sha256sum", "/root/got").stdout.split()[0] == told["sha256"]
    bad = redoubt.run("redoubt", "package", "link", "no-such", check=False)
    assert bad.returncode == 1 and "no-such" in bad.stderr
    assert redoubt.run("redoubt", "package", "link", "agent-installer", "--hours", "100000",
                       check=False).returncode == 1


def test_what_is_not_the_package_of_the_script_is_not_installed(scene):
    fresh, lab = scene.host(plan.FRESH), scene.lab
    told = installer(scene, "--base", BASE)
    script = fresh.run("curl", "-fsS", "-k", "--pinnedpubkey", told["pin"],
                       told["script_url"]).stdout
    other = script.replace(f"sha256={told['sha256']}", "sha256=" + "0" * 64)
    refused = fresh.run("sh", text_in=other, check=False)
    assert refused.returncode == 1 and "not the one" in refused.stderr
    half = fresh.run("sh", text_in=script[:len(script) // 2], check=False)
    assert not is_installed(fresh), half.stderr
    for wrong in ("/root/none.deb", "/etc/hosts"):
        bad = scene.host(scene.active).run("redoubt", "package", "agent", "--base", wrong,
                                           check=False)
        assert bad.returncode == 1 and "./dev package" in bad.stderr
    assert lab.sql("select count(*) from redoubt.enrol_token where name = 'installer' and "
                   "revoked_at is null")[0][0] == lab.sql(
                       "select count(distinct version) from redoubt.package "
                       "where name = 'agent-installer'")[0][0], "a token is left over"
