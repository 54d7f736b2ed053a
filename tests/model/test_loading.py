"""Bases by name: made here, from a local folder, or refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from s3t.config import MADE_BASES, Config
from s3t.errors import InputError
from s3t.model.built import byte_tokenizer
from s3t.model.inputs.encoders import ImageEncoder, TextEncoder
from s3t.model.loading import build_base, load_model, save_model
from s3t.store import tensors_digest

TASKS = {"make:vit": "image-classification", "make:gpt2": "causal-lm", "make:llama": "causal-lm"}


def config(base: str, task: str | None = None, seed: int = 0, **data: Any) -> Config:
    source = {"format": "json", "files": "rows.jsonl"}
    model: dict[str, Any] = {"make": {"hidden": 16, "layers": 2, "heads": 2}}
    model |= data.pop("model", {})
    return Config.model_validate(
        {
            "task": task or TASKS.get(base, "text-classification"),
            "seed": seed,
            "model": {"base": base, **model},
            "data": {
                "private": source,
                "public": {"validation": source, "test": source},
                "max_length": 32,
                **data,
            },
        }
    )


@pytest.mark.parametrize("base", MADE_BASES)
def test_a_folder_gives_back_what_was_saved(base: str, tmp_path: Path) -> None:
    made = load_model(config(base))
    save_model(made, tmp_path)
    assert not [path.name for path in tmp_path.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    by_folder = load_model(config(base), tmp_path)
    task = TASKS.get(base, "text-classification")
    by_name = load_model(config(str(tmp_path), task))
    built = [build_base(config(base), loaded) for loaded in (made, by_folder, by_name)]
    assert len({one.fingerprint for one in built}) == 1
    assert len({one.pooling for one in built}) == 1
    prints = [loaded.encoder.fingerprint() for loaded in (made, by_folder, by_name)]
    assert prints[0] == prints[1] == prints[2]


@pytest.mark.parametrize("base", MADE_BASES)
def test_a_made_base_follows_from_the_seed_alone(base: str) -> None:
    digests = []
    for state, seed in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        digests.append(tensors_digest(load_model(config(base, seed=seed)).model.state_dict()))
        assert torch.equal(torch.get_rng_state(), before), "global state is left alone"
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("base", [base for base in MADE_BASES if base != "make:vit"])
def test_decoders_and_encoders_classify_texts(base: str) -> None:
    loaded = load_model(config(base, "text-classification"))
    assert isinstance(loaded.encoder, TextEncoder)
    built = build_base(config(base, "text-classification"), loaded)
    assert built.lm_head is None
    assert built.causal == (base in ("make:gpt2", "make:llama"))


def test_a_language_model_keeps_its_head() -> None:
    built = build_base(config("make:gpt2"), load_model(config("make:gpt2")))
    assert built.lm_head is not None


def test_another_type_of_numbers() -> None:
    chosen = config("make:bert", model={"dtype": "bfloat16"})
    assert build_base(chosen, load_model(chosen)).dtype == torch.bfloat16


def test_a_names_numbers_of_images_are_used_unless_the_config_has_its_own(tmp_path: Path) -> None:
    save_model(load_model(config("make:vit")), tmp_path)
    numbers = {"image_mean": [0.25], "image_std": [0.125], "image_processor_type": "Unknown"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(numbers))
    task = "image-classification"
    encoder = load_model(config(str(tmp_path), task)).encoder
    assert isinstance(encoder, ImageEncoder)
    assert (encoder.mean, encoder.std) == ((0.25,), (0.125,))
    own = load_model(config(str(tmp_path), task, image_mean=(0.75,))).encoder
    assert isinstance(own, ImageEncoder)
    assert (own.mean, own.std) == ((0.75,), (0.125,))


def refused(chosen: Config) -> str:
    with pytest.raises(InputError) as caught:
        load_model(chosen)
    return str(caught.value)


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    message = refused(config("nobody/has-this-model"))
    assert "model.base 'nobody/has-this-model' cannot be loaded" in message
    assert "make:vit" in message
    assert "\n" not in message
    assert "cannot be loaded" in refused(config(str(tmp_path / "missing")))
    assert "cannot be loaded" in refused(config(str(tmp_path))), "an empty folder"


def test_a_folder_with_pickled_weights_is_refused(tmp_path: Path) -> None:
    save_model(load_model(config("make:bert")), tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert "cannot be loaded" in refused(config(str(tmp_path)))


def test_a_folder_with_torn_weights_is_refused(tmp_path: Path) -> None:
    save_model(load_model(config("make:bert")), tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "cannot be loaded" in refused(config(str(tmp_path)))


@pytest.mark.parametrize("kind", [hf.BertConfig, hf.RobertaConfig])
def test_a_checkpoint_without_a_pooler_is_the_same_base_each_time(
    kind: Any, tmp_path: Path
) -> None:
    shape = kind(
        vocab_size=260, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    hf.AutoModelForMaskedLM.from_config(shape).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    prints = []
    for state in (1, 2):
        torch.manual_seed(state)
        loaded = load_model(config(str(tmp_path)))
        prints.append(build_base(config(str(tmp_path)), loaded).fingerprint)
    assert prints[0] == prints[1]


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    save_model(load_model(config("make:bert")), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.1.attention.self.query.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    message = refused(config(str(tmp_path)))
    assert "lack the weights 'encoder.layer.1.attention.self.query.weight'" in message


def test_another_image_size_than_the_bases_is_refused(tmp_path: Path) -> None:
    save_model(load_model(config("make:vit")), tmp_path)
    message = refused(config(str(tmp_path), "image-classification", image_size=16))
    assert "data.image_size 16 is not the base's 8" in message


@pytest.mark.parametrize(
    "shape",
    [
        hf.ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1]),
        hf.ConvNextConfig(num_channels=1, hidden_sizes=[8, 8], depths=[1, 1], num_stages=2),
    ],
    ids=["resnet", "convnext"],
)
def test_a_network_without_layers_of_one_width_is_refused(shape: Any, tmp_path: Path) -> None:
    hf.AutoModel.from_config(shape).save_pretrained(tmp_path)
    assert "model.base" in refused(config(str(tmp_path), "image-classification"))


@pytest.mark.slow
def test_real_models_can_be_taken_apart(shared_data: Path) -> None:
    chosen = config(str(shared_data / "minilm"))
    base = build_base(chosen, load_model(chosen))
    assert (base.depth, base.hidden_size, base.causal) == (6, 384, False)
    chosen = config(str(shared_data / "stories260k"), "causal-lm")
    base = build_base(chosen, load_model(chosen))
    assert base.causal
    assert base.lm_head is not None
