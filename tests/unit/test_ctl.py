"""The program `redoubt` against a fake node daemon, as an operator and a script use it."""

import http.server
import json
import os
import re
import socket
import socketserver
import subprocess
import threading

import pytest

REDOUBT = os.environ["REDOUBT"]

STATUS = {
    "cluster": "demo", "epoch": 41, "active": "node-a", "address": "10.77.0.100/24",
    "paused": False, "degraded": False,
    "alarms": [{"id": "peer_not_ready", "text": "node-b: share down.",
                "since": "2026-11-22T19:56:14.123Z"}],
    "nodes": [
        {"name": "node-a", "role": "active", "state": "active", "why": "peer released",
         "since": "2026-11-22T19:56:14.123Z", "ready": True, "not_ready_because": [],
         "maintenance": False, "seen_ms_ago": 120, "version": "0.1.0",
         "services": [{"name": "server", "state": "active", "restarts": 2,
                       "since": "2026-11-22T19:56:14Z", "detail": "serving"}],
         "share": {"ok": True, "latency_ms": 0.42, "dialect": "3.1.1"},
         "content": {"known": True, "prepared": True, "files": 12, "bytes": 3 << 29, "missing": 0,
                     "missing_bytes": 0, "share_ok": True, "scrubbing": True, "detail": ""},
         "database": {"ok": True, "latency_ms": 0.31}},
        {"name": "node-b", "role": "passive", "state": "following", "ready": False,
         "not_ready_because": ["the state share cannot be reached"], "maintenance": True,
         "seen_ms_ago": 900, "version": "0.1.0", "services": [],
         "share": {"ok": False}, "database": {"ok": True},
         "content": {"known": True, "prepared": False, "files": 12, "bytes": 3 << 29, "missing": 2,
                     "missing_bytes": 700, "share_ok": False, "detail": "no such share"}}],
    "lease": {"holder": "node-a", "epoch": 41, "age_ms": 120, "remaining_ms": 1380,
              "hold_ms": 1500},
    "last_switch": {"from": "node-b", "to": "node-a", "reason": "operator",
                    "at": "2026-11-22T19:56:14.123Z", "outage_ms": 93},
    "switches": [],
}


