"""What a lab consists of: names, addresses, folders.  Pure: no I/O."""
import dataclasses
import os
import re
import uuid

BASE = "/run/redoubt-lab"
NET4, NET6 = "10.77.0", "fd77:"
VIRTUAL4, VIRTUAL6 = f"{NET4}.100", f"{NET6}:100"
NODES = ("node-a", "node-b")
FIXED = {"fileserver": 10, "dbms": 11, "admin": 12, "vendor": 13, "node-a": 21, "node-b": 22}
NEWCOMER = "newcomer"      # a device that is not enrolled
FRESH = "fresh"            # a computer on which nothing of ours was ever installed
FIRST_CLIENT = 101
DEVICES_MAX = 100
PROFILES = ("fast", "balanced", "patient")
SERVER_PORT, HTTP_PORT, HTTPS_PORT, ACTIVATION_PORT = 13000, 8060, 8061, 17000
VENDOR_PORT = 8443
SERVICE_UID = 977          # the user "redoubt", inside the hosts only
WEB_UID = 976              # the user "redoubt-web", as well
STATE_SHARE_MIB = 8        # small, so that a test can fill it

_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}\Z")
_DEVICE_SPACE = uuid.UUID("b3a1b5b0-6a0e-4e39-9d3c-3a2b6f1d7c10")


def valid_name(name):
    return bool(_NAME.match(name))


def host_names(devices, newcomer=False, fresh=False):
    names = list(FIXED) + [f"client-{i + 1}" for i in range(devices)]
    return names + [NEWCOMER] * newcomer + [FRESH] * fresh


def octet(host):
    if host in FIXED:
        return FIXED[host]
    if host in (NEWCOMER, FRESH):
        return 99 if host == NEWCOMER else 98
    return FIRST_CLIENT + int(host.removeprefix("client-")) - 1


def address4(host):
    return f"{NET4}.{octet(host)}"


def address6(host):
    return f"{NET6}:{octet(host)}"


def mac(host):
    """A host keeps its card's address when it boots again, as a real one does."""
    return f"02:77:00:00:00:{octet(host):02x}"


def device_id(host):
    """The same host has the same identity in every lab."""
    return str(uuid.uuid5(_DEVICE_SPACE, host))


def managed(devices):
    """The hosts that are managed devices: clients, and the nodes themselves."""
    return list(NODES) + [f"client-{i + 1}" for i in range(devices)]


@dataclasses.dataclass(frozen=True)
class Places:
    """Folders of one lab, all below one tmpfs, so that `down` forgets everything."""

    name: str

    @property
    def root(self):
        return os.path.join(BASE, self.name)

    def at(self, *parts):
        return os.path.join(self.root, *parts)

    def host(self, host, *parts):
        return os.path.join(self.root, "hosts", host, *parts)
