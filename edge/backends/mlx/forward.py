"""A base model's forward pass and loss over a batch, as something that MLX can differentiate.

On a GPU a step is one compiled function of packed rows in few shapes. There positions go on from example to
example: rotary embeddings are relative, so only the mask matters; whether that holds for a base is tried out
when it is loaded. Where it does not, and on a processor, each example gets a row of its own, in micro-batches
of like lengths: MLX computes exponentials at 90 million a second there, so attention across examples that is
masked away again costs more than packing saves, and compiling means waiting for a C++ compiler.
"""

from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from edge.backends.batch_layout import WIDTH_STEP, TokenRows, group_by_length, pack_rows, round_up, row_each
from edge.backends.contract import Batch, ModelCard
from edge.backends.labels import fill_labels, find_labels, mean_weights
from edge.backends.mlx.layers import PackedRows, are_near, softmax_loss

HEAD_ROWS = 512  # labels whose logits are held at a time


class Fed(NamedTuple):
    """A batch as the model is fed with it; a tuple of arrays, as MLX's compiler wants."""

    tokens: mx.array  # (rows, width)
    segments: mx.array | None  # (rows, width), where several examples share a row
    places: mx.array  # (labels,): into the flattened rows
    targets: mx.array  # (labels,)
    weights: mx.array  # (labels,)


class Forward:
    """The forward pass of one model.

    Attributes:
        is_compiling: Shapes are to be few, as each is compiled once: arrays are filled up with what weighs
            nothing.
        has_plain_head: Logits are the head's product with the hidden states, neither scaled nor capped.
        is_packing: Several examples share a row.
    """

    def __init__(self, model: Any, card: ModelCard, *, is_compiling: bool) -> None:
        self.model, self.is_compiling = model, is_compiling
        length = max(1, min(8, card.max_tokens // 2))
        self._trial = mx.array((np.arange(2 * length) * 7 % card.vocab_size).reshape(2, length))
        self.has_plain_head = self._finds_plain_head()
        self.is_packing = is_compiling and self.packs_exactly()

    def split(self, batch: Batch) -> list[Batch]:
        """Splits a batch into those that are computed at once."""
        return [batch] if self.is_packing else group_by_length(batch)

    def rows(self, batch: Batch) -> TokenRows:
        """Lays out a batch that `split` gave."""
        if self.is_packing:
            return pack_rows(batch)
        widest = int(batch.lengths.max())
        return row_each(batch, width=-(-widest // WIDTH_STEP) * WIDTH_STEP if self.is_compiling else 0)

    def feed(self, batch: Batch, rows: TokenRows, total: float = 1.0) -> Fed:
        """Turns a batch and its rows into what the model is fed with; weights are divided by `total`."""
        labels = find_labels(batch)
        if self.is_compiling:
            labels = fill_labels(labels, round_up(len(labels.places)))
        return Fed(
            tokens=mx.array(rows.tokens),
            segments=mx.array(rows.segments) if self.is_packing else None,
            places=mx.array(rows.places[labels.places].astype(np.int32)),
            targets=mx.array(labels.targets.astype(np.int32)),
            weights=mx.array(labels.weights / np.float32(total)),
        )

    def feed_means(self, batch: Batch, rows: TokenRows) -> mx.array:
        """Returns what each position counts in each example's mean: (examples, positions)."""
        weights = mean_weights(batch, rows)
        extra = round_up(len(weights)) - len(weights) if self.is_compiling else 0
        return mx.array(np.pad(weights, ((0, extra), (0, 0))))

    def hidden(self, tokens: mx.array, segments: mx.array | None = None) -> Any:
        """Computes the hidden states before the head: (rows, width, hidden size)."""
        return self.model.model(tokens, cache=self._caches(segments))

    def states(self, tokens: mx.array, segments: mx.array | None) -> Any:
        """Computes what `logits` takes: hidden states, or logits where the model scales or caps them."""
        if self.has_plain_head:
            found = self.hidden(tokens, segments)
        else:
            found = self.model(tokens, cache=self._caches(segments))
        return found.reshape(-1, found.shape[-1])

    def logits(self, states: mx.array) -> Any:
        """Computes the logits of some of the rows that `states` gave."""
        if not self.has_plain_head:
            return states
        tied = self.model.model.embed_tokens.as_linear
        return (self.model.lm_head if "lm_head" in self.model else tied)(states)

    def loss(self, states: mx.array, fed: Fed) -> tuple[mx.array, mx.array]:
        """Computes what is differentiated, and the loss.

        The head is frozen, so the gradient at its input is worked out here from the softmax, once; left to
        MLX, the exponentials of all logits would be computed twice.
        """
        states = states[fed.places]
        loss, gradients = mx.array(0.0), []
        for at in range(0, len(fed.places), HEAD_ROWS):
            part = slice(at, at + HEAD_ROWS)
            held = mx.stop_gradient(states[part])
            logits = self.logits(held)
            targets, weights = fed.targets[part, None], fed.weights[part, None]
            some, slope = softmax_loss(logits.astype(mx.float32), targets, weights)
            gradients += mx.vjp(self.logits, [held], [slope.astype(logits.dtype)])[1]
            loss = loss + some
        return (states * mx.stop_gradient(mx.concatenate(gradients))).astype(mx.float32).sum(), loss

    def pulled_loss(
        self, states: mx.array, fed: Fed, means: mx.array, fixed: mx.array, share: mx.array
    ) -> tuple[mx.array, mx.array]:
        """Computes the same with the pull, which is differentiated too and left out of the loss."""
        hidden = states if self.has_plain_head else self.hidden(fed.tokens, fed.segments)
        away = self.average(hidden, means) - fixed
        value, loss = self.loss(states, fed)
        return value + share * away.square().sum(), loss

    def average(self, hidden: mx.array, means: mx.array) -> mx.array:
        """Averages hidden states over examples, differentiably: (examples, hidden size), float32."""
        return means @ hidden.reshape(-1, hidden.shape[-1]).astype(mx.float32)

    def check_features(self) -> None:
        """Tries to compute hidden states.

        Raises:
            AttributeError, TypeError, ValueError: mlx-lm does not show them for this model.
        """
        self.hidden(self._trial)

    def packs_exactly(self) -> bool:
        """Tries whether examples that share a row give what they give alone."""
        segments = mx.repeat(mx.array([[1, 2]]), self._trial.shape[1], axis=1)
        apart = self.model(self._trial)
        try:
            packed = self.model(self._trial.reshape(1, -1), cache=self._caches(segments))
        except (AttributeError, TypeError, ValueError):
            return False
        return are_near(packed.reshape(apart.shape), apart)

    def _finds_plain_head(self) -> bool:
        # Tried on a few tokens rather than kept as a list of architectures.
        self.has_plain_head = True
        try:
            return are_near(self.logits(self.hidden(self._trial)), self.model(self._trial))
        except (AttributeError, TypeError, ValueError):
            return False

    def _caches(self, segments: mx.array | None) -> list[PackedRows] | None:
        return None if segments is None else [PackedRows(segments)] * len(self.model.layers)
