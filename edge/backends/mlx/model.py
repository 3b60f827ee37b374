"""The MLX backend: mlx-lm loads the base, full or in 4 or 8 bits, and brings the LoRA layers.

Logits are computed at labels only. All factors lie in one vector in canonical order, so that clipping
and AdamW are a few kernels whatever the number of modules.
"""

import math
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_unflatten
from mlx_lm.generate import generate_step
from mlx_lm.sample_utils import make_sampler
from mlx_lm.tuner.lora import LoRALinear
from mlx_lm.utils import load_model as load_mlx
from mlx_lm.utils import load_tokenizer, maybe_set_recommended_wired_limit
from numpy.typing import NDArray

from converters.adapter import LoraAdapter
from converters.bases.targets import check_fit
from converters.errors import BaseModelError
from edge.backends.batch_layout import row_each
from edge.backends.contract import Batch, Ends, ModelCard, OnToken, Prompts, Sampling, Score, Snapshot
from edge.backends.labels import average_examples, find_labels, mean_weights, sum_score
from edge.backends.mlx.forward import HEAD_ROWS, Fed, Forward
from edge.backends.mlx.layers import count_weights, mapped_errors, precision_of, shape_of
from edge.backends.parameters import Form, form_of, from_vector, mask_vector, to_vector
from edge.backends.transformers import HubTokenizer
from edge.choices import Precision
from edge.errors import UnsupportedRecipe

NAME = "parameters"  # of the one vector, to the optimizer
CACHE_BYTES = 1 << 30  # freed memory that MLX may keep between steps


def load_model(base: Path, *, precision: Precision = "auto", seed: int = 0) -> "MlxModel":
    """Loads a Hugging Face or MLX folder that mlx-lm knows; see `Loader`."""
    try:
        model, config = load_mlx(base)
        tokenizer = load_tokenizer(base)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise BaseModelError(f"{base}: mlx-lm cannot load it: {reason}") from error
    has_gpu = mx.default_device() == mx.gpu
    if has_gpu:
        maybe_set_recommended_wired_limit()
    else:
        mx.disable_compile()
    if precision != "auto" or not has_gpu:
        model.set_dtype(getattr(mx, "float32" if precision == "auto" else precision))
    # mlx-lm's wrapper adds settings to a chat template that no other backend gives it.
    tokenizer = getattr(tokenizer, "_tokenizer", tokenizer)
    loaded = MlxModel(model, HubTokenizer(tokenizer), config, name=str(base), is_compiling=has_gpu)
    if precision == "auto":
        why = "as it is stored: a GPU computes in it" if has_gpu else "MLX is fastest in it on a processor"
        loaded.card = loaded.card._replace(why=why)
    return loaded


