"""The training loop: it learns, repeats to the bit, resumes to the bit, and says what is wrong."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import multifsl
from multifsl import curves, run_folder, training
from multifsl.bank import BadItemWarning, Bank, Stream, open_data, sampler_of
from multifsl.checkpoint import CHECKPOINTS, read_tensors
from multifsl.encoder import Encoder, Features
from multifsl.errors import BadFile, MultifslError
from multifsl.registry import build
from multifsl.run_folder import Stopped
from multifsl.task import Items
from tests.needs import needs_minilm

ENCODER = "conv4(width=8, channels=1, image_size=16)"
SHAPE: dict[str, Any] = {"way": 3, "shot": 1, "query": 2}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 classes x 6 images: a bar whose place is the class."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for label in range(20):
        (root / f"class{label:02}").mkdir()
        for i in range(6):
            pixels = rng.integers(0, 80, (16, 16)).astype(np.uint8)
            pixels[:, label % 16] = 255
            pixels[label // 2 % 16] = 255
            Image.fromarray(pixels).save(root / f"class{label:02}" / f"{i}.png")
    return root


def run(pictures: Path, out: Path, **options: Any) -> multifsl.checkpoint.Run:
    return multifsl.train(
        f"images({str(pictures)!r})", ENCODER, "prototypical", out=out, **{**SHAPE, "steps": 45, **options}
    )


def weights(path: Path) -> dict[str, torch.Tensor]:
    return read_tensors(path / "model.safetensors")[0]


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_learns_and_holds_what_it_needs(pictures: Path, tmp_path: Path) -> None:
    done = run(pictures, tmp_path / "run", steps=150, lr=0.01)
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["encoder"] == "conv4(width=8, norm='batch', channels=1, image_size=16)"  # resolved, defaults too
    assert info["method"] == "prototypical(distance='euclidean', temperature=1.0)"
    assert info["seed"] == 0 and info["versions"]["torch"] == torch.__version__.partition("+")[0]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0] / 2
    assert sum("val_accuracy" in row for row in rows) == 150 // training.STEPS_BETWEEN_VALIDATIONS
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()
    loaded = multifsl.load_run(tmp_path / "run")
    assert equal(dict(loaded.method.state_dict()), dict(done.method.state_dict()))
    older = {k: v for k, v in info.items() if k not in ("encoder_weights", "encoder_digest")}  # which held all weights
    shutil.copytree(tmp_path / "run", tmp_path / "older")
    (tmp_path / "older" / "run.json").write_text(json.dumps(older))
    assert equal(dict(multifsl.load_run(tmp_path / "older").method.state_dict()), dict(done.method.state_dict()))
    result = multifsl.evaluate(tmp_path / "run", query=3, way=3, episodes=200)
    assert result.accuracy > 0.9 and 0 <= result.ci95 < 0.05
    assert multifsl.evaluate(tmp_path / "run", query=3, way=3, episodes=200).accuracy == result.accuracy


def test_tensorboard_finds_the_same_numbers(pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):  # the second one in the place of the first, whose events are gone
        run(pictures, tmp_path / "run", overwrite=True)
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "accuracy", "val_accuracy"):
        written = [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows if name in row]
        assert [(event.step, event.value) for event in found.Scalars(name)] == written


def test_a_run_has_a_picture_of_how_it_went(pictures: Path, tmp_path: Path) -> None:
    """Its loss at each look, its accuracy, its validations; the same numbers draw the same file."""
    run(pictures, tmp_path / "run", steps=120)
    first = (tmp_path / "run" / "curves.svg").read_text()
    for words in ("step", "loss", "accuracy", "training, 3-way", "validation, 3-way", "the weights kept"):
        assert f">{words}</text>" in first
    assert curves.draw(tmp_path / "run") is not None and (tmp_path / "run" / "curves.svg").read_text() == first
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 3, "val_accuracy": 0.5, "val_ci95": 0.1}\n')
    assert curves.draw(tmp_path / "run") is None


@pytest.mark.parametrize(
    "options", [{}, {"precision": "bfloat16", "episodes_per_step": 2}, {"way": (2, 4), "imbalance": 0.0}]
)
def test_the_same_seed_gives_the_same_bits(pictures: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    run(pictures, tmp_path / "a", **options)
    run(pictures, tmp_path / "b", **options)
    run(pictures, tmp_path / "c", **options, seed=1)
    assert equal(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not equal(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_interrupted_and_resumed_equals_never_stopped(pictures: Path, tmp_path: Path) -> None:
    """Ctrl-C in another process, resumed here: weights to the bit, and no line of the metrics twice."""
    run(pictures, tmp_path / "whole", steps=400)
    arguments = [f"images({str(pictures)!r})", ENCODER, "prototypical"]
    options = {**SHAPE, "out": str(tmp_path / "cut"), "steps": 400}
    code = f"import multifsl; multifsl.train(*{arguments!r}, **{options!r})"
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "cut" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        assert child.poll() is None
        time.sleep(0.005)
    child.send_signal(signal.SIGINT)
    assert "goes on by --resume" in child.communicate(timeout=60)[1]
    assert (tmp_path / "cut" / "checkpoint.safetensors").exists()
    with pytest.raises(MultifslError, match="not finished"):
        multifsl.load_run(tmp_path / "cut")
    with pytest.raises(MultifslError, match=r"other settings \(lr: 0.001 then, 0.1 now\)"):
        run(pictures, tmp_path / "cut", steps=400, lr=0.1, resume=True)
    run(pictures, tmp_path / "cut", steps=400, resume=True)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    steps = [
        [json.loads(line)["step"] for line in (tmp_path / n / "metrics.jsonl").read_text().splitlines()]
        for n in ("whole", "cut")
    ]
    assert set(steps[0]) <= set(steps[1]) and steps[1] == sorted(steps[1])
    with pytest.raises(MultifslError, match="nothing to resume"):
        run(pictures, tmp_path / "cut", steps=400, resume=True)


def test_sigterm_saves_as_ctrl_c_does(pictures: Path, tmp_path: Path) -> None:
    """As Slurm and `timeout` send it; afterwards it does what it did before."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Stopped, match="stopped at step 21; .* goes on by --resume") as stopped:
        run(pictures, tmp_path / "cut", report=lambda *_: signal.raise_signal(signal.SIGTERM))
    assert stopped.value.signal == signal.SIGTERM
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    run(pictures, tmp_path / "cut", resume=True)
    run(pictures, tmp_path / "whole")
    assert equal(weights(tmp_path / "cut"), weights(tmp_path / "whole"))


