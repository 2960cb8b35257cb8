"""From what a user calls a model to the place where it lies.

find         resolve(name) -> a folder, or a GGUF file: one given, the bundled model, or one fetched
huggingface  from the Hugging Face hub into its own cache, resumed where it was interrupted
modelscope   from ModelScope, through its library
transfer     one file over http, resumed, hashed while it arrives
gguf         which files of a repository make one quantized model
integrity    verify(folder) -> what is damaged; what was checked before is not checked again
reasons      any error of the libraries -> one line that says what to do
progress     how far it is, on a terminal

In: names, folders, files. Out: paths. Errors: ValueError in one line. Does not know: torch, any other room. The
libraries are imported when something has to be fetched.
"""

from __future__ import annotations

from qwenvl.hub.find import DEMO, PROCESSOR_FILES, demo_folder, resolve
from qwenvl.hub.integrity import Problem, verify

__all__ = ["DEMO", "PROCESSOR_FILES", "Problem", "demo_folder", "resolve", "verify"]