class MlxModel:
    """A loaded base model; see `TrainableModel`."""

    def __init__(
        self, model: Any, tokenizer: HubTokenizer, config: dict[str, Any], *, name: str, is_compiling: bool
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        model.freeze()
        model.eval()
        self.linears = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | nn.QuantizedLinear) and not name.endswith("lm_head")
        }
        config = {**config, **config.get("text_config", {})}
        self.card = ModelCard(
            backend="mlx",
            modules={name: shape_of(linear) for name, linear in self.linears.items()},
            max_tokens=int(config.get("max_position_embeddings", 2048)),
            vocab_size=int(config["vocab_size"]),
            num_parameters=sum(count_weights(module) for module in model.modules()),
            precision=precision_of(model),
        )
        self.forward = Forward(model, self.card, is_compiling=is_compiling)
        self.form: Form = {}
        self.set_adapter(LoraAdapter({}))

    def set_adapter(self, adapter: LoraAdapter) -> None:
        """See `Model.set_adapter`."""
        check_fit(adapter, self.card.modules, f"adapter does not fit {self.name}")
        base = {name: self.linears[name] for name in self.form}
        self.layers = {
            name: LoRALinear.from_base(self.linears[name], r=factors.rank, dropout=0.0, scale=factors.scale)
            for name, factors in adapter
        }
        self.model.update_modules(tree_unflatten(list((base | self.layers).items())))
        self.form = form_of(adapter)
        self.parameters = mx.array(to_vector(adapter))
        self._place(self.parameters)
        self.begin(weight_decay=0.0, clip_norm=0.0)

    def adapter(self) -> LoraAdapter:
        """See `Model.adapter`."""
        return from_vector(np.array(self.parameters), self.form)

    def score(self, batch: Batch) -> Score:
        """See `Model.score`."""
        with mapped_errors():
            self._place(self.parameters)
            scores = [self._score(part) for part in self.forward.split(batch)]
        return Score(*(sum(sums) for sums in zip(*scores, strict=True)))

    def features(self, batch: Batch) -> NDArray[np.float32]:
        """See `Model.features`."""
        rows = row_each(batch)
        with mapped_errors():
            self._place(self.parameters)
            hidden = self.forward.hidden(mx.array(rows.tokens))
            found = np.array(hidden.astype(mx.float32)).reshape(-1, hidden.shape[-1])
            return average_examples(batch, found[rows.places])

    def generate(
        self, prompts: Prompts, sampling: Sampling, ends: Ends = None, on_token: OnToken = lambda *_: None
    ) -> list[list[int]]:
        """See `Model.generate`."""
        mx.random.seed(sampling.seed)
        stops = {self.tokenizer.eos_id} if ends is None else ends
        with mapped_errors():
            self._place(self.parameters)
            return [
                self._complete(prompt, sampling, stops, partial(on_token, index))
                for index, prompt in enumerate(prompts)
            ]

    def begin(
        self, *, weight_decay: float, clip_norm: float, pull: float = 0.0, mask: LoraAdapter | None = None
    ) -> None:
        """See `TrainableModel.begin`."""
        if pull:
            self._check_features()
        is_trained = mask_vector(mask, self.form)
        self.is_trained = None if is_trained is None else mx.array(is_trained)
        self.clip_norm, self.pull = clip_norm, pull
        self.dispatched = self.parameters
        self.optimizer = optim.AdamW(0.0, weight_decay=weight_decay, bias_correction=True)
        self.optimizer.init({NAME: self.parameters})
        state = [self.optimizer.state]
        self._gradient = mx.compile(mx.value_and_grad(self._loss))
        self._pulled_gradient = mx.compile(mx.value_and_grad(self._pulled_loss))
        self._update = mx.compile(self._apply, inputs=state, outputs=state)

    def step(self, batches: Sequence[Batch], lr: float) -> float:
        """See `TrainableModel.step`."""
        with mapped_errors():
            loss, gradient = self._differentiate(batches, self.pull)
            self._descend(gradient, lr)
        return loss

    def descend(self, gradient: LoraAdapter, lr: float) -> None:
        """See `TrainableModel.descend`."""
        with mapped_errors():
            self._descend(mx.array(to_vector(gradient)), lr)

    def gradient(self, batches: Sequence[Batch]) -> tuple[float, LoraAdapter]:
        """See `TrainableModel.gradient`."""
        with mapped_errors():
            loss, gradient = self._differentiate(batches, 0.0)
            return loss, from_vector(np.array(gradient), self.form)

    def pull_back(self, batch: Batch, cotangent: NDArray[np.float32]) -> LoraAdapter:
        """See `TrainableModel.pull_back`."""
        self._check_features()
        rows = row_each(batch)
        tokens, means = mx.array(rows.tokens), mx.array(mean_weights(batch, rows))

        def features(parameters: mx.array) -> mx.array:
            self._place(parameters)
            return self.forward.average(self.forward.hidden(tokens), means)

        with mapped_errors():
            _, (gradient,) = mx.vjp(features, [self.parameters], [mx.array(cotangent.astype(np.float32))])
            return from_vector(np.array(gradient), self.form)

    def snapshot(self) -> Snapshot:
        """See `TrainableModel.snapshot`."""
        moments = self.optimizer.state[NAME]
        return {
            "factors": np.array(self.parameters),
            "first": np.array(moments["m"]),
            "second": np.array(moments["v"]),
            "num_steps": np.array(self.optimizer.step.item(), np.int64),
        }

    def restore(self, snapshot: Snapshot) -> None:
        """See `TrainableModel.restore`."""
        self.parameters = mx.array(snapshot["factors"])
        state = self.optimizer.state
        state[NAME] = {"m": mx.array(snapshot["first"]), "v": mx.array(snapshot["second"])}
        state["step"] = mx.array(int(snapshot["num_steps"]), mx.uint64)

    def _descend(self, gradient: mx.array, lr: float) -> None:
        self.optimizer.learning_rate = lr
        moved = self._update(self.parameters, gradient)
        mx.eval(moved, self.optimizer.state)
        self.parameters = moved
        if mx.get_cache_memory() > CACHE_BYTES:
            mx.clear_cache()

    def _complete(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        ends: Collection[int | None],
        on_token: Callable[[int], object],
    ) -> list[int]:
        sampler = make_sampler(temp=sampling.temperature, top_p=sampling.top_p if sampling.top_p < 1 else 0.0)
        room, completion = min(sampling.max_tokens, self.card.max_tokens - len(prompt)), list[int]()
        if room <= 0:
            return completion
        tokens = mx.array(list(prompt))
        for token, _ in generate_step(tokens, self.model, max_tokens=room, sampler=sampler):
            if int(token) in ends:
                break
            completion.append(int(token))
            on_token(int(token))
        return completion

    def _split(self, parameters: mx.array) -> list[mx.array]:
        shapes = [matrix for shape in self.form.values() for matrix in (shape.a, shape.b)]
        ends = np.cumsum([math.prod(shape) for shape in shapes]).tolist()
        parts = cast(list[mx.array], mx.split(parameters, ends[:-1])) if shapes else []
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def _place(self, parameters: mx.array) -> None:
        """Puts factors into the layers, transposed: mlx-lm holds A as (in, rank) and B as (rank, out)."""
        matrices = iter(self._split(parameters))
        for layer in self.layers.values():
            layer.lora_a, layer.lora_b = next(matrices).T, next(matrices).T

    def _score(self, batch: Batch) -> Score:
        labels = find_labels(batch)
        fed = self.forward.feed(batch, self.forward.rows(batch))
        states = self.forward.states(fed.tokens, fed.segments)[fed.places]
        losses, predicted = [np.zeros(0, np.float32)], [np.zeros(0, np.int64)]
        for at in range(0, len(fed.places), HEAD_ROWS):
            part = slice(at, at + HEAD_ROWS)
            logits = self.forward.logits(states[part])
            losses.append(np.array(nn.losses.cross_entropy(logits.astype(mx.float32), fed.targets[part])))
            predicted.append(np.array(logits.argmax(-1)))
        count = len(labels.places)
        return sum_score(batch, labels, np.concatenate(losses)[:count], np.concatenate(predicted)[:count])

    def _loss(self, parameters: mx.array, *arrays: Any) -> tuple[mx.array, mx.array]:
        self._place(parameters)
        fed = Fed(*arrays)
        return self.forward.loss(self.forward.states(fed.tokens, fed.segments), fed)

    def _pulled_loss(self, parameters: mx.array, *arrays: Any) -> tuple[mx.array, mx.array]:
        self._place(parameters)
        fed, extra = Fed(*arrays[: len(Fed._fields)]), arrays[len(Fed._fields) :]
        return self.forward.pulled_loss(self.forward.states(fed.tokens, fed.segments), fed, *extra)

    def _differentiate(self, batches: Sequence[Batch], pull: float) -> tuple[float, mx.array]:
        """Returns the loss, and the gradient of the loss and the pull together."""
        total = sum(float(batch.weights.sum()) for batch in batches)
        share = mx.array(pull / sum(batch.num_examples for batch in batches))
        losses, gradient = mx.array(0.0), mx.zeros_like(self.parameters)
        for batch in (part for whole in batches for part in self.forward.split(whole)):
            rows = self.forward.rows(batch)
            fed = self.forward.feed(batch, rows, total)
            if pull:
                means = self.forward.feed_means(batch, rows)
                extra = (means, self._dispatched_features(fed, means), share)
                (_, loss), part = self._pulled_gradient(self.parameters, *fed, *extra)
            else:
                (_, loss), part = self._gradient(self.parameters, *fed)
            losses, gradient = losses + loss, gradient + part
            mx.eval(losses, gradient)
        return float(cast(float, losses.item())), gradient

    def _dispatched_features(self, fed: Fed, means: mx.array) -> mx.array:
        """Computes features with the adapter that was there at `begin`."""
        self._place(self.dispatched)
        fixed = self.forward.average(self.forward.hidden(fed.tokens, fed.segments), means)
        mx.eval(fixed)
        return fixed

    def _check_features(self) -> None:
        try:
            self.forward.check_features()
        except (AttributeError, TypeError, ValueError) as error:
            raise UnsupportedRecipe(
                f"{self.name}: mlx-lm does not show its hidden states, so backend mlx cannot train on "
                f"features ({error}); choose backend torch, or a recipe without a pull"
            ) from error

    def _apply(self, parameters: mx.array, gradient: mx.array) -> Any:
        if self.is_trained is not None:
            gradient = gradient * self.is_trained
        if self.clip_norm > 0:
            norm = mx.linalg.norm(gradient)
            gradient = gradient * mx.where(norm > self.clip_norm, self.clip_norm / norm, 1.0)
        (moved,) = self.optimizer.apply_gradients({NAME: gradient}, {NAME: parameters}).values()
        return moved if self.is_trained is None else mx.where(self.is_trained, moved, parameters)
