"""A store as redoubt-mirror lays it out, for hosts without the files that it would fetch."""
import hashlib
import os

STORE = "/var/lib/redoubt/store"
MTIME = 1_700_000_000


def lay_out(host, files):
    """files: {"public/sig/daily.cvd": bytes} become what this host publishes."""
    store = host.file(STORE)
    os.makedirs(f"{store}/blob", exist_ok=True)
    os.makedirs(f"{store}/tree", exist_ok=True)
    serial = len(os.listdir(f"{store}/tree")) + 1
    for path, body in files.items():
        name = hashlib.sha256(body).hexdigest()
        blob = f"{store}/blob/{name}"
        if not os.path.exists(blob):
            with open(blob, "wb") as file:
                file.write(body)
            os.utime(blob, (MTIME, MTIME))
        link = f"{store}/tree/{serial}/{path}"
        os.makedirs(os.path.dirname(link), exist_ok=True)
        os.symlink("../" * (path.count("/") + 2) + f"blob/{name}", link)
    os.symlink(f"tree/{serial}", f"{store}/current.new")
    os.rename(f"{store}/current.new", f"{store}/current")
