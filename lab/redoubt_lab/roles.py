"""What each kind of host is: its files, its folders, the programs it runs.

describe() gives the boot description for hostinit.py; the files are written into the host's
disk before its first boot.
"""
import dataclasses
import json
import os
import sys

from . import confs, plan, templates
from .programs import postgres_bin

VENDOR_SERVICE = os.path.join(os.path.dirname(os.path.dirname(os.path.realpath(__file__))),
                              "vendor", "service")
_USER = (plan.SERVICE_UID, plan.SERVICE_UID)


@dataclasses.dataclass
class Role:
    units: list = dataclasses.field(default_factory=list)
    files: dict = dataclasses.field(default_factory=dict)    # path: (text, mode, uid or None)
    folders: list = dataclasses.field(default_factory=list)  # (path, (uid, gid) or None), each boot
    binds: list = dataclasses.field(default_factory=list)    # (source, target)
    unpack: list = dataclasses.field(default_factory=list)   # (part of the templates, folder)


def _ids(user):
    import pwd  # pylint: disable=import-outside-toplevel
    entry = pwd.getpwnam(user)
    return (entry.pw_uid, entry.pw_gid)


def _fileserver(lab):
    return Role(
        files={"/etc/samba/redoubt-lab.conf":
               (templates.SMB_CONF.format(passdb="/var/lib/redoubt-lab/smb/passdb.tdb"), 0o644,
                None)},
        folders=[("/run/smb", None), ("/run/smb/ncalrpc", None)],
        binds=[(lab.places.at("share", "state"), "/srv/state"),
               (lab.places.at("share", "data"), "/srv/data")],
        unpack=[("smb", "/var/lib/redoubt-lab")],
        units=[{"name": "smbd", "restart_s": 0.2,
                "argv": ["smbd", "--foreground", "--no-process-group", "--debug-stdout",
                         "--configfile=/etc/samba/redoubt-lab.conf"]}])


def _dbms(lab):
    return Role(
        folders=[("/run/postgresql", _ids("postgres"))],
        binds=[(lab.places.at("pgdata"), "/srv/pgdata")],
        units=[{"name": "postgres", "restart_s": 0.2, "user": "postgres",
                "argv": [f"{postgres_bin()}/postgres", "-D", "/srv/pgdata"]}])


def _engine(role, conf=confs.CLAMD_CONF):
    """A real ClamAV engine with a database of our own."""
    role.files[conf] = (confs.CLAMD, 0o644, None)
    role.files["/var/lib/redoubt-lab/clamav/lab.ndb"] = (confs.SIGNATURES, 0o644, None)
    role.folders.append(("/run/clamav", _ids("clamav")))
    role.units.append({"name": "clamd", "restart_s": 1.0,
                       "argv": ["clamd", f"--config-file={conf}"]})


def _made(lab, name):
    with open(lab.places.at("pki", name), encoding="ascii") as file:
        return file.read()


def _device(lab, host, role, owner):
    role.files["/etc/redoubt/agent.conf"] = (confs.agent(lab, host), 0o640, owner)
    role.files["/etc/redoubt/agent-ca.pem"] = (_made(lab, "ca.pem"), 0o644, None)
    role.files["/etc/redoubt/agent.pem"] = (_made(lab, f"{host}.pem"), 0o644, None)
    role.files["/etc/redoubt/agent.key"] = (_made(lab, f"{host}.key"), 0o600, owner)
    role.folders.append(("/var/lib/redoubt-agent", _USER if owner else None))


