"""Downloads go on at the other node, byte for byte, whatever happened to the first one."""
import hashlib
import os
import random

import pytest

from redoubt_lab import plan

LAB = {"devices": 1}
NAME, GOT = "public/packages/big/1/big.bin", "/root/big.bin"
PATH = NAME.removeprefix("public")
BIG = random.Random(4).randbytes(24 << 20)
AT_LEAST = 2 << 20
URLS = {"http": f"http://redoubt:{plan.HTTP_PORT}{PATH}",
        "https": f"https://redoubt:{plan.HTTPS_PORT}{PATH}"}


@pytest.fixture(scope="module", autouse=True)
def published(cluster):
    cluster.publish({NAME: BIG, "public/sig/daily.cvd": BIG[:4096]})


def curl(scene, url, headers, *words):
    """The rest of the file."""
    return scene.host("admin").popen(
        "curl", "-fsS", "-C", "-", "-o", GOT, "-D", headers, "--cacert", "/etc/redoubt/ca.pem",
        "--connect-timeout", "10", "--speed-limit", "1", "--speed-time", "5", *words, url)


def slow(scene, url):
    """What is behind AT_LEAST takes much longer than a switch."""
    return curl(scene, url, "/root/first", "--limit-rate", "2M")


def size(scene):
    try:
        return os.stat(scene.host("admin").file(GOT)).st_size
    except FileNotFoundError:
        return 0


def headers_of(scene, path):
    lines = scene.host("admin").read(path).splitlines()
    return dict(line.split(": ", 1) for line in lines if ": " in line)


def ask(node, scene, headers):
    """(status, headers, body) as this node itself tells it, from the administrator's host."""
    words = [word for header in headers for word in ("-H", header)]
    done = scene.host("admin").run(
        "curl", "-sS", "-o", "/root/part", "-D", "/root/part.headers", "-w", "%{http_code}", *words,
        f"http://{node}:{plan.HTTP_PORT}{PATH}")
    with open(scene.host("admin").file("/root/part"), "rb") as file:
        return int(done.stdout), headers_of(scene, "/root/part.headers"), file.read()


@pytest.mark.parametrize("scheme, how", [("http", "power-off"), ("https", "switchover")])
def test_a_download_that_is_cut_off_goes_on_at_the_other_node(scene, scheme, how):
    admin, lab = scene.host("admin"), scene.lab
    admin.run("rm", "-f", GOT)
    first = slow(scene, URLS[scheme])
    lab.wait_for(lambda: size(scene) > AT_LEAST, 30, "the download has begun", 0.02)
    if how == "power-off":
        scene.host(scene.active).power_off()
    else:
        scene.host(scene.active).run("redoubt", "switchover")
    scene.expect_switch()
    assert first.wait(30) != 0, "the download did not notice"
    had = size(scene)
    assert AT_LEAST < had < len(BIG), had

    def resumed():
        return curl(scene, URLS[scheme], "/root/second").wait(60) == 0

    lab.wait_for(resumed, 60, "the rest of the download", 0.2)
    with open(admin.file(GOT), "rb") as file:
        assert hashlib.sha256(file.read()).digest() == hashlib.sha256(BIG).digest()
    before, after = headers_of(scene, "/root/first"), headers_of(scene, "/root/second")
    assert (before["X-Redoubt-Node"], after["X-Redoubt-Node"]) == (scene.active, scene.passive)
    assert after["Content-Range"].startswith(f"bytes {had}-"), after
    alike = {"ETag", "Last-Modified", "Content-Type", "Server"}
    assert {name: before[name] for name in alike} == {name: after[name] for name in alike}
    assert admin.run("curl", "-sS", f"http://{scene.active}:{plan.HTTP_PORT}{PATH}",
                     check=False).returncode != 0, "the passive node serves"

    status, _, body = ask(scene.passive, scene, [f"If-Range: {before['ETag']}",
                                                 f"Range: bytes={had}-"])
    assert (status, body) == (206, BIG[had:])
    status, _, body = ask(scene.passive, scene, [f"If-Range: {before['Last-Modified']}",
                                                 "Range: bytes=0-511"])
    assert (status, body) == (206, BIG[:512])
    assert ask(scene.passive, scene, [f"If-None-Match: {before['ETag']}"])[0] == 304


def test_a_set_that_is_switched_in_the_middle_does_not_touch_a_download(scene):
    """It is of the old set to its end; who resumes it afterwards gets the new file whole."""
    admin, lab = scene.host("admin"), scene.lab
    admin.run("rm", "-f", GOT)
    other = BIG[::-1][:-1]
    running = slow(scene, URLS["http"])
    scene.later(lambda: lab.publish({NAME: BIG, "public/sig/daily.cvd": BIG[:4096]}))
    lab.wait_for(lambda: size(scene) > AT_LEAST, 30, "the download has begun", 0.02)
    lab.publish({NAME: other})
    status, _, body = ask(scene.active, scene,
                          ["Range: bytes=100-", f"If-Range: {headers_of(scene, '/root/first')['ETag']}"])
    assert (status, body) == (200, other)
    assert running.wait(60) == 0
    with open(admin.file(GOT), "rb") as file:
        assert file.read() == BIG
