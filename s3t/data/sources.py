"""Reads a source of the config into a table of named columns.

To add a format: write its reader, and name it in ``FORMATS`` and in ``SourceConfig.format``.

Invariant E7: csv, JSON, parquet and image files are read straight into memory (images when they are
needed), without the on-disk cache of Hugging Face datasets, so no copy of a private row is left.
Cells of csv stay text (``007`` is not 7), and JSON strings stay strings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from s3t.config import ColumnsConfig, SourceConfig
from s3t.data.files import (
    Row,
    csv_rows,
    json_rows,
    one_line,
    reading,
    resolve,
)
from s3t.data.lending import borrowed
from s3t.errors import DataError, named
from s3t.system.hub import hub_in_reach
from s3t.system.scratch import scratch

__all__ = ["FORMATS", "Table", "read_table"]

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"),
)
METADATA_FILES = {"metadata.csv": csv_rows, "metadata.jsonl": json_rows}
OF_SYSTEMS = (".DS_Store", "Thumbs.db", "desktop.ini")
"""Files of file managers, which are ignored in folders of images."""
DIGITS_SPLITS = {"public": (0, 597), "private": (597, 1397), "test": (1397, 1797)}


@dataclass(frozen=True)
class Table:
    """The rows of a source by column, not checked yet.

    Attributes:
        names: names of the columns.
        size: number of rows.
        column: returns the values of a column by name; images are paths, bytes or arrays.
        classes: class names of each column whose type declares them.
        ids: ids that the source gives its rows (digits); None without.
        origins: for each row the files that hold this row alone (image folders); None without.
        guesses: ``csv`` or ``json`` if the package datasets guessed types from such text; else "".
    """

    names: tuple[str, ...]
    size: int
    column: Callable[[str], Sequence[Any]]
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ids: tuple[str, ...] | None = None
    origins: Sequence[tuple[str, ...]] | None = None
    guesses: str = ""


Reader = Callable[[SourceConfig, ColumnsConfig], Table]


def read_table(source: SourceConfig, columns: ColumnsConfig) -> Table:
    """Read a source by the reader of its format.

    Raises:
        DataError: files that do not exist or cannot be read, or a split that does not exist.
    """
    return FORMATS[source.format](source, columns)


def _csv(source: SourceConfig, columns: ColumnsConfig) -> Table:
    delimiter = "\t" if source.delimiter == "tab" else source.delimiter
    rows = csv_rows(resolve(source.files or ()), source.encoding, delimiter)
    return _table([rows[i] for i in _split(source.split, "train", len(rows))])


def _json(source: SourceConfig, columns: ColumnsConfig) -> Table:
    rows = json_rows(resolve(source.files or ()), source.encoding)
    return _table([rows[i] for i in _split(source.split, "train", len(rows))])


def _lent(source: SourceConfig, columns: ColumnsConfig) -> Table:
    rows = borrowed()
    return _table([rows[i] for i in _split(source.split, "train", len(rows))])


def _table(rows: Sequence[Row], classes: Mapping[str, tuple[str, ...]] | None = None) -> Table:
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    return Table(names, len(rows), lambda name: [row.get(name) for row in rows], classes or {})


def _split(spec: str, name: str, size: int) -> Sequence[int]:
    """Row numbers that a Hugging Face split expression selects from one split called ``name``."""
    if spec == name:
        return range(size)
    import datasets

    try:
        parts = datasets.ReadInstruction.from_spec(spec).to_absolute({name: size})
    except (ValueError, AssertionError) as error:
        problem = f"split {spec!r} cannot be used: {one_line(error)} Use {name!r} or a part of it, "
        raise DataError([problem + f"such as '{name}[:80%]'"]) from None
    return [row for part in parts for row in range(part.from_ or 0, min(part.to or size, size))]


def _parquet(source: SourceConfig, columns: ColumnsConfig) -> Table:
    import datasets
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]
    from datasets.table import InMemoryTable

    tables = []
    for file in resolve(source.files or ()):
        with reading(file):
            tables.append(pq.ParquetFile(file).read())
        names = tables[-1].column_names
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise DataError([f"{file!r} names columns twice: {named(twice)}"])
    try:
        table = pa.concat_tables(tables)
    except pa.ArrowInvalid as error:
        raise DataError([f"columns of the files differ ({one_line(error)})"]) from None
    rows = _split(source.split, "train", table.num_rows)
    return _dataset(datasets.Dataset(InMemoryTable(table)).select(rows))


def _hub(source: SourceConfig, columns: ColumnsConfig) -> Table:
    import datasets

    # A local data set may be private, so its cache lies in a folder that is removed.
    local = Path(source.name or "").is_dir()
    unreachable = ""
    try:
        with (
            _quiet(),
            scratch() as folder,
            nullcontext("") if local else hub_in_reach() as unreachable,
        ):
            dataset = datasets.load_dataset(
                source.name,
                source.subset,
                split=source.split,
                cache_dir=str(folder) if local else None,
                keep_in_memory=True if local else None,
            )
    except Exception as error:  # whatever the hub, the network or a builder raises
        what = f"data set {source.name!r}, split {source.split!r}"
        raise DataError([f"cannot load {what} ({unreachable or one_line(error)})"]) from None
    return replace(_dataset(dataset), guesses=dataset.info.builder_name or "")


@contextmanager
def _quiet() -> Iterator[None]:
    """Disable the progress bars of datasets."""
    import datasets

    disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            datasets.enable_progress_bars()


def _dataset(dataset: Any) -> Table:
    """A Hugging Face data set as a table; class numbers become names, images stay encoded."""
    import datasets

    features = dataset.features
    classes = {
        name: tuple(feature.names)
        for name, feature in features.items()
        if isinstance(feature, datasets.ClassLabel)
    }

    def column(name: str) -> Sequence[Any]:
        if isinstance(features[name], datasets.Image):
            encoded = dataset.cast_column(name, datasets.Image(decode=False))
            return encoded[name]  # type: ignore[no-any-return]  # a lazy sequence
        values: list[Any] = dataset[name][:]
        if name in classes:
            names = dict(enumerate(classes[name]))
            return [names.get(value) for value in values]
        return values

    return Table(tuple(features), len(dataset), column, classes)


def _image_folder(source: SourceConfig, columns: ColumnsConfig) -> Table:
    """Images in directories: the label of an image is the name of its directory.

    If a directory has a sub-directory named as the split (``train``), that one is read. A file
    ``metadata.csv`` or ``metadata.jsonl`` in an image's directory or above gives it more columns
    by ``file_name``; one may be the label. If there is metadata, it must name every image once,
    and only images that exist. Any other file is a problem. Links to directories are followed.
    """
    split = re.split(r"[\[+]", source.split)[0]
    named_files = resolve(source.files or (), directories=True)
    inside = [str(Path(file) / split) for file in named_files]
    inner = [file for file in inside if Path(file).is_dir()]
    if not inner and split != "train":
        raise DataError([f"split {split!r} does not exist: no directory {named(inside)}"])
    if inner and len(inner) < len(named_files):
        without = [file for file, one in zip(named_files, inside, strict=True) if one not in inner]
        raise DataError([f"{named(without)}: no directory {split!r}, which the others have"])
    paths = [path for file in inner or named_files for path in _walk(Path(file))]
    images = sorted({path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES})
    if odd := sorted(str(path) for path in {*paths} - {*images} if path.name not in _NO_IMAGES):
        raise DataError(
            [
                f"files that are no images by their names: {named(odd)}. Give them one of the "
                f"endings {', '.join(IMAGE_SUFFIXES)}, or move them away"
            ]
        )
    roots = {Path(file) for file in inner or named_files}
    labels = {path: path.parent.name for path in images if path.parent not in roots}
    metadata = sorted({path for path in paths if path.name in METADATA_FILES})
    extra, told_in = _metadata(metadata, images)
    rows: list[Row] = [
        {columns.image: str(path), columns.label: labels.get(path)} | extra.get(path, {})
        for path in images
    ]
    labelled = {name for more in extra.values() for name in more}
    classes = {columns.label: tuple(sorted(set(labels.values())))}
    if columns.label in labelled:
        classes = {}
    kept = _split(source.split, split, len(rows))
    origins = [(str(images[i]), *told_in.get(images[i], ())) for i in kept]
    return replace(_table([rows[i] for i in kept], classes), origins=origins)


_NO_IMAGES = {*METADATA_FILES, *OF_SYSTEMS}


def _walk(path: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """All files below a directory, through links too; or the path itself if it is a file."""
    if not path.is_dir():
        yield path
        return
    place = path.resolve()
    if place in above:
        raise DataError([f"{str(path)!r} leads back to {str(place)!r}, which holds it: remove it"])
    with reading(str(path)):
        held = sorted(path.iterdir())
    for one in held:
        yield from _walk(one, (*above, place))


def _metadata(
    files: Sequence[Path], images: Sequence[Path]
) -> tuple[dict[Path, Row], dict[Path, tuple[str]]]:
    """The columns that metadata files give each image, and the metadata file of each."""
    found: dict[Path, Row] = {}
    told_in: dict[Path, tuple[str]] = {}
    twice: set[str] = set()
    problems: list[str] = []
    for file in files:
        for row in METADATA_FILES[file.name]([str(file)]):
            image = file.parent / str(row.get("file_name"))
            if image in found:
                twice.add(str(image))
            found[image], told_in[image] = row, (str(file),)
    known = set(images)
    if missing := sorted(str(path) for path in found if path not in known):
        problems.append(f"metadata names images that do not exist (file_name): {named(missing)}")
    if found and (bare := sorted(str(path) for path in images if path not in found)):
        problems.append(f"images without a row in metadata: {named(bare)}")
    if twice:
        problems.append(f"metadata names images twice: {named(sorted(twice))}")
    if problems:
        raise DataError(problems)
    return found, told_in


def _digits(source: SourceConfig, columns: ColumnsConfig) -> Table:
    """A split of scikit-learn's digits: 8×8×1 float32 from 0 to 1, by a permutation fixed here."""
    import numpy as np

    digits = _all_digits()
    name = source.split.partition("[")[0]
    start, stop = DIGITS_SPLITS[name]
    # RandomState's stream is frozen by numpy for good, Generator's is not.
    order = np.random.RandomState(0).permutation(len(digits.target))[start:stop]
    rows = order[list(_split(source.split, name, len(order)))]
    images = (digits.images[rows].astype(np.float32) / 16)[..., None]
    names = [str(digits.target[row]) for row in rows]
    values: dict[str, Sequence[Any]] = {columns.image: tuple(images), columns.label: names}
    return Table(
        names=tuple(values),
        size=len(rows),
        column=values.__getitem__,
        classes={columns.label: tuple(str(digit) for digit in range(10))},
        ids=tuple(f"digit-{row:04d}" for row in rows),
    )


@cache
def _all_digits() -> Any:
    """All of them, from a packed file of text, of which each source takes a part."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        problem = "format 'digits' needs scikit-learn: pip install 's3t[digits]'"
        raise DataError([problem]) from None
    return load_digits()


FORMATS: Mapping[str, Reader] = {
    "digits": _digits,
    "csv": _csv,
    "json": _json,
    "parquet": _parquet,
    "imagefolder": _image_folder,
    "hub": _hub,
    "rows": _lent,
}
"""The reader of each ``format`` of a source; a test holds the names and the config's equal."""
