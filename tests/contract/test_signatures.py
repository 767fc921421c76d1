"""A mirror of signature databases, with really signed ones: what is genuine, what redoubt-mirror
fetches from a source and how politely, and what it does with a source that misbehaves."""
import os
import shutil
import subprocess

import pytest

from signature_source import BUILT, Source, genuine, lay_out

BUILD = os.environ.get("REDOUBT_BUILD", "build")
REDOUBT = os.environ.get("REDOUBT", os.path.join(BUILD, "src/app/ctl/redoubt"))
DRIVE = os.path.join(BUILD, "tests/contract/upstream_drive")


def content(path):
    with open(path, "rb") as file:
        return file.read()


def put(path, data):
    with open(path, "wb") as file:
        file.write(data)


# --- what is genuine ---------------------------------------------------------------------------


def verify(*paths):
    return subprocess.run([REDOUBT, "signature", "verify", *map(str, paths)], check=False,
                          capture_output=True, text=True, timeout=60)


def as_database(folder, version, change=lambda data: data):
    path = os.path.join(folder, "test.cvd")
    put(path, change(content(os.path.join(genuine(), f"test-{version}.cvd"))))
    return path


def test_what_is_genuine_passes(tmp_path):
    for version in range(1, 7):
        done = verify(as_database(tmp_path, version))
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[1].split()[:2] == ["test.cvd", str(version)]
    done = verify(*[f"{genuine()}/test-{n}.cdiff" for n in range(2, 7)])
    assert done.returncode == 0 and done.stdout.count(" yes ") == 5, done.stderr


def flip(at):
    return lambda data: data[:at] + bytes([data[at] ^ 1]) + data[at + 1:]


@pytest.mark.parametrize("change, why", [
    (lambda d: d[:512].replace(b":6:14:", b":7:14:") + d[512:], "header was changed"),
    (lambda d: d[:512].replace(b"1624412045", b"1724412045") + d[512:], "header was changed"),
    (lambda d: d[:512].replace(b":Dou6", b":Eou6") + d[512:], "not that of ClamAV"),
    (lambda d: d + b"x", "MD5 is not"),
    (lambda d: d[:-1], "MD5 is not"),
    (flip(600), "MD5 is not"),
    (lambda d: d[:511], "no sane header"),
    (lambda d: b"<html>" + d, "no sane header"),
    (lambda d: b"", "no sane header"),
])
def test_a_changed_database_is_refused(tmp_path, change, why):
    done = verify(as_database(tmp_path, 6, change))
    assert done.returncode == 1 and why in " ".join(done.stderr.split()), done.stderr


def test_an_old_archive_cannot_be_given_a_new_header(tmp_path):
    new = content(os.path.join(genuine(), "test-6.cvd"))
    done = verify(as_database(tmp_path, 1, lambda old: new[:512] + old[512:]))
    assert done.returncode == 1 and "MD5 is not" in " ".join(done.stderr.split())


@pytest.mark.parametrize("name, change, why", [
    ("test-5.cdiff", lambda d: d, "leads to version 6"),
    ("test-6.cdiff", flip(100), "not that of ClamAV"),
    ("test-6.cdiff", lambda d: d[:-1], "not that of ClamAV"),
    ("test-6.cdiff", lambda d: d[:300], "not that of ClamAV"),
    ("test-6.cdiff", lambda d: b"", "no digital signature"),
    ("test-6.cld", lambda d: d, "made by freshclam"),
    ("test.exe", lambda d: d, "no name of a signature database"),
])
def test_a_changed_increment_is_refused(tmp_path, name, change, why):
    put(tmp_path / name, change(content(os.path.join(genuine(), "test-6.cdiff"))))
    done = verify(tmp_path / name)
    assert done.returncode == 1 and why in " ".join(done.stderr.split()), done.stderr


# --- from a source ------------------------------------------------------------------------------


@pytest.fixture(name="source")
def _source(tmp_path):
    source = Source(str(tmp_path / "mirror"))
    lay_out(source.folder, 6)
    yield source
    source.stop()


class Look:
    """What one look at the source brings."""

    def __init__(self, folder, source, *have, **environment):
        have = have or ("test", 0, 0)
        done = subprocess.run([DRIVE, str(folder), getattr(source, "url", source),
                               *map(str, have)], check=True, capture_output=True, text=True,
                              timeout=60, env={**os.environ, **environment})
        lines = done.stdout.splitlines()
        self.error = lines[0].split(" ", 3)[1:] if lines and lines[0].startswith("error") else None
        self.files = [] if self.error else [line.split()[0] for line in lines]


def have(version):
    return "test", version, BUILT[version]


def test_the_first_look_brings_the_database_and_its_chain(tmp_path, source):
    look = Look(tmp_path / "in", source)
    assert look.files == ["test.cvd", *[f"test-{n}.cdiff" for n in (6, 5, 4, 3, 2)]], look.error
    assert source.asked[0] == ("test.cvd", "bytes=0-511", None)
    assert source.files()[1:3] == ["test.cvd", "test-6.cvd.sign"]
    assert content(tmp_path / "in/test-6.cvd") == content(f"{source.folder}/test.cvd")


def test_what_did_not_change_costs_one_request(tmp_path, source):
    assert Look(tmp_path / "in", source, *have(6)).files == []
    assert source.files() == ["test.cvd"] and source.asked[0][2]


