"""What a process reads of a run, each part once: data, base, encoded rows.

    config ─► data ───────────────┬─► encoded rows ─┐
           ─► base and encoder ───┘                 ├─► a plan, and what training needs
    RUN/base, of a prepared run ─► base             ┘

The checks of a config, the preparation of its run, the training and the scoring in one process take
what they need from one ``RunInputs``. A part is read when it is first asked for.

Invariants: no row of a deleted sample is in here once ``leave_out`` was told of the sample. What is
taken from here to train is proved to be that of the plan (``load.load_prepared``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container
from dataclasses import replace
from pathlib import Path

from s3t.config import Config
from s3t.data import Data, PrivateData, label_names, load_all, load_public
from s3t.data.rows import LabelledRows
from s3t.errors import InputError
from s3t.model.base import Base
from s3t.model.inputs.encoders import ImageEncoder, TextEncoder
from s3t.model.loading import LoadedModel, build_base, load_model, save_model
from s3t.run import RunDir
from s3t.system.progress import taking_time
from s3t.training.node.rows import LabelledSet, encode_rows
from s3t.training.prepare.adapt import adapt_model
from s3t.training.prepare.prepared import Prepared
from s3t.training.prepare.recipe import blocks_of
from s3t.types import Digest

__all__ = ["RunInputs"]


class RunInputs:
    """Data, base and encoded rows of one config.

    Args:
        config: says what to read.
        base_folder: where a prepared run keeps its base; None for the base that the config names.
    """

    def __init__(self, config: Config, base_folder: Path | None = None) -> None:
        self.config, self._folder = config, base_folder
        self.prepared: Prepared | None = None
        """What ``load_prepared`` has made of it."""
        self._data: Data | None = None
        self._base: Base | None = None
        self._encoder: TextEncoder | ImageEncoder | None = None
        self._encoded: dict[int, tuple[LabelledRows, LabelledSet]] = {}
        self._scored_rows: Digest | None = None

    @classmethod
    def of(cls, run: RunDir, config: Config | None = None) -> RunInputs:
        """Of a prepared run: those of its config, or of another one, over the base that it has."""
        kept = run.base_path if run.base_path.is_dir() else None
        return cls(config or run.config(), kept)

    @property
    def data(self) -> Data:
        """All data, without the samples left out.

        Raises:
            DataError: every problem of them.
        """
        if self._data is None:
            with taking_time("reading the data"):
                self._data = load_all(self.config)
        return self._data

    @property
    def base(self) -> Base:
        """The frozen base.

        Raises:
            ConfigError: it has fewer layers than the config has slices.
            InputError: it cannot be loaded, or not be taken apart.
        """
        if self._base is None:
            loaded = load_model(self.config, self._folder)
            blocks_of(self.config, int(getattr(loaded.model.config, "num_hidden_layers", 0)))
            try:
                self._base, self._encoder = build_base(self.config, loaded), loaded.encoder
            except RuntimeError as error:
                raise _too_large(self.config, error) or error from None
        return self._base

    @property
    def encoder(self) -> TextEncoder | ImageEncoder:
        """The base's encoder of rows."""
        _ = self.base
        assert self._encoder is not None  # both are loaded together
        return self._encoder

    @property
    def adapt_rows(self) -> LabelledSet:
        """The public rows for the base and the public head, encoded."""
        assert self.data.adapt is not None  # the config was checked for it
        return self.encoded(self.data.adapt)

    @property
    def scored_rows(self) -> Digest:
        """Digest of the public rows that nodes are scored on."""
        if self._scored_rows is None:
            config, data = self.config, self._data
            rows = None if data is None else data.validation
            rows = rows or load_public(config, "validation", label_names(config))
            self._scored_rows = rows.digest()
        return self._scored_rows

    def encoded(self, rows: LabelledRows) -> LabelledSet:
        """Rows as tensors.

        Raises:
            DataError: rows that the encoder cannot take.
        """
        if id(rows) not in self._encoded:
            with taking_time(f"encoding {len(rows):,} rows"):
                self._encoded[id(rows)] = rows, encode_rows(self.encoder, rows)
        return self._encoded[id(rows)][1]

    def leave_out(self, gone: Container[str]) -> None:
        """Forget the rows of private samples whose ids are in ``gone``."""
        self.replace_private(self.data.private.without(gone))

    def replace_private(self, private: PrivateData) -> None:
        """Take these private samples in place of those that were read."""
        before = self.data.private.rows
        if private.rows is not before:
            self._encoded.pop(id(before), None)
        self._data = replace(self.data, private=private)

    def adapt_base(self, on_step: Callable[[int, int], None]) -> None:
        """Train the base on the public rows, as ``model.adapt`` says.

        Args:
            on_step: told after each step how many are done, and of how many.
        """
        adapt = self.config.model.adapt
        assert adapt is not None
        done, total = iter(range(1, adapt.steps + 1)), adapt.steps
        rows, classes, encoder = self.adapt_rows, len(self.data.labels), self.encoder
        model = self.base.put_together()
        self._base = None
        adapt_model(self.config, model, rows, classes, lambda: on_step(next(done), total))
        self._base = build_base(self.config, LoadedModel(model, encoder))

    def save_base(self, folder: Path) -> None:
        """Keep the base in transformers' format."""
        save_model(LoadedModel(self.base.model, self.encoder), folder, self.base.weights.tensors)

    def prove_base(self, fingerprint: Digest, run: RunDir) -> None:
        """Prove that the base is that of a plan; by its bytes again, if it was in use already.

        Raises:
            InputError: it is another one.
            IntegrityError: it was written to.
        """
        in_use = self._base is not None
        if self.base.fingerprint != fingerprint:
            raise InputError(
                f"model.base {self.config.model.base!r} is no longer the base that {run.root} was "
                "planned on: restore it, or start a new run with output=DIR"
            )
        if in_use:
            self.base.check_frozen(whole=True)

    def keep(self, prepared: Prepared) -> None:
        """Keep what was made of all this, and free the rest."""
        self.drop()
        self.prepared = prepared

    def drop(self) -> None:
        """Free all that was read, before other processes of this machine load it too."""
        if self._data is not None:
            _ = self.scored_rows  # asked for again at the end
        self.prepared = self._data = self._base = self._encoder = None
        self._encoded.clear()


def _too_large(config: Config, error: RuntimeError) -> InputError | None:
    """What to change where torch found no memory for one pass; None for any other error."""
    asked = re.search(r"tried to allocate ([\d.]+ ?\w+)", str(error))
    if asked is None:
        return None
    return InputError(
        f"data.max_length {config.data.max_length} needs more memory than there is for one text "
        f"({asked[1]} at once): lower it"
    )
