"""What is asked of a run as a whole, open or not: train, plan, audit, repair, add.

    S3T.train(config) ─► a run directory ─► S3T.load(run), S3T.audit(run), S3T.repair(run), S3T.add

Invariant: nothing here needs a model that is loaded. Private rows that were given as objects are
lent for one call, and no copy is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from s3t.audit.findings import Audit
    from s3t.config import Config
    from s3t.run.opened import OpenRun
    from s3t.training.work.train import Report

__all__ = ["Commands"]


class Commands:
    """The commands of a run, as ``S3T`` has them."""

    _opened: OpenRun

    @property
    def root(self) -> Path:
        """The run directory."""
        return self._opened.run.root

    @staticmethod
    def train(
        config: str | Path | Mapping[str, Any] | Config | None = None,
        /,
        *overrides: str,
        **sections: Any,
    ) -> Report:
        """Train every node of a config's plan that is missing; the same call goes on.

        Args:
            config: the path of a YAML file, or its keys and values. Then ``data.private``,
                ``data.public`` and its parts may be rows themselves: a table (pandas, polars,
                pyarrow, datasets) or a list of dicts. Private rows are read for this call alone,
                and no copy of them is kept; public ones are written into the run.
            overrides: ``dotted.key=value``.
            sections: sections of the config, such as ``model={"base": "…"}``, in place of or over
                those of a mapping.

        Returns:
            what was done; ``run`` is the directory for ``S3T.load``.

        Raises:
            ConfigError, DataError, InputError: nothing was trained.
            S3TError: a stage diverged, or workers died; the same call goes on.
        """
        from s3t.training.start import trained

        return trained(config, overrides, sections)

    @staticmethod
    def plan(
        config: str | Path | Mapping[str, Any] | Config | None = None,
        /,
        *overrides: str,
        horizon: int | None = None,
        **sections: Any,
    ) -> dict[str, Any]:
        """What a config would train: slices, sequences, nodes and costs. Trains nothing.

        Args:
            config, overrides, sections: as ``train``.
            horizon: also what serves along so many deletions.

        Returns:
            what ``s3t plan --json`` prints.

        Raises:
            ConfigError, DataError, InputError: as ``train``.
        """
        from s3t.training.start import planned

        return planned(config, overrides, sections, horizon)

    @staticmethod
    def audit(
        run: str | Path,
        *,
        retrain: int | Literal["all"] | None = None,
        from_scratch: bool = False,
        public_key: str | Path | Sequence[str | Path] = (),
        receipts: Sequence[str | Path] = (),
        data: Any = None,
    ) -> Audit:
        """Judge every claim about a run by its files, as ``s3t audit`` does.

        Args:
            run, retrain, from_scratch, public_key, receipts: see ``s3t.audit.audit.audit``.
            data: the private rows of a run whose rows were given as objects, for ``retrain`` and
                ``from_scratch``.

        Raises:
            InputError: no run, or a key or receipt that cannot be used.
        """
        from s3t.audit.audit import audit
        from s3t.data.lending import lent

        with lent(data):
            return audit(
                run,
                retrain=retrain,
                from_scratch=from_scratch,
                public_key=public_key,
                receipts=receipts,
            )

    def repair(
        self: Commands | str | Path, launch: Sequence[str] = (), *, data: Any = None
    ) -> dict[str, Any]:
        """Plan the run again on what is left, train what is missing, purge what is dead.

        In a process of its own; this one goes on answering, and takes new nodes up as they come.
        ``S3T.repair("runs/x")`` repairs a run that is not open.

        Args:
            launch: options of ``accelerate launch``, such as ``("--num_processes", "2")``.
            data: the private rows of a run whose rows were given as objects.

        Returns:
            the report of the training, as ``s3t repair --json`` prints it.

        Raises:
            S3TError: what the repair ended with; the run serves what it did.
        """
        return _apart("repair", self, (), launch, data)

    def add(
        self: Commands | str | Path,
        files: Sequence[str | Path] = (),
        launch: Sequence[str] = (),
        *,
        data: Any = None,
    ) -> dict[str, Any]:
        """Take in the private rows that are new, and train the nodes that contain them.

        In a process of its own, as ``repair``. ``S3T.add("runs/x")`` adds to a run that is not
        open.

        Args:
            files: more files of private rows; they belong to the run's data from then on.
            launch: options of ``accelerate launch``.
            data: of a run whose rows were given as objects: all of them, old and new.

        Returns:
            the report of the training, as ``s3t add --json`` prints it.

        Raises:
            S3TError: what it ended with; the run serves what it did.
        """
        return _apart("add", self, files, launch, data)


def _apart(
    what: str,
    run: Commands | str | Path,
    files: Sequence[str | Path],
    launch: Sequence[str],
    data: Any,
) -> dict[str, Any]:
    from s3t.data.lending import lent
    from s3t.run import RunDir
    from s3t.run.repair import replan_apart

    root = run.root if isinstance(run, Commands) else RunDir.existing(run).root
    with lent(data):
        return replan_apart(what, root, files, launch)
