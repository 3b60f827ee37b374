# ruff: noqa: E402 - OpenBLAS goes before MLX
"""The MLX backend: mlx-lm loads the base, full or in 4 or 8 bits, and brings the LoRA layers.

On a GPU a step is one compiled function of packed rows in few shapes. There positions go on from example to
example: rotary embeddings are relative, so only the mask matters; whether that holds for a base is tried out
when it is loaded. Where it does not, and on a processor, each example gets a row of its own, in micro-batches
of like lengths: MLX computes exponentials at 90 million a second there, so attention across examples that is
masked away again costs more than packing saves, and compiling means waiting for a C++ compiler.

Logits are computed at labels only. All factors lie in one flat vector in canonical order, so that clipping
and AdamW are a few kernels whatever the number of modules.

On Linux the wheel of MLX links the reference BLAS. With OpenBLAS loaded before it, matrix products run 30 to
80 times faster (two x86-64 cores), and a LoRA step 12 times.
"""

import ctypes
import logging
import math
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast


def _load_openblas() -> bool:
    for name in ("libopenblas.so.0", "libopenblas.so"):
        with suppress(OSError):
            ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
            return True
    return False


HAS_FAST_BLAS = sys.platform != "linux" or _load_openblas()  # before mlx, which would bind to the other

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_unflatten
from mlx_lm.sample_utils import make_sampler
from mlx_lm.tuner.lora import LoRALinear
from mlx_lm.utils import load_model, load_tokenizer, maybe_set_recommended_wired_limit
from numpy.typing import NDArray

from converters.adapter import LoraAdapter
from converters.bases.fit import check_fit
from converters.errors import BaseModelError
from edge.backends.batch_layout import (
    average_examples,
    find_labels,
    group_by_length,
    mean_weights,
    sum_score,
    unpack,
)
from edge.backends.contract import Batch, ModelCard, OnToken, Precision, Score, Snapshot
from edge.backends.mlx.generate import complete
from edge.backends.mlx.layers import (
    PackedRows,
    are_near,
    count_weights,
    feed,
    feed_means,
    mapped_errors,
    precision_of,
    shape_of,
    softmax_loss,
)
from edge.backends.parameters import Form, form_of, from_vector, mask_vector, to_vector
from edge.backends.transformers import HubTokenizer
from edge.errors import UnsupportedRecipe

HEAD_ROWS = 512  # labels whose logits are held at a time when scoring
CACHE_BYTES = 1 << 30  # freed memory that MLX may keep between steps


