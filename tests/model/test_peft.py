"""A node's lineage as a standard PEFT adapter: the same answers, and back to the same bytes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from s3t.errors import InputError
from s3t.model.adapters.lora import adapted
from s3t.model.adapters.peft import (
    ADAPTER_CONFIG,
    adapter_config,
    adapter_files,
    from_peft,
    load_adapter,
    to_peft,
)
from tests.support.tiny import (
    FAMILIES,
    LANGUAGE,
    bank_of,
    inputs_of,
    random_adapter,
    random_head,
    real,
    shared_base,
    tiny_model,
    tiny_rows,
)

RANK, ALPHA = 4, 12.0
LOWEST = (pytest.param(0, marks=pytest.mark.heavy), 2)
"""The lowest layer with an adapter, of three: all layers, or the top one."""


@pytest.mark.parametrize("lowest", LOWEST)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_is_the_same_model_in_peft(family: str, lowest: int) -> None:
    base, rows = shared_base(family), tiny_rows(family, 4)
    tensors = random_adapter(base.targets, lowest)
    model = to_peft(tiny_model(family), base.targets, tensors, RANK, ALPHA)
    with torch.no_grad():
        plain = tiny_model(family)(**inputs_of(rows)).last_hidden_state
        expected = model(**inputs_of(rows)).last_hidden_state
        with adapted(bank_of(base.targets, tensors, ALPHA / RANK)):
            hidden = base.run(base.start(rows), 0, base.depth, base.attention(rows.mask))
        found = base.finish(hidden)
    # all maps of all layers are adapted, each rounded in another order than peft's
    assert torch.allclose(found[real(rows)], expected[real(rows)], rtol=0, atol=2e-5)
    assert float((plain - expected).abs().max()) > 1e-2, "the adapter does something"


@pytest.mark.parametrize("family", LANGUAGE)
def test_a_language_model_too(family: str) -> None:
    base, rows = shared_base(family, language_model=True), tiny_rows(family, 4)
    tensors = random_adapter(base.targets, 1)
    model = to_peft(tiny_model(family, language_model=True), base.targets, tensors, RANK, ALPHA)
    assert base.lm_head is not None
    with torch.no_grad():
        expected = model(**inputs_of(rows)).logits
        with adapted(bank_of(base.targets, tensors, ALPHA / RANK)):
            hidden = base.run(base.start(rows), 0, base.depth, base.attention(rows.mask))
        found = base.lm_head(base.finish(hidden))
    assert torch.allclose(found[real(rows)], expected[real(rows)], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_back_from_peft_every_byte_is_the_same(family: str) -> None:
    base = shared_base(family)
    tensors = random_adapter(base.targets, 1)
    head = random_head(base.hidden_size)
    model = to_peft(tiny_model(family), base.targets, tensors | head, RANK, ALPHA)
    found = from_peft(model, base.targets)
    assert found.keys() == tensors.keys(), "a head is no adapter"
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("family", ["vit", "bert", "gpt2", "llama"])
def test_of_twelve_layers_exactly_the_adapted_ones(family: str) -> None:
    base = shared_base(family, layers=12)
    chosen = [target for target in base.targets if target.layer in (1, 2)]
    tensors = random_adapter(chosen)
    model = to_peft(tiny_model(family, 12), base.targets, tensors, RANK, ALPHA)
    places = {
        int(re.findall(r"\.(\d+)\.", name)[0])
        for name, _ in model.named_parameters()
        if "lora_" in name
    }
    assert places == {1, 2}, "not 10 and 11"
    assert from_peft(model, base.targets).keys() == tensors.keys()


@pytest.mark.parametrize("family", ["vit", "bert", "gpt2", "llama"])
def test_peft_itself_saves_and_loads_it(family: str, tmp_path: Path) -> None:
    base, rows = shared_base(family, layers=12), tiny_rows(family, 3)
    tensors = random_adapter(base.targets, 1)
    model = to_peft(tiny_model(family, 12), base.targets, tensors, RANK, ALPHA)
    model.save_pretrained(str(tmp_path))
    assert (tmp_path / "adapter_model.safetensors").is_file()
    again = PeftModel.from_pretrained(tiny_model(family, 12), str(tmp_path))
    found = from_peft(again, base.targets)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    with torch.no_grad():
        one, two = (m(**inputs_of(rows)).last_hidden_state for m in (model, again))
    assert torch.equal(one, two)


@pytest.mark.parametrize("lowest", LOWEST)
@pytest.mark.parametrize("family", FAMILIES)
def test_files_that_peft_loads_without_a_model_to_write_them(
    family: str, lowest: int, tmp_path: Path
) -> None:
    language = family in LANGUAGE
    base, rows = shared_base(family, language_model=language), tiny_rows(family, 3)
    tensors = random_adapter(base.targets, lowest) | random_head(base.hidden_size)
    files = adapter_files(base, tensors, RANK, ALPHA, "hub/name")
    assert files == adapter_files(base, tensors, RANK, ALPHA, "hub/name")
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    plain = tiny_model(family, language_model=language)
    expected = to_peft(plain, base.targets, tensors, RANK, ALPHA)
    loaded = load_adapter(tiny_model(family, language_model=language), tmp_path)
    with torch.no_grad():
        one, two = (model(**inputs_of(rows))[0] for model in (expected, loaded))
    assert torch.equal(one, two)
    config = json.loads(files[ADAPTER_CONFIG])
    assert (config["r"], config["lora_alpha"], config["bias"]) == (RANK, ALPHA, "none")
    assert config["base_model_name_or_path"] == "hub/name" and config["modules_to_save"] is None
    assert config["layers_to_transform"] is None, "an empty list of which would mean all"


def test_no_files_for_an_empty_prefix() -> None:
    base = shared_base("vit")
    with pytest.raises(InputError, match="no layer carries an adapter"):
        adapter_files(base, random_head(base.hidden_size), RANK, ALPHA, "hub/name")


def test_an_empty_prefix_is_refused() -> None:
    base = shared_base("vit")
    model = tiny_model("vit")
    names = [name for name, _ in model.named_modules()]
    for tensors in ({}, random_head(base.hidden_size)):
        with pytest.raises(InputError, match="no layer carries an adapter"):
            to_peft(model, base.targets, tensors, RANK, ALPHA)
    with pytest.raises(InputError, match="no layer carries an adapter"):
        adapter_config(model, [], RANK, ALPHA)
    assert [name for name, _ in model.named_modules()] == names, "it was not touched"


def test_adapters_that_do_not_fit_are_refused() -> None:
    base, model = shared_base("vit"), tiny_model("vit")
    names = [name for name, _ in model.named_modules()]
    whole = random_adapter(base.targets)
    half = {name: tensor for name, tensor in whole.items() if name != base.targets[0].b}
    foreign = whole | {"layers.007.attention.q_proj.lora_A": whole[base.targets[0].a]}
    for tensors, rank, message in (
        (half, RANK, "lack their other half"),
        (foreign, RANK, "layers.007"),
        (whole, RANK + 1, "expected rank 5"),
    ):
        with pytest.raises(InputError, match=message):
            to_peft(model, base.targets, tensors, rank, ALPHA)
    assert [name for name, _ in model.named_modules()] == names, "it was not touched"
