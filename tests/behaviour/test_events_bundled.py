"""The bundled model tells when things happen: on fresh clips, in a long film, and through the shell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from films import SQUARE, Shape, write_film
from PIL import Image
from test_cli import run

from qwenvl.demo.clips import Actor, Clip, clip_video, sample_clip
from qwenvl.demo.samples import PICTURES
from qwenvl.hub.find import demo_folder
from qwenvl.media import MediaPolicy
from qwenvl.tasks import Assistant
from qwenvl.tasks.events import events

pytestmark = pytest.mark.feature(76, 88)
HERE = MediaPolicy(isolate_videos=False)
ASK = "When does the {query} appear?"  # a wording of its own world, which every version of it knows
taught = pytest.mark.skipif(
    not any(
        row["name"] == "events" and row["value"] > 0.6
        for row in json.loads((demo_folder() / "scores.json").read_text())["rows"]
    ),
    reason="these weights were not taught the two prompts of the cookbook",
)
SAMPLE = PICTURES / "square-appears.mp4"  # the blue square is there from second 3 on


@pytest.fixture(scope="module")
def assistant() -> Assistant:
    return Assistant("demo")


def appearing(seed: int, count: int) -> Iterator[tuple[Clip, Actor]]:
    """Fresh clips in which something appears, and what does."""
    rng = np.random.default_rng(seed)
    while count:
        clip = sample_clip(rng)
        late = [actor for actor in clip.actors if actor.first]
        if late:
            count -= 1
            yield clip, late[0]


def test_the_sample_video(assistant: Assistant) -> None:
    (found,) = events(assistant, SAMPLE, "blue square", prompt=ASK, policy=HERE)
    assert found.start == pytest.approx(3, abs=0.6)
    assert found.confidence is not None
    assert 0.3 < found.confidence <= 1


def test_a_part_of_the_sample_video_is_told_in_seconds_of_the_file(assistant: Assistant) -> None:
    (found,) = events(assistant, SAMPLE, "blue square", start=1.5, prompt=ASK, policy=HERE)
    assert found.start == pytest.approx(3, abs=0.6)


@pytest.mark.slow
@pytest.mark.parametrize(("query", "prompt"), [("{}", ASK), pytest.param("{} appears", None, marks=taught)])
def test_queries_on_fresh_clips(assistant: Assistant, query: str, prompt: str | None) -> None:
    """Within a half second in four of five."""
    right = 0
    for clip, actor in appearing(11, 40):
        found = events(assistant, clip_video(clip), query.format(actor.thing.name), fps=4, prompt=prompt)
        right += any(abs(event.start - actor.first / clip.fps) <= 0.51 for event in found)
    assert right >= 32, f"{right} of 40"


@taught
@pytest.mark.slow
def test_all_events_of_fresh_clips(assistant: Assistant) -> None:
    """What appears is among the events, with its time, in two of three."""
    right = 0
    for clip, actor in appearing(12, 30):
        found = events(assistant, clip_video(clip), fps=4)
        own = [event for event in found if actor.thing.name in event.text]
        right += any(abs(event.start - actor.first / clip.fps) <= 0.51 for event in own)
    assert right >= 20, f"{right} of 30"


def test_the_verb_tells_and_writes(tmp_path: Path) -> None:
    done = run(
        "events", str(SAMPLE), "blue square", "--prompt", ASK, "--srt", "a.srt", "--vtt", "a.vtt", "--sheet", "a.png",
        "--clips", "clips", "--json", cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["events"][0]["start"] == pytest.approx(3, abs=0.6)
    assert report["query"] == "blue square"
    assert "-->" in (tmp_path / "a.srt").read_text()
    assert (tmp_path / "a.vtt").read_text().startswith("WEBVTT")
    assert Image.open(tmp_path / "a.png").size[0] > 300
    (clip,) = report["clips"]
    with av.open(str(tmp_path / clip)) as container:
        assert float(container.duration / 1e6) == pytest.approx(1, abs=0.2)
    assert done.err.splitlines() == ["wrote a.srt", "wrote a.vtt", "wrote a.png", "wrote 1 clip in clips"]


@pytest.mark.slow
def test_twenty_minutes_in_which_something_appears_once(tmp_path: Path) -> None:
    film = write_film(tmp_path / "long.mp4", 1200, [SQUARE, Shape(754.4, 1e9)])
    done = run("events", str(film), "red circle", "--prompt", ASK, "--max-frames", "12", cwd=tmp_path)
    assert done.code == 0, done.err
    (line,) = done.out.splitlines()
    begin, _, text = line.split("\t")
    assert text == "red circle"
    hours, minutes, seconds = begin.split(":")
    assert int(hours) * 3600 + int(minutes) * 60 + float(seconds) == pytest.approx(754.4, abs=0.7)
