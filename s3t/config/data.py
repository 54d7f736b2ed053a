"""Which data a run has, and how rows are read."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from s3t.config.section import Positive, Section

__all__ = [
    "ColumnsConfig",
    "DataConfig",
    "PublicConfig",
    "PublicPart",
    "SourceConfig",
]

DIGITS_SPLITS = ("public", "private", "test")

PublicPart = Literal["adapt", "validation", "test"]
"""What public rows are for."""

_NAMES = {"tsv": "csv", "jsonl": "json", "ndjson": "json"}
"""Other names of formats."""
_SUFFIXES = {
    **dict.fromkeys((".csv", ".tsv", ".tab"), "csv"),
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "json"),
    ".parquet": "parquet",
    "": "imagefolder",
}
"""The format that a file name ends with."""
_PACKED = (".gz", ".bz2", ".xz")
_TAB = ("\\t", "\t")


class SourceConfig(Section):
    """Where rows come from. Files of text may be packed as .gz, .bz2 or .xz."""

    format: Literal["digits", "csv", "json", "parquet", "imagefolder", "hub", "rows"] = Field(
        description="digits: scikit-learn's 1,797 images; tsv is csv with tabs; json (or jsonl, "
        "ndjson): JSON lines, or one list; hub: Hugging Face; rows: given to S3T.train as objects; "
        "default: by the suffix of the files, imagefolder without a suffix"
    )
    files: str | tuple[str, ...] | None = Field(
        None,
        description="path, glob, or a list of them, beside the config or in the current directory; "
        "not for digits and hub",
    )
    delimiter: Literal[",", ";", "tab", "|"] | None = Field(
        None, description="between cells of csv; default: found in the first lines"
    )
    encoding: str = Field("utf-8", description="of csv and json, such as cp1252 (Latin-1)")
    name: str | None = Field(None, description="data set name on the hub, or a local data set")
    subset: str | None = Field(None, description="configuration name of a hub data set")
    split: str = Field(
        "train",
        description="a split expression such as train[:80%]; of digits: public, private or test",
    )

    @model_validator(mode="before")
    @classmethod
    def _format_by_name(cls, given: Any) -> Any:
        """Fill in the format that the files' names tell, and the delimiter of tsv."""
        if not isinstance(given, dict):
            return given
        found = dict(given)
        files, format_ = found.get("files"), found.get("format")
        if format_ is None and isinstance(files, str | list | tuple) and files:
            format_ = _format_of([files] if isinstance(files, str) else files)
        if format_ == "tsv" and found.get("delimiter") is None:
            found["delimiter"] = "tab"
        if isinstance(format_, str):
            found["format"] = _NAMES.get(format_, format_)
        if found.get("delimiter") in _TAB:
            found["delimiter"] = "tab"
        return found

    @model_validator(mode="after")
    def _of_text(self) -> SourceConfig:
        if self.delimiter is not None and self.format != "csv":
            raise ValueError(f"delimiter is of csv: leave it out of format {self.format!r}")
        if self.encoding != "utf-8" and self.format not in ("csv", "json"):
            raise ValueError(f"encoding is of csv and json: leave it out of {self.format!r}")
        try:
            "".encode(self.encoding)
        except (LookupError, ValueError):
            raise ValueError(
                f"encoding {self.encoding!r} is unknown: use utf-8, cp1252 (Latin-1) or utf-16"
            ) from None
        return self

    @model_validator(mode="after")
    def _complete(self) -> SourceConfig:
        if self.format == "hub" and not self.name:
            raise ValueError("format 'hub' needs name")
        if self.format not in ("digits", "hub", "rows") and not self.files:
            raise ValueError(f"format {self.format!r} needs files")
        if self.format == "digits" and self.split.partition("[")[0] not in DIGITS_SPLITS:
            raise ValueError(
                f"split {self.split!r} of digits does not exist: use public, private or test"
            )
        return self


def _format_of(files: Any) -> str | None:
    """The format that the suffixes of files tell.

    Raises:
        ValueError: they tell none, or several.
    """
    suffixes = {_suffix(one) for one in files}
    known = {_SUFFIXES.get(suffix, "") for suffix in suffixes}
    if len(known) == 1 and "" not in known:
        return known.pop()
    shown = ", ".join(sorted(suffixes)) or "none"
    raise ValueError(
        f"the suffixes of files ({shown}) do not tell one format: give format, one of csv, tsv, "
        "json, jsonl, parquet or imagefolder"
    )


