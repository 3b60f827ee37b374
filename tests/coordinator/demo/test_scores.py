import asyncio
import io
from importlib.util import find_spec

import pytest
from rich.console import Console

from coordinator.demo.files import Paths
from coordinator.demo.plan import MODEL, DemoPlan
from coordinator.demo.processes import Children
from coordinator.demo.scores import MAX_ANSWER_TOKENS, Scoring
from coordinator.demo.shown.screen import open_screen
from edge.training.requests import Generation, Sampling
from edge.training.worker.supervisor import Worker

PROMPT = "Set the lamp in the bedroom to 30 percent.\n"


@pytest.mark.torch
@pytest.mark.skipif(not find_spec("transformers"), reason="needs the torch extra")
def test_a_sentence_is_answered_as_it_was_trained_on_and_not_as_a_chat(tmp_path):
    async def run():
        screen = open_screen(Console(file=io.StringIO()), "here")
        async with Children(tmp_path, 1) as children:
            scoring = Scoring(children, Paths(tmp_path), DemoPlan((), ()), screen, 1)
            answered = await scoring.answers("base", [PROMPT], None)
        async with Worker(MODEL, "torch") as worker:
            return answered, await worker.generate(
                Generation(prompts=(PROMPT,), sampling=Sampling(max_tokens=MAX_ANSWER_TOKENS))
            )

    answered, plain = asyncio.run(run())
    assert answered == [one.text for one in plain]
