"""Digits, images and sources of the hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from s3t.config import Config
from s3t.data import load_all, load_private, load_public
from tests.support.sources import LABELS, ROWS, Row, problems, text_config, write


@pytest.fixture(autouse=True)
def _here(sources: None) -> None:
    """All that follows lies in a folder of its own."""


# --- digits --------------------------------------------------------------------------------------


def digits_config(**more: Any) -> Config:
    def source(split: str) -> Row:
        return {"format": "digits", "split": split}

    data = {
        "private": source("private"),
        "public": {
            "adapt": source("public"),
            "validation": source("public"),
            "test": source("test"),
        },
        "columns": more.pop("columns", {}),
    }
    base = {"task": "image-classification", "model": {"base": "make:vit"}}
    return Config.model_validate({**base, "data": data, **more})


def test_digits_are_split_once_and_for_all():
    data = load_all(digits_config())
    assert data.labels == tuple("0123456789")
    assert data.adapt is not None
    assert [len(data.adapt), len(data.private.rows), len(data.test)] == [597, 800, 400]
    ids = [s.id for s in data.private.samples]
    assert ids[:3] == ["digit-0000", "digit-0003", "digit-0007"] and ids == sorted(ids)
    assert {s.subject for s in data.private.samples} == {None}
    everything = [*data.adapt.inputs, *data.private.rows.inputs, *data.test.inputs]
    assert len({one.tobytes() for one in everything}) == 1797
    assert data.overlap == data.private.folded == 0
    image = data.private.rows.inputs[0]
    assert image.shape == (8, 8, 1) and image.dtype == np.float32
    assert image.min() == 0 and 0.9 < max(one.max() for one in everything) <= 1
    assert data.private.rows.labels is not None and data.private.rows.labels[0] == 0


def test_digits_have_no_columns():
    risk = {"column": "age", "quantiles": [0.5]}
    config = digits_config(partition={"subject": "who", "risk": risk}, columns={"id": "key"})
    found = problems(load_private, config, tuple("0123456789"))
    assert "data.columns.id is 'key', but digits have no such column" in found[0]
    assert "partition.subject is 'who', but digits have no such column" in found[1]
    for where, problem in zip(("data.private", "data.public.adapt"), found[2:], strict=True):
        assert problem.startswith(f"{where}: partition.risk.column is 'age', but digits have no")


def test_digits_are_not_text():
    config = text_config(
        write("a.csv", ROWS), public={"test": {"format": "digits", "split": "test"}}
    )
    problem = problems(load_public, config, "test", LABELS)[0]
    assert "no column 'text' (data.columns.text)" in problem


# --- images --------------------------------------------------------------------------------------


def draw(path: str, value: int, mode: str = "RGB") -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (4, 3), value if mode != "RGB" else (value, 0, 1)).save(path)
    return path


def image_config(private: Any, public: Any = "public", **more: Any) -> Config:
    def source(files: Any) -> Row:
        return files if isinstance(files, dict) else {"format": "imagefolder", "files": files}

    data = {
        "private": source(private),
        "public": {"validation": source(public), "test": source(public)},
        "columns": more.pop("columns", {}),
    }
    base = {"task": "image-classification", "model": {"base": "make:vit"}}
    return Config.model_validate({**base, "data": data, **more})


@pytest.fixture
def folders() -> None:
    for number in range(3):
        draw(f"public/train/cat/{number}.png", number)
        draw(f"public/train/dog/{number}.png", 10 + number, "L")
        draw(f"private/cat/{number}.png", 20 + number, "L" if number else "RGB")
    draw("public/train/dog/3.png", 21, "L")


@pytest.mark.usefixtures("folders")
def test_an_image_folder_gives_labels_by_directory():
    draw("private/cat/copy.png", 21, "L")
    data = load_all(image_config("private"))
    assert data.labels == ("cat", "dog")
    assert data.private.rows.labels == (0, 0, 0) and data.private.folded == 1
    assert sorted(one.shape for one in data.private.rows.inputs) == [(3, 4, 1)] * 2 + [(3, 4, 3)]
    assert {one.dtype for one in data.test.inputs} == {np.dtype(np.uint8)}
    assert data.test.labels == (0, 0, 0, 1, 1, 1, 1)
    assert data.overlap == 0  # the same pixels under another label are other content
    assert [one[0, 0, 0] for one in data.test.inputs[1:3]] == [1, 2]


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_metadata_gives_ids_and_subjects_as_text(name: str):
    rows = [{"file_name": f"cat/{n}.png", "key": f"00{n}", "who": "01"} for n in range(3)]
    write(f"private/{name}", rows)
    config = image_config("private", columns={"id": "key"}, partition={"subject": "who"})
    samples = load_private(config, ("cat", "dog")).samples
    assert [s.id for s in samples] == ["000", "001", "002"]
    assert {s.subject for s in samples} == {"01"}


@pytest.mark.usefixtures("folders")
def test_metadata_may_give_labels_to_a_flat_folder():
    draw("flat/a.png", 1)
    draw("flat/b.png", 2)
    (problem,) = problems(load_private, image_config("flat"), ("cat", "dog"))
    assert "'label' (data.columns.label) is empty in rows 1, 2" in problem
    write("flat/metadata.csv", [{"file_name": "a.png", "label": "dog"}])
    (problem,) = problems(load_private, image_config("flat"), ("cat", "dog"))
    assert "images without a row in metadata: 'flat/b.png'" in problem
    write("flat/metadata.csv", [{"file_name": f, "label": "dog"} for f in ("a.png", "b.png")])
    assert load_private(image_config("flat"), ("cat", "dog")).rows.labels == (1, 1)
    write("flat/metadata.csv", [{"file_name": f, "label": "dog"} for f in ("a.png", "c.png")])
    assert len(problems(load_private, image_config("flat"), ("cat", "dog"))) == 2


@pytest.mark.usefixtures("folders")
def test_splits_of_an_image_folder():
    draw("public/test/cat/0.png", 99)
    test = {"format": "imagefolder", "files": "public", "split": "test"}
    assert len(load_public(image_config("private", test), "test", ("cat", "dog"))) == 1
    part = {**test, "split": "train[:2]"}
    assert len(load_public(image_config("private", part), "test", ("cat", "dog"))) == 2
    (problem,) = problems(
        load_public, image_config("private", {**test, "split": "dev"}), "test", ("cat", "dog")
    )
    assert "split 'dev' does not exist" in problem


@pytest.mark.usefixtures("folders")
def test_images_by_glob_and_by_a_column_of_paths():
    config = image_config("private/*/*.png")
    assert len(load_private(config, ("cat", "dog")).samples) == 3
    write("list.csv", [{"image": f"private/cat/{n}.png", "label": "cat"} for n in range(3)])
    listed = image_config({"format": "csv", "files": "list.csv"})
    contents = [load_private(c, ("cat", "dog")).samples for c in (config, listed)]
    assert contents[0] == contents[1]


@pytest.mark.usefixtures("folders")
def test_linked_folders_are_read():
    Path("linked").mkdir()
    Path("linked/cat").symlink_to("../private/cat")
    through = load_private(image_config("linked"), ("cat", "dog"))
    assert through.samples == load_private(image_config("private"), ("cat", "dog")).samples
    Path("private/cat/up").symlink_to("../..")
    (problem,) = problems(load_private, image_config("private"), ("cat", "dog"))
    assert "leads back to" in problem and "which holds it" in problem


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize("name", ["a.avif", "a", "metadata.parquet", "notes.txt", ".hidden"])
def test_files_that_are_no_images_are_named(name: str):
    Path("private/cat/.DS_Store").touch()
    assert len(load_private(image_config("private"), ("cat", "dog")).samples) == 3
    Path("private/cat", name).touch()
    (problem,) = problems(load_private, image_config("private"), ("cat", "dog"))
    assert f"no images by their names: 'private/cat/{name}'. Give" in problem


@pytest.mark.usefixtures("folders")
def test_links_that_lead_nowhere_are_not_passed_over():
    Path("private/cat/gone.png").symlink_to("nothing.png")
    (problem,) = problems(load_private, image_config("private"), ("cat", "dog"))
    assert "cannot be read (FileNotFoundError" in problem and "images in row 4 ('" in problem
    write("many/a.csv", ROWS)
    Path("many/b.csv").symlink_to("nothing.csv")
    (problem,) = problems(load_private, text_config("many/*.csv"), LABELS)
    assert "cannot read 'many/b.csv' (FileNotFoundError" in problem


@pytest.mark.usefixtures("folders")
def test_a_split_that_some_folders_lack():
    (problem,) = problems(load_private, image_config(["public", "private"]), ("cat", "dog"))
    assert problem == "'private': no directory 'train', which the others have"


@pytest.mark.usefixtures("folders")
def test_an_image_that_metadata_names_twice():
    names = [f"cat/{n}.png" for n in range(3)]
    write("private/metadata.csv", [{"file_name": n, "who": "x"} for n in [*names, "./cat/1.png"]])
    config = image_config("private", partition={"subject": "who"})
    (problem,) = problems(load_private, config, ("cat", "dog"))
    assert problem == "metadata names images twice: 'private/cat/1.png'"
    write("private/metadata.csv", [{"file_name": n, "who": "x"} for n in names])
    write("private/cat/metadata.jsonl", [{"file_name": "2.png", "who": "y"}])
    (problem,) = problems(load_private, config, ("cat", "dog"))
    assert problem == "metadata names images twice: 'private/cat/2.png'"


@pytest.mark.usefixtures("folders")
def test_a_file_of_several_pictures_is_refused():
    frames = [Image.new("L", (4, 3), shade) for shade in (1, 2, 3)]
    for name in ("9.gif", "9.tiff"):
        frames[0].save(f"private/cat/{name}", save_all=True, append_images=frames[1:])
    (problem,) = problems(load_private, image_config("private"), ("cat", "dog"))
    assert "images in rows 4, 5 ('private/cat/9.gif', 'private/cat/9.tiff') cannot be" in problem
    assert "(ValueError: holds 3 pictures" in problem


@pytest.mark.usefixtures("folders")
def test_damaged_images_are_named_by_row():
    Path("private/cat/1.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    Path("private/cat/2.png").write_bytes(Path("private/cat/2.png").read_bytes()[:-30])
    Image.new("I;16", (2, 2), 5).save("private/cat/3.png")
    text = "\n".join(problems(load_private, image_config("private"), ("cat", "dog")))
    assert "row 2" in text and "row 3" in text and "row 4" in text
    assert "more than 8 bits" in text


def test_images_inside_parquet_stay_encoded_until_asked_for(folders: None):
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    files = [f"private/cat/{n}.png" for n in range(3)]
    rows = {"image": [{"bytes": Path(f).read_bytes(), "path": None} for f in files]}
    datasets.Dataset.from_dict({**rows, "label": [0, 1, 0]}, features).to_parquet("images.parquet")
    config = image_config({"format": "parquet", "files": "images.parquet"})
    private = load_private(config, ("cat", "dog"))
    folder = load_private(image_config("private"), ("cat", "dog"))
    assert sorted(private.rows.labels or ()) == [0, 0, 1]
    shared = {s.content for s in private.samples} & {s.content for s in folder.samples}
    assert len(shared) == 2
    again = private.rows.inputs[1]
    assert again.dtype == np.uint8 and not np.shares_memory(again, private.rows.inputs[1])


def test_a_photograph_is_turned_upright(folders: None):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 3)).save("private/cat/9.jpg", exif=exif)
    shapes = [one.shape for one in load_private(image_config("private"), ("cat",)).rows.inputs]
    assert (4, 3, 3) in shapes


# --- hub -----------------------------------------------------------------------------------------


def test_a_local_data_set_leaves_no_copy(monkeypatch: pytest.MonkeyPatch, capfd: Any):
    import datasets

    cache, scratch = Path("cache").absolute(), Path("scratch").absolute()
    scratch.mkdir()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    write("mine/train.csv", [{"text": "hello", "label": "good"}])
    write("mine/test.csv", [{"text": "bye", "label": "bad"}])
    test = {"format": "hub", "name": "mine", "split": "test"}
    config = text_config(write("a.csv", ROWS), public={"test": test})
    assert list(load_public(config, "test", LABELS).inputs) == ["bye"]
    assert not cache.exists() and not list(scratch.iterdir())
    assert capfd.readouterr().err == ""
    assert not datasets.are_progress_bars_disabled()


def test_a_hub_failure_is_one_problem(monkeypatch: pytest.MonkeyPatch):
    import datasets

    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    test = {"format": "hub", "name": "org/set"}
    config = text_config(write("a.csv", ROWS), public={"test": test})
    (problem,) = problems(load_public, config, "test", LABELS)
    assert problem == (
        "cannot load data set 'org/set', split 'train' (ConnectionError: no network.)"
    )
