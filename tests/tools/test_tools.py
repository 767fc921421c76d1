"""Each gate is shown a planted violation and must see it."""
import json
import pathlib
import shutil
import subprocess

import pytest

TOP = pathlib.Path(__file__).resolve().parents[2]
TOOLS = TOP / "tools"


def run(tool, *arguments, cwd=TOP):
    return subprocess.run([TOOLS / tool, *map(str, arguments)], cwd=cwd, text=True,
                          stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize("file, line, word", [
    ("core/cluster/a.c", "#include <unistd.h>", "pure"),
    ("core/cluster/a.c", "#include <time.h>", "pure"),
    ("core/cluster/a.c", '#include "sys/smb/smb.h"', "may not include sys"),
    ("core/cluster/a.c", '#include "core/admin/admin.h"', "neighbour"),
    ("wire/a.c", "#include <stdlib.h>", "pure"),
    ("wire/a.c", '#include "core/cluster/node.h"', "may not include core"),
    ("base/a.c", '#include "wire/record.h"', "may not include wire"),
    ("run/a.c", "#include <sys/socket.h>", "pure"),
    ("sys/smb/a.c", '#include "sys/net/net.h"', "neighbour"),
    ("sys/smb/a.c", '#include "sys/blob/blob.h"', "neighbour"),
    ("sys/blob/a.c", '#include "sys/net/net.h"', "neighbour"),
    ("sys/helper/a.c", '#include "sys/keeper/keeper.h"', "neighbour"),
    ("sys/smb/a.c", '#include "core/cluster/node.h"', "may not include core"),
    ("app/node/a.c", '#include "app/ctl/ctl.h"', "neighbour"),
    ("sys/smb/a.c", '#include "smb.h"', "path below src"),
    ("port/a.c", "#include <stdint.h>", "headers only"),
    ("misc/a.c", "#include <stdint.h>", "no layer"),
])
def test_layers_sees(tmp_path, file, line, word):
    write(tmp_path / "src" / file, line + "\n")
    result = run("check-layers", tmp_path)
    assert result.returncode == 1 and word in result.stdout, result.stdout


@pytest.mark.parametrize("file, line", [
    ("core/cluster/a.c", '#include "wire/record.h"'),
    ("core/cluster/a.c", '#include "core/cluster/node.h"'),
    ("core/cluster/a.c", "#include <stdint.h>"),
    ("sys/smb/a.c", '#include "sys/log/log.h"'),
    ("sys/smb/a.c", "#include <unistd.h>"),
    ("sys/blob/a.c", '#include "sys/smb/smb.h"'),
    ("sys/keeper/a.c", '#include "sys/helper/helper_start.h"'),
    ("app/node/a.c", '#include "run/node_run.h"'),
])
def test_layers_allows(tmp_path, file, line):
    write(tmp_path / "src" / file, line + "\n")
    assert run("check-layers", tmp_path).returncode == 0


def test_layers_refuses_an_empty_tree(tmp_path):
    assert run("check-layers", tmp_path).returncode == 1


@pytest.mark.parametrize("length, code, word", [
    (70, 0, "0 warnings"), (71, 0, "warning"), (90, 0, "warning"), (91, 1, "long_one() has 91"),
])
def test_size_of_functions(tmp_path, length, code, word):
    body = "    x++;\n" * (length - 2)
    write(tmp_path / "a.c", f"static int long_one(int x,\n                    int y)\n{{\n{body}}}\n")
    result = run("check-size", tmp_path / "a.c")
    assert result.returncode == code and word in result.stdout, result.stdout


@pytest.mark.parametrize("length, code", [(600, 0), (1000, 0), (1001, 1)])
def test_size_of_files(tmp_path, length, code):
    write(tmp_path / "a.c", "int x;\n" * length)
    assert run("check-size", tmp_path / "a.c").returncode == code


def archive(folder, name, code):
    write(folder / f"{name}.c", code)
    subprocess.run(["gcc", "-O1", "-c", f"{name}.c", "-o", f"{name}.o"], cwd=folder, check=True)
    subprocess.run(["ar", "rc", f"{name}.a", f"{name}.o"], cwd=folder, check=True)
    return folder / f"{name}.a"


def test_purity_allows_memory_and_base(tmp_path):
    base = archive(tmp_path, "base", "int str_eq(void) { return 1; }\n")
    pure = archive(tmp_path, "core", "int str_eq(void); int f(void) { return str_eq(); }\n")
    result = run("check-pure", base, pure)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("call", ["getpid", "malloc", "clock_gettime", "printf"])
def test_purity_sees_a_call(tmp_path, call):
    base = archive(tmp_path, "base", "int str_eq(void) { return 1; }\n")
    bad = archive(tmp_path, "core", f"int {call}(); int f(void) {{ return {call}(0) ? 1 : 2; }}\n")
    result = run("check-pure", base, bad)
    assert result.returncode == 1 and call in result.stdout, result.stdout


def test_purity_wants_its_archives(tmp_path):
    assert run("check-pure", tmp_path / "none.a", tmp_path / "none.a").returncode == 1


UNIT = "[Unit]\nDescription=x\n[Service]\nExecStart=/usr/bin/x\n"
USER = 'u x - "X" /var/lib/x\n'


def package_of(folder, unit, user=USER):
    tree = folder / "tree"
    write(tree / "DEBIAN/control", "Package: x\nVersion: 1\nArchitecture: all\n"
          "Maintainer: x <x@example.org>\nDescription: x\n")
    write(tree / "usr/bin/x", "#!/bin/sh\n")
    (tree / "usr/bin/x").chmod(0o755)
    if unit:
        write(tree / "usr/lib/systemd/system/x.service", unit)
    write(tree / "usr/lib/sysusers.d/x.conf", user)
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, folder / "x.deb"],
                   check=True, stdout=subprocess.DEVNULL)
    return folder / "x.deb"


