"""Users who never stop asking, and one who forgets: one process, one loop, raw sockets.

    python -m benchmarks.serving.users SPEC.json OUTPUT     (started by benchmarks.serving.load)

Closed loop: each user asks again as soon as the answer is there. All times are of this process's
clock. When the loop reads that a deletion is acknowledged it looks, before it goes on, which
answers have arrived by then: those are counted as before, everything that comes later as after. So
an answer that waited here to be read is not mistaken for one that was sent too late, nor the other
way round.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Spec"]


@dataclass(frozen=True)
class Spec:
    """What is asked.

    Attributes:
        port: on this machine.
        clients: users.
        seconds: for which they ask; longer while a repair is under way.
        most: seconds at the most.
        bodies: of the questions, in turn.
        deletions: sample ids, one a request, evenly spread over ``seconds``.
        repair_at: seconds after which a repair is begun; None for none.
    """

    port: int
    clients: int
    seconds: float
    most: float
    bodies: tuple[str, ...]
    deletions: tuple[str, ...] = ()
    repair_at: float | None = None


@dataclass(eq=False)
class Line:
    """One keep-alive connection with at most one request under way."""

    port: int
    answered: Callable[[Line, int, dict[bytes, bytes], bytes, float], None]
    channel: socket.socket = field(init=False)
    under_way: bool = False
    sent: float = 0.0
    swept: float | None = None
    _held: bytes = b""

    def __post_init__(self) -> None:
        self.connect()

    def connect(self) -> None:
        """Begin, or begin anew."""
        self.under_way, self.swept, self._held = False, None, b""
        self.channel = socket.create_connection(("127.0.0.1", self.port))
        self.channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, request: bytes) -> None:
        """Send a request."""
        self.sent, self.under_way = time.perf_counter(), True
        self.channel.sendall(request)

    def read(self, at: float) -> None:
        """Take what is there; ``at`` is when it was seen to be."""
        data = self.channel.recv(2**18)
        if not data:
            raise ConnectionError("the service hung up")
        self._held += data
        head, sep, body = self._held.partition(b"\r\n\r\n")
        if not sep:
            self.swept = None
            return
        status, *lines = head.split(b"\r\n")
        headers = dict(line.split(b": ", 1) for line in lines)
        if len(body) < int(headers[b"content-length"]):
            self.swept = None  # not all of it had arrived by then
            return
        self._held, self.under_way = b"", False
        arrived = at if self.swept is None else min(at, self.swept)
        self.swept = None
        self.answered(self, int(status[9:12]), headers, body, arrived)


class Crowd:
    """All connections, and what was seen on them."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._questions = [_post("/v1/predict", body) for body in spec.bodies]
        self._poll = select.epoll()
        self._lines: dict[int, Line] = {}
        self._asked = 0
        self._end = False
        self.answers: list[tuple[float, float, int, int]] = []
        self.deletions: list[dict[str, Any]] = []
        self.repair: dict[str, Any] | None = None
        self._busy = False
        self._looking = False
        self._looked = 0.0
        self._users = [self._line(self._user_answered) for _ in range(spec.clients)]
        self._deleter = self._line(self._deleted)
        self._repairer = self._line(self._repair_told)

    def run(self) -> None:
        """Ask until the time is over and every answer is there."""
        spec, started = self._spec, time.perf_counter()
        self.started = started
        waiting = list(enumerate(spec.deletions))
        for user in self._users:
            self._ask(user)
        while self._under_way():
            now = time.perf_counter()
            self._end = self._is_over(now - started, bool(waiting))
            if waiting and not self._busy and now - started >= self._due(waiting[0][0]):
                self._delete(waiting.pop(0)[1])
            if spec.repair_at is not None and now - started >= spec.repair_at:
                self._see_repair(now)
            events = self._poll.poll(0.02)
            seen = time.perf_counter()
            for number, _ in events:
                try:
                    self._lines[number].read(seen)
                except ConnectionError:
                    self._again(self._lines.pop(number), seen)

    def _again(self, line: Line, at: float) -> None:
        """A connection has ended: at rest that is the service's right, else it is a failure."""
        failed = line.under_way
        line.channel.close()
        line.connect()
        self._register(line)
        if failed:
            line.answered(line, 0, {}, b"{}", at)

    def _is_over(self, passed: float, more_deletions: bool) -> bool:
        repaired = self._spec.repair_at is None or (
            self.repair is not None and self.repair["state"] in ("done", "failed")
        )
        over = passed >= self._spec.seconds and repaired and not more_deletions
        return over or passed >= self._spec.most

    def _under_way(self) -> bool:
        return not self._end or self._busy or any(user.under_way for user in self._users)

    def _due(self, number: int) -> float:
        return (number + 0.5) * self._spec.seconds / len(self._spec.deletions)

    def _line(self, answered: Callable[..., None]) -> Line:
        line = Line(self._spec.port, answered)
        self._register(line)
        return line

    def _register(self, line: Line) -> None:
        self._lines[line.channel.fileno()] = line
        self._poll.register(line.channel, select.EPOLLIN)

    def _ask(self, user: Line) -> None:
        user.ask(self._questions[self._asked % len(self._questions)])
        self._asked += 1

    def _user_answered(
        self, user: Line, status: int, headers: dict[bytes, bytes], body: bytes, at: float
    ) -> None:
        view = int(headers.get(b"x-s3t-view", b"-1"))
        self.answers.append((user.sent, at, status, view))
        if not self._end:
            self._ask(user)

    def _delete(self, sample: str) -> None:
        self._busy = True
        self._deleter.ask(_post("/v1/deletions", json.dumps({"sample_ids": [sample]})))

    def _deleted(
        self, line: Line, status: int, headers: dict[bytes, bytes], body: bytes, at: float
    ) -> None:
        ready = self._poll.poll(0)
        acknowledged = time.perf_counter()
        for number, _ in ready:
            self._lines[number].swept = acknowledged  # it had arrived by now
        self._busy = False
        self.deletions.append(
            {
                "sent": line.sent,
                "acknowledged": acknowledged,
                "status": status,
                "answer": json.loads(body),
            }
        )

    def _see_repair(self, now: float) -> None:
        if self._looking or now - self._looked < 0.25:
            return
        if self.repair is not None and self.repair["state"] != "running":
            return
        self._looking, self._looked = True, now
        self._repairer.ask(_post("/v1/repair", "") if self.repair is None else _get("/v1/repair"))

    def _repair_told(
        self, line: Line, status: int, headers: dict[bytes, bytes], body: bytes, at: float
    ) -> None:
        self._looking = False
        began = at if self.repair is None else self.repair["began"]
        told = json.loads(body)
        self.repair = {"began": began, "seen": at, "state": "failed", **told}


def _post(path: str, body: str) -> bytes:
    content = body.encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def _get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


def main() -> int:
    """Ask, and write down what was seen."""
    spec = Spec(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    crowd = Crowd(spec)
    crowd.run()
    output = Path(sys.argv[2])
    np.save(output.with_suffix(".npy"), np.array(crowd.answers, dtype=np.float64))
    told = {"started": crowd.started, "deletions": crowd.deletions, "repair": crowd.repair}
    output.with_suffix(".json").write_text(json.dumps(told), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
