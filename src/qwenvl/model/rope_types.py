"""The kinds of rotary scaling: what a configuration's rope_scaling makes of the frequencies of a head.

default: none. linear: all frequencies divided by factor (positions squeezed). dynamic: theta grows with the length
of the request once that is above the trained one (NTK; original_max_position_embeddings, or
max_position_embeddings). yarn: slow frequencies divided by factor, fast ones kept, a ramp between beta_slow and
beta_fast turns over the trained length (arXiv 2309.00071). longrope: every frequency divided by a factor of its own,
long_factor for requests longer than the trained length, else short_factor (arXiv 2402.13753). llama3: as yarn, with
the ramp between low_freq_factor and high_freq_factor. yarn and longrope also scale cos and sin, which is a
temperature of the attention. mrope_section then shares the frequencies out as without scaling.

The length of a request, which dynamic and longrope ask for, is the largest of its positions + 1; requests that share
a batch do not see each other's. Cached keys keep the turn they were written with: an answer that grows past the
trained length goes on from keys turned for a shorter one, as in other implementations.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qwenvl.model.rope import inverse_frequencies, turn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qwenvl.config import Qwen2_5_VLTextConfig, Qwen2VLTextConfig

    TextConfig = Qwen2_5_VLTextConfig | Qwen2VLTextConfig

BY_LENGTH = ("dynamic", "longrope")  # kinds whose frequencies depend on how long the request is


def packed_rotation(
    positions: Tensor, config: TextConfig, lengths: Sequence[int], reach: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [T, 1, head_dim / 2], of a packed batch.

    positions: int64 [3, T]. lengths: tokens of each sequence, sum T. reach: how many positions each request takes,
    where that is known to be more than the largest of `positions` + 1: a prompt computed in chunks.
    """
    if config.rope_type not in BY_LENGTH:
        inverse, scaling = frequencies(config, None, positions.device)
        return turn(positions, inverse, config.mrope_section, scaling)
    ends = [int(part.max()) + 1 if part.numel() else 0 for part in positions.split(list(lengths), dim=1)]
    if reach is not None:
        ends = [max(a, b) for a, b in zip(ends, reach, strict=True)]
    found = {end: frequencies(config, end, positions.device) for end in set(ends)}
    scaling = next((scaling for _, scaling in found.values()), 1.0)  # the same for every length
    if len(found) == 1:
        return turn(positions, found[ends[0]][0], config.mrope_section, scaling)
    times = torch.tensor(lengths, device=positions.device)
    inverse = torch.stack([found[end][0] for end in ends]).repeat_interleave(times, dim=0)
    return turn(positions, inverse, config.mrope_section, scaling)


def frequencies(config: TextConfig, length: int | None, device: torch.device) -> tuple[Tensor, float]:
    """(angle per position of each frequency, float32 [head_dim / 2]; factor of cos and sin). length: positions of the
    request, for the kinds that depend on it; None = within the trained length."""
    scaling, kind = config.rope_scaling or {}, config.rope_type
    size, theta = config.head_dim, config.rope_theta
    if kind == "dynamic":
        trained = scaling.get("original_max_position_embeddings", config.max_position_embeddings)
        stretch = scaling["factor"] * max(length or 0, trained) / trained - (scaling["factor"] - 1)
        theta = theta * stretch ** (size / (size - 2))
    plain = inverse_frequencies(size, theta, device)
    if kind == "linear":
        return plain / scaling["factor"], 1.0
    if kind == "yarn":
        return _yarn(plain, size, theta, scaling), _yarn_scaling(scaling)
    if kind == "longrope":
        trained = scaling["original_max_position_embeddings"]
        chosen = scaling["long_factor" if length is not None and length > trained else "short_factor"]
        divisors = torch.tensor(chosen, dtype=torch.float32, device=device)
        return plain / divisors, _longrope_scaling(scaling, config.max_position_embeddings)
    if kind == "llama3":
        return _llama3(plain, scaling), 1.0
    return plain, 1.0


def _yarn(plain: Tensor, size: int, theta: float, scaling: dict[str, Any]) -> Tensor:
    trained = scaling["original_max_position_embeddings"]

    def place(turns: float) -> float:
        """The (fractional) index of the frequency that turns so often over the trained length."""
        return size * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = place(scaling.get("beta_fast", 32)), place(scaling.get("beta_slow", 1))
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    last = last + 0.001 if first == last else last  # a step and no ramp
    index = torch.arange(size // 2, dtype=torch.float32, device=plain.device)
    kept = 1 - ((index - first) / (last - first)).clamp(0, 1)
    return plain / scaling["factor"] * (1 - kept) + plain * kept


def _yarn_scaling(scaling: dict[str, Any]) -> float:
    if "attention_factor" in scaling:
        return float(scaling["attention_factor"])
    grown = 0.1 * math.log(scaling["factor"])
    if "mscale" in scaling and "mscale_all_dim" in scaling:
        return (scaling["mscale"] * grown + 1) / (scaling["mscale_all_dim"] * grown + 1)
    return grown + 1


def _longrope_scaling(scaling: dict[str, Any], max_positions: int) -> float:
    if "attention_factor" in scaling:
        return float(scaling["attention_factor"])
    trained = scaling["original_max_position_embeddings"]
    factor = scaling.get("factor", max_positions / trained)
    return math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0


def _llama3(plain: Tensor, scaling: dict[str, Any]) -> Tensor:
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * plain / (2 * math.pi)  # over the trained length
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return plain / scaling["factor"] * (1 - kept) + plain * kept
