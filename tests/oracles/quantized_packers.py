"""Our readers of quantized checkpoints beside the libraries that write them: what they pack, we read, to the bit.

    python tests/oracles/quantized_packers.py

Compares with those of autoawq, gptqmodel and compressed_tensors that Python finds, and says which it did not find; none
is needed by the project or its tests. A source folder on PYTHONPATH is enough for the first two. Exit code 1 when
anything differs.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from qwenvl.checkpoint.published import published_tensors
from qwenvl.checkpoint.stored import entries_of
from unit import packers
from unit.packers import Values, natural, shuffled

Compared = tuple[str, dict[str, Any], dict[str, Tensor], Values, Tensor]  # the last: the library's own weight


def without_init(*names: str) -> None:
    """Packages whose modules are wanted, but not what their __init__ imports."""
    for name in names:
        spec = find_spec(name)
        assert spec is not None
        module = types.ModuleType(name)
        module.__path__ = list(spec.submodule_search_locations or ())
        module.__spec__ = spec
        sys.modules[name] = module


def linear_of(values: Values) -> nn.Linear:
    linear = nn.Linear(values.q.shape[1], values.q.shape[0], bias=False)
    linear.weight.data = values.weight()
    return linear


def autoawq() -> Iterator[Compared]:
    without_init("awq", "awq.modules", "awq.modules.linear", "awq.utils")
    gemm, gemv = import_module("awq.modules.linear.gemm"), import_module("awq.modules.linear.gemv")
    packing = import_module("awq.utils.packing_utils")
    for group in (128, 64, 32):
        v = packers.random_values(96, 384, 4, natural(384, group))
        zeros, settings = torch.from_numpy(v.zeros), {"quant_method": "awq", "bits": 4, "group_size": group}
        made = gemm.WQLinear_GEMM.from_linear(
            linear_of(v), 4, group, scales=v.scales.t().contiguous(), zeros=zeros.t().contiguous()
        )
        own = packing.dequantize_gemm(made.qweight, made.qzeros, made.scales, 4, group).t()
        yield f"gemm {group}", {**settings, "version": "gemm"}, dict(made.state_dict()), v, own
        made = gemv.WQLinear_GEMV.from_linear(linear_of(v), 4, group, scales=v.scales, zeros=zeros)
        yield f"gemv {group}", {**settings, "version": "gemv"}, dict(made.state_dict()), v, v.weight().half()


def gptqmodel() -> Iterator[Compared]:
    import_module("gptqmodel")
    kernel = import_module("gptqmodel.nn_modules.qlinear.torch").TorchLinear
    convert = import_module("gptqmodel.utils.model").convert_gptq_v2_to_v1_format_module
    meta = {"quantizer": ["gptqmodel:7.7.0"]}
    for bits, group, act, symmetric in itertools.product((4, 8), (128, 32, -1), (False, True), (True, False)):
        groups = shuffled(384, group) if act else natural(384, group)
        v = packers.random_values(64, 384, bits, groups, symmetric)
        made = kernel(bits, group, symmetric, act, 384, 64, False, dtype=torch.float16)
        g_idx = torch.from_numpy(groups).int()
        made.pack_original(linear_of(v), v.scales.clone(), torch.from_numpy(v.zeros).float(), g_idx)
        own = made.dequantize_weight().t()
        settings = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": act, "sym": symmetric}
        settings["meta"] = meta
        name = f"{bits} bits, group {group}, act-order {act}, symmetric {symmetric}"
        tensors = {leaf: getattr(made, leaf).clone() for leaf in ("qweight", "qzeros", "scales", "g_idx")}
        yield f"v2 {name}", {**settings, "checkpoint_format": "gptq_v2"}, tensors, v, own
        convert(made, types.SimpleNamespace(bits=bits, pack_dtype=torch.int32))
        yield f"v1 {name}", {**settings, "checkpoint_format": "gptq"}, {**tensors, "qzeros": made.qzeros}, v, own


def compressed_tensors() -> Iterator[Compared]:
    kinds = import_module("compressed_tensors.quantization")
    compressors = import_module("compressed_tensors.compressors")
    dtypes = torch.float16, torch.bfloat16
    for bits, group, symmetric, dtype in itertools.product((4, 8), (128, 32, -1), (True, False), dtypes):
        v = packers.random_values(40, 384, bits, natural(384, group), symmetric, dtype)
        arguments: dict[str, Any] = {"num_bits": bits, "type": "int", "symmetric": symmetric}
        arguments["strategy"] = "channel" if group == -1 else "group"
        if group > 0:
            arguments["group_size"] = group
        scheme = kinds.QuantizationScheme(targets=["Linear"], weights=kinds.QuantizationArgs(**arguments))
        state = {"weight": v.weight(), "weight_scale": v.scales}
        state["weight_zero_point"] = torch.from_numpy(v.zeros - 2 ** (bits - 1)).to(torch.int8)
        for form, name in (("pack-quantized", "Packed"), ("int-quantized", "Int"), ("naive-quantized", "Naive")):
            tool = getattr(compressors, f"{name}QuantizationCompressor")
            tensors = tool.compress(dict(state), scheme)
            own = tool.decompress(dict(tensors), scheme)["weight"]
            settings = packers.compressed_settings(form, **arguments)
            yield f"{form} {bits} bits, group {group}, symmetric {symmetric}, {dtype}", settings, tensors, v, own


def differences(case: Compared, folder: Path) -> list[str]:
    """What is not the same: the weight we read, the library's own, and the definition."""
    _, settings, tensors, values, own = case
    save_file({f"linear.{leaf}": x.contiguous() for leaf, x in tensors.items()}, folder / "model.safetensors")
    (ours,) = published_tensors(folder, settings, entries_of(folder))
    want = values.weight()
    found = {"plain": ours.plain(torch.float32), "packed": ours.packed().dequantize(torch.float32)}
    wrong = [name for name, weight in found.items() if not torch.equal(weight, want)]
    return wrong + ([] if torch.equal(found["plain"].to(own.dtype), own) else ["the library's own"])


def main() -> int:
    sources: list[Callable[[], Iterator[Compared]]] = [autoawq, gptqmodel, compressed_tensors]
    failed = 0
    for source in sources:
        try:
            cases = list(source())
        except ImportError as error:
            print(f"{source.__name__}: not compared, {error}")
            continue
        except AssertionError:
            print(f"{source.__name__}: not compared, it is not there")
            continue
        with tempfile.TemporaryDirectory() as folder:
            wrong = {case[0]: differences(case, Path(folder)) for case in cases}
        wrong = {name: found for name, found in wrong.items() if found}
        failed += len(wrong)
        print(f"{source.__name__}: {len(cases) - len(wrong)} of {len(cases)} the same to the bit")
        for name, found in wrong.items():
            print(f"    {name}: {', '.join(found)}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
