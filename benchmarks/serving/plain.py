"""The other side of the load benchmark: one plain peft model behind the same app.

    python -m benchmarks.serving.plain RUN PORT     (started by benchmarks.serving.load)

The base of a run with one LoRA adapter on all of its layers and one head, as a fine-tuned model is
served that knows no deletions: one forward pass through peft, not merged, so that the adapter could
be changed. The app, its batching and its limits are s3t's own. What the weights say does not matter
to how long they take, so they are random.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch.nn import functional

from s3t.cli.output import quiet
from s3t.model.adapters.peft import adapter_config
from s3t.model.loading import build_base, load_model
from s3t.run import RunDir
from s3t.server.process import serve
from s3t.serving.predictor import Prediction

__all__ = ["Plain"]


class Plain:
    """One peft model with as much of ``S3T``'s surface as answers need.

    Args:
        run: whose base, config and labels are taken.
    """

    lease_left = None

    def __init__(self, run: RunDir) -> None:
        self.root, self.config = run.root, run.config()
        self.task = self.config.task
        self.labels = tuple(run.plan().recipe["labels"])
        loaded = load_model(self.config, run.base_path)
        self._encoder = loaded.encoder
        targets = build_base(self.config, load_model(self.config, run.base_path)).targets
        lora = adapter_config(loaded.model, targets, self.config.lora.rank, self.config.lora.alpha)
        self._peft = get_peft_model(loaded.model, lora).eval().requires_grad_(False)
        generator = torch.Generator().manual_seed(0)
        for name, value in self._peft.named_parameters():
            if "lora_B" in name:  # peft begins with zeros
                value.copy_(torch.randn(value.shape, generator=generator) * 0.02)
        width = loaded.model.config.hidden_size
        self._head = torch.randn(len(self.labels), width, generator=generator)

    def readiness(self) -> str | None:
        """Always ready."""
        return None

    @contextmanager
    def hold(self, view: int) -> Iterator[bool]:
        """Nothing is ever deleted."""
        yield True

    @torch.inference_mode()
    def predict(self, batch: Sequence[Any]) -> list[Prediction]:
        """Classify images."""
        rows = self._encoder.encode(batch)
        hidden = self._peft(pixel_values=rows.values).last_hidden_state[:, 0]
        found = functional.linear(hidden, self._head).softmax(dim=1)
        return [
            Prediction(
                self.labels[at],
                dict(zip(self.labels, [round(value, 6) for value in values], strict=True)),
                0,
            )
            for at, values in zip(found.argmax(dim=1).tolist(), found.tolist(), strict=True)
        ]

    def picture(self) -> dict[str, Any]:
        """For the metrics."""
        counts = dict.fromkeys(("view", "samples", "deleted", "shards"), 0)
        left = {"exhausted": False, "expected_deletions_left": 0.0}
        return {**counts, **left, "serving": [], "nodes": []}

    def reload(self) -> None:
        """There is nothing to look at."""


def main() -> int:
    """Serve until told to end."""
    with quiet():
        model = Plain(RunDir(Path(sys.argv[1])))
    config = model.config.serve.model_copy(update={"port": int(sys.argv[2])})
    serve(model, config, insecure=True, on_start=lambda url: print(f"plain at {url}", flush=True))  # type: ignore[arg-type]
    return 0


if __name__ == "__main__":
    sys.exit(main())