def test_items_that_stand_twice_are_told_before_the_training(pictures: Path, tmp_path: Path) -> None:
    """A copy in another train class, and one among the val items; by the files' bytes, whatever they are called."""
    shutil.copytree(pictures, tmp_path / "own")
    task = build("tasks", f"images({str(tmp_path / 'own')!r})")
    (one, other, *_), val = task.items("train").class_names, task.items("val").class_names[0]
    shutil.copy(tmp_path / "own" / one / "0.png", tmp_path / "own" / other / "copy.png")
    shutil.copy(tmp_path / "own" / one / "1.png", tmp_path / "own" / val / "copy.png")
    within = rf"1 of the 79 train items are the same as other train items \(.*{other}/copy.png and .*{one}/0.png\)"
    across = rf"1 of the 19 val items are the same as train items \(.*{val}/copy.png and .*{one}/1.png\)"
    with pytest.warns(UserWarning, match=within), pytest.warns(UserWarning, match=across):
        run(tmp_path / "own", tmp_path / "run", steps=2)


def shorter(whole: bytes) -> bytes:
    return whole[:-100]


def other_numbers(whole: bytes) -> bytes:
    """A file that is one of tensors still."""
    return whole[:-4000] + bytes(4000)


@pytest.mark.parametrize("damaged", [shorter, other_numbers])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: Callable[[bytes], bytes]
) -> None:
    """And the run still ends with the same bits; with both damaged it is an error."""
    run(pictures, tmp_path / "whole", ema=0.9)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(training, "save_run", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(MultifslError, match="cannot write to .*: disk full; what was saved before is whole"):
            run(pictures, tmp_path / "run", ema=0.9)
    newest, before = (tmp_path / "run" / name for name in CHECKPOINTS)
    newest.write_bytes(damaged(newest.read_bytes()))
    shutil.copytree(tmp_path / "run", tmp_path / "worse")
    with pytest.warns(UserWarning, match=r"is damaged.*going on from the checkpoint before it"):
        run(pictures, tmp_path / "run", ema=0.9, resume=True)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    assert not newest.exists() and not before.exists()
    (tmp_path / "worse" / before.name).write_bytes(b"")
    with pytest.warns(UserWarning, match="going on"), pytest.raises(BadFile, match="damaged"):
        run(pictures, tmp_path / "worse", ema=0.9, resume=True)
    with pytest.raises(MultifslError, match="not finished"):
        multifsl.load_run(tmp_path / "worse")


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(
    pictures: Path, tmp_path: Path, kills: int
) -> None:
    """kill -9 at random moments, the writing of checkpoints among them; each time another process goes on."""
    options = {**SHAPE, "steps": 40 * kills, "optimizer": "adamw", "ema": 0.99, "warmup": 0.1, "clip": 1.0}
    arguments = [f"images({str(pictures)!r})", ENCODER, "matching(temperature='learned')"]
    multifsl.train(*arguments, out=tmp_path / "whole", **options)
    cut = tmp_path / "cut"
    code = (
        "import multifsl, sys; from multifsl import training; training.CHECKPOINT_SECONDS = 0.0\n"
        f"multifsl.train(*{arguments!r}, **{options!r}, out={str(cut)!r}, resume=sys.argv[1] == 'resume')"
    )
    rng, killed = np.random.default_rng(kills), 0
    while not (cut / "run.json").exists():
        started = (cut / "settings.json").exists()
        with (tmp_path / "said").open("w") as said:
            child = subprocess.Popen([sys.executable, "-c", code, "resume" if started else "anew"], stderr=said)
        if killed < kills:
            before = _newest_change(cut)
            while child.poll() is None and _newest_change(cut) == before:  # until this one has written something
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.4))
            child.kill()
            killed += 1
        child.wait()
        assert child.returncode in (0, -signal.SIGKILL), (tmp_path / "said").read_text()
    assert killed == kills
    assert equal(weights(tmp_path / "whole"), weights(cut))
    steps = [
        [json.loads(line)["step"] for line in (tmp_path / n / "metrics.jsonl").read_text().splitlines()]
        for n in ("whole", "cut")
    ]
    assert steps[0] == steps[1]


