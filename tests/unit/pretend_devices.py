"""Devices that are not there: tensors that say where they lie, are refused beside tensors that lie elsewhere, and hold
their numbers on the CPU. With them, what runs on several devices is tested on a machine without any.

    with Devices():
        x = pretend(torch.ones(2), "ipu:0")
        x + torch.ones(2)  # RuntimeError: tensors on ipu:0 and cpu
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

KIND = "ipu"  # a name that torch knows and this project does not


class Pretend(Tensor):
    """A tensor on a device that is not there."""

    inner: Tensor
    place: torch.device

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device) -> Pretend:
        made = Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device="meta",
            dispatch_device=True,
        )  # fmt: skip
        made.inner, made.place = inner, device
        return made

    def tolist(self) -> Any:
        return self.inner.tolist()

    def item(self) -> Any:
        return self.inner.item()

    def __int__(self) -> int:
        return int(self.inner)

    def __bool__(self) -> bool:
        return bool(self.inner)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], Pretend):
                x, key = args[0], _key(*args[:2])
                if func is Tensor.__getitem__:
                    return Pretend(x.inner[key], x.device)
                x.inner[key] = args[2].inner if isinstance(args[2], Pretend) else args[2]
                return None
            if func is Tensor.copy_:
                return _written(*args)
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"Pretend({self.inner!r}, {self.device})"


class Devices(TorchDispatchMode):
    """Makes and checks Pretend tensors."""

    def __enter__(self) -> Any:
        real = torch.tensor
        self._patch = mock.patch(
            "torch.tensor", lambda data, device=None, **more: real(data, **more).to(device or "cpu")
        )
        self._patch.start()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patch.stop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def pretend(x: Tensor, device: str | torch.device) -> Tensor:
    return Pretend(x.detach(), torch.device(device))


def _written(x: Tensor, value: Any) -> Tensor:
    """x with the numbers of value, which may lie anywhere."""
    plain = value.inner if isinstance(value, Pretend) else value
    (x.inner if isinstance(x, Pretend) else x).copy_(torch.as_tensor(plain))
    return x


def _key(x: Tensor, key: Any) -> Any:
    """The key of x[key] with plain indices, which may lie where x does or on the CPU."""

    def one(part: Any) -> Any:
        if isinstance(part, Pretend) and part.device != x.device:
            raise RuntimeError(f"indexing: tensors on {part.device} and {x.device}")
        return part.inner if isinstance(part, Pretend) else part

    return tuple(map(one, key)) if isinstance(key, tuple) else one(key)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func is torch.ops.prim.device.default:
        return args[0].place
    found: list[Tensor] = []
    tree_map(lambda x: found.append(x) if isinstance(x, Tensor) else None, (args, kwargs))
    target = kwargs.get("device")
    moving = func.overloadpacket is torch.ops.aten._to_copy or func.overloadpacket is torch.ops.aten.copy_
    # A number in a tensor may lie on the CPU, and so may an index that is written or read through.
    indexing = func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put_, torch.ops.aten.index_put)
    where = {x.device for x in found if not (x.device.type == "cpu" and (x.ndim == 0 or indexing))}
    if len(where) > 1 and not moving:
        raise RuntimeError(f"{func}: tensors on {' and '.join(sorted(map(str, where)))}")
    device = found[0].device if moving and found else next(iter(where), torch.device("cpu"))
    device = torch.device(target) if target is not None else device
    if "device" in kwargs and kwargs["device"] is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    outer = {id(x.inner): x for x in found if isinstance(x, Pretend)}
    plain_args, plain_kwargs = tree_map(lambda x: x.inner if isinstance(x, Pretend) else x, (args, kwargs))
    out = func(*plain_args, **plain_kwargs)

    def wrapped(x: Any) -> Any:
        if not isinstance(x, Tensor) or device.type != KIND:
            return x
        return outer[id(x)] if id(x) in outer else Pretend(x, device)

    return tree_map(wrapped, out)
