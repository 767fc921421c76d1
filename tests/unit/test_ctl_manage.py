"""The commands of `redoubt` for devices and their protection, against a fake API."""

import http.server
import json
import os
import socketserver
import ssl
import subprocess
import threading
import urllib.parse

import pytest

REDOUBT = os.environ["REDOUBT"]
ID = "0b2f6c1e-1111-4111-8111-aaaaaaaaaaaa"
ID2 = "0b2f6c1e-2222-4222-8222-bbbbbbbbbbbb"
CUT = object()  # an answer: the connection breaks after the request was read
NOT_ACTIVE = (503, {"error": {"id": "not_active", "title": "This node is not active"}})


class Asked:
    def __init__(self, handler, body):
        self.method = handler.command
        self.path, _, query = handler.path.partition("?")
        self.query = urllib.parse.parse_qs(query)
        self.headers = dict(handler.headers)
        self.body = json.loads(body) if body else None

    def __repr__(self):
        return f"{self.method} {self.path} {self.query} {self.body}"


class Fake:
    """Answers from (method, path) -> list of answers, the last of which stays, each
    (status, object), (status, object, etag), a function of what was asked, or CUT."""

    def __init__(self, folder):
        self.answers = {}
        self.asked = []
        self.folder = folder
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                asked = Asked(self, body)
                fake.asked.append(asked)
                left = fake.answers.get((self.command, asked.path),
                                        [(404, {"error": {"id": "not_found", "title": "no"}})])
                answer = left.pop(0) if len(left) > 1 else left[0]
                if callable(answer):
                    answer = answer(asked)
                if answer is CUT:
                    self.close_connection = True
                    return
                data = json.dumps(answer[1]).encode()
                self.send_response(answer[0])
                self.send_header("Content-Length", str(len(data)))
                if len(answer) > 2:
                    self.send_header("ETag", answer[2])
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

            def log_message(self, *_args):
                pass

            def address_string(self):
                return "unix"

        self.handler = Handler
        self.servers = []
        self.serve("manager.sock")

    def serve(self, name):
        server = socketserver.ThreadingUnixStreamServer(str(self.folder / name), self.handler)
        self.run(server)

    def run(self, server):
        server.daemon_threads = True
        self.servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def say(self, method, path, *answers):
        self.answers[method, path] = [a if callable(a) or a is CUT or isinstance(a, tuple)
                                      else (200, a) for a in answers]

    def list(self, path, *items):
        self.say("GET", path, {"items": list(items), "next": None})

    def changes(self):
        return [a for a in self.asked if a.method != "GET"]

    def stop(self):
        for server in self.servers:
            server.shutdown()
            server.server_close()


@pytest.fixture(name="api")
def _api(tmp_path):
    fake = Fake(tmp_path)
    fake.list("/v1/devices", {"id": ID, "name": "alpha"}, {"id": ID2, "name": "beta"})
    fake.list("/v1/tasks", {"id": ID, "name": "nightly"})
    yield fake
    fake.stop()


def run(*args, api=None, code=0, stdin="", env=None):
    where = ["--socket", str(api.folder / "node.sock"), "--config", "/none"] if api else []
    done = subprocess.run([REDOUBT, *where, *args], capture_output=True, text=True, timeout=60,
                          input=stdin, check=False, env={**os.environ, **(env or {})})
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done


# ---- the client ----

def test_a_list_follows_its_cursors(api):
    api.say("GET", "/v1/devices", lambda a: (200, {
        "items": [{"id": ID, "name": f"d{a.query.get('cursor', ['0'])[0]}"}],
        "next": {"0": "1", "1": "2"}.get(a.query.get("cursor", ["0"])[0])}))
    out = run("device", "list", api=api).stdout
    assert [line.split()[1] for line in out.splitlines()] == ["NAME", "d0", "d1", "d2"]
    done = run("device", "list", "--limit", "2", api=api)
    assert "d2" not in done.stdout and "more than these 2; --limit shows them" in done.stderr
    shown = json.loads(run("device", "list", "--limit", "2", "--json", api=api).stdout)
    assert (len(shown["items"]), shown["next"]) == (2, "2")
    api.say("GET", "/v1/devices", {"items": [], "next": "again"})  # a server that turns in circles
    assert run("device", "list", api=api).stdout == "No devices.\n"


