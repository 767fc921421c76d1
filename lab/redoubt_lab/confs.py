"""The configuration files of the lab's hosts, as text."""
from . import pki, plan

ACK_LOG = "/var/log/redoubt-lab/acks"
WWW = "/srv/redoubt/www"
MARKER = "REDOUBT-LAB-MARKER"      # harmless; our own signature finds it

CLAMD_CONF = "/etc/clamav/redoubt-lab.conf"
CLAMD = """Foreground yes
User clamav
LocalSocket /run/clamav/clamd.ctl
LocalSocketMode 666
DatabaseDirectory /var/lib/redoubt-lab/clamav
# What follows is written by redoubt-agent from the policy of the server.
MaxFileSize 100M
MaxScanSize 400M
MaxRecursion 17
ScanArchive yes
AlertExceedsMax no
DetectPUA no
MaxThreads 2
"""  # as the agent leaves it with the policy by default: no restart of clamd at its first start
SIGNATURES = f"Redoubt.Lab.Marker:0:*:{MARKER.encode().hex()}\n"

POSTGRES = """
listen_addresses = '*'
unix_socket_directories = '/run/postgresql'
shared_buffers = 32MB
max_connections = 100
wal_level = minimal
max_wal_senders = 0
max_wal_size = 64MB
min_wal_size = 32MB
jit = off
autovacuum_naptime = 10min
log_min_messages = warning
log_line_prefix = '%m [%p] %a '
"""
# The lab's own root comes in by the Unix socket; everyone else needs the password.
POSTGRES_HBA = f"""local all all trust
host redoubt redoubt {plan.NET4}.0/24 scram-sha-256
host redoubt redoubt {plan.NET6}:/64 scram-sha-256
"""


def hosts_file(name, hosts):
    lines = ["127.0.0.1 localhost", "::1 localhost"]
    for host in hosts:
        lines.append(f"{plan.address4(host)} {host}")
        lines.append(f"{plan.address6(host)} {host}")
    lines += [f"{plan.VIRTUAL4} redoubt", f"{plan.VIRTUAL6} redoubt", f"127.0.1.1 {name}-self"]
    return "\n".join(lines) + "\n"


def render(sections):
    """{section: {key: value}} as text; None leaves a key out."""
    text = []
    for section, keys in sections.items():
        text.append(f"[{section}]")
        text += [f"{key} = {value}" for key, value in keys.items() if value is not None]
        text.append("")
    return "\n".join(text)


def agent(lab, host):
    """A newcomer's certificate and key will be where enrolment puts them."""
    own = host != plan.NEWCOMER
    return render({"agent": {
        "server": f"redoubt:{plan.SERVER_PORT}",
        "server_name": "redoubt",
        "certificate": "/etc/redoubt/agent.pem" if own else None,
        "key": "/etc/redoubt/agent.key" if own else None,
        "ca": "/etc/redoubt/agent-ca.pem" if own else None,
        "spool": "/var/lib/redoubt-agent/spool.db",
        "clamd": "/run/clamav/clamd.ctl",
        "clamd_conf": CLAMD_CONF,
        "engine_restart": "pkill -x clamd",  # the host starts it again
        "report_ms": lab.report_ms,
    }})


def node_sections(lab, host):
    """redoubt.conf of a node as nested dictionaries, before the test's own changes."""
    libexec = lab.programs.libexec
    service = {"user": "redoubt", "watchdog_ms": 3000}
    return {
        "cluster": {"name": lab.name, "node": host,
                    "peer": plan.NODES[1 - plan.NODES.index(host)], "profile": lab.profile},
        "share": {"state": "//fileserver/state", "data": "//fileserver/data",
                  "credentials": "/etc/redoubt/smb.cred"},
        "database": {"conninfo": "host=dbms dbname=redoubt user=redoubt "
                                 "passfile=/etc/redoubt/pgpass connect_timeout=2"},
        "address": {"mode": "virtual-ip", "interface": "eth0",
                    "ipv4": f"{plan.VIRTUAL4}/24", "ipv6": f"{plan.VIRTUAL6}/64"},
        "service server": {"exec": f"{libexec}/redoubt-server", "standby": "hot", "order": 1,
                           **service},
        "service web": {"exec": f"{libexec}/redoubt-web", "standby": "hot", "order": 2,
                        **service, "user": "redoubt-web"},
        "service activation": {"exec": f"{libexec}/redoubt-activation", "standby": "hot",
                               "order": 3, **service},
        "service agent": {"exec": f"{libexec}/redoubt-agent", "standby": "always", "order": 4,
                          "arguments": f"--config /etc/redoubt/agent.conf --ack-log {NODE_ACKS}",
                          **service, "user": "root"},
        "server": {"listen": f"[::]:{plan.SERVER_PORT}"},
        "trust": {"names": pki.server_names()},
        "web": {"http": f"[::]:{plan.HTTP_PORT}", "https": f"[::]:{plan.HTTPS_PORT}",
                "root": WWW, "mirror_kib_s": 0},
        "activation": {"listen": f"[::]:{plan.ACTIVATION_PORT}",
                       "licence": "/etc/redoubt/licence.json",
                       "anchor": "/etc/redoubt/licence.pub",
                       "vendor": f"https://vendor:{plan.VENDOR_PORT}",
                       "vendor_ca": "/etc/redoubt/vendor-ca.pem", "vendor_timeout_ms": 3000},
        "log": {"level": "debug" if lab.debug else "info", "target": "stderr"},
    }


NODE_ACKS = "/var/lib/redoubt-agent/acks"


def node(lab, host):
    sections = node_sections(lab, host)
    for section, keys in lab.settings.items():
        sections.setdefault(section, {}).update(keys)
    return render(sections)


# The vendor of the lab: what its codes are good for.
VENDOR = "/var/lib/vendor"
VENDOR_PROGRAM = "/usr/local/lib/vendor-service"
CODE = "LAB0-ACTIVATION-CODE-0001"
CODES = {CODE: {"seats": 500, "features": ["antimalware", "updates"]},
         "LAB0-ACTIVATION-CODE-0002": {"seats": 500}}
