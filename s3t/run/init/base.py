"""The base of a first config, and the settings of training that suit it.

A base that is made here knows nothing, so it is adapted on the public rows, and its rates are high.
One with a name is taken as it is, with LoRA of rank 16 at the rates of the configs in configs/hub/.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3t.data.looking import Role
from s3t.errors import InputError

__all__ = ["BaseChoice", "choose_base"]

MADE = {
    "text-classification": "make:bert",
    "image-classification": "make:vit",
    "causal-lm": "make:llama",
}
"""The base of each task if the caller names none."""

REAL = {
    "text-classification": "FacebookAI/roberta-base",
    "image-classification": "google/vit-base-patch16-224-in21k",
    "causal-lm": "Qwen/Qwen2.5-0.5B",
}
"""A real base of each task, to name as an example."""

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Chat template of a base that is made here, which has none of its own."""

_LONGEST = 2048
"""Most tokens of a prompt."""

_ANSWER = 32
"""Tokens that are left for the answer to the longest prompt."""

_LAYERS = 12
"""Layers of a base that is not on this machine, for the planner."""


@dataclass(frozen=True)
class BaseChoice:
    """A base and what goes with it.

    Attributes:
        name: ``model.base``.
        layers: its number of layers.
        sections: sections of the config that suit it, ``partition`` and ``sequences`` apart.
        data: keys of section ``data`` that suit it.
        lines: what was chosen, and why.
    """

    name: str
    layers: int
    sections: dict[str, dict[str, Any]]
    data: dict[str, Any]
    lines: tuple[str, ...]

    @property
    def epochs(self) -> int:
        """Epochs of each stage."""
        return int(self.sections["stage"]["epochs"])


def choose_base(task: str, name: str | None, roles: Mapping[Role, Sequence[Any]]) -> BaseChoice:
    """Choose base and settings.

    Args:
        task: of the config.
        name: what the caller names; None for a small base that is made here.
        roles: values of the columns that are learnt (text, prompt, completion, messages, image).

    Raises:
        InputError: a folder that holds no model, or an image that cannot be read.
    """
    if name is None or name.startswith("make:"):
        return _made(task, name or MADE[task], roles)
    layers = _layers(name)
    known = layers or _LAYERS
    why = f"{known} layers" if layers else f"not on this machine yet; {known} layers are assumed"
    stage = {
        "epochs": 3,
        "batch_size": 8,
        "learning_rate": 5e-4,
        "schedule": "cosine",
        "warmup": 0.03,
        "max_grad_norm": 1.0,
    }
    if task != "causal-lm":
        stage["head"] = "public"
    if task != "image-classification":
        stage["group_by_length"] = True
    data, lines = _lengths(roles, per_token=3.5, most=512)
    if "messages" in roles:
        data["chat_template"] = "base"
    return BaseChoice(
        name,
        known,
        {"model": {"base": name}, "lora": {"rank": 16, "alpha": 32}, "stage": stage},
        data,
        (f"base {name}: as given, {why}", *lines),
    )


