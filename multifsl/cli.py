"""The command line: a thin layer over the Python functions.

Results go to stdout; progress, notices, warnings and errors to stderr. Exit codes: 0 done, or accepted by `verify`; 2 the user's
error, one message; 1 ours, or `predict` could not read some of its items, each told on its line; 3 refused by `verify`; 130 and 143
stopped by Ctrl-C and SIGTERM. The commands are in `multifsl/commands`.
"""

import os
import sys
import warnings
from typing import Annotated

import typer

from multifsl import __version__
from multifsl.commands import data, evaluate, learn, listing, shared, train
from multifsl.errors import MultifslError
from multifsl.terminal import say

app = typer.Typer(
    name="multifsl",
    help="Learn new classes of images, voices and texts from a handful of examples.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Get the data sets of the tasks from their official sources.", no_args_is_help=True)
app.add_typer(data_app, name="data")
data_app.command("get")(data.get)
data_app.command("list")(data.list_)

app.command("list")(listing.list_)  # in the order that --help has them
for command in (
    *(train.train, evaluate.evaluate, train.reproduce),
    *(learn.fit, learn.enroll, learn.forget, learn.rename, learn.predict, learn.verify, learn.info, learn.demo),
    *(evaluate.compare, evaluate.report, listing.cache),
):
    app.command()(command)


def _show_version(value: bool) -> None:
    if value:
        print(f"multifsl {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """The `multifsl` command."""
    warnings.showwarning = lambda message, *_args, **_kwargs: say(f"warning: {message}")
    try:
        app()
    except MultifslError as error:
        if shared.debugging:
            raise
        say(f"error: {error}")
        sys.exit(2)
    except BrokenPipeError:  # the reader of our output is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if shared.debugging:
            raise
        say(f"internal error: {type(error).__name__}: {error}\nThis is a fault of multifsl; --debug shows where.")
        sys.exit(1)


if __name__ == "__main__":
    main()
