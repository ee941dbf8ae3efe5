"""Names and spec strings.

A plug-in is one file in `encoders/`, `tasks/` or `multifsl/methods/`; the file's name is its name, a leading `_` hides it.
Files are listed without importing them, so that `transformers` loads only where it is used. A spec is such a name with
keyword arguments, `"conv4(width=32)"`; it is read by `ast`, literals only, and never evaluated.
"""

import ast
import difflib
import importlib
import importlib.util
import inspect
import keyword
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

from multifsl.errors import MultifslError

Kind = Literal["encoders", "methods", "tasks"]
KINDS: tuple[Kind, ...] = ("encoders", "methods", "tasks")
_BASES: dict[Kind, tuple[str, str]] = {
    "encoders": ("multifsl.encoder", "Encoder"),
    "methods": ("multifsl.method", "Method"),
    "tasks": ("multifsl.task", "Task"),
}
_REQUIRED: dict[Kind, tuple[str, ...]] = {
    "encoders": ("load", "collate", "forward"),
    "methods": ("adapt", "classify"),
    "tasks": ("items",),
}
LONGEST_SPEC = 10_000  # characters; a class list may be long, an attack longer
_plugins: dict[Kind, dict[str, type]] = {kind: {} for kind in KINDS}


class Spec(NamedTuple):
    """A name and its arguments."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@cache
def _files(kind: Kind) -> tuple[str, ...]:
    spec = importlib.util.find_spec(f"multifsl.{kind}")
    assert spec is not None and spec.submodule_search_locations is not None
    folders = [Path(p) for p in spec.submodule_search_locations]
    return tuple(sorted({f.stem for folder in folders for f in folder.glob("*.py") if not f.stem.startswith("_")}))


def names(kind: Kind) -> list[str]:
    """The known names of a kind, without importing them.

    >>> "prototypical" in names("methods")
    True
    """
    return sorted({*_files(kind), *_plugins[kind]})


def _page(kind: Kind, name: str) -> ast.Module:
    """A plug-in's file, read and not run."""
    if name in _plugins[kind]:
        path = Path(str(sys.modules[_plugins[kind][name].__module__].__file__))
    else:
        spec = importlib.util.find_spec(f"multifsl.{kind}")
        assert spec is not None and spec.submodule_search_locations is not None
        paths = [Path(folder) / f"{name}.py" for folder in spec.submodule_search_locations]
        path = next(p for p in paths if p.exists())
    return ast.parse(path.read_text(encoding="utf-8"))


def arguments(kind: Kind, name: str) -> str:
    """What a spec of that name can be given, with the defaults, without importing it.

    >>> arguments("tasks", "omniglot")
    'rotations=True'
    """
    for node in ast.walk(_page(kind, name)):
        if isinstance(node, ast.ClassDef) and node.name.lower() == name.replace("_", ""):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                    return _shown(method.args, skip=2 if kind == "methods" else 1)
    return ""


