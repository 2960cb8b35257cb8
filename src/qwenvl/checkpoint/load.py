"""Folder -> model with its weights.

The model is built on the meta device, where parameters cost nothing. All headers are read and compared with it first,
so that a checkpoint which does not fit is refused, with everything that is wrong, before a byte of weights is read.
Then tensors go one by one to their dtype and device. On the CPU in the file's own dtype they stay mapped from the
file (privately: writing to them does not change it). Else they are copied COPY_BYTES at a time, and the file is
opened anew for each piece, as mapped pages that were read count as ours until it is closed. So peak memory is the
weights and little more. A weight that is to be quantized is mapped by itself, packed and dropped before the next is
read: the peak is the quantized model and one tensor.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from qwenvl.checkpoint.generation_config import GENERATION_NAME, GenerationConfig
from qwenvl.checkpoint.names import HEAD, module_name
from qwenvl.config import (
    CONFIG_NAME,
    Qwen2_5_VLConfig,
    Qwen2_5_VLTextConfig,
    Qwen2VLConfig,
    Qwen2VLTextConfig,
    load_config,
    read_config,
)
from qwenvl.model.backends import require_flash
from qwenvl.model.qwen_vl import Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration
from qwenvl.quantization import QuantizeOptions, check_device, choose, finish, options_of, swap

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
COPY_BYTES = 16 * 2**20
LISTED = 20
SPREADING = ("auto", "balanced", "balanced_low_0", "sequential")
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
KINDS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
MODELS = {
    Qwen2_5_VLConfig.model_type: Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig.model_type: Qwen2VLForConditionalGeneration,
}

Model = Qwen2_5_VLForConditionalGeneration | Qwen2VLForConditionalGeneration


class CheckpointError(ValueError):
    """A folder that cannot be loaded; the message says what is wrong with which file."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: where it lies, and what the header says of it."""

    path: Path
    key: str
    shape: tuple[int, ...]
    kind: str  # the header's name of the dtype

    @property
    def dtype(self) -> torch.dtype:
        return KINDS[self.kind]

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def load_model(
    folder: str | Path,
    dtype: str | torch.dtype | None = "auto",
    attn_implementation: str = "sdpa",
    device: str | torch.device = "cpu",
    on_progress: Callable[[int, int], None] | None = None,
    quantize: str | QuantizeOptions | None = None,
) -> Model:
    """The model in `folder`, in eval mode on `device`, with every weight loaded.

    dtype: "auto" or None takes that of config.json, or of the files where it says none; else "float32", "bfloat16",
    "float16" or the torch.dtype. on_progress(bytes done, bytes in all) is called after every tensor.
    quantize: "int8", "int4", or the scheme of every part; on the CPU only. Activations stay in `dtype`.
    Raises ValueError for a wrong argument or config.json, CheckpointError for files that do not fit it.
    """
    return load_folder(
        None, Path(folder), dtype, attn_implementation, device_of(device), on_progress, quantize=quantize
    )


