"""A base model's forward pass over a batch: laid out as the model takes it, logits only at labels.

On a processor examples lie end to end in one row, without padding, and attention is computed example by
example. On a GPU several examples share a row of one width, and transformers masks. Where a model does not
tell examples apart, each gets a row of its own. What a model can do is seen on a few tokens when it is
loaded, rather than kept as a list of architectures.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge.backends.batch_layout import Layout, TokenRows, one_row, pack_rows, round_up, row_each
from edge.backends.contract import Batch, ModelCard
from edge.backends.labels import fill_labels, find_labels, mean_weights
from edge.backends.torch.layers import HEAD_ROWS


class Fed(NamedTuple):
    """A batch as the model is fed with it."""

    batch: Batch
    rows: TokenRows
    inputs: dict[str, Any]
    places: Tensor  # (labels,): into the flattened rows
    targets: Tensor  # (labels,)
    weights: Tensor  # (labels,)


class Forward:
    """The forward pass of one model.

    Attributes:
        layout: How a batch becomes rows.
        has_plain_head: Logits are the head's product with the hidden states, neither scaled nor capped.
        fills_up: Lengths are filled up to few. In bfloat16 oneDNN compiles a kernel for each shape of a
            product, of half a megabyte or more, and two caches, its own and torch's, keep 1,024 each: on rows
            of all lengths a model of 2.6 million parameters grew from 0.38 to 1.43 GB in 80 steps. Without
            its own cache it took 0.95 GB, without torch's 1.06, without either 0.46, at a third of the speed;
            malloc's arenas changed nothing. With lengths filled up to few it takes 0.6 GB and is no slower;
            smaller caches bound what is left.
    """

    def __init__(self, model: Any, card: ModelCard) -> None:
        self.model, self.head = model, model.get_output_embeddings()
        self.fills_up = model.device.type == "cpu" and model.dtype != torch.float32
        self.layout: Layout = row_each
        self.has_plain_head = True
        self._probe(card)

    def feed(self, batch: Batch) -> Fed:
        """Lays a batch out."""
        rows = self.layout(batch)
        if self.fills_up and self.layout is one_row:
            rows = one_row(batch, width=round_up(batch.num_tokens, sizes=8))
        labels = find_labels(batch)
        if self.fills_up:
            labels = fill_labels(labels, round_up(len(labels.places), sizes=8))
        inputs: dict[str, Any] = {
            "input_ids": self.tensor(rows.tokens.astype(np.int64)),
            "position_ids": self.tensor(rows.positions.astype(np.int64)),
            "use_cache": False,
        }
        if self.layout is one_row:  # an empty mask, for transformers to make none itself
            inputs |= {"attention_mask": torch.zeros(1, 1, 1, 1), "example_lengths": batch.lengths.tolist()}
        # Else transformers reads from positions that start anew where an example begins.
        places, targets, weights = rows.places[labels.places], labels.targets, labels.weights
        return Fed(batch, rows, inputs, self.tensor(places), self.tensor(targets), self.tensor(weights))

    def hidden(self, fed: Fed) -> Tensor:
        """Computes the hidden states before the head: (positions, hidden size)."""
        output = self.model.base_model(**fed.inputs)
        return cast(Tensor, output.last_hidden_state).flatten(0, 1)

    def logits(self, fed: Fed) -> Iterator[Tensor]:
        """Computes the logits at the labels, `HEAD_ROWS` at a time."""
        if self.has_plain_head:
            yield from (self.head(part) for part in self.hidden(fed)[fed.places].split(HEAD_ROWS))
        else:
            yield from self.hidden_and_logits(fed)[1].split(HEAD_ROWS)

    def hidden_and_logits(self, fed: Fed) -> tuple[Tensor, Tensor]:
        """Computes both where logits are scaled or capped, with the head applied at the labels only."""
        hidden: list[Tensor] = []
        hooks = [
            self.model.base_model.register_forward_hook(
                lambda _, __, output: hidden.append(output.last_hidden_state)
            ),
            self.head.register_forward_pre_hook(lambda _, inputs: (inputs[0].flatten(0, 1)[fed.places],)),
        ]
        try:
            logits = cast(Tensor, self.model(**fed.inputs).logits)
        finally:
            for hook in hooks:
                hook.remove()
        return hidden[0].flatten(0, 1), logits

    def average(self, fed: Fed, hidden: Tensor) -> Tensor:
        """Averages hidden states over examples, differentiably: (examples, hidden size), float32."""
        return self.tensor(mean_weights(fed.batch, fed.rows)) @ hidden.float()

    def tensor(self, array: NDArray[Any]) -> Tensor:
        """Copies an array to where the model is."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.model.device)

    def _probe(self, card: ModelCard) -> None:
        length = min(8, card.max_tokens)
        tokens = np.arange(2 * length, dtype=np.int32) * 7 % card.vocab_size
        lengths = np.array([length, length])
        batch = Batch(tokens, tokens, np.ones(len(tokens), np.float32), lengths)
        filled, self.fills_up = self.fills_up, False
        with torch.inference_mode():
            apart = self.feed(batch)
            hidden = self.hidden(apart)
            logits = self.model(**apart.inputs).logits.flatten(0, 1)
            self.has_plain_head = torch.allclose(
                self.head(hidden).float(), logits.float(), rtol=1e-3, atol=1e-4
            )
            close = partial(self._agrees, batch, hidden)
            layouts = (one_row, pack_rows) if self.model.device.type == "cpu" else (pack_rows,)
            self.layout = next(filter(close, layouts), row_each)
        self.fills_up = filled

    def _agrees(self, batch: Batch, hidden: Tensor, layout: Layout) -> bool:
        self.layout = layout
        try:
            fed = self.feed(batch)
            found = self.hidden(fed)[self.tensor(fed.rows.places)]
        except (TypeError, ValueError, NotImplementedError):  # a model that does not hand segments down
            return False
        difference = (found - hidden).float().norm() / hidden.float().norm()
        return bool(difference < (1e-4 if hidden.dtype == torch.float32 else 3e-2))
