"""The torch backend: transformers loads the base, peft its LoRA layers, on the GPU where there is one.

Three things make it faster than a padded full-logits loop, and none of them changes the loss: no padding
(on a processor examples lie end to end in one row, and attention is computed example by example), logits
only at labels, and bfloat16 where it is faster. All factors lie in one vector, so that clipping, AdamW and
snapshots are a few operations whatever the number of modules.
"""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.utils.logging import disable_progress_bar

from converters.adapter import LoraAdapter
from converters.bases.targets import check_fit
from converters.errors import BaseModelError
from edge.backends.contract import Batch, Ends, ModelCard, OnToken, Prompts, Sampling, Score, Snapshot
from edge.backends.labels import average_examples, find_labels, sum_score
from edge.backends.parameters import from_vector, mask_vector, to_vector
from edge.backends.precision import load_faster
from edge.backends.torch.device import DTYPES, choose_device, free_bytes, multiplies_bfloat16
from edge.backends.torch.forward import Fed, Forward
from edge.backends.torch.generate import complete
from edge.backends.torch.layers import ATTENTION, HEAD_ROWS, HeadLoss, register_attention
from edge.backends.torch.lora import LoraLayers
from edge.backends.transformers import HubTokenizer, load_hub_tokenizer
from edge.choices import Precision
from edge.errors import BackendError, OutOfMemory


