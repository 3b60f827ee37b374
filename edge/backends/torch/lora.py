"""peft's LoRA layers in a model of transformers, their factors as views of one vector.

So clipping, AdamW and snapshots are a few operations, whatever the number of modules.
"""

import re
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from converters.adapter import LoraAdapter
from edge.backends.parameters import Form, form_of, to_vector
from edge.backends.torch.layers import apply_lora

NAME = "default"  # of peft's adapter


class LoraLayers:
    """The layers of the present adapter.

    Attributes:
        linears: By name, the model's layers that can carry LoRA, and are replaced.
        form: What the adapter looks like.
        vector: All factors, (parameters,), in the order of `to_vector`; its gradient is allocated.
    """

    def __init__(self, model: Any, linears: dict[str, nn.Linear]) -> None:
        self.model, self.linears = model, linears
        self.form: Form = {}
        self.vector = nn.Parameter(torch.zeros(0, device=model.device))

    @property
    def gradient(self) -> Tensor:
        """Of all factors, as backward passes sum it up: (parameters,)."""
        assert self.vector.grad is not None
        return self.vector.grad

    def set(self, adapter: LoraAdapter) -> None:
        """Replaces the adapter.

        One that looks like the present one is only copied in: a simulation sets thousands, and peft needs
        milliseconds for every module.
        """
        values = torch.from_numpy(to_vector(adapter)).to(self.model.device)
        if self.form and form_of(adapter) == self.form:
            self.vector.data.copy_(values)
        else:
            self._inject(adapter, values)

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """Returns a and b of one module, as peft holds them."""
        layer = self.model.get_submodule(name)
        return layer.lora_A[NAME].weight, layer.lora_B[NAME].weight

    def _inject(self, adapter: LoraAdapter, values: Tensor) -> None:
        for name in self.form:
            parent, _, child = name.rpartition(".")
            setattr(self.model.get_submodule(parent), child, self.linears[name])
        vars(self.model).pop("peft_config", None)  # peft warns of adapters that are gone
        self.form = form_of(adapter)
        if self.form:
            inject_adapter_in_model(_lora_config(adapter), self.model, NAME)
        for name, shape in self.form.items():
            layer = self.model.get_submodule(name)
            layer.forward = partial(apply_lora, self.linears[name], *self.factors(name), shape.scale)
        self.vector = nn.Parameter(values)
        self.vector.grad = torch.zeros_like(self.vector)
        parameters = [weight for name in self.form for weight in self.factors(name)]
        sizes = [parameter.numel() for parameter in parameters]
        parts = (self.vector.data.split(sizes), self.vector.grad.split(sizes))
        for parameter, value, gradient in zip(parameters, *parts, strict=True):
            parameter.data = value.view_as(parameter)
            parameter.grad = gradient.view_as(parameter)


def _lora_config(adapter: LoraAdapter) -> LoraConfig:
    names = {f"^{re.escape(name)}$": factors for name, factors in adapter}
    return LoraConfig(
        target_modules=[name for name, _ in adapter],
        rank_pattern={name: factors.rank for name, factors in names.items()},
        alpha_pattern={name: factors.scale * factors.rank for name, factors in names.items()},
        lora_dropout=0.0,
        init_lora_weights=False,
    )
