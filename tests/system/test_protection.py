"""The protection of a lab host: fanotify on its overlay, its own clamd, the policy by default."""
import json

import pytest

from redoubt_lab import confs


@pytest.fixture(name="client")
def _client(bare_lab):
    client = bare_lab.host("client-1")
    client.start("agent")
    yield client
    client.stop("agent")


def status(client):
    done = client.run("redoubt-agent", "--config", "/etc/redoubt/agent.conf", "status", "--json",
                      check=False)
    return json.loads(done.stdout) if done.returncode == 0 else {}


def test_a_threat_that_is_written_is_taken(bare_lab, client):
    bare_lab.wait_for(lambda: (status(client).get("protection") or {}).get("realtime")
                      == "notify", 60, "it watches")
    client.run("sh", "-c", f"echo {confs.MARKER} > /tmp/evil; echo good > /tmp/good")
    bare_lab.wait_for(lambda: client.run("test", "-e", "/tmp/evil", check=False).returncode,
                      30, "the file is gone")
    assert client.run("cat", "/tmp/good").stdout == "good\n"

    def held():
        names = client.run("ls", "/var/lib/redoubt-agent/quarantine").stdout.split()
        return len([name for name in names if len(name) == 36])

    # Until the file is surely gone, what is held of it has another name.
    bare_lab.wait_for(held, 30, "the quarantine has it")
    assert held() == 1


def test_the_policy_by_default_is_kept_in_clamd(bare_lab, client):
    def starts():
        return client.units()["clamd"]["starts"]

    bare_lab.wait_for(lambda: (status(client).get("engine") or {}).get("up"), 30, "it is up")
    assert starts() == 1, "the lab's clamd.conf is not what the policy by default makes"
    client.write(confs.CLAMD_CONF, confs.CLAMD.replace("100M", "1M"))
    bare_lab.wait_for(lambda: client.read(confs.CLAMD_CONF) == confs.CLAMD, 30,
                      "the change is corrected")
    bare_lab.wait_for(lambda: starts() == 2 and (status(client).get("engine") or {}).get("up"),
                      30, "clamd is back with it")
