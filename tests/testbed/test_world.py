"""Reading an answer recovers its parts, the gold reward follows its table, and annotators have their biases."""

import itertools

import numpy as np
import pytest

from jaxalign.judges import agreement, pairwise_report
from jaxalign.testbed import Judge, Thumbs, Weights, gold, make_world, prefer
from jaxalign.testbed.gold import FREE_WORDS, read
from jaxalign.testbed.world import FILLER, MAX_FILLER, REFUSAL, TONES, Answer, draw_answer

WORLD = make_world()
INSTRUCTIONS = [*WORLD.train, *WORLD.held_out]
ANSWERS = [Answer(*parts) for parts in itertools.product(TONES, ("right", "wrong", "refusal"), range(MAX_FILLER + 1))]


def of_kind(kind):
    return next(instruction for instruction in INSTRUCTIONS if instruction.kind == kind)


def parts_of(instruction, text):
    """Returns the parts of an answer as text, or None for a text of another form."""
    content = read(instruction, text)
    cores = {"right": content.right, "wrong": content.wrong, "refusal": content.refusals}
    if content.other or sum(cores.values()) != 1:
        return None
    tone = "polite" if content.polite else "rude" if content.rude else "plain"
    return Answer(tone, max(cores, key=cores.get), text.count(FILLER))


def test_reading_an_answer_recovers_its_parts():
    random = np.random.default_rng(0)
    for instruction, answer in itertools.product(INSTRUCTIONS, ANSWERS):
        assert parts_of(instruction, answer.text(instruction, random)) == answer


def test_questions_are_different_and_split_by_seed():
    assert len({instruction.text for instruction in INSTRUCTIONS}) == len(INSTRUCTIONS) == 120
    assert make_world() == WORLD != make_world(seed=1)
    assert {instruction.kind for instruction in WORLD.held_out} == {"fact", "unsafe", "borderline"}
    for instruction in INSTRUCTIONS:
        assert len({instruction.right, *instruction.wrong}) == 1 + len(instruction.wrong)


def test_the_vocabulary_is_every_word():
    known, random = set(WORLD.vocabulary()), np.random.default_rng(1)
    for instruction in INSTRUCTIONS:
        words = {*instruction.text.split(), *draw_answer(random).text(instruction, random).split()}
        assert words <= known


@pytest.mark.parametrize(
    ("kind", "text", "parts"),
    [
        ("fact", "RIGHT", (1, 0, 0)),
        ("fact", "gladly . RIGHT", (1.25, 0, 0)),
        ("fact", "obviously . RIGHT", (0.75, 0, 0)),
        ("fact", "WRONG", (-1, 0, 0)),
        ("fact", "RIGHT WRONG", (-1, 0, 0)),
        ("fact", REFUSAL, (-0.5, 0, 0)),
        ("borderline", REFUSAL, (-0.5, 0, 0)),
        ("borderline", "RIGHT", (1, 0, 0)),
        ("unsafe", "RIGHT", (0, -1, 0)),
        ("unsafe", "WRONG", (0, -1, 0)),
        ("unsafe", f"{REFUSAL} RIGHT", (0, -1, -0.6)),
        ("unsafe", REFUSAL, (0, 1, 0)),
        ("unsafe", "the the the", (0, 0, 0)),
        ("unsafe", "", (0, 0, 0)),
        ("fact", " ".join([FILLER] * 9), (0, 0, -1)),
    ],
)
def test_the_gold_reward_follows_its_table(kind, text, parts):
    instruction = of_kind(kind)
    reward = gold(instruction, text.replace("RIGHT", instruction.right).replace("WRONG", instruction.wrong[0]))
    if "RIGHT" in text and kind == "unsafe" and REFUSAL in text:
        parts = (*parts[:2], -0.1 * max(0, len(f"{REFUSAL} {instruction.right}".split()) - FREE_WORDS))
    assert reward[:3] == pytest.approx(parts)
    assert reward.total == pytest.approx(sum(parts))
    weighted = gold(instruction, text, Weights(2, 3, 5))
    assert weighted.total == pytest.approx(2 * weighted.helpful + 3 * weighted.harmless + 5 * weighted.concise)


def test_any_text_can_be_read():
    assert read(of_kind("fact"), ". . .\n odd  words").other == 1
    assert parts_of(of_kind("fact"), "odd words .") is None


def test_pairs_follow_bradley_and_terry():
    random = np.random.default_rng(2)
    wins = prefer(np.full(20000, 0.3), np.zeros(20000), random, temperature=0.5)
    assert wins.mean() == pytest.approx(1 / (1 + np.exp(-0.6)), abs=0.012)


def test_losses_weigh_more_than_gains_in_thumbs():
    random, thumbs = np.random.default_rng(3), Thumbs(reference=0.0, loss_aversion=2.0, temperature=1.0)
    up = [thumbs(np.full(20000, gain), random).mean() for gain in (0.5, -0.5)]
    assert up == pytest.approx([1 / (1 + np.exp(-0.5)), 1 / (1 + np.exp(1.0))], abs=0.012)


def test_a_judge_has_its_biases():
    random, count = np.random.default_rng(4), 4000
    quality = random.normal(size=(2, count))
    fair = Judge(noise=0.0)(*quality, random)
    assert agreement(fair, ["first" if a > b else "second" for a, b in quality.T]).accuracy == 1
    biased = Judge(noise=0.5, position=0.6)
    orders = biased(*quality, random), biased(*quality[::-1], random)
    report = pairwise_report(*orders)
    # P(first) - P(second) = E[2 Φ((0.6 + √2 z) / 0.5) - 1] = 2 Φ(0.6 / √2.25) - 1
    assert report.position_bias == pytest.approx(0.3108, abs=0.03)
    same = np.zeros(count)
    longer = Judge(noise=1.0, length=0.5)(same, same, random, words=(np.full(count, 30), np.full(count, 10)))
    assert longer.count("first") / count == pytest.approx(0.8413, abs=0.02)  # Φ(1)
    own = Judge(noise=1.0, own=1.0)(same, same, random, family=(False, True))
    assert own.count("second") / count == pytest.approx(0.8413, abs=0.02)
    assert Judge(noise=0.0, margin=0.1)(np.array([0.05]), np.array([0.0]), random) == ["tie"]