def test_a_change_is_repeated_with_the_same_key_while_the_cluster_switches(api):
    api.say("POST", "/v1/groups", CUT, NOT_ACTIVE, (201, {"path": "/A"}))
    done = run("group", "create", "/A", api=api)
    assert done.stdout == "/A is made.\n"
    assert "trying again for up to 60 s" in done.stderr and done.stderr.count("\n") == 1
    keys = {a.headers["Idempotency-Key"] for a in api.changes()}
    assert len(api.changes()) == 3 and len(keys) == 1 and len(keys.pop()) == 32
    run("group", "create", "/A", api=api)
    assert api.changes()[-1].headers["Idempotency-Key"] != api.changes()[0].headers[
        "Idempotency-Key"]


def test_it_gives_up_and_says_that_it_may_be_done(api):
    api.say("POST", "/v1/groups", CUT)
    err = run("group", "create", "/A", "--timeout", "1", api=api, code=3).stderr
    assert "may have been carried out all the same" in err and len(api.changes()) in (1, 2)
    api.say("GET", "/v1/groups", NOT_ACTIVE)
    out = run("group", "list", "--timeout", "1", "--json", api=api, code=5).stdout
    assert json.loads(out)["error"]["id"] == "not_active"
    api.say("GET", "/v1/groups", (503, {"error": {"id": "busy", "title": "It took too long"}}))
    err = run("group", "list", "--timeout", "1", api=api, code=1).stderr
    assert "did not manage it in time\n  It took too long." in err


def test_the_node_that_is_active_is_named(api, tmp_path):
    conf = tmp_path / "redoubt.conf"
    for name, text in (("cluster.key", "ab" * 32 + "\n"), ("smb.cred", "username=x\npassword=y\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    conf.write_text(
        f"[cluster]\nname=demo\nnode=node-a\npeer=node-b\nkey_file={tmp_path}/cluster.key\n"
        f"[share]\nstate=//127.0.0.1/state\ncredentials={tmp_path}/smb.cred\nport=1\n"
        "[database]\nconninfo=host=127.0.0.1\n[address]\nmode=none\n")
    api.serve("node.sock")
    api.say("GET", "/v1/status", {"active": "node-b"})
    api.say("GET", "/v1/groups", NOT_ACTIVE)
    err = run("--config", str(conf), "--socket", str(tmp_path / "node.sock"), "group", "list",
              code=5).stderr
    assert "node-b is active." in err and "Run the command on node-b" in err


def test_without_a_server_it_fails_at_once(tmp_path):
    where = ["--socket", str(tmp_path / "node.sock"), "--config", "/none"]
    for command in (["device", "list"], ["events"], ["export"], ["task", "list"]):
        err = run(*where, *command, code=3).stderr
        assert "cannot be reached" in err and "systemctl start redoubt-node" in err


@pytest.mark.parametrize("answer, code, words", [
    ((404, {"error": {"id": "not_found", "title": "Gone\x1b[2J", "text": "t.",
                      "suggestion": "s."}}), 1, "Gone\\x1b[2J"),
    ((409, {"error": {"title": "Not now"}}), 6, "Not now"),
    ((403, {"error": {"title": "Not allowed"}}), 1, "Not allowed"),
    ((500, {}), 1, "status 500"), ((200, []), 1, "makes no sense"),
    ((200, {"items": 7}), 0, ""),
])
def test_refusals_and_nonsense(api, answer, code, words):
    api.say("GET", "/v1/groups", answer)
    assert words in run("group", "list", api=api, code=code).stderr


def certificate(folder, name, *more):
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                    "ec_paramgen_curve:P-256", "-nodes", "-keyout", folder / f"{name}.key",
                    "-out", folder / f"{name}.pem", "-days", "2", "-subj", f"/CN={name}", *more],
                   check=True, capture_output=True)


def test_over_tls_with_a_token(api, tmp_path):
    for name in ("ca", "other"):
        certificate(tmp_path, name, "-addext", "basicConstraints=critical,CA:true")
    certificate(tmp_path, "server", "-CA", tmp_path / "ca.pem", "-CAkey", tmp_path / "ca.key",
                "-addext", "subjectAltName=IP:127.0.0.1", "-addext",
                "basicConstraints=CA:false")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), api.handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    api.run(server)
    there = ["--server", f"127.0.0.1:{server.server_port}", "--timeout", "1"]
    token = tmp_path / "token"
    env = {"REDOUBT_TOKEN_FILE": str(token)}

    assert "Neither --token-file" in run("device", "list", *there, code=1).stderr
    assert str(token) in run("device", "list", *there, code=1, env=env).stderr
    token.write_text("two words\n")
    token.chmod(0o600)
    run("device", "list", *there, code=1, env=env)
    token.write_text("rda1.secret\n")
    err = run("device", "list", *there, code=3, env=env).stderr  # not of the system's CAs
    assert "not one of the cluster's" in err and "--ca FILE" in err
    run("device", "list", *there, "--ca", str(tmp_path / "other.pem"), code=3, env=env)
    run("device", "list", *there, "--ca", "/none.pem", code=3, env=env)
    assert not api.asked
    ca = ["--ca", str(tmp_path / "ca.pem")]
    assert "alpha" in run("device", "list", *there, *ca, env=env).stdout
    assert api.asked[0].headers["Authorization"] == "Bearer rda1.secret"
    token.chmod(0o644)
    done = run("device", "list", *there, *ca, "--token-file", str(token))
    assert "others on this machine can read" in done.stderr
    run("device", "list", "--server", "no-such-host.invalid", "--token-file", str(token),
        "--timeout", "1", code=3)


