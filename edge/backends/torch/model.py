"""The torch backend: transformers loads the base, peft its LoRA layers, on the GPU where there is one.

Three things make it faster than a padded full-logits loop, and none of them changes the loss: no padding
(on a processor examples lie end to end in one row, and attention is computed example by example), logits
only at labels, and bfloat16 where it is faster. All factors lie in one flat vector, so that clipping, AdamW
and snapshots are a few operations whatever the number of modules.
"""

import gc
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: idle threads must not spin beside others
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")  # of 1,024; see `TorchModel.fills_up`
os.environ.setdefault("LRU_CACHE_CAPACITY", "256")

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.utils.logging import disable_progress_bar

from converters.adapter import LoraAdapter
from converters.bases.fit import check_fit
from converters.errors import BaseModelError
from edge.backends.batch_layout import (
    Labels,
    average_examples,
    find_labels,
    flatten,
    mean_weights,
    sum_score,
    unpack,
)
from edge.backends.contract import Batch, ModelCard, OnToken, Precision, Score, Snapshot
from edge.backends.parameters import Form, form_of, from_vector, mask_vector, to_vector
from edge.backends.precision import load_faster
from edge.backends.shapes import fill_labels, fill_row, round_up
from edge.backends.torch.device import DTYPES, choose_device, free_bytes, multiplies_bfloat16
from edge.backends.torch.generate import complete, sampling_settings
from edge.backends.torch.layers import ATTENTION, HEAD_ROWS, HeadLoss, apply_lora, register_attention
from edge.backends.transformers import HubTokenizer, load_hub_tokenizer
from edge.errors import BackendError, OutOfMemory

NAME = "default"  # of peft's adapter
Layout = Callable[[Batch], Batch]


def load(base: Path, *, precision: Precision = "auto", seed: int = 0) -> "TorchModel":
    """Loads a Hugging Face folder; nothing in it depends on `seed`.

    Raises:
        BackendError: For float16, in which small gradients vanish.
        BaseModelError: `base` is not a causal language model that transformers can load, and why.
        OutOfMemory: It does not fit.
    """
    if precision == "float16":
        raise BackendError("backend torch trains in float32 or bfloat16; choose one of them, or auto")
    device = choose_device()
    if precision != "auto":
        return _load(base, device, precision)
    if multiplies_bfloat16(device):
        model, why = load_faster(partial(_load, base, device), partial(free_bytes, device))
        gc.collect()  # the slower one refers to itself
    else:
        model, why = _load(base, device, "float32"), "not tried: this machine does not multiply in bfloat16"
    model.card = model.card._replace(why=why)
    return model


def _load(base: Path, device: torch.device, precision: Precision) -> "TorchModel":
    disable_progress_bar()
    register_attention()
    try:
        with _mapped_errors():
            model = AutoModelForCausalLM.from_pretrained(
                base, local_files_only=True, dtype=DTYPES[precision], use_safetensors=True
            ).to(device)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise BaseModelError(f"{base}: transformers cannot load it: {reason}") from error
    return TorchModel(model, load_hub_tokenizer(base), str(base))


