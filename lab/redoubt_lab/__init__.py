"""The Redoubt lab: a whole cluster on one machine, made of namespaces.

Start here: Lab in lab.py (a context manager), Host in host.py, Checker in checker.py.

    with Lab("try", devices=2) as lab:
        lab.up()
        lab.host("node-a").power_off()
        lab.wait_for(lambda: lab.active() == "node-b", 10, "node-b takes over")
"""
from .errors import LabError

__all__ = ["Lab", "LabError"]


def __getattr__(name):
    # Loaded when asked for: process 1 of every host imports this package too.
    if name == "Lab":
        from .lab import Lab  # pylint: disable=import-outside-toplevel
        return Lab
    raise AttributeError(name)