def _suffix(file: Any) -> str:
    path = PurePath(str(file))
    if path.suffix.lower() in _PACKED:
        path = path.with_suffix("")
    return "" if path.suffix in (".*", ".") else path.suffix.lower()


class ColumnsConfig(Section):
    """Names of the columns of a row.

    A language model reads ``text``, or instructions: ``prompt`` and ``completion``, or
    ``messages``.
    """

    text: str = Field("text", description="text to classify or to learn")
    text_pair: str | None = Field(None, description="second text, where two are classified as one")
    prompt: str | None = Field(None, description="prompt of an instruction; needs completion")
    completion: str | None = Field(None, description="answer to the prompt")
    messages: str | None = Field(
        None, description="conversation: a list of {role, content}, as chat templates take it"
    )
    image: str = Field("image", description="image to classify")
    label: str = Field("label", description="class of the row")
    id: str | None = Field(
        None, description="id of the sample; without a column it is a digest of the content"
    )

    @property
    def instructs(self) -> bool:
        """Whether rows are instructions: prompts with what is to be answered."""
        return self.prompt is not None or self.messages is not None

    @model_validator(mode="after")
    def _one_form(self) -> ColumnsConfig:
        if (self.prompt is None) != (self.completion is None):
            raise ValueError("prompt and completion go together: give both columns, or none")
        if self.prompt is not None and self.messages is not None:
            raise ValueError("give prompt and completion, or messages, not both")
        return self


class PublicConfig(Section):
    """Data that is never deletable: for adapting the base, choosing among prefixes, testing.

    Three sources; or one, whose keys stand here (``public: {files: public.csv}``), from which
    ``data.validation`` and ``data.test`` are cut.
    """

    adapt: SourceConfig | None = Field(
        None, description="adapts the base, gives labels, a first head, clusters and quantiles"
    )
    validation: SourceConfig | None = Field(None, description="chooses among prefixes")
    test: SourceConfig | None = Field(None, description="what s3t evaluate measures on")
    rows: SourceConfig | None = Field(
        None, description="one source in place of the three; its keys may stand in public itself"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_form(cls, given: Any) -> Any:
        """Take the keys of one source for the source ``rows``."""
        if not isinstance(given, dict):
            return given
        one = {*given} & {*SourceConfig.model_fields}
        several = [name for name in cls.model_fields if given.get(name) is not None]
        if (one and several) or ("rows" in several and len(several) > 1):
            raise ValueError(
                f"names one source ({', '.join(sorted(one or {'rows'}))}) and others "
                f"({', '.join(name for name in several if name != 'rows') or 'rows'}): give one "
                "source and cut data.validation and data.test from it, or give adapt, validation "
                "and test a source each"
            )
        return {"rows": given} if one else given

    @model_validator(mode="after")
    def _complete(self) -> PublicConfig:
        missing = [name for name in ("validation", "test") if getattr(self, name) is None]
        if self.rows is None and missing:
            raise ValueError(
                f"{_are_missing(missing)}: add a source, or give one source for all "
                "(data.public.files) and cut data.validation and data.test from it"
            )
        return self


def _are_missing(names: list[str]) -> str:
    return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} missing"


def _share(given: Any) -> Any:
    """A part of the rows: ``10%`` as 0.1."""
    if not isinstance(given, str):
        return given
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*", given)
    if found is None:
        raise ValueError("expected a part of the rows, such as 10% or 0.1")
    return float(found[1]) / 100


Share = Annotated[float, BeforeValidator(_share), Field(gt=0, lt=1)]


