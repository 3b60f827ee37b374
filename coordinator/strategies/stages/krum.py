"""The updates that are farthest from their neighbours are left out."""

import math
from typing import Annotated

import numpy as np
from msgspec import Meta

from coordinator.strategies.pipeline_state import PipelineState
from coordinator.strategies.stages.contract import Stage
from coordinator.strategies.stages.gram import gram_matrix


class Krum(Stage, frozen=True, tag="krum"):
    """Leaves out the updates that are farthest from their neighbours (Blanchard et al., arXiv 1703.02757).

    Multi-Krum: an update's score is the sum of its squared distances to its K - f - 2 nearest; the f highest
    are left out. f is `hostile` of K, but no more than the paper's 2 f + 2 < K allows: a buffer of four or
    less is let through as it is. Distances are those of increments' entries in space `factors`, of true
    changes in `product`. It holds the buffer, as a merge in `product` does.
    """

    hostile: Annotated[float, Meta(ge=0.0, lt=0.5)] = 0.2

    def __call__(self, pipeline: PipelineState) -> PipelineState:
        """See `Stage`."""
        pipeline = pipeline.drop_endless()
        places = [place for place, item in enumerate(pipeline.items) if item.weight > 0]
        num = len(places)
        num_hostile = max(min(math.floor(self.hostile * num + 1e-9), (num - 3) // 2), 0)
        if num_hostile == 0:
            return pipeline
        gram = gram_matrix(pipeline.chosen, pipeline.state.adapter, pipeline.space)
        squares = np.maximum(np.diag(gram)[:, None] + np.diag(gram)[None, :] - 2 * gram, 0.0)
        np.fill_diagonal(squares, -1.0)  # sorts first: an update is no neighbour of its own
        scores = np.sort(squares, axis=1)[:, 1 : num - num_hostile - 1].sum(axis=1)
        usual = float(np.median(scores))
        farthest = np.argsort(scores, kind="stable")[-num_hostile:]
        return pipeline.drop(
            {places[far]: f"krum score {scores[far]:.3g}, median {usual:.3g}" for far in farthest}
        )
