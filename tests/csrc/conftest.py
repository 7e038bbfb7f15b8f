import pytest

from .emulation import Driver


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    """The driver of a name, compiled when it is first asked for."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = Driver(name, tmp_path_factory.mktemp(name))
        return made[name]

    yield get
    for one in made.values():
        one.close()
