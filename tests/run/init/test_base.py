"""The base of a first config: what is chosen for the texts and images at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from s3t.data.looking import Role
from s3t.errors import InputError
from s3t.run.init.base import choose_base


def length(task: str, roles: dict[Role, list[Any]], base: str | None = None) -> int:
    return int(choose_base(task, base, roles).data["max_length"])


def test_most_texts_fit() -> None:
    texts: dict[Role, list[Any]] = {"text": ["a" * 50] * 39 + ["b" * 1000]}
    found = choose_base("text-classification", None, texts)
    assert (found.name, found.data["max_length"]) == ("make:bert", 64)
    assert any("1 of 40 rows are longer and are cut" in line for line in found.lines)


def test_longer_texts_of_a_made_base_are_cut() -> None:
    assert length("text-classification", {"text": ["a" * 5000]}) == 256
    assert length("text-classification", {"text": ["a" * 5000]}, "some/name") == 512


def test_a_prompt_leaves_room_for_its_answer() -> None:
    roles: dict[Role, list[Any]] = {"prompt": ["a" * 400], "completion": ["b" * 400]}
    assert length("causal-lm", roles) == 432
    roles["prompt"] = ["a" * 3000]
    with pytest.raises(InputError, match="1 prompts are longer than 2,048 tokens"):
        length("causal-lm", roles)


def test_layers_of_a_folder_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"n_layer": 5}))
    assert choose_base("causal-lm", str(tmp_path), {"text": ["a"]}).layers == 5
    unknown = choose_base("causal-lm", "some/name", {"text": ["a"]})
    assert unknown.layers == 12
    assert "12 layers are assumed" in unknown.lines[0]


def test_conversations_need_a_template_of_the_base_or_ours() -> None:
    roles: dict[Role, list[Any]] = {"messages": [[{"role": "user", "content": "a"}]]}
    assert choose_base("causal-lm", "some/name", roles).data["chat_template"] == "base"
    assert "{%" in choose_base("causal-lm", None, roles).data["chat_template"]
