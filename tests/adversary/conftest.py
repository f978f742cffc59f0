"""Networks to attack."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.adversary.scene import Scene
from tests.conftest import MakeDiscovery

MakeScene = Callable[..., Scene]


@pytest.fixture
def make_scene(make_discovery: MakeDiscovery, redis_url: str) -> Iterator[MakeScene]:
    """Public networks unless told otherwise; afterwards the books are clean, whatever was tried."""
    made: list[Scene] = []

    def make(**settings: object) -> Scene:
        chosen = {"network": "public", "distinct": "account,address", "starting_credits": 100, **settings}
        made.append(Scene(make_discovery(**chosen), redis_url))
        return made[-1]

    yield make
    for scene in made:
        scene.clean()
        scene.redis.close()


@pytest.fixture
def scene(make_scene: MakeScene) -> Scene:
    """A public network."""
    return make_scene()
