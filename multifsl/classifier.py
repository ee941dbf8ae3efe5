"""FewShotClassifier: new classes from a handful of examples each, as a scikit-learn estimator.

Shape letters: S support items, Q queries, N classes, D embedding width.
"""

import math
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d, validate_data
from torch import Tensor

from multifsl.automatic import choose
from multifsl.bank import Progress, collate_blocks, embed_items, embed_windows, load_all, pad_together, select
from multifsl.calibration import prediction_sets, softened
from multifsl.checkpoint import load_run
from multifsl.defaults import open_encoder, warn_of_euclidean
from multifsl.encoder import Encoder, Features
from multifsl.episode import Inputs, map_inputs, size
from multifsl.errors import BadItem, MultifslError
from multifsl.evaluation import DEFAULT_METHOD, check_finite, pick_device
from multifsl.functional import full_precision
from multifsl.learned import Learned, learn, word_for
from multifsl.method import Method
from multifsl.open_set import SCORES
from multifsl.options import check_choice
from multifsl.registry import build, resolved
from multifsl.rejection import FEWEST, Overlap, Rejection, Reliability, check_share
from multifsl.shipped import SHIPPED
from multifsl.store import SETTINGS, check_label, load_model, save_model
from multifsl.task import Items
from multifsl.windows import Windows, warn_of_little_speech


