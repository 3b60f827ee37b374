"""The laboratory's clock and disk: a process of Python and SQLite believes them, and others do not."""

import os
import shutil
import subprocess
import sys
import time

import pytest

from benchmarks.faults.shim.shim import Shim, compile_shim

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux and a C compiler"
)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return compile_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def shim(tmp_path, library):
    (tmp_path / "disk").mkdir()
    return Shim(library, tmp_path / "control", tmp_path / "disk")


def python(shim, folder, code):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=os.environ | shim.environment,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def test_the_wall_clock_jumps_and_the_monotonic_clock_does_not(shim, tmp_path):
    ask = "import time; print(time.time(), time.monotonic())"
    shim.set_clock(-86400)
    wall, monotonic = map(float, python(shim, tmp_path, ask).split())
    assert abs(wall - (time.time() - 86400)) < 60
    assert abs(monotonic - time.monotonic()) < 60


@pytest.mark.parametrize(
    ("way", "told"), [("full", "ENOSPC"), ("failing", "EIO"), ("read-only", "EROFS"), ("denied", "EACCES")]
)
def test_a_disk_fails_below_its_folder_and_nowhere_else(shim, tmp_path, way, told):
    code = (
        "import errno, sys\n"
        "open('elsewhere', 'w').write('x')\n"
        "try:\n with open('disk/file', 'w') as file: file.write('x')\n"
        "except OSError as error: print(errno.errorcode[error.errno])\n"
        "else: print('written')"
    )
    shim.break_disk(way)
    assert python(shim, tmp_path, code) == told
    shim.mend_disk()
    assert python(shim, tmp_path, code) == "written"


def test_sqlite_is_told_as_python_is(shim, tmp_path):
    code = (
        "import sqlite3\n"
        "db = sqlite3.connect('disk/x.sqlite', isolation_level=None)\n"
        "try: db.execute('CREATE TABLE t (n)')\n"
        "except sqlite3.Error as error: print(error.sqlite_errorname)\n"
        "else: print('written')"
    )
    shim.break_disk("failing")
    assert python(shim, tmp_path, code).startswith("SQLITE_IOERR")
    shim.mend_disk()
    assert python(shim, tmp_path, code) == "written"


def test_a_running_process_feels_a_change(shim, tmp_path):
    code = "import time\nfor _ in range(2): input(); print(time.time(), flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | shim.environment,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        seen = []
        for offset_s in (0, 86400):
            shim.set_clock(offset_s)
            process.stdin.write("\n")
            process.stdin.flush()
            seen.append(float(process.stdout.readline()))
    assert 86300 < seen[1] - seen[0] < 86500
