"""Ids of control tokens in all files that name them, the chat template, and what users type."""

from __future__ import annotations

from typing import Any

from qwenvl.doctor.case import Case
from qwenvl.doctor.finding import Notes, Outcome, some

# The official vocabulary: its size without added tokens, and the ids of those.
OFFICIAL_SIZE = 151643
OFFICIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
            "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>",
            "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>",
            "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>")  # fmt: skip
NAMED = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>",
         "vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>",
         "vision_token_id": "<|vision_pad|>"}  # fmt: skip
TURNS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
SAMPLES = ("The quick brown fox, 3.14 and [12, 34].", "Größe, naïve café\n\tдля  日本語の文 🙂", " two  spaces ")
FILES = "the files are not of one checkpoint, or one was edited: fetch config.json and the tokenizer's files again"
SYSTEM = "You are a helpful assistant."


def special_ids(case: Case) -> Outcome:
    """config.json, the tokenizer's files and generation_config.json mean the same ids; the official ones where the
    vocabulary is the official one. Text survives the way to ids and back."""
    tokenizer, notes = case.load_processor().tokenizer, Notes()
    ids = {token: tokenizer.backend.token_to_id(token) for token in (*NAMED.values(), *TURNS)}
    for token in (token for token, number in ids.items() if number is None and token != NAMED["vision_token_id"]):
        notes.fault(f"the tokenizer has no {token}", FILES)
    for name, token in NAMED.items():
        said = getattr(case.config, name, None)
        if said is not None and None is not ids[token] != said:
            notes.fault(f"config.json: {name} is {said}, the tokenizer has {ids[token]} for {token}", FILES)
    _check_ends(case, ids, notes)
    rows, most = case.config.text_config.vocab_size, max(tokenizer.get_vocab().values())
    if most >= rows:
        notes.fault(f"the tokenizer has ids up to {most}, the embedding has {rows} rows", FILES)
    official = tokenizer.vocab_size == OFFICIAL_SIZE
    for number, token in enumerate(OFFICIAL, OFFICIAL_SIZE) if official else ():
        found = tokenizer.backend.token_to_id(token)
        if found not in (number, None) or (found is None and token in ids):
            notes.fault(f"{token} has the id {found}, in the official vocabulary it is {number}", FILES)
    lost = [text for text in SAMPLES if tokenizer.decode(tokenizer.encode(text)) != text]
    if lost:
        notes.fault(f"text is not the same after encoding and decoding: {lost[0]!r}", FILES)
    kind = "the official vocabulary" if official else f"a vocabulary of {tokenizer.vocab_size:,} tokens of its own"
    return notes.outcome(f"{kind}, {len(ids)} control tokens agree in all files")


def _check_ends(case: Case, ids: dict[str, Any], notes: Notes) -> None:
    """eos and pad of config.json, tokenizer_config.json and generation_config.json are what they are meant to be."""
    from qwenvl.processing.files import read_json

    tokenizer = case.processor.tokenizer
    settings = read_json(case.path / "generation_config.json") or {}
    end, padding = (ids["<|im_end|>"], "<|im_end|>"), (ids["<|endoftext|>"], "<|endoftext|>")
    for file, values in (("config.json", case.raw_config), ("generation_config.json", settings)):
        for name, wanted in (("eos_token_id", (end, padding)), ("pad_token_id", (padding, end))):
            given = values.get(name)
            for number in given if isinstance(given, list | tuple) else [] if given is None else [given]:
                if number not in [one for one, _ in wanted]:
                    words = " or ".join(f"{one} ({token})" for one, token in wanted)
                    notes.fault(f"{file}: {name} is {number}: expected {words}", FILES)
    for name in ("eos_token", "pad_token"):
        token = getattr(tokenizer, name)
        if token not in ("<|im_end|>", "<|endoftext|>"):
            notes.fault(f"tokenizer_config.json: {name} is {token}: expected <|im_end|> or <|endoftext|>", FILES)


def template(case: Case) -> Outcome:
    """The template writes turns, pictures and videos as the models were trained on them."""
    render, notes = case.load_processor().chat_template.render, Notes()
    head = render([{"role": "user", "content": "Hi"}])
    turn = "<|im_start|>user\nHi<|im_end|>\n"
    default, found, _ = head.partition(turn)
    if found and default != _turn("system", SYSTEM):
        notes.note(f"a default system prompt of its own: {default!r}")
    for what, messages, options, wanted in _conversations(default if found else _turn("system", SYSTEM)):
        text = render(messages, **options)
        if text != wanted:
            place = next((i for i, (a, b) in enumerate(zip(text, wanted, strict=False)) if a != b), len(wanted))
            notes.fault(
                f"{what} is written {text[max(place - 12, 0) : place + 40]!r}, the models were trained on "
                f"{wanted[max(place - 12, 0) : place + 40]!r}",
                "take the chat template of the official checkpoint, or none: the built-in one is like it",
            )
    own = (
        "the checkpoint's own template" if case.processor.chat_template.text != _built_in() else "the built-in template"
    )
    return notes.outcome(f"{own} writes turns, pictures and videos as documented")


def _built_in() -> str:
    from qwenvl.processing.chat_template import BUILT_IN

    return BUILT_IN


def _turn(role: str, text: str) -> str:
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


def _conversations(default: str) -> list[tuple[str, list[dict[str, Any]], dict[str, Any], str]]:
    """(what it is about, messages, options, the documented prompt). default: the system turn that comes by itself."""
    image, video = (f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in ("image", "video"))
    picture = {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What?"}]}
    clip = {"role": "user", "content": [{"type": "text", "text": "When"}, {"type": "video", "video": "a.mp4"}]}
    answer, told = {"role": "assistant", "content": "A cup."}, {"role": "system", "content": "Be brief."}
    asked, start = _turn("user", f"{image}What?"), "<|im_start|>assistant\n"
    return [
        ("plain text", [{"role": "user", "content": "Hi"}], {}, default + _turn("user", "Hi")),
        ("a picture", [picture], {"add_generation_prompt": True}, default + asked + start),
        ("a video", [clip], {}, default + _turn("user", f"When{video}")),
        (
            "a conversation",
            [told, picture, answer, clip],
            {"add_generation_prompt": True},
            _turn("system", "Be brief.") + asked + _turn("assistant", "A cup.") + _turn("user", f"When{video}") + start,
        ),
    ]


def typed_tokens(case: Case) -> Outcome:
    """The spellings of control tokens in a user's text become plain text, and nothing is lost of it."""
    processor = case.processor
    tokenizer = processor.tokenizer
    control = set(tokenizer.convert_tokens_to_ids(list(tokenizer.control_tokens)))

    def ids(text: str) -> list[int]:
        talk = [{"role": "user", "content": [{"type": "text", "text": text}]}]
        return list(processor.apply_chat_template(talk, tokenize=True, add_generation_prompt=True))

    def count(row: list[int]) -> int:
        return sum(token in control for token in row)

    notes, plain = Notes(), count(ids("hello"))
    taken = [token for token in tokenizer.control_tokens if count(ids(f"a {token} b")) != plain]
    if taken:
        notes.fault(
            f"a user who types {some(taken)} gets the control token: text can open turns or places for pictures",
            "do not serve this model to strangers; see processing/guard.py",
        )
    everything = "".join(tokenizer.control_tokens)
    if everything not in tokenizer.decode(ids(everything)):
        notes.fault("what spells control tokens is not the same text after encoding and decoding", FILES)
    return notes.outcome(f"all {len(tokenizer.control_tokens)} stay text when they are typed")
