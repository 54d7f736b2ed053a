"""Finds the files that a config names, and reads rows from text files.

Invariants: a csv cell stays text (``007`` is not 7, ``NA`` is not empty) and a JSON string stays a
string. A line that is not wholly understood, or that has a key twice, is a problem; no line is
skipped.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import glob
import gzip
import json
import lzma
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from s3t.errors import DataError, named

__all__ = [
    "DELIMITERS",
    "TWICE",
    "Row",
    "csv_rows",
    "json_rows",
    "numbered",
    "once",
    "one_line",
    "reading",
    "resolve",
]

_OPENERS: Mapping[str, Callable[..., IO[Any]]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}

Row = dict[str, Any]

DELIMITERS = (",", ";", "\t", "|")
"""What may separate the cells of a csv file, the likeliest first."""
_SNIFFED = 20
"""So many records are looked at to find it."""

TWICE = "keys occur twice"


def resolve(files: str | Sequence[str], directories: bool = False) -> list[str]:
    """The files that paths and globs name, relative to the current directory, each once.

    Raises:
        DataError: names all that do not exist, and directories unless they are allowed.
    """
    patterns = [files] if isinstance(files, str) else list(files)
    found: list[str] = []
    problems: list[str] = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir() and not directories:
            problems.append(f"{pattern!r} is a directory: name its files, or a glob")
        elif path.exists():
            found.append(pattern)
        elif not glob.has_magic(pattern):
            problems.append(f"file {pattern!r} does not exist{_looked(pattern)}")
        elif matches := sorted(glob.glob(pattern, recursive=True)):
            # a link that leads nowhere is kept, for the reader to refuse
            found.extend(match for match in matches if directories or not Path(match).is_dir())
        else:
            problems.append(f"no file matches {pattern!r}{_looked(pattern)}")
    if problems:
        raise DataError(problems)
    return list(dict.fromkeys(found))


def _looked(pattern: str) -> str:
    absolute = Path(pattern).is_absolute()
    return "" if absolute else f" (looked in {Path.cwd()}, and beside the config)"


def numbered(numbers: Sequence[int]) -> str:
    """Text with up to ten row or line numbers, and the number of the rest."""
    rest = len(numbers) - 10
    return ", ".join(map(str, numbers[:10])) + (f" and {rest} more" if rest > 0 else "")


def one_line(error: BaseException) -> str:
    """The root cause of an error of another package, as one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())[:300].rstrip(".") + "."


@contextmanager
def reading(file: str) -> Iterator[None]:
    """Turn an error while reading ``file`` into a DataError that names it."""
    try:
        yield
    except DataError:
        raise
    except UnicodeDecodeError as error:
        raise DataError([f"cannot read {file!r}: {_undecodable(file, error)}"]) from None
    except (OSError, EOFError, ValueError, RecursionError, csv.Error, lzma.LZMAError) as error:
        raise DataError([f"cannot read {file!r} ({one_line(error)})"]) from None


def _undecodable(file: str, error: UnicodeDecodeError) -> str:
    """The line that is not of the encoding, and what to do."""
    opener: Callable[..., IO[bytes]] = _OPENERS.get(Path(file).suffix.lower(), open)
    with opener(file, "rb") as stream:
        start = stream.read(2)
        stream.seek(0)
        for number, line in enumerate(stream, 1):
            try:
                line.decode(error.encoding)
            except UnicodeDecodeError as found:
                what = f"line {number} holds byte 0x{line[found.start]:02x}"
                break
        else:
            what = f"it holds byte 0x{error.object[error.start]:02x}"
    likely = "utf-16" if start in (b"\xff\xfe", b"\xfe\xff") else "cp1252 (Latin-1)"
    return (
        f"{what}, which is not {error.encoding}. Give this source its encoding, such as "
        f"encoding: {likely}, or save the file as UTF-8"
    )


def _open(file: str, encoding: str) -> IO[str]:
    # utf-8-sig also reads the byte-order mark that spreadsheets put first.
    opener: Callable[..., IO[str]] = _OPENERS.get(Path(file).suffix.lower(), open)
    plain = codecs.lookup(encoding).name
    return opener(file, "rt", encoding="utf-8-sig" if plain == "utf-8" else plain, newline="")


