# %% [markdown]
# # Forget without stopping: from a DataFrame
# Messages of customers in pandas: train, answer, forget a customer, repair, audit. Private rows are
# read for each call alone; the run keeps no copy of them. Nothing is downloaded; it takes a minute.
# The run goes into a temporary folder, or into `RUN=FOLDER`.

# %%
import os
import tempfile

os.environ["OMP_NUM_THREADS"] = "1"  # of a small model threads would only wait for each other
os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

import pandas as pd

from s3t import S3T

place = tempfile.TemporaryDirectory()
run = os.path.join(os.environ.get("RUN", place.name), "run")
words = {"praise": ["good", "great", "fine", "lovely"], "complaint": ["bad", "broken", "late"]}
messages = pd.DataFrame(
    {"customer": f"c{n // 4}", "text": f"it was {word}, on day {n}", "label": label}
    for label, several in words.items()
    for n, word in enumerate(several * 30, 0 if label == "praise" else 120)
)

# %% [markdown]
# ## Ten lines

# %%
public = messages.sample(frac=0.3, random_state=0)
private = messages.drop(public.index)
sections = {
    "data": {"private": private, "public": public, "validation": "30%", "test": "30%"},
    "partition": {"shards": 2, "slices": 2, "subject": "customer"},
    "model": {"base": "make:bert", "make": {"hidden": 32, "layers": 2}},  # or a model of the hub
    "stage": {"epochs": 4},
    "training": {"workers": 1},
}
S3T.train(sections, task="text-classification", output=run)
model = S3T.load(run)
print(model.predict("it was great, on day 7")[0], model.evaluate())
print(model.deactivate(subjects=["c7"]))
model.repair(data=private[private["customer"] != "c7"])
found = S3T.audit(run)

# %% [markdown]
# ## What is left

# %%
print(model)
for claim in found.claims:
    print(f"{claim.name:>9s} {claim.status}")
model.close()
place.cleanup()
if not found.holds:
    raise SystemExit("a claim of the audit does not hold")
