"""Calls done beside other work: in their order, all of them, with the first error told."""

import threading
import time

import pytest

from lia_plugin.background import Background, ahead


def test_one_thread_keeps_the_order_and_all_is_done_at_the_end() -> None:
    done: list[int] = []
    with Background(threads=1, most_waiting=3) as background:
        for i in range(50):
            background.do(done.append, i)
            assert len(background.waiting) <= 3
    assert done == list(range(50))


def test_it_goes_on_while_the_block_does() -> None:
    started, go_on = threading.Event(), threading.Event()

    def call() -> None:
        started.set()
        assert go_on.wait(5)

    with Background(threads=1, most_waiting=2) as background:
        background.do(call)
        assert started.wait(5), 'before the block is over'
        go_on.set()


def test_an_error_of_a_call_is_raised() -> None:
    with pytest.raises(ZeroDivisionError), Background(threads=1, most_waiting=1) as background:
        background.do(divmod, 1, 0)
        background.do(divmod, 1, 1)
        raise AssertionError('the second call was told of the first one')


def test_after_an_error_of_the_block_the_rest_is_dropped() -> None:
    done: list[int] = []
    with pytest.raises(KeyError), Background(threads=1, most_waiting=9) as background:
        background.do(time.sleep, 0.2)
        for i in range(5):
            background.do(done.append, i)
        raise KeyError
    assert not done


def test_ahead_keeps_the_order_and_the_errors_and_its_limit() -> None:
    begun: list[int] = []

    def call(i: int) -> int:
        begun.append(i)
        time.sleep(0.002 * (i % 3))
        if i == 4:
            raise KeyError(i)
        return i * i

    results = []
    for i, future in ahead(call, range(12), threads=3, most_waiting=4):
        assert max(begun, default=0) <= i + 4, 'no more than so many early'
        results.append((i, None if i == 4 and isinstance(future.exception(), KeyError) else future.result()))
    assert results == [(i, None if i == 4 else i * i) for i in range(12)]


def test_who_stops_asking_drops_what_waits() -> None:
    begun: list[int] = []

    def call(i: int) -> None:
        begun.append(i)
        time.sleep(0.05)

    for i, _future in ahead(call, range(100), threads=1, most_waiting=10):
        assert i == 0
        break
    count = len(begun)
    time.sleep(0.1)
    assert len(begun) == count < 10
