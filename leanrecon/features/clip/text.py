"""CLIP's text features as a feature space: the prompt embeddings of Stable Diffusion and Versatile Diffusion."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel

from leanrecon.errors import InputError
from leanrecon.features.clip.cut import look_for_cut
from leanrecon.features.clip.encoder import Encoder
from leanrecon.features.clip.space import CLIPSettings, CLIPSpace
from leanrecon.features.inference import exact_inference
from leanrecon.features.panels import panels
from leanrecon.features.plan import FLOAT, Cost
from leanrecon.features.space import Array, ImageShape, Inputs, Rows
from leanrecon.stores.fingerprint import file_content, fingerprint
from leanrecon.weights.folders import described_by, part_of, read_config
from leanrecon.weights.libraries import require_installed
from leanrecon.weights.needs import Need
from leanrecon.weights.pieces import SPECIAL_TOKENS, TOKENIZERS, Piece
from leanrecon.weights.safetensors import AGAIN

FORMAT = 1
"""Version of the arithmetic from captions to rows."""

AT_ONCE_ON_GPU = 64

TOKENIZER_NBYTES = 30_000_000
"""Bytes of the tokenizer: 49,408 tokens and their merges."""


class CLIPTextSettings(CLIPSettings):
    """``[features.clip-text]``"""

    kind: Literal["clip-text"] = "clip-text"
    form: Literal["sd15", "versatile"]
    """Rows as prompt embeddings of Stable Diffusion 1.5 ("sd15") or of Versatile Diffusion ("versatile")."""


class CLIPText(CLIPSpace):
    """Rows of one vector per token, in C order: 77 × 768 with CLIP ViT-L/14.

    ``form = "sd15"``: the last hidden states after the final layer norm, which are Stable Diffusion 1.5's prompt
    embeddings (Rombach et al. 2022). ``form = "versatile"``: these times the text projection, divided by the norm
    of the projected end token (Ozcelik & VanRullen 2023). Captions are truncated to 77 tokens, and the embeddings of
    one image's captions averaged. On a CPU a row has the same bytes in every batch. On a GPU it may differ by rounding,
    some 1e-6 of its largest number in float32.
    """

    Settings: ClassVar[type[BaseModel]] = CLIPTextSettings
    inputs: ClassVar[Inputs] = "captions"
    at_once_on_gpu = AT_ONCE_ON_GPU

    @classmethod
    def needs(cls, settings: CLIPTextSettings, prefix: str) -> Iterable[Need]:
        pieces = (Piece("network", ("text_encoder", ".")), Piece("tokenizer", ("tokenizer", ".")))
        return (Need(f"{prefix}model", settings.model, pieces),)

    def dims(self, image_shape: ImageShape) -> int:
        return self._encoder.positions * (self._encoder.projection if self._projects else self._encoder.width)

    def check(self) -> None:
        super().check()
        _ = self._tokenizer_files

    def cost(self, image_shape: ImageShape) -> Cost:
        states = (
            self._at_once * 3 * self.dims(image_shape) * FLOAT
        )  # last ones, their projections, and the sums of rows
        return self._cost(states + (TOKENIZER_NBYTES if self._loaded is None else 0), projection=self._projects)

    def made_of(self) -> dict[str, Any]:
        return self._made_of(FORMAT) | {"tokenizer": _tokenizer_content(self._tokenizer_files)}

    def examine(self, captions: Sequence[Sequence[str]]) -> dict[str, Any]:
        """Count captions that are cut at 77 tokens, and the images that these no longer tell apart."""
        _, tokenizer = self._model()

        def tokens(texts: list[str]) -> list[list[int]]:
            found: list[list[int]] = tokenizer(texts, truncation=False, padding=False, verbose=False).input_ids
            return found

        cut = look_for_cut(captions, self._encoder.positions, tokens)
        if not cut.cut:
            return {}
        counts = {"captions_cut": cut.cut, "images_made_alike": cut.alike}
        return {"said": cut.sentence(self._encoder.positions), **{name: n for name, n in counts.items() if n}}

    def encode(self, captions: Sequence[Sequence[str]], rows: Rows) -> Array:
        """Float32 rows [b, dims] of images with these captions: the mean over the captions of each image."""
        if bare := [row for row, texts in zip(rows, captions, strict=True) if not texts]:
            raise InputError(f"row {bare[0]} has no caption", expected="one or more for each row")
        out = np.zeros((len(captions), self.dims((0, 0, 0))), np.float32)
        for some in self._together(captions, rows):
            for (place, _), vector in zip(some, self._encode([text for _, text in some]), strict=True):
                if place is not None:
                    out[place] += vector
        out /= np.array([len(texts) for texts in captions], np.float32)[:, None]
        return out

    def _together(self, captions: Sequence[Sequence[str]], rows: Rows) -> Iterator[Sequence[tuple[int | None, str]]]:
        """Captions that go through the network together, each with its row's place; None where one fills up a panel."""
        if self.device != "cpu":
            every = [(place, text) for place, texts in enumerate(captions) for text in texts]
            yield from (every[start : start + self._at_once] for start in range(0, len(every), self._at_once))
            return
        for panel in panels(rows, self._at_once):
            places = range(len(captions))[panel.asked]
            for k in range(max(len(captions[place]) for place in places)):
                some: list[tuple[int | None, str]] = [(None, "")] * len(panel.rows)
                for place, at in zip(places, panel.places.tolist(), strict=True):
                    if k < len(captions[place]):
                        some[at] = place, captions[place][k]
                yield some

    def unconditional(self) -> Array:
        """The row [dims] in float32 of an empty caption."""
        row: Array = self._encode([""])[0]
        return row

    def _encode(self, texts: list[str]) -> Array:
        """Float32 rows [n, dims] of texts."""
        model, tokenizer = self._model()
        with described_by(self._tokenizer_files[0]):
            tokens = tokenizer(
                texts, padding="max_length", max_length=self._encoder.positions, truncation=True, return_tensors="pt"
            ).input_ids
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
            require_installed("torch", "transformers")
            files = self._tokenizer_files
            from transformers import CLIPTokenizer

            model = self._encoder.load(projection=self._projects, precision=self.precision, device=self.device)
            with described_by(files[0]):
                tokenizer = CLIPTokenizer.from_pretrained(files[0].parent, local_files_only=True)
            self._loaded = model, tokenizer
        loaded: tuple[Any, Any] = self._loaded
        return loaded


def _tokenizer_content(files: Sequence[Path]) -> dict[str, Any]:
    """All that decides how captions become tokens: contents of files, and of the config all but paths and names."""
    content: dict[str, Any] = {path.name: file_content(path) for path in files if path.name != SPECIAL_TOKENS[0]}
    for path in files:
        if path.name == SPECIAL_TOKENS[0]:
            config = {k: v for k, v in read_config(path).items() if k.endswith("_token") or k == "do_lower_case"}
            content[path.name] = fingerprint(config)
    return content
