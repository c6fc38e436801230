from __future__ import annotations

from ignite.engine import Engine, Events

from nodule_plugin.handlers.attach import AttachHandlers


class Counts:
    def __init__(self) -> None:
        self.times = 0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._count)

    def _count(self) -> None:
        self.times += 1


def test_handlers_are_attached_and_disabled_ones_left_out() -> None:
    first, second = Counts(), Counts()
    engine = Engine(lambda engine, batch: batch)
    AttachHandlers([first, None, second]).attach(engine)
    engine.run([0, 1, 2])
    assert (first.times, second.times) == (3, 3)
