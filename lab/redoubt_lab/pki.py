"""The certificates of a lab: one CA, which `redoubt init` is given, and one for each device."""
import os
import secrets
import subprocess
import sys

from . import plan
from .errors import LabError

_VENDOR = os.path.join(os.path.dirname(os.path.dirname(os.path.realpath(__file__))), "vendor",
                       "licence")
SEATS = 1000
_DAYS = "90"


def _openssl(*argv):
    done = subprocess.run(["openssl", *argv], capture_output=True, text=True, check=False,
                          stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise LabError(f"openssl {argv[0]}: {done.stderr.strip()[-600:]}")
    return done.stdout


def make_ca(folder, name="ca"):
    _openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
             "-keyout", f"{folder}/{name}.key", "-out", f"{folder}/{name}.pem", "-days", _DAYS,
             "-subj", "/CN=Redoubt lab CA", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
             "-addext", "basicConstraints=critical,CA:true")


def make_certificate(folder, name, subject, alternative, usage, ca="ca"):
    """folder/name.pem and folder/name.key, signed by folder/ca.pem."""
    _openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
             "-CA", f"{folder}/{ca}.pem", "-CAkey", f"{folder}/{ca}.key",
             "-keyout", f"{folder}/{name}.key", "-out", f"{folder}/{name}.pem", "-days", _DAYS,
             "-subj", f"/CN={subject}", "-addext", f"subjectAltName={alternative}",
             "-addext", f"extendedKeyUsage={usage}", "-addext", "basicConstraints=CA:false",
             "-addext", "keyUsage=critical,digitalSignature")


def server_names():
    """By which the nodes are called, besides what `redoubt init` knows: [trust] names."""
    return " ".join(["redoubt", "localhost", *(plan.address4(node) for node in plan.NODES)])


def make_licence(folder):
    """licence.json, signed by a vendor of our own; licence.pub to verify it; the vendor's TLS."""
    def vendor(*argv):
        done = subprocess.run([sys.executable, "-B", _VENDOR, *argv], capture_output=True, text=True,
                              check=False)
        if done.returncode != 0:
            raise LabError(f"lab/vendor/licence {argv[0]}: {done.stderr.strip()}")
        return done.stdout

    vendor("keygen", folder)
    text = vendor("sign", "--key", f"{folder}/vendor.key", "--seats", str(SEATS))
    with open(f"{folder}/licence.json", "w", encoding="utf-8") as file:
        file.write(text)
    make_ca(folder, "vendor-ca")
    make_certificate(folder, "vendor-tls", "vendor", f"DNS:vendor,IP:{plan.address4('vendor')}",
                     "serverAuth", "vendor-ca")


def _write_hex(path, data):
    with open(path, "w", encoding="ascii") as file:
        file.write(data.hex() + "\n")


def make_all(folder, devices):
    """Everything a lab needs, once; the files stay on the lab's tmpfs."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    make_ca(folder)
    for host in plan.managed(devices) + ["admin"]:
        make_certificate(folder, host, host, f"URI:urn:uuid:{plan.device_id(host)}", "clientAuth")
    make_licence(folder)
    _write_hex(f"{folder}/cluster.key", secrets.token_bytes(32))
