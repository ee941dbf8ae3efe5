"""The examples of the documentation that need weights which are not everywhere."""

import doctest
import sys
from typing import Any

import pytest

from multifsl.encoder import no_downloads
from multifsl.encoders._hub import Kind, find_model
from multifsl.errors import DataNotFound


def run_examples(thing: Any, model: str, kind: Kind) -> None:
    """Run all of a docstring's examples, also those marked SKIP, where that model is on this machine; skip where it is not."""
    with no_downloads():
        try:
            find_model(model, None, kind)
        except DataNotFound:
            pytest.skip(f"needs the weights of {model}")
        test = doctest.DocTestFinder().find(thing, globs=dict(vars(sys.modules[thing.__module__])))[0]
        for example in test.examples:
            example.options.pop(doctest.SKIP, None)
        assert doctest.DocTestRunner().run(test) == (0, len(test.examples))