def csv_rows(
    files: Sequence[str], encoding: str = "utf-8", delimiter: str | None = None
) -> list[Row]:
    """Rows of csv files with the same columns (gz, bz2, xz too), every cell as text.

    Args:
        files: their paths.
        encoding: of their text.
        delimiter: between cells; default: found in the first lines of each file.

    Raises:
        DataError: a file that cannot be read, columns that differ from those of the first file
            (an absent one would pass for empty cells), or lines with too many or too few cells.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default refuses long documents
    texts = [_CsvText(file, encoding, delimiter or _delimiter(file, encoding)) for file in files]
    headers = [text.header() for text in texts]
    odd = [file for file, header in zip(files, headers, strict=True) if {*header} != {*headers[0]}]
    if odd:
        raise DataError([f"{named(odd)}: columns differ from those of {files[0]!r}"])
    return [row for text, header in zip(texts, headers, strict=True) for row in text.cells(header)]


def _delimiter(file: str, encoding: str) -> str:
    """The first of ``DELIMITERS`` by which the first lines have two cells or more, all as many.

    Of a .tsv file the tab is tried first. A comma if none is: a file of one column.
    """
    tabs = {".tsv", ".tab"} & {suffix.lower() for suffix in Path(file).suffixes}
    for delimiter in ("\t", *DELIMITERS) if tabs else DELIMITERS:
        try:
            with reading(file), _open(file, encoding) as stream:
                records = filter(None, csv.reader(stream, delimiter=delimiter, strict=True))
                counts = {len(cells) for cells in islice(records, _SNIFFED)}
        except DataError:  # reported when the rows are read
            continue
        if len(counts) == 1 and counts != {1}:
            return delimiter
    return ","


@dataclass(frozen=True, slots=True)
class _CsvText:
    """A csv file and how it is read."""

    file: str
    encoding: str
    delimiter: str

    def header(self) -> list[str]:
        """The names of the columns."""
        with reading(self.file), _open(self.file, self.encoding) as stream:
            header = next(csv.reader(stream, delimiter=self.delimiter), [])
        problem = ""
        if not header:
            problem = f"{self.file!r} is empty: its first line must name the columns"
        elif len(set(header)) < len(header):
            twice = sorted({name for name in header if header.count(name) > 1})
            problem = f"{self.file!r} names columns twice: {named(twice)}"
        if problem:
            raise DataError([problem])
        return header

    def cells(self, header: Sequence[str]) -> list[Row]:
        """The rows after the header."""
        rows: list[Row] = []
        ragged: list[int] = []
        with reading(self.file), _open(self.file, self.encoding) as stream:
            reader = csv.reader(stream, delimiter=self.delimiter, strict=True)
            next(reader)
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(header):
                    ragged.append(reader.line_num)
                rows.append(dict(zip(header, cells, strict=False)))
        if ragged:
            raise DataError(
                [
                    f"{self.file!r}: expected {len(header)} cells in lines {numbered(ragged)}, as "
                    f"in the first line. Cells are separated by {self.delimiter!r}: put quotes "
                    "around text that holds it, or give another delimiter"
                ]
            )
        return rows


def once(pairs: list[tuple[str, Any]]) -> Row:
    """``object_pairs_hook`` of ``json.loads`` that refuses a key that occurs twice.

    Raises:
        ValueError: names the keys.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        raise ValueError(f"{TWICE}: {named(twice)}")
    return found


def json_rows(files: Sequence[str], encoding: str = "utf-8") -> list[Row]:
    """Rows of files of JSON lines, or of one JSON list of objects each (gz, bz2, xz too).

    Raises:
        DataError: a file that cannot be read, or a line that is no JSON object or has a key twice.
    """
    return [row for file in files for row in _objects(file, encoding)]


def _objects(file: str, encoding: str) -> list[Row]:
    with reading(file), _open(file, encoding) as stream:
        text = stream.read()
    rows: list[Row] = []
    bad: list[int] = []
    if text.lstrip()[:1] == "[":
        with reading(file):
            items = list(enumerate(json.loads(text, object_pairs_hook=once), 1))
    else:
        items = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    for number, item in items:
        try:
            row = json.loads(item, object_pairs_hook=once) if isinstance(item, str) else item
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            bad.append(number)
    if bad:
        wrong = f"{file!r}: expected a JSON object, no key of it twice, in lines {numbered(bad)}"
        table = not rows and Path(file).suffix.lower() in (".csv", ".tsv", ".tab")
        advice = ": by its suffix it is a table, so leave format out" if table else ""
        raise DataError([wrong + advice])
    return rows
