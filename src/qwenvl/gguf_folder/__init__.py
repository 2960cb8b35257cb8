"""A pair of GGUF files (the text model and its vision tower, mmproj) -> a folder in the official layout.

header      a GGUF file's metadata and table of tensors, checked against its size
names       GGUF tensors -> the published tensors that they make, whole or in pieces
configs     metadata -> config.json, generation_config.json, preprocessor_config.json
vocabulary  metadata -> tokenizer.json, tokenizer_config.json, chat_template.json
find        resolve(name) -> a folder always: a name that stands for a GGUF file is unfolded
unfold      the two files -> a folder in the user's cache with all of these, and gguf.json, which names the files

In: paths. Out: a folder, and which bytes of which file make which tensor. Errors: ValueError that names the file.
The metadata are read here, not by the library `gguf`, which takes seconds for a large vocabulary. Does not know:
torch, the weights' values.
"""

from __future__ import annotations

from qwenvl.gguf_folder.find import resolve
from qwenvl.gguf_folder.header import Gguf, GgufTensor, read_gguf
from qwenvl.gguf_folder.names import Target, targets
from qwenvl.gguf_folder.unfold import PAIR_NAME, find_mmproj, pair_of, unfold

__all__ = [
    "PAIR_NAME", "Gguf", "GgufTensor", "Target", "find_mmproj", "pair_of", "read_gguf", "resolve", "targets", "unfold",
]  # fmt: skip