# ---- names and tables ----

def test_names_and_beginnings_of_ids(api):
    api.say("GET", f"/v1/devices/{ID}", {"id": ID, "name": "alpha"})
    for word in ("alpha", ID, ID[:15], ID[:15].upper()):
        assert json.loads(run("device", "show", word, "--json", api=api).stdout)["id"] == ID
    err = run("device", "show", "0b2f", api=api, code=1).stderr
    assert "more than one device" in err and ID in err and ID2 in err
    for word in ("0b2", "gamma", "0b2f6c1e-3"):
        assert "There is no device" in run("device", "show", word, api=api, code=1).stderr
    api.list("/v1/devices", {"id": ID, "name": "same"}, {"id": ID2, "name": "same"})
    assert "more than one" in run("device", "show", "same", api=api, code=1).stderr


def test_a_table_is_aligned_and_safe(api):
    names = ["a", "zwölf\x1b]0;x\x07", "日本", "‮evil\u200b", "tab\tnl\n"]
    api.list("/v1/devices", *({"id": ID, "name": n, "status": "ok", "tags": ["x", "y"],
                               "connected": True, "last_seen": None} for n in names), {"id": 7}, 3)
    lines = run("device", "list", api=api).stdout.splitlines()
    assert len(lines) == len(names) + 3
    text = "\n".join(lines)
    assert not any(ch in text for ch in "\x1b\x07\t‮\u200b")
    for part in ("zwölf\\x1b]0;x\\x07", "日本", "\\u202eevil\\u200b", "tab\\x09nl\\x0a", "x, y"):
        assert part in text, part
    wide = {"日": 2, "本": 2}
    columns = {sum(wide.get(ch, 1) for ch in line[:line.index("  ok ")])
               for line in lines[1:] if "  ok " in line}
    starts = {sum(wide.get(ch, 1) for ch in line.split("  ok ")[0].rstrip("- "))
              for line in lines[1:]}
    assert starts and len(columns) == 1  # the column STATUS stands in one place


# ---- devices ----

def test_device_list_filters(api):
    run("device", "list", "--group", "Servers/Linux/", "--status", "critical", "--state",
        "active", "--tag", "a&b", "--search", "x y", "--offline", api=api)
    assert api.asked[0].query == {
        "group": ["/Servers/Linux"], "status": ["critical"], "state": ["active"],
        "tag": ["a&b"], "q": ["x y"], "connected": ["false"], "limit": ["500"]}


def test_device_show(api):
    api.say("GET", f"/v1/devices/{ID}", {
        "id": ID, "name": "alpha", "group": {"path": "/S"}, "status": "critical", "tags": [],
        "reasons": [{"id": "engine_down", "text": "The engine\x07 is down.",
                     "severity": "critical"}],
        "description": {"identifying": {"service.name": "a"},
                        "non_identifying": {"os.type": "linux", "x": {"y": 1}}}})
    out = run("device", "show", "alpha", api=api).stdout
    for words in ("Group             /S", "critical: The engine\\x07 is down.",
                  "os.type: linux", 'x: {"y":1}'):
        assert words in out, words


