"""File systems where locks do not hold: refused when a run is begun and when a service starts."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from s3t.errors import InputError
from s3t.run import RunDir, prove_locks
from s3t.service import S3T
from s3t.system import locks
from s3t.training.work.train import train
from tests.support.small_runs import small_configs

_GRANTS_ALL = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <unistd.h>

static int locks(int command) {
    return command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK;
}

static int passed(int file, int command, void *given) {
    return locks(command) ? 0 : syscall(SYS_fcntl, file, command, given);
}

int flock(int file, int operation) { return 0; }

int fcntl(int file, int command, ...) {
    va_list rest;
    va_start(rest, command);
    void *given = va_arg(rest, void *);
    va_end(rest);
    return passed(file, command, given);
}

int fcntl64(int file, int command, ...) {
    va_list rest;
    va_start(rest, command);
    void *given = va_arg(rest, void *);
    va_end(rest);
    return passed(file, command, given);
}
"""
"""Every lock is granted, as by network file systems that are mounted without a lock service."""


def grant_all(monkeypatch: pytest.MonkeyPatch, *kinds: str) -> None:
    """This process is told that it has locks that it has not."""
    for kind in kinds:
        monkeypatch.setitem(locks._KINDS, kind, lambda file: None)


def test_here_locks_hold_and_nothing_is_left(tmp_path: Path) -> None:
    prove_locks(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["flock", "POSIX", "open file"])
def test_a_lock_that_two_processes_have_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    grant_all(monkeypatch, kind)
    with pytest.raises(InputError, match=f"grants one {kind} lock to two processes.*local disk"):
        prove_locks(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_locks_that_are_not_there_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(file: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setitem(locks._KINDS, "flock", fail)
    with pytest.raises(InputError, match="has no flock locks"):
        prove_locks(tmp_path)


def test_locks_that_outlive_their_file_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []

    def keep(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX)
        kept.append(os.dup(file))

    monkeypatch.setitem(locks._KINDS, "flock", keep)
    try:
        with pytest.raises(InputError, match="does not give a flock lock free"):
            prove_locks(tmp_path)
    finally:
        for file in kept:
            os.close(file)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        prove_locks(tmp_path / "absent")


def test_no_run_is_begun_where_locks_do_not_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_configs(tmp_path)()
    grant_all(monkeypatch, "flock")
    with pytest.raises(InputError, match="grants one flock lock"):
        train(config)
    assert not config.run_dir.exists()


def test_no_service_starts_where_locks_do_not_hold(
    small_run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(small_run.root.iterdir())
    grant_all(monkeypatch, "POSIX")
    with S3T.load(small_run.root) as service:
        with pytest.raises(InputError, match="grants one POSIX lock"):
            service.join()
        assert service.readiness() == "loading"
    assert set(small_run.root.iterdir()) <= {*before, *small_run.root.glob("ledger.db-*")}


def test_a_library_that_grants_every_lock_is_found(tmp_path: Path) -> None:
    """Both processes ask a libc whose locks never fail."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler here")
    source, library = tmp_path / "grants.c", tmp_path / "grants.so"
    source.write_text(_GRANTS_ALL, encoding="utf-8")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    code = "import sys; from pathlib import Path; from s3t.run import prove_locks\n"
    code += "prove_locks(Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "grants one flock lock to two processes" in done.stderr
