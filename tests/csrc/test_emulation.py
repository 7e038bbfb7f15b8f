"""The emulation itself: right kernels give right results, and each kind of fault is found."""

import pytest
import torch

from .emulation import Out, needs_compiler

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def probe(driver):
    return driver("probe_driver")


def test_shared_memory_and_barriers(probe):
    x, y = torch.randn(3, 64), torch.empty(3, 64)
    probe.call("run_reverse", x, Out(y), 3, 1)
    assert torch.equal(y, x.flip(1))


def test_shuffles(probe):
    x, y = torch.randn(2, 2, 32), torch.empty(2, 2)
    probe.call("run_total", x, Out(y), 2)
    torch.testing.assert_close(y, x.sum(-1) + torch.tensor([1.0, 33.0]))


def test_a_product_of_fragments(probe):
    a, b, y = torch.randn(16, 16), torch.randn(16, 16), torch.empty(16, 16)
    probe.call("run_product", a, b, Out(y), 0, 32)
    torch.testing.assert_close(y, (a @ b + 1).T)


@pytest.mark.parametrize(
    ("fault", "threads", "told"),
    [
        (1, 32, "loaded their fragments from different places"),
        (2, 32, "must be aligned to 32 bytes"),
        (4, 32, "a barrier is missing"),
        (0, 31, "takes a whole warp"),
    ],
)
def test_a_wrong_product_of_fragments(probe, fault, threads, told):
    with pytest.raises(AssertionError, match=told):
        probe.call("run_product", torch.randn(16, 16), torch.randn(16, 16), Out(torch.empty(16, 16)), fault, threads)


def test_fragments_start_as_nan(probe):
    y = torch.empty(16, 16)
    probe.call("run_product", torch.randn(16, 16), torch.randn(16, 16), Out(y), 3, 32)
    assert y.isnan().all()


@pytest.mark.parametrize("orders", [(0, 1), (0, 2)])
def test_a_missing_barrier(probe, orders):
    with pytest.raises(AssertionError, match="a barrier is missing"):
        probe.call("run_reverse", torch.randn(3, 64), Out(torch.empty(3, 64)), 3, 0, orders=orders)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("run_leave_early", r"thread \(5, 0, 0\) on: ended"),
        ("run_part_ways", r"threads do not meet.* at .*thread \(5, 0, 0\) on: at "),
    ],
)
def test_threads_that_do_not_meet(probe, name, told):
    with pytest.raises(AssertionError, match=told):
        probe.call(name)
    test_shared_memory_and_barriers(probe)


@pytest.mark.parametrize("arguments", [(65536, 32, 0), (1, 1025, 0), (1, 32, 233 * 1024)])
def test_a_launch_that_a_gpu_refuses(probe, arguments):
    with pytest.raises(AssertionError, match="a GPU refuses"):
        probe.call("run_too_large", *arguments)
    probe.call("run_too_large", 1, 1024, 48 * 1024)


@pytest.mark.parametrize("name", ["run_overrun", "run_overrun_shared"])
def test_out_of_bounds(probe, name):
    probe.call(name, Out(torch.empty(4)), 4)
    if not probe.sanitizer:
        pytest.skip("the compiler has no address sanitizer")
    with pytest.raises(AssertionError, match="heap-buffer-overflow"):
        probe.call(name, Out(torch.empty(4 if name == "run_overrun" else 8)), 5)
    test_shared_memory_and_barriers(probe)


def test_a_vector_that_is_not_aligned(probe):
    if not probe.sanitizer:
        pytest.skip("the compiler has no sanitizers")
    with pytest.raises(AssertionError, match="misaligned address"):
        probe.call("run_crooked", torch.randn(8), Out(torch.empty(1)))


def test_writing_to_an_input(probe):
    with pytest.raises(AssertionError, match="writes to an input"):
        probe.call("run_overrun", torch.ones(4), 4)
