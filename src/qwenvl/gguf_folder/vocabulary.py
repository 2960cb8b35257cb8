"""The vocabulary in GGUF metadata -> tokenizer.json, tokenizer_config.json and chat_template.json.

GGUF has the tokens as byte-level BPE spells them, a kind for each, and the merges. The steps around the merges are
Qwen2's, which it names ("pre"). Ids that only fill up the embedding ([PAD151665], ...) are no tokens here.
"""

from __future__ import annotations

from typing import Any

from qwenvl.gguf_folder.header import Gguf

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
PRE_TOKENIZERS = ("qwen2", "deepseek-r1-qwen")  # two names of the same steps
# How Qwen2 cuts text before merging; processing/tokenizer.py has the same (a test compares them).
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Marked as control tokens by converters for their looks; in the published files they are ordinary text, which
# skip_special_tokens keeps.
PLAIN = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>")
ROLES = {"eos": "<|im_end|>", "padding": "<|endoftext|>", "bos": "<|endoftext|>"}
MAX_LENGTH = {"qwen2_5_vl": 131072, "qwen2_vl": 32768}


def tokenizer_files(text: Gguf, family: str) -> dict[str, dict[str, Any]]:
    """Contents of the tokenizer's files, by name. ValueError for a vocabulary of another kind."""
    model, steps = text.need("tokenizer.ggml.model"), text.metadata.get("tokenizer.ggml.pre", PRE_TOKENIZERS[0])
    if model != "gpt2" or steps not in PRE_TOKENIZERS:
        raise ValueError(f"{text.path} has a {model} vocabulary cut by {steps!r}: expected gpt2, cut by 'qwen2'")
    tokens, kinds = text.need("tokenizer.ggml.tokens"), _kinds(text)
    added = [_added(number, tokens[number]) | {"special": special} for number, special in _specials(tokens, kinds)]
    vocabulary = {token: number for number, token in enumerate(tokens) if kinds[number] == NORMAL}
    start = len(vocabulary)
    if [one["id"] for one in added] != list(range(start, start + len(added))):
        # Added tokens get the next free ids; where that are not theirs, the vocabulary has to say them.
        vocabulary |= {one["content"]: one["id"] for one in added}
    template = text.metadata.get("tokenizer.chat_template")
    files = {
        "tokenizer.json": _tokenizer(vocabulary, _merges(text), added),
        "tokenizer_config.json": _settings(text, tokens, added, family, template),
    }
    if template and "vision_start" in template:  # else it is the text model's, and the reader takes its own
        files["chat_template.json"] = {"chat_template": template}
    return files


def token_id(text: Gguf, role: str) -> int:
    """The id of the eos, padding or bos token: as the file says, else that of its usual spelling."""
    tokens = text.need("tokenizer.ggml.tokens")
    number = text.metadata.get(f"tokenizer.ggml.{role}_token_id")
    if number is None and ROLES[role] in tokens:
        return int(tokens.index(ROLES[role]))
    if not isinstance(number, int) or not 0 <= number < len(tokens):
        raise ValueError(f"{text.path}: the {role} token is {number} of {len(tokens)}: convert it again")
    return number


def _kinds(text: Gguf) -> list[int]:
    tokens, kinds = text.need("tokenizer.ggml.tokens"), text.metadata.get("tokenizer.ggml.token_type")
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise ValueError(f"{text.path} does not say the kind of each of its {len(tokens)} tokens: convert it again")
    return kinds


def _specials(tokens: list[str], kinds: list[int]) -> list[tuple[int, bool]]:
    """Id of every added token, and whether it is special: left out of text."""
    return [
        (number, kind == CONTROL and tokens[number] not in PLAIN)
        for number, kind in enumerate(kinds)
        if kind in (CONTROL, USER_DEFINED)
    ]


def _added(number: int, token: str) -> dict[str, Any]:
    return {"id": number, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def _merges(text: Gguf) -> list[list[str]]:
    pairs = [merge.split(" ") for merge in text.need("tokenizer.ggml.merges")]
    if any(len(pair) != 2 for pair in pairs):
        odd = next(pair for pair in pairs if len(pair) != 2)
        raise ValueError(f"{text.path}: {' '.join(odd)!r} is no merge of two tokens: convert it again")
    return pairs


def _tokenizer(vocabulary: dict[str, int], merges: list[list[str]], added: list[dict[str, Any]]) -> dict[str, Any]:
    bytes_step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": PIECES}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes_step]},
        "post_processor": bytes_step,
        "decoder": bytes_step,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": vocabulary, "merges": merges,
        },
    }  # fmt: skip


def _settings(
    text: Gguf, tokens: list[str], added: list[dict[str, Any]], family: str, template: str | None
) -> dict[str, Any]:
    eos, pad = tokens[token_id(text, "eos")], tokens[token_id(text, "padding")]
    listed = {str(one["id"]): {name: value for name, value in one.items() if name != "id"} for one in added}
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": listed,
        "additional_special_tokens": [one["content"] for one in added if one["special"] and one["content"] != pad],
        "bos_token": None,
        **({} if template is None else {"chat_template": template}),
        "clean_up_tokenization_spaces": False,
        "eos_token": eos,
        "errors": "replace",
        "model_max_length": MAX_LENGTH[family],
        "pad_token": pad,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