class DataConfig(Section):
    """Private and public data, their columns, and how a row becomes a tensor.

    Public rows may be cut from one source by a keyed hash of each row's person or content.
    """

    private: SourceConfig = Field(description="the samples that can be deleted")
    public: PublicConfig | None = Field(None, description="leave it out with cut_from: private")
    cut_from: Literal["public", "private"] = Field(
        "public",
        description="what adapt, validation and test are cut from; rows and persons cut from the "
        "private data are public, are never trained on as private, and cannot be forgotten",
    )
    adapt: Share | None = Field(
        None, description="part that adapts the base, such as 20%; only with cut_from: private"
    )
    validation: Share | None = Field(
        None, description="part of the rows cut aside as data.public.validation, such as 10%"
    )
    test: Share | None = Field(None, description="part of the rows cut aside as data.public.test")
    cut_files: str | tuple[str, ...] | None = Field(
        None,
        description="files of data.private that public rows are cut from; default: all. s3t add "
        "sets it: rows of later files that would be cut aside are left out",
    )
    columns: ColumnsConfig = ColumnsConfig()
    labels: tuple[str, ...] | None = Field(
        None, description="names of the classes, in order; default: those in the public data"
    )
    max_length: Positive = Field(64, description="tokens per text, a multiple of 16")
    chat_template: str | None = Field(
        None,
        description="how messages become one text: 'base' for the tokenizer's own template, the "
        "path of a Jinja file, or the template itself; without it prompt and completion are joined",
    )
    completion_only: bool | None = Field(
        None,
        description="learn answers alone, not prompts; default: true where rows have "
        "prompts or messages",
    )
    image_size: Positive | None = Field(None, description="pixels; by default the base's own")
    image_mean: tuple[float, ...] | None = Field(
        None, description="mean of each channel; by default the base's own"
    )
    image_std: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None, description="standard deviation of each channel; by default the base's own"
    )

    @model_validator(mode="after")
    def _multiple(self) -> DataConfig:
        if self.max_length % 16:
            raise ValueError(f"max_length {self.max_length} is not a multiple of 16")
        if self.labels is not None and len(set(self.labels)) < len(self.labels):
            raise ValueError("labels holds a name twice")
        return self

    @model_validator(mode="after")
    def _cuts(self) -> DataConfig:
        """Refuse parts to cut without a source for them, or a source without its parts."""
        given = [name for name in ("adapt", "validation", "test") if getattr(self, name)]
        aside = self.cut_from == "private"
        if aside and self.private.format == "rows":
            raise ValueError(
                "cut_from: private needs files, and private rows were given as Python objects: "
                "divide them before, and give the public ones as data.public"
            )
        if aside and self.public is not None:
            raise ValueError("cut_from: private has no data.public: leave one of them out")
        if not aside and self.public is None:
            raise ValueError(
                "public is missing: name its sources, or cut public rows from the private data "
                "with cut_from: private, validation: 10% and test: 10%"
            )
        if self.cut_files and not aside:
            raise ValueError("cut_files is of cut_from: private: leave it out")
        if self.cuts and (missing := [one for one in ("validation", "test") if one not in given]):
            raise ValueError(f"{_are_missing(missing)}: give a part to cut, such as 10%")
        if given and not self.cuts:
            raise ValueError(
                f"{', '.join(given)}: data.public names a source for each part already: leave out "
                "one of the two"
            )
        if self.adapt is not None and not aside:
            raise ValueError("adapt is what validation and test leave of data.public: leave it out")
        if sum(getattr(self, name) for name in given) >= 1:
            raise ValueError(f"{', '.join(given)} are cut from all rows, and leave none")
        return self

    @property
    def cuts(self) -> bool:
        """Whether public rows are cut from one source."""
        return self.public is None or self.public.rows is not None

    @property
    def adapts(self) -> bool:
        """Whether there are public rows to adapt the base on, ``data.public.adapt``."""
        if self.public is None:
            return self.adapt is not None
        return self.public.rows is not None or self.public.adapt is not None

    def public_source(self, part: PublicPart) -> tuple[str, SourceConfig] | None:
        """Where public rows come from: the section of the config and the source; None without."""
        if part == "adapt" and not self.adapts:
            return None
        if self.public is None:
            files = self.cut_files or self.private.files
            return "data.private", self.private.model_copy(update={"files": files})
        if self.public.rows is not None:
            return "data.public", self.public.rows
        source: SourceConfig = getattr(self.public, part)
        return f"data.public.{part}", source

    @model_validator(mode="after")
    def _instructions(self) -> DataConfig:
        if self.columns.messages is not None and self.chat_template is None:
            raise ValueError(
                "columns.messages needs chat_template: 'base' for that of model.base, or the path "
                "of a Jinja file"
            )
        if not self.columns.instructs:
            for name in ("chat_template", "completion_only"):
                if getattr(self, name):
                    raise ValueError(
                        f"{name} needs columns.prompt and .completion, or columns.messages"
                    )
        return self

    @property
    def learns_completions(self) -> bool:
        """Whether completions alone are learnt."""
        chosen = self.completion_only
        return self.columns.instructs if chosen is None else chosen