class _NoInit(TorchFunctionMode):
    """Leaves out torch.nn.init: weights are read over it anyway, and random numbers on the meta device pull in
    torch._dynamo, which costs as long as `import torch`."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def load_folder(
    kind: type[nn.Module] | None,
    folder: Path,
    dtype: str | torch.dtype | None,
    attn_implementation: str,
    device: torch.device,
    on_progress: Callable[[int, int], None] | None = None,
    adapt: Callable[[Any], Any] | None = None,
    quantize: str | QuantizeOptions | None = None,
) -> Model:
    """load_model for a model of class `kind` (None: the class of the checkpoint's family). adapt: the configuration of
    the folder -> the one to build from."""
    options = None if quantize is None else options_of(quantize)
    if options is not None:
        check_device(device)
    config = _config(kind, folder) if adapt is None else adapt(_config(kind, folder))
    prefix: str = getattr(kind, "weights_prefix", "")  # of a bare model, which is a part of the whole
    entries = [entry for entry in _entries(folder) if (module_name(entry.key) or "").startswith(prefix)]
    chosen = _dtype(dtype, config.dtype, entries)
    if attn_implementation == "flash_attention_2":
        require_flash(chosen, device)
    with torch.device("meta"), _NoInit():
        model = cast(type[Model], kind or MODELS[config.model_type])(config.replace(dtype=chosen), attn_implementation)
    slots = {prefix + name: slot for name, slot in model.state_dict(keep_vars=True).items()}
    schemes = {} if options is None else choose({name: slot.shape for name, slot in slots.items()}, options)
    if config.tie_word_embeddings:
        slots.pop(HEAD, None)
    wanted = _match(folder, {name: tuple(slot.shape) for name, slot in slots.items()}, entries)
    total, done = sum(entry.nbytes for entry in wanted.values()), 0
    for name, tensor in _read(wanted, chosen, device, {f"{module}.weight" for module in schemes}):
        module, _, leaf = name.removeprefix(prefix).rpartition(".")
        if leaf == "weight" and prefix + module in schemes:
            swap(model, module, tensor, schemes[prefix + module], chosen)
        else:
            setattr(model.get_submodule(module), leaf, nn.Parameter(tensor, slots[name].requires_grad))
        del tensor  # before the next one is read
        done += wanted[name].nbytes
        if on_progress is not None:
            on_progress(done, total)
    model.tie_weights()
    if options is not None:
        finish(model, options, schemes, sum(torch.Size(e.shape).numel() for e in wanted.values()) * chosen.itemsize)
    assert not any(slot.is_meta for slot in (*model.parameters(), *model.buffers())), "a weight was left out"
    settings = folder / GENERATION_NAME
    model.generation_config = GenerationConfig.from_file(settings) if settings.is_file() else GenerationConfig()
    return model.eval()


def _config(kind: Any, folder: Path) -> Any:
    """The configuration that a model of class `kind` (None: the class of its family) is built from."""
    text = kind is not None and issubclass(kind.config_class, Qwen2_5_VLTextConfig | Qwen2VLTextConfig)
    if text and read_config(folder).get("model_type") == kind.config_class.model_type:
        return kind.config_class.from_pretrained(folder)  # as the text model alone was saved
    config = load_config(folder)
    _check_config(folder, config)
    part = config.text_config if text else config
    if kind is not None and not isinstance(part, kind.config_class):
        family = MODELS[config.model_type].__name__
        raise ValueError(f"{folder} is a checkpoint for {family}, not for {kind.__name__}")
    return part


def _check_config(folder: Path, config: Qwen2_5_VLConfig | Qwen2VLConfig) -> None:
    """Refuse what config.json describes but cannot be run."""
    quantization = config.extra.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise CheckpointError(f"{folder} is quantized ({method}), which is not supported: give the full weights")
    out, hidden = config.vision_config.out_width, config.text_config.hidden_size
    if out != hidden:
        raise CheckpointError(f"{folder / CONFIG_NAME}: the tower gives width {out}, the text model takes {hidden}")


def device_of(given: str | int | torch.device | Mapping[str, Any] | None) -> torch.device:
    """The device of a device_map: a device, its number, {"": device}, or "auto", "balanced", "balanced_low_0" or
    "sequential", which all mean the whole model on the GPU if there is one, else on the CPU. One that cannot be used
    on this machine, and a map that spreads the model, is a ValueError."""
    if isinstance(given, Mapping):
        if set(given) != {""}:
            raise ValueError(f"device_map={dict(given)!r} spreads the model, which is not supported: give one device")
        return device_of(given[""])
    if given in SPREADING and given != "auto" and torch.accelerator.device_count() > 1:
        raise ValueError(f"device_map={given!r} spreads the model, which is not supported: give one device, or 'auto'")
    if given in SPREADING:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device("cpu" if given is None else given)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {given!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def dtype_named(given: str | torch.dtype) -> torch.dtype:
    """The torch.dtype of a name such as "bfloat16", or of itself. ValueError for one that models do not have."""
    name = str(given).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"dtype={name!r} is not known: expected auto or one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _dtype(given: str | torch.dtype | None, configured: str | None, entries: list[Entry]) -> torch.dtype:
    if given not in (None, "auto"):
        return dtype_named(cast(str, given))
    if configured:
        return DTYPES[configured]
    kinds = Counter(entry.dtype for entry in entries)
    return next(iter(kinds.most_common(1)), (torch.float32, 0))[0]


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}: expected an object of keys")
    return values


def _files(folder: Path) -> list[Path]:
    """The weight files: those that the index names, or the single one, or (repacks) all there are."""
    if (folder / INDEX_NAME).is_file():
        weights = _json(folder / INDEX_NAME).get("weight_map")
        if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights.values()):
            raise CheckpointError(f"{folder / INDEX_NAME} has no weight_map of tensors to files")
        names = sorted(set(weights.values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{folder} lacks {_some(missing)}, {len(missing)} of the {len(names)} files that {INDEX_NAME} names: "
                "fetch the checkpoint again"
            )
        return [folder / name for name in names]
    single = folder / SINGLE_NAME
    found = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    if not found:
        others = "; *.bin files are not read" if any(folder.glob("*.bin")) else ""
        raise CheckpointError(f"{folder} has no weights: expected {SINGLE_NAME} or {INDEX_NAME} with its files{others}")
    return found


def _entries(folder: Path) -> list[Entry]:
    """Every tensor of every file, from the headers alone."""
    out = []
    for path in _files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - not a dict
                    part = file.get_slice(key)
                    out.append(Entry(path, key, tuple(part.get_shape()), part.get_dtype()))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged or no safetensors file ({error}): fetch it again") from error
    odd = [f"{entry.key} ({entry.kind})" for entry in out if entry.kind not in KINDS]
    if odd:
        raise CheckpointError(f"{folder} has tensors of a kind that is not supported: {_some(odd)}")
    return out


def _match(folder: Path, shapes: dict[str, tuple[int, ...]], entries: list[Entry]) -> dict[str, Entry]:
    """The entry for each of the model's tensors; one error that lists all that does not fit."""
    found: dict[str, Entry] = {}
    twice, unexpected, misshaped = [], [], []
    for entry in entries:
        name = module_name(entry.key)
        if name is None or (name == HEAD and HEAD not in shapes):
            continue  # computed, or a copy of the embedding it is tied to
        if name not in shapes:
            unexpected.append(entry.key)
        elif name in found:
            twice.append(entry.key)
        elif entry.shape != shapes[name]:
            misshaped.append(f"{entry.key} {list(entry.shape)} for {list(shapes[name])}")
        found[name] = entry
    missing = [name for name in shapes if name not in found]
    kinds = {"missing": missing, "unexpected": unexpected, "misshaped": misshaped, "given twice": twice}
    problems = [f"{len(names)} {kind}: {_some(names)}" for kind, names in kinds.items() if names]
    if problems:
        raise CheckpointError(f"the tensors of {folder} do not fit its config.json: {'; '.join(problems)}")
    return found


def _some(names: list[str]) -> str:
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")


def _read(
    wanted: dict[str, Entry], dtype: torch.dtype, device: torch.device, passing: Set[str] = frozenset()
) -> Iterator[tuple[str, Tensor]]:
    """The tensors, in the order of their files, in `dtype` on `device`. passing: those that will not be kept; they
    come in the file's dtype, each mapped by itself, so that nothing of them stays."""
    for path in sorted({entry.path for entry in wanted.values()}):
        with safe_open(path, framework="pt") as file:
            for name, entry in wanted.items():
                if entry.path == path and name in passing:
                    yield name, _alone(entry)
                elif entry.path == path:
                    mapped = device.type == "cpu" and entry.dtype == dtype
                    yield name, file.get_tensor(entry.key) if mapped else _copied(entry, dtype, device)


def _alone(entry: Entry) -> Tensor:
    """One tensor in a mapping of its own, which ends with it."""
    with safe_open(entry.path, framework="pt") as file:
        return cast(Tensor, file.get_tensor(entry.key))


def _copied(entry: Entry, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One tensor, copied a few rows at a time."""
    out = torch.empty(entry.shape, dtype=dtype, device=device)
    rows = entry.shape[0] if entry.shape else 1
    step = max(1, rows * COPY_BYTES // max(1, entry.nbytes))
    for start in range(0, rows, step):
        with safe_open(entry.path, framework="pt") as file:
            if step >= rows:
                out.copy_(file.get_tensor(entry.key))
            else:
                out[start : start + step] = file.get_slice(entry.key)[start : start + step]
    return out