def load_model(base: Path, *, precision: Precision = "auto", seed: int = 0) -> "TorchModel":
    """Loads a Hugging Face folder, but not in float16, in which small gradients vanish; see `Loader`."""
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
        with mapped_errors():
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
        head = model.get_output_embeddings()
        linears = {
            name: module
            for name, module in model.named_modules()
            if type(module) is nn.Linear and module is not head
        }
        self.card = ModelCard(
            backend="torch",
            modules={name: (module.in_features, module.out_features) for name, module in linears.items()},
            max_tokens=int(model.config.get_text_config().max_position_embeddings),
            vocab_size=int(head.weight.shape[0]),
            num_parameters=sum(weight.numel() for weight in model.parameters()),
            precision="bfloat16" if model.dtype == torch.bfloat16 else "float32",
        )
        self.lora = LoraLayers(model, linears)
        self.forward = Forward(model, self.card)
        self.set_adapter(LoraAdapter({}))

    def set_adapter(self, adapter: LoraAdapter) -> None:
        """See `Model.set_adapter`."""
        check_fit(adapter, self.card.modules, f"adapter does not fit {self.name}")
        self.lora.set(adapter)
        self.begin(weight_decay=0.0, clip_norm=0.0)

    def adapter(self) -> LoraAdapter:
        """See `Model.adapter`."""
        return from_vector(_numpy(self.lora.vector), self.lora.form)

    def score(self, batch: Batch) -> Score:
        """See `Model.score`."""
        losses, predicted = [torch.zeros(0)], [torch.zeros(0, dtype=torch.long)]
        with torch.inference_mode(), mapped_errors():
            fed = self.forward.feed(batch)
            targets = fed.targets.split(HEAD_ROWS)
            for logits, target in zip(self.forward.logits(fed), targets, strict=True):
                losses.append(F.cross_entropy(logits.float(), target, reduction="none").cpu())
                predicted.append(logits.argmax(-1).cpu())
        real = find_labels(batch)
        count = len(real.places)
        return sum_score(batch, real, torch.cat(losses)[:count].numpy(), torch.cat(predicted)[:count].numpy())

    def features(self, batch: Batch) -> NDArray[np.float32]:
        """See `Model.features`."""
        with torch.inference_mode(), mapped_errors():
            fed = self.forward.feed(batch)
            return average_examples(batch, _numpy(self.forward.hidden(fed).float())[fed.rows.places])

    def generate(
        self, prompts: Prompts, sampling: Sampling, ends: Ends = None, on_token: OnToken = lambda *_: None
    ) -> list[list[int]]:
        """See `Model.generate`."""
        stops = [self.tokenizer.eos_id] if ends is None else ends
        with torch.inference_mode(), torch.random.fork_rng(), mapped_errors():
            torch.manual_seed(sampling.seed)
            return complete(self.model, prompts, self.card.max_tokens, sampling, stops, on_token)

    def begin(
        self, *, weight_decay: float, clip_norm: float, pull: float = 0.0, mask: LoraAdapter | None = None
    ) -> None:
        """See `TrainableModel.begin`."""
        is_trained = mask_vector(mask, self.lora.form)
        self.is_trained = None if is_trained is None else self.forward.tensor(is_trained)
        self.clip_norm, self.pull = clip_norm, pull
        self.dispatched = self.lora.vector.detach().clone() if pull else None
        self.optimizer = torch.optim.AdamW([self.lora.vector], weight_decay=weight_decay, fused=True)

    def step(self, batches: Sequence[Batch], lr: float) -> float:
        """See `TrainableModel.step`."""
        with mapped_errors():
            loss = self._differentiate(batches, self.pull)
            self._descend(lr)
        return loss

    def descend(self, gradient: LoraAdapter, lr: float) -> None:
        """See `TrainableModel.descend`."""
        with mapped_errors():
            self.lora.gradient.copy_(self.forward.tensor(to_vector(gradient)))
            self._descend(lr)

    def gradient(self, batches: Sequence[Batch]) -> tuple[float, LoraAdapter]:
        """See `TrainableModel.gradient`."""
        with mapped_errors():
            loss = self._differentiate(batches, 0.0)
        return loss, from_vector(_numpy(self.lora.gradient), self.lora.form)

    def pull_back(self, batch: Batch, cotangent: NDArray[np.float32]) -> LoraAdapter:
        """See `TrainableModel.pull_back`."""
        with mapped_errors():
            self.lora.gradient.zero_()
            fed = self.forward.feed(batch)
            features = self.forward.average(fed, self.forward.hidden(fed))
            if features.requires_grad:
                features.backward(self.forward.tensor(cotangent.astype(np.float32)))
        return from_vector(_numpy(self.lora.gradient), self.lora.form)

    def snapshot(self) -> Snapshot:
        """See `TrainableModel.snapshot`."""
        state = self.optimizer.state.get(self.lora.vector, {})
        zeros = torch.zeros_like(self.lora.vector)
        return {
            "factors": _numpy(self.lora.vector).copy(),
            "first": _numpy(state.get("exp_avg", zeros)).copy(),
            "second": _numpy(state.get("exp_avg_sq", zeros)).copy(),
            "num_steps": np.array(float(state.get("step", 0.0)), np.float32),
        }

    def restore(self, snapshot: Snapshot) -> None:
        """See `TrainableModel.restore`."""
        held = {name: self.forward.tensor(values) for name, values in snapshot.items()}
        with torch.no_grad():
            self.lora.vector.copy_(held["factors"])
        self.optimizer.state[self.lora.vector] = {
            "step": held["num_steps"].clone(),
            "exp_avg": held["first"].clone(),
            "exp_avg_sq": held["second"].clone(),
        }

    def _descend(self, lr: float) -> None:
        """Takes a step along the layers' gradient."""
        self.optimizer.param_groups[0]["lr"] = lr
        if self.is_trained is None:
            self._clip()
            self.optimizer.step()
        else:
            self.lora.gradient.mul_(self.is_trained)
            self._clip()
            values, before = self.lora.vector.data, self.lora.vector.detach().clone()
            self.optimizer.step()
            values.copy_(torch.where(self.is_trained, values, before))

    def _dispatched_features(self, fed: Fed) -> Tensor:
        """Computes features with the adapter that was there at `begin`."""
        assert self.dispatched is not None
        trained = self.lora.vector.detach().clone()
        self.lora.vector.data.copy_(self.dispatched)
        try:
            with torch.no_grad():
                return self.forward.average(fed, self.forward.hidden(fed))
        finally:
            self.lora.vector.data.copy_(trained)

    def _differentiate(self, batches: Sequence[Batch], pull: float) -> float:
        """Returns the loss; the layers' gradient is that of the loss and the pull together."""
        self.lora.gradient.zero_()
        total = sum(float(batch.weights.sum()) for batch in batches)
        share = pull / sum(batch.num_examples for batch in batches)
        return float(sum(self._backward(self.forward.feed(batch), total, share) for batch in batches))

    def _backward(self, fed: Fed, total: float, share: float) -> float:
        targets, weights = fed.targets, fed.weights / total
        fixed = self._dispatched_features(fed) if share else None
        if self.forward.has_plain_head:
            hidden = self.forward.hidden(fed)
            at_labels = hidden[fed.places]
            loss = cast(Tensor, HeadLoss.apply(at_labels, self.forward.head, targets, weights))
        else:
            hidden, logits = self.forward.hidden_and_logits(fed)
            loss = F.cross_entropy(logits.float(), targets, reduction="none") @ weights
        objective = loss
        if fixed is not None:
            objective = loss + share * (self.forward.average(fed, hidden) - fixed).square().sum()
        if objective.requires_grad:
            objective.backward()
        return loss.item()

    def _clip(self) -> None:
        gradient = self.lora.gradient
        if self.clip_norm > 0:
            norm = gradient.norm().item()
            if norm > self.clip_norm:
                gradient.mul_(self.clip_norm / norm)


@contextmanager
def mapped_errors() -> Iterator[None]:
    """Raises OutOfMemory where torch ran out of memory."""
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
