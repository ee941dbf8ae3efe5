"""Recipes: published figures, how a run that is to reach them is trained, and what came of it.

A recipe is a TOML file, in `multifsl/recipes/` or the user's own: `title`, `source`, `result` and `notes` in words; `[train]`, the
arguments of `multifsl.train`; and a `[[evaluate]]` for each figure: its `name`, the `published` accuracy in per cent, and arguments
of `multifsl.evaluate`. Where the run is shipped, it is the model of the recipe's name.

What trains is imported inside the functions, so that a list of recipes is immediate.
"""

import inspect
import os
import tomllib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multifsl.errors import BadFile, MultifslError, nearest
from multifsl.options import check_arguments
from multifsl.registry import build, filled_in, parse
from multifsl.shipped import SHIPPED, is_shipped, model_names

if TYPE_CHECKING:
    from multifsl.bank import Progress
    from multifsl.evaluation import Evaluation

FOLDER = Path(__file__).parent / "recipes"
WORDS = ("title", "source", "result", "notes")
SHAPE = ("way", "shot", "query", "disjoint_groups", "imbalance", "skip_small_classes")  # of episodes
OURS = {"out", "resume", "overwrite", "device", "data_root", "report", "progress", "allow_download", "run", "encoder"}


@dataclass(frozen=True)
class Row:
    """One figure: its name, the arguments of `evaluate` for it, and the published accuracy in per cent, where there is one."""

    name: str
    asked: dict[str, Any]
    published: float | None


@dataclass(frozen=True)
class Recipe:
    """A recipe's content. title, source: what is trained, and where the published figures stand. result: what ours gave.
    notes: departures, disputes, and what was tried."""

    name: str
    title: str
    source: str
    result: str
    notes: str
    train: dict[str, Any]
    rows: tuple[Row, ...]


def recipe_names() -> list[str]:
    """The recipes that come with the package.

    >>> "omniglot-prototypical" in recipe_names()
    True
    """
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_recipe(name: str) -> Recipe:
    """The recipe of a name, or of the user's own TOML file, whose arguments are checked.

    Raises:
        MultifslError: no recipe of that name. BadFile: it is no TOML, or something in it is missing, unknown or not allowed.

    >>> load_recipe("omniglot-prototypical").train["way"]
    60
    """
    own = name.endswith(".toml")
    path = Path(name) if own else FOLDER / f"{name}.toml"
    if not own and name not in recipe_names():
        raise MultifslError(
            f"no recipe {name!r}{nearest(name, recipe_names())}; known: {', '.join(recipe_names())} (your own is the path of a "
            ".toml file)"
        )
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MultifslError(f"there is no recipe at {path}") from None
    except (OSError, ValueError) as error:  # undecodable, and no TOML, too
        raise BadFile(f"{path} cannot be read as TOML: {error}") from error
    rows, arguments = content.get("evaluate"), content.get("train")
    known = {*WORDS, "train", "evaluate"}
    wrong = [f"no {key!r} is known" for key in sorted(content.keys() - known)]
    wrong += [] if isinstance(arguments, dict) else ["[train] is missing"]
    wrong += [] if isinstance(rows, list) and rows else ["[[evaluate]] is missing"]
    if wrong or not isinstance(arguments, dict) or not isinstance(rows, list):
        raise BadFile(
            f"{path}: {', '.join(wrong)}; a recipe has {', '.join(WORDS)}, one [train] and some [[evaluate]], and nothing else"
        )
    words = {key: content.get(key, "") for key in WORDS}
    tables, figures = [], []
    for row in rows:
        if not isinstance(row, dict):
            raise BadFile(f"{path}: [[evaluate]] is a table, not {row!r}")
        name, published = row.get("name", ""), row.get("published")
        if not isinstance(name, str):
            raise BadFile(f"{path}: [[evaluate]] name must be a text, not {name!r}")
        if published is not None and (type(published) not in (int, float) or not 0 <= published <= 100):
            raise BadFile(f"{path}: [[evaluate]] published must be a number from 0 to 100, per cent, not {published!r}")
        asked = {k: v for k, v in row.items() if k not in ("name", "published")}
        tables.append(asked)
        figures.append(Row(name, {k: _plain(v) for k, v in asked.items()}, published))
    if not all(isinstance(word, str) for word in words.values()):
        raise BadFile(f"{path}: {', '.join(WORDS)} are texts")
    if len({row.name for row in figures}) < len(figures):
        raise BadFile(f"{path}: each [[evaluate]] has a name of its own")
    if own:  # the package's are checked by its tests
        _check_tables(path, arguments, tables)
    return Recipe(path.stem, **words, train={k: _plain(v) for k, v in arguments.items()}, rows=tuple(figures))


