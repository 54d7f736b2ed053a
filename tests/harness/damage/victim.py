"""A tiny run with deletions behind it, copied for each kind of damage, and tools to damage it.

    train ─► delete ─► delete ─► receipts, dead nodes, ledger kept aside ─► purge ─► the run

Whoever damages it is taken to know s3t as well as its authors: digests are made again where they
can be. What they lack is the private key that signs the log, and what was kept elsewhere.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from s3t.config import load_config
from s3t.ledger import Deletion, link
from s3t.ledger.log.chain import canonical
from s3t.plan import Plan
from s3t.run import RunDir
from s3t.run.deletion import delete
from s3t.run.opened import OpenRun
from s3t.run.purge import purge
from s3t.training.work.train import train
from s3t.types import NodeKey, Slot

__all__ = ["HIT", "Victim", "make_victim"]

CONFIG = Path(__file__).resolve().parents[3] / "configs" / "digits.yaml"
TINY = (
    "model.make.hidden=16",
    "model.make.heads=2",
    "model.adapt.steps=5",
    "stage.epochs=1",
    "stage.batch_size=32",
    "partition.shards=2",
    "partition.slices=2",
    "sequences.budget=2",
    "lora.targets=[q_proj]",
    "training.workers=1",
)
HIT: Slot = (0, 1)
"""The slot in which the deletions lie."""


@dataclass(frozen=True)
class Victim:
    """A run that is to be damaged.

    Attributes:
        root: its directory.
        aside: what was kept elsewhere: receipts, the public key, dead nodes, an old ledger.
    """

    root: Path
    aside: Path

    @property
    def run(self) -> RunDir:
        """The run."""
        return RunDir(self.root)

    @property
    def plan(self) -> Plan:
        """Its plan."""
        return Plan.from_json(self.run.plan_path.read_text(encoding="utf-8"))

    @property
    def living(self) -> list[NodeKey]:
        """Keys of its living nodes, those of stage 1 first."""
        nodes = sorted(self.plan.forest, key=lambda node: (node.stage, node.shard, node.prefix))
        return [n.key for n in nodes if not (n.shard == HIT[0] and HIT[1] in n.prefix)]

    @property
    def dead(self) -> list[Path]:
        """Files of dead nodes, as they were before the purge; the evidence of each beside it."""
        return sorted((self.aside / "nodes").glob("*.safetensors"))

    @property
    def public_key(self) -> Path:
        """Of the key that signs its log."""
        return self.aside / "public.pem"

    @property
    def receipt(self) -> Path:
        """The last receipt, as it was given out."""
        return self.aside / "receipt.json"

    def copy(self, root: Path) -> Victim:
        """The same run in another folder."""
        return replace(self, root=Path(shutil.copytree(self.root, root)))

    def file(self, key: NodeKey) -> Path:
        """A node's file."""
        return self.run.store.path(key)

    def evidence(self, key: NodeKey) -> Path:
        """The file of a node's evidence."""
        return self.file(key).with_suffix(".evidence")

    def flip(self, path: Path, at: int) -> None:
        """Flip a bit of a file."""
        content = bytearray(path.read_bytes())
        content[at] ^= 1
        path.write_bytes(content)

    def remake(
        self, key: NodeKey, change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]
    ) -> None:
        """Write a node with other tensors, all digests in its file made again."""
        meta, tensors = self.run.store.read(key)
        self.run.store.write(meta, change(dict(tensors)))

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run a statement on the ledger, by hand."""
        connection = sqlite3.connect(self.run.ledger_path)
        try:
            found = connection.execute(statement, values).fetchall()
            connection.commit()
            return found
        finally:
            connection.close()

    def removed(self, where: str, *values: Any) -> None:
        """Remove the one row that lies there: ``table WHERE …``."""
        count = self.sql(f"SELECT COUNT(*) FROM {where}", *values)[0][0]
        assert count == 1, f"{count} rows in {where}"
        self.sql(f"DELETE FROM {where}", *values)

    def stale(self, index: str, table: str, where: str) -> None:
        """Have an index lack the rows of its table that ``where`` names, as lost pages leave it."""
        described = "type, name, tbl_name, rootpage, sql"
        connection = sqlite3.connect(self.run.ledger_path, isolation_level=None)
        (of_index,) = connection.execute(
            f"SELECT {described} FROM sqlite_schema WHERE name = ?", [index]
        ).fetchall()
        rows = connection.execute(f"SELECT * FROM {table} WHERE {where}").fetchall()
        connection.execute(f"DELETE FROM {table} WHERE {where}")
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("DELETE FROM sqlite_schema WHERE name = ?", [index])
        _reread_schema(connection)
        connection.close()
        connection = sqlite3.connect(self.run.ledger_path, isolation_level=None)
        marks = ", ".join("?" * len(rows[0]))
        connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            f"INSERT INTO sqlite_schema ({described}) VALUES (?, ?, ?, ?, ?)", of_index
        )
        _reread_schema(connection)
        connection.close()

    def rewrite(self, number: int, change: Callable[[dict[str, Any]], Any]) -> None:
        """Change an entry of the log, and make the chain again from there on."""
        rows = self.sql("SELECT number, kind, at, body, previous FROM log ORDER BY number")
        previous = ""
        for at, kind, moment, text, before in rows:
            if at < number:
                continue
            body = json.loads(text)
            if at == number:
                change(body)
                previous = before
            own = link(at, kind, moment, canonical(body), previous)
            self.sql(
                "UPDATE log SET body = ?, previous = ?, digest = ? WHERE number = ?",
                canonical(body),
                previous,
                own,
                at,
            )
            previous = own
        self.acknowledge(at, own)

    def acknowledge(self, number: int, digest: str) -> None:
        """Tell an entry of the log as the last one, beside the ledger."""
        path = self.run.ledger_path
        path.with_name(f"{path.name}-lock").write_text(f"{number:020} {digest}\n")

    def delete(self, request: str) -> str:
        """Delete one more sample in the slot that is hit; returns its id."""
        return _delete(self.run, request)


def make_victim(folder: Path) -> Victim:
    """Train the run and bring it to the state in which it is damaged, in about ten seconds."""
    aside = folder / "aside"
    aside.mkdir(parents=True)
    _make_keys(aside)
    root = folder / "run"
    key = f"receipts.signing_key={aside / 'private.pem'}"
    train(load_config(CONFIG, [*TINY, key, f"output={root}"]))
    run = RunDir(root)
    for request in ("first", "second"):
        _delete(run, request)
    shutil.copytree(run.store.root, aside / "nodes")
    shutil.copy(run.ledger_path, aside / "ledger.db")
    with run.ledger() as ledger:
        receipt = json.dumps(ledger.receipt("second").to_dict())
    (aside / "receipt.json").write_text(receipt, encoding="utf-8")
    purge(run)
    for path in (aside / "nodes").iterdir():
        if (run.store.root / path.name).exists():
            path.unlink()
    return Victim(root, aside)


def _reread_schema(connection: sqlite3.Connection) -> None:
    version = connection.execute("PRAGMA schema_version").fetchone()[0]
    connection.execute(f"PRAGMA schema_version = {version + 1}")


def _delete(run: RunDir, request: str) -> str:
    with run.ledger() as ledger:
        entry = next(iter(ledger.samples(slot=HIT, deleted=False)))
    forgetting = OpenRun(run)
    try:
        delete(forgetting, Deletion([entry.sample_id], request_id=request))
    finally:
        forgetting.close()
    return entry.sample_id


def _make_keys(folder: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key, pem = Ed25519PrivateKey.generate(), serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "private.pem").write_bytes(private)
    (folder / "public.pem").write_bytes(public)