def _made(task: str, name: str, roles: Mapping[Role, Sequence[Any]]) -> BaseChoice:
    make: dict[str, Any] = {"hidden": 64, "layers": 2, "init_scale": 5}
    adapt: dict[str, Any] = {"steps": 150, "batch_size": 32}
    stage: dict[str, Any] = {"epochs": 4, "learning_rate": 5e-3, "schedule": "cosine"}
    if task != "causal-lm":
        stage["head"] = "public"
    else:
        make["init_scale"], stage["epochs"] = 1, 3
        adapt = {"steps": 120, "batch_size": 16, "learning_rate": 5e-3}
    data, lines = _lengths(roles, per_token=1, most=256)
    if task == "image-classification":
        size, channels = _image_shape(roles["image"])
        make |= {"patch": max(1, size // 8), "channels": channels}
        data = {"image_size": size, "image_mean": [0] * channels, "image_std": [1] * channels}
        colour = "grey" if channels == 1 else "in colour"
        lines = (f"images of {size} × {size} pixels, {colour}, as the first ones are",)
    if "messages" in roles:
        data["chat_template"] = TEMPLATE
    why = (
        f"base {name}: a small one made here, to try with; a real one knows more: "
        f"--base {REAL[task]}, or a local folder"
    )
    sections = {"model": {"base": name, "make": make, "adapt": adapt}, "stage": stage}
    return BaseChoice(name, int(make["layers"]), sections, data, (why, *lines))


def _lengths(
    roles: Mapping[Role, Sequence[Any]], per_token: float, most: int
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """``max_length``, and the line that says so: for 19 in 20 texts, and for all answers, which
    stand at the end. Nothing for images."""
    texts = [roles[role] for role in ("text", "prompt", "completion") if role in roles]
    if "messages" in roles:
        texts = [[_written(one) for one in roles["messages"]]]
    if not texts:
        return {}, ()
    lengths = sorted(
        sum(len(str(part or "").encode()) for part in row) for row in zip(*texts, strict=True)
    )
    fitting = lengths[int(0.95 * (len(lengths) - 1))] if "text" in roles else lengths[-1]
    wanted = fitting / per_token + 2 * len(texts)
    needed = _room(roles, per_token)
    chosen = 16 * -(-int(max(32, min(most, wanted), needed)) // 16)
    longer = sum(length / per_token + 2 > chosen for length in lengths)
    unit = "bytes, which are its tokens" if per_token == 1 else "tokens, at 3.5 bytes each"
    cut = (
        f"{longer:,} of {len(lengths):,} rows are longer and are cut" if longer else "all rows fit"
    )
    return {"max_length": chosen}, (f"max_length {chosen} {unit}: {cut}",)


def _room(roles: Mapping[Role, Sequence[Any]], per_token: float) -> float:
    """Tokens that the longest prompt takes, with room for an answer; 0 without prompts.

    Raises:
        InputError: prompts that leave no room for one.
    """
    asked = [len(str(one or "").encode()) / per_token for one in roles.get("prompt", ())]
    long = sum(length > _LONGEST for length in asked)
    if long:
        raise InputError(
            f"{long:,} prompts are longer than {_LONGEST:,} tokens: shorten or leave them out, "
            "or write a config by hand with a base that takes so many (data.max_length)"
        )
    return max(asked, default=-_ANSWER) + _ANSWER


def _written(messages: Any) -> str:
    """About what a conversation is as one text."""
    return messages if isinstance(messages, str) else json.dumps(messages, ensure_ascii=False)


def _image_shape(images: Sequence[Any]) -> tuple[int, int]:
    """Pixels of a side and channels that fit the first images: at most 32, and 1 or 3."""
    import io

    try:
        from PIL import Image
    except ImportError:
        raise InputError("images need pillow: pip install 's3t[images]'") from None
    sizes, channels = [], 1
    for value in images[:20]:
        held: Any = value.get("bytes") or value.get("path") if isinstance(value, Mapping) else value
        try:
            with Image.open(io.BytesIO(held) if isinstance(held, bytes) else held) as image:
                sizes.append(min(image.size))
                if image.mode not in ("1", "L", "I", "I;16", "F"):
                    channels = 3
        except OSError as error:
            raise InputError(f"an image cannot be read ({error})") from None
    return min(32, max(8, max(sizes) // 8 * 8)), channels


def _layers(name: str) -> int | None:
    """Number of layers of a base in a folder; None if it is a name of the hub.

    Raises:
        InputError: a folder without a readable config.json.
    """
    folder = Path(name)
    if not folder.exists():
        return None
    try:
        held = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"--base {name} is no model in transformers' format ({error}): name a folder with "
            "config.json, or a model of the hub"
        ) from None
    for key in ("num_hidden_layers", "n_layer", "num_layers", "n_layers"):
        if isinstance(held.get(key), int):
            return int(held[key])
    return None
