"""Bases of 8 and 4 bits: the same bytes each time, adapters beside them, and nothing written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from s3t.config import Config, load_config
from s3t.errors import ConfigError, InputError, IntegrityError
from s3t.model import loading
from s3t.model.adapters.lora import StackedLinear
from s3t.model.base import Base
from s3t.model.built import byte_tokenizer
from s3t.model.loading import build_base, load_model
from s3t.model.quantized import QuantizedLinear
from s3t.run import RunDir
from s3t.service import S3T
from s3t.training.prepare.checks import check_run
from s3t.training.retrain import retrain
from s3t.training.work.train import train
from tests.model.test_base import parts
from tests.model.test_loading import config
from tests.support.small_runs import Make, saved, small_configs
from tests.support.tiny import tiny_group, tiny_rows, tiny_trainer

SHAPE: dict[str, Any] = {"vocab_size": 260, "bos_token_id": 1, "eos_token_id": 2}
WIDE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
}
FAMILIES: dict[str, tuple[str, Any]] = {
    "llama": ("causal-lm", lambda: hf.LlamaConfig(**SHAPE, **WIDE)),
    "bert": ("text-classification", lambda: hf.BertConfig(**SHAPE, **WIDE)),
    "gpt2": (
        "causal-lm",
        lambda: hf.GPT2Config(
            n_embd=64, n_layer=3, n_head=4, n_positions=64, initializer_range=0.1, **SHAPE
        ),
    ),
}
BITS = ("8bit", "4bit")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A base of each family in transformers' format."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: s3t[quantized]")
    found = {}
    for name, (task, shape) in FAMILIES.items():
        folder = tmp_path_factory.mktemp(name)
        auto = hf.AutoModelForCausalLM if task == "causal-lm" else hf.AutoModel
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            auto.from_config(shape()).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        found[name] = str(folder)
    return found


def asked(family: str, folder: str, bits: str | None, dtype: str = "float32") -> Config:
    task = FAMILIES[family][0]
    return config(folder, task, model={"quantization": bits, "dtype": dtype})


def built(family: str, folder: str, bits: str | None, dtype: str = "float32") -> Base:
    chosen = asked(family, folder, bits, dtype)
    return build_base(chosen, load_model(chosen))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_quantized_base_is_nearly_the_base(folders: dict[str, str], family: str) -> None:
    rows = tiny_rows("bert", 5)
    assert rows.mask is not None
    bases = {bits: built(family, folders[family], bits) for bits in (None, *BITS)}
    found = {bits: parts(base, rows)[rows.mask.bool()] for bits, base in bases.items()}
    far = {bits: float((out - found[None]).norm() / out.norm()) for bits, out in found.items()}
    assert 0 < far["8bit"] < 0.03 < far["4bit"] < 0.4
    assert [t.outputs for t in bases["4bit"].targets] == [t.outputs for t in bases[None].targets]
    sizes = {
        bits: sum(t.nbytes for name, t in base.weights.tensors.items() if "embed" not in name)
        for bits, base in bases.items()
    }
    assert sizes["4bit"] < sizes["8bit"] < sizes[None]


@pytest.mark.parametrize(
    ("bits", "dtype"),
    [
        ("8bit", "float32"),
        pytest.param("4bit", "bfloat16", marks=pytest.mark.heavy),
        pytest.param("8bit", "bfloat16", marks=pytest.mark.heavy),
        pytest.param("4bit", "float32", marks=pytest.mark.heavy),
    ],
)
def test_two_trainings_give_the_same_bytes_alone_or_in_groups(
    folders: dict[str, str], bits: str, dtype: str
) -> None:
    found = []
    for _ in range(2):
        base = built("llama", folders["llama"], bits, dtype)
        trainer = tiny_trainer("llama", language_model=True, base=base, dropout=0.1)
        group = tiny_group(trainer, 2, (7, 12, 3))
        together = trainer.train((1, 2), group)
        alone = [trainer.train((1, 2), [one])[0] for one in group]
        for one, other in zip(together, alone, strict=True):
            assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
        base.check_frozen(whole=True)
        found.append((base.fingerprint, [one.score for one in alone], alone[0].tensors))
    assert found[0][:2] == found[1][:2]
    assert all(torch.equal(found[0][2][name], tensor) for name, tensor in found[1][2].items())


def test_a_gradient_goes_through_the_weights_that_are_computed_with(
    folders: dict[str, str],
) -> None:
    base = built("llama", folders["llama"], "4bit")
    wrapped = base.layers[0].get_submodule("self_attn.k_proj")
    assert isinstance(wrapped, StackedLinear)
    linear = wrapped.inner
    assert isinstance(linear, QuantizedLinear)
    x = torch.randn(3, 5, 64, requires_grad=True)
    weight = linear.dequantized(torch.float32)
    expected = torch.nn.functional.linear(x, weight)
    assert torch.equal(linear(x), expected)
    (one,) = torch.autograd.grad(linear(x).square().sum(), x)
    (other,) = torch.autograd.grad(expected.square().sum(), x)
    assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", BITS)
def test_what_is_packed_is_proved(folders: dict[str, str], bits: str) -> None:
    base = built("llama", folders["llama"], bits)
    before = base.fingerprint
    for ending in ("q_proj.weight", "scales" if bits == "8bit" else "q_proj.absmax"):
        tensor = next(t for name, t in base.weights.tensors.items() if name.endswith(ending))
        tensor.data.view(-1)[0] += 1
        with pytest.raises(IntegrityError, match="bytes differ"):
            base.check_frozen(whole=True)
        tensor.data.view(-1)[0] -= 1
        base.check_frozen(whole=True)
    assert base.to(torch.device("cpu")).fingerprint == before
    assert not base.merges, "a merged copy would be as large as what was saved"


def test_files_that_are_quantized_already_are_the_same_base(
    folders: dict[str, str], tmp_path: Path
) -> None:
    kind: Any = hf.BitsAndBytesConfig
    for double in (False, True):
        how = kind(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double)
        folder = tmp_path / f"{double}"
        hf.AutoModelForCausalLM.from_pretrained(
            folders["llama"], quantization_config=how, device_map={"": "cpu"}, dtype=torch.float32
        ).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
    mine = built("llama", folders["llama"], "4bit").fingerprint
    assert built("llama", str(tmp_path / "False"), None).fingerprint == mine
    assert built("llama", str(tmp_path / "False"), "4bit").fingerprint == mine
    assert built("llama", str(tmp_path / "True"), None).fingerprint != mine
    with pytest.raises(InputError, match="quantized, and not to 8bit"):
        built("llama", str(tmp_path / "False"), "8bit")


def test_without_the_package_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "quantizer_version", lambda: None)
    with pytest.raises(InputError, match=r"pip install 's3t\[quantized\]'"):
        load_model(asked("llama", "nowhere", "4bit"))


def test_a_base_that_is_made_or_adapted_here_is_refused(tmp_path: Path) -> None:
    path = saved(small_configs(tmp_path)("run"), tmp_path)
    with pytest.raises(ConfigError, match="is of a base that is loaded as it is"):
        load_config(path, ["model.quantization=8bit"])


@pytest.mark.slow
def test_a_run_on_a_quantized_base(folders: dict[str, str], tmp_path: Path) -> None:
    make: Make = small_configs(tmp_path)
    base = {"base": folders["llama"]}
    few: dict[str, Any] = {"sequences": {"strategy": "cyclic", "budget": 1}}
    run = make("run", task="causal-lm", model=base | {"quantization": "4bit"}, **few)
    plain = make("plain", task="causal-lm", model=base, **few)
    assert train(run).trained == 4
    recipe = RunDir(run.run_dir).plan().recipe
    assert recipe["quantization"]["bits"] == "4bit"
    checked = check_run(plain)
    assert "quantization" not in checked.plan(checked.base, None).recipe
    keys = sorted(RunDir(run.run_dir).store.keys())
    assert all(retrain(RunDir(run.run_dir), keys[:2], tmp_path / "again").values())
    with S3T.load(run.run_dir) as service:
        text = service.generate(["person 1 says"], max_new_tokens=4)
        service.deactivate(subjects=["p03"])
        assert service.generate(["person 1 says"], max_new_tokens=4)
    assert text
