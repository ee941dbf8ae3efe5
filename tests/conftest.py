"""What holds for every test."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's own cache of embeddings, nor does a process that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MULTIFSL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