@pytest.mark.parametrize("args, method, path, body, words", [
    (["move", "alpha", "beta", "Servers"], "PATCH", "", {"group": "/Servers"}, "is in /Servers."),
    (["rename", "alpha", "neu ü"], "PATCH", "", {"name": "neu ü"}, "is its name."),
    (["approve", "alpha", "beta"], "POST", "/approve", {}, "is approved."),
    (["revoke", "alpha", "--yes", "--reason", "stolen"], "POST", "/revoke",
     {"reason": "stolen"}, "is revoked."),
    (["remove", "beta", "-y"], "DELETE", "", None, "is removed."),
])
def test_device_changes(api, args, method, path, body, words):
    for one, name in ((ID, "alpha"), (ID2, "beta")):
        api.say(method, f"/v1/devices/{one}{path}", {"id": one, "name": name})
    out = run("device", *args, api=api).stdout
    wanted = [w for w in args if w in ("alpha", "beta")]
    assert out.splitlines() == [f"{w} {words}" for w in wanted]
    assert [a.body for a in api.changes()] == [body] * len(wanted)
    shown = json.loads(run("device", *args, "--json", api=api).stdout)
    assert (shown if len(wanted) == 1 else shown["items"][0])["name"] == wanted[0]


@pytest.mark.parametrize("args", [
    ["device", "revoke", "alpha"], ["device", "remove", "alpha"], ["group", "remove", "/A"],
    ["task", "remove", "nightly"],
])
def test_what_cannot_be_taken_back_wants_a_yes(api, args):
    assert "not confirmed" in run(*args, api=api, code=1, stdin="y\n").stderr
    assert not api.changes()


def test_tags_are_changed_with_the_version_that_was_read(api):
    path = f"/v1/devices/{ID}"
    api.say("GET", path, (200, {"tags": ["a", "b"]}, '"v1"'), (200, {"tags": ["c"]}, '"v2"'))
    api.say("PATCH", path, (412, {"error": {"title": "changed"}}),
            lambda a: (200, {"name": "alpha", "tags": a.body["tags"]}))
    assert run("device", "tag", "alpha", "b", "x", api=api).stdout == (
        "alpha has the tags: c, b, x\n")
    assert [(a.headers["If-Match"], a.body) for a in api.changes()] == [
        ('"v1"', {"tags": ["a", "b", "x"]}), ('"v2"', {"tags": ["c", "b", "x"]})]
    api.say("PATCH", path, (200, {"tags": []}))
    run("device", "untag", "alpha", "c", "zzz", api=api)
    assert api.changes()[-1].body == {"tags": []}
    api.say("PATCH", path, (412, {"error": {"title": "It was changed meanwhile"}}))
    err = run("device", "untag", "alpha", "c", api=api, code=6).stderr
    assert err.count("changed meanwhile") == 1


def test_a_change_whose_answer_was_lost_is_not_repeated_in_vain(api):
    path = f"/v1/devices/{ID}"
    changed = (412, {"error": {"title": "changed"}})
    api.say("GET", path, (200, {"tags": ["a"]}, '"v1"'), (200, {"tags": ["a", "x"]}, '"v2"'))
    api.say("PATCH", path, CUT, changed)
    assert "the tags: a, x" in run("device", "tag", "alpha", "x", api=api).stdout
    assert len(api.changes()) == 2  # the second told that the first was done
    api.say("DELETE", path, CUT, (404, {"error": {"title": "Not found"}}))
    assert "is removed" in run("device", "remove", "alpha", "-y", api=api).stdout
    api.say("DELETE", path, (404, {"error": {"title": "Not found"}}))
    assert "Not found" in run("device", "remove", "alpha", "-y", api=api, code=1).stderr


def test_device_quarantine(api):
    api.list(f"/v1/devices/{ID}/quarantine", {"item": ID2, "path": "/tmp/e\x1b.com",
                                              "threat": "Eicar", "state": "held", "size": 68})
    out = run("device", "quarantine", "alpha", api=api).stdout
    assert ID2 in out and "/tmp/e\\x1b.com" in out and "held" in out


# ---- groups, policies, rules ----

def test_group_tree(api):
    api.list("/v1/groups", *({"path": p, "devices": n} for p, n in
                             (("/B", 1), ("/A/C", 7), ("/", 0), ("/A", 2))))
    out = run("group", "list", api=api).stdout.splitlines()
    assert [line.split()[0] for line in out] == ["/", "A", "C", "B"]
    assert out[2].startswith("    C ") and out[2].endswith("7 devices")
    assert out[3].endswith("1 device")


@pytest.mark.parametrize("args, method, path, body", [
    (["show", "A/B"], "GET", "/v1/groups/%2FA%2FB", None),
    (["create", "/A/B ü"], "POST", "/v1/groups", {"parent": "/A", "name": "B ü"}),
    (["create", "A"], "POST", "/v1/groups", {"parent": "/", "name": "A"}),
    (["rename", "/A", "B"], "PATCH", "/v1/groups/%2FA", {"name": "B"}),
    (["move", "/A/B/", "/"], "PATCH", "/v1/groups/%2FA%2FB", {"parent": "/"}),
    (["remove", ID, "--yes"], "DELETE", f"/v1/groups/{ID}", None),
])
def test_group_commands(api, args, method, path, body):
    api.say(method, path, {"path": "/A/B", "name": "B"})
    assert run("group", *args, api=api).stdout
    assert (api.asked[-1].method, api.asked[-1].path, api.asked[-1].body) == (
        method, path, body)
    assert json.loads(run("group", *args, "--json", api=api).stdout)["name"] == "B"


