"""What engines refuse at load time is refused before anything is written."""

from __future__ import annotations

from typing import Any

import pytest

from s3t.errors import InputError
from s3t.export.engine_limits import ENGINE_LIMITS, engine_limits

PLAIN: dict[str, Any] = {
    "r": 8,
    "target_modules": ["model.layers.3.self_attn.q_proj", "model.layers.3.self_attn.v_proj"],
    "modules_to_save": None,
    "bias": "none",
    "use_dora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "fan_in_fan_out": False,
}


@pytest.mark.parametrize("name", ENGINE_LIMITS)
def test_what_we_write_is_taken(name: str) -> None:
    ENGINE_LIMITS[name].check(PLAIN, "causal-lm")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"r": 513}, "rank 513 is over 512"),
        ({"modules_to_save": ["classifier"]}, "modules_to_save"),
        ({"bias": "all"}, "biases"),
        ({"use_dora": True}, "DoRA"),
        ({"rank_pattern": {"q_proj": 4}}, "several ranks"),
        ({"fan_in_fan_out": True}, "GPT-2"),
        ({"target_modules": ["h.0.c_attn"]}, "adapts c_attn"),
    ],
)
def test_what_vllm_does_not_take(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        ENGINE_LIMITS["vllm"].check(PLAIN | change, "causal-lm")


def test_all_that_is_wrong_is_named_at_once() -> None:
    with pytest.raises(InputError) as caught:
        ENGINE_LIMITS["sglang"].check(PLAIN | {"use_dora": True}, "text-classification")
    assert "DoRA" in str(caught.value) and "head of its own" in str(caught.value)


def test_ranks_that_an_engine_can_be_started_with() -> None:
    vllm, sglang = ENGINE_LIMITS["vllm"], ENGINE_LIMITS["sglang"]
    assert [vllm.rank(r) for r in (1, 2, 8, 9, 65, 257, 321)] == [1, 8, 8, 16, 128, 320, 512]
    assert sglang.rank(300) == 300
    with pytest.raises(InputError, match="--rank 512 or less"):
        vllm.rank(513)
    with pytest.raises(InputError, match="--target ollama"):
        engine_limits("ollama")
