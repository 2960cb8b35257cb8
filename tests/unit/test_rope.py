"""M-RoPE positions against tables worked by hand."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from qwenvl.model.rope import inverse_frequencies, mrope_positions, rotate, turn, vision_rotation

IMAGE, VIDEO = 7, 8


@dataclass
class Vision:
    spatial_merge_size: int = 2
    tokens_per_second: float | None = 2


@dataclass
class Text:
    context_length: int = 1000


@dataclass
class Config:
    vision_config: Vision
    text_config: Text = field(default_factory=Text)
    image_token_id: int = IMAGE
    video_token_id: int = VIDEO


def positions(ids: list[int], rate: float | None = 2, **grids: Any) -> tuple[list[list[int]], int]:
    config: Any = Config(Vision(tokens_per_second=rate))
    found, delta = mrope_positions(torch.tensor(ids), config, **grids)
    return found.tolist(), delta


@pytest.mark.feature(28)
def test_text_counts_on_all_rows() -> None:
    assert positions([1, 2, 3]) == ([[0, 1, 2]] * 3, 0)


@pytest.mark.feature(28, 35)
def test_picture_between_text() -> None:
    rows, delta = positions([1, 2, *[IMAGE] * 6, 3, 4], image_grid_thw=torch.tensor([[1, 4, 6]]))
    assert rows == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],  # time stands still
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],  # the widest row decides where text goes on
    ]
    assert delta == 7 - 10


@pytest.mark.feature(36, 76, 93)
@pytest.mark.parametrize(
    ("fps", "times"),
    [
        (0.25, [0, 16, 32]),  # 2 frames a step: 8 s a step, 2 ids a second
        (1, [0, 4, 8]),
        (2, [0, 2, 4]),
        (4, [0, 1, 2]),
        (8, [0, 0, 1]),  # half an id a step: floor comes last
    ],
)
def test_video_time_is_floored_last(fps: float, times: list[int]) -> None:
    rows, delta = positions([VIDEO] * 3 + [1], video_grid_thw=torch.tensor([[3, 2, 2]]), second_per_grid_ts=[2 / fps])
    assert rows[0] == [*times, times[-1] + 1]  # text after a long video starts behind its time, not its size
    assert rows[1] == [0, 0, 0, times[-1] + 1]
    assert delta == times[-1] + 2 - 4


@pytest.mark.feature(36, 76)
@pytest.mark.parametrize(("seconds", "times"), [(0.5, [0, 1, 2, 3]), (1.5, [0, 3, 6, 9]), (0.3, [0, 0, 1, 1])])
@pytest.mark.parametrize("kind", [list, torch.tensor])
def test_intervals(seconds: float, times: list[int], kind: Any) -> None:
    grid = torch.tensor([[4, 2, 2]])
    rows, _ = positions([VIDEO] * 4, video_grid_thw=grid, second_per_grid_ts=kind([seconds]))
    assert rows[0] == times


@pytest.mark.feature(36)
def test_a_product_just_below_a_whole_number_is_that_number() -> None:
    """25 steps of 0.58 s at 2 ids a second are 29 ids; in float64 the product is 28.999999999999996."""
    rows, _ = positions([VIDEO] * 26, video_grid_thw=torch.tensor([[26, 2, 2]]), second_per_grid_ts=[0.58])
    assert rows[0][25] == 29


@pytest.mark.feature(28, 36)
def test_qwen2_vl_counts_frames() -> None:
    """Whatever the seconds: pairs of frames count by one."""
    grid = torch.tensor([[3, 4, 2]])
    rows, delta = positions([1, *[VIDEO] * 6, 2], rate=None, video_grid_thw=grid, second_per_grid_ts=[9.0])
    assert rows == [
        [0, 1, 1, 2, 2, 3, 3, 4],
        [0, 1, 2, 1, 2, 1, 2, 4],
        [0, 1, 1, 1, 1, 1, 1, 4],
    ]
    assert delta == 5 - 8


@pytest.mark.feature(28, 35, 36)
def test_pictures_and_videos_mixed() -> None:
    """text, picture 1 x 2 cells, text, video of 2 steps of 1.5 s, video of 3 steps of 0.5 s at once, picture, text:
    each starts one behind the largest position so far, on whichever row that was."""
    ids = [1, IMAGE, IMAGE, 2, *[VIDEO] * 4, *[VIDEO] * 3, *[IMAGE] * 4, 3, 4]
    rows, delta = positions(
        ids,
        image_grid_thw=torch.tensor([[1, 2, 4], [1, 4, 4]]),
        video_grid_thw=torch.tensor([[2, 4, 2], [3, 2, 2]]),
        second_per_grid_ts=[1.5, 0.5],
    )
    assert rows == [
        #     picture     video 1      video 2   picture
        [0,   1, 1,   3,  4, 4, 7, 7,  8, 9, 10, 11, 11, 11, 11,  13, 14],
        [0,   1, 1,   3,  4, 5, 4, 5,  8, 8, 8,  11, 11, 12, 12,  13, 14],
        [0,   1, 2,   3,  4, 4, 4, 4,  8, 8, 8,  11, 12, 11, 12,  13, 14],
    ]  # fmt: skip
    assert delta == 15 - len(ids)


@pytest.mark.feature(28, 35)
@pytest.mark.parametrize("rate", [2, None])
def test_the_next_token_goes_on_where_the_prompt_ended(rate: float | None) -> None:
    """Index + delta is the position of every later token: that of the prompt with these tokens in it."""
    grids: dict[str, Any] = {
        "image_grid_thw": torch.tensor([[1, 4, 8]]),
        "video_grid_thw": torch.tensor([[5, 2, 2]]),
        "second_per_grid_ts": [2.0],
    }
    for prompt in ([1, *[IMAGE] * 8, *[VIDEO] * 5, 2], [*[IMAGE] * 8, 1, *[VIDEO] * 5], [*[VIDEO] * 5, *[IMAGE] * 8]):
        short, delta = positions(prompt, rate, **grids)
        long, _ = positions([*prompt, 3, 4, 5], rate, **grids)
        assert [row[: len(prompt)] for row in long] == short
        assert [row[len(prompt) :] for row in long] == [[len(prompt) + i + delta for i in range(3)]] * 3
        assert len(prompt) + delta == max(map(max, short)) + 1


@pytest.mark.feature(77)
def test_more_positions_than_the_model_is_made_for_are_said() -> None:
    """Counted in positions, not in tokens: 256 tokens of a picture take 16."""
    config: Any = Config(Vision(), Text(context_length=20))
    wide = torch.tensor([IMAGE] * 256 + [1] * 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mrope_positions(wide, config, torch.tensor([[1, 32, 32]]))
    with pytest.warns(UserWarning, match=r"takes 21 positions.* made for 20.*max_position_embeddings"):
        found, _ = mrope_positions(torch.cat((wide, torch.tensor([1]))), config, torch.tensor([[1, 32, 32]]))
    assert found[:, -1].tolist() == [20] * 3
    config.text_config.context_length = 65536
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again, _ = mrope_positions(torch.cat((wide, torch.tensor([1]))), config, torch.tensor([[1, 32, 32]]))
    assert torch.equal(found, again)


@pytest.mark.parametrize(
    ("ids", "grids", "said"),
    [
        ([1, IMAGE], None, "more image tokens"),
        ([1, IMAGE], [[1, 4, 4]], "needs 4 placeholder"),
        ([1], [[1, 2, 2]], "1 image and 0 video grids were given"),
    ],
)
def test_mismatch_is_an_error(ids: list[int], grids: list[list[int]] | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        positions(ids, image_grid_thw=None if grids is None else torch.tensor(grids))


@pytest.mark.feature(36)
def test_seconds_for_every_video() -> None:
    with pytest.raises(ValueError, match="2 values for 1 videos"):
        positions([VIDEO], video_grid_thw=torch.tensor([[1, 2, 2]]), second_per_grid_ts=[1.0, 1.0])


def test_rotation_depends_on_differences_only() -> None:
    """The product of a turned query and key is a function of how far apart they are, on each row of positions."""
    q, k = torch.randn(2, 1, 1, 8)
    a, b = torch.tensor([[5], [3], [9]]), torch.tensor([[2], [7], [9]])
    for shift in (0, 11):
        turned = [
            rotate(x, turn(p + shift, inverse_frequencies(8, 100.0, p.device), (1, 2, 1))) for x, p in ((q, a), (k, b))
        ]
        if shift == 0:
            first = (turned[0] * turned[1]).sum()
        torch.testing.assert_close((turned[0] * turned[1]).sum(), first)


def test_vision_rotation_halves() -> None:
    cosine, sine = vision_rotation(torch.tensor([[2, 0], [0, 3]]), 8)
    assert torch.equal(sine[0, 0, 2:], torch.zeros(2))  # no column, no turn in the second half
    assert torch.equal(sine[1, 0, :2], torch.zeros(2))
    torch.testing.assert_close(cosine[0, 0, 0], torch.tensor(2.0).cos())