POLICY = "/v1/groups/%2FS/policy"


def test_policy_set_keeps_what_it_does_not_name(api):
    was = {"a.x": {"value": 1, "locked": True}, "b.y": {"value": "off", "locked": False}}
    api.say("GET", POLICY, (200, {"settings": was}, '"v7"'))
    api.say("PUT", POLICY, lambda a: (200, a.body))
    out = run("policy", "set", "/S", "a.x=5", "c.z=[\"/srv\"]", "d.w=block", "e.v=a=b",
              api=api).stdout
    assert api.changes()[0].headers["If-Match"] == '"v7"'
    assert api.changes()[0].body["settings"] == {
        **was, "a.x": {"value": 5, "locked": True}, "c.z": {"value": ["/srv"], "locked": False},
        "d.w": {"value": "block", "locked": False}, "e.v": {"value": "a=b", "locked": False}}
    assert "a.x      locked  5" in out
    run("policy", "set", "/S", "b.y=1", "--lock", api=api)
    assert api.changes()[-1].body["settings"]["b.y"] == {"value": 1, "locked": True}
    run("policy", "unset", "/S", "a.x", api=api)
    assert api.changes()[-1].body["settings"] == {"b.y": was["b.y"]}
    run("policy", "lock", "/S", "b.y", api=api)
    run("policy", "unlock", "/S", "a.x", api=api)
    assert [a.body["settings"]["b.y"]["locked"] for a in api.changes()[-2:]] == [True, False]
    n = len(api.changes())
    for command in ("unset", "lock", "unlock"):
        assert "not set in this group" in run("policy", command, "/S", "no", api=api, code=1).stderr
    for word in ("novalue", "=1"):
        run("policy", "set", "/S", word, api=api, code=2)
    assert len(api.changes()) == n


def test_policy_show_effective_and_catalogue(api):
    api.say("GET", POLICY, {"settings": {}})
    assert "Nothing is set here" in run("policy", "show", "/S", api=api).stdout
    api.say("GET", "/v1/groups/%2FS/effective", {
        "settings": {"a": {"value": 1, "locked": True, "from": "/"},
                     "b": {"value": [1], "locked": False, "from": None}}})
    api.answers["GET", f"/v1/devices/{ID}/policy"] = api.answers["GET",
                                                                 "/v1/groups/%2FS/effective"]
    for args in (["policy", "effective", "/S"], ["device", "policy", "alpha"]):
        lines = run(*args, api=api).stdout.splitlines()
        assert lines[1].split() == ["a", "/", "locked", "1"]
        assert lines[2].split() == ["b", "default", "-", "[1]"]
    api.list("/v1/settings", {"key": "k", "type": "int", "min": 1, "max": 9, "default": 2,
                              "words": [], "doc": "What it is."},
             {"key": "m", "type": "choice", "words": ["off", "on"], "default": "off"})
    out = run("policy", "catalogue", api=api).stdout
    assert "k = 2  (1 to 9)\n    What it is." in out and '(one of off, on)' in out


def test_rules(api, tmp_path):
    rules = [{"name": "linux", "group": "/S", "os": "linux"}]
    told = {"rules": [dict(rules[0], group={"id": ID, "path": "/S"}, override=False)]}
    api.say("GET", "/v1/rules", told)
    api.say("PUT", "/v1/rules", told)
    assert "/S" in run("rules", "show", api=api).stdout
    file = tmp_path / "rules.yaml"
    file.write_text("- name: linux\n  group: /S\n  os: linux\n")
    assert "linux" in run("rules", "set", "-f", str(file), api=api).stdout
    run("rules", "set", "-f", "-", api=api, stdin=json.dumps({"rules": rules}))
    assert [a.body for a in api.changes()] == [{"rules": rules}] * 2
    run("rules", "set", api=api, code=2)


# ---- tasks ----

