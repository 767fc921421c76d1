"""Links to packages, for test_openapi.py: made by redoubt-manager, as nginx will check them."""
import base64
import hashlib
import json
import time

SECRET = b"thirty-two bytes of randomness.."
PATH = "private/packages/agent/1.0/agent.deb"


def package(world, visibility):
    """As POST /v1/packages makes it, without the file and the look at the signature."""
    body = {"name": f"tour-{visibility}", "version": "1.0", "file": "agent.deb", "size": 3,
            "visibility": visibility, "sha256": hashlib.sha256(visibility.encode()).hexdigest(),
            "signature": base64.b64encode(bytes(65)).decode()}
    ((made,),) = world.fenced((
        "SELECT redoubt.api_package_create(%s, '{}', '{}', %s)",
        (json.dumps({"name": "test", "role": "administrator"}), json.dumps(body))))
    return made["body"]


def expected(path, expires):
    key = hashlib.sha256(SECRET).hexdigest()
    digest = hashlib.md5(f"{key}{expires} {path} {key}".encode()).digest()
    return f"{path}?md5={base64.urlsafe_b64encode(digest).decode().rstrip('=')}&expires={expires}"


def tour(api, world):
    private, public = package(world, "private"), package(world, "public")
    address = f"/v1/packages/{private['id']}/link"
    told = api.done("POST", address, {"hours": 2})
    assert abs(told["expires"] - time.time() - 7200) < 60
    path = "/" + private["path"]
    assert told["url"] == "https://redoubt.example:8061" + expected(path, told["expires"])
    assert told["sha256"] == private["sha256"]
    assert abs(api.done("POST", address)["expires"] - time.time() - 86400) < 60
    told = api.done("POST", f"/v1/packages/{public['id']}/link", {})
    assert told["url"] == "https://redoubt.example:8061/packages/tour-public/1.0/agent.deb"
    assert told["expires_at"] is None and told["expires"] is None
    for wrong in ({"hours": 0}, {"hours": 1e6}, {"hours": "2"}, {"days": 1}, []):
        assert api.call("POST", address, wrong).status == 400, wrong
    assert api.call("POST", "/v1/packages/nonsense/link", {}).status in (400, 404)
    once = api.done("POST", address, {"hours": 3}, None, Idempotency_Key="one-link")
    again = api.call("POST", address, {"hours": 3}, None, Idempotency_Key="one-link")
    assert again.json == once and again.headers["Idempotency-Replayed"] == "true"
    audit = api.done("GET", "/v1/audit?action=package_link&limit=1")["items"][0]
    assert audit["object"] == private["id"]
    assert "md5" not in json.dumps(audit), "the audit trail holds no link"
