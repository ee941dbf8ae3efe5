"""One tiny encoder and tiny items a modality, and episodes over them; shared by the contract tests."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from multifsl.encoder import Encoder, Features
from multifsl.episode import Batch, Episode, Inputs, map_inputs
from multifsl.registry import build

MODALITIES = ("features", "image", "image with batch statistics", "speech", "text")


class WordBag(Encoder):
    """A text encoder without pretrained weights: token ids by character codes, embedded and averaged over the valid ones."""

    modality = "text"

    def __init__(self, dim: int = 6) -> None:
        super().__init__()
        self.dim = dim
        self.table = torch.nn.Embedding(128, dim)

    def load(self, item: Any) -> Any:
        return [min(ord(c), 127) for c in item]

    def collate(self, loaded: Any) -> Inputs:
        longest = max(len(ids) for ids in loaded)
        ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids in loaded])
        mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in loaded])
        return {"input_ids": ids, "attention_mask": mask}

    def forward(self, x: Inputs) -> torch.Tensor:
        assert isinstance(x, dict)
        mask = x["attention_mask"].unsqueeze(2).to(self.table.weight.dtype)
        return (self.table(x["input_ids"]) * mask).sum(1) / mask.sum(1).clamp(min=1)


def encoder(modality: str) -> Encoder:
    torch.manual_seed(0)
    made: dict[str, Any] = {
        "features": lambda: Features(6),
        "image": lambda: build("encoders", "conv4(width=8, norm='group', channels=1, image_size=16)"),
        "image with batch statistics": lambda: build("encoders", "conv4(width=8, channels=1, image_size=16)"),
        "speech": lambda: build("encoders", "ecapa(channels=8, dim=6)"),
        "text": WordBag,
    }
    network: Encoder = made[modality]()
    return network


def items(modality: str, labels: np.ndarray, seed: int = 0) -> list[Any]:
    """Items that their class tells apart: a place, a pitch, a letter."""
    rng = np.random.default_rng(seed)
    made: list[Any] = []
    for label in labels:
        if modality == "features":
            v = rng.normal(size=6) * 0.2
            v[label % 6] += 3 + label // 6
            made.append(v)
        elif modality.startswith("image"):
            pixels = rng.integers(0, 60, (16, 16)).astype(np.uint8)
            pixels[:, 3 * label : 3 * label + 3] = 255
            made.append(Image.fromarray(pixels))
        elif modality == "speech":
            t = np.arange(2400 + int(rng.integers(0, 800))) / 16000
            tone = np.sin(2 * np.pi * 300 * 2**label * t) * (t % 0.06 < 0.03)  # a steady one would be normalised away
            made.append((tone * 0.5 + rng.normal(size=len(t)) * 0.01, 16000))
        else:
            made.append(chr(97 + label) * int(rng.integers(3, 8)) + "".join(rng.choice(list("xyz"), 2)))
    return made


def episodes(
    network: Encoder,
    modality: str,
    *,
    tasks: int = 2,
    way: int = 3,
    shot: int = 2,
    query: int = 2,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Episode:
    """A meta-batch [T, ...] of toy episodes."""
    sy, qy = np.repeat(np.arange(way), shot), np.repeat(np.arange(way), query)
    x = network.preprocess([i for t in range(tasks) for i in items(modality, np.concatenate([sy, qy]), seed + t)])
    x = map_inputs(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, x)
    x = map_inputs(lambda leaf: leaf.unflatten(0, (tasks, -1)), x)
    s = len(sy)
    return Episode(
        Batch(map_inputs(lambda leaf: leaf[:, :s], x), torch.from_numpy(sy).repeat(tasks, 1)),
        Batch(map_inputs(lambda leaf: leaf[:, s:], x), torch.from_numpy(qy).repeat(tasks, 1)),
        torch.ones(tasks, way, dtype=torch.bool),
        False,
    )


def one(episodes: Episode, t: int) -> Episode:
    """Task t of a meta-batch, as a meta-batch of one."""

    def pick(leaf: torch.Tensor) -> torch.Tensor:
        return leaf[t : t + 1]

    (sx, sy), (qx, qy), present, padded = episodes
    return Episode(Batch(map_inputs(pick, sx), pick(sy)), Batch(map_inputs(pick, qx), pick(qy)), pick(present), padded)
