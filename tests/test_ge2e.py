"""GE2E. Oracle: embeddings by the original Resemblyzer package, in tests/reference/ge2e.json (scripts/ge2e_reference.py)."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import multifsl
from multifsl.checkpoint import load_run, save_run
from multifsl.encoders import ge2e
from multifsl.encoders.ge2e import Ge2e, louder, published_weights, window_counts
from multifsl.errors import BadFile, DataNotFound, MultifslError
from multifsl.registry import build, resolved
from tests.needs import needs_data, needs_ge2e
from tests.reference.ge2e import SAMPLE_RATE, clips

close = torch.testing.assert_close
packaged = pytest.mark.skipif(find_spec("resemblyzer") is None, reason="needs the package resemblyzer")


@pytest.fixture(scope="module")
def encoder() -> Ge2e:
    needs_ge2e()
    return Ge2e()


def test_embeddings_are_the_original_packages(encoder: Ge2e) -> None:
    """Five clips: below one window, of one, quiet, of several, and one whose last window is left out; alone and as a batch."""
    expected = json.loads((Path(__file__).parent / "reference" / "ge2e.json").read_text())
    made = clips()
    assert made.keys() == expected.keys()
    reference = torch.tensor([expected[name] for name in made])
    together = encoder.embed(encoder.preprocess([(wave, SAMPLE_RATE) for wave in made.values()]))
    close(together, reference, rtol=0, atol=1e-3)
    close(together, reference, rtol=0, atol=2e-5)  # what is seen
    for row, wave in zip(reference, made.values(), strict=True):
        close(encoder.embed(encoder.preprocess([(wave, SAMPLE_RATE)]))[0], row, rtol=0, atol=2e-5)
    assert encoder.published and encoder.dim == 256 and not encoder.training


def test_windows_are_counted_as_the_package_counts_them() -> None:
    """The package's `compute_partial_slices` written out, for lengths around every edge."""
    lengths = sorted({*range(25_600, 120_000, 977), *(160 * k + d for k in range(155, 500, 7) for d in (-1, 0, 1))})
    lengths = [n for n in lengths if n >= 25_600]
    expected = []
    for n in lengths:
        frames = int(np.ceil((n + 1) / 160))
        starts = list(range(0, max(1, frames - 160 + 77 + 1), 77))
        if len(starts) > 1 and (n - starts[-1] * 160) / 25_600 < 0.75:
            starts.pop()
        expected.append(len(starts))
    assert window_counts(torch.tensor(lengths)).tolist() == expected and len(set(expected)) > 4


def test_only_quiet_clips_are_raised() -> None:
    wave = torch.tensor([[0.5, -0.5, 0.0, 0.0], [0.001, -0.001, 0.001, -0.001]])
    raised = louder(wave, torch.tensor([2, 4]))
    close(raised[0], wave[0])
    assert 20 * np.log10(float(raised[1].square().mean().sqrt())) == pytest.approx(-30, abs=1e-4)


def test_short_clips_are_repeated_whole(encoder: Ge2e) -> None:
    wave = np.random.default_rng(0).integers(-3000, 3000, 16_000).astype(np.int16)
    np.testing.assert_array_equal(encoder.load((wave, SAMPLE_RATE)), np.concatenate([wave, wave]))
    long = np.tile(wave, 3)
    np.testing.assert_array_equal(encoder.load((long, SAMPLE_RATE)), long)


def test_it_can_be_trained_on(encoder: Ge2e) -> None:
    """Every weight gets a gradient, padding or not, and float64 and bfloat16 work."""
    x = encoder.preprocess([(wave, SAMPLE_RATE) for wave in clips().values()][:3])
    grads = torch.autograd.grad(encoder(x).sum(), list(encoder.parameters()))
    assert all(g.isfinite().all() and g.abs().max() > 0 for g in grads)
    exact = build("encoders", "ge2e").double()(x)
    assert exact.dtype == torch.float64
    close(encoder(x).double(), exact, rtol=0, atol=1e-4)


def test_it_is_adapted_task_by_task_alone(encoder: Ge2e) -> None:
    x = encoder.preprocess([(wave, SAMPLE_RATE) for wave in clips().values()][:2])
    assert isinstance(x, dict)
    many = {k: torch.stack([v, v]) for k, v in x.items()}
    with pytest.raises(MultifslError, match="take vectorize=False"):
        torch.vmap(encoder)(many)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ge2e, "package_folder", lambda name: None)
    with pytest.raises(DataNotFound, match="pip install --no-deps resemblyzer"):
        Ge2e()


def test_a_run_that_trained_it_holds_all_that_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package: the weights of one that was trained are in its run."""
    needs_ge2e()
    trained = Ge2e()
    x = trained.preprocess([(wave, SAMPLE_RATE) for wave in clips().values()][:2])
    trained.published = False  # as training leaves it
    with torch.no_grad():
        trained.linear.weight.mul_(0.9)
    save_run(tmp_path, build("methods", "prototypical", encoder=trained), {})
    monkeypatch.setattr(ge2e, "package_folder", lambda name: None)
    loaded = load_run(tmp_path).method.encoder
    assert resolved(loaded) == "ge2e(published=False)" and not loaded.published
    close(loaded.embed(x), trained.embed(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no pretrained.pt"),
        (b"not a file of tensors", "cannot read"),
        ("tensors", "not those of its speaker encoder"),
    ],
)
def test_a_damaged_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | str | None, message: str
) -> None:
    package = tmp_path / "resemblyzer"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('the package was imported')")
    if isinstance(content, bytes):
        (package / "pretrained.pt").write_bytes(content)
    elif content:
        torch.save({"model_state": {"lstm.weight_ih_l0": torch.zeros(3, 3)}}, package / "pretrained.pt")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(BadFile, match=message):
        Ge2e()


@packaged
def test_the_package_is_not_imported() -> None:
    assert set(published_weights()) >= {"lstm.weight_ih_l0", "linear.weight"}
    assert "resemblyzer" not in sys.modules


@pytest.mark.slow
@pytest.mark.parametrize(("way", "shot", "published"), [(5, 1, 0.827), (5, 5, 0.954), (10, 1, 0.715)])
def test_speakers_of_another_language_are_told_apart(encoder: Ge2e, way: int, shot: int, published: float) -> None:
    """All 30 speakers of Arabic Speech Commands, 1,000 episodes, seed 0; within the interval of the figures asked for."""
    needs_data("speakers_arabic")
    found = multifsl.evaluate(task="arabic_speech_commands", encoder=encoder, split="all", way=way, shot=shot, seed=0)
    assert abs(found.accuracy - published) < 0.008
