"""Embeddings of texts of mixed lengths, from the texts to the vectors, by MiniLM-L6 and its published weights.

Ours: an encoder's `preprocess` and `embed`, which run texts of similar length together. transformers: the tokenizer and the model
as the model's own page has them, the mean over the tokens, each batch padded to its longest text. sentence-transformers: `encode`,
which sorts by length, too. Batches of 32 for the peers, the default of sentence-transformers; those of 64 pad more.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Case, Same, Setting, counted, discarding
from multifsl.encoder import Encoder
from multifsl.encoders._hub import find_model
from multifsl.registry import build

TITLE = "Text embedding, MiniLM-L6, texts of 5 to 200 tokens"
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
BATCH = 32  # of the peers

Embed = Callable[[], Tensor]  # [B, D]


def cases(setting: Setting) -> Iterator[Case]:
    yield case(setting, "float32", "float32", 2.5, transformers, 1e-4)
    note = "the peer in float32, as its users have it; on a CPU without AMX, bfloat16 products are the slower ones"
    yield case(setting, "bfloat16", "bfloat16", 5.0, transformers, 1e-3, note)
    note = "this peer sorts by length, too, so that little is left to be gained"
    yield case(setting, "float32, beside batches sorted by length", "float32", 1.0, sentence_transformers, 1e-4, note)


def case(
    setting: Setting,
    name: str,
    precision: str,
    aim: float,
    peer: Callable[[Setting], Embed],
    within: float,
    note: str = "",
) -> Case:
    def same() -> list[Same]:
        lowest = F.cosine_similarity(ours(setting, precision)().float(), peer(setting)()).min()
        return [Same("lowest cosine", float(lowest), 1.0, within)]

    return Case(
        name,
        lambda: discarding(ours(setting, precision)),
        {peer.__name__.replace("_", "-"): lambda: discarding(peer(setting))},
        aim,
        same,
        flops=lambda: counted(ours(setting, precision)),
        precision=precision,
        inner=len(texts(setting)),
        unit="text",
        note=note,
    )


@cache
def texts(setting: Setting) -> list[str]:
    """Customers' messages, one to fifteen of them as one text: half are short, one in ten is four times as long as those."""
    chance = np.random.default_rng(0)
    messages = [text for name in ("banking77", "clinc150") for text in build("tasks", name).items("test").items]
    counts = np.minimum(chance.geometric(0.4, setting.pick(160, 4)), 15)
    return [" ".join(chance.choice(messages, count)) for count in counts]


def ours(setting: Setting, precision: str) -> Embed:
    return partial(_ours, network(setting.device, precision), texts(setting))


@cache
def network(device: str, precision: str) -> Encoder:
    encoder: Encoder = build("encoders", "transformer")
    return encoder.to(device, getattr(torch, precision))


def _ours(encoder: Encoder, texts: list[str]) -> Tensor:
    return encoder.embed(encoder.preprocess(texts))


@cache
def transformers(setting: Setting) -> Embed:
    from transformers import AutoModel, AutoTokenizer

    folder = find_model(MODEL).folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).to(setting.device).eval()

    @torch.inference_mode()
    def embed() -> Tensor:
        parts = []
        for start in range(0, len(texts(setting)), BATCH):
            batch = texts(setting)[start : start + BATCH]
            encoded = tokenizer(batch, padding=True, truncation=True, max_length=256, return_tensors="pt")
            encoded = encoded.to(setting.device)
            states = model(**encoded).last_hidden_state  # [B, L, D]
            weights = encoded["attention_mask"].unsqueeze(-1).to(states.dtype)  # [B, L, 1]
            parts.append((states * weights).sum(1) / weights.sum(1))
        return torch.cat(parts)

    return embed


@cache
def sentence_transformers(setting: Setting) -> Embed:
    from sentence_transformers import SentenceTransformer

    folder = str(find_model(MODEL).folder)  # without a pooling layer's settings: the mean over the tokens
    model = SentenceTransformer(folder, device=setting.device, model_kwargs={"dtype": torch.float32})
    model.max_seq_length = 256

    def embed() -> Tensor:
        return model.encode(texts(setting), batch_size=BATCH, convert_to_tensor=True, show_progress_bar=False)

    return embed
