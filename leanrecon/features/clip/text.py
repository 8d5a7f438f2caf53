"""CLIP's description of captions as a feature space: what Stable Diffusion and Versatile Diffusion are told to draw."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from leanrecon.errors import InputError, SettingsError
from leanrecon.features.clip.encoder import Encoder
from leanrecon.features.clip.space import CLIPSettings, CLIPSpace
from leanrecon.features.inference import LIBRARY_NBYTES, exact_inference, imports_nbytes, require
from leanrecon.features.plan import FLOAT, Cost
from leanrecon.features.space import Array, ImageShape, Rows
from leanrecon.stores.fingerprint import file_content, fingerprint
from leanrecon.weights.folders import part_of, read_config
from leanrecon.weights.pieces import SPECIAL_TOKENS, TOKENIZERS
from leanrecon.weights.safetensors import AGAIN

FORMAT = 1
"""Of the arithmetic that leads from captions to rows."""

BATCH = 8
"""Rows between two steps of progress; on a CPU their captions go through the network one by one, which costs little:
0.21 s a caption of one core with ViT-L/14, 0.18 s eight at a time."""

AT_ONCE_ON_GPU = 64

TOKENIZER_NBYTES = 30_000_000
"""CLIP's vocabulary of 49,408 and its merges, in the tokenizer."""


class CLIPTextSettings(CLIPSettings):
    """``[features.clip-text]``"""

    kind: Literal["clip-text"] = "clip-text"
    form: Literal["sd15", "versatile"]
    """As Stable Diffusion 1.5 takes prompts, or as Versatile Diffusion does."""


class CLIPText(CLIPSpace):
    """Rows of one vector a token, in C order: 77 × 768 with CLIP ViT-L/14.

    ``form = "sd15"``: the last hidden states after the final layer norm, which are Stable Diffusion 1.5's prompt
    embeddings (Rombach et al. 2022). ``form = "versatile"``: these times the text projection, divided by the norm
    of the projected end token (Ozcelik & VanRullen 2023). Captions are cut to 77 tokens, and those of one image
    averaged after they are encoded. On a CPU captions go through one by one, so that a row has the same bytes in every
    batch; on a GPU it may differ by rounding, some 1e-6 of its largest number in float32.
    """

    at_once_on_gpu = AT_ONCE_ON_GPU

    def dims(self, image_shape: ImageShape) -> int:
        return self._encoder.positions * (self._encoder.projection if self._projects else self._encoder.width)

    def cost(self, image_shape: ImageShape) -> Cost:
        encoder, at_once = self._encoder, self._at_once
        held = LIBRARY_NBYTES + imports_nbytes("transformers")
        if self._loaded is None:
            parts = encoder.parts(projection=self._projects)
            held += encoder.weights.loading_nbytes(parts, self.precision, self.device) + TOKENIZER_NBYTES
        held += at_once * 3 * self.dims(image_shape) * FLOAT  # last states, projected, and added to their rows
        if self.device == "cpu":
            held += at_once * encoder.state_nbytes(self.precision)
        return Cost(held=held, per_image=0, batch=BATCH if self.device == "cpu" else AT_ONCE_ON_GPU)

    def made_of(self) -> dict[str, Any]:
        return {
            "kind": self.settings.kind,
            "format": FORMAT,
            "form": self.settings.form,
            "precision": self.precision,
            "config": self._encoder.config,
            "weights": self._encoder.weights.content(),
            "tokenizer": _tokenizer_content(self._tokenizer_files),
        }

    def encode(self, images: Array, rows: Rows) -> Array:
        """Raise: it is captions that are described (see ``encode_captions``)."""
        raise SettingsError(f"the feature space {self.name} describes captions, not images")

    def encode_captions(self, captions: Sequence[Sequence[str]], rows: Rows) -> Array:
        """Rows [b, dims] in float32 of images with these captions, the mean over each image's own."""
        if bare := [row for row, texts in zip(rows, captions, strict=True) if not texts]:
            raise InputError(f"row {bare[0]} has no caption", expected="one or more for each row")
        out = np.zeros((len(captions), self.dims((0, 0, 0))), np.float32)
        every = [(place, text) for place, texts in enumerate(captions) for text in texts]
        for start in range(0, len(every), self._at_once):
            some = every[start : start + self._at_once]
            for (place, _), vector in zip(some, self._encode([text for _, text in some]), strict=True):
                out[place] += vector
        out /= np.array([len(texts) for texts in captions], np.float32)[:, None]
        return out

    def unconditional(self) -> Array:
        """The row [dims] of an empty text."""
        row: Array = self._encode([""])[0]
        return row

    def _encode(self, texts: list[str]) -> Array:
        """Each text's row [n, dims]."""
        model, tokenizer = self._model()
        how = {"padding": "max_length", "max_length": self._encoder.positions, "truncation": True}
        tokens = tokenizer(texts, **how, return_tensors="pt").input_ids
        if int(tokens.max()) >= (known := model.text_model.embeddings.token_embedding.num_embeddings):
            raise InputError(
                f"the tokenizer in {self._tokenizer_files[0].parent} has a token {int(tokens.max())} and "
                f"{self._encoder.folder} knows {known}",
                expected="the tokenizer of this model",
            )
        with exact_inference(self.device):
            found = model.text_model(input_ids=tokens.to(self.device))
            states = found.last_hidden_state
            if self._projects:
                states = model.text_projection(states).float()
                pooled = model.text_projection(found.pooler_output).float()
                states = states / pooled.norm(dim=-1, keepdim=True)[:, None]
            rows: Array = states.float().reshape(len(texts), -1).cpu().numpy()
        return rows

    @property
    def _projects(self) -> bool:
        return bool(self.settings.form == "versatile")

    @functools.cached_property
    def _encoder(self) -> Encoder:
        what = "a CLIP, of Stable Diffusion or of Versatile Diffusion"
        return Encoder(part_of(self._root, ("text_encoder", "."), "config.json", what), "text")

    @functools.cached_property
    def _tokenizer_files(self) -> tuple[Path, ...]:
        """The files that decide how captions become tokens."""
        for folder in (self._root / "tokenizer", self._root, self._root / "../tokenizer"):
            for names in TOKENIZERS:
                if all((folder / name).is_file() for name in names):
                    return tuple(folder / name for name in (*names, *SPECIAL_TOKENS) if (folder / name).is_file())
        raise InputError(
            f"{self._root} has no tokenizer",
            expected="tokenizer.json, or vocab.json and merges.txt, in it or in its folder tokenizer",
            todo=AGAIN,
        )

    def _model(self) -> tuple[Any, Any]:
        """The network and the tokenizer, loaded when they are first needed."""
        if self._loaded is None:
            require("torch", "transformers")
            files = self._tokenizer_files
            from transformers import CLIPTokenizer

            model = self._encoder.load(projection=self._projects, precision=self.precision, device=self.device)
            self._loaded = model, CLIPTokenizer.from_pretrained(files[0].parent, local_files_only=True)
        loaded: tuple[Any, Any] = self._loaded
        return loaded


def _tokenizer_content(files: Sequence[Path]) -> dict[str, Any]:
    """All that decides how captions become tokens: contents of files, and of the config what is no path or name."""
    content: dict[str, Any] = {path.name: file_content(path) for path in files if path.name != SPECIAL_TOKENS[0]}
    for path in files:
        if path.name == SPECIAL_TOKENS[0]:
            config = {k: v for k, v in read_config(path).items() if k.endswith("_token") or k == "do_lower_case"}
            content[path.name] = fingerprint(config)
    return content
