"""Rollouts, for test_openapi.py: every call once, as documented."""
import base64
import hashlib
import json
import uuid


def device(world):
    """One that takes packages and has an older version."""
    one = world.device("roller", "/B")
    world.exchange({"device": one, "description": {"non_identifying": {"host.arch": "x86_64"}},
                    "packages": {"takes": True, "list": [
                        {"name": "tour-agent", "has": "1.0", "hash": "", "state": "installed",
                         "percent": 0, "error": ""}]}})
    return one


def package(world, version):
    body = {"name": "tour-agent", "version": version, "file": "agent.deb", "size": 3,
            "sha256": hashlib.sha256(version.encode()).hexdigest(),
            "signature": base64.b64encode(bytes(65)).decode()}
    world.fenced(("SELECT redoubt.api_package_create(%s, '{}', '{}', %s)",
                  (json.dumps({"name": "test", "role": "administrator"}), json.dumps(body))))


def tour(api, world):
    one = device(world)
    package(world, "1.0")
    package(world, "2.0")
    body = {"package": "tour-agent", "group": "/B", "waves": [50, 100], "soak_s": 0}
    made = api.done("POST", "/v1/rollouts", body)
    assert made["version"] == "2.0" and made["state"] == "running"
    assert api.call("POST", "/v1/rollouts", body).status == 409
    at = f"/v1/rollouts/{made['id']}"
    world.fenced("SELECT redoubt.rollouts_due()")
    devices = api.done("GET", at + "/devices?wave=1&state=offered")["items"]
    assert [d["device"] for d in devices] == [one]
    assert made["id"] in [r["id"] for r in api.done("GET", "/v1/rollouts?state=running")["items"]]
    assert api.done("POST", at + "/pause")["state"] == "paused"
    assert api.done("POST", at + "/resume")["state"] == "running"
    assert api.done("POST", at + "/stop")["state"] == "stopped"
    assert api.call("POST", at + "/resume").status == 409
    assert api.done("POST", at + "/rollback")["state"] == "rolled_back"
    assert api.done("GET", at)["totals"]["total"] == 1
    assert api.call("GET", f"/v1/rollouts/{uuid.uuid4()}").status == 404
    api.done("DELETE", f"/v1/devices/{one}")
