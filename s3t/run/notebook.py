"""A run as HTML for a notebook: shards × slices, and what is left.

Invariant: text from the run is escaped; there is no script, and no id of a sample.
"""

from __future__ import annotations

from html import escape

from s3t.plan.forecast import Forecast
from s3t.run.status import Status, said_of

__all__ = ["notebook_of"]

_CELL = "text-align:center;padding:2px 8px;border:1px solid #bbb"
_SERVES = f"{_CELL};background:#0b6e5f;color:#fff"


def notebook_of(name: str, status: Status, forecast: Forecast) -> str:
    """The table of a run.

    Args:
        name: of the run.
        status: what serves.
        forecast: of the same view.
    """
    rows = []
    for shard in status.shards:
        cells = [_cell(part, shard.prefix, shard.slices_hit) for part in range(status.slices)]
        serves = " → ".join(map(str, shard.prefix)) or "nothing"
        rows.append(f"<tr><th>{shard.shard}</th>{''.join(cells)}<td>{serves}</td></tr>")
    head = "".join(f"<th>{part}</th>" for part in range(status.slices))
    return (
        f"<b>{escape(name)}</b>: {escape(said_of(status))}"
        f"<table><tr><th>shard</th>{head}<th>serves</th></tr>{''.join(rows)}</table>"
        "● serves, ○ intact, × holds a deleted sample. "
        f"{escape(str(forecast).capitalize())}."
    )


def _cell(part: int, prefix: tuple[int, ...], hit: tuple[int, ...]) -> str:
    if part in hit:
        return f'<td style="{_CELL}">×</td>'
    if part in prefix:
        return f'<td style="{_SERVES}">●</td>'
    return f'<td style="{_CELL}">○</td>'
