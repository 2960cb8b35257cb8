"""Kernels: tensors in, tensors out, fast on this processor.

Every function here has two bodies with one meaning: torch's operators, which run anywhere and carry gradients, and
native code (native.py, csrc/) for bfloat16 inference on processors with AVX-512 BF16 and VNNI. Which one runs is
decided by the tensors, call by call. Knows nothing of models, requests or files.
"""
