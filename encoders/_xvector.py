"""The x-vector head of published speaker models, such as WavLM's.

Snyder, Garcia-Romero, Sell, Povey, Khudanpur: X-Vectors: Robust DNN Embeddings for Speaker Recognition. ICASSP 2018.

    a linear map, dilated convolutions with ReLU, mean and deviation over the frames, a linear map

It is that of the `...ForXVector` classes of Hugging Face's transformers, with one mend: these count, where a batch is padded, too
many frames of the shorter clips, since they leave out the dilation.

Shape letters: B clips, F frames, C channels, W width of the network's states, D embedding width.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from multifsl.encoders._hub import PICKLED, SAFETENSORS, has_safetensors
from multifsl.encoders._speech import masked_mean
from multifsl.errors import BadFile
from multifsl.functional import full_precision


class XVector(nn.Module):
    """States [B, F, W], of which the first `frames` [B] are a clip's -> x-vectors [B, D].

    config: the model's, with `tdnn_dim`, `tdnn_kernel`, `tdnn_dilation` and `xvector_output_dim`. Where it says
    `use_weighted_layer_sum`, the states are a weighted mean over all layers'. `context` is how many frames the convolutions use up;
    a clip needs two more, for a deviation.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        widths = tuple(config.tdnn_dim)
        shapes = list(zip((widths[0], *widths), widths, config.tdnn_kernel, config.tdnn_dilation, strict=False))
        self.context = sum((kernel - 1) * dilation for _, _, kernel, dilation in shapes)
        layers = config.num_hidden_layers + 1
        self.layer_weights = nn.Parameter(torch.zeros(layers)) if config.use_weighted_layer_sum else None
        self.projector = nn.Linear(config.hidden_size, widths[0])
        self.tdnn = nn.ModuleList(nn.Conv1d(i, o, kernel, dilation=dilation) for i, o, kernel, dilation in shapes)
        self.out = nn.Linear(2 * widths[-1], config.xvector_output_dim)

    def read(self, folder: Path, name: str) -> None:
        """Fill it from the files of the model `name`. Raises BadFile where they do not fit."""
        found = {}
        for key, own in self.state_dict().items():
            theirs = re.sub(r"^out\.", "feature_extractor.", re.sub(r"^(tdnn\.\d+)\.", r"\1.kernel.", key))
            tensor = read_tensor(folder, theirs)
            if tensor is None or tensor.numel() != own.numel():
                raise BadFile(
                    f"the x-vector head of {name} is not that of its config.json: {theirs} is missing or of another shape"
                )
            if own.ndim == 3:  # a convolution, kept as a linear map of [kernel, inputs]
                tensor = tensor.view(own.shape[0], own.shape[2], own.shape[1]).transpose(1, 2)
            found[key] = tensor.float()
        self.load_state_dict(found)

    def forward(self, states: Sequence[Tensor], frames: Tensor) -> Tensor:
        """states: all layers', the last one at the end, or that one alone."""
        h = states[-1]
        if self.layer_weights is not None:
            h = sum(w * state for w, state in zip(self.layer_weights.softmax(0), states, strict=True))
        h = self.projector(h).transpose(1, 2)  # [B, C, F]
        for conv in self.tdnn:
            h = F.relu(conv(h))
        h, count = full_precision(h), frames - self.context
        mask = (torch.arange(h.shape[2], device=h.device) < count[:, None])[:, None]  # [B, 1, F]
        mean = masked_mean(h, mask)  # [B, C, 1]
        square = ((h - mean).square() * mask).sum(2) / (count[:, None] - 1).clamp(min=1)  # [B, C]
        deviation = square.clamp(min=1e-12).sqrt()  # a channel that ReLU has silenced would have no gradient
        z: Tensor = self.out(torch.cat([mean[:, :, 0], deviation], 1).to(self.out.weight.dtype))
        return z


def read_tensor(folder: Path, name: str) -> Tensor | None:
    """One tensor of a model's files; None where there is none of that name."""
    stem, index = ("model", SAFETENSORS[1]) if has_safetensors(folder) else ("pytorch_model", PICKLED[1])
    file = f"{stem}.safetensors" if stem == "model" else f"{stem}.bin"
    if (folder / index).is_file():
        file = json.loads((folder / index).read_text())["weight_map"].get(name)
    if file is None:
        return None
    if stem == "model":
        with safe_open(folder / file, framework="pt") as tensors:
            return tensors.get_tensor(name) if name in tensors.keys() else None  # noqa: SIM118
    found: Tensor | None = torch.load(folder / file, map_location="cpu", weights_only=True).get(name)
    return found