@pytest.mark.parametrize("args, body", [
    (["scan", "--group", "S", "--mode", "full", "--cpu", "20"],
     {"type": "scan", "params": {"mode": "full", "cpu_percent": 20},
      "target": {"group": "/S", "subgroups": True}, "schedule": None}),
    (["scan", "-d", "alpha", "-d", ID2, "-p", "/a", "-p", "/b", "--priority", "7", "--expires",
      "90"],
     {"type": "scan", "params": {"mode": "paths", "paths": ["/a", "/b"]},
      "target": {"devices": [ID, ID2]}, "schedule": None, "priority": 7, "expires_min": 90}),
    (["restart-engine", "--status", "critical", "--tag", "t"],
     {"type": "restart_engine", "params": {},
      "target": {"select": {"status": "critical", "tag": "t"}}, "schedule": None}),
    (["update", "--group", "/", "--no-subgroups", "--at", "02:00", "--days", "Mon,fri",
      "--timezone", "Europe/Zurich", "--window", "60", "--spread", "30", "--missed", "run"],
     {"type": "update", "params": {}, "target": {"group": "/", "subgroups": False},
      "schedule": {"time": "02:00", "days": ["mon", "fri"], "timezone": "Europe/Zurich",
                   "window_min": 60, "spread_min": 30, "missed": "run"}}),
    (["inventory", "--connected", "--at", "02:00", "--days", "1,15", "--days", "31"],
     {"type": "inventory", "params": {}, "target": {"select": {"connected": True}},
      "schedule": {"time": "02:00", "timezone": "UTC", "monthdays": [1, 15, 31]}}),
    (["quarantine-restore", "-d", "alpha", "--item", ID2],
     {"type": "quarantine_restore", "params": {"item": ID2}, "target": {"devices": [ID]},
      "schedule": None}),
])
def test_task_create(api, args, body):
    api.say("POST", "/v1/tasks", (201, {"id": ID, "name": "n"}))
    assert ID in run("task", "create", "n", *args, api=api).stdout
    assert api.changes()[0].body == {"name": "n", **body}


def test_a_task_each_day(api):
    api.say("POST", "/v1/tasks", (201, {"id": ID}))
    run("task", "create", "n", "scan", "--group", "/", "--at", "02:00", api=api)
    assert len(api.changes()[0].body["schedule"]["days"]) == 7


@pytest.mark.parametrize("args", [
    [], ["--group", "/", "--device", "alpha"], ["--group", "/", "--days", "mon"],
    ["--group", "/", "--at", "1:00", "--days", "mon,1"],
    ["--group", "/", "--at", "1:00", "--days", "tuesday"],
    ["--group", "/", "--at", "1:00", "--days", "32"], ["--group", "/", "--spread", "3"],
])
def test_a_task_that_makes_no_sense_is_not_sent(api, args):
    run("task", "create", "n", "scan", *args, api=api, code=2)
    assert not api.changes()


@pytest.mark.parametrize("what", ["start", "pause", "resume", "cancel"])
def test_task_acts(api, what):
    api.say("POST", f"/v1/tasks/{ID}/{what}", {"name": "nightly"})
    assert run("task", what, "nightly", api=api).stdout
    assert api.changes()[0].body == {}


OCCURRENCE = f"/v1/occurrences/{ID2}"


def test_task_list_show_and_results(api):
    api.say("GET", f"/v1/tasks/{ID}", {"id": ID, "name": "nightly", "type": "scan",
                                       "params": {"mode": "full"}})
    api.list(f"/v1/tasks/{ID}/occurrences",
             {"id": "old", "at": "2026-01-01T00:00:00Z", "state": "finished"},
             {"id": ID2, "at": "2026-01-02T00:00:00Z", "state": "running",
              "totals": {"total": 4, "done": 1}})
    api.list(f"{OCCURRENCE}/runs", {"device_name": "alpha\x1b", "state": "finished",
                                    "outcome": "failed", "result": {"error": "no engine"}})
    assert "nightly" in run("task", "list", api=api).stdout
    out = run("task", "show", "nightly", api=api).stdout
    assert '{"mode":"full"}' in out and ID2 in out and "running" in out
    out = run("task", "results", "nightly", api=api).stdout
    assert "alpha\\x1b" in out and "no engine" in out
    run("task", "results", "nightly", "--occurrence", "old", api=api, code=1)
    assert api.asked[-1].path == "/v1/occurrences/old/runs"
    api.list(f"/v1/tasks/{ID}/occurrences")
    assert "has not run yet" in run("task", "results", "nightly", api=api, code=1).stderr