def test_only_what_is_newer_is_fetched(tmp_path, source):
    assert Look(tmp_path / "in", source, *have(4)).files == [
        "test.cvd", "test-6.cdiff", "test-5.cdiff"]
    os.unlink(f"{source.folder}/test-6.cdiff")  # then 5 leads nowhere
    source.asked.clear()
    assert Look(tmp_path / "two", source, *have(4)).files == ["test.cvd"]
    assert "test-5.cdiff" not in source.files()
    lay_out(source.folder, 5)
    assert Look(tmp_path / "three", source, *have(6)).files == []  # the source is behind


def test_signature_files_come_along_where_there_are_some(tmp_path, source):
    for name in ("test-6.cvd.sign", "test-6.cdiff.sign"):
        put(os.path.join(source.folder, name), b"#clamsign-1.0\nAAAA\n")
    put(os.path.join(source.folder, "test-5.cdiff.sign"), b"x" * 70000)  # too long to be one
    assert Look(tmp_path / "in", source, *have(4)).files == [
        "test.cvd", "test-6.cvd.sign", "test-6.cdiff", "test-6.cdiff.sign", "test-5.cdiff"]


def test_a_download_that_was_cut_off_goes_on(tmp_path, source):
    source.cut = {"test.cvd": 4000}
    look = Look(tmp_path / "in", source)
    assert look.error and look.error[0] == "io", look.error
    assert os.path.getsize(tmp_path / "in/test-6.cvd.part") == 4000
    source.cut = {}
    assert "test.cvd" in Look(tmp_path / "in", source).files
    assert ("test.cvd", "bytes=4000-", None) in source.asked


def test_a_source_without_ranges_will_do(tmp_path, source):
    source.ranges = False
    assert len(Look(tmp_path / "in", source).files) == 6
    os.mkdir(tmp_path / "two")
    put(tmp_path / "two/test-6.cvd.part", b"x" * 100)
    assert len(Look(tmp_path / "two", source).files) == 6


@pytest.mark.parametrize("size", [1, 100, 9952, 20000])
def test_a_part_of_something_else_is_not_believed(tmp_path, source, size):
    os.mkdir(tmp_path / "in")
    put(tmp_path / "in/test-6.cvd.part", b"x" * size)
    put(tmp_path / "in/test-6.cdiff", b"x" * size)
    assert len(Look(tmp_path / "in", source).files) == 6
    assert content(tmp_path / "in/test-6.cvd") == content(f"{source.folder}/test.cvd")


@pytest.mark.parametrize("change, error", [
    (lambda d: d[:512].replace(b":6:14:", b":9:14:") + d[512:], "corrupt"),
    (flip(5000), "corrupt"),
    (lambda d: d[:9000], "corrupt"),
    (lambda d: b"<html>moved</html>" * 100, "corrupt"),
    (lambda d: b"short", "corrupt"),
])
def test_what_is_not_genuine_is_not_taken(tmp_path, source, change, error):
    path = f"{source.folder}/test.cvd"
    put(path, change(content(path)))
    look = Look(tmp_path / "in", source)
    assert look.error and look.error[0] == error, look.error
    assert os.listdir(tmp_path / "in") == []


def test_an_increment_that_is_not_genuine_ends_the_chain(tmp_path, source):
    path = f"{source.folder}/test-5.cdiff"
    put(path, flip(100)(content(path)))
    assert Look(tmp_path / "in", source).files == ["test.cvd", "test-6.cdiff"]
    put(path, b"")  # how ClamAV's makers say: take the whole database
    assert Look(tmp_path / "two", source).files == ["test.cvd", "test-6.cdiff"]


def test_all_databases_or_none(tmp_path, source):
    look = Look(tmp_path / "in", source, *have(5), "daily", 0, 0)
    assert look.error[0] == "not_found" and "daily.cvd" in look.error[2]


@pytest.mark.parametrize("status, headers, seconds", [
    (403, {}, 86400), (429, {}, 14400), (429, {"Retry-After": "120"}, 120),
    (429, {"Retry-After": "99999999"}, 604800), (503, {"Retry-After": "30"}, 30),
    (429, {"Retry-After": "soon"}, 14400)])
def test_a_source_that_asks_for_patience_gets_it(tmp_path, source, status, headers, seconds):
    source.statuses["test.cvd"] = (status, headers)
    look = Look(tmp_path / "in", source)
    assert look.error[:2] == ["denied", str(seconds)] and len(source.asked) == 1
    source.statuses = {"test-6.cdiff": (status, headers)}
    assert Look(tmp_path / "in", source).error[:2] == ["denied", str(seconds)]


@pytest.mark.parametrize("status", [400, 500, 503, 301])
def test_other_answers_are_errors(tmp_path, source, status):
    source.statuses["test.cvd"] = (status, {"Location": "file:///etc/passwd"})
    assert Look(tmp_path / "in", source).error[:2] == ["io", "0"]


def test_a_source_that_is_not_there(tmp_path, source):
    source.stop()
    assert Look(tmp_path / "in", source).error[0] == "io"


def test_it_is_asked_through_a_proxy(tmp_path, source):
    look = Look(tmp_path / "in", "http://mirror.invalid/sig", PROXY=source.url)
    assert len(look.files) == 6, look.error
    # What the environment says of proxies does not count.
    assert len(Look(tmp_path / "two", source, http_proxy="http://127.0.0.1:1").files) == 6
