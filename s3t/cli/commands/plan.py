"""budget, plan: what a run would cost and how long it would last, before it is trained."""

from __future__ import annotations

from functools import partial
from math import inf
from typing import Annotated, Literal

import typer

from s3t.cli.app import AsJson, ConfigPath, Overrides, Picture, app
from s3t.cli.output import quiet, show
from s3t.cli.parsing import points
from s3t.cli.tables import budget_lines, insurance_lines, plan_lines
from s3t.errors import InputError
from s3t.system.pinned import pin
from s3t.system.scratch import sweep

__all__: list[str] = []

Samples = Annotated[int, typer.Option(help="number of private samples")]
Layers = Annotated[
    int, typer.Option(help="layers of the base, the most slices if stages train one block each")
]
Deletions = Annotated[int, typer.Option(help="deletion requests that the run has to last")]
Target = Annotated[
    float | None,
    typer.Option(
        metavar="FRACTION",
        help="find the cheapest plan that is worth this fraction of one LoRA before any deletion",
    ),
]
TargetAfter = Annotated[
    float | None,
    typer.Option(metavar="FRACTION", help="with --target: and this fraction after the deletions"),
]
Isolation = Annotated[
    Literal["nested", "residual", "layers", "snapshot"] | None,
    typer.Option(help="what stages train; default: nested, and with --target the cheapest"),
]
Curve = Annotated[
    str | None,
    typer.Option(
        help="worth of a prefix (of snapshots) by the samples it has seen: linear, "
        "power:TOP,GAP,EXPONENT[,NOTHING], or a CSV or JSON file of points; default: "
        "power:1,1,0.3, and with --target what was measured on four tasks"
    ),
]
MaxPasses = Annotated[float | None, typer.Option(help="most training allowed, in samples × epochs")]
MaxBytes = Annotated[
    float | None, typer.Option(help="most storage allowed; needs --bytes-per-layer")
]
Risk = Annotated[
    float, typer.Option(help="probability of exhaustion that is accepted within the deletions")
]
Epochs = Annotated[int, typer.Option(help="epochs of each stage")]
MinSlice = Annotated[int, typer.Option(help="fewest samples in a slice")]
Overhead = Annotated[float, typer.Option(help="fixed cost of a node, in sample passes")]
LayerBytes = Annotated[int | None, typer.Option(help="bytes of the adapter of one layer")]
Horizon = Annotated[
    int | None, typer.Option(min=0, help="also show what serves along this many deletions")
]


@app.command()
def budget(
    deletions: Deletions,
    samples: Samples = 10_000,
    layers: Layers = 12,
    target: Target = None,
    target_after: TargetAfter = None,
    isolation: Isolation = None,
    curve: Curve = None,
    max_passes: MaxPasses = None,
    max_bytes: MaxBytes = None,
    risk: Risk = 0.01,
    epochs: Epochs = 10,
    min_slice: MinSlice = 8,
    stage_overhead: Overhead = 0.0,
    bytes_per_layer: LayerBytes = None,
    picture: Picture = None,
    as_json: AsJson = False,
) -> None:
    """Recommend shards, slices and sequences for an expected number of deletions.

    With --target also the isolation of stages: the cheapest plan that is worth a fraction of one
    LoRA on all data.
    """
    from s3t.plan.budget.advice import advise
    from s3t.plan.budget.curve import DEFAULT, parse_curve
    from s3t.plan.budget.question import Question
    from s3t.plan.budget.stages import KINDS, Stages, one_lora_curve
    from s3t.plan.budget.target import Target, insure

    assumed = DEFAULT if target is None else one_lora_curve(samples)
    question = Question(
        samples=samples,
        layers=layers,
        deletions=deletions,
        curve=assumed if curve is None else parse_curve(curve, points),
        stages=Stages(isolation or "nested"),
        epochs=epochs,
        least=min_slice,
        overhead=stage_overhead,
        layer_bytes=bytes_per_layer,
        risk=risk,
        max_passes=inf if max_passes is None else max_passes,
        max_bytes=inf if max_bytes is None else max_bytes,
    )
    if target is not None:
        if picture is not None:
            raise InputError("--picture draws what more training buys: leave it or --target out")
        kinds = [one for one in KINDS if isolation in (None, one.isolation)]
        wanted = insure(question, Target(target, target_after or 0.0), kinds)
        show(wanted.to_dict() if as_json else None, insurance_lines(wanted))
        return
    if target_after is not None:
        raise InputError("--target-after needs --target, the worth before any deletion")
    found = advise(question)
    if picture is not None:
        from s3t.cli.pictures import draw_budget, write_picture

        write_picture(picture, partial(draw_budget, budget=found), 12)
    show(found.to_dict() if as_json else None, budget_lines(found))


@app.command()
def plan(
    config: ConfigPath,
    overrides: Overrides = None,
    horizon: Horizon = None,
    picture: Picture = None,
    as_json: AsJson = False,
) -> None:
    """Show what a config would train: slices, sequences, nodes and costs. Trains nothing."""
    from s3t.config import load_config

    if picture is not None and horizon is None:
        raise InputError("--picture draws what serves along deletions: give --horizon as well")
    sweep()
    resolved = load_config(config, overrides or [])
    pin(resolved.training.arithmetic)  # before torch is loaded, as training will be
    with quiet():
        from s3t.training.prepare.preview import preview

        summary = preview(resolved, horizon)
    if picture is not None:
        from s3t.cli.pictures import draw_along, write_picture

        write_picture(picture, partial(draw_along, summary=summary), 10)
    show(summary if as_json else None, plan_lines(summary))
