# %% [markdown]
# # Forget without stopping: image classification
#
# A small ViT is fine-tuned on 800 handwritten digits, two of them are to be forgotten, and the
# model goes on answering. A script, or a notebook where `# %%` opens cells. Nothing is downloaded;
# it takes half a minute. The run goes into a temporary folder, or into `RUN=FOLDER`.

# %%
import os
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # of a small model threads would only wait for each other
os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

from sklearn.datasets import load_digits

import s3t

place = tempfile.TemporaryDirectory()
run = Path(os.environ.get("RUN", place.name)) / "digits"

# %% [markdown]
# ## Train
#
# A keyed hash deals the private images to 2 shards of 2 slices. A shard learns its slices one after
# another, each in a block of layers of its own, from the top down, and in several orders: that is
# the insurance. What is public (the base's own training, the test) cannot be deleted. There is no
# Trainer and there are no callbacks: this call is all, and `s3t train CONFIG` does the same.

# %%
config = s3t.Config.model_validate(
    {
        "task": "image-classification",
        "output": str(run),
        "data": {
            "private": {"format": "digits", "split": "private[:600]"},
            "public": {
                "adapt": {"format": "digits", "split": "public"},
                "validation": {"format": "digits", "split": "public[:100]"},
                "test": {"format": "digits", "split": "test"},
            },
        },
        "model": {
            "base": "make:vit",  # or the name of any ViT on the hub
            "make": {"hidden": 32, "layers": 2, "heads": 4, "init_scale": 5},
            "adapt": {"steps": 100, "rotations": True},  # the base sees turned images alone
        },
        "partition": {"shards": 2, "slices": 2, "salt": "example"},
        "stage": {"epochs": 6, "learning_rate": 5e-3},
        "training": {"workers": 1},
    }
)
report = s3t.S3T.train(config)
print(f"trained {report.trained} nodes in {report.seconds:.0f} s")

# %% [markdown]
# ## Answer, forget, answer
#
# When `deactivate` returns, the deletion is durable, and no answer given from then on comes from
# weights that have seen the image. Nothing was retrained: what had seen it was switched off.

# %%
images = load_digits().images[-5:] / 16
model = s3t.S3T.load(run)
print("answers    ", [one.label for one in model.predict(images)], model.evaluate().to_dict())
first, second, *_ = [row.sample_id for row in model.samples()]
receipt = model.deactivate([first])
print(f"forgotten in {1000 * receipt.seconds:.1f} ms: {len(receipt.nodes_dead)} nodes are dead")
print("answers    ", [one.label for one in model.predict(images)], model.evaluate().to_dict())

# %% [markdown]
# ## In a transformers pipeline
#
# A pipeline over a run takes arrays, pictures, paths, lists, data sets; deletions reach it at its
# next call.

# %%
pipe = model.pipeline(top_k=2)
print("pipeline   ", pipe(images[0]))
model.deactivate([second])
print("pipeline   ", pipe(images[0]), "at view", model.status().view)

# %% [markdown]
# ## Repair, purge, prove
#
# `repair` trains what is missing, on what is left, while this goes on answering, and purges
# what is dead. The audit judges each claim from log and files, without the code that serves.

# %%
print("repaired   ", model.repair()["trained"], "nodes;", model.evaluate().to_dict())
model.close()
found = s3t.S3T.audit(run, retrain=1)
print("\n".join(f"{claim.status:12}{claim.name:10}{claim.title}" for claim in found.claims))
assert found.holds
place.cleanup()
