"""Paths inside a host that both sides of its boot know."""
CONTROL = "/run/redoubt-lab.sock"
LOGS = "/var/log/redoubt-lab"
