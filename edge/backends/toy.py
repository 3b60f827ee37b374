"""The toy backend: a one-layer attention model over bytes, in numpy, with gradients by hand.

Small enough for tests and try-outs (loads in milliseconds, trains a step in a few), and honest: causal
attention example by example, LoRA on its four linear modules, AdamW. With x the token embeddings and
sinusoidal positions, its hidden states are h = x + o_proj(attention(q_proj x, k_proj x, v_proj x)), its
logits h @ lm_head.

A base is a folder that `make_toy_base` writes: `toy.json`, and weights under their Hugging Face names.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from converters.adapter import LoraAdapter
from converters.bases.targets import check_fit
from converters.errors import BaseModelError
from converters.files.content import read_content
from converters.files.text import decode_record
from edge.backends.adamw import AdamW
from edge.backends.contract import Batch, Ends, ModelCard, OnToken, Prompts, Sampling, Score, Snapshot
from edge.backends.labels import average_examples, find_labels, mean_weights, sum_score
from edge.backends.parameters import Matrices, form_of, from_vector, mask_vector, split_vector, to_vector
from edge.backends.sampling import continue_text
from edge.choices import Precision
from edge.errors import BackendError, OutOfMemory

Array = NDArray[np.float32]
BOS, EOS, VOCAB = 256, 257, 258
LAYER = "model.layers.0.self_attn."
PROJECTIONS = tuple(f"{LAYER}{letter}_proj" for letter in "qkvo")
WEIGHTS = (*(name + ".weight" for name in PROJECTIONS), "model.embed_tokens.weight", "lm_head.weight")


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
    """Loads a folder of `make_toy_base`, in float32 alone; see `Loader`."""
    if precision not in ("auto", "float32"):
        raise BackendError("backend toy computes in float32 only; choose precision auto or float32")

    def told(why: str) -> BaseModelError:
        return BaseModelError(f"{base}: is no toy base: {why}; make_toy_base writes one")

    limits = decode_record(read_content(base / "toy.json", told), _Limits, told)
    try:
        weights = load_file(base / "model.safetensors")
        return ToyModel({name: weights[name] for name in WEIGHTS}, limits.max_tokens, limits.memory_tokens)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise told(str(error)) from error


class _Limits(Struct):
    """Content of `toy.json`."""

    max_tokens: int
    memory_tokens: int


class ByteTokenizer:
    """One token a byte, and two more for beginning and end."""

    bos_id: int | None = BOS
    eos_id: int | None = EOS
    end_ids = frozenset({EOS})
    has_chat_template = True

    def encode(self, text: str) -> list[int]:
        """Returns the UTF-8 bytes of `text`."""
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of the bytes among `tokens`; broken UTF-8 is shown as U+FFFD."""
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
        """Writes `<role>content` and a line break for each message; tools are not shown."""
        turns = "".join(f"<{message['role']}>{message.get('content', '')}\n" for message in messages)
        return turns + "<assistant>" * add_generation_prompt