@pytest.mark.parametrize("end, code", [
    ({"state": "finished", "totals": {"total": 2, "done": 2}}, 0),
    ({"state": "finished", "totals": {"total": 2, "done": 1, "failed": 1}}, 1),
    ({"state": "cancelled", "totals": {}}, 1),
])
def test_task_watch_ends_with_the_run(api, end, code):
    api.say("POST", f"/v1/tasks/{ID}/start", {"occurrence": ID2})
    api.say("GET", OCCURRENCE, {"state": "running", "totals": {"total": 2, "done": 1}}, end)
    done = run("task", "start", "nightly", "--watch", api=api, code=code)
    first, last = done.stderr.splitlines()
    assert first == "[###############               ]  50 %  running  total 2  done 1"
    assert end["state"] in last


# ---- events, audit, retention ----

def event(number, **more):
    return {"id": number, "at": "2026-11-24T10:00:00.5Z", "kind": "threat_found",
            "severity": "critical", "device": ID, "device_name": "alpha",
            "data": {"path": "/tmp/\x1b", "n": number}, **more}


def test_events_and_their_filters(api):
    api.list("/v1/events", event(2), event(1))  # the newest first
    out = run("events", "--kind", "a", "-k", "b", "--severity", "critical", "--device", "alpha",
              "--group", "S", "--since", "2026-11-24T00:00:00Z", "--until", "2h", api=api).stdout
    assert out.splitlines()[0] == ("2026-11-24 10:00:00  critical  threat_found  alpha "
                                   "path=/tmp/\\x1b n=1")
    query = api.asked[-1].query
    assert query["until"][0].endswith("Z") and len(query["until"][0]) == 20
    assert (query["kind"], query["device"], query["group"]) == (["a,b"], [ID], ["/S"])
    lines = run("events", "--json", api=api).stdout.splitlines()
    assert [json.loads(line)["id"] for line in lines] == [1, 2]


def test_events_follow_shows_each_once_over_a_switch(api):
    def after(asked):
        n = int(asked.query["after"][0])
        last = min(n + 2, 8)
        assert asked.query["wait_s"] and asked.query["kind"] == ["threat_found"]
        return (200, {"items": [event(i) for i in range(n + 1, last + 1)], "next": None,
                      "after": last})

    api.say("GET", "/v1/events", {"items": [event(2), event(1)], "next": None, "after": "2"},
            after, CUT, NOT_ACTIVE, after, CUT, after, lambda a: after(a)
            if int(a.query["after"][0]) < 8 else CUT)
    with subprocess.Popen([REDOUBT, "--socket", str(api.folder / "node.sock"), "events", "-f",
                           "--json", "--kind", "threat_found"], stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True) as p:
        seen = [json.loads(p.stdout.readline())["id"] for _ in range(8)]
        p.terminate()
    assert seen == [1, 2, 3, 4, 5, 6, 7, 8]


def test_audit(api):
    api.list("/v1/audit", {"at": "2026-11-24T10:00:00Z", "actor": {"name": "root"},
                           "action": "policy_put", "object": "/S", "before": None,
                           "after": {"a": 1}})
    out = run("audit", "--since", "1d", api=api).stdout
    assert "root  policy_put  /S" in out and "    + a: 1" in out and "    - " not in out


def test_retention(api):
    now = {"default": {"days": 90, "count_max": None}, "audit": {"days": 400},
           "kinds": {"a": {"days": 5, "count_max": 7}}}
    api.say("GET", "/v1/retention", (200, now, '"v3"'))
    api.say("PUT", "/v1/retention", lambda a: (200, a.body))
    lines = [line.split() for line in run("retention", "show", api=api).stdout.splitlines()[1:]]
    assert lines == [["default", "90", "-"], ["audit", "400", "-"], ["a", "5", "7"]]
    for args in (["a", "--days", "9"], ["new", "--count", "1000"], ["audit", "--days", "10"]):
        run("retention", "set", *args, api=api)
    assert [a.body for a in api.changes()] == [
        {**now, "kinds": {"a": {"days": 9, "count_max": 7}}},
        {**now, "kinds": {**now["kinds"], "new": {"days": 90, "count_max": 1000}}},
        {**now, "audit": {"days": 10}}]
    assert api.changes()[0].headers["If-Match"] == '"v3"'
    run("retention", "set", "a", api=api, code=2)


# ---- tokens ----

