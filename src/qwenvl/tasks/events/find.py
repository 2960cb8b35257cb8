"""`events`: when things happen in a video, in seconds of the file."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from qwenvl.tasks.events.asking import Answers, Asker, Progress, prompt_of
from qwenvl.tasks.events.event import Event, merge_overlaps
from qwenvl.tasks.events.film import Film
from qwenvl.tasks.events.search import coarse_to_fine, in_turn
from qwenvl.tasks.events.view import FPS, View, view_of

if TYPE_CHECKING:
    from qwenvl.media import MediaPolicy
    from qwenvl.types import SamplingParams

COARSE_FPS = 1.0
MOST_CALLS = 160


def events(
    assistant: Answers,
    video: Any,
    query: str | None = None,
    *,
    start: float | None = None,
    end: float | None = None,
    fps: float | None = None,
    coarse_fps: float = COARSE_FPS,
    max_frames: int | None = None,
    exhaustive: bool = False,
    max_calls: int = MOST_CALLS,
    merge: bool = False,
    min_confidence: float = 0.0,
    prompt: str | None = None,
    sampling: SamplingParams | None = None,
    policy: MediaPolicy | None = None,
    on_progress: Progress | None = None,
) -> list[Event]:
    """What happens in a video and when, in seconds of the FILE, earliest first.

    video: what `read_video` takes: a path, an address, bytes, a Video, a list of frames. query: what to look for, such
    as "a man opens the door"; None: all that happens. start, end: the part of the file to look at, seconds; events
    are still told in seconds of the file. fps: frames a second that the model is shown at least (2, as recommended).
    max_frames: most frames of one look; None: what the checkpoint takes (768, or less).

    A video that fits into one look is shown at once. A longer one is searched for the query coarse to fine: windows at
    coarse_fps, then a closer look at what they found; with exhaustive=True, and without a query, in windows at fps, one
    after the other. max_calls: most looks in all; the rates are lowered where they would not do. on_progress(looks
    done, looks planned) is told after every few.
    merge: events that overlap become one. min_confidence: events below it are left out (those without a number stay).
    prompt: another wording of the question, with {query} where the query goes. sampling: how answers are drawn; its
    logprobs give the confidence.

    Raises ValueError for a video that cannot be read, a part that is not there, and numbers that make no sense.
    """
    check_options(query, prompt, start, end, fps, coarse_fps, max_frames, max_calls, min_confidence)
    question = prompt_of(query, prompt)
    view = view_of(assistant, max_frames)
    name = None if query is None else " ".join(query.split())
    asker = Asker(assistant, question, name, sampling, max_calls, on_progress)
    with Film(video, view, policy) as film:
        begin, stop = _part(film, start, end)
        rate = min(FPS if fps is None else fps, max(film.fps, 1e-6))
        if query is None or exhaustive or (stop - begin) * rate <= view.frames:
            found = in_turn(film, asker, begin, stop, rate, view.frames)
        else:
            found = coarse_to_fine(film, asker, begin, stop, min(coarse_fps, rate), rate, view.frames)
    found = [e for e in found if e.confidence is None or e.confidence >= min_confidence]
    return merge_overlaps(found) if merge else found


def check_video(video: Any, start: float | None = None, end: float | None = None) -> float:
    """Seconds of a video that can be read and has the part from `start` to `end`; ValueError otherwise. Costs no
    model, and no more than two small frames."""
    with Film(video, View()) as film:
        _part(film, start, end)
        return film.duration


def check_options(
    query: str | None = None,
    prompt: str | None = None,
    start: float | None = None,
    end: float | None = None,
    fps: float | None = None,
    coarse_fps: float = COARSE_FPS,
    max_frames: int | None = None,
    max_calls: int = MOST_CALLS,
    min_confidence: float = 0.0,
) -> None:
    """ValueError for what no video and no model could be asked with."""
    prompt_of(query, prompt)
    view_of(None, max_frames)
    for name, rate in (("fps", fps), ("coarse_fps", coarse_fps)):
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise ValueError(f"{name}={rate}: expected frames a second, above 0")
    for name, value in (("start", start), ("end", end)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}={value}: expected seconds, 0 or more")
    if max_calls < 1:
        raise ValueError(f"max_calls={max_calls}: expected 1 or more")
    if not 0 <= min_confidence <= 1:
        raise ValueError(f"min_confidence={min_confidence}: expected 0 to 1")


def _part(film: Film, start: float | None, end: float | None) -> tuple[float, float]:
    """Begin and end of the part to look at. ValueError unless it is in the film."""
    begin = film.begin if start is None else max(start, film.begin)
    stop = film.duration if end is None else min(end, film.duration)
    if begin >= stop:
        raise ValueError(
            f"start={start}, end={end} leave nothing of a video from {film.begin:.2f} to {film.duration:.2f} s: give "
            "start below end, within it"
        )
    return begin, stop
