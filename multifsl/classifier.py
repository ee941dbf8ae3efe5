"""FewShotClassifier: new classes from a handful of examples each, as a scikit-learn estimator.

Shape letters: S support items, Q queries, N classes, D embedding width.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from torch import Tensor

from multifsl.bank import EMBED_BLOCK, Progress, collate_blocks, embed_items, load_all, pad_together, select
from multifsl.checkpoint import (
    build_pair,
    encoder_note,
    load_own,
    load_run,
    own_weights,
    read_pair,
    specs_of,
    versions,
    write_folder,
    write_pair,
)
from multifsl.defaults import open_encoder
from multifsl.encoder import Encoder, Features
from multifsl.episode import Batch, Inputs, map_inputs, size
from multifsl.errors import BadFile, MultifslError
from multifsl.evaluation import check_finite, pick_device
from multifsl.functional import full_precision
from multifsl.method import Method
from multifsl.registry import build, resolved
from multifsl.shipped import SHIPPED
from multifsl.task import Items

MODEL_JSON = "model.json"


class FewShotClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Learns classes from a few examples of each; classes come and go while it is in use.

    Parameters
    ----------
    encoder : None, "image", "speech" or "text", a spec such as "transformer", or an Encoder
        What turns items into embeddings; a modality stands for the best encoder that can be had (see `multifsl.defaults`).
        With None, X are features [n, D].
    method : a spec such as "prototypical(distance='cosine')", or a Method built on that encoder
        One that adapts the encoder keeps the examples themselves, and adapts to them anew whenever they change.
    reject : None
        When to answer `unknown_label`; only None (never) so far.
    false_accept : float
        The share of unknown items that may be taken for known ones, where `reject` asks for it.
    unknown_label : the label of an item of no known class.
    batch_size : items embedded at once.
    device : "auto", "cpu", "cuda" or "mps".

    Attributes
    ----------
    classes_ : array [N], the labels, sorted.
    counts_ : dict, label -> number of examples.

    X is a sequence of what the encoder reads: paths, PIL images, arrays, (waveform, sample_rate) pairs, texts.

    >>> X = np.array([[0.0, 1.0], [0.1, 0.9], [1.0, 0.0], [0.9, 0.2]])
    >>> model = FewShotClassifier().fit(X, ["up", "up", "right", "right"])
    >>> [str(label) for label in model.predict([[0.2, 2.0]])]
    ['up']
    >>> [str(label) for label in model.partial_fit([[-1.0, 0.0]], ["left"]).classes_]
    ['left', 'right', 'up']
    """

    _progress: Progress | None = None  # the command line shows its bar; wraps the loop over blocks of items

    def __init__(
        self,
        encoder: str | Encoder | None = None,
        method: str | Method = "prototypical(distance='cosine')",
        *,
        reject: None = None,
        false_accept: float = 0.05,
        unknown_label: Any = None,
        batch_size: int = 64,
        device: str = "auto",
    ) -> None:
        self.encoder = encoder
        self.method = method
        self.reject = reject
        self.false_accept = false_accept
        self.unknown_label = unknown_label
        self.batch_size = batch_size
        self.device = device

    # ---- learning ----

    def fit(self, X: Any, y: Any) -> Self:
        """Learn the classes of y from the items X, forgetting what was learned before.

        Raises:
            MultifslError: an unknown encoder or method. BadItem: an item that cannot be read, by name. ValueError: X and y do not
            fit together. What was learned before stays where fit fails.
        """
        return self._fit(X, y)._warned_of_one_class()

    def _fit(self, X: Any, y: Any) -> Self:
        self._check_reject()
        with self._features_as_before():
            X, labels = self._checked(X, y, reset=True)
            encoder = self._open_encoder(X.shape[1] if self.encoder is None else None)
            method = self._open_method(encoder, labels)
            self._set_support(method, self._prepare(X, method), labels)
        return self

    def fit_items(self, items: Items, *, progress: Progress | None = None) -> Self:
        """Learn from the items of a scan, such as `Images("photos").items("all")`; those that cannot be read are left out.

        Raises MultifslError naming the classes of which no item is left.
        """
        self._check_reject()
        if self.encoder is None:
            raise MultifslError("items need an encoder")
        method = self._open_method(self._open_encoder(None), items.labels)
        if method.takes_embeddings:
            z, kept = embed_items(method.encoder, items, batch_size=self.batch_size, progress=progress)
            x: Inputs = full_precision(z)
            check_finite(z, kept.items)
        else:
            loaded, positions = load_all(method.encoder, items.items, progress=progress)
            x, kept = self._on_device(collate_blocks(method.encoder, loaded)), select(items, positions)
        counts = np.bincount(kept.labels, minlength=len(items.class_names))
        if not counts.all():
            empty = [items.class_names[i] for i in np.flatnonzero(counts == 0)]
            raise MultifslError(f"no item of {', '.join(map(repr, empty[:5]))} could be read; mend or remove the class")
        self._set_support(method, x, np.array(items.class_names)[kept.labels])
        return self._warned_of_one_class()

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> Self:
        """Learn more examples of known classes, or whole new classes.

        The result equals a `fit` on everything seen. `classes` is there for scikit-learn, and is not needed.
        """
        if not hasattr(self, "method_"):
            return self._fit(X, y)
        X, labels = self._checked(X, y, reset=False)
        if _kind(labels) != _kind(self.classes_):
            raise MultifslError(
                f"the known labels are {_kind(self.classes_)}s, the new ones {_kind(labels)}s; use one kind"
            )
        more = pad_together([self.support_, self._prepare(X, self.method_)])
        self._set_support(self.method_, more, np.concatenate([self.support_labels_, labels]))
        return self

    def forget(self, label: Any) -> Self:
        """Forget a class and its examples. Raises MultifslError where there is no such class, or no other one would be left."""
        check_is_fitted(self)
        label = label.item() if isinstance(label, np.generic) else label
        gone = self.support_labels_ == label
        if not np.any(gone):
            raise MultifslError(f"there is no class {label!r}; known: {_some(self.classes_)}")
        if np.all(gone):
            raise MultifslError(f"{label!r} is the only class; a classifier needs one")
        kept = torch.from_numpy(~gone)
        left = map_inputs(lambda leaf: leaf[kept.to(leaf.device)], self.support_)
        self._set_support(self.method_, left, self.support_labels_[~gone])
        return self

    # ---- answering ----

    def decision_function(self, X: Any) -> np.ndarray:
        """Logits [Q, N] in the order of `classes_`; with two classes [Q], above 0 for the second, as in scikit-learn."""
        logits = self._logits(X)
        scores: np.ndarray = logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits
        return scores

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities [Q, N] over the known classes, in the order of `classes_`."""
        logits = self._logits(X)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities: np.ndarray = odds / odds.sum(axis=1, keepdims=True)
        return probabilities

    def predict(self, X: Any) -> np.ndarray:
        """The label of each item, [Q]."""
        best = self._logits(X).argmax(axis=1)
        labels: np.ndarray = self.classes_[best]
        return labels

    # ---- files ----

    def save(self, path: Path | str, *, overwrite: bool = False) -> None:
        """Write the model as a folder: `model.safetensors` and `model.json`; whole, or not at all.

        It holds the support set (embeddings, or, where the method adapts the encoder, prepared items), and the encoder where its
        weights are our own; published weights are named, with their revision. Raises MultifslError where `path` exists already.
        """
        check_is_fitted(self)
        path, encoder = Path(path), self.method_.encoder
        if path.exists() and not (path / MODEL_JSON).is_file():
            raise MultifslError(f"{path} exists and is no model; choose another place")
        specs = {"encoder": None, "method": resolved(self.method_)}
        info = {
            **(specs if isinstance(encoder, Features) else specs_of(self.method_)),
            "dim": encoder.dim,
            "modality": encoder.modality,
            **encoder_note(encoder),
            "classes": self.classes_.tolist(),
            "n_features": getattr(self, "n_features_in_", None),
            "false_accept": self.false_accept,
            "unknown_label": self.unknown_label,
            "batch_size": self.batch_size,
            "versions": versions(),
        }
        support = {"": self.support_} if isinstance(self.support_, Tensor) else self.support_
        tensors = {
            **{f"support.{k}".removesuffix("."): v for k, v in support.items()},
            "labels": torch.from_numpy(np.searchsorted(self.classes_, self.support_labels_)),
        }
        tensors |= {f"method.{k}": v for k, v in own_weights(self.method_).items()}
        try:
            json.dumps(info)
        except TypeError as error:
            raise MultifslError(
                f"labels are saved as JSON, and must be texts, numbers or truth values: {error}"
            ) from error
        write_folder(path, lambda folder: write_pair(folder, MODEL_JSON, info, tensors), overwrite=overwrite)

    @classmethod
    def load(cls, path: Path | str, *, allow_download: bool = False, device: str = "auto") -> Self:
        """Read a model that `save` wrote. Runs no code from it, and downloads nothing unless `allow_download`.

        Raises:
            MultifslError: no model there; or its encoder's published weights are not on this machine. BadFile: a damaged one.
        """
        path = Path(path)
        info, tensors = read_pair(path, MODEL_JSON, "model")
        source = path / MODEL_JSON
        dim: Any
        classes, dim, batch_size = info.get("classes"), info.get("dim"), info.get("batch_size", 64)
        if not isinstance(info.get("method"), str) or not _is_count(dim) or not _is_count(batch_size):
            raise BadFile(f"{source} lacks the method, the width or the batch size of a model")
        name = info.get("encoder")
        if "encoder" not in info or info.get("n_features") != (dim if name is None else None):
            raise BadFile(f"{source} lacks the encoder of a model, or the number of features of one without encoder")
        if name is None:
            method: Any = build("methods", info["method"], encoder=Features(dim))
        else:
            method = build_pair(info, source, allow_download=allow_download)
        if method.encoder.dim != dim:
            raise BadFile(f"{source}: the encoder {name!r} makes {method.encoder.dim} numbers, not {dim}")
        weights = {k.removeprefix("method."): v for k, v in tensors.items() if k.startswith("method.")}
        load_own(method, weights, info, source, path / "model.safetensors")
        support, labels = _examples(tensors, classes, dim if method.takes_embeddings else None, path)
        where = pick_device(device)
        method.to(where).eval()
        model = cls(
            None if name is None else method.encoder,
            info["method"] if name is None else method,
            false_accept=info.get("false_accept", 0.05),
            unknown_label=info.get("unknown_label"),
            batch_size=batch_size,
            device=device,
        )
        if name is None:
            model.n_features_in_ = dim
        try:
            model._set_support(method, model._on_device(support), labels)
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            raise BadFile(f"the examples in {path / 'model.safetensors'} do not fit the method: {error}") from error
        return model

    @classmethod
    def from_run(
        cls,
        run: Path | str,
        *,
        method: str | None = None,
        way: int | None = None,
        device: str = "auto",
        allow_download: bool = False,
    ) -> Self:
        """A classifier, not yet fitted, on the encoder and the method of a training run: its folder, or "model:NAME".

        method: instead of the run's own. Of the same name, it takes over the run's weights, such as MAML with more steps; of
        another, the encoder's alone, and is made for `way` classes.
        """
        loaded = load_run(run, method=method, way=way, device=pick_device(device), allow_download=allow_download)
        return cls(loaded.method.encoder, loaded.method, device=device)

    @classmethod
    def from_pretrained(
        cls, name: str, *, method: str | None = None, way: int | None = None, device: str = "auto"
    ) -> Self:
        """A classifier, not yet fitted, on a model that comes with the package; `multifsl list models` has them.

        Where the model is an adapter to a published encoder, that one is downloaded if it is not on this machine.

        >>> model = FewShotClassifier.from_pretrained("omniglot-prototypical")
        >>> model.method.encoder.dim
        64
        """
        return cls.from_run(SHIPPED + name.removeprefix(SHIPPED), method=method, way=way, device=device)

    # ---- inside ----

    def _check_reject(self) -> None:
        if self.reject is not None:
            raise MultifslError(f"reject={self.reject!r} is not available in this version; reject=None is")

    def _open_encoder(self, width: int | None) -> Encoder:
        if width is not None:
            return Features(width)
        assert self.encoder is not None
        return open_encoder(self.encoder)

    def _open_method(self, encoder: Encoder, labels: np.ndarray) -> Method:
        if isinstance(self.method, Method):
            if self.method.encoder is not encoder:
                raise MultifslError("the method was built on another encoder than the classifier's; give both anew")
            method: Any = self.method
        else:
            method = build("methods", self.method, encoder=encoder, way=max(2, len(np.unique(labels))))
            method.warn_of_random_weights()
        self._warn(method)
        return method.to(pick_device(self.device)).eval()  # type: ignore[no-any-return]

    def _warned_of_one_class(self) -> Self:
        if len(self.classes_) == 1:
            warnings.warn("there is one class only: every answer will be that one", stacklevel=3)
        return self

    def _warn(self, method: Method) -> None:
        """Of what would give poor answers without a word."""
        name = resolved(method)
        if method.transductive:
            warnings.warn(
                f"{name} is transductive: it answers all items of one `predict` together, and expects some of every class there",
                stacklevel=4,
            )
        if method.wants_base and not method.saw_base:
            warnings.warn(
                f"{name} centres embeddings by the mean of train classes, and has seen none: take a run of it, call its "
                "`learn_base`, or say transform='l2n'",
                stacklevel=4,
            )

    def _checked(self, X: Any, y: Any, *, reset: bool) -> tuple[Any, np.ndarray]:
        """Items and labels that fit together."""
        if not (isinstance(self.batch_size, int) and self.batch_size >= 1):
            raise MultifslError(f"batch_size must be a whole number from 1, not {self.batch_size!r}")
        _check_sequence(X)
        if self.encoder is None:
            X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], reset=reset)
        labels = _labels(y, len(X))
        check_classification_targets(labels)
        return X, labels

    @contextmanager
    def _features_as_before(self) -> Iterator[None]:
        """A fit that fails leaves what scikit-learn notes of the features as it was."""
        noted = ("n_features_in_", "feature_names_in_")
        before = {k: self.__dict__[k] for k in noted if k in self.__dict__}
        try:
            yield
        except BaseException:
            for k in noted:
                self.__dict__.pop(k, None)
            self.__dict__.update(before)
            raise

    def _set_support(self, method: Method, x: Inputs, labels: np.ndarray) -> None:
        """Adapt to all examples, then take the new state over at once."""
        classes, codes = np.unique(labels, return_inverse=True)
        if method.max_way is not None and len(classes) > method.max_way:
            raise MultifslError(
                f"{resolved(method)} tells at most {method.max_way} classes apart, not {len(classes)}: train it anew, with "
                f"max_way={len(classes)}"
                + (", or with head='shared'" if hasattr(method, "head") else "")
                + ", or take a method for any number of classes, such as prototypical"
            )
        with torch.inference_mode():
            where = pick_device(self.device)
            y = torch.from_numpy(codes.astype(np.int64)).to(where)
            state = method.adapt(Batch(x, y), torch.ones(len(classes), dtype=torch.bool, device=where))
        self.method_, self.state_, self.support_, self.support_labels_, self.classes_ = (
            method,
            state,
            x,
            labels,
            classes,
        )
        self.counts_ = dict(zip(classes.tolist(), np.bincount(codes).tolist(), strict=True))

    def _on_device(self, x: Inputs) -> Inputs:
        where = pick_device(self.device)
        return map_inputs(lambda leaf: leaf.to(where), x)

    def _prepare(self, X: Any, method: Method) -> Inputs:
        """Items, all of which must be readable, as the method takes them: embeddings [B, D], or what the encoder reads."""
        where, encoder = pick_device(self.device), method.encoder
        if isinstance(encoder, Features):
            weights = [p.dtype for p in method.parameters() if p.ndim > 0]  # layers take their own type alone
            dtype = weights[0] if weights else torch.float32 if where.type == "mps" else None
            return torch.tensor(X, dtype=dtype, device=where)  # a copy
        _check_sequence(X)
        if len(X) == 0:
            raise MultifslError("X has no items")
        parts: list[Inputs] = []
        starts = range(0, len(X), EMBED_BLOCK)
        for start in starts if self._progress is None else self._progress(starts, description="embedding items"):
            loaded = [encoder.load(_item(X, i)) for i in range(start, min(start + EMBED_BLOCK, len(X)))]
            x = collate_blocks(encoder, loaded)
            if method.takes_embeddings:
                x = full_precision(encoder.to(where).embed(x, self.batch_size))
            parts.append(x)
        ready = pad_together(parts)
        if method.takes_embeddings:
            assert isinstance(ready, Tensor)
            check_finite(ready, X)
        return self._on_device(ready)

    def _logits(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        if self.encoder is None:
            X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        method = self.method_
        x = self._prepare(X, method)
        if isinstance(x, Tensor) and isinstance(self.support_, Tensor):
            x = x.to(self.support_.dtype)
        # Queries that the method looks at together, and embeddings, which are small, go in at once.
        block = size(x) if method.takes_embeddings or method.transductive else self.batch_size
        with torch.inference_mode():
            parts = [
                method.classify(self.state_, map_inputs(lambda leaf, i=i: leaf[i : i + block], x))  # type: ignore[misc]
                for i in range(0, size(x), max(1, block))
            ]
        logits = torch.cat(parts)
        if bool(logits.isnan().any()):
            raise MultifslError(
                f"{resolved(method)} diverged on these examples: its answers are not numbers; take a smaller learning rate, lr"
            )
        return logits.cpu().double().numpy()

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "state_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        if self.encoder is not None:
            tags.input_tags.two_d_array, tags.input_tags.string = False, True
        return tags


def _check_sequence(X: Any) -> None:
    if isinstance(X, str | Path):
        raise MultifslError(f"X is a sequence of items; one {type(X).__name__} came: write [x]")


def _item(X: Any, index: int) -> Any:
    return X.iloc[index] if hasattr(X, "iloc") else X[index]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**31


def _examples(tensors: dict[str, Tensor], classes: Any, dim: int | None, path: Path) -> tuple[Inputs, np.ndarray]:
    """The support set, embeddings [S, dim] or (dim=None) prepared items, and labels [S] of a model's file.

    Raises BadFile where they do not fit together.
    """
    plain = isinstance(classes, list) and all(isinstance(c, str | int | float) for c in classes)
    if not plain or not classes or len({type(c) for c in classes}) > 1 or sorted(set(classes)) != classes:
        raise BadFile(f"{path / MODEL_JSON}: the classes must be texts or numbers, sorted, each once")
    leaves = {k.removeprefix("support."): v for k, v in tensors.items() if k.startswith("support.")}
    x: Any = tensors.get("support", leaves)
    codes, found = tensors.get("labels"), list(leaves.values()) if x is leaves else [x]
    if (
        codes is None or codes.dtype != torch.int64 or codes.ndim != 1 or sorted(set(codes.tolist())) != list(range(len(classes)))
        or not found or any(codes.shape != leaf.shape[:1] for leaf in found)
        or not all(bool(torch.isfinite(leaf).all()) for leaf in found)
        or (dim is not None and not (x is not leaves and x.ndim == 2 and x.shape[1] == dim and x.is_floating_point()))
    ):  # fmt: skip
        raise BadFile(f"the examples in {path / 'model.safetensors'} do not fit the classes in {MODEL_JSON}")
    labels: np.ndarray = np.array(classes)[codes.numpy()]
    return x, labels


def _labels(y: Any, count: int) -> np.ndarray:
    """Labels as an array [n] of one kind. Raises MultifslError where their number is not that of the items."""
    labels: np.ndarray = (
        column_or_1d(np.asarray(y, dtype=object), warn=True)
        if isinstance(y, list | tuple)
        else column_or_1d(y, warn=True)
    )
    if len(labels) != count:
        raise MultifslError(f"X has {count} items, y has {len(labels)} labels; one label an item is needed")
    if count == 0:
        raise MultifslError("X has no items")
    if labels.dtype == object:
        kinds = {"text" if isinstance(label, str) else type(label).__name__ for label in labels.tolist()}
        if len(kinds) > 1 and "text" in kinds:
            raise MultifslError(f"labels must be of one kind, texts or numbers; here are {' and '.join(sorted(kinds))}")
        labels = np.asarray(labels.tolist())
    if labels.dtype.kind not in "biufUS":
        raise MultifslError(f"labels must be texts or numbers, not {labels.dtype}")
    return labels


def _kind(labels: np.ndarray) -> str:
    return "text" if labels.dtype.kind in "US" else "number"


def _some(classes: np.ndarray) -> str:
    shown = ", ".join(str(c) for c in classes[:20])
    return shown if len(classes) <= 20 else f"{shown}, ... ({len(classes)} in all)"
