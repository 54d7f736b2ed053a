"""Answers as lines of text for people."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from textwrap import wrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s3t.ledger import Receipt
    from s3t.plan.forecast import Forecast
    from s3t.run.status import Status

__all__ = [
    "budget_lines",
    "forecast_lines",
    "insurance_lines",
    "log_line",
    "plan_lines",
    "purge_lines",
    "receipt_lines",
    "sample_line",
    "shown",
    "status_lines",
    "stored_receipt_lines",
    "weight_line",
]


def shown(name: str) -> str:
    """An id, subject or request id, written as ``--ids-file`` reads it.

    Plain names stay as they are. Empty names, and names with blanks at an end, unprintable
    characters or a quote at the beginning, become JSON strings.
    """
    plain = name.isprintable() and name == name.strip() and not name.startswith('"')
    return name if plain and name else json.dumps(name)


def sample_line(entry: Any) -> str:
    """One private sample: its id, place, person, and whether it is deleted."""
    subject = "" if entry.subject is None else f"  subject {shown(entry.subject)}"
    gone = "  deleted" if entry.deleted else ""
    return f"{shown(entry.sample_id)}  {entry.shard}:{entry.slice}{subject}{gone}"


def plan_lines(summary: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{summary['shards']} shards × {summary['slices']} slices, budget {summary['budget']}: "
        f"{summary['nodes']} nodes"
    )
    yield "samples per slice"
    for shard, sizes in enumerate(summary["slice_sizes"]):
        yield f"  shard {shard}: " + " ".join(f"{size:5d}" for size in sizes)
    yield "sequences, each of every shard"
    for sequence in summary["sequences"][0]:
        yield "  " + " → ".join(str(part) for part in sequence)
    yield "tree of shard 0 (slice numbers; each is a node)"
    yield from summary["tree"]
    yield "stage  nodes  sample passes      bytes"
    for stage in summary["stages"]:
        yield (
            f"{stage['stage']:5d}  {stage['nodes']:5d}  {stage['sample_passes']:13,d}  "
            f"{stage['bytes']:9,d}"
        )
    yield f"  all  {summary['nodes']:5d}  {summary['sample_passes']:13,d}  {summary['bytes']:9,d}"
    yield (
        f"training cost: {summary['cost']:.2f} × one LoRA on all samples, by the layers that each "
        "stage runs"
    )
    yield f"expected deletions until exhaustion: {summary['expected_deletions']:.1f}"
    if "horizon" in summary:
        yield from _horizon_lines(summary["horizon"])
    for note in summary["notes"]:
        yield f"note: {note}"


def _horizon_lines(found: dict[str, Any]) -> Iterator[str]:
    yield "                        this plan │ cyclic, a sequence for each slice"
    yield "deletions  slices   data  exhausted │ slices   data  exhausted"
    for moment in found["moments"]:
        ours, theirs = (
            f"{one['slices_served']:6.2f}  {one['data_served']:5.1%}  {one['exhausted']:9.2g}"
            for one in (moment, moment["cyclic"])
        )
        yield f"{moment['requests']:9,d}  {ours} │ {theirs}"
    yield (
        "expected slices and share of data that a shard serves, probability that no shard serves; "
        + ("exact" if found["trials"] is None else f"{found['trials']:,} simulated streams")
    )
    share = found["sample_passes"] / found["cyclic_sample_passes"]
    yield (
        f"sample passes: {found['sample_passes']:,}, {share:.0%} of the "
        f"{found['cyclic_sample_passes']:,} of cyclic"
    )


def budget_lines(found: Any) -> Iterator[str]:
    from s3t.plan.budget.advice import config_of, stairs
    from s3t.plan.budget.curve import DEFAULT

    question = found.question
    yield (
        f"{question.samples:,} samples, {question.layers} layers, {question.deletions:,} "
        f"deletions, {question.stages}: {found.candidates:,} plans in {len(found.cells)} cells of "
        "shards × slices"
    )
    assumed = (
        " (assumed; python -m benchmarks.deletion_budget.accuracy writes a measured one)"
        if question.curve is DEFAULT
        else ""
    )
    yield f"curve {question.curve}{assumed}"
    known = question.layer_bytes is not None
    unit = "bytes" if known else "adapters"
    yield (
        f"shards  slices  plan          leaves  nodes  sample passes   cost  {unit:>14s}  utility"
        "  at the end  exhausted"
    )
    for one in stairs(found):
        stored = f"{one.bytes:,d}" if known else f"{one.adapters:,.1f}"
        yield (
            f"{one.shards:6d}  {one.slices:6d}  {one.kind:12s}  {len(one.sequences):6d}  "
            f"{one.nodes:5d}  {one.passes:13,.0f}  {one.cost:5.2f}  {stored:>14s}  "
            f"{one.utility:7.4f}  "
            f"{one.utility_at_end:10.4f}  {one.exhausted:9.2g}"
            + ("  ◄" if one == found.recommended else "")
        )
    yield f"of {len(found.front)} plans that no other beats (--json has all of them)"
    yield "cost: in trainings of one LoRA on all data, by the layers that run"
    yield from _advised(found.reason, config_of(found.recommended, question))


def insurance_lines(found: Any) -> Iterator[str]:
    question = found.question
    yield (
        f"{question.samples:,} samples, {question.layers} layers, {question.deletions:,} "
        f"deletions: {found.candidates:,} plans for a worth of {found.target}"
    )
    yield f"curve {question.curve}"
    known = question.layer_bytes is not None
    unit = "bytes" if known else "adapters"
    yield (
        f"stages                 shards  slices  plan          leaves  nodes   cost  {unit:>14s}  "
        "start  along    end  exhausted"
    )
    for offer in found.offers:
        one = offer.plan
        stored = f"{one.bytes:,d}" if known else f"{one.adapters:,.1f}"
        yield (
            f"{one.stages!s:21s}  {one.shards:6d}  {one.slices:6d}  {one.kind:12s}  "
            f"{len(one.sequences):6d}  {one.nodes:5d}  {one.cost:5.2f}  {stored:>14s}  "
            f"{offer.start:5.3f}  {offer.along:5.3f}  {offer.end:5.3f}  {one.exhausted:9.2g}"
            + ("  ◄" if offer is found.recommended else "" if offer.reached else "  short")
        )
    yield "cost: in trainings of one LoRA on all data, by the layers that run; its worth is 1"
    yield from _advised(found.reason, found.config)


def _advised(reason: str, config: str) -> Iterator[str]:
    yield from wrap(reason, 100)
    yield "in a config:"
    for line in config.splitlines():
        yield f"  {line}"


def status_lines(found: Status, forecast: Forecast) -> Iterator[str]:
    yield (
        f"view {found.view}: {found.deleted} of {found.samples} samples deleted, "
        + ("EXHAUSTED" if found.exhausted else str(forecast))
    )
    yield "shard  " + " ".join(f"{part:>2d}" for part in range(found.slices)) + "   serves"
    for shard in found.shards:
        marks = [
            " ×" if part in shard.slices_hit else " ●" if part in shard.prefix else " ·"
            for part in range(found.slices)
        ]
        serves = " → ".join(map(str, shard.prefix)) or "nothing"
        missing = f", {shard.nodes_missing} missing" if shard.nodes_missing else ""
        yield (
            f"{shard.shard:5d}  {' '.join(marks)}   {serves}   "
            f"({shard.nodes_alive} nodes alive, {shard.nodes_dead} dead{missing})"
        )
    yield "● serves   · intact, does not serve   × holds a deleted sample"
    if found.evaluation is not None:
        one = found.evaluation
        base = "" if one.base is None else f" (base {one.base:.4f})"
        yield f"{one.metric} {one.value:.4f}{base} on {one.samples:,} public test rows"
    if found.weights is not None:
        yield weight_line(asdict(found.weights))
    for place in found.environments:
        yield f"{place.nodes} nodes of {place.name}"
    for count, what in ((found.jobs, "large deletions"), (found.callbacks, "callbacks")):
        if count:
            yield f"{count} {what} wait in the ledger: s3t serve does them"
    yield f"ledger in {found.database}"
    if found.untold is not None:
        yield f"store not told yet of every deletion, so nothing can be purged: {found.untold}"


def weight_line(found: Mapping[str, Any]) -> str:
    """Fitted weights, and what they are worth on the rows that they were fitted on."""
    if not found["shards"]:
        reason = found["reason"]
        return "weights: uniform" + ("" if reason is None else f", since {reason}")
    each = " ".join("–" if one is None else f"{one:.4f}" for one in found["shards"])
    what = f"weights: shards {each}, base {found['base']:.4f}; on {found['terms']:,} public rows "
    if found["accuracy"] is None:
        what = what.replace("rows", "tokens")
    figures = []
    for name, key in (("log likelihood", "log_likelihood"), ("accuracy", "accuracy")):
        if found[key] is not None:
            base = found[f"base_{key}"]
            beside = "" if base is None else f" (base {base:.4f})"
            figures.append(f"{name} {found[key]:.4f}{beside}")
    return what + ", ".join(figures)


def forecast_lines(found: dict[str, Any]) -> Iterator[str]:
    shards = found["shards"]
    serving = sum(bool(shard["first_slices"]) for shard in shards)
    yield (
        f"view {found['view']}: {found['persons_left']:,} persons left, "
        f"{found['first_slices_left']:,} first slices left in {serving} of {len(shards)} shards"
        + (", EXHAUSTED: no shard serves" if found["exhausted"] else "")
    )
    if found["first_slices_missing"]:
        yield (
            f"note: {found['first_slices_missing']} first slices are not trained, or damaged, and "
            "count as dead"
        )
    if found.get("in_each_shard"):
        yield (
            "note: a person with rows in several shards counts in each, and one request deletes "
            "from all of them: fewer requests than told may be enough"
        )
    if found["exhausted"]:
        return
    seen, trials = found["observed"], found["trials"]
    yield from _outlook_lines(found, "requests")
    yield "each deletes one of the persons left; " + (
        "all are alike, and the figures exact"
        if trials is None
        else f"the config's risk rates, {trials:,} streams simulated with seed {found['seed']}"
    )
    if seen is None:
        yield "no rate in time before two deletions"
    else:
        yield from _outlook_lines(found, "days")
        yield (
            f"at {_short(seen['per_day'])} persons a day, as observed since the first request: "
            f"{seen['persons']:,} in {_short(seen['days'])} days"
        )
    yield "shard  persons  ≈ dies after  first slices left"
    for shard in shards:
        left = " ".join(map(str, shard["first_slices"]))
        dies = _short(shard["median_requests"]) if left else "dead"
        yield f"{shard['shard']:5d}  {shard['persons_left']:7,d}  {dies:>12s}  {left}".rstrip()


def _outlook_lines(found: dict[str, Any], unit: str) -> Iterator[str]:
    names = ("p5", "p50", "p95", "mean")
    yield f"{unit:16s}  " + "  ".join(f"{name:>9s}" for name in names)
    for event, title in (("first_death", "first shard dies"), ("exhaustion", "exhausted")):
        row = found[event][unit]
        yield f"{title:16s}  " + "  ".join(f"{_short(row[name]):>9s}" for name in names)


def _short(number: float | None) -> str:
    """A number to three significant figures; "never" for None, an event that need not happen."""
    if number is None:
        return "never"
    whole = number >= 100 or number == int(number)
    return f"{number:,.0f}" if whole else f"{number:.3g}"


def receipt_lines(receipt: Receipt, forecast: Forecast) -> Iterator[str]:
    """A receipt, and what is left: after the deletion, or now where nothing was deleted."""
    verb = "would delete" if receipt.dry_run else "deleted"
    if receipt.replayed:
        yield f"this request was done at {receipt.accepted_at}: nothing was done again"
    yield (
        f"request {shown(receipt.request_id)}: {verb} {len(receipt.deleted)} samples "
        f"({len(receipt.already_deleted)} were deleted before), view {receipt.view}, "
        f"{receipt.seconds * 1000:.1f} ms"
    )
    if receipt.copies_elsewhere:
        yield f"{receipt.copies_elsewhere} exact copies that other subjects hold stay"
    if receipt.look_alikes:
        yield (
            f"{receipt.look_alikes} samples stay whose id or person looks like one named (case, "
            "blanks, Unicode): s3t samples lists them"
        )
    if receipt.effective_at is None and not receipt.dry_run:
        yield f"durable, not yet effective: s3t receipt RUN {receipt.request_id} tells when it is"
    yield f"{len(receipt.nodes_dead)} nodes switched off"
    yield from _changes(receipt, "now")
    yield f"left{' now' if receipt.dry_run else ''}: {forecast}"
    if receipt.untold is not None:
        yield (
            "store not told yet, so it is not effective there: the deletion is durable, and the "
            "next command tells the store; give the same --request-id again to see when it is"
        )


def stored_receipt_lines(receipt: Receipt) -> Iterator[str]:
    deleted, before, entry = len(receipt.hashes), len(receipt.hashes_before), receipt.entry
    yield (
        f"request {shown(receipt.request_id)}: {deleted} samples deleted ({before} were before), "
        f"view {receipt.view}" + (f", entry {entry.number} of the log" if entry else "")
    )
    yield f"accepted   {receipt.accepted_at}"
    yield f"effective  {receipt.effective_at or 'not told yet'}"
    yield f"purged     {receipt.purged_at or 'not yet: s3t purge'}"
    yield f"{len(receipt.nodes_dead)} nodes switched off"
    yield from _changes(receipt, "then")
    if entry is not None:
        yield f"digest     {entry.digest}"
        yield f"previous   {entry.previous}"
        yield f"signed     {entry.signer or 'no: the config names no receipts.signing_key'}"


def _changes(receipt: Receipt, word: str) -> Iterator[str]:
    for change in receipt.prefixes:
        if change.before != change.after:
            before = " → ".join(map(str, change.before)) or "nothing"
            after = " → ".join(map(str, change.after)) or "nothing"
            yield f"shard {change.shard}: served {before}, {word} {after}"


_ENTRIES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "samples": lambda body: f"{body['registered']} registered",
    "plan": lambda body: (
        f"generation {body['generation']}, of the samples left at view {body['view']}"
    ),
    "force": lambda body: f"generation {body['generation']} in force from view {body['view']}",
    "nodes": lambda body: f"{body['nodes']} nodes trained, digest {body['digest'][:12]}…",
    "announced": lambda body: f"{body['nodes']} nodes new or scored again, view {body['view']}",
    "deletion": lambda body: (
        f"request {shown(body['request_id'])}: {len(body['deleted'])} samples, view {body['view']}"
    ),
    "effective": lambda body: f"request {shown(body['request_id'])}",
    "purge": lambda body: f"{len(body['nodes'])} nodes, {body['rows']} rows, view {body['view']}",
}
"""Kind of an entry of the log → what it says, in a line."""


def log_line(entry: Any) -> str:
    """One entry of the log."""
    return f"{entry.number:5d}  {entry.at}  {entry.kind:9s}  {_ENTRIES[entry.kind](entry.body)}"


def purge_lines(found: Any) -> Iterator[str]:
    verb = "would be purged" if found.dry_run else "purged"
    yield f"{found.run} at view {found.view}"
    for store in found.stores:
        count = store.found if found.dry_run else store.purged
        note = f": {store.note}" if store.note else ""
        counts = f"{store.found:6,d} found, {count:6,d} {verb}"
        yield f"  {store.name:18s}  {counts}  {store.where}{note}"
    for name, rows in found.own_files:
        yield f"  yours, left as it is: {name} holds {rows} rows of deleted samples"
    for place in found.out_of_reach:
        yield f"  out of reach: {place}"
