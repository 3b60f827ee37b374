"""What one machine would reach that had all devices' rows: the reference that no fleet is expected to beat.

It takes as many optimizer steps as all devices of a fleet together, of the same size, at the same rate.
"""

import itertools
import time

from benchmarks.strategies.outcome import Outcome, Point, Settings
from benchmarks.strategies.workbench import Workbench
from edge.training.packing import iterate_batches

NUM_POINTS = 8


def train_pooled(bench: Workbench, settings: Settings) -> Outcome:
    """Trains on all rows in one run, and scores it on the way."""
    began = time.process_time()
    recipe, model = bench.lesson.recipe, bench.model
    adapter = bench.first_adapter(settings.seed)
    model.set_adapter(adapter)
    model.begin(weight_decay=recipe.weight_decay, clip_norm=recipe.clip_norm)
    examples = [example for data in bench.train_data for example in data.examples]
    num_steps = recipe.steps * settings.num_updates
    batches = iterate_batches(
        examples, seq_tokens=recipe.seq_tokens, batch_tokens=recipe.batch_tokens, seed=settings.seed
    )
    points = [_point(bench, 0, 0)]
    for step, batch in enumerate(itertools.islice(batches, num_steps), 1):
        model.step([batch], recipe.lr)
        if step % max(1, num_steps // NUM_POINTS) == 0 or step == num_steps:
            points.append(_point(bench, step, step // recipe.steps))
    own = [bench.score_present(rows) for rows in bench.own_tests]
    accuracy = sum(one.accuracy for one in own) / len(own)
    return Outcome(
        points=points,
        slow_loss=sum(one.loss for one in own) / len(own),
        slow_accuracy=accuracy,
        own_accuracy=accuracy,
        cpu_s=time.process_time() - began,
    )


def _point(bench: Workbench, step: int, num_updates: int) -> Point:
    test = bench.score_present(bench.test)
    return Point(
        version=step,
        num_updates=num_updates,
        calibration_loss=bench.calibration.loss(bench.model.adapter()),
        loss=test.loss,
        accuracy=test.accuracy,
    )
