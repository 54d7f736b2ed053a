"""Pins how torch rounds: sets its switches before it is loaded, here or in a process of its own.

    pin ──► torch is not loaded: the switches are set, and the call is made in this process
       └──► torch is loaded (a notebook): python -m s3t.system.pinned ◄─ request ── reply ─►

    native     what the processor does fastest, in MKL's strict mode, in which a product rounds a
               row alike wherever it stands; other switches stay as the user has set them
    portable   one set of instructions for every x86-64 processor with AVX2

MKL, oneDNN and ATen choose their kernels by the processor and by environment variables, which they
read once, when torch is loaded.

Invariant: only a pinned process trains a node, or trains it again to compare. This module imports
no third-party package.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any, Literal, TypeVar, assert_never, cast

from s3t import errors
from s3t.errors import S3TError
from s3t.system.progress import quiet_libraries
from s3t.system.scratch import ended_by_signals

__all__ = [
    "Arithmetic",
    "arithmetic_here",
    "call_pinned",
    "pin",
    "pinned_environment",
    "rebuilt",
    "strict",
    "switches",
]

Result = TypeVar("Result")
Arithmetic = Literal["native", "portable"]

_STRICT = ("AUTO", "AVX2", "AVX512")
"""Values of ``MKL_CBWR`` that have a strict mode begin with one of these."""

_PORTABLE = {
    "MKL_CBWR": "COMPATIBLE",
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
}
_FAMILIES = ("MKL_", "ONEDNN_", "DNNL_", "ATEN_", "TORCH_MKLDNN_", "MKLDNN_")
"""Environment variables that choose kernels begin with one of these."""

_HARMLESS = ("NUM_THREADS", "DYNAMIC", "VERBOSE", "THREADING_LAYER", "INTERFACE_LAYER", "JIT_DUMP")
"""Variables that end with one of these change no byte where there is one thread."""

_CLEANING = 20.0
"""Seconds that a process gets to remove its scratch folder when it is told to end."""

_pinned: Arithmetic | None = None
_before: dict[str, str | None] = {}


def pinned_environment(arithmetic: Arithmetic) -> dict[str, str]:
    """The environment variables for a new process whose arithmetic is to be pinned.

    Args:
        arithmetic: ``native`` keeps the user's switches and adds MKL's strict mode; ``portable``
            removes them and sets its own.

    Returns:
        all variables of this process, as they were before it was pinned itself, with those changes.
    """
    found = dict(os.environ)
    for name, value in _before.items():
        found.pop(name, None)
        if value is not None:
            found[name] = value
    match arithmetic:
        case "native":
            branch = found.get("MKL_CBWR", "AUTO").upper()
            if branch.startswith(_STRICT) and "STRICT" not in branch:
                branch += ",STRICT"
            return found | {"MKL_CBWR": branch}
        case "portable":
            kept = {name: value for name, value in found.items() if not _is_switch(name)}
            return kept | _PORTABLE
        case other:
            assert_never(other)


def pin(arithmetic: Arithmetic) -> bool:
    """Pin this process, unless torch is loaded already.

    Returns:
        whether the process is now pinned to ``arithmetic``. A process is pinned once.
    """
    global _pinned  # noqa: PLW0603  (a process is pinned once, for good)
    if _pinned is None and "torch" not in sys.modules:
        wanted = pinned_environment(arithmetic)
        for name in {*os.environ, *wanted}:
            if os.environ.get(name) != wanted.get(name):
                _before[name] = os.environ.get(name)
                if name in wanted:
                    os.environ[name] = wanted[name]
                else:
                    del os.environ[name]
        _pinned = arithmetic
    return _pinned == arithmetic


def arithmetic_here() -> Arithmetic | None:
    """The arithmetic that this process is pinned to; None if it is not pinned."""
    return _pinned


def strict() -> bool:
    """Whether this process is pinned to a strict mode of MKL.

    Only then does a product round a row alike wherever it stands and however it is aligned. In
    other modes a few numbers at the edge of a product may differ.
    """
    branch = os.environ.get("MKL_CBWR", "")
    return _pinned is not None and branch.startswith(_STRICT) and branch.endswith("STRICT")


def switches(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment variables that may change how a product rounds, with their values.

    Args:
        environment: variables to look at; default: those of this process.
    """
    found = os.environ if environment is None else environment
    named = {name: value for name, value in sorted(found.items()) if _is_switch(name)}
    tuned = [part for part in found.get("GLIBC_TUNABLES", "").split(":") if "hwcap" in part]
    return named | ({"GLIBC_TUNABLES": ":".join(tuned)} if tuned else {})


