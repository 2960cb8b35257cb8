"""Quantized weights: a built model -> the same model with its linears packed in int8 or int4.

What is packed is chosen by the names of the tensors: every linear of the text layers, of the tower's blocks and
merger, and the head. Embedding, patch embedding, norms and biases stay as they are, and so do activations between
layers; each linear rounds its input to int8 by itself (kernels/quantized.py). A head that is tied to the embedding
gets a packed copy, and the embedding goes on serving lookups.

Loading packs each weight as it is read (checkpoint/load.py); quantize_model() does the same to a model in memory:

    model = load_model("Qwen2.5-VL-3B-Instruct", quantize="int4")
    print(model.quantization)

Knows neither files nor requests. The native kernel runs on the CPU; elsewhere every product unpacks its weight first. A
quantized model answers, it is not trained.
"""

from qwenvl.quantization.apply import Quantization, finish, quantize_model, weight_bytes
from qwenvl.quantization.configs import BitsAndBytesConfig, TorchAoConfig, options_of_config
from qwenvl.quantization.linear import QuantizedLinear, check_device, pack, swap
from qwenvl.quantization.schemes import INT4, INT8, WORDS, QuantizeOptions, Scheme, choose, options_of, packed_bytes

__all__ = [
    "INT4",
    "INT8",
    "WORDS",
    "BitsAndBytesConfig",
    "Quantization",
    "QuantizeOptions",
    "QuantizedLinear",
    "Scheme",
    "TorchAoConfig",
    "check_device",
    "choose",
    "finish",
    "options_of",
    "options_of_config",
    "pack",
    "packed_bytes",
    "quantize_model",
    "swap",
    "weight_bytes",
]
