"""What the units of systemd say where more than systemd has to understand it."""
import configparser
import os
import shlex
import subprocess

import pytest

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def service(name):
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(os.path.join(TOP, f"packaging/systemd/{name}.service.in"))
    return unit["Service"]


def test_no_boot_waits_for_the_enrolment():
    """multi-user.target wants it: a oneshot is started only when it has ended."""
    enrol = service("redoubt-agent-enrol")
    assert enrol["Type"] == "exec" and enrol["ExecStart"].endswith(" --wait")


@pytest.mark.parametrize("code, status, starts", [
    ("exited", "0", True), ("exited", "1", False), ("exited", "75", False),
    ("killed", "TERM", False), ("", "", False)])
def test_the_agent_is_started_once_it_is_enrolled(tmp_path, code, status, starts):
    asked = tmp_path / "asked"
    fake = tmp_path / "systemctl"
    fake.write_text(f'#!/bin/sh\necho "$@" >>{asked}\n')
    fake.chmod(0o755)
    # As systemd reads it: words, and $$ for a $.
    line = [w.replace("$$", "$")
            for w in shlex.split(service("redoubt-agent-enrol")["ExecStopPost"])]
    ended = {"EXIT_CODE": code, "EXIT_STATUS": status} if code else {}
    subprocess.run(line, check=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin", **ended})
    told = asked.read_text() if asked.exists() else ""
    assert told == ("--no-block start redoubt-agent.service\n" if starts else "")
