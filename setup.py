"""The native kernels are built at installation where that is possible; without them torch's own operators are used."""

import platform
from pathlib import Path

from setuptools import Extension, setup

FOLDER = Path("src/qwenvl/kernels/csrc")
X86 = platform.machine().lower() in ("x86_64", "amd64") and platform.system() != "Windows"
FLAGS = "-O3 -std=gnu11 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512bf16 -mavx512vnni -mfma -fno-math-errno -g0"

setup(
    ext_modules=[
        Extension(
            "qwenvl.kernels._native",
            sources=sorted(str(path) for path in FOLDER.glob("*.c")),
            depends=sorted(str(path) for path in FOLDER.glob("*.h")),
            extra_compile_args=FLAGS.split(),
            optional=True,
        )
    ]
    if X86
    else []
)
