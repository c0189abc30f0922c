from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.studio import Studio, start_studio


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("server")


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """A server of the module's own, with a user and no project."""
    started = start_studio(tmp_path_factory.mktemp("studio") / "label_studio")
    yield started
    started.kill()
