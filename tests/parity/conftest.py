"""The peer process that the parity tests ask; they skip where its environment is missing."""

import pytest

from peers import client


@pytest.fixture(scope="session")
def peer():
    if client.interpreter() is None:
        pytest.skip(client.MISSING)
    with client.start(env={"OMP_NUM_THREADS": "1"}) as child:  # models this small gain nothing from more
        child.call("versions")
        yield child