def _shown(given: ast.arguments, skip: int) -> str:
    plain = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(plain) - len(given.defaults)) + list(given.defaults)
    every = [*list(zip(plain, defaults, strict=True))[skip:], *zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    return ", ".join(a.arg if default is None else f"{a.arg}={ast.unparse(default)}" for a, default in every)


def summary(kind: Kind, name: str) -> str:
    """The first line of a plug-in's page, without importing it."""
    text = ast.get_docstring(_page(kind, name)) or ""
    return text.strip().partition("\n")[0]


def group(kind: Kind, name: str) -> str:
    """The family of a method, the modality of an encoder or a task, without importing it; "" where the page does not say.

    >>> group("methods", "prototypical"), group("encoders", "conv4")
    ('metric', 'image')
    """
    wanted = "family" if kind == "methods" else "modality"
    for node in ast.walk(_page(kind, name)):
        if isinstance(node, ast.Assign) and [t.id for t in node.targets if isinstance(t, ast.Name)] == [wanted]:
            return str(ast.literal_eval(node.value))
    return ""


def parse(text: str) -> list[Spec]:
    """Spec strings, joined by `+`, as names and arguments.

    >>> parse("omniglot(rotations=True)")
    [Spec(name='omniglot', args=(), kwargs={'rotations': True})]
    """
    if not isinstance(text, str):
        raise MultifslError(f"a spec is a text such as 'name(key=value)', not {type(text).__name__}")
    if len(text) > LONGEST_SPEC:
        raise MultifslError(f"the spec {text[:40]!r}... has {len(text)} characters; at most {LONGEST_SPEC} are read")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        texts = [
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        if any(value[1:2] == ":" and not value.isprintable() for value in texts):
            raise ValueError(r"a path such as 'C:\new', whose \n has become a line break")
        return [_spec(node, text) for node in _summands(tree)]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, MultifslError):
            raise
        hint = "; write a path with /, such as 'C:/data/x': in quotes a backslash begins a special character"
        raise MultifslError(
            f"cannot read the spec {_short(text)!r}: write a name, or name(key=value, ...)"
            + (hint if "\\" in text else "")
        ) from error


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."


def _summands(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [*_summands(node.left), *_summands(node.right)]
    return [node]


def _spec(node: ast.expr, text: str) -> Spec:
    if isinstance(node, ast.Name):
        return Spec(node.id, (), {})
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and all(k.arg for k in node.keywords):
        try:
            args = tuple(ast.literal_eval(a) for a in node.args)
            kwargs = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
        except (ValueError, TypeError, RecursionError) as error:
            raise MultifslError(
                f"the spec {_short(text)!r} has an argument that is no plain value; allowed are numbers, strings, True, False, "
                "None, and tuples, lists and dicts of them; a text stands in quotes"
            ) from error
        if len(kwargs) < len(node.keywords):
            raise MultifslError(f"the spec {_short(text)!r} gives an argument twice")
        return Spec(node.func.id, args, kwargs)
    raise MultifslError(f"cannot read the spec {_short(text)!r}: write a name, or name(key=value, ...)")


def find(kind: Kind, name: str) -> type:
    """The class behind a name. Raises MultifslError with the nearest known names where there is none."""
    if name in _plugins[kind]:
        return _plugins[kind][name]
    if name not in _files(kind):
        close = difflib.get_close_matches(name.lower(), names(kind), n=1) or [
            n for n in names(kind) if n.startswith(name)
        ]
        hint = f" did you mean {close[0]!r}?" if close else ""
        if kind == "tasks" and Path(name).exists():
            hint = f' your own files are "images({name!r})", "speakers({name!r})" or "texts({name!r})";'
        known = ", ".join(names(kind))
        raise MultifslError(f"no {kind[:-1]} {name!r};{hint} known: {known} (--plugin FILE.py adds one of your own)")
    found = _plugin_class(importlib.import_module(f"multifsl.{kind}.{name}"), kind)
    assert found is not None, f"multifsl/{kind}/{name}.py has no class of its kind"
    return found


def _base(kind: Kind) -> type:
    """The base class of a kind, imported when it is needed."""
    home, name = _BASES[kind]
    base: type = getattr(importlib.import_module(home), name)
    return base


def _plugin_class(module: ModuleType, kind: Kind) -> type | None:
    """The one public class of that kind that the module defines itself."""
    own = [
        c
        for n, c in vars(module).items()
        if inspect.isclass(c)
        and issubclass(c, _base(kind))
        and c.__module__ == module.__name__
        and not n.startswith("_")
    ]
    if len(own) > 1:
        raise MultifslError(f"{module.__file__} defines {', '.join(c.__name__ for c in own)}: one {kind[:-1]} a file")
    return own[0] if own else None


def add_plugin(path: Path | str) -> str:
    """Add the user's own encoder, method or task from a Python file, under the file's name; returns that name.

    The file is run: take only your own. A checkpoint never does this.
    """
    path = Path(path)
    if not path.is_file():
        raise MultifslError(f"no plug-in file {path}")
    name = path.stem
    spec = importlib.util.spec_from_file_location(f"multifsl_plugin_{name}", path)
    if spec is None or spec.loader is None:
        raise MultifslError(f"{path} is not a Python file")
    if not name.isidentifier() or keyword.iskeyword(name):
        raise MultifslError(
            f"{path}: a plug-in's file name is its name in specs, and {name!r} is none; use letters, digits and _"
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise MultifslError(f"the plug-in {path} cannot be run: {type(error).__name__}: {error}") from error
    classes = {kind: c for kind in KINDS if (c := _plugin_class(module, kind)) is not None}
    for kind, found in classes.items():
        base = _base(kind)
        lacking = [n for n in _REQUIRED[kind] if getattr(found, n) is getattr(base, n)]
        if lacking:
            raise MultifslError(
                f"{path}: {found.__name__} lacks {', '.join(lacking)}; see `help(multifsl.{base.__name__})`"
            )
    if not classes:
        raise MultifslError(f"{path} defines no Encoder, Method or Task of its own")
    for kind, found in classes.items():
        if name in (*_files(kind), *_plugins[kind]):
            raise MultifslError(f"there is {kind[:-1]} {name!r} already; give {path} another name")
        _plugins[kind][name] = found
    return name


def _create(kind: Kind, spec: Spec, leading: tuple[Any, ...] = (), hints: dict[str, Any] | None = None) -> Any:
    cls = find(kind, spec.name)
    signature = inspect.signature(cls)
    own = list(signature.parameters.values())[len(leading) :]
    kwargs = {**{k: v for k, v in (hints or {}).items() if k in {p.name for p in own}}, **spec.kwargs}
    try:
        signature.bind(*leading, *spec.args, **kwargs)
    except TypeError as error:
        known = [p.name for p in own]
        close = [c for k in spec.kwargs if k not in known for c in difflib.get_close_matches(k, known, n=1)]
        hint = f" did you mean {close[0]!r}?" if close else ""
        raise MultifslError(f"{kind[:-1]} {spec.name!r}: {error};{hint} it takes {_keywords(own)}") from None
    try:
        return cls(*leading, *spec.args, **kwargs)
    except MultifslError:
        raise
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # an argument of a kind that it cannot use
        given = ", ".join([*map(repr, spec.args), *(f"{k}={v!r}" for k, v in spec.kwargs.items())])
        raise MultifslError(
            f"{kind[:-1]} {spec.name!r} cannot be built with {_short(given) or 'its defaults'}: {error}; it takes {_keywords(own)}"
        ) from error


def _keywords(parameters: list[inspect.Parameter]) -> str:
    shown = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters]
    return ", ".join(shown) if shown else "no arguments"


def _single(kind: Kind, text: str) -> Spec:
    specs = parse(text)
    if len(specs) > 1:
        raise MultifslError(f"'+' joins tasks; one {kind[:-1]} was expected, not {text!r}")
    return specs[0]


def build(
    kind: Kind,
    spec: str,
    *,
    encoder: Any = None,
    way: int | None = None,
    task: Any = None,
    data_root: Path | str | None = None,
) -> Any:
    """The encoder, method or task that a spec string names.

    Args:
        kind: "encoders", "methods" or "tasks".
        encoder: what a method is built on. way: how many classes a method is to tell apart, where it has an argument
            `max_way` and was not given it. task: fills in what an encoder was not given and the task knows (image channels).
        data_root: where a task looks for its data first.

    Raises:
        MultifslError: an unknown name (with the nearest known one), an unknown argument, an expression.

    >>> build("encoders", "conv4(width=32)").dim
    32
    """
    if not isinstance(spec, str):
        raise MultifslError(
            f"the {kind[:-1]} is given by a spec, a text such as 'name(key=value)', not {type(spec).__name__}"
        )
    if kind == "tasks":
        parts = [_create(kind, s) for s in parse(spec)]
        for part in parts:
            part.data_root = None if data_root is None else Path(data_root)
        from multifsl.task import Joined

        return parts[0] if len(parts) == 1 else Joined(*parts)
    if kind == "encoders":
        one = _single(kind, spec)  # one that begins with published weights knows best what they were trained with
        hints = {} if task is None or find(kind, one.name).pretrained else task.hints  # type: ignore[attr-defined]
        return _create(kind, one, hints=hints)
    if kind == "methods":
        hints = {} if way is None else {"max_way": way}
        return _create(kind, _single(kind, spec), leading=(encoder,), hints=hints)
    raise MultifslError(f"no kind {kind!r}; known: {', '.join(KINDS)}")


def resolved(thing: Any) -> str:
    """The spec string of a built encoder, method or task, every argument in it: a later default cannot change it.

    >>> resolved(build("encoders", "conv4(channels=1)"))
    "conv4(width=64, norm='batch', channels=1, image_size=28)"
    """
    from multifsl.task import Joined

    if isinstance(thing, Joined):
        return " + ".join(resolved(part) for part in thing.parts)
    cls = type(thing)
    kind = next(k for k in KINDS if isinstance(thing, _base(k)))
    plugin = next((n for n, c in _plugins[kind].items() if c is cls), None)
    name = plugin or cls.__module__.rpartition(".")[2]
    parameters = list(inspect.signature(cls).parameters.values())[1 if kind == "methods" else 0 :]
    named = [
        p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]  # of a class without __init__
    inside = ", ".join(f"{name}={_literal(getattr(thing, name))}" for name in named)
    return f"{name}({inside})" if inside else name


def filled_in(spec: str, base: str) -> str:
    """A method's spec, with the arguments that it leaves open as in `base`, one of the same name.

    >>> filled_in("maml(test_steps=10)", "maml(lr=0.4, test_steps=1)")
    'maml(lr=0.4, test_steps=10)'
    """
    given, known = _single("methods", spec), _single("methods", base)
    inside = ", ".join(f"{k}={_literal(v)}" for k, v in {**known.kwargs, **given.kwargs}.items())
    return f"{given.name}({inside})" if inside else given.name


def _literal(value: Any) -> str:
    value = str(value) if isinstance(value, Path) else value
    text = repr(value)
    assert ast.literal_eval(text) == value, f"a constructor argument must be a plain value, not {text}"
    return text
