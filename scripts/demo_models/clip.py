"""A small CLIP: which sentence belongs to which scene (Radford et al. 2021, arXiv:2103.00020)."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from demo_models.data import SIZE, Scenes
from demo_models.tokens import POSITIONS, Tokens, write_tokenizer
from demo_models.training import Array, Schedule, Task, Weights, holding

PROJECTION = 64
TEXT = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 4}
VISION = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
PATCH = 8
MEAN, STD = 0.5, 0.25
"""Of colours from 0 to 1, all alike."""


def config(vocabulary: int) -> CLIPConfig:
    """The sizes of the model."""
    ends = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
    text = {"vocab_size": vocabulary, "max_position_embeddings": POSITIONS, "hidden_act": "gelu"} | TEXT | ends
    vision = {"image_size": SIZE, "patch_size": PATCH, "hidden_act": "gelu"} | VISION
    return CLIPConfig(
        text_config=CLIPTextConfig(**text, projection_dim=PROJECTION).to_dict(),
        vision_config=CLIPVisionConfig(**vision, projection_dim=PROJECTION).to_dict(),
        projection_dim=PROJECTION,
    )


def pixels(images: Array, device: str) -> Tensor:
    """The model's inputs: float32 [n, 3, 64, 64], of uint8 images."""
    found = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2)
    return ((found.float() / 255 - MEAN) / STD).contiguous()


class LearnCLIP(Task):
    """Contrastive learning over the pairs of a batch."""

    name = "clip"

    def __init__(self, scenes: Scenes, held_out: Scenes, tokens: Tokens, schedule: Schedule, device: str) -> None:
        torch.manual_seed(1)
        self.model = CLIPModel(config(tokens.vocabulary)).to(device).train()
        self.scenes, self.held_out, self.schedule, self.device = scenes, held_out, schedule, device
        self.tokens, self.held_out_tokens = tokens.of(scenes.captions), tokens.of(held_out.captions)
        self.texts = np.array(scenes.captions)
        self.weights = dict(self.model.named_parameters())

    @property
    def rows(self) -> int:
        return len(self.scenes)

    def loss(self, rows: Array, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        images = self.scenes.images[rows]
        tokens = self._short(self.tokens[rows])
        image, text = self._embed(pixels(images, self.device), tokens)
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=np.log(100))
        logits = self.model.logit_scale.exp() * image @ text.T
        # Two scenes with one sentence are both correct.
        _, same = np.unique(self.texts[rows], return_inverse=True)
        names = torch.from_numpy(same).to(self.device)
        target = (names[:, None] == names[None]).float()
        target /= target.sum(dim=1, keepdim=True)
        loss = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
        right = (target.gather(1, logits.argmax(1, keepdim=True)) > 0).float().mean()
        return loss, {"right": right.item()}

    def _short(self, tokens: Array) -> Tensor:
        """Cut the places after all sentences have ended: later places do not change earlier ones."""
        ended = tokens == tokens[0, -1]
        longest = int(ended.argmax(axis=1).max()) + 1
        return torch.from_numpy(tokens[:, :longest].astype(np.int64)).to(self.device)

    def _embed(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        vision = self.model.vision_model(pixel_values=images).pooler_output
        text = self.model.text_model(input_ids=tokens).pooler_output
        image, caption = self.model.visual_projection(vision), self.model.text_projection(text)
        return functional.normalize(image, dim=-1), functional.normalize(caption, dim=-1)

    @torch.no_grad()
    def measure(self, weights: Weights) -> dict[str, float]:
        """Retrieval among 64 distinct captions, both ways."""
        with holding(self.model, weights):
            found = [
                self._embed(pixels(self.held_out.images[at : at + 100], self.device), self._short(self.held_out_tokens[at : at + 100]))
                for at in range(0, len(self.held_out), 100)
            ]  # fmt: skip
        image, text = (torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True))
        return {
            "image_to_text": retrieval(image, text, self.held_out.captions),
            "text_to_image": retrieval(text, image, self.held_out.captions),
        }

    def export(self, folder: Path, weights: Weights) -> None:
        """Write the model in transformers' format, in half precision."""
        self.model.load_state_dict(weights, strict=False)
        self.model.half().save_pretrained(folder)
        write_tokenizer(folder)
        side = {"height": SIZE, "width": SIZE}
        CLIPImageProcessorPil(
            size={"shortest_edge": SIZE}, crop_size=side, image_mean=[MEAN] * 3, image_std=[STD] * 3
        ).save_pretrained(folder)


def different(captions: list[str]) -> Array:
    """The first row of every caption, in order."""
    _, first = np.unique(captions, return_index=True)
    return np.sort(first)


def retrieval(queries: Array, keys: Array, captions: list[str], among: int = 64) -> float:
    """How often a query's own key is the nearest among those of ``among`` different captions; unit vectors."""
    rows = different(captions)
    groups = [rows[at : at + among] for at in range(0, len(rows) - among + 1, among)]
    right = [(queries[g] @ keys[g].T).argmax(1) == np.arange(among) for g in groups]
    return float(np.mean(right))
