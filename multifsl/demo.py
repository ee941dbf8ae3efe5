"""`multifsl demo`: the main job on data that come with the package, offline, as a check of the installation.

Images and voices: an encoder is meta-trained for some seconds on half of the classes, and learns the others from 5
examples each. Texts: a pretrained encoder learns all of them. The data are easy and few, so the accuracies say that the
parts work together, and nothing about how well they would do elsewhere.
"""

import json
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from multifsl.classifier import FewShotClassifier
from multifsl.encoder import Encoder, no_downloads
from multifsl.errors import MultifslError
from multifsl.evaluation import pick_device
from multifsl.intervals import half_width
from multifsl.registry import build
from multifsl.task import Items, Task
from multifsl.training import train

SHOT = 5
TRIALS = 20  # supports drawn anew, with a seed each
SEED = 0

Say = Callable[[str], None]


def run_demo(*, device: str = "auto", say: Say = print) -> dict[str, dict[str, Any]]:
    """Run all three; returns, for each modality, accuracy and ci95 over the trials, classes and seconds."""
    say("A check of the installation, on small data that come with multifsl; not a result.\n")
    return {modality: _show(modality, device, say) for modality in ("image", "speech", "text")}


def _show(modality: str, device: str, say: Say) -> dict[str, Any]:
    begin = time.perf_counter()
    say(f"{modality}: {DESCRIPTIONS[modality]}")
    encoder = _encoder(modality, device)
    items, labels = data(modality)
    names = _new_classes(modality)
    *first, added = names
    rows = np.flatnonzero(np.isin(labels, names))
    items, labels = [items[i] for i in rows], labels[rows]

    # All new classes but the last from 5 examples each, their other items asked; again and again from other examples.
    known = np.isin(labels, first)
    z = encoder.to(pick_device(device)).embed(encoder.preprocess(items)).cpu().numpy()
    scores = []
    for trial in range(TRIALS):
        support, query = _split(labels, known, np.random.default_rng((SEED, trial)))
        model = FewShotClassifier(device=device).fit(z[support], labels[support])
        scores.append(model.score(z[query], labels[query]))
    accuracy, ci95 = float(np.mean(scores)), half_width(np.array(scores))
    say(f"  {len(first)} new classes from {SHOT} examples each: accuracy {accuracy:.3f} ± {ci95:.3f} ({TRIALS} draws)")

    # Once more from the items themselves, and one more class while the model is in use.
    support, query = _split(labels, known, np.random.default_rng(SEED))
    model = FewShotClassifier(encoder, device=device).fit([items[i] for i in support], labels[support])
    examples = np.flatnonzero(labels == added)
    model.partial_fit([items[i] for i in examples[:SHOT]], labels[examples[:SHOT]])
    say(f"  added the class {added!r}: {len(model.classes_)} classes")
    asked = [int(i) for i in (*query[:: len(query) // 3][:3], examples[SHOT])]
    chosen = [items[i] for i in asked]
    for i, label, p in zip(asked, model.predict(chosen), model.predict_proba(chosen).max(axis=1), strict=True):
        say(f"  predicted {str(label)!r} with probability {p:.2f}; it is {str(labels[i])!r}")
    seconds = round(time.perf_counter() - begin, 2)
    say(f"  {seconds} s\n")
    return {"accuracy": accuracy, "ci95": ci95, "classes": len(model.classes_), "seconds": seconds}


def _split(labels: np.ndarray, known: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """SHOT support rows a class, and all other rows of the known classes."""
    classes = np.unique(labels[known])
    support = np.concatenate([rng.choice(np.flatnonzero(labels == c), SHOT, replace=False) for c in classes])
    return support, np.setdiff1d(np.flatnonzero(known), support)


# ---- encoders ----


def _encoder(modality: str, device: str) -> Encoder:
    if modality == "text":
        with no_downloads():
            encoder: Encoder = build("encoders", "transformer")
        return encoder
    spec, steps = {"image": ("conv4(channels=1)", 60), "speech": ("ecapa(channels=32)", 40)}[modality]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="no validation")  # so few classes leave none for it
        run = train(
            Demo(modality=modality), spec, "prototypical(distance='cosine')", out=Path(folder) / "run",
            way=5, shot=1, query=3, steps=steps, seed=SEED, device=device,
        )  # fmt: skip
    return run.method.encoder


class Demo(Task):
    """The classes of a modality that the demo trains on."""

    def __init__(self, *, modality: str) -> None:
        self.modality = modality  # type: ignore[misc]

    def items(self, split: str) -> Items:
        if split != "train":
            raise MultifslError("the demo trains only")
        items, labels = data(self.modality)
        rows = np.flatnonzero(~np.isin(labels, _new_classes(self.modality)))
        names, codes = np.unique(labels[rows], return_inverse=True)
        return Items([items[i] for i in rows], codes.astype(np.int64), names.tolist())


def _new_classes(modality: str) -> list[str]:
    names = sorted(set(data(modality)[1].tolist()))
    return names if modality == "text" else names[len(names) // 2 :]


# ---- data ----

DESCRIPTIONS = {
    "image": "scikit-learn's handwritten digits; a Conv4 trained on 0 to 4, new are 5 to 9",
    "speech": "synthetic voices (espeak-ng); an ECAPA-TDNN trained on five of them, new are five others",
    "text": "requests in English, written for this demo; the pretrained MiniLM-L6 as it is",
}


@cache
def data(modality: str) -> tuple[list[Any], np.ndarray]:
    """Items and their labels."""
    folder = Path(str(resources.files("multifsl") / "demo_data"))
    if modality == "image":
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = [np.round(image * (255 / 16)).astype(np.uint8) for image in digits.images[:1000]]
        return images, digits.target[:1000].astype(str)
    if modality == "speech":
        clips = sorted(folder.glob("voices/*/*.ogg"))
        return list(clips), np.array([clip.parent.name for clip in clips])
    rows = [json.loads(line) for line in (folder / "texts.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["text"] for row in rows], np.array([row["label"] for row in rows])