def _client(lab, host):
    role = Role()
    # An agent that was just installed finds the engine where Debian has it.
    _engine(role, "/etc/clamav/clamd.conf" if host == plan.FRESH else confs.CLAMD_CONF)
    if host == plan.FRESH:
        role.units.append({"name": "agent", "restart_s": 1.0, "autostart": False,
                           "argv": [os.path.join(lab.programs.bin, "redoubt-agent"), "--ack-log",
                                    confs.ACK_LOG]})
        return role
    if host == plan.NEWCOMER:
        role.files["/etc/redoubt/agent.conf"] = (confs.agent(lab, host), 0o640, None)
        role.folders.append(("/var/lib/redoubt-agent", None))
    else:
        _device(lab, host, role, None)
    role.units.append({"name": "agent", "restart_s": 1.0, "autostart": False,
                       "argv": [os.path.join(lab.programs.bin, "redoubt-agent"),
                                "--config", "/etc/redoubt/agent.conf",
                                "--ack-log", confs.ACK_LOG]})
    return role


def _node(lab, host):
    role = Role()
    _engine(role)
    _device(lab, host, role, plan.SERVICE_UID)
    owner = plan.SERVICE_UID
    role.files.update({
        "/etc/redoubt/redoubt.conf": (confs.node(lab, host), 0o644, None),
        "/etc/redoubt/cluster.key": (_made(lab, "cluster.key"), 0o600, None),
        "/etc/redoubt/smb.cred":
            (f"username=redoubt\npassword={templates.SMB_PASSWORD}\ndomain=\n", 0o600, None),
        "/etc/redoubt/pgpass":
            (f"dbms:5432:redoubt:redoubt:{templates.DB_PASSWORD}\n", 0o600, owner),
        "/etc/redoubt/ca.pem": (_made(lab, "ca.pem"), 0o644, None),
        "/etc/redoubt/ca.key": (_made(lab, "ca.key"), 0o600, None),
        "/etc/redoubt/licence.json": (_made(lab, "licence.json"), 0o644, None),
        "/etc/redoubt/licence.pub": (_made(lab, "licence.pub"), 0o644, None),
        "/etc/redoubt/vendor-ca.pem": (_made(lab, "vendor-ca.pem"), 0o644, None),
        f"{confs.WWW}/index.html": ("<!doctype html><title>Redoubt lab</title>\n", 0o644, None),
    })
    role.folders += [("/var/lib/redoubt", None), ("/run/redoubt", None)]
    role.units.append({"name": "redoubt-node", "restart_s": 1.0, "autostart": False,
                       "argv": [os.path.join(lab.programs.libexec, "redoubt-node"),
                                "--config", "/etc/redoubt/redoubt.conf"]})
    return role


def _vendor(lab):
    """The vendor's activation service; its books are on its disk."""
    with open(VENDOR_SERVICE, encoding="utf-8") as file:
        program = file.read()
    return Role(
        files={confs.VENDOR_PROGRAM: (program, 0o755, None),
               f"{confs.VENDOR}/vendor.key": (_made(lab, "vendor.key"), 0o600, None),
               f"{confs.VENDOR}/tls.pem": (_made(lab, "vendor-tls.pem"), 0o644, None),
               f"{confs.VENDOR}/tls.key": (_made(lab, "vendor-tls.key"), 0o600, None),
               f"{confs.VENDOR}/codes.json": (json.dumps(confs.CODES), 0o644, None)},
        units=[{"name": "vendor", "restart_s": 0.2,
                "argv": [sys.executable, "-B", confs.VENDOR_PROGRAM, "--folder", confs.VENDOR,
                         "--port", str(plan.VENDOR_PORT)]}])


def describe(lab, host):
    if host in plan.NODES:
        return _node(lab, host)
    if host == "vendor":
        return _vendor(lab)
    if host == "fileserver":
        return _fileserver(lab)
    if host == "dbms":
        return _dbms(lab)
    if host == "admin":
        return Role(files={"/etc/redoubt/ca.pem": (_made(lab, "ca.pem"), 0o644, None),
                           "/etc/redoubt/admin.pem": (_made(lab, "admin.pem"), 0o644, None),
                           "/etc/redoubt/admin.key": (_made(lab, "admin.key"), 0o600, None)})
    return _client(lab, host)
