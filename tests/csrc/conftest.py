import os

import pytest

from .emulation import Driver


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    """The driver of a name, compiled when it is first asked for, once for all processes that run the tests."""
    made = {}
    libraries = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        libraries = libraries.parent

    def get(name):
        if name not in made:
            made[name] = Driver(name, tmp_path_factory.mktemp(name), libraries)
        return made[name]

    yield get
    for one in made.values():
        one.close()
