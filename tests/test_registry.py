"""Names and specs. Oracles: what Python's own parser makes of a call with literals; `build(resolved(x))` equals x; a
fresh interpreter's list of imported modules."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from multifsl import registry
from multifsl.encoder import Features
from multifsl.errors import MultifslError
from multifsl.registry import Spec, build, find, names, parse, resolved, summary
from tests import tiny, tiny_audio
from tests.needs import needs_efficientnet_lite0, needs_ge2e, needs_minilm

# What a name needs before it can be built; the others take no argument.
NEEDS = {  # the specs of those that cannot do without an argument, or without weights that are not here
    "images": "images('photos')",
    "speakers": "speakers('voices')",
    "texts": "texts('texts.jsonl')",
    "dataset": "dataset('photos')",
    "vision": "vision(model='tiny:vit')",
    "audio": "audio(model='tiny_audio:HubertModel')",
}
PACKAGED = {"efficientnet_lite0": needs_efficientnet_lite0, "ge2e": needs_ge2e, "transformer": needs_minilm}
HEAVY = ("torch", "transformers", "sklearn", "numpy", "PIL", "soundfile", "datasets", "torchaudio")


def script(code: str, *args: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- reading specs ----


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("conv4", [Spec("conv4", (), {})]),
        ("  conv4()\n", [Spec("conv4", (), {})]),
        ("(conv4)", [Spec("conv4", (), {})]),
        ("images('a b/c')", [Spec("images", ("a b/c",), {})]),
        ("a(x=1, y=-2.5, z=None, w=True)", [Spec("a", (), {"x": 1, "y": -2.5, "z": None, "w": True})]),
        ("a(x=[1, (2, 'b')], y={'k': {3}})", [Spec("a", (), {"x": [1, (2, "b")], "y": {"k": {3}}})]),
        ("a + b(c=1) + d", [Spec("a", (), {}), Spec("b", (), {"c": 1}), Spec("d", (), {})]),
        ("a + (b + c)", [Spec("a", (), {}), Spec("b", (), {}), Spec("c", (), {})]),
        ("größe(ä='ö + b()')", [Spec("größe", (), {"ä": "ö + b()"})]),
    ],
)
def test_good_specs(text: str, expected: list[Spec]) -> None:
    assert parse(text) == expected


BAD = [
    "", "  ", "conv4(", "conv4)", "conv4 width", "1", "'conv4'", "None", "a.b", "os.system('x')", "a[0]", "a()()", "-a",
    "a - b", "a * 2", "a and b", "lambda: 1", "[a for a in b]", "a if b else c", "a := 1", "a; b", "import os", "f'{a}'", "a, b",
    "conv4(width=x)", "conv4(width=1 + 1)", "conv4(width=2 ** 9)", "conv4(width=int('8'))", "conv4(width=(lambda: 8)())",
    "conv4(width=[i for i in (1, 2)])", "conv4(*[1])", "conv4(*a)", "conv4(**{'width': 8})", "conv4(**a)", "conv4(f'{1}')",
    "conv4(width=a.b)", "conv4(width=a[0])", "conv4(width={[]: 1})", "conv4(width=1, width=2)", "conv4(8, (x))",
    "conv4(width=__import__('os').getcwd())", "eval('1')(x)", "conv4\x00", "conv4(width='\ud800')",
    "(" * 300 + "a" + ")" * 300, "a(x=" + "[" * 5000 + "]" * 5000 + ")", "a(x=" + "-" * 3000 + "1)", "a(x=" + "9" * 5000 + ")",
    "+".join(["a"] * 2000), "+".join(["a"] * 100_000), "a" + "()" * 3000, "a" + ".b" * 3000,
]  # fmt: skip


@pytest.mark.parametrize("text", BAD, ids=[f"{i} {text[:30]!a}" for i, text in enumerate(BAD)])
def test_bad_specs(text: str) -> None:
    with pytest.raises(MultifslError) as raised:
        parse(text)
    assert len(str(raised.value)) < 1000  # a message is to be read


@pytest.mark.parametrize("thing", [None, 5, ["conv4"], b"conv4"])
def test_a_spec_that_is_no_text(thing: Any) -> None:
    with pytest.raises(MultifslError, match="spec"):
        build("encoders", thing)


def test_a_spec_is_never_evaluated(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for text in (f"conv4(width=open({str(mark)!r}, 'w'))", f"open({str(mark)!r}, 'w')", f"[open({str(mark)!r}, 'w')]"):
        for kind in registry.KINDS:
            with pytest.raises(MultifslError):
                build(kind, text, encoder=Features(2))
    assert not mark.exists()


# ---- building ----


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        ("encoders", "conv5", "no encoder 'conv5'; did you mean 'conv4'"),
        ("methods", "protoypical", "did you mean 'prototypical'"),
        ("tasks", "omniglott", "did you mean 'omniglot'"),
        ("encoders", "qqqqqq", "no encoder 'qqqqqq'; known: .*conv4.*ecapa.*transformer"),
        ("encoders", "_image", "no encoder '_image'"),
        ("encoders", "Conv4", "no encoder 'Conv4'; did you mean 'conv4'"),
        ("encoders", "__init__", "no encoder"),
        ("encoders", "omniglot", "no encoder 'omniglot'"),
        ("encoders", "conv4(depth=3)", "conv4.*depth.*it takes width=64, norm='batch', channels=None, image_size=28"),
        ("encoders", "conv4(64)", "conv4.*it takes width=64"),
        ("encoders", "conv4(norm='layer')", "'layer'.*'batch', 'group'"),
        ("methods", "prototypical(distance='manhattan')", "'manhattan'.*'euclidean'.*'cosine'"),
        ("methods", "prototypical(encoder=1)", "prototypical"),
        ("tasks", "images", "images.*path"),
        ("tasks", "omniglot(rotation=True)", "rotation.*it takes rotations=True"),
        ("encoders", "conv4 + ecapa", r"'\+' joins tasks; one encoder was expected"),
        ("methods", "prototypical + prototypical", r"'\+' joins tasks; one method was expected"),
        ("tasks", "omniglot + banking77", "one modality, not of image and text"),
        ("tasks", "omniglot + banking", "did you mean 'banking77'"),
        # a value of the wrong type is the user's error as well
        ("encoders", "conv4(width='8')", "conv4.*width"),
        ("encoders", "conv4(width=8.5)", "conv4.*width"),
        ("encoders", "conv4(width=None)", "conv4.*width"),
        ("encoders", "conv4(image_size='big')", "conv4.*image_size"),
        ("encoders", "ecapa(channels=1.5)", "channels"),
        ("encoders", "ecapa(channels=8, dim='a')", "ecapa.*dim"),
        ("methods", "prototypical(temperature='cold')", "temperature"),
        ("methods", "prototypical(temperature=0)", "temperature"),
        ("tasks", "images(5)", "images.*path"),
        ("tasks", "images('x', seed='a')", "images.*seed"),
        ("tasks", "speakers('x', group_by=5)", "speakers.*group_by"),
        ("tasks", "librispeech(chunk_seconds='a')", "librispeech.*chunk_seconds"),
        ("tasks", "banking77(fold=6)", "folds 1 to 5"),
        ("models", "conv4", "no kind 'models'"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong_and_what_is_known(kind: Any, text: str, says: str) -> None:
    with pytest.raises(MultifslError, match=f"(?s){says}"):
        build(kind, text, encoder=Features(2))


def attributes(thing: Any, kind: registry.Kind) -> dict[str, Any]:
    skip = 1 if kind == "methods" else 0
    return {name: getattr(thing, name) for name in list(inspect.signature(type(thing)).parameters)[skip:]}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in registry.KINDS for name in names(kind)])
def test_a_resolved_spec_builds_the_same_again(kind: registry.Kind, name: str) -> None:
    PACKAGED.get(name, lambda: None)()
    thing = build(kind, tiny_audio.here(tiny.here(NEEDS.get(name, name))), encoder=Features(2))
    text = resolved(thing)
    again = build(kind, text, encoder=Features(2))
    assert type(again) is type(thing)
    assert attributes(again, kind) == attributes(thing, kind)
    assert resolved(again) == text
    (spec,) = parse(text)
    assert spec.name == name
    assert spec.args == ()
    assert set(spec.kwargs) == set(attributes(thing, kind))  # every argument: no later default can change it


def test_resolved_keeps_what_is_not_the_default() -> None:
    for text in (
        "conv4(width=16, norm='group', channels=1, image_size=32)",
        "ecapa(channels=8, dim=8, n_mels=40)",
        "images(path='a', splits=None, seed=3) + omniglot(rotations=False)",
    ):
        kind: registry.Kind = "tasks" if "+" in text else "encoders"
        assert resolved(build(kind, text)) == text
    method = build("methods", "prototypical(distance='cosine', temperature=0.25)", encoder=Features(2))
    assert resolved(method) == "prototypical(distance='cosine', temperature=0.25)"
    quotes = 'images(path="it\'s + a(b)", splits=None, seed=0)'
    assert resolved(build("tasks", quotes)) == quotes
    assert parse(resolved(build("tasks", quotes)))[0].kwargs["path"] == "it's + a(b)"


def test_a_task_fills_in_what_an_encoder_was_not_given() -> None:
    task = build("tasks", "omniglot")
    assert build("encoders", "conv4", task=task).channels == 1
    assert build("encoders", "conv4(channels=3)", task=task).channels == 3
    assert build("encoders", "conv4").channels == 3


def test_every_name_has_a_page_and_a_class() -> None:
    for kind in registry.KINDS:
        assert names(kind) == sorted(set(names(kind)))
        for name in names(kind):
            assert summary(kind, name).strip()
            if name != "transformer":
                assert find(kind, name).__doc__


def test_names_import_nothing_heavy() -> None:
    loaded = script(
        "import multifsl; from multifsl import registry; import json, sys\n"
        "listed = {k: [(n, registry.summary(k, n)) for n in registry.names(k)] for k in registry.KINDS}\n"
        "assert len(listed['encoders']) >= 3\n"
        "print(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    )
    assert not set(json.loads(loaded)) & set(HEAVY)


# ---- plug-ins, in interpreters of their own: the registry is one for a process ----

PLUGIN = '''"""Halves: every image as its mean."""
import torch
from multifsl.encoder import Encoder


class Helper:
    pass


class Halves(Encoder):
    """Means."""
    modality = "image"

    def __init__(self, *, scale: float = 0.5) -> None:
        super().__init__()
        self.scale, self.dim = scale, 1

    def load(self, item):
        return torch.as_tensor(item)

    def collate(self, loaded):
        return torch.stack(list(loaded))

    def forward(self, x):
        return self.scale * x.float().flatten(1).mean(1, keepdim=True)
'''
ADD = "import sys; from multifsl import registry as r; from multifsl.errors import MultifslError\n"
REFUSED = (
    ADD
    + """import json
