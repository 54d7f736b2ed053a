# %% [markdown]
# # Forget without stopping: text classification
# A small BERT learns to sort customers' messages, a customer asks to be forgotten with all of
# theirs, and it goes on sorting. A script, or a notebook where `# %%` opens cells. Nothing is
# downloaded; it takes half a minute. The run goes into a temporary folder, or into `RUN=FOLDER`.

# %%
import csv
import os
import random
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # of a small model threads would only wait for each other
os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

import s3t

place = tempfile.TemporaryDirectory()
folder = Path(os.environ.get("RUN", place.name))

# %% [markdown]
# ## Data
# Messages with who wrote them. The base is shown two phrases of each topic, not the other two.

# %%
TOPICS = {
    "delivery": ["late parcel", "package lost", "courier never came", "box damaged"],
    "refund": ["money back", "refund please", "charged twice", "wrong invoice"],
    "account": ["forgot my password", "cannot log in", "change my email", "locked out"],
}
draw = random.Random(7)


def messages(name: str, people: int, phrases: int) -> dict[str, str]:
    """Eight messages each of so many people, in a CSV file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "who", "text", "label"])
        for number in range(8 * people):
            topic = draw.choice(list(TOPICS))
            words = draw.choice(["hi", "hello", "dear team"]), draw.choice(TOPICS[topic][:phrases])
            rows.writerow([f"{name}-{number}", f"customer-{number // 8}", " ".join(words), topic])
    return {"format": "csv", "files": str(path)}


# %% [markdown]
# ## Train
# A keyed hash deals customers, each with all their messages, to 2 shards of 2 slices. There is no
# Trainer and there are no callbacks: this call is all, and `s3t train CONFIG` does the same.

# %%
public = messages("validation", 10, 4)
config = s3t.Config.model_validate(
    {
        "task": "text-classification",
        "output": str(folder / "messages"),
        "data": {
            "private": messages("private", 40, 4),
            "public": {"adapt": messages("adapt", 40, 2), "validation": public, "test": public},
            "columns": {"id": "id"},
            "max_length": 32,
        },
        "model": {  # base: or the name of any encoder on the hub
            "base": "make:bert", "make": {"hidden": 48, "layers": 2, "init_scale": 5},
            "adapt": {"steps": 150, "batch_size": 32},
        },
        "partition": {"shards": 2, "slices": 2, "salt": "example", "subject": "who"},
        "stage": {"epochs": 8, "learning_rate": 5e-3},
        "training": {"workers": 1},
    }
)  # fmt: skip
print(f"trained {s3t.S3T.train(config).trained} nodes")

# %% [markdown]
# ## Answer in a transformers pipeline, forget, answer
# When `deactivate` returns, the deletion is durable, and no answer comes from weights that have
# seen the customer's messages. A pipeline over the run follows at its next call.

# %%
model = s3t.S3T.load(config.run_dir)
pipe, asked = model.pipeline(batch_size=2), ["hello courier never came", "hi charged twice"]
print("answers  ", pipe(asked), model.evaluate().to_dict())
receipt = model.deactivate(subjects=["customer-7"])
print(f"{len(receipt.deleted)} messages are forgotten in {1000 * receipt.seconds:.1f} ms")
print("answers  ", pipe(asked), model.evaluate().to_dict())

# %% Take what is dead off the disk; audit it all without the code that serves
model.purge()
model.close()
found = s3t.S3T.audit(config.run_dir, retrain=1)
print("\n".join(f"{claim.status:12}{claim.name:10}{claim.title}" for claim in found.claims))
assert found.holds
place.cleanup()
