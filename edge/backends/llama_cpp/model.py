"""The llama.cpp backend: LoRA on GGUF weights of any quantisation, with llama.cpp and numpy alone.

llama.cpp computes the forward pass from the file's own weights, `gradients/` the way back. Examples lie end
to end as sequences of one batch, so none sees another and there is no padding; logits are computed at labels
only. All factors lie in one vector in canonical order, as in the torch backend.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converters.adapter import LoraAdapter
from converters.bases.gguf import GgufBase, read_gguf
from converters.bases.targets import check_fit
from converters.parallel import count_processors
from edge.backends.adamw import AdamW
from edge.backends.contract import Batch, Ends, ModelCard, OnToken, Prompts, Sampling, Score, Snapshot
from edge.backends.labels import average_examples, find_labels, mean_weights, sum_score
from edge.backends.llama_cpp.context import MAX_SEQUENCES, Context, Model
from edge.backends.llama_cpp.gradients.forward import Forward
from edge.backends.llama_cpp.gradients.graph import Node, Route, record_graph
from edge.backends.llama_cpp.gradients.operations import OPERATIONS
from edge.backends.llama_cpp.gradients.route import make_route
from edge.backends.llama_cpp.gradients.tape import Lora, Tape
from edge.backends.llama_cpp.head import apply_head
from edge.backends.llama_cpp.memory import Memory, Room, context_tokens
from edge.backends.llama_cpp.selftest import ensure_tested
from edge.backends.llama_cpp.tokenizer import GgufTokenizer
from edge.backends.llama_cpp.weights import Multiplier, Threads
from edge.backends.parameters import (
    check_mask,
    form_of,
    from_vector,
    mask_vector,
    split_vector,
    to_vector,
)
from edge.backends.sampling import continue_text
from edge.choices import Precision
from edge.errors import BackendError, OutOfMemory

Array = NDArray[np.float32]
GROUP_TOKENS = 256  # unless one example is longer; with 512 attention costs more than fewer passes save


def load_model(
    base: Path, *, precision: Precision = "auto", seed: int = 0, memory: Memory | None = None
) -> "LlamaCppModel":
    """Loads a GGUF file, in float32 alone, where `memory` suffices; see `Loader`."""
    if precision not in ("auto", "float32"):
        raise BackendError("backend llama_cpp computes in float32 only; choose precision auto or float32")
    gguf = read_gguf(base)
    room = Room(gguf, memory)
    room.take(0, 0, keeps=False)
    ensure_tested()
    return LlamaCppModel(gguf, Model(base), room)


class LlamaCppModel:
    """A loaded GGUF model; see `TrainableModel`."""

    def __init__(self, gguf: GgufBase, model: Model, room: Room) -> None:
        self.gguf, self.model, self.naming = gguf, model, gguf.naming()
        self.num_threads = count_processors()
        self.tokenizer = GgufTokenizer(model)
        self.card = ModelCard(
            backend="llama_cpp",
            modules={name: shape for name, shape in gguf.modules.items() if name != "lm_head"},
            max_tokens=model.max_tokens,
            vocab_size=model.vocab_size,
            num_parameters=model.num_parameters,
        )
        self.threads = Threads(self.num_threads)
        self.multiplier = Multiplier(self.threads)
        self.room = room
        self.context: Context | None = None
        self.graphs: dict[bool, list[Node]] = {}
        self.set_adapter(LoraAdapter({}))

    def set_adapter(self, adapter: LoraAdapter) -> None:
        """See `Model.set_adapter`."""
        check_fit(adapter, self.card.modules, f"adapter does not fit {self.gguf.path}")
        self.form = form_of(adapter)
        self.parameters = to_vector(self._in_file_order(adapter))
        self.summed = np.zeros_like(self.parameters)
        gradients = split_vector(self.summed, self.form)
        self.loras = {
            self.naming.tensors[name].removesuffix(".weight"): Lora(
                *factors, np.float32(self.form[name].scale), *gradients[name]
            )
            for name, factors in split_vector(self.parameters, self.form).items()
        }
        self.routes: dict[bool, Route] = {}
        self.begin(weight_decay=0.0, clip_norm=0.0)

    def adapter(self) -> LoraAdapter:
        """See `Model.adapter`."""
        return self._as_adapter(self.parameters)

    def score(self, batch: Batch) -> Score:
        """See `Model.score`."""
        losses, predicted = [np.zeros(0, np.float32)], [np.zeros(0, np.int64)]
        with self.threads.alone():
            for group in make_groups(batch):
                is_label = group.weights != 0
                tape, hidden = self._forward(group, is_label, keeps=False)
                found = apply_head(hidden, tape.route.head, self.multiplier, group.targets[is_label])
                losses.append(found.losses)
                predicted.append(found.predicted)
        return sum_score(batch, find_labels(batch), np.concatenate(losses), np.concatenate(predicted))

    def features(self, batch: Batch) -> Array:
        """See `Model.features`."""
        with self.threads.alone():
            hidden = [
                self._forward(group, np.ones(group.num_tokens, np.bool_), keeps=False)[1]
                for group in make_groups(batch, needs_labels=False)
            ]
        return average_examples(batch, np.concatenate(hidden))

    def generate(
        self, prompts: Prompts, sampling: Sampling, ends: Ends = None, on_token: OnToken = lambda *_: None
    ) -> list[list[int]]:
        """See `Model.generate`."""
        random = np.random.default_rng(sampling.seed)
        stops = {self.tokenizer.eos_id} if ends is None else ends
        found: list[list[int]] = []
        for index, prompt in enumerate(prompts):
            limit, tell = (
                min(len(prompt) + sampling.max_tokens, self.card.max_tokens),
                partial(on_token, index),
            )
            with self._reading_on(limit) as next_logits:
                found.append(continue_text(prompt, limit, next_logits, sampling, random, stops, tell))
        return found

    def begin(
        self, *, weight_decay: float, clip_norm: float, pull: float = 0.0, mask: LoraAdapter | None = None
    ) -> None:
        """See `TrainableModel.begin`."""
        if mask is not None:
            check_mask(mask, self.form)
            mask = self._in_file_order(mask)
        self.pull = pull
        self.dispatched = self.parameters.copy() if pull else None
        self.optimizer = AdamW(self.parameters, weight_decay, clip_norm, mask_vector(mask, self.form))

    def step(self, batches: Sequence[Batch], lr: float) -> float:
        """See `TrainableModel.step`."""
        loss = self._differentiate(batches, self.pull)
        self.optimizer.step(self.summed, lr)
        return loss

    def descend(self, gradient: LoraAdapter, lr: float) -> None:
        """See `TrainableModel.descend`."""
        self.optimizer.step(to_vector(self._in_file_order(gradient)), lr)

    def gradient(self, batches: Sequence[Batch]) -> tuple[float, LoraAdapter]:
        """See `TrainableModel.gradient`."""
        loss = self._differentiate(batches, 0.0)
        return loss, self._as_adapter(self.summed)

    def pull_back(self, batch: Batch, cotangent: Array) -> LoraAdapter:
        """See `TrainableModel.pull_back`."""
        with self._summing():
            left = cotangent
            for group in make_groups(batch, needs_labels=False):
                means = mean_weights(group)
                tape, _ = self._forward(group, np.ones(group.num_tokens, np.bool_), keeps=True)
                if self.loras:
                    tape.backward(means.T @ left[: len(means)])
                left = left[len(means) :]
        return self._as_adapter(self.summed)

    def snapshot(self) -> Snapshot:
        """See `TrainableModel.snapshot`."""
        return {"factors": self.parameters.copy(), **self.optimizer.snapshot()}

    def restore(self, snapshot: Snapshot) -> None:
        """See `TrainableModel.restore`."""
        self.parameters[:] = snapshot["factors"]
        self.optimizer.restore(snapshot)

    def _in_file_order(self, adapter: LoraAdapter) -> LoraAdapter:
        """Puts the rows of b where the file has them."""
        return LoraAdapter({name: f._replace(b=self.naming.to_file_rows(name, f.b)) for name, f in adapter})

    def _as_adapter(self, vector: Array) -> LoraAdapter:
        """Returns the adapter whose factors are `vector`, which is in the file's order."""
        return LoraAdapter(
            {
                name: f._replace(b=self.naming.to_hub_rows(name, f.b))
                for name, f in from_vector(vector, self.form)
            }
        )

    @contextmanager
    def _summing(self) -> Iterator[None]:
        """Sums up gradients from 0."""
        self.summed[:] = 0
        try:
            with self.threads.alone():
                yield
        except MemoryError as error:
            raise OutOfMemory(f"backend llama_cpp: {error}") from error

    def _differentiate(self, batches: Sequence[Batch], pull: float) -> float:
        """Returns the loss; sums up the gradient of the loss and the pull together."""
        total = sum(float(batch.weights.sum()) for batch in batches)
        share = pull / sum(batch.num_examples for batch in batches)
        with self._summing():
            groups = (group for batch in batches for group in make_groups(batch, needs_labels=not share))
            return float(sum(self._backward(group, total, share) for group in groups))

    @contextmanager
    def _reading_on(self, limit: int) -> Iterator[Callable[[Sequence[int]], Array]]:
        """Opens a context for a text of up to `limit` tokens; yields what computes the logits behind it."""
        self.room.take(limit, limit, self.parameters.size, keeps=False)
        context = Context(self.model, limit, 1, self.num_threads)
        done = 0

        def next_logits(tokens: Sequence[int]) -> Array:
            nonlocal done
            new, begin = np.array(tokens[done:], np.int32), done
            done = len(tokens)
            tape = self._tape(context, len(new) == 1, np.arange(begin, done, dtype=np.int32))
            return Forward(tape, keeps=False).logits(context, new)

        try:
            for everywhere in (False, True):
                self._route(context, everywhere)  # a graph is recorded while the context is empty
            yield next_logits
        finally:
            context.close()

    def _route(self, context: Context, everywhere: bool) -> tuple[list[Node], Route]:
        if everywhere not in self.graphs:
            self.graphs[everywhere] = record_graph(context, everywhere=everywhere)
        nodes = self.graphs[everywhere]
        if everywhere not in self.routes:
            self.routes[everywhere] = make_route(nodes, frozenset(self.loras))
        return nodes, self.routes[everywhere]

    def _forward(self, group: Batch, is_output: NDArray[np.bool_], *, keeps: bool) -> tuple[Tape, Array]:
        """Computes the hidden states before the head where `is_output`; returns the tape, too."""
        longest = int(group.lengths.max())
        self.room.take(group.num_tokens, longest, self.parameters.size, keeps=keeps)
        context = self._open(group.num_tokens)
        tape = self._tape(context, bool(is_output.all()), group.positions)
        run = Forward(tape, keeps=keeps).run
        return tape, run(context, group.tokens, group.owners.astype(np.int32), is_output)

    def _tape(self, context: Context, everywhere: bool, positions: NDArray[np.int32]) -> Tape:
        nodes, route = self._route(context, everywhere)
        return Tape(nodes, route, self.loras, self.multiplier, positions, OPERATIONS)

    def _open(self, num_tokens: int) -> Context:
        """Opens a context with room for so many tokens, unless the one there is suffices."""
        if self.context is None or self.context.num_tokens < num_tokens:
            if self.context is not None:
                self.context.close()
                self.context = None
            self.context = Context(self.model, context_tokens(num_tokens), MAX_SEQUENCES, self.num_threads)
        return self.context

    def _backward(self, group: Batch, total: float, share: float) -> float:
        is_label = group.weights != 0
        is_output = np.ones_like(is_label) if share else is_label
        fixed = self._dispatched_hidden(group) if share else None
        tape, hidden = self._forward(group, is_output, keeps=True)
        weights = group.weights[is_label] / np.float32(total)
        at_labels = hidden[is_label[is_output]]
        found = apply_head(at_labels, tape.route.head, self.multiplier, group.targets[is_label], weights)
        if self.loras and found.d_hidden is not None:
            d_hidden: Array = found.d_hidden
            if fixed is not None:
                means = mean_weights(group)
                away: Array = means @ (hidden - fixed)
                d_hidden = means.T @ (2 * share * away)
                d_hidden[is_label] += found.d_hidden
            tape.backward(d_hidden)
        return float(found.losses.astype(np.float64) @ weights)

    def _dispatched_hidden(self, group: Batch) -> Array:
        """Computes hidden states of all tokens with the adapter that was there at `begin`."""
        assert self.dispatched is not None
        trained = self.parameters.copy()
        self.parameters[:] = self.dispatched
        try:
            return self._forward(group, np.ones(group.num_tokens, np.bool_), keeps=False)[1]
        finally:
            self.parameters[:] = trained


def make_groups(batch: Batch, *, needs_labels: bool = True) -> Iterator[Batch]:
    """Cuts a batch into groups of whole examples, each of which llama.cpp computes at once.

    Examples without a label are left out unless all are needed.
    """
    chosen: list[int] = []
    held = 0
    for index, (at, length) in enumerate(zip(batch.spans, batch.lengths.tolist(), strict=True)):
        if needs_labels and not batch.weights[at].any():
            continue
        if chosen and (held + length > GROUP_TOKENS or len(chosen) == MAX_SEQUENCES):
            yield batch.select(chosen)
            chosen, held = [], 0
        chosen.append(index)
        held += length
    if chosen:
        yield batch.select(chosen)
