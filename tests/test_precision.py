"""--dtype auto: bfloat16 where it is at least twice as fast, told by times that are given."""
import pytest
import torch

from minibd import precision
from minibd.precision import dtype_of, faster

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("float32, bfloat16, chosen", [
    (2.0, 1.0, torch.bfloat16), (1.99, 1.0, torch.float32), (1.0, 5.0, torch.float32), (9.0, 1.0, torch.bfloat16)])
def test_auto_is_bfloat16_from_twice_as_fast_on(monkeypatch, float32, bfloat16, chosen):
    monkeypatch.setattr(precision, "seconds", {torch.float32: float32, torch.bfloat16: bfloat16}.__getitem__)
    monkeypatch.setattr(precision, "faster", faster.__wrapped__)
    assert dtype_of("auto", CPU) == chosen


def test_a_process_is_timed_once(monkeypatch):
    asked = []
    monkeypatch.setattr(precision, "seconds", lambda dtype: asked.append(dtype) or 1.0)
    monkeypatch.setattr(precision, "faster", faster)
    faster.cache_clear()
    assert {dtype_of("auto", CPU) for _ in range(3)} == {torch.float32} and len(asked) == 2 * precision.TURNS
    faster.cache_clear()


@pytest.mark.parametrize("has, chosen", [(True, torch.bfloat16), (False, torch.float32)])
def test_on_cuda_auto_asks_the_device(monkeypatch, has, chosen):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: has)
    monkeypatch.setattr(precision, "seconds", None)  # nothing is timed
    assert dtype_of("auto", CUDA) == chosen


def test_a_type_that_is_named_is_not_timed(monkeypatch):
    monkeypatch.setattr(precision, "seconds", None)
    assert dtype_of("float32", CPU) == torch.float32 and dtype_of("bfloat16", CUDA) == torch.bfloat16


@pytest.mark.parametrize("float32, bfloat16, chosen", [
    ([2, 9, 2, 2], [9, 3, 3, 1], torch.bfloat16),  # others took the first turns
    ([2, 2, 2, 9], [1.2, 1.2, 9, 9], torch.float32),
    ([1, 9], [2, 2], torch.float32),  # no further turn
])
def test_the_least_of_the_turns_counts(monkeypatch, float32, bfloat16, chosen):
    times = {torch.float32: iter(float32), torch.bfloat16: iter(bfloat16)}
    monkeypatch.setattr(precision, "seconds", lambda dtype: next(times[dtype]))
    monkeypatch.setattr(precision, "faster", faster.__wrapped__)
    assert dtype_of("auto", CPU) == chosen
    assert list(times[torch.float32]) == list(times[torch.bfloat16]) == []


def test_one_thread_is_timed_and_all_are_there_afterwards(monkeypatch):
    seen, before, mm = [], torch.get_num_threads(), torch.mm
    torch.set_num_threads(2)
    try:
        monkeypatch.setattr(torch, "mm", lambda a, b: seen.append(torch.get_num_threads()) or mm(a, b))
        precision.seconds(torch.float32)
        assert seen == [1] * precision.ROUNDS and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_least_of_the_rounds_counts(monkeypatch):
    clock = iter([0.0, 5.0, 10.0, 12.0, 20.0, 24.0])
    monkeypatch.setattr(precision.time, "perf_counter", lambda: next(clock))
    assert precision.seconds(torch.float32) == 2.0 and precision.ROUNDS == 3