def add(path):
    try:
        return f"accepted as {r.add_plugin(path)}"
    except MultifslError as error:
        return str(error)
print(json.dumps([add(path) for path in sys.argv[1:]]))
"""
)


def test_a_plugin_is_one_of_the_names(tmp_path: Path) -> None:
    file = tmp_path / "halves.py"
    file.write_text(PLUGIN)
    out = script(
        f"{ADD}assert 'halves' not in r.names('encoders')\n"
        "print(r.add_plugin(sys.argv[1]), 'halves' in r.names('encoders'), 'halves' in r.names('tasks'))\n"
        "print(r.summary('encoders', 'halves'))\n"
        "thing = r.build('encoders', 'halves(scale=2.0)'); print(r.resolved(thing), r.resolved(r.build('encoders', 'halves')))\n"
        "assert type(r.build('encoders', r.resolved(thing))) is type(thing)",
        str(file),
    )
    assert out.splitlines() == [
        "halves True False",
        "Halves: every image as its mean.",
        "halves(scale=2.0) halves(scale=0.5)",
    ]


def test_the_command_lists_a_plugin(tmp_path: Path) -> None:
    file = tmp_path / "halves.py"
    file.write_text(PLUGIN)
    command = [sys.executable, "-m", "multifsl.cli", "list", "encoders"]
    assert "halves" not in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    with_it = subprocess.run([*command, "--plugin", str(file)], capture_output=True, text=True, check=True).stdout
    assert "Halves: every image as its mean." in with_it
    assert "conv4" in with_it


def test_a_plugin_without_a_constructor(tmp_path: Path) -> None:
    file = tmp_path / "plain.py"
    file.write_text(
        "from multifsl.encoder import Encoder\n\n\nclass Plain(Encoder):\n    modality, dim = 'image', 1\n"
        "    load = collate = forward = lambda self, x: x\n"
    )
    code = f"{ADD}r.add_plugin(sys.argv[1]); print(r.resolved(r.build('encoders', 'plain')))"
    assert script(code, str(file)) == "plain\n"


REFUSALS: list[tuple[str, str | None, str]] = [
    ("conv4.py", PLUGIN, "encoder 'conv4' already.*another name"),
    ("empty.py", "", "no Encoder, Method or Task"),
    ("half.py", PLUGIN.replace("def collate", "def collect"), r"Halves lacks collate; see `help\(multifsl.Encoder\)`"),
    ("imported.py", "from multifsl.encoders.conv4 import Conv4", "no Encoder, Method or Task"),
    ("two.py", PLUGIN + "class Other(Halves):\n    pass\n", "Halves, Other: one encoder a file"),
    ("halves.txt", PLUGIN, "not a Python file"),
    ("my-halves.py", PLUGIN, "my-halves.*name"),
    ("class.py", PLUGIN, "class.*name"),
    ("syntax.py", "def", r"syntax\.py.*SyntaxError"),
    ("missing.py", "import nowhere_at_all", r"missing\.py.*nowhere_at_all"),
    ("raises.py", "1 / 0", r"raises\.py.*ZeroDivisionError"),
    ("nowhere.py", None, "no plug-in file"),
]


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is said of each file, all of them offered to one interpreter."""
    folder = tmp_path_factory.mktemp("plugins")
    for name, content, _ in REFUSALS:
        if content is not None:
            (folder / name).write_text(content)
    answers = json.loads(script(REFUSED, *(str(folder / name) for name, _, _ in REFUSALS)))
    return {name: answer for (name, _, _), answer in zip(REFUSALS, answers, strict=True)}


@pytest.mark.parametrize(("name", "says"), [(name, says) for name, _, says in REFUSALS])
def test_plugins_that_cannot_be_added(refusals: dict[str, str], name: str, says: str) -> None:
    assert re.search(f"(?s){says}", refusals[name]), refusals[name]


def test_two_plugins_of_one_name_collide(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "halves.py").write_text(PLUGIN)
    one, other = str(tmp_path / "a" / "halves.py"), str(tmp_path / "b" / "halves.py")
    first, second = json.loads(script(REFUSED, one, other))
    assert first == "accepted as halves"
    assert "'halves' already" in second
