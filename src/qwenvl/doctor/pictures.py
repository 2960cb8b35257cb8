"""Preprocessing: settings against the tower, drawn pictures against the rules written out, boxes back in pixels."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from qwenvl.doctor.case import Case, drawn_picture
from qwenvl.doctor.finding import Notes, Outcome

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
FILES = ("preprocessor_config.json", "video_preprocessor_config.json")
ADVICE = "fetch preprocessor_config.json again, or write the official values into it"
SIZES = ((1080, 2400), (640, 428), (1014, 1532), (368, 434), (1920, 1080), (4000, 3000), (10, 10), (252, 196))
FAR = 0.02  # between values of a pixel; one step of 255 is 0.014
LARGEST = 16384 * 28 * 28  # the official max_pixels


def settings(case: Case) -> Outcome:
    """Patches and merging are the tower's; mean, deviation and scale the official ones; limits make sense."""
    processor, tower, notes = case.load_processor(), case.config.vision_config, Notes()
    for name, part in (("pictures", processor.image_processor), ("videos", processor.video_processor)):
        for ours, theirs in (("patch_size", "patch_size"), ("temporal_patch_size", "temporal_patch_size"),
                             ("merge_size", "spatial_merge_size")):  # fmt: skip
            if getattr(part, ours) != getattr(tower, theirs):
                found = f"{name}: {ours} is {getattr(part, ours)}, the tower's {theirs} {getattr(tower, theirs)}"
                notes.fault(found, ADVICE)
        for field, official in (("image_mean", MEAN), ("image_std", STD), ("rescale_factor", (1 / 255,))):
            value = getattr(part, field)
            given = value if isinstance(value, tuple) else (value,)
            if max(abs(a - b) for a, b in zip(given, official, strict=True)) > 1e-4:
                notes.fault(f"{name}: {field} is {value}, the models were trained with {official}", ADVICE)
        for field in ("do_resize", "do_rescale", "do_normalize"):
            if not getattr(part, field):
                notes.fault(f"{name}: {field} is false, the models were trained with it", ADVICE)
        if part.max_pixels > LARGEST:
            notes.warn(f"{name}: max_pixels {part.max_pixels:,} is above the official {LARGEST:,}", "lower max_pixels")
        if part.max_pixels < part.factor**2:
            notes.fault(f"{name}: max_pixels {part.max_pixels:,} is less than one token's area", "raise max_pixels")
    for file in FILES:
        _check_spellings(case, file, notes)
    limits = processor.image_processor
    return notes.outcome(
        f"patches of {limits.patch_size}, merged {limits.merge_size} x {limits.merge_size}, official mean and "
        f"deviation, {limits.min_pixels:,} to {limits.max_pixels:,} pixels"
    )


def _check_spellings(case: Case, file: str, notes: Notes) -> None:
    """Limits stand in two spellings in some files, which must not contradict each other."""
    path = case.path / file
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    size = data.get("size") or {}
    for plain, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        if data.get(plain) is not None and size.get(edge) is not None and data[plain] != size[edge]:
            notes.warn(
                f"{file}: {plain} is {data[plain]:,}, but size[{edge!r}] {size[edge]:,}; {plain} counts",
                "set both to the same number",
            )


