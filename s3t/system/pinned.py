"""Arithmetic is pinned before torch is loaded, or in a process of its own that is started for it.

    caller ── pin ──► torch not loaded yet: its switches are set here, and the call is made here
                  └─► torch loaded already (a notebook): python -m s3t.system.pinned
                                                 request ─ stdin ─► call ─► reply

    native     what the processor does fastest, with products that round a row alike wherever it
               stands (MKL's strict mode); whatever else the user has set stays as it is
    portable   one set of instructions for every x86-64 processor with AVX2

Why: MKL, oneDNN and ATen choose their kernels by the processor and by environment variables that
they read once. So who trains must set them first, whoever calls.

Invariant: no node is trained, and none is trained again to be compared, by a process whose
arithmetic was not pinned. This module loads no third-party package.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any, Literal

from s3t import errors
from s3t.errors import S3TError
from s3t.system.scratch import ended_by_signals

__all__ = [
    "Arithmetic",
    "arithmetic_here",
    "call_elsewhere",
    "pin",
    "pinned_environment",
    "rebuilt",
    "strict",
    "switches",
]

Arithmetic = Literal["native", "portable"]

_STRICT = ("AUTO", "AVX2", "AVX512")
"""How MKL's branches begin that have a strict mode."""

_PORTABLE = {
    "MKL_CBWR": "COMPATIBLE",
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
}
_FAMILIES = ("MKL_", "ONEDNN_", "DNNL_", "ATEN_", "TORCH_MKLDNN_", "MKLDNN_")
"""How the names of switches begin that choose kernels."""

_HARMLESS = ("NUM_THREADS", "DYNAMIC", "VERBOSE", "THREADING_LAYER", "INTERFACE_LAYER", "JIT_DUMP")
"""What of these families changes no byte, since there is one thread: it may differ."""

_CLEANING = 20.0
"""Seconds that a process has to remove its scratch folder in once it is to end."""

_pinned: Arithmetic | None = None
_before: dict[str, str | None] = {}


def pinned_environment(arithmetic: Arithmetic) -> dict[str, str]:
    """The environment of a process that is to be pinned so, from this one's."""
    found = dict(os.environ)
    for name, value in _before.items():
        found.pop(name, None)
        if value is not None:
            found[name] = value
    if arithmetic == "native":
        branch = found.get("MKL_CBWR", "AUTO").upper()
        if branch.startswith(_STRICT) and "STRICT" not in branch:
            branch += ",STRICT"
        return found | {"MKL_CBWR": branch}
    for name in [name for name in found if _is_switch(name)]:
        del found[name]
    return found | _PORTABLE


def pin(arithmetic: Arithmetic) -> bool:
    """Pin this process, unless torch is loaded already; returns whether it is pinned so."""
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
    """How this process is pinned; None if it is not."""
    return _pinned


def strict() -> bool:
    """Whether this process is pinned such that a product of MKL rounds a row alike, wherever it
    stands and however its operands are aligned: without that a few numbers at the edge of a
    product may differ, too few to be seen at once."""
    branch = os.environ.get("MKL_CBWR", "")
    return _pinned is not None and branch.startswith(_STRICT) and branch.endswith("STRICT")


def switches(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment variables in force that may change what a product rounds to, by name."""
    found = os.environ if environment is None else environment
    named = {name: value for name, value in sorted(found.items()) if _is_switch(name)}
    tuned = [part for part in found.get("GLIBC_TUNABLES", "").split(":") if "hwcap" in part]
    return named | ({"GLIBC_TUNABLES": ":".join(tuned)} if tuned else {})


def call_elsewhere(arithmetic: Arithmetic, function: Callable[..., Any], **words: Any) -> Any:
    """Call a function of this package in a process that is pinned so, and wait for it.

    Args:
        arithmetic: how.
        function: of a module of ours; it takes JSON values by name, and returns one.
        words: those values.

    Raises:
        S3TError: what the function raises; or the process has ended without an answer.
    """
    request = {"function": f"{function.__module__}:{function.__qualname__}", "words": words}
    reader, writer = os.pipe()
    with (
        os.fdopen(reader) as replies,
        subprocess.Popen(
            [sys.executable, "-m", "s3t.system.pinned", arithmetic, str(writer)],
            stdin=subprocess.PIPE,
            stdout=2,  # whatever a library prints is no answer of ours
            env=pinned_environment(arithmetic),
            pass_fds=(writer,),
            text=True,
        ) as process,
    ):
        os.close(writer)
        assert process.stdin is not None
        try:
            with ended_by_signals():
                process.stdin.write(json.dumps(request) + "\n")  # it stays open: its end is ours
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
            f"the process that trains ended with exit code {code} and without a word, maybe since "
            "memory ran out: finished nodes are kept, run the same again to go on"
        )
    told = json.loads(reply)
    if "kind" in told:
        raise rebuilt(**told)
    return told["result"]


def _is_switch(name: str) -> bool:
    return name.startswith(_FAMILIES) and not name.endswith(_HARMLESS)


def rebuilt(kind: str, message: str, state: Mapping[str, Any] | None = None) -> S3TError:
    """An error of ours as another process raised it: its class, its message, its attributes."""
    made = getattr(errors, kind, S3TError)
    raised: S3TError = made.__new__(made)
    Exception.__init__(raised, message)
    raised.__dict__.update(state or {})
    return raised


def _answer(function: str, words: dict[str, Any]) -> dict[str, Any]:
    module, _, name = function.partition(":")
    try:
        return {"result": getattr(import_module(module), name)(**words)}
    except S3TError as error:
        state = dict(vars(error))
        return {"kind": type(error).__name__, "message": str(error), "state": state}
    except SystemExit as error:
        return {"kind": "S3TError", "message": f"the process that trains ended ({error})"}


def _end_with_parent() -> None:
    """Nothing more comes over the pipe: when it closes, the parent has ended."""
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)  # what must not stay is removed, then it ends
    time.sleep(_CLEANING)
    os._exit(1)


def main(arithmetic: str, pipe: str) -> None:
    """Serve one call of ``call_elsewhere``."""
    pin("portable" if arithmetic == "portable" else "native")
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    reply = json.dumps(_answer(**request))
    with os.fdopen(int(pipe), "w") as replies:
        replies.write(reply)


if __name__ == "__main__":
    # of the module that others import, which is not this one
    import_module("s3t.system.pinned").main(*sys.argv[1:])
