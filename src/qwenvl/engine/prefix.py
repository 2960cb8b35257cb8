"""Keys of pages: a digest of everything that a page's keys and values depend on.

The tokens of the page, their positions (which tell the grids and the seconds of videos apart), the content of the
pictures whose tokens lie in it, and the key of the page before. Equal keys, equal content: prompts that only look alike
never share a page.
"""

from __future__ import annotations

import hashlib

import numpy as np

from .blocks import PAGE
from .request import Request


def page_keys(request: Request, tokens: int) -> list[bytes]:
    """The keys of the whole pages among the first `tokens` tokens of prompt and answer; none where the prompt was given
    as embeddings. What was computed once is kept on the request."""
    if request.prompt_embeds is not None:
        return []
    pages = tokens // PAGE
    while len(request.page_keys) < pages:
        request.page_keys.append(_key(request, len(request.page_keys)))
    return request.page_keys[:pages]


def _key(request: Request, page: int) -> bytes:
    start, stop = page * PAGE, (page + 1) * PAGE
    digest = hashlib.blake2b(request.page_keys[page - 1] if page else b"", digest_size=16)
    digest.update(np.asarray(request.token_ids(start, stop), dtype=np.int64).tobytes())
    digest.update(request.positions_of(start, stop).numpy().tobytes())
    for item in request.items:
        if item.start < stop and item.start + item.tokens > start:
            digest.update(f"{item.start - start} {item.content_hash}".encode())
    return digest.digest()
