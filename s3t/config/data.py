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
    """Where rows come from."""

    format: Literal["digits", "csv", "json", "parquet", "imagefolder", "hub"] = Field(
        description="digits: scikit-learn's 1,797 images; json: JSON lines; hub: Hugging Face"
    )
    files: str | tuple[str, ...] | None = Field(
        None, description="path, glob, or a list of them; not for digits and hub"
    )
    name: str | None = Field(None, description="data set name on the hub, or a local data set")
    subset: str | None = Field(None, description="configuration name of a hub data set")
    split: str = Field(
        "train",
        description="a split expression such as train[:80%]; of digits: public, private or test",
    )

    @model_validator(mode="after")
    def _complete(self) -> SourceConfig:
        if self.format == "hub" and not self.name:
            raise ValueError("format 'hub' needs name")
        if self.format in ("csv", "json", "parquet", "imagefolder") and not self.files:
            raise ValueError(f"format {self.format!r} needs files")
        if self.format == "digits" and self.split.partition("[")[0] not in DIGITS_SPLITS:
            raise ValueError(
                f"split {self.split!r} of digits does not exist: use public, private or test"
            )
        return self


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
    """Data that is never deletable: for adapting the base, choosing among prefixes, testing."""

    adapt: SourceConfig | None = Field(
        None, description="adapts the base, gives labels, a first head, clusters and quantiles"
    )
    validation: SourceConfig = Field(description="chooses among prefixes")
    test: SourceConfig = Field(description="what s3t evaluate measures on")


class DataConfig(Section):
    """Private and public data, their columns, and how a row becomes a tensor."""

    private: SourceConfig = Field(description="the samples that can be deleted")
    public: PublicConfig
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
