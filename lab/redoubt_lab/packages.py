"""Debian packages of the build that is tested."""
import glob
import os
import subprocess
import tempfile

from .errors import LabError

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))


def agent(build):
    """(name, bytes) of the package of redoubt-agent, as ./dev package makes it."""
    with tempfile.TemporaryDirectory(prefix="redoubt-package-") as folder:
        done = subprocess.run([f"{TOP}/tools/package", "--build", build, "--out", folder,
                               "redoubt-agent"], capture_output=True, text=True, check=False)
        made = glob.glob(f"{folder}/redoubt-agent_*.deb")
        if done.returncode != 0 or not made:
            raise LabError("the package of redoubt-agent cannot be made: "
                           + done.stderr.strip()[-1000:], "./dev deps package")
        with open(made[0], "rb") as file:
            return os.path.basename(made[0]), file.read()


def signatures(build):
    """The folder of ClamAV's own tiny signed databases, or None and why they are not to be had."""
    folder = os.path.join(build, "fixtures", "clamav")
    done = subprocess.run([f"{TOP}/tools/signature-fixtures", folder], capture_output=True,
                          text=True, check=False)
    return (folder, "") if done.returncode == 0 else (None, done.stderr.strip())
