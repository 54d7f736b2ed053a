"""Which data a run has, and how rows are read."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from s3t.config.section import Positive, Section

__all__ = [
    "ColumnsConfig",
    "DataConfig",
    "PublicConfig",
    "SourceConfig",
]

DIGITS_SPLITS = ("public", "private", "test")


class SourceConfig(Section):
    """Where rows come from.

    ``format`` is one of ``digits`` (scikit-learn's 1,797 images, embedded), ``csv``, ``json``
    (JSON lines), ``parquet``, ``imagefolder`` and ``hub``. ``split`` takes Hugging Face split
    expressions such as ``train[:80%]``; ``digits`` has ``public``, ``private`` and ``test``.
    """

    format: Literal["digits", "csv", "json", "parquet", "imagefolder", "hub"]
    files: str | tuple[str, ...] | None = Field(None, description="path, glob or list (not hub)")
    name: str | None = Field(None, description="data set name on the hub, or a local data set")
    subset: str | None = Field(None, description="configuration name of a hub data set")
    split: str = "train"

    @model_validator(mode="after")
    def _complete(self) -> SourceConfig:
        if self.format == "hub" and not self.name:
            raise ValueError("format 'hub' needs name")
        if self.format not in ("digits", "hub") and not self.files:
            raise ValueError(f"format {self.format!r} needs files")
        if self.format == "digits" and self.split.partition("[")[0] not in DIGITS_SPLITS:
            raise ValueError(
                f"split {self.split!r} of digits does not exist: use public, private or test"
            )
        return self


class ColumnsConfig(Section):
    """Names of the columns. ``id`` is optional: without it an id is a content digest.

    A text to classify may be two: ``text_pair`` is the column of the second.

    A language model reads ``text``; or instructions: ``prompt`` and ``completion``, or
    ``messages``, a list of ``{role, content}`` as chat templates take them.
    """

    text: str = "text"
    text_pair: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    image: str = "image"
    label: str = "label"
    id: str | None = None

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
    """Data that is never deletable: for adapting the base, choosing among prefixes, testing."""

    adapt: SourceConfig | None = None
    validation: SourceConfig
    test: SourceConfig


class DataConfig(Section):
    """Private and public data, their columns, and how a row becomes a tensor."""

    private: SourceConfig
    public: PublicConfig
    columns: ColumnsConfig = ColumnsConfig()
    labels: tuple[str, ...] | None = Field(
        None, description="label names in order; without them the public data gives them"
    )
    max_length: Positive = Field(64, description="tokens per text, a multiple of 16")
    chat_template: str | None = Field(
        None,
        description="how messages become one text: 'base' for the tokenizer's own template, the "
        "path of a Jinja file, or the template itself; without it prompt and completion are joined",
    )
    completion_only: bool | None = Field(
        None, description="learn completions alone, not prompts; default: wherever there are some"
    )
    image_size: Positive | None = Field(None, description="pixels; by default the base's own")
    image_mean: tuple[float, ...] | None = None
    image_std: tuple[Annotated[float, Field(gt=0)], ...] | None = None

    @model_validator(mode="after")
    def _multiple(self) -> DataConfig:
        if self.max_length % 16:
            raise ValueError(f"max_length {self.max_length} is not a multiple of 16")
        if self.labels is not None and len(set(self.labels)) < len(self.labels):
            raise ValueError("labels holds a name twice")
        return self

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
