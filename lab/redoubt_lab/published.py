"""Files published as the product does it: on the data share, then in the DBMS."""
import contextlib
import hashlib
import json
import os

OWNER = "lab"


def publish(lab, files):
    """{"public/sig/daily.cvd": bytes}: these and no other of ours; returns the serial."""
    entries = []
    with contextlib.closing(lab.database()) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT redoubt.announce(epoch, 'lab', node) FROM redoubt.fence")
        for path, body in files.items():
            digest = hashlib.sha256(body).hexdigest()
            _put(lab.places.at("share", "data"), digest, body)
            cursor.execute("SELECT redoubt.blob_add(%s, %s)", [digest, len(body)])
            entries.append({"path": path, "blob": digest})
        cursor.execute("SELECT redoubt.publish(%s, %s::jsonb)", [OWNER, json.dumps(entries)])
        return cursor.fetchone()[0]


def _put(share, digest, body):
    folder = os.path.join(share, "blob")
    os.makedirs(folder, exist_ok=True)
    owner = os.stat(share)
    os.chown(folder, owner.st_uid, owner.st_gid)
    part, path = os.path.join(share, f"{digest}.lab"), os.path.join(folder, digest)
    if os.path.exists(path):
        return
    with open(part, "wb") as file:
        file.write(body)
    os.chown(part, owner.st_uid, owner.st_gid)
    os.rename(part, path)
