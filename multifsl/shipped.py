"""Trained runs that come with the package, and how any run is named: by its folder, or as `model:NAME`.

`multifsl/models/NAME/` is a run's folder without its logs: `run.json` and `model.safetensors`.
"""

from pathlib import Path

from multifsl.errors import MultifslError, nearest

FOLDER = Path(__file__).parent / "models"
SHIPPED, OWN = "model:", "run:"  # before a name, and before a folder where a spec might stand too


def model_names() -> list[str]:
    """The runs that come with the package."""
    return sorted(path.parent.name for path in FOLDER.glob("*/run.json"))


def is_shipped(run: Path | str) -> bool:
    """Whether a run is named as one that comes with the package.

    >>> is_shipped("model:omniglot-prototypical"), is_shipped("runs/omniglot")
    (True, False)
    """
    return str(run).startswith(SHIPPED)


def names_run(spec: object) -> bool:
    """Whether a text in the place of a spec names a run: "model:NAME", or "run:FOLDER".

    >>> names_run("run:runs/omniglot"), names_run("conv4(width=32)")
    (True, False)
    """
    return isinstance(spec, str) and spec.startswith((SHIPPED, OWN))


def run_folder(run: Path | str) -> Path:
    """The folder of a run that is given as a path, as "run:FOLDER" or as "model:NAME".

    Raises MultifslError, with the known names, where no run of that name comes with the package.
    """
    text = str(run)
    if not is_shipped(run):
        return Path(text.removeprefix(OWN))
    name, known = text.removeprefix(SHIPPED), model_names()
    if name not in known:
        raise MultifslError(
            f"no model {name!r} comes with this version{nearest(name, known)}; known: {', '.join(known) if known else 'none'}"
        )
    return FOLDER / name