def _plain(value: Any) -> Any:
    """TOML has lists only; a range is a pair."""
    return tuple(value) if isinstance(value, list) else value


def _check_tables(path: Path, arguments: dict[str, Any], tables: list[dict[str, Any]]) -> None:
    """Raises BadFile where a table is not what `train` or `evaluate` takes."""
    from multifsl.evaluation import evaluate
    from multifsl.training import train

    _check(path, "[train]", arguments, train, needs={"task", "encoder", "method"})
    for asked in tables:
        _check(path, "[[evaluate]]", asked, evaluate, needs=set())


def _check(path: Path, where: str, given: dict[str, Any], function: Callable[..., Any], *, needs: set[str]) -> None:
    """Raises BadFile where a table lacks an argument of a function, or has one that is not among them or not allowed."""
    from multifsl.task import check_split

    allowed = inspect.signature(function).parameters.keys() - OURS | needs
    if lacking := sorted(needs - given.keys()):
        raise BadFile(f"{path}: {where} lacks {', '.join(lacking)}")
    for key in sorted(given.keys() - allowed):
        raise BadFile(f"{path}: {where} has no {key!r}{nearest(key, allowed)}; known: {', '.join(sorted(allowed))}")
    try:
        check_arguments(function, given)
        check_split(given.get("split", "test"))
    except MultifslError as error:
        raise BadFile(f"{path}: {where} {error}") from None


def _check_data(row: Row, chosen: dict[str, Any], task: str, data_root: Path | str | None) -> None:
    """Raises, before the training, what `evaluate` would after it where data are not there, or too few. task: the run's. chosen:
    instead of the row's own arguments."""
    from multifsl.bank import sampler_of
    from multifsl.evaluation import evaluate

    asked = {**row.asked, **chosen}
    check_arguments(evaluate, asked)
    split = asked.get("split", "test")
    items = build("tasks", asked.get("task", task), data_root=data_root).items(split)
    with warnings.catch_warnings(action="ignore"):  # said when it is evaluated
        try:
            sampler_of(items, **{key: value for key, value in asked.items() if key in SHAPE})
        except MultifslError as error:
            raise MultifslError(f"[[evaluate]] {row.name!r}, on the {split} split: {error}") from None


def _check_methods(recipe: Recipe) -> None:
    """Raises, before the training, what `evaluate` would after it where a figure's own method cannot be built."""
    from multifsl.defaults import open_encoder
    from multifsl.evaluation import highest

    task, own = build("tasks", recipe.train["task"]), recipe.train["method"]
    for asked in (row.asked for row in recipe.rows if "method" in row.asked):
        same = parse(asked["method"])[0].name == parse(own)[0].name
        method = filled_in(asked["method"], own) if same else asked["method"]
        network = open_encoder(recipe.train["encoder"], task=task)
        build("methods", method, encoder=network, way=highest(asked.get("way", 5)))


@dataclass(frozen=True)
class Figure:
    """A row of a recipe beside what came out."""

    row: Row
    ours: "Evaluation"

    def to_json(self) -> dict[str, Any]:
        per_cent = self.row.published
        published = None if per_cent is None else round(per_cent / 100, 6)  # a fraction, as all else
        return {"name": self.row.name, "published": published, **self.ours.to_json()}


