"""CLIP's tokenizer for the words of the scenes' sentences: byte pairs merged until each word is one token."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.datasets.simulated.scenes import MODELS_SEED, compose, describe

Array = np.ndarray[Any, Any]

POSITIONS = 77
_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"
_SCENES = 2_000
"""Of which the words are taken: every word comes far more often."""


def write_tokenizer(folder: Path) -> None:
    """Write vocab.json, merges.txt and settings in CLIP's published format."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=100_000, min_frequency=1, end_of_word_suffix="</w>", initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator((describe(compose(MODELS_SEED, i)) for i in range(_SCENES)), trainer)
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    names = [*letters, *(f"{letter}</w>" for letter in letters)]
    names += [name for name in dict.fromkeys("".join(pair) for pair in merges) if name not in names]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {name: i for i, name in enumerate([*names, _BEGIN, _END])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": _BEGIN, "eos_token": _END, "unk_token": _END, "pad_token": _END}
    config = special | {"model_max_length": POSITIONS, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))


class Tokens:
    """The tokenizer in a folder."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "vocab.json").exists():
            write_tokenizer(folder)
        self.folder = folder

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import CLIPTokenizer

        return CLIPTokenizer.from_pretrained(self.folder, local_files_only=True)

    @property
    def vocabulary(self) -> int:
        return len(self._tokenizer)

    def of(self, captions: list[str]) -> Array:
        """Token numbers of sentences, int16 [n, 77], padded with the end token."""
        how = {"padding": "max_length", "max_length": POSITIONS, "truncation": True}
        return np.array(self._tokenizer(captions, **how)["input_ids"], np.int16)
