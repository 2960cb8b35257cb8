"""Folder -> model with its weights.

The model is built on the meta device, where parameters cost nothing. All headers are read and compared with it first,
so that a checkpoint which does not fit is refused, with everything that is wrong, before a byte of weights is read.
Then tensors go one by one to their dtype and device; stored.py says how. On the CPU in the file's own dtype they stay
mapped. Weights that are packed in the files stay packed. A weight that is to be quantized is mapped by itself, packed
and dropped before the next is read. So peak memory is the weights and little more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from qwenvl.checkpoint.formats import stored_tensors
from qwenvl.checkpoint.generation_config import GENERATION_NAME, GenerationConfig
from qwenvl.checkpoint.names import HEAD
from qwenvl.checkpoint.stored import CheckpointError, Stored, some
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

UNPACKED = "none"  # in place of a word for quantize: weights that are packed in the files are unpacked
SPREADING = ("auto", "balanced", "balanced_low_0", "sequential")
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
    options = None if quantize in (None, UNPACKED) else options_of(cast(str, quantize))
    if options is not None:
        check_device(device)
    config = _config(kind, folder) if adapt is None else adapt(_config(kind, folder))
    prefix: str = getattr(kind, "weights_prefix", "")  # of a bare model, which is a part of the whole
    stored = [one for one in stored_tensors(folder) if (one.name or "").startswith(prefix)]
    if options is not None and any(one.is_packed for one in stored):
        raise CheckpointError(
            f"{folder} is quantized already: leave quantize={quantize!r} out, or give {UNPACKED!r} to unpack it"
        )
    chosen = _dtype(dtype, config.dtype, stored)
    if attn_implementation == "flash_attention_2":
        require_flash(chosen, device)
    with torch.device("meta"), _NoInit():
        model = cast(type[Model], kind or MODELS[config.model_type])(config.replace(dtype=chosen), attn_implementation)
    slots = {prefix + name: slot for name, slot in model.state_dict(keep_vars=True).items()}
    schemes = {} if options is None else choose({name: slot.shape for name, slot in slots.items()}, options)
    if config.tie_word_embeddings:
        slots.pop(HEAD, None)
    wanted = _match(folder, {name: tuple(slot.shape) for name, slot in slots.items()}, stored)
    total, done = sum(one.nbytes for one in wanted.values()), 0
    for name, one in sorted(wanted.items(), key=lambda item: item[1].path):
        module, _, leaf = name.removeprefix(prefix).rpartition(".")
        if leaf == "weight" and prefix + module in schemes:
            swap(model, module, one.passing(), schemes[prefix + module], chosen)
        else:
            setattr(
                model.get_submodule(module), leaf, nn.Parameter(one.load(chosen, device), slots[name].requires_grad)
            )
        done += one.nbytes
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


def _dtype(given: str | torch.dtype | None, configured: str | None, stored: list[Stored]) -> torch.dtype:
    if given not in (None, "auto"):
        return dtype_named(cast(str, given))
    if configured:
        return DTYPES[configured]
    kinds = Counter(one.dtype for one in stored)
    return next(iter(kinds.most_common(1)), (torch.float32, 0))[0]


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
