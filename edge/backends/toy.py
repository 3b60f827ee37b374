"""The toy backend: a one-layer attention model over bytes, in numpy, with gradients by hand.

Small enough for tests and try-outs (loads in milliseconds, trains a step in a few), and honest: causal
attention within segments, LoRA on its four linear modules, AdamW. With x the token embeddings and sinusoidal
positions, its hidden states are h = x + o_proj(attention(q_proj x, k_proj x, v_proj x)), its logits
h @ lm_head.

A base is a folder that `make_toy_base` writes: `toy.json`, and weights under their Hugging Face names.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from converters.adapter import Factors, LoraAdapter
from converters.bases.fit import check_fit
from converters.errors import BaseModelError
from edge.backends.batch_layout import (
    Labels,
    average_examples,
    find_labels,
    mean_weights,
    sum_score,
)
from edge.backends.contract import Batch, ModelCard, OnToken, Precision, Score, Snapshot
from edge.backends.parameters import check_mask, form_of
from edge.backends.sampling import pick_token
from edge.errors import BackendError, OutOfMemory

Array = NDArray[np.float32]
BOS, EOS, VOCAB = 256, 257, 258
LAYER = "model.layers.0.self_attn."
PROJECTIONS = tuple(f"{LAYER}{letter}_proj" for letter in "qkvo")
WEIGHTS = (*(name + ".weight" for name in PROJECTIONS), "model.embed_tokens.weight", "lm_head.weight")
BETAS, EPSILON = (0.9, 0.999), 1e-8


def make_toy_base(
    folder: Path, *, seed: int = 0, dim: int = 32, max_tokens: int = 512, memory_tokens: int = 0
) -> Path:
    """Writes a random base model; the same arguments give the same bytes.

    Args:
        folder: Made where it is missing.
        seed: Of the weights.
        dim: Hidden size, even.
        max_tokens: Context length.
        memory_tokens: A micro-batch of more tokens runs out of memory, as on a small device; 0 is no bound.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    shapes = {name + ".weight": (dim, dim) for name in PROJECTIONS}
    shapes |= {"model.embed_tokens.weight": (VOCAB, dim), "lm_head.weight": (VOCAB, dim)}
    weights = {name: random.normal(0, dim**-0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    weights["model.embed_tokens.weight"] *= dim**0.5
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = {
        "architectures": ["ToyForCausalLM"],
        "model_type": "toy",
        "vocab_size": VOCAB,
        "hidden_size": dim,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "max_position_embeddings": max_tokens,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "toy.json").write_text(json.dumps({"max_tokens": max_tokens, "memory_tokens": memory_tokens}))
    return folder


def load(base: Path, *, precision: Precision = "auto", seed: int = 0) -> "ToyModel":
    """Loads a folder of `make_toy_base`; nothing in it depends on `seed`.

    Raises:
        BackendError: For another precision than float32.
        BaseModelError: `base` is no toy base.
    """
    if precision not in ("auto", "float32"):
        raise BackendError("backend toy computes in float32 only; choose precision auto or float32")
    try:
        settings = json.loads((base / "toy.json").read_text())
        weights = load_file(base / "model.safetensors")
        limits = (int(settings["max_tokens"]), int(settings["memory_tokens"]))
        return ToyModel({name: weights[name] for name in WEIGHTS}, *limits)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise BaseModelError(f"{base}: is no toy base: {error}; make_toy_base writes one") from error


class ByteTokenizer:
    """One token a byte, and two more for beginning and end."""

    bos_id: int | None = BOS
    eos_id: int | None = EOS
    end_ids = frozenset({EOS})
    has_chat_template = True

    def encode(self, text: str) -> list[int]:
        """UTF-8 bytes of `text`."""
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of the bytes among `tokens`; broken UTF-8 is shown as U+FFFD."""
        return bytes(token for token in tokens if token < BOS).decode(errors="replace")

    def piece(self, token: int) -> str:
        """See `Tokenizer.piece`."""
        return {BOS: "<bos>", EOS: "<eos>"}.get(token) or self.decode([token])

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool,
    ) -> str:
        """`<role>content` and a line break for each message; tools are not shown."""
        turns = "".join(f"<{message['role']}>{message.get('content', '')}\n" for message in messages)
        return turns + "<assistant>" * add_generation_prompt


class Trace(NamedTuple):
    """What the forward pass leaves for the backward pass; B rows of width T, hidden size d."""

    x: Array  # (B, T, d)
    q: Array  # (B, T, d)
    k: Array  # (B, T, d)
    v: Array  # (B, T, d)
    attention: Array  # (B, T, T)
    z: Array  # (B, T, d), input of o_proj
    h: Array  # (B, T, d)


class ToyModel:
    """A loaded toy base; see `TrainableModel`."""

    def __init__(self, weights: Mapping[str, Array], max_tokens: int, memory_tokens: int) -> None:
        self.weights = weights
        self.tokenizer = ByteTokenizer()
        self.memory_tokens = memory_tokens
        self.card = ModelCard(
            backend="toy",
            modules={name: weights[name + ".weight"].shape[::-1] for name in PROJECTIONS},
            max_tokens=max_tokens,
            vocab_size=VOCAB,
            num_parameters=sum(weight.size for weight in weights.values()),
        )
        self.scales: dict[str, float] = {}
        self.factors: dict[str, Array] = {}  # `<module>.a` and `<module>.b`
        self.begin(weight_decay=0.0, clip_norm=0.0)

    def set_adapter(self, adapter: LoraAdapter) -> None:
        """See `Model.set_adapter`."""
        check_fit(adapter, self.card.modules, "adapter does not fit the toy base")
        self.scales = {name: factors.scale for name, factors in adapter}
        self.factors = _by_factor(adapter)
        self.begin(weight_decay=0.0, clip_norm=0.0)

    def adapter(self) -> LoraAdapter:
        """See `Model.adapter`."""
        return self._as_adapter(self.factors)

    def score(self, batch: Batch) -> Score:
        """See `Model.score`."""
        labels = find_labels(batch)
        logits = self._logits(self._forward(batch).h, labels)
        return sum_score(batch, labels, _cross_entropy(logits, labels.targets), logits.argmax(-1))

    def features(self, batch: Batch) -> Array:
        """See `Model.features`."""
        return average_examples(batch, self._forward(batch).h)

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
        random = np.random.default_rng(seed)
        stops = {EOS} if ends is None else ends

        def choose(logits: Array) -> int:
            return pick_token(logits, temperature, top_p, random)

        return [
            self._continue(list(prompt), max_tokens, choose, stops, partial(on_token, index))
            for index, prompt in enumerate(prompts)
        ]

    def begin(
        self, *, weight_decay: float, clip_norm: float, pull: float = 0.0, mask: LoraAdapter | None = None
    ) -> None:
        """See `TrainableModel.begin`."""
        self.mask: dict[str, Array] = {}
        if mask is not None:
            check_mask(mask, form_of(self.adapter()))
            self.mask = _by_factor(mask)
        self.weight_decay, self.clip_norm, self.pull = weight_decay, clip_norm, pull
        self.dispatched = dict(self.factors)
        self.num_steps = 0
        self.moments = [{name: np.zeros_like(value) for name, value in self.factors.items()} for _ in BETAS]

    def step(self, batches: Sequence[Batch], lr: float) -> float:
        """See `TrainableModel.step`."""
        loss, gradients = self._differentiate(batches, self.pull)
        self._update(gradients, lr)
        return loss

    def gradient(self, batches: Sequence[Batch]) -> tuple[float, LoraAdapter]:
        """See `TrainableModel.gradient`."""
        loss, gradients = self._differentiate(batches, 0.0)
        return loss, self._as_adapter(gradients)

    def pull_back(self, batch: Batch, cotangent: Array) -> LoraAdapter:
        """See `TrainableModel.pull_back`."""
        self._check_memory([batch])
        trace, gradients = self._forward(batch), self._zeros()
        dh = (mean_weights(batch).T @ cotangent).reshape(trace.h.shape)
        self._attention_backward(trace, dh, gradients)
        return self._as_adapter(gradients)

    def snapshot(self) -> Snapshot:
        """See `TrainableModel.snapshot`."""
        kinds = {"factor": self.factors, "first": self.moments[0], "second": self.moments[1]}
        arrays: Snapshot = {
            f"{kind}.{name}": v.copy() for kind, held in kinds.items() for name, v in held.items()
        }
        return {**arrays, "num_steps": np.array(self.num_steps, np.int64)}

    def restore(self, snapshot: Snapshot) -> None:
        """See `TrainableModel.restore`."""
        for kind, held in (("factor", self.factors), ("first", self.moments[0]), ("second", self.moments[1])):
            for name in held:
                held[name] = snapshot[f"{kind}.{name}"].copy()
        self.num_steps = int(snapshot["num_steps"])

    def _as_adapter(self, factors: Mapping[str, Array]) -> LoraAdapter:
        return LoraAdapter(
            {
                name: Factors(factors[f"{name}.a"].copy(), factors[f"{name}.b"].copy(), scale)
                for name, scale in self.scales.items()
            }
        )

    def _zeros(self) -> dict[str, Array]:
        return {name: np.zeros_like(value) for name, value in self.factors.items()}

    def _check_memory(self, batches: Sequence[Batch]) -> None:
        if 0 < self.memory_tokens < max(batch.tokens.size for batch in batches):
            raise OutOfMemory(f"backend toy: a micro-batch holds more than {self.memory_tokens} tokens")

    def _differentiate(self, batches: Sequence[Batch], pull: float) -> tuple[float, dict[str, Array]]:
        """The loss, and the gradients of the loss and the pull together."""
        self._check_memory(batches)
        gradients = self._zeros()
        total = sum(float(batch.weights.sum()) for batch in batches)
        share = pull / sum(batch.num_examples for batch in batches)
        return sum(self._backward(batch, total, share, gradients) for batch in batches), gradients

    def _linear(self, name: str, x: Array) -> Array:
        y: Array = x @ self.weights[name + ".weight"].T
        if name in self.scales:
            y += self.scales[name] * (x @ self.factors[name + ".a"].T @ self.factors[name + ".b"].T)
        return y

    def _linear_backward(self, name: str, x: Array, dy: Array, gradients: dict[str, Array]) -> Array:
        dx: Array = dy @ self.weights[name + ".weight"]
        if name in self.scales:
            a, b, scale = self.factors[name + ".a"], self.factors[name + ".b"], self.scales[name]
            rows, d_rows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
            gradients[name + ".b"] += scale * (d_rows.T @ (rows @ a.T))
            gradients[name + ".a"] += scale * ((d_rows @ b).T @ rows)
            dx += scale * (dy @ b @ a)
        return dx

    def _forward(self, batch: Batch) -> Trace:
        x = self.weights["model.embed_tokens.weight"][batch.tokens]
        dim = x.shape[-1]
        x = x + _sinusoids(batch.positions, dim)
        q, k, v = (self._linear(name, x) for name in PROJECTIONS[:3])
        same = batch.segments[:, :, None] == batch.segments[:, None, :]
        scores = np.where(np.tril(same), q @ k.transpose(0, 2, 1) * np.float32(dim**-0.5), np.float32(-1e9))
        attention = np.exp(scores - scores.max(-1, keepdims=True))
        attention /= attention.sum(-1, keepdims=True)
        z = attention @ v
        return Trace(x, q, k, v, attention, z, x + self._linear(PROJECTIONS[3], z))

    def _logits(self, h: Array, labels: Labels) -> Array:
        logits: Array = h.reshape(-1, h.shape[-1])[labels.places] @ self.weights["lm_head.weight"].T
        return logits

    def _backward(self, batch: Batch, total: float, share: float, gradients: dict[str, Array]) -> float:
        trace, labels = self._forward(batch), find_labels(batch)
        logits = self._logits(trace.h, labels)
        loss = float(_cross_entropy(logits, labels.targets) @ labels.weights) / total
        d_logits = _softmax(logits)
        d_logits[np.arange(len(logits)), labels.targets] -= 1
        d_logits *= labels.weights[:, None] / np.float32(total)
        dh = np.zeros_like(trace.h)
        dh.reshape(-1, dh.shape[-1])[labels.places] = d_logits @ self.weights["lm_head.weight"]
        if share:
            dh += self._pull_gradient(batch, trace.h, share)
        self._attention_backward(trace, dh, gradients)
        return loss

    def _pull_gradient(self, batch: Batch, h: Array, share: float) -> Array:
        """Of `share` times the squared distances of the features from the dispatched ones, at `h`."""
        trained, self.factors = self.factors, self.dispatched
        fixed = self._forward(batch).h
        self.factors = trained
        means = mean_weights(batch)
        away: Array = means @ (h - fixed).reshape(-1, h.shape[-1])
        gradient: Array = means.T @ (2 * share * away)
        return gradient.reshape(h.shape)

    def _attention_backward(self, trace: Trace, dh: Array, gradients: dict[str, Array]) -> None:
        dz = self._linear_backward(PROJECTIONS[3], trace.z, dh, gradients)
        d_attention = dz @ trace.v.transpose(0, 2, 1)
        inner = (d_attention * trace.attention).sum(-1, keepdims=True)
        d_scores = trace.attention * (d_attention - inner) * np.float32(trace.x.shape[-1] ** -0.5)
        ends = (
            d_scores @ trace.k,
            d_scores.transpose(0, 2, 1) @ trace.q,
            trace.attention.transpose(0, 2, 1) @ dz,
        )
        for name, dy in zip(PROJECTIONS[:3], ends, strict=True):
            if name in self.scales:  # the embeddings below are frozen
                self._linear_backward(name, trace.x, dy, gradients)

    def _update(self, gradients: dict[str, Array], lr: float) -> None:
        for name, mask in self.mask.items():
            gradients[name] *= mask
        norm = (
            sum(float(np.square(gradient, dtype=np.float64).sum()) for gradient in gradients.values()) ** 0.5
        )
        shrink = np.float32(self.clip_norm / norm if 0 < self.clip_norm < norm else 1.0)
        self.num_steps += 1
        corrections = [1 - beta**self.num_steps for beta in BETAS]
        for name, gradient in gradients.items():
            for moments, beta, power in zip(self.moments, BETAS, (1, 2), strict=True):
                moments[name] = (
                    np.float32(beta) * moments[name] + np.float32(1 - beta) * (gradient * shrink) ** power
                )
            first, second = (
                moments[name] / np.float32(c) for moments, c in zip(self.moments, corrections, strict=True)
            )
            decayed = self.factors[name] * np.float32(1 - lr * self.weight_decay)
            moved: Array = decayed - np.float32(lr) * first / (np.sqrt(second) + np.float32(EPSILON))
            if self.mask:
                moved = np.where(self.mask[name] > 0, moved, self.factors[name])
            self.factors[name] = moved

    def _continue(
        self,
        tokens: list[int],
        max_tokens: int,
        choose: Callable[[Array], int],
        ends: Collection[int],
        on_token: Callable[[int], object],
    ) -> list[int]:
        start = len(tokens)
        for _ in range(min(max_tokens, self.card.max_tokens - start)):
            row = np.array([tokens], np.int32)
            ones = np.ones_like(row)
            batch = Batch(
                row, row, ones.astype(np.float32), ones, np.arange(len(tokens), dtype=np.int32)[None]
            )
            token = choose(self._forward(batch).h[0, -1] @ self.weights["lm_head.weight"].T)
            if token in ends:
                break
            tokens.append(token)
            on_token(token)
        return tokens[start:]


def _by_factor(adapter: LoraAdapter) -> dict[str, Array]:
    return {f"{name}.{key}": getattr(factors, key).copy() for name, factors in adapter for key in "ab"}


def _softmax(logits: NDArray[np.floating]) -> NDArray[np.floating]:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    shares: NDArray[np.floating] = powers / powers.sum(-1, keepdims=True)
    return shares


def _cross_entropy(logits: Array, targets: NDArray[np.int64]) -> Array:
    highest = logits.max(-1, keepdims=True)
    log_sums = np.log(np.exp(logits - highest).sum(-1)) + highest[:, 0]
    losses: Array = log_sums - logits[np.arange(len(targets)), targets]
    return losses


def _sinusoids(positions: NDArray[np.int32], dim: int) -> Array:
    # Vaswani et al. (arXiv 1706.03762), section 3.5, halves side by side.
    angles = positions[..., None] / 10000.0 ** (np.arange(dim // 2) / (dim // 2))
    return np.concatenate([np.sin(angles), np.cos(angles)], -1).astype(np.float32)