class Daemon:
    """Answers from a table of (method, path) -> (status, object) or a function."""

    def __init__(self, folder):
        self.answers = {}
        self.asked = []
        self.socket = str(folder / "node.sock")
        daemon = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                daemon.asked.append((self.command, self.path, body.decode()))
                path = self.path.split("?")[0]
                status, answer = daemon.answers.get(
                    (self.command, path), (404, {"error": {"id": "not_found"}}))
                if callable(answer):
                    answer = answer()
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = answer

            def log_message(self, *_args):
                pass

            def address_string(self):
                return "unix"

        self.server = socketserver.ThreadingUnixStreamServer(self.socket, Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def daemon(tmp_path):
    d = Daemon(tmp_path)
    d.answers["GET", "/v1/status"] = (200, STATUS)
    yield d
    d.stop()


def run(*args, code=0, daemon=None, stdin=""):
    socket = ["--socket", daemon.socket] if daemon else []
    done = subprocess.run([REDOUBT, *socket, *args], capture_output=True, text=True,
                          timeout=30, input=stdin, check=False)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done


def test_status_shows_all_that_matters(daemon):
    text = run("status", daemon=daemon).stdout
    for words in ("Cluster demo", "epoch 41", "10.77.0.100/24", "node-a is active",
                  "because: peer released", "Lease: node-a, epoch 41, renewed 120 ms ago, "
                  "1.38 s left of 1.50 s", "0.4 ms", "down",
                  "not ready: the state share cannot be reached", "in maintenance",
                  "2 restarts; serving", "peer_not_ready: The other node is not ready",
                  "12 files, 1.5 GiB, all here; being read again",
                  "2 missing (700 B); the data share is away", "no such share",
                  "What to do:", "node-b -> node-a  operator  outage 93 ms"):
        assert words in text, words
    assert "\033" not in text  # not a terminal: no colours


def test_status_json_is_the_daemons(daemon):
    assert json.loads(run("status", "--json", daemon=daemon).stdout) == STATUS


@pytest.mark.parametrize("change, code", [
    ({}, 4),  # an alarm, and node-b is not ready
    ({"active": None}, 5),
    ({"alarms": []}, 4),
    ({"alarms": [], "nodes": STATUS["nodes"][:1]}, 0),
    ({"alarms": [], "nodes": STATUS["nodes"][:1], "paused": True}, 4),
    ({"alarms": [], "nodes": STATUS["nodes"][:1], "degraded": True}, 4),
])
def test_check_tells_the_health_in_the_exit_code(daemon, change, code):
    daemon.answers["GET", "/v1/status"] = (200, {**STATUS, **change})
    run("status", "--check", daemon=daemon, code=code)
    run("status", daemon=daemon)


@pytest.mark.parametrize("status", [
    {}, {"nodes": 7, "alarms": {}, "lease": [], "active": 3},
    {"nodes": [None, {}, {"services": [1, {}]}], "alarms": [1, {}], "switches": [{}, 2]},
])
def test_status_bears_what_is_missing_or_strange(daemon, status):
    daemon.answers["GET", "/v1/status"] = (200, status)
    run("status", daemon=daemon)


@pytest.mark.parametrize("answer", [b"", b"[]", b"no json", b'{"a":1,"a":2}'])
def test_an_answer_that_makes_no_sense_is_an_error(daemon, answer):
    daemon.answers["GET", "/v1/explain"] = (200, answer)
    run("explain", daemon=daemon, code=0 if answer == b"" else 1)


def test_a_daemon_that_is_not_there(tmp_path):
    socket = ["--socket", str(tmp_path / "no.sock"), "--config", str(tmp_path / "no.conf")]
    for command in (["status"], ["log"], ["explain"], ["pause"], ["switchover"], ["debug"],
                    ["maintenance", "on"], ["reload"]):
        err = run(*socket, *command, code=3).stderr
        assert "not running" in err and "systemctl start redoubt-node" in err
    error = json.loads(run(*socket, "--json", "status", code=3).stdout)["error"]
    assert error["id"] == "daemon_unreachable" and error["suggestion"]


def test_a_daemon_that_hangs_is_told(tmp_path):
    path = str(tmp_path / "hangs.sock")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(path)
        s.listen()  # and never accepts
        err = run("--socket", path, "--config", str(tmp_path / "no"), "status", code=3).stderr
    assert "does not answer" in err and "guard has stopped the services" in err


def test_a_refusal_is_told_in_the_daemons_words(daemon):
    daemon.answers["POST", "/v1/switchover"] = (409, {"error": {
        "id": "peer_not_ready", "title": "node-b is not ready", "text": "Its share is down.",
        "suggestion": "Wait."}})
    err = run("switchover", daemon=daemon, code=6).stderr
    assert "node-b is not ready" in err and "Its share is down." in err and "Wait." in err
    out = json.loads(run("--json", "switchover", daemon=daemon, code=6).stdout)
    assert out["error"]["id"] == "peer_not_ready"
    daemon.answers["POST", "/v1/pause"] = (500, {})
    assert "status 500" in run("pause", daemon=daemon, code=1).stderr


def switching(daemon, end):
    """node-a active, then in between, then `end`."""
    states = iter([STATUS, STATUS, {**STATUS, "active": None, "epoch": 41}])

    def answer():
        return next(states, end)

    daemon.answers["GET", "/v1/status"] = (200, answer)
    daemon.answers["POST", "/v1/switchover"] = (202, {"text": "accepted"})


def test_switchover_waits_until_it_is_done(daemon):
    switching(daemon, {**STATUS, "active": "node-b", "epoch": 42, "last_switch": {
        "from": "node-a", "to": "node-b", "reason": "operator", "outage_ms": 88}})
    out = run("switchover", "--to", "node-b", daemon=daemon).stdout
    assert out == "node-b is active; the services were away for 88 ms.\n"
    posted = [a for a in daemon.asked if a[0] == "POST"]
    assert posted == [("POST", "/v1/switchover", '{"to":"node-b"}')]


def test_switchover_json(daemon):
    switching(daemon, {**STATUS, "active": "node-b", "epoch": 42})
    out = json.loads(run("switchover", "--json", daemon=daemon).stdout)
    assert (out["active"], out["from"], out["epoch"]) == ("node-b", "node-a", 42)


def test_switchover_that_goes_back_is_a_failure(daemon):
    switching(daemon, {**STATUS, "active": "node-a", "epoch": 42})
    assert "did not take over" in run("switchover", daemon=daemon, code=1).stderr


def test_switchover_gives_up(daemon):
    switching(daemon, {**STATUS, "active": None})
    assert "not done in time" in run("switchover", "--timeout", "1", daemon=daemon,
                                     code=1).stderr


def test_switchover_to_the_active_node_does_nothing(daemon):
    assert "active already" in run("switchover", "--to", "node-a", daemon=daemon).stdout
    assert all(a[0] == "GET" for a in daemon.asked)


def test_switchover_no_wait(daemon):
    switching(daemon, STATUS)
    assert run("switchover", "--no-wait", daemon=daemon).stdout == "accepted\n"


@pytest.mark.parametrize("args, path, body", [
    (["maintenance", "on"], "/v1/maintenance", '{"on":true}'),
    (["maintenance", "off", "--node", "node-b"], "/v1/maintenance",
     '{"on":false,"node":"node-b"}'),
    (["pause"], "/v1/pause", ""),
    (["resume"], "/v1/resume", ""),
    (["lease", "adopt", "--yes"], "/v1/lease/adopt", ""),
])
def test_wishes_reach_the_daemon(daemon, args, path, body):
    daemon.answers["POST", path] = (200, {"ok": True})
    assert run(*args, daemon=daemon).stdout.strip()
    assert daemon.asked == [("POST", path, body)]
    assert json.loads(run(*args, "--json", daemon=daemon).stdout) == {"ok": True}


def test_reload_names_what_changed(daemon):
    daemon.answers["POST", "/v1/reload"] = (200, {"changes": [
        {"section": "log", "key": "level", "takes_effect": "now"}], "need_restart": 0})
    assert "[log] level: takes effect now" in run("reload", daemon=daemon).stdout
    daemon.answers["POST", "/v1/reload"] = (200, {"changes": []})
    assert "nothing has changed" in run("reload", daemon=daemon).stdout
    daemon.answers["POST", "/v1/reload"] = (409, {"errors": ["line 3: no", "line 4: no"]})
    err = run("reload", daemon=daemon, code=1).stderr
    assert "line 3: no; line 4: no" in err and "goes on with the old one" in err


def test_adopt_wants_a_yes(daemon):
    err = run("lease", "adopt", daemon=daemon, code=1, stdin="y\n").stderr
    assert "not confirmed" in err  # a pipe is nobody who understands the question
    assert daemon.asked == []


ENTRY = {"at": "2026-11-22T19:56:14.123Z", "node": "node-b", "kind": "switch",
         "from": "node-a", "to": "node-b", "why": "lease_unchanged", "epoch": 42,
         "evidence": {"age_ms": 1700, "seq": 9}, "action": "claim", "outage_ms": 1810,
         "text": "node-a did not renew."}


def test_log_shows_cause_evidence_action_and_outage(daemon):
    daemon.answers["GET", "/v1/history"] = (200, {"entries": [ENTRY]})
    text = run("log", "-n", "7", daemon=daemon).stdout
    assert daemon.asked[-1][1] == "/v1/history?limit=7"
    for words in ("node-a -> node-b", "why=lease_unchanged", "epoch=42", "outage 1.81 s",
                  "node-a did not renew.", "evidence: age_ms=1700 seq=9", "action: claim"):
        assert words in text, words
    assert json.loads(run("log", "--json", daemon=daemon).stdout) == {"entries": [ENTRY]}


def test_log_follow_shows_each_entry_once(daemon):
    newer = {**ENTRY, "at": "2026-11-22T19:57:00.000Z"}
    answers = iter([{"entries": [ENTRY]}, {"entries": [ENTRY]}])
    daemon.answers["GET", "/v1/history"] = (
        200, lambda: next(answers, {"entries": [ENTRY, newer]}))
    with subprocess.Popen([REDOUBT, "--socket", daemon.socket, "log", "-f", "--json"],
                          stdout=subprocess.PIPE, text=True) as p:
        lines = [json.loads(p.stdout.readline()) for _ in range(2)]
        p.terminate()
    assert lines == [ENTRY, newer]


def test_explain_and_debug(daemon):
    daemon.answers["GET", "/v1/explain"] = (200, {
        "now": ["node-a is active because node-b released."],
        "if": {"node-a fails": "node-b takes over within 2 s."}})
    text = run("explain", daemon=daemon).stdout
    assert "node-b takes over within 2 s." in text and "node-a fails" in text
    daemon.answers["GET", "/v1/explain"] = (200, {
        "Why": ["w."], "Nothing": [], "alarms": [{"id": "paused", "text": "p."}]})
    text = run("explain", daemon=daemon).stdout
    assert text == "Why\n  w.\nalarms\n  paused:\n    p.\n"
    daemon.answers["GET", "/v1/debug"] = (200, {"lines": ["one", "two"]})
    assert run("debug", daemon=daemon).stdout == "one\ntwo\n"


CONF = """[cluster]
name=demo
node=node-a
peer=node-b
key_file={0}/cluster.key
[share]
state=//127.0.0.1/state
credentials={0}/smb.cred
port=1
[database]
conninfo=host=127.0.0.1
[address]
mode=none
"""


@pytest.fixture
def conf(tmp_path):
    path = tmp_path / "redoubt.conf"
    path.write_text(CONF.format(tmp_path))
    for name, text in (("cluster.key", "ab" * 32 + "\n"),
                       ("smb.cred", "username=x\npassword=y\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    return path


def test_config_check_and_show(conf):
    assert "no errors" in run("--config", str(conf), "config", "check").stdout
    shown = run("--config", str(conf), "config", "show", "--docs").stdout
    other = conf.with_name("again.conf")
    other.write_text(shown)
    assert run("--config", str(other), "config", "show", "--docs").stdout == shown
    out = json.loads(run("--config", str(conf), "config", "show", "--json").stdout)
    assert out["cluster"]["hold_ms"] == "1500" and out["share"]["port"] == "1"
    conf.write_text("[cluster]\nnam=x\nhold_ms=never\n")
    err = run("--config", str(conf), "config", "check", code=1).stderr
    assert f"{conf}:2:1: unknown key nam" in err and f"{conf}:3:9: hold_ms" in err
    out = json.loads(run("--json", "--config", str(conf), "config", "check", code=1).stdout)
    assert not out["ok"] and {"line": 2, "column": 1,
                              "text": "unknown key nam in [cluster]"} in out["errors"]


def test_status_without_daemon_and_share_says_both(conf, tmp_path):
    err = run("--config", str(conf), "--socket", str(tmp_path / "no.sock"), "status",
              code=3).stderr
    assert "not running" in err and "state share cannot be asked either" in err


@pytest.mark.parametrize("args", [
    [], ["nonsense"], ["config"], ["config", "nonsense"], ["status", "too", "much"],
    ["maintenance"], ["maintenance", "maybe"], ["--nonsense"], ["status", "--nonsense"],
    ["log", "-n", "0"], ["log", "-n", "x"], ["switchover", "--to"], ["alarms", "none"],
    ["help", "none"],
])
def test_a_wrong_command_line_is_told(args, tmp_path):
    done = run("--socket", str(tmp_path / "no.sock"), *args, code=2)
    assert done.stderr and not done.stdout


def commands():
    text = run("--help").stdout
    part = text.split("Commands:\n")[1].split("\n\n")[0]
    return [re.split(r" \W| [A-Z]|  |on\|", line.strip())[0].strip()
            for line in part.splitlines() if line.startswith("  ")]


def test_every_command_has_help_completion_and_a_place_in_the_manual():
    page = run("help", "--man").stdout
    assert len(commands()) > 60
    for command in commands():
        text = run(*command.split(), "--help").stdout
        assert text.startswith(f"Usage: redoubt {command}")
        assert f".It Ic {command}" in page
        for option in re.findall(r"--([a-z-]+)", text):
            assert f"Fl -{option}" in page, option


def complete(*words):
    script = (f"source <({REDOUBT} completion); COMP_WORDS=({' '.join(words)} ''); "
              f"COMP_CWORD={len(words)}; _redoubt; echo ${{COMPREPLY[@]}}")
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True,
                          check=True).stdout.split()


def test_completion():
    first = complete("redoubt")
    assert {c.split()[0] for c in commands()} <= set(first)
    assert {"on", "off", "--node"} <= set(complete("redoubt", "maintenance"))
    assert complete("redoubt", "config") == ["check", "show", "reference"]
    assert "--docs" in complete("redoubt", "--config", "x", "config", "show")


def test_manual_pages_are_clean_mdoc():
    for args in (["help", "--man"], ["config", "reference", "--man"],
                 ["config", "reference", "--man", "--agent"]):
        page = run(*args).stdout
        lint = subprocess.run(["mandoc", "-T", "lint"], input=page, capture_output=True,
                              text=True, check=False).stdout
        bad = [l for l in lint.splitlines() if "referenced manual not found" not in l]
        assert bad == []


def test_alarms_are_explained():
    text = run("alarms", "share_full").stdout
    assert "The state share is full" in text and "What to do:" in text
    every = json.loads(run("alarms", "--json").stdout)["alarms"]
    assert len(every) > 20 and all(a["suggestion"] for a in every)


def test_version(daemon, conf):
    assert run("version", daemon=daemon).stdout.startswith("redoubt 0.")
    daemon.answers["GET", "/v1/status"] = (
        200, {"nodes": [{"name": "node-a", "version": "0.0.9"}]})
    out = run("--config", str(conf), "version", daemon=daemon).stdout
    assert "redoubt-node 0.0.9 is running" in out


def test_output_that_cannot_be_written_is_a_failure(daemon):
    with open("/dev/full", "w", encoding="ascii") as full:
        done = subprocess.run([REDOUBT, "--socket", daemon.socket, "status"], stdout=full,
                              stderr=subprocess.DEVNULL, timeout=30, check=False)
    assert done.returncode == 1



def test_the_example_is_a_valid_configuration():
    top = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    shown = run("--config", f"{top}/packaging/redoubt.conf", "config", "show").stdout
    assert shown.count("[service ") == 4


@pytest.mark.parametrize("page", ["redoubt-node.8", "redoubt-agent.1"])
def test_written_pages_are_clean_mdoc(page):
    top = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    lint = subprocess.run(["mandoc", "-T", "lint", f"{top}/docs/man/{page}"],
                          capture_output=True, text=True, check=False).stdout
    assert [l for l in lint.splitlines() if "referenced manual not found" not in l] == []
