"""Who is answered by nothing is told once, and again only after an answer."""

from edge.delivery.silence import AFTER_S, Silence


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_minute_without_any_answer_is_told_once():
    clock, said = Clock(), []
    silence = Silence(lambda: said.append(clock.now), clock)
    for clock.now in (0.0, 30.0, AFTER_S - 0.1, AFTER_S, AFTER_S + 10, 10 * AFTER_S):
        silence.asked()
    assert said == [AFTER_S]


def test_an_answer_begins_the_minute_anew():
    clock, said = Clock(), []
    silence = Silence(lambda: said.append(clock.now), clock)
    silence.asked()
    clock.now = AFTER_S - 1
    silence.heard()
    for clock.now in (AFTER_S + 5, 2 * AFTER_S, 2 * AFTER_S + 5):
        silence.asked()
    assert said == [2 * AFTER_S + 5]
