from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.people import Person
from tests.server.studio import Studio, start_studio


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("server")


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """One server for all tests of a worker, with a user; every test names its projects as no other does."""
    started = start_studio(tmp_path_factory.mktemp("studio") / "label_studio")
    yield started
    started.kill()


@pytest.fixture
def person(studio: Studio) -> Iterator[Person]:
    """The server's user at work."""
    somebody = Person(studio)
    yield somebody
    somebody.http.close()
