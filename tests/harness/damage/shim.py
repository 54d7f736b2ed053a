"""A file system that loses what was not synced: a shim around a process, and a model of the disk.

    process ──fsync, fdatasync, rename, unlink──► shim ──asks──► ``Disk`` ──goes on, or fails──► it

The shim is compiled when it is needed and loaded before the C library (LD_PRELOAD), so SQLite's own
calls go through it as Python's do. While the process waits for an answer nothing moves, so what a
crash at that point would leave can be copied.

What is modelled: the bytes of a file are those of its last sync; the names in a folder are those of
its last sync (strict), or those of now (a journal of names alone, as ext4 with ``data=writeback``).
What is not: writes that tear within a file, or reach the disk before a sync; folders made or
removed; shared memory, which no crash leaves.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

__all__ = ["COMPILER", "Disk", "Watched", "compiled"]

COMPILER = shutil.which("gcc") or shutil.which("cc")

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int replies = -1, questions = -1;

void watch_by(int in, int out) { replies = in; questions = out; }

static int ask(const char *what, const char *path) {
    char line[PATH_MAX + 64], answer;
    if (questions < 0) return 0;
    int length = snprintf(line, sizeof line, "%s %s\n", what, path);
    if (write(questions, line, length) != length) _exit(99);
    if (read(replies, &answer, 1) != 1) _exit(99);
    if (answer == 'g') return 0;
    errno = EIO;
    return -1;
}

static int synced(const char *name, int file) {
    char link[64], path[PATH_MAX + 1];
    int (*real)(int) = dlsym(RTLD_NEXT, name);
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, PATH_MAX);
    path[length < 0 ? 0 : length] = 0;
    if (ask(name, path)) return -1;
    int result = real(file);
    return result ? result : ask("synced", path);
}

int fsync(int file) { return synced("fsync", file); }
int fdatasync(int file) { return synced("fdatasync", file); }

int rename(const char *from, const char *to) {
    int (*real)(const char *, const char *) = dlsym(RTLD_NEXT, "rename");
    return ask("rename", to) ? -1 : real(from, to);
}

int unlink(const char *path) {
    int (*real)(const char *) = dlsym(RTLD_NEXT, "unlink");
    return ask("unlink", path) ? -1 : real(path);
}
"""


def compiled(folder: Path) -> Path:
    """The shim as a library, made in a folder.

    Raises:
        CalledProcessError: the compiler refuses.
    """
    assert COMPILER is not None
    source, library = folder / "shim.c", folder / "shim.so"
    source.write_text(_SOURCE, encoding="utf-8")
    options = ["-shared", "-fPIC", "-O1", "-w", "-o", str(library), str(source), "-ldl"]
    subprocess.run([COMPILER, *options], check=True)
    return library


class Disk:
    """What of a folder is on the disk: at first all of it.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._bytes: dict[int, bytes] = {}
        self._names: dict[Path, dict[str, int]] = {}
        for folder in self._folders():
            self._sync_folder(folder)
            for path in _files(folder):
                self.sync(path)

    def sync(self, path: Path) -> None:
        """A file, or a folder, was synced."""
        if path.is_dir():
            self._sync_folder(path)
        elif path.is_file():
            self._bytes[path.stat().st_ino] = path.read_bytes()

    def crash(self, target: Path, *, names_too: bool) -> None:
        """Make a folder of what a crash would leave.

        Args:
            target: new.
            names_too: names that were not synced are lost, and those removed come back; else the
                names are those of now.
        """
        for folder in self._folders():
            beside = target / folder.relative_to(self._root)
            beside.mkdir(parents=True)
            now = {path.name: path.stat().st_ino for path in _files(folder)}
            for name, node in (self._names.get(folder, {}) if names_too else now).items():
                (beside / name).write_bytes(self._bytes.get(node, b""))

    def _sync_folder(self, folder: Path) -> None:
        self._names[folder] = {path.name: path.stat().st_ino for path in _files(folder)}

    def _folders(self) -> list[Path]:
        return [self._root, *(path for path in self._root.rglob("*") if path.is_dir())]


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file() and path.suffix != ".db-shm"]


class Watched:
    """A fork of this process, in which the shim is loaded, that asks before each call.

    Args:
        work: what it does; it is given a function that tells something without asking.
    """

    def __init__(self, work: Callable[[Callable[[str], None]], None]) -> None:
        import ctypes

        mine, questions = os.pipe()
        replies, self._answers = os.pipe()
        self._child = os.fork()
        if not self._child:
            code = 1
            try:
                ctypes.CDLL(None).watch_by(replies, questions)
                work(lambda line: [None, os.write(questions, f"told {line}\n".encode())][0])
                code = 0
            finally:
                os._exit(code)
        os.close(questions)
        os.close(replies)
        self._lines = os.fdopen(mine, "r", encoding="utf-8")

    def go(self, asked: Callable[[str, str], bool], told: Callable[[str], None]) -> int:
        """Answer until it ends; returns its exit code.

        Args:
            asked: given the call and its path, says whether it goes on; else it fails with EIO.
            told: given what it tells.
        """
        for line in self._lines:
            what, _, rest = line.rstrip("\n").partition(" ")
            if what == "told":
                told(rest)
            else:
                os.write(self._answers, b"g" if asked(what, rest) else b"f")
        _, status = os.waitpid(self._child, 0)
        self._lines.close()
        os.close(self._answers)
        return os.waitstatus_to_exitcode(status)
