"""`multifsl demo`: the main job on data that come with the package, offline, as a check of the installation.

It learns, adds and recognises classes of each modality. Its data are easy and small, so its accuracies say that the parts work
together, and nothing about how well the encoders would do elsewhere.
"""

import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

from multifsl.classifier import FewShotClassifier
from multifsl.encoder import Encoder, no_downloads
from multifsl.evaluation import half_width, pick_device
from multifsl.registry import build

SHOT = 5
TRIALS = 20  # supports drawn anew, with a seed each
SEED = 0


def run_demo(*, device: str = "auto", say: Callable[[str], None] = print) -> dict[str, dict[str, Any]]:
    """Run all three; returns, for each modality, accuracy and ci95 over the trials, classes and seconds."""
    say("A check of the installation on small data that come with multifsl; not a result.\n")
    jobs = {"image": _digits, "speech": _voices, "text": _texts}
    return {modality: _learn(modality, job, device, say) for modality, job in jobs.items()}


def _learn(
    modality: str,
    job: Callable[[str], tuple[Encoder, list[Any], np.ndarray, str]],
    device: str,
    say: Callable[[str], None],
) -> dict[str, Any]:
    begin = time.perf_counter()
    encoder, items, labels, what = job(device)
    names = sorted(set(labels.tolist()))
    say(f"{modality}: {what}")

    # All but the last class from 5 examples each, the rest of their items asked; then the same from other examples.
    known = np.isin(labels, names[:-1])
    z = encoder.to(pick_device(device)).embed(encoder.preprocess(items)).cpu().numpy()
    scores = []
    for trial in range(TRIALS):
        support, query = _split(labels, known, np.random.default_rng((SEED, trial)))
        scores.append(FewShotClassifier(device=device).fit(z[support], labels[support]).score(z[query], labels[query]))
    accuracy, ci95 = float(np.mean(scores)), half_width(np.array(scores))
    say(
        f"  {len(names) - 1} classes from {SHOT} examples each: accuracy {accuracy:.3f} ± {ci95:.3f} "
        f"({TRIALS} draws of the examples)"
    )

    # The same from the items themselves, and one more class while it is in use.
    support, query = _split(labels, known, np.random.default_rng(SEED))
    model = FewShotClassifier(encoder, device=device).fit([items[i] for i in support], labels[support])
    new = np.flatnonzero(labels == names[-1])
    model.partial_fit([items[i] for i in new[:SHOT]], labels[new[:SHOT]])
    asked = [int(query[0]), int(new[SHOT])]
    probability = model.predict_proba([items[i] for i in asked]).max(axis=1)
    say(f"  added the class {names[-1]!r}: {len(model.classes_)} classes")
    for i, label, p in zip(asked, model.predict([items[i] for i in asked]), probability, strict=True):
        say(f"  predicted {str(label)!r} with probability {p:.2f}; it is {str(labels[i])!r}")
    seconds = round(time.perf_counter() - begin, 2)
    say(f"  {seconds} s\n")
    return {"accuracy": accuracy, "ci95": ci95, "classes": len(names), "seconds": seconds}


def _split(labels: np.ndarray, known: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """SHOT support rows a class, and all other rows of the known classes."""
    support = np.concatenate(
        [rng.choice(np.flatnonzero(labels == c), SHOT, replace=False) for c in np.unique(labels[known])]
    )
    return support, np.setdiff1d(np.flatnonzero(known), support)


def _digits(device: str) -> tuple[Encoder, list[Any], np.ndarray, str]:
    """scikit-learn's handwritten digits, 8 x 8 pixels; a Conv4 with random weights, since none are trained on images here."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    torch.manual_seed(SEED)
    images = [np.round(image * (255 / 16)).astype(np.uint8) for image in digits.images[:600]]
    labels = np.array([str(d) for d in digits.target[:600]])
    encoder = build("encoders", "conv4(norm='group', channels=1)")
    return encoder, images, labels, "scikit-learn's handwritten digits, an untrained Conv4"


def _voices(device: str) -> tuple[Encoder, list[Any], np.ndarray, str]:
    """Clips of synthetic voices; an ECAPA-TDNN trained for a moment on none of them would be no check of anything shown here."""
    folder = _data() / "voices"
    clips = sorted(folder.glob("*/*.ogg"))
    torch.manual_seed(SEED)
    encoder = build("encoders", "ecapa(channels=64)")
    return (
        encoder,
        list(clips),
        np.array([c.parent.name for c in clips]),
        "synthetic voices (espeak-ng), an untrained ECAPA-TDNN",
    )


def _texts(device: str) -> tuple[Encoder, list[Any], np.ndarray, str]:
    """Requests in English, written for this project; a pretrained sentence encoder."""
    import json

    rows = [json.loads(line) for line in (_data() / "texts.jsonl").read_text(encoding="utf-8").splitlines()]
    with no_downloads():
        encoder = build("encoders", "transformer")
    return (
        encoder,
        [r["text"] for r in rows],
        np.array([r["label"] for r in rows]),
        "requests in English, the pretrained MiniLM-L6",
    )


def _data() -> Path:
    return Path(str(resources.files("multifsl") / "demo_data"))