class TorchModel:
    """A loaded base model; see `TrainableModel`."""

    def __init__(self, model: Any, tokenizer: HubTokenizer, name: str) -> None:
        self.model = model.requires_grad_(False).eval()
        if model.device.type == "cpu" and model.config._attn_implementation == "sdpa":
            model.set_attn_implementation(ATTENTION)
        model.generation_config = GenerationConfig()  # `generate` says all that holds
        self.tokenizer = tokenizer
        self.name = name
        self.head = model.get_output_embeddings()
        self.linears = {
            name: module
            for name, module in model.named_modules()
            if type(module) is nn.Linear and module is not self.head
        }
        self.card = ModelCard(
            backend="torch",
            modules={
                name: (module.in_features, module.out_features) for name, module in self.linears.items()
            },
            max_tokens=int(model.config.get_text_config().max_position_embeddings),
            vocab_size=int(self.head.weight.shape[0]),
            num_parameters=sum(weight.numel() for weight in model.parameters()),
            precision="bfloat16" if model.dtype == torch.bfloat16 else "float32",
        )
        # In bfloat16 oneDNN compiles a kernel for each shape of a product, of half a megabyte or more, and
        # two caches, its own and torch's, keep 1,024 each: on rows of all lengths a model of 2.6 million
        # parameters grew from 0.38 to 1.43 GB in 80 steps. Without its own cache it took 0.95 GB, without
        # torch's 1.06, without either 0.46, at a third of the speed; malloc's arenas changed nothing. With
        # lengths filled up to few it takes 0.6 GB and is no slower; smaller caches bound what is left.
        self.fills_up = model.device.type == "cpu" and model.dtype != torch.float32
        self.form: Form = {}
        self._inject(LoraAdapter({}))
        self.has_plain_head, self.layout = self._probe()

    def set_adapter(self, adapter: LoraAdapter) -> None:
        """See `Model.set_adapter`.

        One that looks like the present one is only copied in: a simulation sets thousands, and peft needs
        milliseconds for every module.
        """
        check_fit(adapter, self.card.modules, f"adapter does not fit {self.name}")
        if form_of(adapter) == self.form:
            self.flat.data.copy_(self._tensor(to_vector(adapter)))
            self.begin(weight_decay=0.0, clip_norm=0.0)
        else:
            self._inject(adapter)

    def adapter(self) -> LoraAdapter:
        """See `Model.adapter`."""
        return from_vector(_numpy(self.flat), self.form)

    def score(self, batch: Batch) -> Score:
        """See `Model.score`."""
        batch = self._lay_out(batch)
        labels = self._labels(batch)
        losses, predicted = [torch.zeros(0)], [torch.zeros(0, dtype=torch.long)]
        with torch.inference_mode(), _mapped_errors():
            targets = self._tensor(labels.targets)
            for logits, target in zip(self._logits(batch, labels), targets.split(HEAD_ROWS), strict=True):
                losses.append(F.cross_entropy(logits.float(), target, reduction="none").cpu())
                predicted.append(logits.argmax(-1).cpu())
        real = find_labels(batch)
        count = len(real.places)
        return sum_score(batch, real, torch.cat(losses)[:count].numpy(), torch.cat(predicted)[:count].numpy())

    def features(self, batch: Batch) -> NDArray[np.float32]:
        """See `Model.features`."""
        batch = self._lay_out(batch)
        with torch.inference_mode(), _mapped_errors():
            return average_examples(batch, _numpy(self._hidden(batch).float()))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        ends: Collection[int] | None = None,
        on_token: OnToken = lambda index, token: None,
    ) -> list[list[int]]:
        """See `Model.generate`."""
        rooms = [min(max_tokens, self.card.max_tokens - len(prompt)) for prompt in prompts]
        stops = [self.tokenizer.eos_id] if ends is None else ends
        sampling = sampling_settings(temperature, top_p)
        with torch.inference_mode(), torch.random.fork_rng(), _mapped_errors():
            torch.manual_seed(seed)
            return complete(self.model, prompts, rooms, sampling, stops, on_token)

    def begin(
        self, *, weight_decay: float, clip_norm: float, pull: float = 0.0, mask: LoraAdapter | None = None
    ) -> None:
        """See `TrainableModel.begin`."""
        is_trained = mask_vector(mask, self.form)
        self.is_trained = None if is_trained is None else self._tensor(is_trained)
        self.clip_norm, self.pull = clip_norm, pull
        self.dispatched = self.flat.detach().clone() if pull else None
        self.optimizer = torch.optim.AdamW([self.flat], weight_decay=weight_decay, fused=True)

    def step(self, batches: Sequence[Batch], lr: float) -> float:
        """See `TrainableModel.step`."""
        with _mapped_errors():
            loss, gradient = self._differentiate(batches, self.pull)
            self.optimizer.param_groups[0]["lr"] = lr
            if self.is_trained is None:
                self._clip(gradient)
                self.optimizer.step()
            else:
                gradient.mul_(self.is_trained)
                self._clip(gradient)
                before = self.flat.detach().clone()
                self.optimizer.step()
                self.flat.data.copy_(torch.where(self.is_trained, self.flat.data, before))
        return loss

    def gradient(self, batches: Sequence[Batch]) -> tuple[float, LoraAdapter]:
        """See `TrainableModel.gradient`."""
        with _mapped_errors():
            loss, gradient = self._differentiate(batches, 0.0)
        return loss, from_vector(_numpy(gradient), self.form)

    def pull_back(self, batch: Batch, cotangent: NDArray[np.float32]) -> LoraAdapter:
        """See `TrainableModel.pull_back`."""
        assert self.flat.grad is not None
        batch = self._lay_out(batch)
        with _mapped_errors():
            self.flat.grad.zero_()
            features = self._average(batch, self._hidden(batch))
            if features.requires_grad:
                features.backward(self._tensor(cotangent.astype(np.float32)))
        return from_vector(_numpy(self.flat.grad), self.form)

    def snapshot(self) -> Snapshot:
        """See `TrainableModel.snapshot`."""
        state = self.optimizer.state.get(self.flat, {})
        zeros = torch.zeros_like(self.flat)
        return {
            "factors": _numpy(self.flat).copy(),
            "first": _numpy(state.get("exp_avg", zeros)).copy(),
            "second": _numpy(state.get("exp_avg_sq", zeros)).copy(),
            "num_steps": np.array(float(state.get("step", 0.0)), np.float32),
        }

    def restore(self, snapshot: Snapshot) -> None:
        """See `TrainableModel.restore`."""
        with torch.no_grad():
            self.flat.copy_(self._tensor(snapshot["factors"]))
        self.optimizer.state[self.flat] = {
            "step": self._tensor(snapshot["num_steps"]).clone(),
            "exp_avg": self._tensor(snapshot["first"]).clone(),
            "exp_avg_sq": self._tensor(snapshot["second"]).clone(),
        }

    def _inject(self, adapter: LoraAdapter) -> None:
        """Puts peft's layers in place, their factors as views of one flat vector."""
        for name in self.form:
            self._replace(name, self.linears[name])
        vars(self.model).pop("peft_config", None)  # peft warns of adapters that are gone
        self.form = form_of(adapter)
        if self.form:
            inject_adapter_in_model(_lora_config(adapter), self.model, NAME)
        for name, shape in self.form.items():
            self.model.get_submodule(name).forward = partial(
                apply_lora, self.linears[name], *self._weights(name), shape.scale
            )
        self.flat = nn.Parameter(self._tensor(to_vector(adapter)))
        self.flat.grad = torch.zeros_like(self.flat)
        parameters = [weight for name in self.form for weight in self._weights(name)]
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, value, gradient in zip(
            parameters, self.flat.data.split(sizes), self.flat.grad.split(sizes), strict=True
        ):
            parameter.data = value.view_as(parameter)
            parameter.grad = gradient.view_as(parameter)
        self.begin(weight_decay=0.0, clip_norm=0.0)

    def _weights(self, name: str) -> tuple[Tensor, Tensor]:
        layer = self.model.get_submodule(name)
        return layer.lora_A[NAME].weight, layer.lora_B[NAME].weight

    def _replace(self, name: str, module: nn.Module) -> None:
        parent, _, child = name.rpartition(".")
        setattr(self.model.get_submodule(parent), child, module)

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.model.device)

    def _lay_out(self, batch: Batch) -> Batch:
        """The batch as the model takes it, with few widths where that matters."""
        batch = self.layout(batch)
        if not (self.fills_up and self.layout is flatten):
            return batch
        return fill_row(batch, round_up(batch.tokens.shape[1], sizes=8))

    def _labels(self, batch: Batch) -> Labels:
        labels = find_labels(batch)
        count = len(labels.places)
        return fill_labels(labels, round_up(count, sizes=8)) if self.fills_up else labels

    def _hidden(self, batch: Batch) -> Tensor:
        output = self.model.base_model(**self._inputs(batch))
        return cast(Tensor, output.last_hidden_state)

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        inputs: dict[str, Any] = {
            "input_ids": self._tensor(batch.tokens.astype(np.int64)),
            "position_ids": self._tensor(batch.positions.astype(np.int64)),
            "use_cache": False,
        }
        if self.layout is flatten:  # an empty mask, for transformers to make none itself
            lengths = np.bincount(batch.segments[0])[1:].tolist()
            inputs |= {"attention_mask": torch.zeros(1, 1, 1, 1), "example_lengths": lengths}
        return inputs  # else transformers reads from positions that start anew where an example begins

    def _logits(self, batch: Batch, labels: Labels) -> Iterator[Tensor]:
        # At the labels, HEAD_ROWS at a time.
        if self.has_plain_head:
            hidden = self._hidden(batch).flatten(0, 1)[self._tensor(labels.places)]
            yield from (self.head(part) for part in hidden.split(HEAD_ROWS))
        else:
            yield from self._all_logits(batch, labels)[1].split(HEAD_ROWS)

    def _all_logits(self, batch: Batch, labels: Labels) -> tuple[Tensor, Tensor]:
        # Where logits are scaled or capped, the model's own forward does it, its head fed with labels only.
        index = self._tensor(labels.places)
        hidden: list[Tensor] = []
        hooks = [
            self.model.base_model.register_forward_hook(
                lambda _, __, output: hidden.append(output.last_hidden_state)
            ),
            self.head.register_forward_pre_hook(lambda _, inputs: (inputs[0].flatten(0, 1)[index],)),
        ]
        try:
            logits = cast(Tensor, self.model(**self._inputs(batch)).logits)
        finally:
            for hook in hooks:
                hook.remove()
        return hidden[0], logits

    def _average(self, batch: Batch, hidden: Tensor) -> Tensor:
        """Features as something that can be differentiated: (examples, hidden size), float32."""
        return self._tensor(mean_weights(batch)) @ hidden.flatten(0, 1).float()

    def _dispatched_features(self, batch: Batch) -> Tensor:
        """With the adapter that was there at `begin`."""
        assert self.dispatched is not None
        trained = self.flat.detach().clone()
        self.flat.data.copy_(self.dispatched)
        try:
            with torch.no_grad():
                return self._average(batch, self._hidden(batch))
        finally:
            self.flat.data.copy_(trained)

    def _differentiate(self, batches: Sequence[Batch], pull: float) -> tuple[float, Tensor]:
        """The loss, and the gradient of the loss and the pull together: (parameters,)."""
        assert self.flat.grad is not None
        self.flat.grad.zero_()
        total = sum(float(batch.weights.sum()) for batch in batches)
        share = pull / sum(batch.num_examples for batch in batches)
        loss = sum(self._backward(self._lay_out(batch), total, share) for batch in batches)
        return float(loss), self.flat.grad

    def _backward(self, batch: Batch, total: float, share: float) -> float:
        labels = self._labels(batch)
        targets, weights = self._tensor(labels.targets), self._tensor(labels.weights) / total
        fixed = self._dispatched_features(batch) if share else None
        if self.has_plain_head:
            hidden = self._hidden(batch)
            at_labels = hidden.flatten(0, 1)[self._tensor(labels.places)]
            loss = cast(Tensor, HeadLoss.apply(at_labels, self.head, targets, weights))
        else:
            hidden, logits = self._all_logits(batch, labels)
            loss = F.cross_entropy(logits.float(), targets, reduction="none") @ weights
        objective = loss
        if fixed is not None:
            objective = loss + share * (self._average(batch, hidden) - fixed).square().sum()
        if objective.requires_grad:
            objective.backward()
        return loss.item()

    def _clip(self, gradient: Tensor) -> None:
        if self.clip_norm > 0:
            norm = gradient.norm().item()
            if norm > self.clip_norm:
                gradient.mul_(self.clip_norm / norm)

    def _probe(self) -> tuple[bool, Layout]:
        # Seen on a few tokens rather than kept as a list of architectures.
        length = min(8, self.card.max_tokens)
        tokens = (np.arange(2 * length, dtype=np.int32) * 7 % self.card.vocab_size).reshape(2, length)
        ones, positions = np.ones_like(tokens), np.tile(np.arange(length, dtype=np.int32), (2, 1))
        apart = Batch(tokens, tokens, ones.astype(np.float32), ones, positions)
        packed = flatten(apart)
        with torch.inference_mode():
            self.layout = unpack
            hidden = self._hidden(apart)
            logits = self.model(**self._inputs(apart)).logits
            is_plain = torch.allclose(self.head(hidden).float(), logits.float(), rtol=1e-3, atol=1e-4)
            layouts = (flatten, _as_it_is) if self.model.device.type == "cpu" else (_as_it_is,)
            for self.layout in layouts:
                if self._agrees(packed, hidden):
                    return is_plain, self.layout
        return is_plain, unpack

    def _agrees(self, packed: Batch, hidden: Tensor) -> bool:
        try:
            found = self._hidden(packed).view_as(hidden)
        except (TypeError, ValueError, NotImplementedError):  # a model that does not hand segments down
            return False
        difference = (found - hidden).float().norm() / hidden.float().norm()
        return bool(difference < (1e-4 if hidden.dtype == torch.float32 else 3e-2))


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _lora_config(adapter: LoraAdapter) -> LoraConfig:
    names = {f"^{re.escape(name)}$": factors for name, factors in adapter}
    return LoraConfig(
        target_modules=[name for name, _ in adapter],
        rank_pattern={name: factors.rank for name, factors in names.items()},
        alpha_pattern={name: factors.scale * factors.rank for name, factors in names.items()},
        lora_dropout=0.0,
        init_lora_weights=False,
    )


@contextmanager
def _mapped_errors() -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(f"backend torch: {error}") from error
    except RuntimeError as error:
        if "allocate memory" in str(error) or "out of memory" in str(error):
            raise OutOfMemory(f"backend torch: {error}") from error
        raise


def _numpy(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().cpu().numpy()
    return array
