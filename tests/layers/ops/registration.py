"""torch's own checks of how an op is registered."""

from typing import Any

from torch.library import opcheck

from convswap.layers.ops._load import kernels_mode

OF_WHAT_RUNS = ("test_schema", "test_faketensor")
"""The checks of what an op's code returns: no other memory, shapes and strides than it is said to."""


def check_registration(op: Any, arguments: tuple[Any, ...], all_of_it: bool = True) -> None:
    """All of torch's checks; or those of the code that runs, which is another where kernels are off.

    What is left out then traces the derivatives and fake forms of the op, which are the same with kernels and without,
    and take most of the time.

    Args:
        op: the op.
        arguments: to call it with.
        all_of_it: false where another case of the op has the same numbers of axes, tensors and gradients.
    """
    if all_of_it and kernels_mode() != "off":
        opcheck(op, arguments)
    else:
        opcheck(op, arguments, test_utils=OF_WHAT_RUNS)