class Trace(NamedTuple):
    """What the forward pass leaves for the backward pass; t tokens, hidden size d."""

    x: Array  # (t, d)
    q: Array  # (t, d)
    k: Array  # (t, d)
    v: Array  # (t, d)
    attention: list[Array]  # of each example: (length, length)
    z: Array  # (t, d), input of o_proj
    h: Array  # (t, d)


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
        self.set_adapter(LoraAdapter({}))

    def set_adapter(self, adapter: LoraAdapter) -> None:
        """See `Model.set_adapter`."""
        check_fit(adapter, self.card.modules, "adapter does not fit the toy base")
        self.form = form_of(adapter)
        self.parameters = to_vector(adapter)
        self.factors = split_vector(self.parameters, self.form)
        self.begin(weight_decay=0.0, clip_norm=0.0)

    def adapter(self) -> LoraAdapter:
        """See `Model.adapter`."""
        return from_vector(self.parameters, self.form)

    def score(self, batch: Batch) -> Score:
        """See `Model.score`."""
        labels = find_labels(batch)
        logits = self._logits(self._forward(batch).h[labels.places])
        return sum_score(batch, labels, _cross_entropy(logits, labels.targets), logits.argmax(-1))

    def features(self, batch: Batch) -> Array:
        """See `Model.features`."""
        return average_examples(batch, self._forward(batch).h)

    def generate(
        self, prompts: Prompts, sampling: Sampling, ends: Ends = None, on_token: OnToken = lambda *_: None
    ) -> list[list[int]]:
        """See `Model.generate`."""
        random, stops = np.random.default_rng(sampling.seed), {EOS} if ends is None else ends
        settings = (self.card.max_tokens, self._next_logits, sampling, random, stops)
        return [
            continue_text(prompt, *settings, partial(on_token, index)) for index, prompt in enumerate(prompts)
        ]

    def begin(
        self, *, weight_decay: float, clip_norm: float, pull: float = 0.0, mask: LoraAdapter | None = None
    ) -> None:
        """See `TrainableModel.begin`."""
        self.pull, self.dispatched = pull, split_vector(self.parameters.copy(), self.form)
        self.optimizer = AdamW(self.parameters, weight_decay, clip_norm, mask_vector(mask, self.form))

    def step(self, batches: Sequence[Batch], lr: float) -> float:
        """See `TrainableModel.step`."""
        loss, gradient = self._differentiate(batches, self.pull)
        self.optimizer.step(gradient, lr)
        return loss

    def descend(self, gradient: LoraAdapter, lr: float) -> None:
        """See `TrainableModel.descend`."""
        self.optimizer.step(to_vector(gradient), lr)

    def gradient(self, batches: Sequence[Batch]) -> tuple[float, LoraAdapter]:
        """See `TrainableModel.gradient`."""
        loss, gradient = self._differentiate(batches, 0.0)
        return loss, from_vector(gradient, self.form)

    def pull_back(self, batch: Batch, cotangent: Array) -> LoraAdapter:
        """See `TrainableModel.pull_back`."""
        self._check_memory([batch])
        gradient = np.zeros_like(self.parameters)
        dh = mean_weights(batch).T @ cotangent
        self._attention_backward(batch, self._forward(batch), dh, split_vector(gradient, self.form))
        return from_vector(gradient, self.form)

    def snapshot(self) -> Snapshot:
        """See `TrainableModel.snapshot`."""
        found: Snapshot = {name: matrix.copy() for name, matrix in self._state()}
        return {**found, "num_steps": np.array(self.optimizer.num_steps, np.int64)}

    def restore(self, snapshot: Snapshot) -> None:
        """See `TrainableModel.restore`."""
        for name, matrix in self._state():
            matrix[...] = snapshot[name]
        self.optimizer.num_steps = int(snapshot["num_steps"])

    def _state(self) -> Iterator[tuple[str, Array]]:
        """Yields what a step changes, as views by the names of a snapshot."""
        held = {"factor": self.parameters, "first": self.optimizer.first, "second": self.optimizer.second}
        for kind, vector in held.items():
            for name, (a, b) in split_vector(vector, self.form).items():
                yield f"{kind}.{name}.a", a
                yield f"{kind}.{name}.b", b

    def _check_memory(self, batches: Sequence[Batch]) -> None:
        if 0 < self.memory_tokens < max(batch.num_tokens for batch in batches):
            raise OutOfMemory(f"backend toy: a micro-batch holds more than {self.memory_tokens} tokens")

    def _differentiate(self, batches: Sequence[Batch], pull: float) -> tuple[float, Array]:
        """Returns the loss, and the gradient of the loss and the pull together: (parameters,)."""
        self._check_memory(batches)
        gradient = np.zeros_like(self.parameters)
        gradients = split_vector(gradient, self.form)
        total = sum(float(batch.weights.sum()) for batch in batches)
        share = pull / sum(batch.num_examples for batch in batches)
        return sum(self._backward(batch, total, share, gradients) for batch in batches), gradient

    def _linear(self, name: str, x: Array) -> Array:
        y: Array = x @ self.weights[name + ".weight"].T
        if name in self.form:
            a, b = self.factors[name]
            y += np.float32(self.form[name].scale) * (x @ a.T @ b.T)
        return y

    def _linear_backward(self, name: str, x: Array, dy: Array, gradients: Matrices) -> Array:
        dx: Array = dy @ self.weights[name + ".weight"]
        if name in self.form:
            (a, b), (da, db), scale = self.factors[name], gradients[name], np.float32(self.form[name].scale)
            db += scale * (dy.T @ (x @ a.T))
            da += scale * ((dy @ b).T @ x)
            dx += scale * (dy @ b @ a)
        return dx

    def _forward(self, batch: Batch) -> Trace:
        x = self.weights["model.embed_tokens.weight"][batch.tokens]
        x = x + _sinusoids(batch.positions, x.shape[-1])
        q, k, v = (self._linear(name, x) for name in PROJECTIONS[:3])
        attention, z = [], np.empty_like(x)
        for at in batch.spans:
            weights = _attend(q[at], k[at])
            z[at] = weights @ v[at]
            attention.append(weights)
        return Trace(x, q, k, v, attention, z, x + self._linear(PROJECTIONS[3], z))

    def _logits(self, h: Array) -> Array:
        logits: Array = h @ self.weights["lm_head.weight"].T
        return logits

    def _next_logits(self, tokens: Sequence[int]) -> Array:
        row = np.array(tokens, np.int32)
        batch = Batch(row, row, np.ones(len(row), np.float32), np.array([len(row)]))
        return self._logits(self._forward(batch).h[-1])

    def _backward(self, batch: Batch, total: float, share: float, gradients: Matrices) -> float:
        trace, labels = self._forward(batch), find_labels(batch)
        logits = self._logits(trace.h[labels.places])
        loss = float(_cross_entropy(logits, labels.targets) @ labels.weights) / total
        d_logits = _softmax(logits)
        d_logits[np.arange(len(logits)), labels.targets] -= 1
        d_logits *= labels.weights[:, None] / np.float32(total)
        dh = np.zeros_like(trace.h)
        dh[labels.places] = d_logits @ self.weights["lm_head.weight"]
        if share:
            dh += self._pull_gradient(batch, trace.h, share)
        self._attention_backward(batch, trace, dh, gradients)
        return loss

    def _pull_gradient(self, batch: Batch, h: Array, share: float) -> Array:
        """Differentiates `share` times the squared distances of the features from the dispatched ones."""
        trained, self.factors = self.factors, self.dispatched
        fixed = self._forward(batch).h
        self.factors = trained
        means = mean_weights(batch)
        away: Array = means @ (h - fixed)
        gradient: Array = means.T @ (2 * share * away)
        return gradient

    def _attention_backward(self, batch: Batch, trace: Trace, dh: Array, gradients: Matrices) -> None:
        dz = self._linear_backward(PROJECTIONS[3], trace.z, dh, gradients)
        dq, dk, dv = (np.empty_like(dz) for _ in range(3))
        for at, weights in zip(batch.spans, trace.attention, strict=True):
            d_weights = dz[at] @ trace.v[at].T
            inner = (d_weights * weights).sum(-1, keepdims=True)
            d_scores = weights * (d_weights - inner) * np.float32(dz.shape[-1] ** -0.5)
            dq[at], dk[at], dv[at] = d_scores @ trace.k[at], d_scores.T @ trace.q[at], weights.T @ dz[at]
        for name, dy in zip(PROJECTIONS[:3], (dq, dk, dv), strict=True):
            if name in self.form:  # the embeddings below are frozen
                self._linear_backward(name, trace.x, dy, gradients)


def _attend(q: Array, k: Array) -> Array:
    """Weighs each token of one example by those before it: (length, length)."""
    scores = q @ k.T * np.float32(q.shape[-1] ** -0.5)
    scores[np.triu_indices(len(q), 1)] = -np.inf
    return _softmax(scores)


def _softmax(logits: Array) -> Array:
    shares: Array = np.exp(logits - logits.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
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
