"""The documented forward(): its arguments, its outputs, and past_key_values. Both families where they could differ."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from tiny import FAMILIES, GRID, IMAGE, VIDEO, padded_batch, tiny_model

from qwenvl.model.past import STEP

MORE = torch.tensor([[11, 12, 13, 14], [21, 22, 23, 24]])


def grown(mask: torch.Tensor, columns: int) -> torch.Tensor:
    return torch.cat((mask, torch.ones(len(mask), columns, dtype=mask.dtype)), 1)


@pytest.mark.feature(26)
def test_every_documented_argument_has_its_name() -> None:
    documented = [
        *("input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds", "labels", "use_cache"),
        *("output_attentions", "output_hidden_states", "return_dict", "pixel_values", "pixel_values_videos"),
        *("image_grid_thw", "video_grid_thw", "rope_deltas", "cache_position", "second_per_grid_ts", "logits_to_keep"),
    ]
    model = tiny_model()
    assert list(inspect.signature(model.forward).parameters)[: len(documented)] == documented
    bare = [name for name in documented if name not in ("labels", "logits_to_keep")]
    assert list(inspect.signature(model.model.forward).parameters)[: len(bare)] == bare
    with pytest.raises(TypeError, match="pixel_value_s"):
        model(MORE, pixel_value_s=None)


@pytest.mark.feature(27, 29, 40)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_cache_changes_nothing(family: str) -> None:
    """A padded prompt, a chunk, and single tokens, against one forward over everything."""
    model, inputs = tiny_model(family), padded_batch()
    mask = inputs["attention_mask"]
    whole = {**inputs, "input_ids": torch.cat((inputs["input_ids"], MORE), 1), "attention_mask": grown(mask, 4)}
    expected = model(**whole, use_cache=False)
    assert expected.past_key_values is None
    past = model(**inputs).past_key_values
    assert past.get_seq_length() == 11
    found = []
    for first, last in ((0, 2), (2, 3), (3, 4)):
        output = model(MORE[:, first:last], grown(mask, last), past_key_values=past)
        assert output.past_key_values is past
        assert torch.equal(output.rope_deltas, expected.rope_deltas)
        found.append(output.logits)
    torch.testing.assert_close(torch.cat(found, 1), expected.logits[:, 11:], rtol=1e-4, atol=1e-4)
    assert past.get_seq_length() == 15
    bare = model.model(MORE[:, :1], grown(mask, 5), past_key_values=past)
    assert bare.last_hidden_state.shape == (2, 1, 48)


@torch.no_grad()
def test_a_picture_behind_a_cached_prompt() -> None:
    """The second turn of a conversation brings its own picture; positions count on."""
    model, inputs = tiny_model(), padded_batch()
    row, pixels = inputs["input_ids"][1:], inputs["pixel_values"]
    both = torch.cat((row, row), 1)
    expected = model(both, pixel_values=torch.cat((pixels, pixels)), image_grid_thw=GRID.repeat(2, 1))
    first = model(row, pixel_values=pixels, image_grid_thw=GRID)
    second = model(row, pixel_values=pixels, image_grid_thw=GRID, past_key_values=first.past_key_values)
    torch.testing.assert_close(second.logits, expected.logits[:, 11:], rtol=1e-4, atol=1e-4)
    assert torch.equal(second.rope_deltas, expected.rope_deltas)


@torch.no_grad()
def test_rows_of_the_cache_are_reordered_repeated_and_cropped() -> None:
    model, inputs = tiny_model(), padded_batch()
    mask = grown(inputs["attention_mask"], 1)
    past = model(**inputs, use_cache=True).past_key_values
    straight = model(MORE[:, :1], mask, past_key_values=copy.deepcopy(past)).logits
    other = copy.deepcopy(past)
    other.reorder(torch.tensor([1, 0]))
    swapped = model(MORE[:, :1].flip(0), mask.flip(0), past_key_values=other).logits
    torch.testing.assert_close(swapped.flip(0), straight)
    other = copy.deepcopy(past)
    other.batch_repeat_interleave(2)
    index = torch.tensor([0, 0, 1, 1])
    torch.testing.assert_close(model(MORE[index, :1], mask[index], past_key_values=other).logits, straight[index])
    other.batch_select_indices(torch.tensor([3]))
    other.crop(-1)
    torch.testing.assert_close(model(MORE[1:, :1], past_key_values=other).logits, straight[1:])
    other.crop(11)
    torch.testing.assert_close(model(MORE[1:, :1], past_key_values=other).logits, straight[1:])
    with pytest.raises(ValueError, match=r"rows \[2\] are not valid: expected some of 0 to 1"):
        past.reorder(torch.tensor([2]))


@torch.no_grad()
def test_the_cache_grows_and_reads_as_tuples() -> None:
    model = tiny_model()
    ids = torch.arange(2 * STEP + 1).remainder(50).unsqueeze(0)
    past = model(ids[:, :3]).past_key_values
    model(ids[:, 3:-1], past_key_values=past)
    last = model(ids[:, -1:], past_key_values=past).logits
    torch.testing.assert_close(last, model(ids).logits[:, -1:], rtol=1e-4, atol=1e-4)
    legacy = past.to_legacy_cache()
    assert len(legacy) == len(past) == 2
    assert legacy[1][0].shape == legacy[1][1].shape == (1, 2, 2 * STEP + 1, 12)


def test_gradients_pass_through_a_forward_that_caches() -> None:
    model, inputs = tiny_model(), padded_batch()
    grads = []
    for use_cache in (False, True):
        model.zero_grad()
        model(**inputs, labels=inputs["input_ids"], use_cache=use_cache).loss.backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for plain, cached in zip(*grads, strict=True):
        torch.testing.assert_close(cached, plain)
    past = model(**inputs).past_key_values  # in one-token steps too, those before being constants
    model.zero_grad()
    model(MORE[:, :1], grown(inputs["attention_mask"], 1), past_key_values=past).logits.sum().backward()
    assert model.model.language_model.layers[0].self_attn.k_proj.weight.grad.abs().sum() > 0


@pytest.mark.feature(38)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cache_position": torch.arange(3, 5)}, "does not fit a cache of 11 columns: expected 11 to 12"),
        ({"attention_mask": torch.ones(2, 2)}, r"expected \(2, 13\), 11 cached columns and 2 new"),
        ({"attention_mask": torch.ones(2, 13)}, "the first 11 columns of attention_mask differ"),
        ({"input_ids": MORE[:1, :2], "attention_mask": None}, "holds 2 rows, the new tokens have 1"),
        ({"past_key_values": ((MORE, MORE),)}, "past_key_values is a tuple: expected what an earlier forward"),
        ({"rope_deltas": torch.tensor([1, 2, 3])}, "expected one number for each of 2 rows"),
    ],
)
@torch.no_grad()
def test_what_does_not_fit_the_cache_is_refused(change: dict[str, Any], said: str) -> None:
    model, inputs = tiny_model(), padded_batch()
    past = model(**inputs).past_key_values
    given = {
        "input_ids": MORE[:, :2],
        "attention_mask": grown(inputs["attention_mask"], 2),
        "past_key_values": past,
        "cache_position": torch.arange(11, 13),
    }
    with pytest.raises(ValueError, match=said):
        model(**{**given, **change})
    assert model(**given).past_key_values.get_seq_length() == 13


@pytest.mark.feature(28)
@torch.no_grad()
def test_positions_in_every_documented_shape() -> None:
    model, inputs = tiny_model(), padded_batch()
    expected = model(**inputs).logits
    three, _ = model.get_rope_index(inputs["input_ids"], GRID, attention_mask=inputs["attention_mask"])
    four = torch.cat(((inputs["attention_mask"].cumsum(-1) - 1).unsqueeze(0), three))
    for positions in (three, four):
        assert torch.equal(model(**inputs, position_ids=positions).logits, expected)
    ids = MORE[:1]
    flat = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(model(ids, position_ids=flat).logits, model(ids, position_ids=flat.expand(3, 1, 4)).logits)
    torch.testing.assert_close(model(ids, position_ids=flat).logits, model(ids).logits)  # only distances count
    with pytest.raises(ValueError, match=r"position_ids has shape \(2, 1, 4\): expected \[3, 1, 4\]"):
        model(ids, position_ids=flat.expand(2, 1, 4))


@pytest.mark.feature(30)
@torch.no_grad()
def test_embeddings_in_place_of_ids() -> None:
    model, inputs = tiny_model(), padded_batch()
    expected = model(**inputs).logits
    ids = inputs.pop("input_ids")
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embeds, **inputs).logits, expected)
    assert torch.equal(model(ids, inputs_embeds=embeds, **inputs).logits, expected)
    text = model.model.language_model
    assert torch.equal(text(inputs_embeds=embeds[:1]).last_hidden_state, text(ids[:1]).last_hidden_state)
    merged = embeds.clone()
    merged[ids == IMAGE] = model.encode_vision(inputs.pop("pixel_values"), GRID)
    torch.testing.assert_close(model(ids, inputs_embeds=merged, **inputs).logits, expected)
    with pytest.raises(ValueError, match="both given: the text model takes one"):
        text(ids, inputs_embeds=embeds)
    with pytest.raises(ValueError, match="image_grid_thw has 1 rows, but the prompts have placeholders for 0"):
        model(inputs_embeds=merged, pixel_values=torch.zeros(24, 1176), image_grid_thw=GRID)


@pytest.mark.feature(35)
@torch.no_grad()
def test_rope_deltas_go_in_and_come_out() -> None:
    model, inputs = tiny_model(), padded_batch()
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    output = model(**inputs)
    assert output.rope_deltas.tolist() == [[0], [2 + 3 + 3 - 11]]  # 2 of text, 3 rows high, 3 of text
    past = output.past_key_values
    expected = model(MORE[:, :1], grown(mask, 1), past_key_values=copy.deepcopy(past))
    shifted = model(MORE[:, :1], grown(mask, 1), past_key_values=copy.deepcopy(past), rope_deltas=torch.tensor([4, 4]))
    places = torch.tensor([[4 + 4], [11 + 4]])
    placed = model(MORE[:, :1], grown(mask, 1), past_key_values=past, position_ids=places)
    assert torch.equal(shifted.logits, placed.logits)
    assert not torch.allclose(shifted.logits, expected.logits)
    assert shifted.rope_deltas.tolist() == placed.rope_deltas.tolist() == [[4], [4]]
    with pytest.raises(ValueError, match=r"rope_deltas=\[0, 0\] differ from those of the prompts, \[0, -3\]"):
        model(**inputs, rope_deltas=torch.tensor([0, 0]))
    model(**inputs, rope_deltas=torch.tensor([0, -3]))
    with pytest.raises(ValueError, match="mm_token_type_ids does not agree"):
        model(**inputs, mm_token_type_ids=torch.zeros_like(ids))
    model(**inputs, mm_token_type_ids=(ids == IMAGE).int())


@pytest.mark.feature(31)
def test_the_loss_is_of_the_next_token() -> None:
    model, ids = tiny_model(), MORE
    labels = torch.tensor([[-100, -100, 13, -100], [-100, 22, 23, -100]])
    output = model(ids, labels=labels)
    log = output.logits.log_softmax(-1)
    expected = -(log[0, 1, 13] + log[1, 0, 22] + log[1, 1, 23])
    torch.testing.assert_close(output.loss, expected / 3)
    torch.testing.assert_close(model(ids, labels=labels, num_items_in_batch=7).loss, expected / 7)
    with pytest.raises(ValueError, match="labels has shape"):
        model(ids, labels=labels[:, 1:])


@pytest.mark.feature(37)
@torch.no_grad()
def test_only_the_logits_asked_for_are_computed() -> None:
    model, inputs = tiny_model(), padded_batch()
    whole = model(**inputs).logits
    widths: list[int] = []
    model.lm_head.register_forward_hook(lambda module, given, out: widths.append(len(out)))
    torch.testing.assert_close(model(**inputs, logits_to_keep=2).logits, whole[:, -2:])
    torch.testing.assert_close(model(**inputs, logits_to_keep=torch.tensor([0, 7])).logits, whole[:, [0, 7]])
    assert widths == [4, 3]  # of 22 columns; row 0 has padding in column 0
    for wrong in (-1, torch.ones(2, 2).long()):
        with pytest.raises(ValueError, match="logits_to_keep"):
            model(**inputs, logits_to_keep=wrong)


@pytest.mark.feature(39, 40)
@torch.no_grad()
def test_outputs_are_read_in_every_documented_way() -> None:
    model, inputs = tiny_model(), padded_batch()
    asked = {**inputs, "output_attentions": True, "output_hidden_states": True}
    output = model(**asked, labels=inputs["input_ids"])
    names = ["loss", "logits", "past_key_values", "hidden_states", "attentions", "rope_deltas"]
    assert list(output) == list(output.keys()) == names
    assert output.loss.shape == ()
    assert output.logits.shape == (2, 11, 64)
    assert [x.shape for x in output.hidden_states] == [(2, 11, 48)] * 3
    assert [x.shape for x in output.attentions] == [(2, 4, 11, 11)] * 2
    seen = inputs["attention_mask"].float()[:, None].expand(2, 4, 11)
    torch.testing.assert_close(output.attentions[0].sum(-1), seen)
    assert output["logits"] is output.logits is output[1] is output.to_tuple()[1] is dict(**output)["logits"]
    loss, logits = output[:2]
    assert loss is output.loss
    assert logits is output.logits
    as_tuple = model(**asked, labels=inputs["input_ids"], return_dict=False)
    assert len(as_tuple) == 6
    assert torch.equal(as_tuple[0], loss)
    plain = model(**inputs, use_cache=False)
    assert list(plain) == ["logits", "rope_deltas"]
    assert torch.equal(plain[0], logits)
    with pytest.raises(KeyError, match="loss"):
        plain["loss"]
    bare = model.model(**asked)
    names = ["last_hidden_state", "past_key_values", "hidden_states", "attentions", "rope_deltas"]
    assert list(bare) == names
    assert torch.equal(bare.hidden_states[-1], bare.last_hidden_state)
    torch.testing.assert_close(model.lm_head(bare[0][0, -1]), logits[0, -1])
    text = model.language_model(inputs["input_ids"][:1], output_hidden_states=True, use_cache=False)
    assert list(text) == ["last_hidden_state", "hidden_states"]
    assert isinstance(model.model(**inputs, return_dict=False), tuple)
    assert isinstance(model.language_model(inputs["input_ids"][:1], return_dict=False), tuple)


@torch.no_grad()
def test_options_of_the_config_hold_where_none_is_given() -> None:
    model = tiny_model(use_cache=False, output_hidden_states=True, return_dict=False)
    logits, hidden_states, deltas = model(MORE)
    assert len(hidden_states) == 3
    assert deltas.tolist() == [[0], [0]]
    assert model(MORE, use_cache=True, return_dict=True).past_key_values is not None
    assert logits.shape == (2, 4, 64)


@pytest.mark.feature(33, 34, 36)
@torch.no_grad()
def test_videos_take_their_seconds() -> None:
    model = tiny_model()
    grid = torch.tensor([[2, 4, 4]])
    ids = torch.tensor([[3, *[VIDEO] * 8, 5]])
    inputs = {"input_ids": ids, "pixel_values_videos": torch.randn(32, 1176), "video_grid_thw": grid}
    slow = model(**inputs, second_per_grid_ts=torch.tensor([3.0]))
    assert slow.rope_deltas.tolist() == [[1 + 7 + 1 - 10]]  # the second step stands at 3 s * 2 a second
    assert model(**inputs).rope_deltas.tolist() == [[1 + 3 + 1 - 10]]  # a second a step
    assert not torch.allclose(slow.logits, model(**inputs).logits)
    with pytest.raises(ValueError, match="second_per_grid_ts has 2 values for 1 videos"):
        model(**inputs, second_per_grid_ts=[1.0, 1.0])
    with pytest.raises(ValueError, match="pixel_values_videos is given without video_grid_thw"):
        model(ids, pixel_values_videos=torch.randn(32, 1176))


@pytest.mark.feature(41, 42)
@pytest.mark.parametrize("family", FAMILIES)
def test_generate_goes_on_where_forward_ends(family: str) -> None:
    """Greedy ids by hand, with forward() and its cache, are those of generate()."""
    model, inputs = tiny_model(family, tie_word_embeddings=False), padded_batch()
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    model.lm_head.weight.data[56:] = 0  # neither the stop token nor vision tokens, which are never drawn
    answer = model.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=63, pad_token_id=0)
    assert torch.equal(answer[:, :11], inputs["input_ids"])
    mask, found = inputs["attention_mask"], []
    with torch.no_grad():
        output = model(**inputs, logits_to_keep=1)
        for _ in range(4):
            found.append(output.logits[:, -1:].argmax(-1))
            mask = grown(mask, 1)
            output = model(found[-1], mask, past_key_values=output.past_key_values)
    assert torch.equal(answer[:, 11:], torch.cat(found, 1))
