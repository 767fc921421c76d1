"""What takes seconds to make and is the same every time: kept beside the build.

A database cluster with the role and the database of Redoubt, and the file server's passwords.
"""
import fcntl
import os
import shutil
import subprocess
import tempfile

from . import plan
from .errors import LabError
from .programs import postgres_bin

DB_PASSWORD = "lab-database"
SMB_PASSWORD = "lab-share"
_VERSION = 2   # raise it when what is made here changes

_SQL = """
CREATE ROLE redoubt LOGIN PASSWORD '{password}';
CREATE DATABASE redoubt OWNER redoubt;
"""

SMB_CONF = """
[global]
    netbios name = FILESERVER
    server role = standalone server
    server min protocol = SMB2_02
    smb ports = 445
    disable netbios = yes
    passdb backend = tdbsam:{passdb}
    private dir = /var/lib/redoubt-lab/smb
    lock directory = /run/smb
    state directory = /run/smb
    cache directory = /run/smb
    ncalrpc dir = /run/smb/ncalrpc
    pid directory = /run/smb
    map to guest = never
    load printers = no
    disable spoolss = yes
    log level = 1
    max log size = 0
    keepalive = 30
[state]
    path = /srv/state
    read only = no
    force create mode = 0660
    oplocks = no
    level2 oplocks = no
[data]
    path = /srv/data
    read only = no
"""


def _run(argv, **options):
    done = subprocess.run(argv, text=True, capture_output=True, check=False, **options)
    if done.returncode != 0:
        raise LabError(f"{' '.join(argv)}: {(done.stdout + done.stderr).strip()[-1000:]}")


def _make_database(folder):
    data = f"{folder}/pgdata"
    os.makedirs(data)
    shutil.chown(data, "postgres", "postgres")
    os.chmod(folder, 0o755)
    tools = postgres_bin()
    # C.UTF-8 and no sync: the cluster is a template, copied to a tmpfs.
    _run([f"{tools}/initdb", "-D", data, "--no-sync", "-U", "postgres", "--auth=trust",
          "--locale=C.UTF-8", "--encoding=UTF8"], user="postgres", group="postgres",
         extra_groups=[], cwd="/", env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"})
    for statement in _SQL.format(password=DB_PASSWORD).strip().splitlines():
        _run([f"{tools}/postgres", "--single", "-D", data, "-F", "postgres"], user="postgres",
             group="postgres", extra_groups=[], cwd="/", input=statement + "\n")


def _make_passwords(folder):
    """The password of the share's user; pdbedit wants that user to exist: any will do here."""
    conf = f"{folder}/smb-template.conf"
    os.makedirs(f"{folder}/smb")
    with open(conf, "w", encoding="ascii") as file:
        text = SMB_CONF.format(passdb=f"{folder}/smb/passdb.tdb")
        for place in ("/run/smb/ncalrpc", "/run/smb", "/var/lib/redoubt-lab/smb"):
            text = text.replace(f"= {place}\n", f"= {folder}/smb\n")
        file.write(text)
    passwd = f"{folder}/passwd"
    with open("/etc/passwd", encoding="utf-8") as file:
        lines = file.read()
    with open(passwd, "w", encoding="utf-8") as file:
        file.write(with_user(lines))
    # A private mount namespace shows pdbedit a password file that knows the user.
    _run(["unshare", "-m", "sh", "-ec",
          f'mount --make-rprivate /; mount --bind "{passwd}" /etc/passwd; '
          f'printf "%s\\n%s\\n" "$0" "$0" | pdbedit -s "{conf}" -a -t -u redoubt', SMB_PASSWORD])


_OURS = ("redoubt:", "redoubt-web:")


def with_user(passwd):
    """The machine's password file and the users of Redoubt, as the package makes them."""
    lines = [line for line in passwd.splitlines() if not line.startswith(_OURS)]
    rest = "Redoubt:/nonexistent:/usr/sbin/nologin"
    return "\n".join([*lines, f"redoubt:x:{plan.SERVICE_UID}:{plan.SERVICE_UID}:{rest}",
                      f"redoubt-web:x:{plan.WEB_UID}:{plan.WEB_UID}:{rest}", ""])


def with_group(group):
    lines = [line for line in group.splitlines() if not line.startswith(_OURS)]
    return "\n".join([*lines, f"redoubt:x:{plan.SERVICE_UID}:",
                      f"redoubt-web:x:{plan.WEB_UID}:redoubt", ""])


def get(build):
    """The archive of the templates, made if it is not there or of another version.

    One file, which belongs to whom the build belongs: he must be able to remove it."""
    version = os.path.basename(os.path.dirname(postgres_bin()))
    archive = os.path.join(build, f"lab-templates-{version}-{_VERSION}.tar")
    with open(os.path.join(build, "meson-info", "meson-info.json"), encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(archive):
            # initdb runs as another user, who may not be able to enter the checkout
            with tempfile.TemporaryDirectory(prefix="redoubt-lab-") as work:
                os.chmod(work, 0o755)
                _make_database(work)
                _make_passwords(work)
                _run(["tar", "-C", work, "-cf", f"{archive}.new", "pgdata", "smb"])
            owner = os.stat(build)
            os.chown(f"{archive}.new", owner.st_uid, owner.st_gid)
            os.rename(f"{archive}.new", archive)
    return archive


def unpack(archive, part, folder):
    """folder/part, with its owners and modes."""
    os.makedirs(folder, exist_ok=True)
    _run(["tar", "-C", folder, "-xpf", archive, part])
