"""The weights of a frozen base, and the proof that nothing has written to them.

a write through torch   raises the tensor's version counter     ─┐
any other write         changes the bytes, and so their digest  ─┴─► IntegrityError
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from s3t.errors import IntegrityError
from s3t.model.sharded import Gathered, local, shard_layers
from s3t.store import tensors_digest

__all__ = ["FrozenWeights"]


class FrozenWeights:
    """All parameters and buffers of a model.

    Attributes:
        tensors: by name.
        digest: SHA-256 of them all.
    """

    def __init__(self, model: nn.Module) -> None:
        self.tensors: Mapping[str, Tensor] = model.state_dict(keep_vars=True)
        self.digest = tensors_digest(self.tensors)
        self._versions = self._counters()

    def accept(self) -> None:
        """Take the write counters as they are now for those of unwritten weights."""
        self._versions = self._counters()

    def to(self, device: torch.device) -> None:
        """Follow modules that were moved to a device in place."""
        self.tensors = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        self.accept()

    def shard(self, layers: Sequence[nn.Module], mesh: DeviceMesh) -> None:
        """Divide the layers' weights among the processes of a mesh, in place.

        Raises:
            IntegrityError: put together again, the parts are not the weights.
        """
        divided = shard_layers(layers, self.tensors, mesh)
        self.tensors = {
            name: tensor if tensor is not self.tensors[name] else tensor.to(mesh.device_type)
            for name, tensor in divided.items()
        }
        self.accept()
        if tensors_digest(Gathered(self.tensors)) != self.digest:
            raise IntegrityError("the base's divided layers are not the base: report this bug")

    def check(self, every_byte: bool) -> None:
        """Prove that none was written to.

        Args:
            every_byte: compare the digest of the bytes as well as torch's write counters.

        Raises:
            IntegrityError: one was.
        """
        if self._counters() != self._versions or any(
            tensor.requires_grad or tensor.grad is not None for tensor in self.tensors.values()
        ):
            raise IntegrityError("a frozen parameter of the base was written to: report this bug")
        if every_byte and tensors_digest(Gathered(self.tensors)) != self.digest:
            raise IntegrityError("the base's bytes differ from when it was loaded: report this bug")

    def _counters(self) -> list[int]:
        return [local(tensor)._version for tensor in self.tensors.values()]