class _Noted:
    """What scikit-learn notes of the features in `fit`: the object's own, else that of what was learned."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, model: Any, owner: type | None = None) -> Any:
        return self if model is None else getattr(model._now.seen, self.name)


class FewShotClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Learns classes from a few examples of each; classes come and go while it is in use.

    Parameters
    ----------
    encoder : None, "image", "speech" or "text", a spec such as "transformer", or an Encoder
        What turns items into embeddings; a modality stands for the best encoder that can be had (see `multifsl.defaults`).
        With None, X are features [n, D].
    method : a spec such as "prototypical(distance='cosine')", "auto", or a Method built on that encoder
        One that adapts the encoder keeps the examples themselves, and adapts to them anew whenever they change. "auto" is the head
        under which the examples, left out in turn, are the likeliest (`multifsl.automatic`); it is chosen anew when they change; a
        saved model keeps the one that it had.
    reject : None, "auto", or a number
        When to answer `unknown_label`: never; where `score_samples` falls short of a threshold that keeps to `false_accept`, set by
        the examples and a background (`multifsl.rejection`); or short of this number. With None it is a classifier as scikit-learn
        has them; else a class may not have the label of unknown items, such as -1.
    false_accept : float
        The share of items of no known class that may be taken for known ones.
    reject_by : the open-set score, see `multifsl.open_set`.
    unknown_label : the label of an item of no known class; None is "unknown" beside texts and -1 beside numbers.
    batch_size : items embedded at once.
    device : "auto", "cpu", "cuda" or "mps".

    Attributes
    ----------
    classes_ : array [N], the labels, sorted.
    counts_ : dict, label -> number of examples.
    temperature_ : float, what the method's logits are divided by, so that probabilities mean what they say.
    threshold_ : float, of `score_samples`, below which an item is unknown (with `reject=None`: that "auto" would set).
    reliability_ : how often unknown items will be accepted and known ones refused, with intervals, and classes that overlap.

    X is a sequence or an iterator of what the encoder reads: paths, PIL images, arrays, (waveform, sample_rate) pairs, texts.
    They are read, embedded and let go in blocks of `batch_size`.

    Any number of threads may ask one model for answers while others change it: each answer is that of the model before a change or
    after it. Changes wait for each other.

    >>> X = np.array([[0.0, 1.0], [0.1, 0.9], [1.0, 0.0], [0.9, 0.2]])
    >>> model = FewShotClassifier().fit(X, ["up", "up", "right", "right"])
    >>> [str(label) for label in model.predict([[0.2, 2.0]])]
    ['up']
    >>> [str(label) for label in model.partial_fit([[-1.0, 0.0]], ["left"]).classes_]
    ['left', 'right', 'up']

    Items of no known class are told from the others where that is asked for; `background` shows what else there is:

    >>> others = np.random.default_rng(0).normal(size=(40, 2)) - [3, 3]
    >>> model = FewShotClassifier(reject="auto").fit(X, ["up", "up", "right", "right"], background=others)
    >>> [str(label) for label in model.predict([[0.05, 1.0], [-1.0, -1.0]])]
    ['up', 'unknown']
    """

    _learned: Learned | None = None  # replaced at once, never changed
    n_features_in_: Any = _Noted()
    feature_names_in_: Any = _Noted()
    _progress: Progress | None = None  # the command line shows its bar; wraps the loop over blocks of items

    def __init__(
        self,
        encoder: str | Encoder | None = None,
        method: str | Method = "prototypical(distance='cosine')",
        *,
        reject: Literal["auto"] | float | None = None,
        false_accept: float = 0.05,
        reject_by: str = "mixed",
        unknown_label: Any = None,
        batch_size: int = 64,
        device: str = "auto",
    ) -> None:
        self.encoder = encoder
        self.method = method
        self.reject = reject
        self.false_accept = false_accept
        self.reject_by = reject_by
        self.unknown_label = unknown_label
        self.batch_size = batch_size
        self.device = device

    # ---- learning ----

    def fit(self, X: Any, y: Any, background: Any = None) -> Self:
        """Learn the classes of y from the items X, forgetting what was learned before.

        background: 20 items or more of no class, as many kinds as can be had, by which unknown items are told (`reject`). Without
            it, that which comes with the package for the encoder, if any.

        Raises:
            MultifslError: an unknown encoder or method. BadItem: an item that cannot be read, by name. ValueError: X and y do not
            fit together. What was learned before stays where fit fails.
        """
        return self._learn(X, y, anew=True, background=background)._warned_of_one_class()

    def fit_items(self, items: Items, *, background: Items | None = None, progress: Progress | None = None) -> Self:
        """Learn from the items of a scan, such as `Images("photos").items("all")`; those that cannot be read are left out.

        background: as in `fit`; of what class they are does not matter.

        Raises MultifslError naming the classes of which no item is left.
        """
        self._check_reject()
        if self.encoder is None:
            raise MultifslError("items need an encoder")
        method = self._open_method(self._open_encoder(None), items.labels)
        if method.takes_embeddings:
            seconds: list[float | None] = []
            z, kept = embed_items(method.encoder, items, batch_size=self.batch_size, progress=progress, seconds=seconds)
            x: Inputs = full_precision(z)
            check_finite(z, kept.items)
            warn_of_little_speech(seconds, [items.class_names[label] for label in kept.labels])
        else:
            loaded, positions = load_all(method.encoder, items.items, progress=progress)
            x, kept = collate_blocks(method.encoder, loaded), select(items, positions)
        counts = np.bincount(kept.labels, minlength=len(items.class_names))
        if not counts.all():
            empty = [items.class_names[i] for i in np.flatnonzero(counts == 0)]
            raise MultifslError(f"no item of {', '.join(map(repr, empty[:5]))} could be read; mend or remove the class")
        where = pick_device(self.device)
        x = map_inputs(lambda leaf: leaf.to(where), x)
        others = None
        if background is not None:
            others, _ = embed_items(
                method.encoder,
                background,
                batch_size=self.batch_size,
                progress=progress,
                seconds=[] if method.takes_embeddings else None,  # as the items
            )
            check_finite(others, background.items)
            others = _enough(full_precision(others).to(where))
        labels = np.array(items.class_names)[kept.labels]
        learned = learn(method, x, labels, seen=FewShotClassifier(), background=others)
        with self._writing:
            self._take(learned)
        return self._warned_of_one_class()

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> Self:
        """Learn more examples of known classes, or whole new classes.

        The result equals a `fit` on everything seen. `classes` is there for scikit-learn, and is not needed.
        """
        return self._learn(X, y)

    def enroll(self, label: Any, X: Any) -> Self:
        """Learn the items X as examples of one class, known or new.

        >>> model = FewShotClassifier().fit([[0.0, 1.0], [1.0, 0.0]], ["up", "right"])
        >>> model.enroll("left", [[-1.0, 0.0], [-2.0, 0.1]]).counts_
        {'left': 2, 'right': 1, 'up': 1}
        """
        return self._learn(X, _Same(_label(label)))

    def forget(self, label: Any) -> Self:
        """Forget a class and its examples. Raises MultifslError where there is no such class, or no other one would be left."""
        with self._writing:
            self._take(self._now.without(_label(label)))
        return self

    def rename(self, old: Any, new: Any) -> Self:
        """Give a class another label. Raises MultifslError where there is no class `old`, or `new` is taken or of another kind.

        >>> model = FewShotClassifier().fit([[0.0, 1.0], [1.0, 0.0]], ["up", "right"])
        >>> model.rename("right", "east").classes_
        array(['east', 'up'], dtype='<U4')
        """
        with self._writing:
            self._take(self._now.renamed(_label(old), _label(new)))
        return self

    # ---- what was learned ----

    @property
    def classes_(self) -> np.ndarray:
        return self._now.classes

    @property
    def counts_(self) -> dict[Any, int]:
        return self._now.counts

    @property
    def method_(self) -> Method:
        return self._now.method

    @property
    def state_(self) -> Any:
        return self._now.state

    @property
    def support_(self) -> Inputs:
        return self._now.x

    @property
    def support_labels_(self) -> np.ndarray:
        return self._now.labels

    @property
    def temperature_(self) -> float:
        return self._now.calibrated.temperature

    @property
    def threshold_(self) -> float:
        return self._rejection(self._now).threshold

    @property
    def reliability_(self) -> Reliability:
        now = self._now
        found, names = self._rejection(now).reliability, now.classes.tolist()
        overlaps = [Overlap(names[a], names[b], share) for a, b, share in found.overlaps]
        return found._replace(overlaps=overlaps)

    # ---- answering ----

    def decision_function(self, X: Any) -> np.ndarray:
        """Logits [Q, N] over `temperature_`, in the order of `classes_`; with two classes [Q], above 0 for the second, as in
        scikit-learn."""
        now = self._now
        logits = self._logits(now, X) / now.calibrated.temperature
        scores: np.ndarray = logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits
        return scores

    def predict_proba(self, X: Any) -> np.ndarray:
        """Calibrated probabilities [Q, N] of the known classes, in the order of `classes_`; of unknown items they say nothing."""
        now = self._now
        return softened(self._logits(now, X), now.calibrated.temperature)

    def predict(self, X: Any) -> np.ndarray:
        """The label of each item, [Q]; `unknown_label` for those that `reject` takes for unknown."""
        return self._answers(X, labels_alone=True).labels

    def predict_all(self, X: Any) -> "Answers":
        """Labels, calibrated probabilities and open-set scores at once, at the price of one.

        >>> model = FewShotClassifier().fit([[0.0, 1.0], [0.1, 1.0], [1.0, 0.0], [1.0, 0.1]], ["up", "up", "right", "right"])
        >>> answers = model.predict_all([[0.0, 2.0]])
        >>> answers.labels.tolist(), answers.known.tolist(), answers.probabilities.shape
        (['up'], [True], (1, 2))
        """
        return self._answers(X)

    def predict_set(self, X: Any, alpha: float = 0.1) -> list[list[Any]]:
        """For each item the labels that hold its own in a share 1 - alpha of cases (conformal sets), the likeliest first.

        A set may be empty: the item is less like any class than so many examples are like theirs (`multifsl.calibration`). Of an
        item of no known class it says nothing.

        Raises MultifslError where alpha is not between 0 and 1.

        >>> model = FewShotClassifier().fit([[0.0, 1.0], [0.1, 1.0], [1.0, 0.0], [1.0, 0.1]], ["up", "up", "right", "right"])
        >>> model.predict_set([[0.0, 2.0]])
        [['up']]
        """
        now, alpha = self._now, _plain(alpha)
        fitted, names = now.calibrated, now.classes.tolist()
        found: list[list[Any]] = []
        for x in self._queries(now, X):
            p = softened(now.logits(x), fitted.temperature)
            sets = prediction_sets(p, fitted.scores, alpha, fitted.threshold(alpha))
            for row, held in zip(p, sets, strict=True):
                found.append([names[i] for i in np.argsort(-row, kind="stable") if held[i]])
        return found

    def score_samples(self, X: Any) -> np.ndarray:
        """How much each item looks like one of any known class, [Q]; larger is more alike (`multifsl.open_set`, `reject_by`)."""
        now = self._now
        rejection = self._rejection(now, reject=0.0 if now.alone else None)  # a score needs no threshold
        parts = [rejection.scores(now.embedded(x, self.batch_size)) for x in self._queries(now, X)]
        scores: np.ndarray = torch.cat(parts).cpu().double().numpy()
        return scores

    def verify(self, label: Any, item: Any) -> "Verification":
        """Whether one item is of the class that it is said to be of, at `false_accept`.

        Raises MultifslError where there is no such class.

        >>> model = FewShotClassifier().fit([[0.0, 1.0], [0.1, 1.0], [1.0, 0.0], [1.0, 0.1]], ["up", "up", "right", "right"])
        >>> model.verify("up", [0.0, 2.0]).accepted, model.verify("up", [2.0, -1.0]).accepted
        (True, False)
        """
        now, label = self._now, _label(label)
        place = now.place_of(label)
        rejection = self._rejection(now)
        if math.isnan(rejection.claim):
            raise MultifslError(
                "one class alone, without a background, tells nothing of who else there is: give one of them"
            )
        (x,) = self._queries(now, [item])
        score = float(rejection.score(now.embedded(x))[0, place])
        return Verification(score, score >= rejection.claim, rejection.claim)

    # ---- files ----

    def save(self, path: Path | str, *, overwrite: bool = False) -> None:
        """Write the model as a folder: `model.safetensors` and `model.json`; whole, or not at all.

        It holds the support set (embeddings, or, where the method adapts the encoder, prepared items), and the encoder where its
        weights are our own; published weights are named, with their revision. Raises MultifslError where `path` exists already.
        """
        save_model(path, self._now, {name: _plain(getattr(self, name)) for name in SETTINGS}, overwrite=overwrite)

    @classmethod
    def load(cls, path: Path | str, *, allow_download: bool = False, device: str = "auto") -> Self:
        """Read a model that `save` wrote. Runs no code from it, and downloads nothing unless `allow_download`.

        Raises:
            MultifslError: no model there; or its encoder's published weights are not on this machine. BadFile: a damaged one.
        """
        learned, settings = load_model(path, allow_download=allow_download, device=pick_device(device))
        method, seen = learned.method, FewShotClassifier()
        if isinstance(method.encoder, Features):
            model = cls(None, resolved(method), **settings, device=device)
            seen.n_features_in_ = method.encoder.dim
        else:
            model = cls(method.encoder, method, **settings, device=device)
        model._check_reject()
        model._learned = replace(learned, seen=seen)
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
        reject: Literal["auto"] | float | None = None,
        false_accept: float = 0.05,
    ) -> Self:
        """A classifier, not yet fitted, on the encoder and the method of a training run: its folder, or "model:NAME".

        method: instead of the run's own. Of the same name, it takes over the run's weights, such as MAML with more steps; of
        another, the encoder's alone, and is made for `way` classes. reject, false_accept: see the class.
        """
        loaded = load_run(run, method=method, way=way, device=pick_device(device), allow_download=allow_download)
        return cls(loaded.method.encoder, loaded.method, device=device, reject=reject, false_accept=false_accept)

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        method: str | None = None,
        way: int | None = None,
        device: str = "auto",
        reject: Literal["auto"] | float | None = None,
        false_accept: float = 0.05,
    ) -> Self:
        """A classifier, not yet fitted, on a model that comes with the package; `multifsl list models` has them.

        Where the model is an adapter to a published encoder, that one is downloaded if it is not on this machine.

        >>> model = FewShotClassifier.from_pretrained("omniglot-prototypical")
        >>> model.method.encoder.dim
        64
        """
        run = SHIPPED + name.removeprefix(SHIPPED)
        return cls.from_run(run, method=method, way=way, device=device, reject=reject, false_accept=false_accept)

    # ---- inside ----

    def _check_reject(self) -> None:
        value = _plain(self.reject)
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
        if not (self.reject is None or self.reject == "auto" or number):
            raise MultifslError(f'reject is None, "auto" or a threshold, not {self.reject!r}')
        check_choice("reject_by", self.reject_by, tuple(SCORES))
        check_share(self.false_accept)

    def _rejection(self, now: Learned, *, reject: Literal["auto"] | float | None = None) -> Rejection:
        self._check_reject()
        reject = self.reject if reject is None else reject
        return now.rejection("auto" if reject is None else _plain(reject), self.reject_by, self.false_accept)

    def _unknown(self, now: Learned) -> Any:
        """The label of unknown items. Raises MultifslError where it is a class's, or of another kind than theirs."""
        text = now.kind.kind in "US"
        label = ("unknown" if text else -1) if self.unknown_label is None else _label(self.unknown_label)
        if isinstance(label, str) != text:
            raise MultifslError(
                f"unknown_label={label!r} is of another kind than the labels, which are {word_for(now.kind)}s"
            )
        if label in now.places:
            raise MultifslError(f"a class is called {label!r}, as unknown items would be; choose another unknown_label")
        return label

    @property
    def _writing(self) -> threading.RLock:
        """Held by who changes what was learned; who answers needs none."""
        lock: threading.RLock = self.__dict__.setdefault("_lock", threading.RLock())
        return lock

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_lock"}

    @property
    def _now(self) -> Learned:
        """What was learned, at this moment: who uses more of it than one thing asks once."""
        learned = self._learned
        if learned is None:
            raise NotFittedError("this classifier has learned nothing yet; call `fit` first, or `load` a model")
        return learned

    def _learn(self, X: Any, y: Any, *, anew: bool = False, background: Any = None) -> Self:
        with self._writing:
            self._check_reject()
            old = None if anew else self._learned
            seen = FewShotClassifier() if old is None else old.seen
            X, labels = self._checked(X, y, seen, reset=old is None)
            if old is None:
                encoder = self._open_encoder(X.shape[1] if self.encoder is None else None)
                method = self._open_method(encoder, labels)
            else:
                old.check_kind(labels)
                method = old.method
            seconds: list[float | None] = []
            x = pad_together(list(self._prepared(X, method, seconds=seconds)))
            labels = np.repeat(labels, size(x)) if isinstance(y, _Same) else labels
            _check_count(labels, size(x))
            if seconds:
                known = {} if old is None else old.places
                new = [(s, label) for s, label in zip(seconds, labels.tolist(), strict=True) if label not in known]
                warn_of_little_speech([s for s, _ in new], [label for _, label in new], stacklevel=4)
            if old is not None:
                self._take(self._with_more(old, x, labels))
                return self
            others = None
            if background is not None:
                if self.encoder is None:
                    background = _validated(seen, background, reset=False)
                parts = self._prepared(background, method, embed=True)
                others = _enough(torch.cat([part for part in parts if isinstance(part, Tensor)]))
            learned = learn(method, x, labels, seen=seen, background=others)
            self._take(learned)
        return self

    def _with_more(self, old: Learned, x: Inputs, labels: np.ndarray) -> Learned:
        """What was learned, with more examples. A method given by its spec has no trained places, and is built for more of them."""
        most = old.method.max_way
        if most is None or not isinstance(self.method, str) or len(old.places.keys() | set(labels.tolist())) <= most:
            return old.with_more(x, labels)
        labels = np.concatenate([old.labels, labels])
        method = self._open_method(old.method.encoder, labels)
        return learn(method, pad_together([old.x, x]), labels, seen=old.seen, background=old.background)

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
            spec = DEFAULT_METHOD if self.method == "auto" else self.method
            method = build("methods", spec, encoder=encoder, way=max(2, len(np.unique(labels))))
            method.warn_of_random_weights()
            warn_of_euclidean(spec, encoder)
        self._warn(method)
        return method.to(pick_device(self.device)).eval()  # type: ignore[no-any-return]

    def _take(self, learned: Learned) -> None:
        """Put what was learned in the place of what was. Raises MultifslError where a class has the label of unknown items."""
        if self.reject is not None:
            self._unknown(learned)
        if self.reject == "auto" and learned.alone:
            warnings.warn(
                "one class alone, without a background, tells nothing of what is unknown, and the model cannot answer: give more "
                "classes, fit(..., background=items), or a threshold of your own, reject=NUMBER",
                stacklevel=3,
            )
        self._learned = self._chosen(learned)

    def _chosen(self, learned: Learned) -> Learned:
        """With the method that suits the examples best, where that was asked for."""
        if self.method != "auto":
            return learned
        x, y = learned.embedded(learned.x), torch.from_numpy(np.searchsorted(learned.classes, learned.labels))
        method = choose(learned.method.encoder, x, y.to(x.device), len(learned.places)).method
        if resolved(method) == resolved(learned.method):
            return learned
        return learn(method.to(x.device).eval(), x, learned.labels, seen=learned.seen, background=learned.background)

    def _warned_of_one_class(self) -> Self:
        if len(self.classes_) == 1 and self.reject is None:
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

    def _checked(self, X: Any, y: Any, seen: BaseEstimator, *, reset: bool) -> tuple[Any, np.ndarray]:
        """Items and labels that fit together, as far as can be seen before the items are read; one label, where y is _Same."""
        if not (isinstance(self.batch_size, int) and self.batch_size >= 1):
            raise MultifslError(f"batch_size must be a whole number from 1, not {self.batch_size!r}")
        one, y = isinstance(y, _Same), list(y) if isinstance(y, Iterator) else y
        if self.encoder is None:
            X, y = (_validated(seen, X, reset=reset), y) if one else _validated(seen, X, y, reset=reset)
        elif isinstance(X, str | Path):
            raise MultifslError(f"X is a sequence of items; one {type(X).__name__} came: write [x]")
        labels = _labels([y.label] if one else y)
        if not one and not isinstance(X, Iterator):
            _check_count(labels, len(X))
        return X, labels

    def _prepare(self, X: Any, method: Method) -> Inputs:
        """Items, all of which must be readable, as the method takes them: embeddings [B, D], or what the encoder reads."""
        return pad_together(list(self._prepared(X, method)))

    def _prepared(
        self, X: Any, method: Method, *, embed: bool = False, seconds: list[float | None] | None = None
    ) -> Iterator[Inputs]:
        """The same, a block of `batch_size` items after the other.

        embed: as embeddings, whatever the method takes. seconds: a list that takes the seconds of speech of each item embedded.
        """
        where, encoder = pick_device(self.device), method.encoder
        if isinstance(encoder, Features):
            weights = [p.dtype for p in method.parameters() if p.ndim > 0]  # layers take their own type alone
            dtype = weights[0] if weights else torch.float32 if where.type == "mps" else None
            yield torch.tensor(X, dtype=dtype, device=where)  # a copy
            return
        total = None if isinstance(X, Iterator) else -(-len(X) // self.batch_size)
        blocks = _blocks(X, self.batch_size)
        if self._progress is not None:
            blocks = self._progress(blocks, description="embedding items", total=total)
        found = 0
        for items in blocks:
            if embed or method.takes_embeddings:
                whole = not method.takes_embeddings  # as its examples
                windows = [Windows([encoder.load(item)]) if whole else encoder.windows(item) for item in items]
                if seconds is not None:
                    seconds.extend(each.seconds for each in windows)
                x: Any = full_precision(embed_windows(encoder.to(where), windows, self.batch_size))
                bad = (~torch.isfinite(x).all(1)).nonzero()
                if len(bad):
                    name = str(items[int(bad[0])])[:80]
                    raise BadItem(f"the embedding of item {found + int(bad[0])} ({name}) is not finite")
            else:
                x = encoder.preprocess(items)
            found += len(items)
            yield map_inputs(lambda leaf: leaf.to(where), x)
        if not found:
            raise MultifslError("X has no items")

    def _answers(self, X: Any, *, labels_alone: bool = False) -> "Answers":
        now = self._now
        unknown = None if self.reject is None else self._unknown(now)
        rejection = None if self.reject is None else self._rejection(now)
        best, odds, scores = [], [], []
        for x in self._queries(now, X):
            logits = now.logits(x)
            best.append(logits.argmax(axis=1))
            if not labels_alone:
                odds.append(softened(logits, now.calibrated.temperature))
            if rejection is not None:
                scores.append(rejection.scores(now.embedded(x, self.batch_size)).cpu().double().numpy())
        labels = now.classes[np.concatenate(best)]
        known, score = np.ones(len(labels), dtype=bool), None
        if rejection is not None:
            score = np.concatenate(scores)
            known = score >= rejection.threshold
            labels = np.where(known, labels, np.array(unknown))
        return Answers(labels, np.concatenate(odds) if odds else np.zeros((0, 0)), known, score)

    def _logits(self, now: Learned, X: Any) -> np.ndarray:
        """Logits [Q, N] of all items, by one snapshot."""
        return np.concatenate([now.logits(x) for x in self._queries(now, X)])

    def _queries(self, now: Learned, X: Any) -> Iterator[Inputs]:
        """Items as the snapshot's method takes them, a block after the other; all at once where it looks at them together."""
        method = now.method
        if self.encoder is None:
            X = _validated(now.seen, X, reset=False)
        if isinstance(X, str | Path):
            raise MultifslError(f"X is a sequence of items; one {type(X).__name__} came: write [x]")
        if method.transductive:
            yield self._prepare(X, method)
            return
        for x in self._prepared(X, method):
            for start in range(0, size(x), self.batch_size):
                yield map_inputs(lambda leaf, i=start: leaf[i : i + self.batch_size], x)  # type: ignore[misc]

    def __sklearn_is_fitted__(self) -> bool:
        return self._learned is not None

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        if self.encoder is not None:
            tags.input_tags.two_d_array, tags.input_tags.string = False, True
        return tags


class Answers(NamedTuple):
    """What a classifier says of items: labels [Q]; probabilities [Q, N] of the known classes; which items are of one, bool [Q];
    and, with `reject`, their open-set scores [Q]."""

    labels: np.ndarray
    probabilities: np.ndarray
    known: np.ndarray
    scores: np.ndarray | None


class Verification(NamedTuple):
    """Whether an item is of a class: its score, whether that reaches the threshold, and the threshold."""

    score: float
    accepted: bool
    threshold: float


class _Same(NamedTuple):
    """The label of all items, however many they are."""

    label: Any


def _enough(background: Tensor) -> Tensor:
    if len(background) < FEWEST:
        raise MultifslError(f"a background needs {FEWEST} items or more, not {len(background)}")
    return background


def _validated(seen: BaseEstimator, X: Any, *y: Any, reset: bool) -> Any:
    return validate_data(seen, X, *y, dtype=[np.float64, np.float32], reset=reset)


def _blocks(X: Any, length: int) -> Iterator[list[Any]]:
    """The items, so many at once; none is held for longer."""
    if isinstance(X, Iterator):
        while block := list(islice(X, length)):
            yield block
    else:
        for start in range(0, len(X), length):
            yield [_item(X, i) for i in range(start, min(start + length, len(X)))]


def _item(X: Any, index: int) -> Any:
    return X.iloc[index] if hasattr(X, "iloc") else X[index]


def _plain(label: Any) -> Any:
    return label.item() if isinstance(label, np.generic) else label


def _label(label: Any) -> Any:
    """A label as Python has it. Raises MultifslError where it is none."""
    label = _plain(label)
    if not isinstance(label, str | bytes | int | float):
        raise MultifslError(f"labels must be texts or numbers, not {label!r:.80}; give one such label")
    check_label(label)
    return label


def _check_count(labels: np.ndarray, count: int) -> None:
    if len(labels) != count:
        raise MultifslError(f"X has {count} items, y has {len(labels)} labels; one label an item is needed")
    if count == 0:
        raise MultifslError("X has no items")


def _labels(y: Any) -> np.ndarray:
    """Labels as an array [n] of one kind. Raises MultifslError where they are not, ValueError for measurements."""
    labels: np.ndarray = (
        column_or_1d(np.asarray(y, dtype=object), warn=True)
        if isinstance(y, list | tuple)
        else column_or_1d(y, warn=True)
    )
    if labels.dtype == object and len(labels):
        kinds = {"text" if isinstance(label, str) else type(label).__name__ for label in labels.tolist()}
        if len(kinds) > 1 and "text" in kinds:
            raise MultifslError(f"labels must be of one kind, texts or numbers; here are {' and '.join(sorted(kinds))}")
        for label in set(labels.tolist()):
            check_label(label)  # before an array drops what it cannot hold
        labels = np.asarray(labels.tolist())
    if labels.dtype.kind not in "biufUS" and len(labels):
        raise MultifslError(f"labels must be texts or numbers, not {labels.dtype}")
    if labels.dtype.kind == "f":
        check_classification_targets(labels)
    return labels