@pytest.mark.parametrize("words, path, args, body", [
    ("token", "/v1/tokens", ["--group", "S", "--uses", "9", "--hours", "2", "--approval"],
     {"name": "n", "group": "/S", "uses": 9, "expires_hours": 2, "approval": True}),
    ("api-token", "/v1/api-tokens", ["--role", "auditor", "--group", "S", "--days", "3"],
     {"name": "n", "role": "auditor", "scope": ["/S"], "expires_days": 3}),
])
def test_tokens(api, words, path, args, body):
    api.say("POST", path, CUT, (201, {"id": ID, "name": "n", "replayed": True}),
            (201, {"id": ID2, "name": "n", "token": "t1.secret"}))
    api.say("DELETE", f"{path}/{ID}", {"id": ID, "name": "n"})
    api.list(path, {"id": ID, "name": "n", "state": "valid"})
    done = run(words, "create", "n", *args, api=api)
    # The answer with the text was lost: that token is revoked, and another one made.
    assert done.stdout.splitlines()[0] == "t1.secret" and "shown this once" not in done.stderr
    assert "shown once" in done.stderr
    assert [a.method for a in api.changes()] == ["POST", "POST", "DELETE", "POST"]
    assert api.changes()[0].body == body == api.changes()[-1].body
    if words == "token":
        assert "redoubt-agent enrol --server ADDRESS --token t1.secret" in done.stdout
    assert "valid" in run(words, "list", api=api).stdout
    assert "is revoked" in run(words, "revoke", ID, api=api).stdout


# ---- apply and export ----

FILE = {"version": 1, "groups": ["/A", "/A/B"], "policies": {
    "/A": {"onaccess.mode": "off", "x": {"value": "1", "locked": True}}},
    "tasks": [{"name": "no", "schedule": {"time": "02:00", "days": []}, "n": None, "f": 1.5}],
    "rules": [], "words": ["", "true", "1e3", "a: b", "- x", "#", "ü\u202e", "multi\nline", "yes",
                           "null", " lead", "a'b\"c", "\t"]}


def test_what_export_prints_apply_reads(api, tmp_path):
    api.say("GET", "/v1/export", FILE)
    text = run("export", api=api).stdout
    assert 'onaccess.mode: "off"' in text and json.loads(
        run("export", "--json", api=api).stdout) == FILE
    file = tmp_path / "state.yaml"
    file.write_text(text)
    api.say("POST", "/v1/apply", {"changes": []})
    assert run("apply", "-f", str(file), api=api).stdout == "Nothing differs.\n"
    run("apply", "-f", "-", "--prune", api=api, stdin=json.dumps(FILE))
    assert [a.body for a in api.changes()] == [FILE, {**FILE, "prune": True}]


def test_apply_shows_the_difference(api, tmp_path):
    file = tmp_path / "f.json"
    file.write_text("{}")
    api.say("POST", "/v1/apply", {"changes": [
        {"action": "change", "object": "policy /A", "before": {"a": 1, "b": 2, "s": 0},
         "after": {"a": 1, "b": 3, "c\x1b": [4]}},
        {"action": "create", "object": "group /B", "before": None, "after": None}]})
    out = run("apply", "--dry-run", "-f", str(file), api=api).stdout
    assert api.changes()[0].query == {"dry_run": ["1"]}
    assert out == ("change policy /A\n    - b: 2\n    + b: 3\n    - s: 0\n    + c\\x1b: [4]\n"
                   "create group /B\n2 changes; nothing was done (dry run).\n")
    assert "2 changes, done." in run("apply", "-f", str(file), api=api).stdout
    api.say("POST", "/v1/apply", (422, {"error": {
        "title": "The file is wrong", "text": "policies./A.x: there is no such setting\nb: c"}}))
    err = run("apply", "-f", str(file), api=api, code=1).stderr
    assert "\n  policies./A.x: there is no such setting\n  b: c\n" in err


@pytest.mark.parametrize("text, words", [
    ("a: b: c", "line 1, column 5"), ("a: *x", "aliases"), ("a: !!int 1", "a tag"), ("", "nothing"),
    ("a: 1\na: 2", "there twice"), ("a: &x 1\nb: *x", "aliases"), ("a: 1\n---\nb: 2", "second"),
    ("[" * 100, "too deep"), ("? [a]\n: 1", "must be a word"), ("a: \"\\0\"", "NUL"),
    ("a: \xff", "line 1"), ("{", "line"), pytest.param("x" * (4 * 1024 * 1024 + 1), "too long", id="long"),
])
def test_a_bad_file_is_told_where(api, tmp_path, text, words):
    file = tmp_path / "bad.yaml"
    file.write_bytes(text.encode("latin-1"))
    error = json.loads(run("apply", "-f", str(file), "--json", api=api, code=1).stdout)["error"]
    assert words in error["text"] and not api.asked
    run("apply", "-f", str(tmp_path / "none"), api=api, code=1)
    run("apply", api=api, code=2)
