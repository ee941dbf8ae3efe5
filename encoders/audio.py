"""Audio: any Hugging Face speech or sound encoder, its frame states pooled into one vector.

Models: WavLM (https://arxiv.org/abs/2110.13900), wav2vec 2.0 (https://arxiv.org/abs/2006.11477), HuBERT
(https://arxiv.org/abs/2106.07447), UniSpeech-SAT (https://arxiv.org/abs/2110.05752) and their kin; the encoder of Whisper
(https://arxiv.org/abs/2212.04356); AST (https://arxiv.org/abs/2104.01778).
Input: clips as files, or pairs (waveform, sample_rate); {"wave": int16 [B, L] at 16 kHz, "length": int64 [B]}; brought into the
model's own form (normalised waves, log-mel frames) as its feature extractor does it. A clip that is shorter than the model can
read (0.33 s for WavLM's x-vector) is repeated up to that. Whisper reads the first 30 s of a clip, AST 10.26 s.
Output: the model's x-vector, where it has that head ("xvector"), else the mean over the clip's frames ("mean"); raw.
Weights: as published; the default, microsoft/wavlm-base-plus-sv, tells speakers apart: D = 512, 100 million parameters, made from
94,000 hours of speech, most of it English, and fine-tuned on VoxCeleb1; for its licence, see its page.

Padding never changes an embedding. Where a network has a group norm over time (the base models of wav2vec 2.0, HuBERT and WavLM),
its statistics are taken over the clip alone. A network that sees padding in another way, which is found by trying, is run on
clips of equal length together. Training drops no layers and masks no spans.

Shape letters: B clips, L samples, F frames, W width of the network's states, D embedding width.
"""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multifsl.encoder import Encoder
from multifsl.encoders._hub import find_model, first_line
from multifsl.encoders._lora import add_lora, check_lora
from multifsl.encoders._models import in_blocks_of_length, keep_used, load_model, make_constant
from multifsl.encoders._padding import MaskedGroupNorm, by_length, conv_frames, conv_samples, valid_frames
from multifsl.encoders._speech import SAMPLE_RATE, load_waveform, masked_mean, stack_waves
from multifsl.encoders._voice import cut, load_speech
from multifsl.encoders._waves import HOP, AstFrames, WhisperFrames, waves_reader
from multifsl.encoders._xvector import XVector
from multifsl.episode import Inputs
from multifsl.errors import BadFile, MultifslError
from multifsl.functional import full_precision, without_autocast
from multifsl.windows import Windows

LONGEST = 3 * SAMPLE_RATE  # samples of speech that a speaker's embedding is made of at once


class TruncatedClipsWarning(UserWarning):
    """A clip is longer than the model reads; the rest of it is not heard."""


