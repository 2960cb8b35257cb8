"""Grounding: a picture and what to find -> boxes and points in ORIGINAL upright pixels, with their confidence.

In: something that answers (an Assistant, or a plain function) and a picture. Out: Box and Point.
Does not know engines, nor how places are written (`tasks/answers/` does) or drawn.

    locate(assistant, "street.jpg", "traffic light")                 every one, as boxes
    locate(assistant, "street.jpg", ["car", "bus"], refine=True)     two things, each find looked at a second time
    locate(assistant, "screen.png", "search button", as_points=True)

Small pictures are enlarged: boxes of these models are best at 1,024 to 2,048 tokens a picture (the authors, in
ggml-org/llama.cpp #16842), and a picture of 640 x 480 has 391.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from qwenvl.tasks.answers import find_places, parse_boxes, with_confidence
from qwenvl.tasks.places import Box, Frame, Place, Point, overlap, places_to_dicts, without_repeats
from qwenvl.types import Completion, ImageSize, LoopRule, SamplingParams

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["LOCATE_PROMPT", "POINT_PROMPT", "Box", "Point", "locate", "parse_boxes", "places_of", "places_to_dicts"]

# The wording of the official cookbook; the bundled model learned it too.
LOCATE_PROMPT = "Outline the position of each {what} and output all the coordinates in JSON format."
POINT_PROMPT = "Point to the {what}, output its coordinates in JSON format."
TOKEN_PIXELS = 28 * 28  # of the picture that a token stands for
MIN_TOKENS = 1024
MAX_NEW_TOKENS = 4096  # some 100 places
# The same item again and again says nothing new, so a loop may be called one much sooner than in a document.
LOOP = LoopRule(tokens=256, copies=64, rows=8)

_ARTICLE = re.compile(r"^(?:the|an?|all|each|every)\s+(?=\S)", re.IGNORECASE)
_MARGIN = 0.5  # of a find's sides, shown around it at the second look
_SMALLEST_MARGIN = 14  # pixels of the original
_LARGEST_SHARE = 0.5  # of the picture: a crop above it shows nothing that the first look did not
_SAME = 0.5  # overlap above which two looks are at one thing


class Answered(Protocol):
    """What is needed of an answer: its text, and the sizes of the pictures asked about. An `Answer` has more, which is
    used where it is there: `raw`, `offsets` and `completion`."""

    @property
    def text(self) -> str: ...
    @property
    def sizes(self) -> list[ImageSize]: ...


@runtime_checkable
class Asked(Protocol):
    """What `locate` needs of an Assistant."""

    def ask_many(
        self,
        questions: Sequence[tuple[Sequence[Any], str]],
        sampling: SamplingParams | None = None,
        *,
        min_pixels: int | None = None,
    ) -> Sequence[Answered]: ...


PictureT = TypeVar("PictureT")


def locate(
    assistant: Asked | Callable[[list[PictureT], str], Answered],
    image: PictureT,
    what: str | Sequence[str],
    *,
    as_points: bool = False,
    refine: bool = False,
    min_tokens: int | None = MIN_TOKENS,
    confidence: bool = True,
    frame: Frame = "auto",
    sampling: SamplingParams | None = None,
) -> list[Place]:
    """Every `what` in the picture in its original pixels; an empty list if there is none.

    what: a thing in the singular, such as "red circle" (a leading "the" or "all" is dropped), or several, each asked
    for on its own; a place that the model gives no label has its thing's. image: whatever the assistant takes.
    as_points: ask for points; should the model write boxes, their centres are the points.
    refine: look again at each find, see `_refined`. min_tokens: enlarge smaller pictures to so many tokens, unless
    the checkpoint takes fewer than that; None = leave them as they are. confidence: as `answers.confidence` says.
    frame: what the model's numbers mean, where its form of writing does not say; "auto" knows it from the checkpoint.
    sampling: greedy unless given. An item that was written twice is given once.

    A function ask(pictures, question) in place of an assistant is asked as it is: min_tokens and confidence are the
    assistant's part. Raises ValueError for an empty `what`, for a video or several pictures, and whatever the
    assistant does.
    """
    check_one_picture(image)
    things = [what] if isinstance(what, str) else list(what)
    if not things or not all(thing.strip() for thing in things):
        raise ValueError("what to locate is empty: name a thing, for example 'red circle'")
    look = _Look(assistant, as_points, min_tokens, confidence, frame, sampling)
    places: list[Place] = []
    answers = look.ask([(image, thing) for thing in things])
    for thing, found in zip(things, answers, strict=True):
        named = [place if place.label else replace(place, label=_name(thing)) for place in found]
        places += _refined(look, image, thing, named) if refine else named
    return list(without_repeats(places))


def check_one_picture(image: Any) -> None:
    """ValueError for a video or a list, whose numbers would be places in no single picture."""
    from qwenvl.media.kinds import is_video

    if isinstance(image, list | tuple):
        raise ValueError(f"a list of {len(image)} was given: expected one picture; ask about each on its own")
    if is_video(image):
        name = image if isinstance(image, str | PathLike) else f"a {type(image).__name__}"
        raise ValueError(f"{name} is a video: expected a picture; ask about its frames, or use events")


def places_of(answer: Answered, picture: int = 0, frame: Frame = "auto") -> list[Place]:
    """The places in an answer, in original pixels of its picture of this index, with their confidence where the
    answer knows its log-probabilities."""
    size = answer.sizes[picture]
    completion: Completion | None = getattr(answer, "completion", None)
    if completion is None or completion.logprobs is None:
        return parse_boxes(getattr(answer, "raw", answer.text), size, frame)
    raw, offsets = answer.raw, answer.offsets  # type: ignore[attr-defined]  # an Answer
    return with_confidence(find_places(raw, size, frame), offsets, completion.logprobs)


@dataclass(frozen=True)
class _Look:
    """How pictures are looked at: all that stays the same from one question to the next."""

    assistant: Any
    as_points: bool
    min_tokens: int | None
    confidence: bool
    frame: Frame
    sampling: SamplingParams | None

    def ask(self, looks: Sequence[tuple[Any, str]]) -> Iterator[list[Place]]:
        """The places of every (picture, thing), computed together."""
        prompt = POINT_PROMPT if self.as_points else LOCATE_PROMPT
        questions = [([image], prompt.format(what=_name(thing))) for image, thing in looks]
        answers: Sequence[Answered]
        if isinstance(self.assistant, Asked):
            sampling = self.sampling or SamplingParams(max_new_tokens=MAX_NEW_TOKENS, stop_loops=LOOP)
            if self.confidence and not sampling.logprobs:
                sampling = replace(sampling, logprobs=True)
            least = least_pixels(self.assistant, self.min_tokens)
            answers = self.assistant.ask_many(questions, sampling, min_pixels=least)
        else:
            answers = [self.assistant(pictures, question) for pictures, question in questions]
        frame = self.frame if self.frame != "auto" else frame_of(self.assistant)
        for answer in answers:
            places = places_of(answer, 0, frame)
            if not self.confidence:
                places = [replace(place, confidence=None) for place in places]
            yield [_as_point(place) for place in places] if self.as_points else places


def least_pixels(assistant: Any, min_tokens: int | None) -> int | None:
    """min_tokens as an area for `ask_many`; None = leave sizes alone.

    A checkpoint that takes fewer tokens than that is left alone: it was made for such sizes, and enlarged pictures do
    it harm (the bundled model, at its limit of 144 tokens, found 56% in place of 81%).
    """
    if min_tokens is None:
        return None
    if min_tokens < 1:
        raise ValueError(f"min_tokens={min_tokens} is not valid: expected 1 or more, or None to leave sizes alone")
    processor = getattr(getattr(assistant, "processor", assistant), "image_processor", assistant)
    wanted = max(min_tokens * TOKEN_PIXELS, getattr(processor, "min_pixels", None) or 0)
    most = getattr(processor, "max_pixels", None)
    return None if most is not None and most < wanted else wanted


def frame_of(assistant: Any) -> Frame:
    """Qwen2-VL writes thousandths also where it writes JSON; Qwen2.5-VL pixels of the resized picture."""
    family = getattr(getattr(getattr(assistant, "model", None), "config", None), "model_type", "")
    return "thousandths" if family == "qwen2_vl" else "auto"


def _name(thing: str) -> str:
    return _ARTICLE.sub("", thing.strip().rstrip(".?!"))


def _as_point(place: Place) -> Place:
    if isinstance(place, Point):
        return place
    x, y = place.centre
    a, b, c, d = place.resized
    return Point(place.label, x, y, ((a + c) / 2, (b + d) / 2), place.extra, place.confidence)


def _refined(look: _Look, image: Any, thing: str, places: list[Place]) -> list[Place]:
    """A second look at every find: the model is asked for the same thing in a crop around it (half of its sides more
    on each side), in which it is shown larger.

    The second look's place is taken when it is at the same thing: the box that overlaps the first one most, at
    IoU >= 0.5, or the nearest point within the first look's crop. Else the first one stays, as a crop may lack what
    tells things apart. A crop of more than half of the picture is not looked at: it shows nothing more.
    resized keeps the numbers of the first look; a place that was replaced has extra["first"], where it was before.
    """
    from qwenvl.media import load_image

    picture: Image = load_image(image)
    windows = {number: window for number, place in enumerate(places) if (window := _window(picture, place))}
    crops = [(picture.crop(window), thing) for window in windows.values()]
    for (number, (left, top, _, _)), found in zip(windows.items(), look.ask(crops) if crops else (), strict=True):
        moved = [_moved(place, left, top) for place in found]
        second = _agreeing(places[number], moved)
        if second is not None:
            places[number] = _replaced(places[number], second)
    return places


def _window(picture: Image, place: Place) -> tuple[int, int, int, int] | None:
    """The crop around a place, in whole pixels; None where it is most of the picture."""
    if isinstance(place, Box):
        x1, y1, x2, y2 = place.corners
        wide, high = (max(_SMALLEST_MARGIN, side * _MARGIN) for side in (x2 - x1, y2 - y1))
    else:
        x1, y1, x2, y2 = place.x, place.y, place.x, place.y
        wide, high = picture.width / 8, picture.height / 8
    left, top = max(0, int(x1 - wide)), max(0, int(y1 - high))
    right, bottom = min(picture.width, int(x2 + wide) + 1), min(picture.height, int(y2 + high) + 1)
    if (right - left) * (bottom - top) > _LARGEST_SHARE * picture.width * picture.height:
        return None
    return left, top, right, bottom


def _moved(place: Place, left: float, top: float) -> Place:
    """A place of a crop, in pixels of the whole picture."""
    if isinstance(place, Point):
        return replace(place, x=place.x + left, y=place.y + top)
    polygon = tuple((x + left, y + top) for x, y in place.polygon)
    return replace(place, x1=place.x1 + left, y1=place.y1 + top, x2=place.x2 + left, y2=place.y2 + top, polygon=polygon)


def _agreeing(first: Place, found: Sequence[Place]) -> Place | None:
    """The place of the second look that is the same thing as `first`."""
    if isinstance(first, Box):
        boxes = [place for place in found if isinstance(place, Box)]
        best = max(boxes, key=lambda box: overlap(first, box), default=None)
        return best if best is not None and overlap(first, best) >= _SAME else None
    points = [place for place in found if isinstance(place, Point)]
    return min(points, key=lambda point: (point.x - first.x) ** 2 + (point.y - first.y) ** 2, default=None)


def _replaced(first: Place, second: Place) -> Place:
    before = first.corners if isinstance(first, Box) else (first.x, first.y)
    extra = {**first.extra, "first": [round(number, 2) for number in before]}
    return replace(second, label=first.label, resized=first.resized, extra=extra)  # type: ignore[arg-type]