def test_a_good_unit_is_good(tmp_path):
    result = run("check-units", package_of(tmp_path, UNIT))
    assert result.returncode == 0 and "1 units" in result.stdout, result.stderr


@pytest.mark.parametrize("unit, user, said", [
    (UNIT + "KilMode=process\n", USER, "KilMode"),
    (UNIT + "WatchdogSec=soon\n", USER, "soon"),
    (UNIT.replace("bin/x", "bin/y"), USER, "/usr/bin/y"),
    (UNIT, "user x\n", "modifier"),
    ("", USER, "no unit")])
def test_a_bad_unit_is_seen(tmp_path, unit, user, said):
    result = run("check-units", package_of(tmp_path, unit, user))
    assert result.returncode == 1 and said in result.stderr, result.stderr


def test_junit_is_counted_by_cases(tmp_path):
    write(tmp_path / "a.xml", """<testsuites><testsuite name="s">
        <testcase name="good" classname="s"/>
        <testcase name="bad" classname="s"><failure message="no"/></testcase>
        <testcase name="broken" classname="s"><error message="no"/></testcase>
        <testcase name="left" classname="s"><skipped message="no root here"/></testcase>
        </testsuite></testsuites>""")
    lines = run("junit-count", tmp_path / "a.xml").stdout.splitlines()
    assert lines[0] == "1 2 1"
    assert "SKIPPED s: left: no root here" in lines


@pytest.mark.parametrize("result, counts", [("OK", "1 0 0"), ("ERROR", "1 1 0"), ("TIMEOUT", "1 1 0")])
def test_a_program_that_crashes_after_its_cases_has_failed(tmp_path, result, counts):
    write(tmp_path / "testlog.junit.xml", """<testsuites><testsuite name="redoubt.unit / a">
        <testcase name="good"/></testsuite></testsuites>""")
    write(tmp_path / "testlog.json", json.dumps(
        {"name": "unit / a", "result": result, "returncode": -6, "stderr": "leaked", "stdout": ""}))
    assert run("junit-count", tmp_path / "testlog.junit.xml").stdout.splitlines()[0] == counts


