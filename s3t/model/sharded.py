"""A base's layers divided among processes, each of which holds 1/N of their weights.

    rank 0   rows 0 … k−1 of every weight  ┐   a layer is gathered before its forward and its
    rank 1   rows k … 2k−1                 ┘   backward pass, and freed again afterwards

How: torch's ``fully_shard`` (FSDP), one unit a layer, on the frozen weights alone. Adapters and
heads are no part of the layers' modules, so every process has all of them. Modules around the
layers (embeddings, norms, a language model's head) are not divided.

Invariant: gathered again, the parts are the base, byte for byte. Its fingerprint proves that when
it is divided, and whenever the base's bytes are proved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

__all__ = ["Gathered", "local", "shard_layers"]


class Gathered(Mapping[str, Tensor]):
    """Tensors of a sharded base as they were, each put together when it is asked for.

    All processes must ask for the same ones in the same order.

    Args:
        tensors: by name; divided ones among them.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def shard_layers(
    layers: Sequence[nn.Module], state: Mapping[str, Tensor], mesh: DeviceMesh
) -> dict[str, Tensor]:
    """Divide the layers, in place, one after the other; returns the state with its divided tensors.

    Args:
        layers: undivided, on the CPU; each lies undivided on the mesh's device for a moment.
        state: all tensors of the base, those of the layers among them, as the modules hold them.
        mesh: the processes.
    """
    divided = dict(state)
    names = {id(tensor): name for name, tensor in state.items()}
    for layer in layers:
        held = [
            (names.get(id(tensor)), module, own, place)
            for module in layer.modules()
            for place in ("_parameters", "_buffers")
            for own, tensor in getattr(module, place).items()
        ]
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        for name, module, own, place in held:
            if name is not None:
                divided[name] = getattr(module, place)[own]
    return divided


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies in this process."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
