"""The predictors of a `PatchDynamicConv2d`, one for each output, held together, and their names in state dicts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

EPS = 1e-5
MOMENTUM = 0.1

_PUBLISHED = {
    "0.weight": "first_weight",
    "0.bias": "first_bias",
    "0.powers": "first_powers",
    "0.muls": "first_muls",
    "1.weight": "norm1_weight",
    "1.bias": "norm1_bias",
    "1.running_mean": "norm1_running_mean",
    "1.running_var": "norm1_running_var",
    "1.num_batches_tracked": "norm1_num_batches_tracked",
    "2.weight": "second_weight",
    "2.bias": "second_bias",
    "2.powers": "second_powers",
    "2.muls": "second_muls",
    "3.weight": "norm2_weight",
    "3.bias": "norm2_bias",
    "3.running_mean": "norm2_running_mean",
    "3.running_var": "norm2_running_var",
    "3.num_batches_tracked": "norm2_num_batches_tracked",
    "4.weight": "last_weight",
    "4.bias": "last_bias",
}
"""What is called so in a state dict, after the number of the output, and here."""


class PatchPredictors(nn.Module):
    """``HybridDense(D, hidden), BatchNorm1d, HybridDense(hidden, hidden), BatchNorm1d, Linear(hidden, D)``, O times.

    A convolution of many outputs would have thousands of small modules; here each kind of parameter is one tensor with
    an axis of O. In state dicts they have the names that so many modules would have, ``{o}.{0..4}.*``, and are views of
    these tensors. ``safetensors.torch.save_file`` takes them; ``save_model`` does not, since each has a part of a
    storage.

    Args:
        outputs: O.
        features: D, numbers of a patch.
        hidden: units of the two hidden layers.

    Parameters:
        first_weight (O, hidden, D), second_weight (O, hidden, hidden): of the hybrid dense layers, whose ``_bias,
            _powers, _muls`` are (O, hidden).
        norm1_weight, norm1_bias, norm2_weight, norm2_bias (O, hidden): of the batch norms, whose running statistics are
            buffers of that shape. The number of batches that they have seen is kept for each output.
        last_weight (O, D, hidden), last_bias (O, D): of the last linear layer.

    Raises:
        ValueError: if ``hidden`` is below 1.
    """

    first_weight: Tensor
    first_bias: Tensor
    first_powers: Tensor
    first_muls: Tensor
    norm1_weight: Tensor
    norm1_bias: Tensor
    norm1_running_mean: Tensor
    norm1_running_var: Tensor
    norm1_num_batches_tracked: Tensor
    second_weight: Tensor
    second_bias: Tensor
    second_powers: Tensor
    second_muls: Tensor
    norm2_weight: Tensor
    norm2_bias: Tensor
    norm2_running_mean: Tensor
    norm2_running_var: Tensor
    norm2_num_batches_tracked: Tensor
    last_weight: Tensor
    last_bias: Tensor

    _version = 2  # as that of batch norms, which have counted their batches since

    def __init__(
        self,
        outputs: int,
        features: int,
        hidden: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if hidden < 1:
            raise ValueError(f"hidden must be at least 1, got {hidden}")
        self.outputs, self.features, self.hidden = outputs, features, hidden
        shapes = {
            "first_weight": (outputs, hidden, features),
            "second_weight": (outputs, hidden, hidden),
            "last_weight": (outputs, features, hidden),
            "last_bias": (outputs, features),
        }
        for name in _PUBLISHED.values():
            if name.endswith("num_batches_tracked"):
                self.register_buffer(name, torch.zeros(outputs, dtype=torch.long, device=device))
                continue
            value = torch.empty(shapes.get(name, (outputs, hidden)), device=device, dtype=dtype)
            if "running" in name:
                self.register_buffer(name, value)
            else:
                self.register_parameter(name, nn.Parameter(value))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw weights and biases as ``nn.Linear`` does; powers, factors and norms start at 1 and 0.

        They are drawn on the CPU, by a generator of it, so that every device gets the same numbers.
        """
        for name, value in (*self.named_parameters(), *self.named_buffers()):
            zero = name.endswith(("norm1_bias", "norm2_bias", "running_mean", "num_batches_tracked"))
            nn.init.zeros_(value) if zero else nn.init.ones_(value)
        if self.first_weight.is_meta:  # nothing to draw, and slow all the same
            return
        for layer, fan_in in (("first", self.features), ("second", self.hidden), ("last", self.hidden)):
            for kind in ("weight", "bias"):
                value = getattr(self, f"{layer}_{kind}")
                dtype = torch.promote_types(value.dtype, torch.float32)
                drawn = torch.empty(value.shape, dtype=dtype, device="cpu")
                with torch.no_grad():
                    value.copy_(drawn.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator))

    def __getattr__(self, name: str) -> Any:
        # What reads the names of state dicts as paths through modules, as torch.distributed.checkpoint does, finds one.
        if name.isdecimal() and int(name) < self.outputs:
            return _Named(self, name)
        return super().__getattr__(name)

    def extra_repr(self) -> str:
        return f"{self.outputs}, features={self.features}, hidden={self.hidden}"

    def _stored(self) -> Iterator[tuple[str, str, Tensor]]:
        """For each kind of tensor its name in state dicts, its own name, and itself."""
        for published, name in _PUBLISHED.items():
            yield published, name, getattr(self, name)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        stored = [(published, _whole(value if keep_vars else value.detach())) for published, _, value in self._stored()]
        for o in range(self.outputs):
            for published, value in stored:
                destination[f"{prefix}{o}.{published}"] = value[o]

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for hook in self._load_state_dict_pre_hooks.values():
            hook(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        known = set()
        assign = bool(local_metadata.get("assign_to_params_buffers", False))
        for published, name, value in self._stored():
            keys = [f"{prefix}{o}.{published}" for o in range(self.outputs)]
            known.update(keys)
            if state_dict.get(prefix + name) is value:  # torch.distributed.checkpoint adds what named_parameters has
                known.add(prefix + name)
            given = {o: state_dict[key] for o, key in enumerate(keys) if key in state_dict}
            counted = not name.endswith("num_batches_tracked") or (local_metadata.get("version") or 0) >= 2
            if strict and counted:
                missing_keys += [key for o, key in enumerate(keys) if o not in given]
            wrong = _misfits(given, keys, value.shape[1:])
            error_msgs += wrong
            if given and not wrong:
                self._take(name, value, given, assign)
        if strict:
            unexpected_keys += [key for key in state_dict if key.startswith(prefix) and key not in known]

    def _take(self, name: str, value: Tensor, given: dict[int, Tensor], assign: bool) -> None:
        """Copy what is given for outputs, or with all of them make a tensor that takes the place of ``value``."""
        with torch.no_grad():
            if assign and len(given) == self.outputs:
                stacked = _spread_as(torch.stack([_whole(given[o]) for o in range(self.outputs)]), value)
                setattr(self, name, nn.Parameter(stacked, value.requires_grad) if name in self._parameters else stacked)
                return
            if value.is_meta and not all(one.is_meta for one in given.values()):
                warnings.warn(
                    f"for {name}: numbers cannot be copied to the meta device. Did you mean to pass assign=True to "
                    "load_state_dict, or to_empty() before?",
                    stacklevel=2,
                )
            own = _whole(value)
            for o, one in given.items():
                own[o].copy_(_whole(one))
            if own is not value:
                value.copy_(_spread_as(own, value))


def _whole(value: Tensor) -> Tensor:
    """All of a tensor that may be sharded over processes, as by FSDP: a row of it is no view of any shard."""
    whole: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return whole


def _spread_as(whole: Tensor, like: Tensor) -> Tensor:
    """``whole``, which all processes have, sharded as ``like`` is."""
    if not hasattr(like, "full_tensor"):
        return whole
    from torch.distributed.tensor import DTensor, distribute_tensor  # slow, and not in every build of torch

    assert isinstance(like, DTensor)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


class _Named:
    """A way from a `PatchPredictors` to a tensor of one output by the parts of its name in state dicts."""

    def __init__(self, predictors: PatchPredictors, path: str) -> None:
        self._predictors, self._path = predictors, path

    def __getattr__(self, name: str) -> Any:
        output, _, published = f"{self._path}.{name}".partition(".")
        if published in _PUBLISHED:
            value: Tensor = getattr(self._predictors, _PUBLISHED[published])
            # All of it where it is sharded: a row would be gathered from all processes, for one who only follows names.
            return value if hasattr(value, "full_tensor") else value[int(output)]
        if any(known.startswith(f"{published}.") for known in _PUBLISHED):
            return _Named(self._predictors, f"{output}.{published}")
        raise AttributeError(f"there is no {output}.{published} in {type(self._predictors).__name__}")


def predictor_numbers(outputs: int, features: int, hidden: int) -> int:
    """Parameters that `PatchPredictors` have."""
    return outputs * (2 * hidden * features + features + hidden * hidden + 10 * hidden)


def _misfits(given: dict[int, Any], keys: list[str], shape: torch.Size) -> list[str]:
    """What is wrong with the tensors that are given for outputs, in the words of ``load_state_dict``."""
    found = []
    for o, value in given.items():
        if not isinstance(value, Tensor):
            found.append(f"{keys[o]} must be a tensor, got {type(value).__name__}.")
        elif value.shape != shape:
            found.append(
                f"size mismatch for {keys[o]}: copying a param with shape {value.shape} from checkpoint, "
                f"the shape in current model is {shape}."
            )
    return found
