"""Packages as the API takes them, signed with openssl; each call about them, for test_openapi.py."""
import base64
import hashlib
import os
import subprocess

EXTENSIONS = """[x]
basicConstraints=critical,CA:false
keyUsage=critical,digitalSignature
extendedKeyUsage={purpose}
"""


def openssl(*argv, stdin=b""):
    return subprocess.run(["openssl", *argv], capture_output=True, check=True, input=stdin).stdout


class Signer:
    """A signing key with a certificate of an authority; nothing of it is the product's code."""

    def __init__(self, folder, ca, ca_key, purpose="codeSigning", name="signer"):
        self.key = os.path.join(folder, f"{name}.key")
        request, crt, ext = (os.path.join(folder, f"{name}.{e}") for e in ("csr", "pem", "ext"))
        openssl("genpkey", "-algorithm", "ed25519", "-out", self.key)
        openssl("req", "-new", "-key", self.key, "-subj", "/CN=Packages", "-out", request)
        with open(ext, "w", encoding="ascii") as file:
            file.write(EXTENSIONS.format(purpose=purpose))
        openssl("x509", "-req", "-in", request, "-CA", ca, "-CAkey", ca_key, "-days", "30",
                "-set_serial", "77", "-extfile", ext, "-extensions", "x", "-out", crt)
        self.der = openssl("x509", "-in", crt, "-outform", "DER")
        self.folder = folder

    def sign(self, digest):
        """digest: hex"""
        path = os.path.join(self.folder, "digest")
        with open(path, "wb") as file:
            file.write(bytes.fromhex(digest))
        return openssl("pkeyutl", "-sign", "-inkey", self.key, "-rawin", "-in", path) + self.der

    def package(self, name="app", version="1.0", content=b"bytes", **more):
        digest = hashlib.sha256(content).hexdigest()
        return {"name": name, "version": version, "platform": "amd64",
                "file": f"{name}_{version}_amd64.deb", "sha256": digest, "size": len(content),
                "signature": base64.b64encode(self.sign(digest)).decode(), **more}


def tour(api, signer):
    body = signer.package(description="The first.")
    made = api.done("POST", "/v1/packages", body)
    assert (made["path"], made["revision"]) == ("public/packages/app/1.0/app_1.0_amd64.deb", 1)
    again = api.call("POST", "/v1/packages", body)
    assert (again.status, again.json) == (200, made)
    at = f"/v1/packages/{made['id']}"
    assert api.done("GET", at) == made
    assert api.done("GET", "/v1/packages?name=app&platform=amd64&visibility=public")["items"] == [
        made]
    assert api.done("GET", "/v1/packages?name=other")["items"] == []
    before = api.get(at).headers["ETag"]
    assert api.call("PATCH", at, {"description": "Better."}, If_Match=before).status == 200
    assert api.call("PATCH", at, {"description": "No."}, If_Match=before).error() == (
        412, "changed")
    blobs = api.done("GET", "/v1/store/blobs")["items"]
    mine = [b for b in blobs if b["sha256"] == body["sha256"]]
    assert [b["paths"] for b in mine] == [[made["path"]]]
    assert api.done("GET", f"/v1/store/blobs/{body['sha256']}") == mine[0]
    store = api.done("GET", "/v1/store")
    assert store["packages"] == 1 and store["published"] >= 1
    assert api.done("POST", "/v1/store/collect") == {"forgotten": []}
    api.done("DELETE", at)
    assert api.get(at).status == 404
    gone = api.done("POST", "/v1/store/collect", {"grace_s": 0})["forgotten"]
    assert {"sha256": body["sha256"], "size": body["size"]} in gone
    assert api.call("GET", f"/v1/store/blobs/{body['sha256']}").status == 404
    assert api.done("GET", "/v1/store")["serial"] == store["serial"] + 1