def test_a_run_on_streamed_data_goes_on_to_the_same_bits(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With random numbers in every step: the worker processes take none of them."""
    monkeypatch.setattr("multifsl.bank.free_bytes", lambda _: 3000)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)

    def go(name: str, **options: Any) -> None:
        with pytest.warns(UserWarning, match="streamed from disk"):
            run(pictures, tmp_path / name, steps=8, augment="drawings", **options)

    go("whole")
    taken = 0

    def lost(*given: Any) -> None:
        nonlocal taken
        save(*given)
        taken += 1
        if taken == 5:
            raise OSError("no space")

    save = run_folder.save
    with monkeypatch.context() as patch:
        patch.setattr(training, "save", lost)
        with pytest.raises(MultifslError, match="no space"):
            go("cut")
    go("cut", resume=True)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_tf32_is_for_the_run_alone(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting holds while it trains, is put back, after an error too, and changes nothing that the CPU computes."""
    backends: Any = torch.backends
    kinds = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    monkeypatch.setattr(training, "LOG_EVERY", 3)
    seen: list[list[str]] = []

    def noted(*_: Any) -> None:
        seen.append([kind.fp32_precision for kind in kinds])

    def fails(*given: Any) -> None:
        noted(*given)
        raise ZeroDivisionError

    default, backends.cudnn.conv.fp32_precision = backends.cudnn.conv.fp32_precision, "ieee"  # somebody's own
    try:
        noted()
        run(pictures, tmp_path / "plain", steps=3, report=noted)
        run(pictures, tmp_path / "tf32", steps=3, report=noted, precision="tf32")
        noted()
        with pytest.raises(ZeroDivisionError):
            run(pictures, tmp_path / "torn", steps=3, report=fails, precision="tf32")
        noted()
    finally:
        backends.cudnn.conv.fp32_precision = default
    own, tf32 = seen[0], ["tf32"] * 3
    assert own != tf32 and seen == [own, own, tf32, own, tf32, own]
    assert equal(weights(tmp_path / "plain"), weights(tmp_path / "tf32"))


def test_the_encoder_is_compiled_for_the_run_alone(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call of the encoder goes through torch.compile; afterwards it is itself again, and its weights have their names."""
    calls = 0

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            return function(*given, **named)

        return call

    run(pictures, tmp_path / "plain", steps=5)
    monkeypatch.setattr(torch, "compile", compiled)
    done = run(pictures, tmp_path / "compiled", steps=5, compile=True)
    assert calls >= 1 + 5 and equal(weights(tmp_path / "plain"), weights(tmp_path / "compiled"))
    before = calls
    done.method.encoder.embed(torch.zeros(2, 1, 16, 16, dtype=torch.uint8))
    assert calls == before and done.info["compile"]


@pytest.mark.slow
@pytest.mark.parametrize("shape", [{}, {"way": (2, 3), "shot": (1, 3)}])
def test_a_compiled_encoder_learns_the_same(pictures: Path, tmp_path: Path, shape: dict[str, Any]) -> None:
    run(pictures, tmp_path / "plain", **{"steps": 10, **shape})
    torch.compiler.set_default_backend("aot_eager")  # which needs no C++ compiler
    try:
        run(pictures, tmp_path / "compiled", **{"steps": 10, "compile": True, **shape})
    finally:
        torch.compiler.set_default_backend(None)
    torch.testing.assert_close(weights(tmp_path / "compiled"), weights(tmp_path / "plain"), rtol=1e-3, atol=1e-4)


def test_what_cannot_be_compiled(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = f"images({str(pictures)!r})"
    with pytest.raises(MultifslError, match="adapts the encoder in every task.*leave compile out"):
        multifsl.train(task, ENCODER, "maml", out=tmp_path / "run", **SHAPE, steps=5, compile=True)

    def fails(_: Any) -> Any:
        raise RuntimeError("InvalidCxxCompiler: none\n\nSet TORCHDYNAMO_VERBOSE=1")

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(MultifslError, match=r"does not work here \(InvalidCxxCompiler: none\): leave compile out"):
        run(pictures, tmp_path / "run", compile=True)
    assert not (tmp_path / "run").exists()


def test_what_a_kill_leaves_behind_is_tidied_away(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A half-written file, metrics that are no text, and an end between the run's last file and its checkpoints."""
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(training, "save_run", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(MultifslError, match="disk full"):
            run(pictures, out)
    (out / ".checkpoint.safetensors.x1y2").write_bytes(b"half")
    with (out / "metrics.jsonl").open("ab") as file:
        file.write(b"\xff\xfe{")
    with monkeypatch.context() as patch:
        patch.setattr(training, "tidy", lambda _: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(MultifslError, match="killed"):
            run(pictures, out, resume=True)
    assert (out / "run.json").exists() and (out / CHECKPOINTS[0]).exists()
    with pytest.raises(MultifslError, match="is finished; there is nothing to resume"):
        run(pictures, out, resume=True)
    names = {path.name for path in out.iterdir()} - {"tensorboard"}
    assert names == {"run.json", "model.safetensors", "settings.json", "metrics.jsonl", curves.NAME}


def test_other_data_or_another_beginning_is_another_run(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(pictures, tmp_path / "copy")
    task = f"images({str(tmp_path / 'copy')!r})"
    run(pictures, tmp_path / "first", steps=2)
    shutil.copytree(tmp_path / "first", tmp_path / "moved")
    begun = {"method": "prototypical", "out": tmp_path / "run", "steps": 4, **SHAPE}
    with monkeypatch.context() as patch:
        patch.setattr(training, "save_run", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(MultifslError, match="disk full"):
            multifsl.train(task, f"run:{tmp_path / 'first'}", **begun)
    with pytest.raises(MultifslError, match=r"other settings \(encoder_from: .* then, None now\)"):
        multifsl.train(task, ENCODER, **begun, resume=True)
    (tmp_path / "copy" / build("tasks", task).items("train").class_names[0] / "0.png").unlink()
    with pytest.raises(MultifslError, match=r"other settings \(train_items: \[78, .* then, \[77, .* now\)"):
        multifsl.train(task, f"run:{tmp_path / 'moved'}", **begun, resume=True)
    shutil.rmtree(tmp_path / "copy")
    shutil.copytree(pictures, tmp_path / "copy")
    multifsl.train(task, f"run:{tmp_path / 'moved'}", **begun, resume=True)  # the same weights, elsewhere


def _newest_change(folder: Path) -> float:
    times = [0.0]
    for path in folder.glob("checkpoint*"):
        with contextlib.suppress(FileNotFoundError):  # it was moved since
            times.append(path.stat().st_mtime_ns)
    return max(times)


@pytest.mark.parametrize("encoder", [ENCODER, ENCODER.replace("width=8", "width=8, norm='group'")])
def test_micro_batches_compute_what_a_whole_step_does(pictures: Path, tmp_path: Path, encoder: str) -> None:
    """Weights and running statistics, in float64, after 20 steps of 4 episodes in 1, 2 and 4 parts."""
    runs = [
        multifsl.train(
            f"images({str(pictures)!r})", encoder, "prototypical", out=tmp_path / str(parts), **SHAPE, steps=20,
            episodes_per_step=4, accumulate=parts, precision="float64", optimizer="sgd",
        )
        for parts in (1, 2, 4)
    ]  # fmt: skip
    whole = dict(runs[0].method.state_dict())
    assert whole["encoder.convs.0.weight"].dtype == torch.float64
    for other in runs[1:]:
        torch.testing.assert_close(dict(other.method.state_dict()), whole, rtol=1e-9, atol=1e-11)


def test_the_learning_rate_follows_its_schedule(pictures: Path, tmp_path: Path) -> None:
    run(pictures, tmp_path / "run", steps=60, schedule="step", warmup=0.5, lr=0.01)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = {row["step"]: row["lr"] for row in rows if "lr" in row}  # of the step that was just done
    assert rates == {20: pytest.approx(0.01 * 19 / 30), 40: pytest.approx(0.01 / 2**3), 60: pytest.approx(0.01 / 2**9)}


def test_a_clipped_step_is_no_longer_than_that(pictures: Path, tmp_path: Path) -> None:
    """One step of plain SGD along a gradient of length 1e-3, with Nesterov's momentum: lr * (1 + 0.9) * 1e-3."""
    options: dict[str, Any] = {"optimizer": "sgd", "schedule": "constant", "lr": 0.5, "precision": "float64"}
    moved = []
    for steps in (1, 2):
        done = run(pictures, tmp_path / f"clipped{steps}", steps=steps, clip=1e-3, **options)
        moved.append(torch.cat([p.flatten() for p in done.method.parameters()]).detach())
    torch.manual_seed(0)
    start = torch.cat([p.flatten() for p in build("encoders", ENCODER).parameters()]).double().detach()
    assert float((moved[0] - start).norm()) == pytest.approx(0.5 * 1.9 * 1e-3, rel=1e-6)
    assert float((moved[1] - start).norm()) > float((moved[0] - start).norm())


def test_the_averaged_weights_are_what_is_kept(pictures: Path, tmp_path: Path) -> None:
    """By hand, from the weights after each step: there is no validation, so the last average is the run's."""
    (tmp_path / "splits.json").write_text(json.dumps({"train": [path.name for path in sorted(pictures.iterdir())]}))
    task = f"images({str(pictures)!r}, splits={str(tmp_path / 'splits.json')!r})"

    def after(steps: int, **options: Any) -> dict[str, torch.Tensor]:
        with pytest.warns(UserWarning, match="no validation"):
            done = multifsl.train(
                task, ENCODER, "prototypical", out=tmp_path / f"{steps}{options}", **SHAPE, steps=steps, precision="float64",
                schedule="constant", **options,
            )  # fmt: skip
        return {k.removeprefix("encoder."): v for k, v in done.method.state_dict().items()}

    torch.manual_seed(0)
    expected = {k: v.double() for k, v in build("encoders", ENCODER).state_dict().items()}
    for step in range(3):
        keep, now = min(0.3, (1 + step) / (10 + step)), after(step + 1)
        expected = {k: keep * expected[k] + (1 - keep) * now[k] for k in now}
    found = after(3, ema=0.3)
    for name in ("convs.1.weight", "norms.0.running_mean"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12)
    assert int(found["norms.0.num_batches_tracked"]) == 3


def test_patience_ends_a_run(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "STEPS_BETWEEN_VALIDATIONS", 5)
    scores = iter([0.5, 0.6, 0.6, 0.4, 0.9])
    monkeypatch.setattr(training, "episode_accuracies", lambda *_, **__: np.full(2, next(scores)))
    done = run(pictures, tmp_path / "run", steps=60, patience=2).info["metrics"]
    assert (done["steps_done"], done["val_step"], done["val_accuracy"]) == (20, 10, 0.6)


def test_minutes_bound_the_time(pictures: Path, tmp_path: Path) -> None:
    begin = time.monotonic()
    done = run(pictures, tmp_path / "run", steps=None, minutes=0.05)
    assert 2.5 < time.monotonic() - begin < 30
    assert 2.9 < done.info["metrics"]["seconds"] < 15


def test_folders_are_not_lost(pictures: Path, tmp_path: Path) -> None:
    run(pictures, tmp_path / "run", steps=2)
    before = weights(tmp_path / "run")
    with pytest.raises(MultifslError, match="exists already; go on with it by --resume, or replace it by --overwrite"):
        run(pictures, tmp_path / "run", steps=2)
    assert equal(before, weights(tmp_path / "run"))
    run(pictures, tmp_path / "run", steps=2, seed=5, overwrite=True)
    assert not equal(before, weights(tmp_path / "run"))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(MultifslError, match="is no run: it is not overwritten"):
        run(pictures, mine, overwrite=True)
    assert (mine / "thesis.tex").read_text() == "years of work"
    with pytest.raises(MultifslError, match="no run to resume"):
        run(pictures, tmp_path / "nowhere", resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(MultifslError, match="is a file"):
        run(pictures, tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_place_is_an_error(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(MultifslError, match="cannot write"):
        run(pictures, tmp_path / "locked" / "run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"way": 50}, "the train split has 13 of your 20 classes: way 50 asks for more classes than there are: 13"),
        ({"shot": 5}, r"ask for 7 \(13 of 13 classes"),
        ({"minutes": 1.0}, "not both"),
        ({"precision": "float16"}, "known: 'float32', 'tf32', 'bfloat16'"),
        ({"compile": True, "freeze_encoder": True}, "embeddings are made once: leave compile out"),
        ({"optimizer": "lion"}, "no optimizer 'lion'; known: 'adam'"),
        ({"schedule": "linear"}, "no schedule 'linear'; known: 'cosine'"),
        ({"warmup": 1.0}, "warmup must be a number from 0 and below 1"),
        ({"ema": 1.5}, "ema must be a number above 0 and below 1"),
        ({"clip": 0}, "clip must be a number above 0"),
        ({"patience": 0}, "patience must be a whole number from 1"),
        ({"weight_decay": -1}, "weight_decay must be a number of at least 0"),
        ({"episodes_per_step": 3, "accumulate": 2}, "3 episodes a step cannot be dealt evenly.*a multiple of 2"),
        ({"device": "cuda:99"}, "not there"),
        ({"device": "toaster"}, "no device 'toaster'"),
        ({"lr": float("nan")}, "lr must be a number above 0"),
        ({"episodes_per_step": 0}, "a whole number from 1"),
        ({"resume": True, "overwrite": True}, "not both"),
    ],
)
def test_nonsense_is_refused_before_anything_is_written(
    pictures: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(MultifslError, match=message):
        run(pictures, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_diverging_loss_stops_the_run(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(MultifslError, match=r"the loss is (nan|inf).*smaller --lr"):
        run(pictures, tmp_path / "run", lr=1e30)
    assert not (tmp_path / "run" / "run.json").exists()


def test_weights_that_are_not_finite_are_never_kept(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient that is not, of a loss that is: in the last step, and in one that a checkpoint follows."""
    step = torch.optim.Adam.step
    taken = 0

    def spoilt(self: Any, *given: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == 6:
            self.param_groups[0]["params"][0].grad[0] = torch.nan
        return step(self, *given)

    monkeypatch.setattr(torch.optim.Adam, "step", spoilt)
    with pytest.raises(
        MultifslError, match=r"the weights are not finite after step 6, whose episodes are .*tasks\(5, 1\)"
    ):
        run(pictures, tmp_path / "run", steps=6)
    assert not (tmp_path / "run" / "run.json").exists()
    taken = 0
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(MultifslError, match="the weights are not finite after step 6.*the last good state is in"):
        run(pictures, tmp_path / "other", steps=30)
    kept = read_tensors(tmp_path / "other" / CHECKPOINTS[0])[0]
    assert all(torch.isfinite(v).all() for k, v in kept.items() if k.startswith("model."))


def test_an_encoder_of_another_modality_is_refused(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(MultifslError, match=r"reads speech items, but the task .* has image items"):
        multifsl.train(f"images({str(pictures)!r})", "ecapa(channels=8)", "prototypical", out=tmp_path / "run")


def test_corrupt_files_are_named_counted_and_left_out(pictures: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "pictures"
    shutil.copytree(pictures, copy)
    task = build("tasks", f"images({str(copy)!r})")
    name = task.items("train").class_names[0]
    (copy / name / "0.png").write_bytes(b"not an image")
    with pytest.warns(BadItemWarning, match=rf"left out 1 of 78 items: .*{name}/0.png is not an image"):
        multifsl.train(task, ENCODER, "prototypical", out=tmp_path / "run", steps=2, **SHAPE)


def test_a_stream_yields_what_a_bank_yields(pictures: Path) -> None:
    """Data that do not fit into memory are decoded step by step, to the same episodes."""
    encoder: Encoder = build("encoders", ENCODER)
    items = build("tasks", f"images({str(pictures)!r})").items("train")
    bank = open_data(encoder, items)
    with pytest.warns(UserWarning, match="streamed from disk"):
        stream = open_data(encoder, items, limit=1000)
    assert isinstance(bank, Bank) and isinstance(stream, Stream)
    sampler = sampler_of(items, **SHAPE)
    for a, b in zip(bank.stream(sampler, range(3, 6), 2), stream.stream(sampler, range(3, 6), 2), strict=True):
        assert torch.equal(a.support.x, b.support.x) and torch.equal(a.query.x, b.query.x)  # type: ignore[arg-type]
        assert torch.equal(a.support.y, b.support.y) and not b.padded


class Ragged(Features):
    """Vectors of several lengths, padded to the longest of a batch."""

    def collate(self, loaded: Sequence[Any]) -> dict[str, torch.Tensor]:
        wave = torch.nn.utils.rnn.pad_sequence(list(loaded), batch_first=True)
        return {"wave": wave, "length": torch.tensor([len(one) for one in loaded])}


def test_streamed_tasks_are_padded_together_as_a_banks_are() -> None:
    """Each task is read by itself; a batch of them is the bank's, bit for bit."""
    rng = np.random.default_rng(0)
    items = Items([rng.normal(size=n) for n in range(1, 31)], np.arange(30) % 5, list("abcde"))
    bank, stream = Bank.build(Ragged(1), items), Stream(Ragged(1), items, workers=0)
    sampler = sampler_of(items, **SHAPE)
    parts = [sampler.tasks(step, 3) for step in range(4)]
    longest = set()
    for (part, a), (same, b) in zip(bank.batches(parts), stream.batches(parts), strict=True):
        assert part is same and torch.equal(a.query.y, b.query.y) and isinstance(a.query.x, dict)
        assert isinstance(b.query.x, dict) and all(torch.equal(leaf, b.query.x[k]) for k, leaf in a.query.x.items())
        longest.add(a.query.x["wave"].shape[-1])
    assert len(longest) > 1


def test_overwrite_takes_only_a_run_and_only_its_own_files(pictures: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "settings.json").write_text('{"theme": "dark"}')
    with pytest.raises(MultifslError, match="is no run"):
        run(pictures, project, overwrite=True)
    run(pictures, tmp_path / "run", steps=2)
    (tmp_path / "run" / "NOTES.txt").write_text("mine")
    before = weights(tmp_path / "run")
    with pytest.raises(MultifslError, match="way 50"):
        run(pictures, tmp_path / "run", way=50, overwrite=True)  # what cannot be done costs nothing
    assert equal(before, weights(tmp_path / "run"))
    run(pictures, tmp_path / "run", steps=2, seed=3, overwrite=True)
    assert (tmp_path / "run" / "NOTES.txt").read_text() == "mine"


def test_a_checkpoint_is_never_of_a_diverged_state(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(MultifslError, match="the loss is"):
        run(pictures, tmp_path / "run", lr=1e30)
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    assert all(torch.isfinite(v).all() for k, v in read_tensors(checkpoint)[0].items() if k.startswith("model."))


def test_a_bad_item_of_a_lazy_sequence_is_left_out(pictures: Path) -> None:
    from multifsl.bank import load_all
    from multifsl.errors import BadItem

    class Lazy:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> np.ndarray:
            if index == 1:
                raise BadItem("drawing 1 is torn")
            return np.zeros((16, 16), dtype=np.uint8)

    with pytest.warns(BadItemWarning, match="left out 1 of 3 items: drawing 1 is torn"):
        loaded, kept = load_all(build("encoders", ENCODER), Lazy())  # type: ignore[arg-type]
    assert len(loaded) == 2 and kept == [0, 2]


def test_trained_weights_are_no_longer_the_published_ones(tmp_path: Path) -> None:
    """Else a saved model would name MiniLM, and come back without what was learned."""
    from tests.needs import needs_minilm

    needs_minilm()
    rows = [
        json.dumps({"text": f"{word} {i} {word}", "label": word})
        for word in "red blue green gold".split()
        for i in range(4)
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    (tmp_path / "splits.json").write_text('{"train": ["red", "blue"], "val": ["green"], "test": ["gold"]}')
    task = f"texts({str(tmp_path / 't.jsonl')!r}, splits={str(tmp_path / 'splits.json')!r})"
    with pytest.warns(UserWarning, match="no validation"):
        done = multifsl.train(
            task, "transformer", "prototypical", out=tmp_path / "run", way=2, query=2, steps=1, lr=1e-4
        )
    assert not done.method.encoder.published
    model = multifsl.FewShotClassifier(done.method.encoder, done.method).fit(["red one", "blue one"], ["red", "blue"])
    model.save(tmp_path / "model")
    again = multifsl.FewShotClassifier.load(tmp_path / "model")
    np.testing.assert_allclose(again.predict_proba(["a red one"]), model.predict_proba(["a red one"]), atol=1e-6)


def test_a_frozen_encoder_is_embedded_once_and_stays_as_it_was(pictures: Path, tmp_path: Path) -> None:
    """The method alone is trained, on the embeddings of evaluation mode; encoder, running statistics included, as given."""
    encoder = build("encoders", ENCODER)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    embed, seen = type(encoder).embed, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(encoder), "embed", lambda self, x, *a: seen.append(len(x)) or embed(self, x, *a))  # type: ignore[func-returns-value]
        done = multifsl.train(
            f"images({str(pictures)!r})", encoder, "matching(temperature='learned')", out=tmp_path / "run", **SHAPE, steps=200,
            lr=0.01, freeze_encoder=True,
        )  # fmt: skip
    assert seen == [13 * 6, 3 * 6]  # train and val classes, once each
    assert equal(dict(done.method.encoder.state_dict()), before)
    fresh = build("methods", "matching(temperature='learned')", encoder=encoder)
    assert not equal(dict(done.method.state_dict()), dict(fresh.state_dict()))
    loaded = multifsl.load_run(tmp_path / "run").method
    assert equal(dict(loaded.state_dict()), dict(done.method.state_dict()))
    assert not done.method.encoder.training and not loaded.encoder.training
    frozen = multifsl.evaluate(tmp_path / "run", query=3, way=3, episodes=50)
    assert frozen.accuracy > 0.5


def test_a_frozen_run_goes_on_with_the_same_encoder_alone(pictures: Path, tmp_path: Path) -> None:
    def go(seed: int, steps: int, **options: Any) -> None:
        torch.manual_seed(seed)
        multifsl.train(
            f"images({str(pictures)!r})", build("encoders", ENCODER), "ridge", out=tmp_path / "run", **SHAPE, steps=steps,
            freeze_encoder=True, **options,
        )  # fmt: skip

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(training, "save_run", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(MultifslError, match="cannot write to .*: disk full; what was saved before is whole"):
            go(1, 4)
    with pytest.raises(MultifslError, match=r"other settings \(frozen_encoder: "):
        go(2, 4, resume=True)
    go(1, 4, resume=True)


def test_a_random_encoder_is_not_frozen_without_a_word(pictures: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="has random weights, and they are frozen"):
        multifsl.train(
            f"images({str(pictures)!r})", ENCODER, "ridge", out=tmp_path / "run", **SHAPE, steps=2, freeze_encoder=True
        )


def test_a_run_names_published_weights_instead_of_holding_them(tmp_path: Path) -> None:
    """Frozen MiniLM: a file of the head alone, which is not read beside other weights of that name."""
    needs_minilm()
    rows = [
        {"text": f"{word} number {i}", "label": word} for word in ("cat", "house", "sea", "bread") for i in range(5)
    ]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["cat", "house"], "val": ["sea", "bread"]}))
    task = f"texts({str(tmp_path / 'texts.jsonl')!r}, splits={str(tmp_path / 'splits.json')!r})"
    shape: dict[str, Any] = {"way": 2, "shot": 1, "query": 2}
    multifsl.train(
        task, "transformer", "caml(width=16, heads=2)", out=tmp_path / "run", **shape, steps=2, freeze_encoder=True
    )
    assert not any(name.startswith("encoder.") for name in weights(tmp_path / "run"))
    loaded = multifsl.load_run(tmp_path / "run")
    assert loaded.method.encoder.published and loaded.info["encoder_weights"] == "published"
    assert 0 <= multifsl.evaluate(tmp_path / "run", split="val", **shape, episodes=5).accuracy <= 1
    assert multifsl.load_run(tmp_path / "run", method="ridge").method.encoder.published
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**info, "encoder_digest": "0" * 32}))
    with pytest.raises(BadFile, match="are not those that it was made with"):
        multifsl.load_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("prototypical", "with its encoder frozen has nothing to train"),
        ("maml", "take trainable='head'"),
        ("simpleshot", "trains nothing but the encoder"),
    ],
)
def test_what_a_frozen_encoder_leaves_nothing_for(pictures: Path, tmp_path: Path, method: str, message: str) -> None:
    with pytest.raises(MultifslError, match=message):
        multifsl.train(
            f"images({str(pictures)!r})", ENCODER, method, out=tmp_path / "run", **SHAPE, steps=5, freeze_encoder=True
        )
    assert not (tmp_path / "run").exists()
