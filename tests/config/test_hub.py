"""The configs that name bases and data on the hub, as they are but for where both come from.

No hub can be reached here: each config is run on a small random base of the same architecture, in a
folder of transformers' format, and on a few rows with the same columns. All else stands: blocks,
ranks, targets, schedules, templates.
"""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
import yaml

from s3t import S3T
from s3t.audit.audit import audit
from s3t.config import Config, load_config
from s3t.model.built import byte_tokenizer
from s3t.run import RunDir
from s3t.training.work.train import train

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs/hub").glob("*.yaml"))
CHAT = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
FAMILIES = {
    "vit": "ViT",
    "roberta": "Roberta",
    "llama2": "Llama",
    "llama3": "Llama",
    "qwen": "Qwen2",
    "mistral": "Mistral",
    "gpt2": "GPT2",
}
PRIVATE, PUBLIC = 48, 8
LENGTH = 96


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_opens_with_its_command(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first == f"# s3t train configs/hub/{path.name}"
    config = load_config(path)
    sources = (config.data.private, config.data.public.validation, config.data.public.test)
    assert all(source.format == "hub" for source in sources)
    assert config.run_dir == Path("runs") / path.stem


@pytest.mark.heavy
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_trains_answers_and_forgets(path: Path, tmp_path: Path) -> None:
    config = at_home(path, tmp_path)
    train(config)
    with RunDir.existing(config.run_dir).ledger() as ledger:
        victim = next(iter(ledger.samples())).sample_id
    with S3T.load(config.run_dir) as run:
        before = run.evaluate()
        assert run.deactivate([victim]).nodes_dead
        after = run.evaluate()
        run.purge()
    assert np.isfinite([before.value, after.value]).all() and after.view > before.view
    assert audit(config.run_dir).holds


def at_home(path: Path, folder: Path) -> Config:
    """The config with a small base and few rows, of this machine."""
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    config = load_config(path)
    save_base(config, FAMILIES[path.stem.partition("_")[0]], folder / "base")
    data: dict[str, Any] = tree["data"]
    rows = Rows(config)
    data["private"] = rows.write(folder / "private.parquet", PRIVATE, 0)
    for at, name in enumerate(("validation", "test")):
        start = PRIVATE + at * PUBLIC
        data["public"][name] = rows.write(folder / f"{name}.parquet", PUBLIC, start)
    if "max_length" in data:
        data["max_length"] = LENGTH
    tree["model"]["base"] = str(folder / "base")
    if importlib.util.find_spec("bitsandbytes") is None:
        tree["model"].pop("quantization", None)
    tree["partition"]["shards"] = 1
    tree["stage"] |= {"epochs": 1}
    tree["training"] = tree.get("training", {}) | {"workers": 1}
    tree |= {"name": path.stem, "output": str(folder / "run")}
    return Config.model_validate(tree)


def save_base(config: Config, family: str, folder: Path) -> None:
    """A random base of the architecture, one layer for each slice."""
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": config.partition.slices,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "initializer_range": 0.2,
    }
    if family == "ViT":
        shape |= {"image_size": 16, "patch_size": 4, "num_channels": 3}
    else:
        shape |= {"vocab_size": 260, "max_position_embeddings": LENGTH + 2}
        shape |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = CHAT
        tokenizer.save_pretrained(folder)
    if family in ("Llama", "Mistral", "Qwen2"):
        shape["num_key_value_heads"] = 2
    made = getattr(transformers, f"{family}Config")(**shape)
    auto = (
        transformers.AutoModelForCausalLM if config.task == "causal-lm" else transformers.AutoModel
    )
    auto.from_config(made).save_pretrained(folder)


class Rows:
    """Rows with the columns that a config reads, as they come from the hub."""

    def __init__(self, config: Config) -> None:
        self.columns, self.task = config.data.columns, config.task

    def write(self, path: Path, count: int, start: int) -> dict[str, str]:
        import datasets

        rows = [self._row(number) for number in range(start, start + count)]
        datasets.Dataset.from_list(rows).to_parquet(path)
        return {"format": "parquet", "files": str(path)}

    def _row(self, number: int) -> dict[str, Any]:
        columns = self.columns
        row: dict[str, Any] = {columns.id: f"row-{number}"} if columns.id else {}
        if self.task == "image-classification":
            row[columns.image] = {"bytes": png(number), "path": None}
        elif columns.messages:
            row[columns.messages] = [
                {"role": "user", "content": f"What is {number}?"},
                {"role": "assistant", "content": f"It is {number * 7}."},
            ]
        elif columns.prompt and columns.completion:
            row |= {columns.prompt: f"What is {number}?", columns.completion: f"It is {number}."}
        else:
            row[columns.text] = f"Sentence {number} says {number * 7}."
        if columns.text_pair:
            row[columns.text_pair] = f"So it says {number * 7}."
        if self.task != "causal-lm":
            row[columns.label] = number % 2
        return row


def png(number: int) -> bytes:
    from PIL import Image

    pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="png")
    return out.getvalue()
