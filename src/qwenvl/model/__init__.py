"""The model: packed tensors in, logits out.

In: PackedBatch (flat tokens, positions, sequence bounds, optional cache) and picture patches with their grids.
Out: float32 logits of the rows wanted, [V, D] vision embeddings, documented output objects.
Does not know: messages, files, tokenizers, HTTP, requests. Module names are the checkpoint's names.
"""
