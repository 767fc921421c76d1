"""Each call about signature databases, for test_openapi.py; and what sets are made of."""
import base64
import hashlib

BUILT = 1795000000


def blob(text):
    return {"sha256": hashlib.sha256(text.encode()).hexdigest(), "size": 512 + len(text)}


def database(name, version, content="", built=BUILT):
    return {"file": f"{name}.cvd", "version": version, "built_at": built + version,
            "signatures": 7, "level": 90, **blob(f"{name} {version} {content}")}


def increment(name, version, ending="cdiff"):
    return {"file": f"{name}-{version}.{ending}", **blob(f"{name} {version} {ending}")}


def custom(signer, serial, *names):
    manifest = blob(f"manifest {serial}")
    signature = signer.sign(manifest["sha256"])
    return {"serial": serial,
            "files": [{"name": n, "mtime": BUILT, **blob(n)} for n in names],
            "manifest": manifest,
            "signature": {"sha256": hashlib.sha256(signature).hexdigest(),
                          "size": len(signature),
                          "bytes": base64.b64encode(signature).decode()}}


def tour(api, signer):
    empty = api.done("GET", "/v1/signatures")
    assert (empty["status"], empty["since"], empty["databases"]) == ("ok", None, [])
    made = api.done("POST", "/v1/signatures", {"files": [database("tour", 3),
                                                         increment("tour", 3)]})
    assert made == {"changed": True, "databases": [{"name": "tour", "from": None, "to": 3}]}
    assert api.call("POST", "/v1/signatures/update").error() == (409, "signatures_no_source")
    source = {"url": "https://mirror.example/sig", "databases": ["tour"], "interval_min": 60,
              "proxy": "http://me:secret@proxy.example:3128"}
    told = api.done("PUT", "/v1/signatures/source", source)
    assert api.done("GET", "/v1/signatures/source") == told
    assert told["url"] == source["url"] and told["proxy"] == "http://me:***@proxy.example:3128"
    api.done("POST", "/v1/signatures/update", {})
    api.done("DELETE", "/v1/signatures/databases/tour")
    assert api.call("DELETE", "/v1/signatures/databases/tour").status == 404
    assert api.done("PUT", "/v1/signatures/source", {})["url"] is None
    assert api.done("GET", "/v1/signatures")["databases"] == []
    assert api.done("GET", "/v1/signatures/custom")["serial"] == 0
    assert api.done("PUT", "/v1/signatures/custom", custom(signer, 1, "own.ndb"))["serial"] == 1
