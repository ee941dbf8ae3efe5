"""What is imported, when, and what the public names are."""

import subprocess
import sys

import pytest

import multifsl

HEAVY = {
    "torch",
    "torchaudio",
    "transformers",
    "datasets",
    "sklearn",
    "accelerate",
    "soundfile",
    "PIL",
    "numpy",
    "scipy",
}


def modules_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}


def test_import_is_light() -> None:
    assert not modules_after("import multifsl") & (HEAVY | {"typer", "rich"})


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"], ["list", "encoders"]])
def test_help_is_light(arguments: list[str]) -> None:
    run = "from multifsl.cli import main\ntry: main()\nexcept SystemExit: pass"
    code = f"import sys; sys.argv = ['multifsl', *{arguments!r}]\n{run}"
    assert not modules_after(code) & HEAVY


def test_the_core_does_not_load_what_it_does_not_use() -> None:
    assert not modules_after("from multifsl import FewShotClassifier, train, evaluate") & {
        "transformers",
        "torchaudio",
        "datasets",
        "soundfile",
    }


def test_public_names() -> None:
    """The list is what is there, and what is there is the list: a public name comes and goes by intention."""
    assert multifsl.__all__ == [
        "AdaptationMethod", "Batch", "Comparison", "EmbeddingMethod", "Encoder", "Episode", "EpisodeSampler", "Evaluation",
        "FewShotClassifier", "Items", "Method", "MultifslError", "Output", "Task", "TransductiveMethod", "__version__", "build",
        "compare", "contrastive_loss", "evaluate", "load_run", "train",
    ]  # fmt: skip
    for name in multifsl.__all__:
        assert getattr(multifsl, name) is not None
        assert name in dir(multifsl)
    with pytest.raises(AttributeError, match="no attribute 'fit'"):
        _ = multifsl.fit
    assert set(multifsl._HOMES) == set(multifsl.__all__) - {"__version__"}