def call_pinned(arithmetic: Arithmetic, function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function with pinned arithmetic: here if this process is pinned to it or can be, else
    in a new process, whose result is waited for.

    Args:
        arithmetic: what the process is pinned to.
        function: a function of a module; its arguments and its result can be pickled.
        arguments: of it.

    Raises:
        S3TError: the error that the function raised; or the process ended without a reply.
    """
    if pin(arithmetic):
        return function(*arguments)
    result, error = pickle.loads(_asked_elsewhere(arithmetic, (function, arguments)))
    if error is not None:
        raise rebuilt(*error)
    found: Result = result
    return found


def _asked_elsewhere(arithmetic: Arithmetic, request: tuple[Any, ...]) -> bytes:
    """The reply of a new process to a function and its arguments."""
    reader, writer = os.pipe()
    with (
        os.fdopen(reader, "rb") as replies,
        subprocess.Popen(
            [sys.executable, "-m", "s3t.system.pinned", arithmetic, str(writer)],
            stdin=subprocess.PIPE,
            stdout=2,  # what a library prints must not mix with the reply
            env=pinned_environment(arithmetic),
            pass_fds=(writer,),
        ) as process,
    ):
        os.close(writer)
        assert process.stdin is not None
        try:
            with ended_by_signals():
                pickle.dump(request, process.stdin)  # it stays open: its end is ours
                process.stdin.flush()
                reply = replies.read()
        except BaseException:
            process.terminate()  # so that it removes what must not stay
            with suppress(subprocess.TimeoutExpired):
                process.wait(_CLEANING)
            process.kill()
            raise
        process.stdin.close()
        code = process.wait()
    if not reply:
        raise S3TError(
            f"the process that trains ended with exit code {code} and without a reply, maybe since "
            "memory ran out: finished nodes are kept, run the same again to go on"
        )
    return reply


def _is_switch(name: str) -> bool:
    return name.startswith(_FAMILIES) and not name.endswith(_HARMLESS)


def rebuilt(kind: str, message: str, state: Mapping[str, Any] | None = None) -> S3TError:
    """An ``S3TError`` that another process raised, from its class name, message and attributes."""
    made = getattr(errors, kind, S3TError)
    raised: S3TError = made.__new__(made)
    Exception.__init__(raised, message)
    raised.__dict__.update(state or {})
    return raised


def _answer(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, Any]:
    """The result and None; or None and what ``rebuilt`` makes the error of."""
    try:
        return function(*arguments), None
    except S3TError as error:
        return None, (type(error).__name__, str(error), dict(vars(error)))
    except SystemExit as error:
        return None, ("S3TError", f"the process that trains ended ({error})")


def _end_with_parent() -> None:
    """Wait until the pipe from the parent closes, which means that it has ended; then end too."""
    os.read(sys.stdin.fileno(), 1)  # not by Python's reader: its lock would outlive main
    os.kill(os.getpid(), signal.SIGTERM)  # what must not stay is removed, then it ends
    time.sleep(_CLEANING)
    os._exit(1)


def main(arithmetic: Arithmetic, pipe: str) -> None:
    """The new process of ``call_pinned``: read a request, call, write the reply."""
    pin(arithmetic)
    quiet_libraries()
    function, arguments = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    reply = pickle.dumps(_answer(function, arguments))
    with os.fdopen(int(pipe), "wb") as replies:
        replies.write(reply)


if __name__ == "__main__":
    # of the module that others import, which is not this one
    import_module("s3t.system.pinned").main(cast("Arithmetic", sys.argv[1]), sys.argv[2])
