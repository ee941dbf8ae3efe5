"""The command line of the benchmarks.

python -m benchmarks                        # all of them, to the screen
python -m benchmarks prototypical --json    # one, as JSON
python -m benchmarks --save                 # all, into docs/performance/ and docs/performance.md
"""

import json
import subprocess
import sys
from typing import Annotated

import torch
import typer

from benchmarks import harness, page
from multifsl.errors import MultifslError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    wanted: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Which; all where none is named.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
    quick: Annotated[
        bool, typer.Option(help="The smallest work that runs every line; its times mean nothing.")
    ] = False,
    save: Annotated[
        bool, typer.Option(help="Write docs/performance/NAME.json, and the page from all that stand there.")
    ] = False,
    device: Annotated[str, typer.Option(help="Where both sides run, such as cuda.")] = "cpu",
    rounds: Annotated[int, typer.Option(min=5, help="Rounds of each variant.")] = 7,
    peak: Annotated[tuple[str, str] | None, typer.Option(hidden=True)] = None,
) -> None:
    """Time multifsl beside its peers: the same algorithm, the same result, in turns. `make bench` installs the peers."""
    setting = harness.Setting(quick=quick, device=device, rounds=rounds)
    chosen = wanted or harness.names()
    unknown = sorted(set(chosen) - set(harness.names()))
    if unknown:
        raise typer.BadParameter(f"no benchmark {unknown[0]!r}; there are {', '.join(harness.names())}")
    if save and quick:
        raise typer.BadParameter("--save writes figures, and those of --quick mean nothing")
    if peak is not None:
        print(json.dumps(harness.peak_here(chosen[0], *peak, setting)))
        return
    if len(chosen) > 1:  # each in a process of its own, so that none warms or fills another's memory
        options = [
            f"--device={device}",
            f"--rounds={rounds}",
            *["--quick"] * quick,
            *["--save"] * save,
            *["--json"] * as_json,
        ]
        failed = [
            name
            for name in chosen
            if subprocess.run([sys.executable, "-m", "benchmarks", name, *options], check=False).returncode
        ]
        if failed:
            raise typer.Exit(_say(f"failed: {', '.join(failed)}"))
        return
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise typer.Exit(_say("there is no GPU that torch can use here; leave --device out"))
    tell = (lambda line: None) if as_json else (lambda line: print(line, flush=True))
    if not as_json:
        print(f"# {harness.load(chosen[0]).TITLE}{' (quick: its times mean nothing)' if quick else ''}", flush=True)
    try:
        result = harness.run(chosen[0], setting, tell)
        if save:
            page.save(result)
    except MultifslError as error:  # such as data that are not there
        raise typer.Exit(_say(str(error))) from error
    if as_json:
        print(json.dumps(result))


def _say(line: str) -> int:
    print(line, file=sys.stderr)
    return 1


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