def place_of(
    recipe: Recipe, name: str, *, out: Path | str | None = None, eval_only: bool = False, seed: int | None = None
) -> str:
    """Where the run of a recipe is, or will be: a folder, or "model:NAME". name: as it was asked for.

    >>> place_of(load_recipe("omniglot-prototypical"), "omniglot-prototypical", eval_only=True)
    'model:omniglot-prototypical'
    """
    if eval_only and out is None and recipe.name in model_names() and not name.endswith(".toml"):
        return SHIPPED + recipe.name
    return str(out or Path("runs") / (recipe.name if seed is None else f"{recipe.name}-seed{seed}"))


def reproduce(
    name: str,
    *,
    out: Path | str | None = None,
    eval_only: bool = False,
    split: str | None = None,
    episodes: int | None = None,
    seed: int | None = None,
    device: str = "auto",
    data_root: Path | str | None = None,
    overwrite: bool = False,
    report: Any = None,
    progress: "Progress | None" = None,
) -> list[Figure]:
    """Train a recipe's run, or go on with one that was stopped, and evaluate it; one that is finished is evaluated.

    Args:
        name: a recipe of the package, or the path of a TOML file.
        out: the run's folder, by default `runs/NAME`, or `runs/NAME-seedN`.
        eval_only: train nothing; evaluate the finished run at `out`, or, where none is given, the model that comes along.
        split, episodes: instead of those of the recipe's rows. seed: of the training, instead of the recipe's.
        overwrite: begin anew. Started by torchrun, all processes train, and the first one evaluates.
        device, data_root, report, progress: see `multifsl.train`.

    Raises:
        MultifslError: no such recipe, nothing to evaluate, or what `train` and `evaluate` raise; most of it before anything is
        trained, such as DataNotFound where the data of some figure are not there.
    """
    from multifsl.checkpoint import has_checkpoint
    from multifsl.evaluation import evaluate
    from multifsl.run_folder import Finished, Stopped
    from multifsl.training import train

    recipe = load_recipe(name)
    asked: dict[str, Any] = {"device": device, "data_root": data_root}
    if eval_only and seed is not None:
        raise MultifslError("the seed is of the training, and eval_only trains nothing; leave one of them out")
    run = place_of(recipe, name, out=out, eval_only=eval_only, seed=seed)
    if eval_only and has_checkpoint(Path(run)):
        raise MultifslError(f"the run {run} is not finished; without eval_only (--eval-only) it goes on")
    if eval_only and not is_shipped(run) and not (Path(run) / "run.json").exists():
        none = "" if recipe.name in model_names() else f"no weights of {recipe.name} come along, and "
        raise MultifslError(f"{none}there is no run at {run}; without eval_only (--eval-only) it is trained")
    chosen = {k: v for k, v in {"split": split, "episodes": episodes}.items() if v is not None}
    for row in recipe.rows:
        _check_data(row, chosen, recipe.train["task"], data_root)
    if not eval_only:
        _check_methods(recipe)
        arguments = recipe.train | ({} if seed is None else {"seed": seed})
        begun = (Path(run) / "settings.json").exists() and not overwrite
        try:
            train(**arguments, out=run, resume=begun, overwrite=overwrite, report=report, progress=progress, **asked)
        except Finished:
            warnings.warn(f"{run} is finished already: it is scored, not trained", stacklevel=2)
        except Stopped as error:
            told = str(error).replace("goes on by --resume", "goes on by the same command")
            raise Stopped(told, error.signal) from None
    if int(os.environ.get("RANK", "0")):
        return []  # of several processes the first one scores
    return [Figure(row, evaluate(run, **{**row.asked, **chosen}, **asked, progress=progress)) for row in recipe.rows]
