"""Where the programs under test come from: a build folder, installed into the lab."""
import glob
import json
import os
import shutil
import subprocess

from .errors import LabError

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
NEEDED = {"smbd": "samba", "pdbedit": "samba-common-bin", "clamd": "clamav-daemon",
          "nft": "nftables", "ip": "iproute2", "nsenter": "util-linux", "openssl": "openssl",
          "nginx": "nginx", "meson": "meson"}


def default_build():
    return os.environ.get("REDOUBT_BUILD", os.path.join(TOP, "build"))


def postgres_bin():
    """The folder of PostgreSQL's own programs, which are not on PATH."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/postgres"))
    if not found:
        raise LabError("PostgreSQL is not installed", "./dev deps, or apt-get install postgresql")
    return os.path.dirname(found[-1])


def check_machine():
    """Everything the lab needs, or one error that names all that is missing."""
    if os.geteuid() != 0:
        raise LabError("the lab needs root: it makes namespaces", "./dev asks for it by itself")
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [f"{tool} (package {package})" for tool, package in NEEDED.items()
               if not shutil.which(tool, path=path)]
    if missing:
        raise LabError("programs are missing: " + ", ".join(missing), "./dev deps installs them")
    postgres_bin()


class Programs:
    def __init__(self, build):
        self.build = build
        options = os.path.join(build, "meson-info", "intro-buildoptions.json")
        if not os.path.exists(options):
            raise LabError(f"no build in {build}", "./dev build, or say where with --build")
        with open(options, encoding="utf-8") as file:
            self.options = {item["name"]: item["value"] for item in json.load(file)}
        self.prefix = self.options["prefix"]

    @property
    def libexec(self):
        return os.path.join(self.prefix, "lib", "redoubt")

    @property
    def bin(self):
        return os.path.join(self.prefix, "bin")

    def install(self, root):
        self._run(["meson", "install", "-C", self.build, "--destdir", root, "--no-rebuild",
                   "--quiet"])

    def package(self, name, folder):
        """The Debian package of this build, made in a folder; the file."""
        self._run([os.path.join(TOP, "tools", "package"), "--build", self.build, "--out", folder,
                   name])
        return glob.glob(os.path.join(folder, f"{name}_*.deb"))[0]

    @staticmethod
    def _run(argv):
        done = subprocess.run(argv, text=True, capture_output=True, check=False)
        if done.returncode != 0:
            raise LabError(f"{' '.join(argv)} failed:\n{(done.stdout + done.stderr)[-3000:]}")
