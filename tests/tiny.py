"""Small random models in Hugging Face's layout, made on the spot."""

import atexit
import re
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

SIDE = 32  # pixels
SQUARE = {"size": {"height": SIDE, "width": SIDE}}
CROPPED = {"size": {"shortest_edge": 36}, "crop_size": {"height": SIDE, "width": SIDE}, "resample": 3}
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": SIDE,
    "patch_size": 8,
}
WORDS = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 10,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
DINO = {k: v for k, v in VIT.items() if k != "intermediate_size"} | {"mlp_ratio": 2, "image_size": 48}
STAGES = {"hidden_sizes": [8, 8, 12, 20], "depths": [1, 1, 1, 1]}

# kind: (network, image processor), each made with the module `transformers`
VISION: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    "dinov2": lambda hf: (hf.Dinov2Model(hf.Dinov2Config(**DINO)), hf.BitImageProcessorPil(**CROPPED)),
    "vit": lambda hf: (hf.ViTModel(hf.ViTConfig(**VIT)), hf.ViTImageProcessorPil(**SQUARE)),
    "deit": lambda hf: (hf.DeiTModel(hf.DeiTConfig(**VIT)), hf.DeiTImageProcessorPil(**SQUARE, do_center_crop=False)),
    "beit": lambda hf: (
        hf.BeitModel(hf.BeitConfig(**VIT, use_mean_pooling=True)),
        hf.BeitImageProcessorPil(**SQUARE, do_center_crop=False),
    ),
    "clip": lambda hf: (
        hf.CLIPModel(hf.CLIPConfig(text_config=WORDS, vision_config=VIT, projection_dim=8)),
        hf.CLIPImageProcessorPil(**CROPPED),
    ),
    "siglip": lambda hf: (
        hf.SiglipModel(hf.SiglipConfig(text_config=WORDS | {"projection_size": 16}, vision_config=VIT)),
        hf.SiglipImageProcessorPil(**SQUARE),
    ),
    "convnext": lambda hf: (
        hf.ConvNextModel(hf.ConvNextConfig(**STAGES)),
        hf.ConvNextImageProcessorPil(size={"shortest_edge": SIDE}),
    ),
    "convnextv2": lambda hf: (
        hf.ConvNextV2Model(hf.ConvNextV2Config(**STAGES)),
        hf.ConvNextImageProcessorPil(size={"shortest_edge": SIDE}, crop_pct=0.875),
    ),
    "resnet": lambda hf: (
        hf.ResNetModel(hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1])),
        hf.ConvNextImageProcessorPil(size={"shortest_edge": SIDE}),
    ),
    "swin": lambda hf: (
        hf.SwinModel(
            hf.SwinConfig(image_size=SIDE, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=2)
        ),
        hf.ViTImageProcessorPil(**SQUARE),
    ),
}


def save_vision(folder: Path, kind: str) -> Path:
    """A small random image model of that kind, with its preprocessor_config.json."""
    import transformers as hf

    torch.manual_seed(0)
    network, processor = VISION[kind](hf)
    with torch.no_grad():  # a class token, gains and biases as training leaves them: no two alike
        for parameter in network.parameters():
            parameter += torch.randn_like(parameter) * 0.05
    network.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@cache
def tiny_vision(kind: str) -> Path:
    """The folder of such a model, made once for a process."""
    place = tempfile.TemporaryDirectory()
    atexit.register(place.cleanup)
    return save_vision(Path(place.name) / kind, kind)


def here(spec: str) -> str:
    """A spec whose "tiny:KIND" is such a folder: no path is in a test's name, so that all test processes agree on it."""
    return re.sub(r"tiny:(\w+)", lambda found: str(tiny_vision(found[1])), spec)
