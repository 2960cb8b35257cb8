"""Folder -> model with its weights.

The model is built on the meta device, where parameters cost nothing. All headers are read and compared with it first,
so that a checkpoint which does not fit is refused, with everything that is wrong, before a byte of weights is read.
Then tensors go one by one to their dtype and place (fill.py). On the CPU in the file's own dtype they stay mapped.
Weights that are packed in the files stay packed. A weight that is to be quantized is mapped by itself, packed and
dropped before the next is read. So peak memory is the weights and little more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from qwenvl.checkpoint.fill import LoadOptions, fill
from qwenvl.checkpoint.formats import stored_tensors
from qwenvl.checkpoint.generation_config import GENERATION_NAME, GenerationConfig
from qwenvl.checkpoint.names import HEAD
from qwenvl.checkpoint.placement import DISK, SPREADING, DeviceMap
from qwenvl.checkpoint.published import mlp_width
from qwenvl.checkpoint.stored import CheckpointError, Plain, Stored, some
from qwenvl.config import (
    CONFIG_NAME,
    Qwen2_5_VLConfig,
    Qwen2_5_VLTextConfig,
    Qwen2VLConfig,
    Qwen2VLTextConfig,
    load_config,
    read_config,
)
from qwenvl.model.qwen_vl import Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration
from qwenvl.quantization import QuantizeOptions, choose, options_of

UNPACKED = "none"  # in place of a word for quantize: weights that are packed in the files are unpacked
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
MODELS = {
    Qwen2_5_VLConfig.model_type: Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig.model_type: Qwen2VLForConditionalGeneration,
}

Model = Qwen2_5_VLForConditionalGeneration | Qwen2VLForConditionalGeneration


def load_model(
    folder: str | Path,
    dtype: str | torch.dtype | None = "auto",
    attn_implementation: str = "sdpa",
    device: DeviceMap = "cpu",
    on_progress: Callable[[int, int], None] | None = None,
    quantize: str | QuantizeOptions | None = None,
) -> Model:
    """The model in `folder`, in eval mode on `device`, with every weight loaded.

    dtype: "auto" or None takes that of config.json, or of the files where it says none (auto_dtype); else "float32",
    "bfloat16", "float16" or the torch.dtype. on_progress(bytes done, bytes in all) is called after every tensor.
    quantize: "int8", "int4", the scheme of every part, or "none" to unpack weights that are packed in the files.
    Activations stay in `dtype`. device: also what from_pretrained takes as a device_map.
    Raises ValueError for a wrong argument or config.json, CheckpointError for files that do not fit it.
    """
    options = LoadOptions(dtype, attn_implementation, device, quantize=quantize)
    return load_folder(None, Path(folder), options, on_progress)


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
    options: LoadOptions,
    on_progress: Callable[[int, int], None] | None = None,
    adapt: Callable[[Any], Any] | None = None,
) -> Model:
    """load_model for a model of class `kind` (None: the class of the checkpoint's family). adapt: the configuration of
    the folder -> the one to build from."""
    wishes = None if options.quantize in (None, UNPACKED) else options_of(cast(str, options.quantize))
    config = _config(kind, folder) if adapt is None else adapt(_config(kind, folder))
    prefix: str = getattr(kind, "weights_prefix", "")  # of a bare model, which is a part of the whole
    stored = [one for one in stored_tensors(folder) if (one.name or "").startswith(prefix)]
    packed = {one.name for one in stored if one.is_packed} - {None}
    if wishes is not None and packed:
        raise CheckpointError(
            f"{folder} is quantized already: leave quantize={options.quantize!r} out, or give {UNPACKED!r} to unpack it"
        )
    keep = set() if options.quantize == UNPACKED else packed
    if options.dtype in (None, "auto"):
        dtype = auto_dtype(config.dtype, stored, bool(keep) and _on_cpu(options.device_map))
    else:
        dtype = dtype_named(cast(str, options.dtype))
    model = _built(kind, _widened(config, stored), dtype, options)
    slots = {prefix + name: slot for name, slot in model.state_dict(keep_vars=True).items()}
    schemes = {} if wishes is None else choose({name: slot.shape for name, slot in slots.items()}, wishes)
    if config.tie_word_embeddings and HEAD not in keep:
        slots.pop(HEAD, None)
    wanted = _match(folder, {name: tuple(slot.shape) for name, slot in slots.items()}, stored)
    fill(model, wanted, schemes, {name for name in keep if name in wanted}, dtype, options, on_progress)
    settings = folder / GENERATION_NAME
    model.generation_config = GenerationConfig.from_file(settings) if settings.is_file() else GenerationConfig()
    return model.eval()


def _built(kind: Any, config: Any, dtype: torch.dtype, options: LoadOptions) -> Model:
    """The model on the meta device."""
    with torch.device("meta"), _NoInit():
        built = kind or MODELS[config.model_type]
        return cast(Model, built(config.replace(dtype=dtype), options.attn_implementation))


def _widened(config: Any, stored: list[Stored]) -> Any:
    """The configuration, with the width of the text MLP as quantized files have it padded."""
    others = any(not isinstance(one, Plain) for one in stored)
    width = mlp_width(config, {one.name or "": one.shape for one in stored}) if others else None
    return config if width is None else config.replace(intermediate_size=width)


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
    out, hidden = config.vision_config.out_width, config.text_config.hidden_size
    if out != hidden:
        raise CheckpointError(f"{folder / CONFIG_NAME}: the tower gives width {out}, the text model takes {hidden}")


def dtype_named(given: str | torch.dtype) -> torch.dtype:
    """The torch.dtype of a name such as "bfloat16", or of itself. ValueError for one that models do not have."""
    name = str(given).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"dtype={name!r} is not known: expected auto or one of {', '.join(DTYPES)}")
    return DTYPES[name]


def auto_dtype(configured: str | None, stored: Sequence[Stored], packed_on_cpu: bool) -> torch.dtype:
    """What "auto" means: the dtype of config.json, else the most frequent of the files. For packed weights on the CPU
    bfloat16 in place of float16, which AWQ and GPTQ checkpoints say: the kernels take it, and nothing there computes
    float16 at a bearable speed."""
    kinds = Counter(one.dtype for one in stored)
    frequent = next(iter(kinds.most_common(1)), (torch.float32, 0))[0]
    chosen = DTYPES[configured] if configured else frequent
    return torch.bfloat16 if packed_on_cpu and chosen == torch.float16 else chosen


def _on_cpu(device_map: DeviceMap) -> bool:
    """Whether a device_map means the CPU (and its disk) alone on this machine."""
    if isinstance(device_map, Mapping):
        return all(str(place) in ("cpu", DISK) for place in device_map.values())
    if device_map in SPREADING:
        return not torch.accelerator.is_available()
    return device_map is None or str(device_map) == "cpu"


def _match(folder: Path, shapes: dict[str, tuple[int, ...]], stored: list[Stored]) -> dict[str, Stored]:
    """What is stored for each of the model's tensors; one error that lists all that does not fit."""
    found: dict[str, Stored] = {}
    twice, unexpected, misshaped = [], [], []
    for one in stored:
        name = one.name
        if name is None or (name == HEAD and HEAD not in shapes):
            continue  # computed, or a copy of the embedding it is tied to
        if name not in shapes:
            unexpected.append(one.key)
        elif name in found:
            twice.append(one.key)
        elif one.shape != shapes[name]:
            misshaped.append(f"{one.key} {list(one.shape)} for {list(shapes[name])}")
        found[name] = one
    missing = [name for name in shapes if name not in found]
    kinds = {"missing": missing, "unexpected": unexpected, "misshaped": misshaped, "given twice": twice}
    problems = [f"{len(names)} {kind}: {some(names)}" for kind, names in kinds.items() if names]
    if problems:
        raise CheckpointError(f"the tensors of {folder} do not fit its config.json: {'; '.join(problems)}")
    return found
