"""Tokenizers from the same kinds of path as models; those of GGUF files are rebuilt without PyTorch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from jaxalign.errors import UserError
from jaxalign.models.gguf import metadata, open_gguf
from jaxalign.models.paths import resolve

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The split of text before the merges, by the name in tokenizer.ggml.pre. None is GPT-2's rule, which `tokenizers` has
# built in. `smollm` is read as in `transformers`. SmolLM2's own tokenizer.json also splits off every digit, which
# differs only in white space before a digit.
_SPLITS = {"default": None, "gpt-2": None, "smollm": None, "tekken": _TEKKEN}
_SPLITS |= dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), _LLAMA3)

_CONTROL, _USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def load_tokenizer(path_or_hub_id: str | Path) -> PreTrainedTokenizerFast:
    """Loads a ``transformers`` tokenizer, with its special tokens and chat template.

    Args:
        path_or_hub_id: a Hugging Face directory, a .gguf file, ``package:file``, or a hub id.

    Raises:
        UserError: if the path has no tokenizer, or its kind is not supported.
    """
    place = resolve(path_or_hub_id, weights=False)
    if place.is_file():
        return gguf_tokenizer(place)
    _quiet_transformers()
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(place))
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path_or_hub_id}: no tokenizer could be loaded from there: {reason}") from error


def gguf_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Builds the tokenizer that a GGUF file's metadata describes.

    Raises:
        UserError: for a kind of tokenizer that is not supported.
    """
    _quiet_transformers()
    from transformers import PreTrainedTokenizerFast

    fields = metadata(open_gguf(path))

    def get(name: str, default: Any = None) -> Any:
        return fields.get(f"tokenizer.ggml.{name}", default)

    tokens = get("tokens")
    match get("model"):
        case "gpt2":
            backend = _byte_level(path, tokens, get("merges", []), get("pre", "default"))
        case "llama":
            backend = _sentencepiece(tokens, get("merges"), get("scores"), get("add_space_prefix", True))
        case kind:
            raise UserError(f"{path}: tokenizer.ggml.model {kind!r} is not supported. Supported are gpt2 and llama.")
    types = get("token_type", [])
    backend.add_special_tokens(_added(tokens, types, _CONTROL, special=True))
    backend.add_tokens(_added(tokens, types, _USER_DEFINED, special=False))
    ids = {name: get(f"{key}_token_id") for name, key in _SPECIAL.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        add_bos_token=get("add_bos_token", get("model") == "llama"),
        add_eos_token=get("add_eos_token", False),
        chat_template=fields.get("tokenizer.chat_template"),
        **{name: None if index is None else tokens[index] for name, index in ids.items()},
    )


def _byte_level(path: Path, tokens: Sequence[str], merges: Sequence[str], pre: str) -> Tokenizer:
    """Builds a byte-level BPE, the tokenizer of GPT-2, Llama 3 and SmolLM2."""
    if pre not in _SPLITS:
        raise UserError(f"{path}: tokenizer.ggml.pre {pre!r} is not supported. Supported are {', '.join(_SPLITS)}.")
    split = _SPLITS[pre]
    # These vocabularies come from tiktoken, which takes a word of the vocabulary whole, without merges.
    backend = Tokenizer(BPE(_vocabulary(tokens), _pairs(merges), ignore_merges=split is not None))
    if split is None:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        cut = pre_tokenizers.Split(Regex(split), behavior="isolated")
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([cut, letters])
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(
    tokens: Sequence[str], merges: Sequence[str] | None, scores: Sequence[float], prefix_space: bool
) -> Tokenizer:
    """Builds SentencePiece's BPE with bytes for unknown characters, the tokenizer of Llama 2 and Mistral."""
    pairs = _merges(tokens, scores) if merges is None else _pairs(merges)
    backend = Tokenizer(BPE(_vocabulary(tokens), pairs, fuse_unk=True, byte_fallback=True))
    scheme = "first" if prefix_space else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", left=1)] if prefix_space else steps)
    return backend


def _pairs(merges: Sequence[str]) -> list[tuple[str, str]]:
    """Splits each ``"a b"`` into ``("a", "b")``."""
    return [(left, right) for left, right in (merge.split(" ") for merge in merges)]


def _merges(tokens: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Returns the merges that a vocabulary implies: all pairs that form a token, best score first."""
    ids = _vocabulary(tokens)
    merges = []
    for token, score in zip(tokens, scores, strict=True):
        splits = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [pair for pair in splits if pair[0] in ids and pair[1] in ids]
        merges += [(score, pair) for pair in sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))]
    merges.sort(key=lambda merge: (merge[0], len(merge[1][0]), len(merge[1][1])), reverse=True)
    return [pair for _, pair in merges]


def _vocabulary(tokens: Sequence[str]) -> dict[str, int]:
    return {token: index for index, token in enumerate(tokens)}


def _added(tokens: Sequence[str], types: Sequence[int], kind: int, *, special: bool) -> list[AddedToken]:
    """Returns the tokens of one type, which are matched before the text is split."""
    matching = [token for token, token_type in zip(tokens, types, strict=False) if token_type == kind]
    return [AddedToken(token, normalized=False, special=special) for token in matching]


def _quiet_transformers() -> None:
    """Silences the advice of ``transformers`` to install PyTorch; only its tokenizers are used here."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