def test_a_failure_of_pytest_is_told_by_what_went_wrong(tmp_path):
    write(tmp_path / "testlog.junit.xml", """<testsuites><testsuite name="redoubt.contract / a">
        <testcase name="1 - test_x"><failure/></testcase></testsuite></testsuites>""")
    said = ("not ok 1 - test_x\n# store = <Store at 0x7f>\n# \n# >   assert a == 2\n"
            "# E   AssertionError: assert 1 == 2\n# \n# tests/test_a.py:4: AssertionError\n1..1\n")
    write(tmp_path / "testlog.json", json.dumps(
        {"name": "contract / a", "result": "ERROR", "returncode": 1, "stderr": "", "stdout": said}))
    lines = run("junit-count", tmp_path / "testlog.junit.xml").stdout.splitlines()
    assert lines == ["0 1 0", "FAILED redoubt.contract / a: 1 - test_x: AssertionError: "
                     "assert 1 == 2 tests/test_a.py:4: AssertionError"]


def documents(folder, text, program="echo made"):
    """A small tree with one document and the program that makes a part of it."""
    write(folder / "doc.md", text)
    write(folder / "dev", "cmd_build() {\n}\n")
    write(folder / "build/docs/part", f"#!/bin/sh\n{program}\n")
    (folder / "build/docs/part").chmod(0o755)
    (folder / "tools").mkdir()
    shutil.copy(TOOLS / "docs", folder / "tools/docs")
    subprocess.run(["git", "init", "-q", "."], cwd=folder, check=True)
    return lambda *arguments: subprocess.run(
        [folder / "tools/docs", *arguments, "build"], cwd=folder, text=True,
        capture_output=True, timeout=60, check=False)


PART = "<!-- made by docs/part -->\n{}<!-- end -->\n"


def test_docs_renews_what_is_made_from_the_code(tmp_path):
    run_docs = documents(tmp_path, PART.format("old\n"))
    assert run_docs("--check").returncode == 1
    assert run_docs().returncode == 0
    assert (tmp_path / "doc.md").read_text() == PART.format("made\n")
    assert run_docs("--check").returncode == 0


@pytest.mark.parametrize("text, word", [
    ("See [this](missing.md).\n", "does not exist"),
    ("Run `./dev fly`.\n", "no ./dev fly"),
])
def test_docs_sees(tmp_path, text, word):
    result = documents(tmp_path, text)("--check")
    assert result.returncode == 1 and word in result.stdout


def test_docs_allows_what_exists(tmp_path):
    text = "See [this](doc.md#part) and [that](https://example.org); run `./dev build`.\n"
    assert documents(tmp_path, text)("--check").returncode == 0


def simulator(folder, broken_seed):
    """A stand-in that fails for one chunk of seeds."""
    write(folder / "sim", f"""#!/bin/sh
if [ "$4" -le {broken_seed} ] && [ {broken_seed} -lt $(($4 + $2)) ]; then
    echo "VIOLATION: two nodes serve"
    exit 1
fi
echo "$2 schedules from seed $4: no violation; 10 events, 2 takeovers, 1 commits"
""")
    (folder / "sim").chmod(0o755)
    return folder / "sim"


def test_sim_runs_every_seed_once(tmp_path):
    result = run("sim", simulator(tmp_path, 10**9), "--runs", 12345, "--seed", 7, "--jobs", 3)
    assert result.returncode == 0, result.stdout
    assert result.stdout.startswith("12345 schedules from seed 7: no violation"), result.stdout


@pytest.mark.parametrize("seed", [7, 6000, 12351])
def test_sim_sees_a_violation(tmp_path, seed):
    result = run("sim", simulator(tmp_path, seed), "--runs", 12345, "--seed", 7, "--jobs", 3)
    assert result.returncode == 1 and "VIOLATION" in result.stdout, result.stdout


def test_sim_sees_a_simulator_that_dies(tmp_path):
    write(tmp_path / "sim", "#!/bin/sh\nkill -9 $$\n")
    (tmp_path / "sim").chmod(0o755)
    assert run("sim", tmp_path / "sim", "--runs", 10, "--seed", 1).returncode == 1