def pixels(case: Case) -> Outcome:
    """Sizes and tokens follow the rule, patches the documented order, values the official mean and deviation."""
    images, notes = case.load_processor().image_processor, Notes()
    tower = case.config.vision_config
    unit = tower.patch_size * tower.spatial_merge_size
    for width, height in SIZES:
        seen = images.target_size(height, width)
        rule = _rule(height, width, unit, images.min_pixels, images.max_pixels)
        if seen != rule:
            notes.fault(f"a picture of {width} x {height} is seen as {seen[::-1]}, by the rule as {rule[::-1]}", ADVICE)
    width, height = 9 * unit, 7 * unit
    picture = drawn_picture(width, height)
    inputs = images.preprocess([picture], sizes=[(height, width)])
    grid = [1, height // tower.patch_size, width // tower.patch_size]
    if inputs["image_grid_thw"].tolist() != [grid]:
        notes.fault(f"{width} x {height} has the grid {inputs['image_grid_thw'].tolist()}: expected {[grid]}", ADVICE)
        return notes.outcome("")
    wanted = _patches(np.asarray(picture), tower.patch_size, tower.spatial_merge_size, tower.temporal_patch_size)
    found = inputs["pixel_values"].numpy()
    if found.shape != wanted.shape:
        notes.fault(f"pixel_values has shape {found.shape}: expected {wanted.shape}", ADVICE)
    elif (far := np.abs(found - wanted)).max() > FAR:
        patch, number = divmod(int(far.argmax()), found.shape[1])
        notes.fault(
            f"values of pixels are off by up to {far.max():.2f} (patch {patch}, number {number}): mean, deviation or "
            "the order of patches is not the official one",
            ADVICE,
        )
    tokens = grid[1] * grid[2] // tower.spatial_merge_size**2
    return notes.outcome(
        f"{len(SIZES)} sizes by the rule; {width} x {height} gives {tokens} tokens with the right values"
    )


def _rule(height: int, width: int, unit: int, least: int, most: int) -> tuple[int, int]:
    """(height, width) that the model sees, by the published rule, written out once more."""
    tall, wide = (max(unit, round(side / unit) * unit) for side in (height, width))
    if tall * wide > most:
        ratio = math.sqrt(height * width / most)
        tall, wide = (max(unit, math.floor(side / ratio / unit) * unit) for side in (height, width))
    elif tall * wide < least:
        ratio = math.sqrt(least / (height * width))
        tall, wide = (math.ceil(side * ratio / unit) * unit for side in (height, width))
    return tall, wide


def _patches(rgb: np.ndarray, patch: int, merge: int, frames: int) -> np.ndarray:
    """Rows of values [P, 3 * frames * patch * patch]: blocks of merge x merge patches in reading order, each row one
    patch as channel, frame, y, x."""
    values = (rgb / 255 - np.array(MEAN)) / np.array(STD)
    block, rows = patch * merge, []
    for top in range(0, rgb.shape[0], block):
        for left in range(0, rgb.shape[1], block):
            for y in range(top, top + block, patch):
                for x in range(left, left + block, patch):
                    one = values[y : y + patch, x : x + patch].transpose(2, 0, 1)
                    rows.append(np.repeat(one[:, None], frames, axis=1).ravel())
    return np.stack(rows).astype(np.float32)


def boxes(case: Case) -> Outcome:
    """Corners of a known rectangle, written as the family writes them, come back in original pixels."""
    from qwenvl.tasks.grounding import Box, Point, parse_boxes
    from qwenvl.types import ImageSize

    images, notes, family = case.processor.image_processor, Notes(), case.config.model_type
    for width, height in SIZES:
        tall, wide = images.target_size(height, width)
        size = ImageSize(width, height, wide, tall)
        if family == "qwen2_vl":
            text = "<|object_ref_start|>cup<|object_ref_end|><|box_start|>(100,200),(500,800)<|box_end|>"
        else:
            corners = [round(part * side) for part, side in zip((0.1, 0.2, 0.5, 0.8), (wide, tall) * 2, strict=True)]
            text = json.dumps([{"bbox_2d": corners, "label": "cup"}])
        found = parse_boxes(text, size)
        wanted = (0.1 * width, 0.2 * height, 0.5 * width, 0.8 * height)
        good = len(found) == 1 and isinstance(found[0], Box)
        got = (found[0].x1, found[0].y1, found[0].x2, found[0].y2) if good and isinstance(found[0], Box) else ()
        step = max(width / wide, height / tall)  # what one pixel of the model is in the original
        if not good or max(abs(a - b) for a, b in zip(got, wanted, strict=True)) > step:
            notes.fault(f"{width} x {height}: {text} becomes {found}, expected {wanted}", "report it as a bug")
    beyond = parse_boxes('[{"point_2d": [100000, 5], "label": "x"}]', ImageSize(100, 50, 112, 56))
    if family != "qwen2_vl" and not (len(beyond) == 1 and isinstance(beyond[0], Point) and beyond[0].x <= 100):
        notes.fault(f"a point beyond the picture becomes {beyond}: expected it at the border", "report it as a bug")
    return notes.outcome(f"{len(SIZES)} sizes: corners come back to within a pixel of what the model sees")
