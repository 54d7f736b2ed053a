# %% [markdown]
# # Forget without stopping: a language model
# A small Llama is taught facts about people, one of them asks to be forgotten, and it goes on
# answering about the others. A script, or a notebook where `# %%` opens cells. Nothing is
# downloaded; it takes half a minute. The run goes into a temporary folder, or into `RUN=FOLDER`.

# %%
import json
import os
import random
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # of a small model threads would only wait for each other
os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

import s3t

place = tempfile.TemporaryDirectory()
folder = Path(os.environ.get("RUN", place.name))
folder.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## Data
# Each row has the person that it is about. Public ones show the base what rows look like.

# %%
TOWNS = ["Oslo", "Bern", "Lima", "Cairo", "Quito", "Seoul", "Turin", "Lyon"]
PEOPLE = ["Ada", "Bo", "Cem", "Dina", "Emil", "Fay", "Gus", "Hana", "Ivo", "Jana", "Kai", "Lea"]
OTHERS = ["Abel", "Bela", "Cleo", "Doro", "Egon", "Fina", "Gero", "Hedi", "Jule", "Max", "Nele"]
draw = random.Random(7)


def facts(name: str, people: list[str]) -> list[dict[str, str]]:
    """Write a JSON lines file of two facts about each person."""
    asked = [(who, word) for who in people for word in ("born in", "lives in")]
    rows = [{"who": w, "question": f"{w} {q}", "answer": draw.choice(TOWNS)} for w, q in asked]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return rows


private, _ = facts("private", PEOPLE), facts("public", OTHERS * 12)

# %% [markdown]
# ## Train
# The loss counts answers alone, as there are columns for prompt and completion (chats stand in
# `messages`). There is no Trainer and there are no callbacks: this call is all.

# %%
public = {"format": "json", "files": str(folder / "public.jsonl")}
config = s3t.Config.model_validate(
    {
        "task": "causal-lm",
        "output": str(folder / "people"),
        "data": {
            "private": {"format": "json", "files": str(folder / "private.jsonl")},
            "public": {"adapt": public, "validation": public, "test": public},
            "columns": {"prompt": "question", "completion": "answer"}, "max_length": 32,
        },
        "model": {  # base: or any Llama, Qwen, Mistral, GPT-2 … on the hub
            "base": "make:llama", "make": {"hidden": 64, "layers": 2, "init_scale": 2},
            "adapt": {"steps": 150, "batch_size": 32, "learning_rate": 3e-3},
        },
        "partition": {"shards": 2, "slices": 2, "salt": "example", "subject": "who"},
        "lora": {"rank": 16, "targets": ["q_proj", "v_proj", "up_proj", "down_proj"]},
        "stage": {"epochs": 40, "learning_rate": 1e-2},
        "training": {"workers": 1},
    }
)  # fmt: skip
print(f"trained {s3t.S3T.train(config).trained} nodes")

# %% [markdown]
# ## Ask, forget, ask
# Each token comes from the mean of the shards that serve; in a transformers pipeline as well. When
# `deactivate` returns, the deletion is durable, and no token comes from what has seen Ada's rows.

# %%
model = s3t.S3T.load(config.run_dir)
pipe = model.pipeline(max_new_tokens=8, return_full_text=False)
for people in ([], ["Ada"]):
    if people:
        print(people, f"forgotten in {model.deactivate(subjects=people).seconds:.3f} s")
    found = model.generate(private, max_new_tokens=8)
    for row, one in [*zip(private, found, strict=True)][::3]:
        print(f"{row['question']} {one.completion.strip()}, and it is {row['answer']}")
    print(pipe("Lea lives in"), [piece.text for piece in model.stream("Lea", max_new_tokens=5)])

# %% Train what is missing, on what is left; audit it all without the code that serves
print("repaired", model.repair()["trained"], "nodes;", pipe("Lea lives in"))
model.close()
found = s3t.S3T.audit(config.run_dir, retrain=1)
print("\n".join(f"{claim.status:12}{claim.name:10}{claim.title}" for claim in found.claims))
assert found.holds
place.cleanup()
