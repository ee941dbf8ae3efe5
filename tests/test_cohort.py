"""Cohorts that come with the package. Oracles: what the files' headers say, and the encoders that the files belong to."""

import pytest
import torch
from safetensors import safe_open

from multifsl.checkpoint import load_run
from multifsl.cohort import FOLDER, cohort_of
from multifsl.encoder import Encoder
from multifsl.shipped import SHIPPED, model_names

FILES = sorted(path.stem for path in FOLDER.glob("*.safetensors"))
OF_MODELS = [name for name in FILES if name in model_names()]


def encoder_of(name: str) -> Encoder:
    return load_run(SHIPPED + name).method.encoder


@pytest.mark.parametrize("name", FILES)
def test_a_file_holds_what_its_header_says(name: str) -> None:
    path = FOLDER / f"{name}.safetensors"
    assert path.stat().st_size <= 1.5e6
    with safe_open(path, "pt") as file:
        shape = file.get_slice("cohort").get_shape()
        cohort = file.get_tensor("cohort")
        assert list(file.keys()) == ["cohort"]
        assert len(file.metadata()["digest"]) == 32
    assert cohort.dtype == torch.float16
    assert list(cohort.shape) == shape
    assert bool(cohort.isfinite().all())
    assert len(cohort.unique(dim=0)) >= 40  # half of it sets the threshold, the other half is learned from


@pytest.mark.parametrize("name", OF_MODELS)
def test_a_shipped_encoder_finds_its_own(name: str) -> None:
    encoder = encoder_of(name)
    found = cohort_of(encoder)
    assert found is not None
    assert (found.dtype, found.shape[1]) == (torch.float32, encoder.dim)
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        assert torch.equal(found.half(), file.get_tensor("cohort"))


def test_other_weights_find_none() -> None:
    assert "omniglot-prototypical" in OF_MODELS
    encoder = encoder_of("omniglot-prototypical")
    with torch.no_grad():
        next(encoder.parameters()).view(-1)[0] += 1e-3
    assert cohort_of(encoder) is None
