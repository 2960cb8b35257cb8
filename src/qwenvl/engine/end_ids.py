"""Which ids end an answer, and which are never part of one."""

from __future__ import annotations

from typing import Any


def vision_ids(config: Any) -> tuple[int, ...]:
    """Ids that are never generated: pictures cannot be written, only shown."""
    return (
        config.image_token_id,
        config.video_token_id,
        config.vision_start_token_id,
        config.vision_end_token_id,
    )


def default_eos_ids(model: Any) -> tuple[int, ...]:
    """End-of-answer ids of a model: those of its generation_config (object or dict), else of its config."""
    settings = getattr(model, "generation_config", None)
    ids = settings.get("eos_token_id") if isinstance(settings, dict) else getattr(settings, "eos_token_id", None)
    if ids is None:
        ids = getattr(model.config, "eos_token_id", None)
    if ids is None:
        return ()
    return (ids,) if isinstance(ids, int) else tuple(ids)