class Audio(Encoder):
    """A pre-trained speech or sound encoder.

    Args:
        model: a folder, or a name on the Hugging Face hub; looked for in the hub's cache before the hub itself is asked.
        pooling: "xvector", the model's own speaker embedding; "mean" over the clip's frames; "cls", AST's two class tokens. None
            takes the x-vector where the model has one, else the mean.
        layer: pool the states after so many blocks, from 0 to the model's number; None takes the last ones, after the final norm.
            Not for an x-vector.
        revision: branch, tag or commit on the hub; resolved to the commit's hash.
        lora: freeze the model and train adapters of this rank beside its linear layers; needs `multifsl[lora]`. In WavLM, whose
            attention takes its weights past them, beside those of the other layers.

    Raises:
        DataNotFound: the model is out of reach; says what was tried and what to do.
        BadFile: its files are damaged, or are not those of an audio encoder that is known here.

    >>> encoder = Audio()  # doctest: +SKIP
    >>> encoder.embed(encoder.preprocess([(np.sin(np.arange(16000)), 16000)])).shape  # doctest: +SKIP
    torch.Size([1, 512])
    """

    modality = "speech"
    pretrained = True

    def __init__(
        self,
        model: str = "microsoft/wavlm-base-plus-sv",
        *,
        pooling: Literal["xvector", "mean", "cls"] | None = None,
        layer: int | None = None,
        revision: str | None = None,
        lora: int | None = None,
    ) -> None:
        super().__init__()
        if pooling not in (None, "xvector", "mean", "cls"):
            raise MultifslError(f"no pooling {pooling!r}; known: 'xvector', 'mean', 'cls'")
        check_lora(lora)
        folder, self.revision = find_model(model, revision, "audio")
        self.model = str(folder) if Path(model).expanduser().is_dir() else model
        self.network, extractor = load_model(folder, model, "audio")
        config = self.network.config
        has_head = any(name.endswith("ForXVector") for name in config.architectures or [])
        self.pooling = pooling or ("xvector" if has_head and layer is None else "mean")
        self.layer, self.lora = layer, lora
        self._check_pooling(has_head)
        self.head = XVector(config) if self.pooling == "xvector" else None
        if self.head is not None:
            self.head.read(folder, self.model)
        self._convs: list[list[int]] = [list(getattr(config, name, [])) for name in ("conv_kernel", "conv_stride")]
        least = 1 if self.head is None else self.head.context + 2
        self.reader = waves_reader(extractor, self.model, conv_samples(least, *self._convs))
        _keep_still(self.network)
        if layer is not None:
            _cut(self.network, layer + 1)
        self._warned = False  # once is enough; a server loads all day
        self._apart = False  # whether clips of different lengths must be run apart
        self.dim = self._try_out()
        self.published = lora is None  # adapters are stored
        self.eval()

    def _check_pooling(self, has_head: bool) -> None:
        config, blocks = self.network.config, self.network.config.num_hidden_layers
        if self.pooling == "xvector" and not has_head:
            raise MultifslError(
                f"pooling='xvector' takes the model's x-vector, but {self.model} has no such head; use 'mean'"
            )
        if self.pooling == "cls" and config.model_type != "audio-spectrogram-transformer":
            raise MultifslError(f"pooling='cls' takes AST's class tokens, but {self.model} has none; use 'mean'")
        if self.layer is not None and (self.pooling == "xvector" or self.layer not in range(blocks + 1)):
            raise MultifslError(
                f"layer must be from 0 to {blocks} for {self.model}, with pooling 'mean' or 'cls'; not {self.layer!r} with "
                f"{self.pooling!r}"
            )

    def _try_out(self) -> int:
        """The width of an embedding, found by making some; whether padding changes them; and which weights they depend on."""
        self.eval()
        count, frame = max(self.reader.shortest, SAMPLE_RATE // 2), math.prod(self._convs[1])  # samples
        # Of neighbouring lengths in frames, since a later stride shows with some of them only.
        length = torch.tensor([count] if self.reader.longest else [count + n * frame for n in (0, 1, 2, 5)])
        noise = torch.randn(len(length), 2 * count, generator=torch.Generator().manual_seed(0))
        x: Inputs = {"wave": (noise * 3000).short(), "length": length}
        try:
            with torch.enable_grad():
                z = by_length(self._run, x)
            with torch.no_grad():
                padded = self._run(x)
        except Exception as error:
            raise BadFile(f"{self.model} cannot be used as an audio encoder: {first_line(error)}") from error
        if not z.isfinite().all():
            raise BadFile(f"the weights of {self.model} are damaged: a clip's embedding is not finite")
        self._apart = not torch.allclose(padded, z, rtol=1e-3, atol=1e-4 * float(z.detach().abs().max()))
        keep_used(self, z)
        if self.lora is not None:
            self._adapt(x, self.lora)
        return z.shape[1]

    def _adapt(self, x: Inputs, rank: int) -> None:
        """Add adapters, without those that no embedding depends on, beside weights that are taken past their layer."""
        add_lora(self, rank)
        adapters = [p for p in self.parameters() if p.requires_grad]
        with torch.enable_grad():
            found = torch.autograd.grad(self._run(x).sum(), adapters, allow_unused=True)
        unused = {id(adapter) for adapter, gradient in zip(adapters, found, strict=True) if gradient is None}
        make_constant(self, lambda parameter: id(parameter) in unused)

    def load(self, item: Any) -> np.ndarray:
        """A clip as int16 [n], as long as the model needs it and no longer than it reads."""
        wave, longest = load_waveform(item), self.reader.longest
        if longest is not None and len(wave) > longest:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"a clip of {len(wave) / SAMPLE_RATE:.1f} s: {self.model} reads the first {longest / SAMPLE_RATE:.4g} s, and "
                    "what is beyond is not heard",
                    TruncatedClipsWarning,
                    stacklevel=4,
                )
            return wave[:longest]
        return wave if len(wave) >= self.reader.shortest else np.resize(wave, self.reader.shortest)

    def windows(self, item: Any) -> Windows:
        """With pooling="xvector", the clip's speech in pieces of 3 s; else the clip as it is, which need not be speech."""
        if self.head is None:
            return super().windows(item)
        wave, seconds = load_speech(item)
        return Windows([self.load((piece, SAMPLE_RATE)) for piece in cut(wave, LONGEST)], seconds)

    def collate(self, loaded: Sequence[Any]) -> Inputs:
        return stack_waves(loaded)

    def forward(self, x: Inputs) -> Tensor:
        assert isinstance(x, dict)
        if self.reader.longest is not None:  # such a network has all clips brought to one length
            return self._run(x)
        if torch._C._functorch.is_batchedtensor(x["length"]):
            raise MultifslError(f"{self.model} cannot be vectorised over tasks by torch.vmap; take vectorize=False")
        return by_length(self._run, x) if self._apart else in_blocks_of_length(self._run, x)

    def _run(self, x: Inputs) -> Tensor:
        assert isinstance(x, dict)
        # A row that is not there has a length of 0.
        length = x["length"].clamp(self.reader.shortest, self.reader.longest)
        inputs = self._read(x["wave"], length)
        every = self.layer is not None or (self.head is not None and self.head.layer_weights is not None)
        padded = inputs.get("attention_mask") is not None
        token = valid_frames.set(conv_frames(length, *(c[:1] for c in self._convs)) if padded else None)
        try:
            with warnings.catch_warnings():  # WavLM gives torch a mask of booleans and one of numbers
                warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask and attn_mask")
                output = self.network(**inputs, output_hidden_states=every)
        finally:
            valid_frames.reset(token)
        states: Sequence[Tensor] = output.hidden_states if every else [output.last_hidden_state]  # each [B, F, W]
        if self.head is not None:
            z: Tensor = self.head(states, self.network._get_feat_extract_output_lengths(length))
            return z
        chosen = states[-1 if self.layer is None else self.layer]
        if self.pooling == "cls":
            return chosen[:, :2].mean(1)
        valid = self._valid(chosen.shape[1], length)
        return masked_mean(full_precision(chosen).transpose(1, 2), valid[:, None])[:, :, 0]

    def _read(self, wave: Tensor, length: Tensor) -> dict[str, Tensor | None]:
        """What the network reads of waves [B, L], as its keyword arguments."""
        dtype = next(self.network.parameters()).dtype
        with without_autocast(wave):
            wave = wave.to(torch.promote_types(dtype, torch.float32)) / (1 if wave.is_floating_point() else 32768)
            wave = F.pad(wave, (0, max(0, self.reader.shortest - wave.shape[1])))
            wave = wave * (torch.arange(wave.shape[1], device=wave.device) < length[:, None])
            inputs: dict[str, Tensor | None] = self.reader(wave, length)
        return {k: v.to(dtype) if v is not None and v.is_floating_point() else v for k, v in inputs.items()}

    def _valid(self, width: int, length: Tensor) -> Tensor:
        """Which of the network's states are a clip's, bool [B, F]."""
        if isinstance(self.reader, AstFrames):
            # Two class tokens, then patches: all in time of one band, then those of the next.
            config = self.network.config
            starts = torch.arange(
                0, self.reader.frames - config.patch_size + 1, config.time_stride, device=length.device
            )
            inside = starts < self.reader.counts(length)[:, None]  # those that begin within the clip
            return torch.cat([inside.new_zeros(len(inside), 2), inside.repeat(1, (width - 2) // len(starts))], 1)
        if isinstance(self.reader, WhisperFrames):  # of 20 ms; the last one need not be full
            frames = torch.div(length - 1, 2 * HOP, rounding_mode="floor") + 1
        else:
            frames = self.network._get_feat_extract_output_lengths(length)
        return torch.arange(width, device=length.device) < frames[:, None]


def _keep_still(network: Any) -> None:
    """Let training drop no layers, mask no spans and leave Whisper's positions, and group norms count valid frames alone."""
    for owner in (network, network.config):  # Whisper keeps a copy
        for name in ("layerdrop", "encoder_layerdrop", "mask_time_prob", "mask_feature_prob"):
            if getattr(owner, name, 0):
                setattr(owner, name, 0.0)
    if network.config.model_type == "whisper":
        network.embed_positions.requires_grad_(False)  # sines, which the library frees when it reads them
    for module in network.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = MaskedGroupNorm


def _cut(network: Any, blocks: int) -> None:
    """Leave out what comes after so many blocks, where they are found; it would be computed for nothing."""
    owner = getattr(network, "encoder", network)
    if isinstance(getattr(owner, "layers", None), nn.ModuleList):
        owner.layers = owner.layers[:blocks]