def load(base: Path, *, precision: Precision = "auto", seed: int = 0) -> "MlxModel":
    """Loads a Hugging Face or MLX folder; nothing in it depends on `seed`.

    Raises:
        BaseModelError: `base` is not a language model that mlx-lm can load, and why.
    """
    if not HAS_FAST_BLAS:
        logging.getLogger(__name__).warning(
            "MLX lacks OpenBLAS: install libopenblas0-pthread and train 12 times faster"
        )
    try:
        model, config = load_model(base)
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
        self.is_compiling = is_compiling
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
        self.form: Form = {}
        self.set_adapter(LoraAdapter({}))
        self.has_plain_head = self._has_plain_head()
        self.is_packing = is_compiling and self._packs_exactly()

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
        self.flat = mx.array(to_vector(adapter))
        self._place(self.flat)
        self.begin(weight_decay=0.0, clip_norm=0.0)

    def adapter(self) -> LoraAdapter:
        """See `Model.adapter`."""
        return from_vector(np.array(self.flat), self.form)

    def score(self, batch: Batch) -> Score:
        """See `Model.score`."""
        with mapped_errors():
            self._place(self.flat)
            scores = [self._score(part) for part in self._layout(batch)]
        return Score(*(sum(sums) for sums in zip(*scores, strict=True)))

    def features(self, batch: Batch) -> NDArray[np.float32]:
        """See `Model.features`."""
        apart = unpack(batch)
        with mapped_errors():
            self._place(self.flat)
            hidden = self._hidden(mx.array(apart.tokens), None)
            return average_examples(apart, np.array(hidden.astype(mx.float32)))

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
        mx.random.seed(seed)
        stops = {self.tokenizer.eos_id} if ends is None else ends
        with mapped_errors():
            self._place(self.flat)
            return [
                complete(
                    self.model,
                    prompt,
                    min(max_tokens, self.card.max_tokens - len(prompt)),
                    make_sampler(temp=temperature, top_p=top_p if top_p < 1 else 0.0),
                    stops,
                    partial(on_token, index),
                )
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
        self.dispatched = self.flat
        self.optimizer = optim.AdamW(0.0, weight_decay=weight_decay, bias_correction=True)
        self.optimizer.init({"flat": self.flat})
        state = [self.optimizer.state]
        self._gradient = mx.compile(mx.value_and_grad(self._loss))
        self._pulled_gradient = mx.compile(mx.value_and_grad(self._pulled_loss))
        self._update = mx.compile(self._apply, inputs=state, outputs=state)

    def step(self, batches: Sequence[Batch], lr: float) -> float:
        """See `TrainableModel.step`."""
        with mapped_errors():
            loss, gradient = self._differentiate(batches, self.pull)
            self.optimizer.learning_rate = lr
            flat = self._update(self.flat, gradient)
            mx.eval(flat, self.optimizer.state)
            self.flat = flat
            if mx.get_cache_memory() > CACHE_BYTES:
                mx.clear_cache()
        return loss

    def gradient(self, batches: Sequence[Batch]) -> tuple[float, LoraAdapter]:
        """See `TrainableModel.gradient`."""
        with mapped_errors():
            loss, gradient = self._differentiate(batches, 0.0)
            return loss, from_vector(np.array(gradient), self.form)

    def pull_back(self, batch: Batch, cotangent: NDArray[np.float32]) -> LoraAdapter:
        """See `TrainableModel.pull_back`."""
        self._check_features()
        apart = unpack(batch)
        tokens, means = mx.array(apart.tokens), mx.array(mean_weights(apart))

        def features(flat: mx.array) -> mx.array:
            self._place(flat)
            return self._average(self._hidden(tokens, None), means)

        with mapped_errors():
            _, (gradient,) = mx.vjp(features, [self.flat], [mx.array(cotangent.astype(np.float32))])
            return from_vector(np.array(gradient), self.form)

    def snapshot(self) -> Snapshot:
        """See `TrainableModel.snapshot`."""
        moments = self.optimizer.state["flat"]
        return {
            "factors": np.array(self.flat),
            "first": np.array(moments["m"]),
            "second": np.array(moments["v"]),
            "num_steps": np.array(self.optimizer.step.item(), np.int64),
        }

    def restore(self, snapshot: Snapshot) -> None:
        """See `TrainableModel.restore`."""
        self.flat = mx.array(snapshot["factors"])
        state = self.optimizer.state
        state["flat"] = {"m": mx.array(snapshot["first"]), "v": mx.array(snapshot["second"])}
        state["step"] = mx.array(int(snapshot["num_steps"]), mx.uint64)

    def _split(self, flat: mx.array) -> list[mx.array]:
        shapes = [matrix for shape in self.form.values() for matrix in (shape.a, shape.b)]
        ends = np.cumsum([math.prod(shape) for shape in shapes]).tolist()
        parts = cast(list[mx.array], mx.split(flat, ends[:-1])) if shapes else []
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def _place(self, flat: mx.array) -> None:
        # Into the layers, transposed: mlx-lm holds A as (in, rank) and B as (rank, out).
        matrices = iter(self._split(flat))
        for layer in self.layers.values():
            layer.lora_a, layer.lora_b = next(matrices).T, next(matrices).T

    @property
    def _shapes(self) -> dict[str, bool]:
        return {"is_compiling": self.is_compiling, "is_packing": self.is_packing}

    def _layout(self, batch: Batch) -> list[Batch]:
        return [batch] if self.is_packing else group_by_length(batch)

    def _score(self, batch: Batch) -> Score:
        labels = find_labels(batch)
        tokens, segments, index, targets, _ = feed(batch, 1.0, **self._shapes)
        rows = self._rows(tokens, segments)
        rows = rows.reshape(-1, rows.shape[-1])[index]
        losses, predicted = [np.zeros(0, np.float32)], [np.zeros(0, np.int64)]
        for at in range(0, len(index), HEAD_ROWS):
            part = slice(at, at + HEAD_ROWS)
            logits = self._logits(rows[part])
            losses.append(np.array(nn.losses.cross_entropy(logits.astype(mx.float32), targets[part])))
            predicted.append(np.array(logits.argmax(-1)))
        count = len(labels.places)
        return sum_score(batch, labels, np.concatenate(losses)[:count], np.concatenate(predicted)[:count])

    def _caches(self, segments: mx.array | None) -> list[PackedRows] | None:
        return None if segments is None else [PackedRows(segments)] * len(self.model.layers)

    def _hidden(self, tokens: mx.array, segments: mx.array | None) -> Any:
        return self.model.model(tokens, cache=self._caches(segments))

    def _logits(self, rows: mx.array) -> Any:
        if not self.has_plain_head:
            return rows  # they are logits already
        tied = self.model.model.embed_tokens.as_linear
        return (self.model.lm_head if "lm_head" in self.model else tied)(rows)

    def _rows(self, tokens: mx.array, segments: mx.array | None) -> Any:
        # What the loss is computed from: hidden states, or logits where the model scales or caps them.
        if self.has_plain_head:
            return self._hidden(tokens, segments)
        return self.model(tokens, cache=self._caches(segments))

    def _loss(self, flat: mx.array, *arrays: Any) -> tuple[mx.array, mx.array]:
        # What is differentiated, and the loss.
        self._place(flat)
        tokens, segments, *labels = arrays
        return self._loss_of(self._rows(tokens, segments), *labels)

    def _pulled_loss(self, flat: mx.array, *arrays: Any) -> tuple[mx.array, mx.array]:
        # The same with the pull, which is differentiated too and left out of the loss.
        self._place(flat)
        tokens, segments, *labels, means, fixed, share = arrays
        rows = self._rows(tokens, segments)
        hidden = rows if self.has_plain_head else self._hidden(tokens, segments)
        away = self._average(hidden, means) - fixed
        value, loss = self._loss_of(rows, *labels)
        return value + share * away.square().sum(), loss

    def _average(self, hidden: mx.array, means: mx.array) -> mx.array:
        # Features as something that can be differentiated: (examples, hidden size), float32.
        return means @ hidden.reshape(-1, hidden.shape[-1]).astype(mx.float32)

    def _differentiate(self, batches: Sequence[Batch], pull: float) -> tuple[float, mx.array]:
        # The loss, and the gradient of the loss and the pull together.
        total = sum(float(batch.weights.sum()) for batch in batches)
        share = mx.array(pull / sum(batch.num_examples for batch in batches))
        losses, gradient = mx.array(0.0), mx.zeros_like(self.flat)
        for batch in (part for whole in batches for part in self._layout(whole)):
            arrays = feed(batch, total, **self._shapes)
            if pull:
                extra = (*self._dispatched_features(batch, *arrays[:2]), share)
                (_, loss), part = self._pulled_gradient(self.flat, *arrays, *extra)
            else:
                (_, loss), part = self._gradient(self.flat, *arrays)
            losses, gradient = losses + loss, gradient + part
            mx.eval(losses, gradient)
        return float(cast(float, losses.item())), gradient

    def _dispatched_features(
        self, batch: Batch, tokens: mx.array, segments: mx.array | None
    ) -> tuple[mx.array, mx.array]:
        # The means' weights, and the features with the adapter that was there at `begin`.
        means = feed_means(batch, tokens.shape[1], is_compiling=self.is_compiling)
        self._place(self.dispatched)
        fixed = self._average(self._hidden(tokens, segments), means)
        mx.eval(fixed)
        return means, fixed

    def _check_features(self) -> None:
        try:
            self._hidden(self._trial_tokens(), None)
        except (AttributeError, TypeError, ValueError) as error:
            raise UnsupportedRecipe(
                f"{self.name}: mlx-lm does not show its hidden states, so backend mlx cannot train on "
                f"features ({error}); choose backend torch, or a recipe without a pull"
            ) from error

    def _loss_of(
        self, rows: mx.array, index: mx.array, targets: mx.array, weights: mx.array
    ) -> tuple[mx.array, mx.array]:
        # The head is frozen, so the gradient at its input is worked out here from the softmax, once; left to
        # MLX, the exponentials of all logits would be computed twice.
        rows = rows.reshape(-1, rows.shape[-1])[index]
        loss, gradients = mx.array(0.0), []
        for at in range(0, len(index), HEAD_ROWS):
            part = slice(at, at + HEAD_ROWS)
            held = mx.stop_gradient(rows[part])
            logits = self._logits(held)
            some, slope = softmax_loss(logits.astype(mx.float32), targets[part, None], weights[part, None])
            gradients += mx.vjp(self._logits, [held], [slope.astype(logits.dtype)])[1]
            loss = loss + some
        return (rows * mx.stop_gradient(mx.concatenate(gradients))).astype(mx.float32).sum(), loss

    def _apply(self, flat: mx.array, gradient: mx.array) -> Any:
        if self.is_trained is not None:
            gradient = gradient * self.is_trained
        if self.clip_norm > 0:
            norm = mx.linalg.norm(gradient)
            gradient = gradient * mx.where(norm > self.clip_norm, self.clip_norm / norm, 1.0)
        moved = self.optimizer.apply_gradients({"flat": gradient}, {"flat": flat})["flat"]
        return moved if self.is_trained is None else mx.where(self.is_trained, moved, flat)

    def _has_plain_head(self) -> bool:
        # Tried on a few tokens rather than kept as a list of architectures.
        self.has_plain_head = True
        tokens = self._trial_tokens()
        try:
            return are_near(self._logits(self._hidden(tokens, None)), self.model(tokens))
        except (AttributeError, TypeError, ValueError):
            return False

    def _packs_exactly(self) -> bool:
        tokens = self._trial_tokens()
        segments = mx.repeat(mx.array([[1, 2]]), tokens.shape[1], axis=1)
        apart = self.model(tokens)
        try:
            packed = self.model(tokens.reshape(1, -1), cache=self._caches(segments))
        except (AttributeError, TypeError, ValueError):
            return False
        return are_near(packed.reshape(apart.shape), apart)

    def _trial_tokens(self) -> mx.array:
        length = max(1, min(8, self.card.max_tokens // 2))
        return mx.array((np.arange(2 * length) * 7 % self.card.vocab_size).reshape(2, length))
