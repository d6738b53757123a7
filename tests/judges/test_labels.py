"""From a judge's answers to data that the data layer reads, to rewards, and to revised answers."""

import json

import numpy as np
import pytest

from jaxalign.data.records import read_preferences
from jaxalign.data.trees import Tree
from jaxalign.errors import UserError
from jaxalign.judges import (
    Principle,
    Reply,
    critique_and_revise,
    judge_pairs,
    judge_reward,
    judge_scorer,
    load_constitution,
    panel_vote,
    preference_rows,
)
from jaxalign.rewards import compute_rewards

LOGS = {"A": ({"A": np.log(0.8), "B": np.log(0.2)},), "B": ({"A": np.log(0.3), "B": np.log(0.7)},)}


def longer(questions):
    """Prefers the longer response, by the principle of brevity the shorter; question marks confuse it."""
    replies = []
    for question in questions:
        text = question[0]["content"]
        one, two = (text.split(f"<response_{side}>")[1].split("</response")[0].strip() for side in "ab")
        if "?" in one + two:
            replies.append(Reply("who am I to say", prompt_tokens=5, completion_tokens=2))
        elif len(one) == len(two):
            replies.append(Reply("Verdict: tie"))
        else:
            side = "A" if (len(one) > len(two)) != ("time" in text) else "B"
            replies.append(Reply(f"Verdict: {side}", logprobs=LOGS[side], prompt_tokens=5, completion_tokens=2))
    return replies


PROMPTS = ["p0", "p1", "p2", "p3"]
FIRST = ["long one", "x", "same", "what?"]
SECOND = ["short", "xyz", "size", "so"]


def test_rows_are_read_back_by_the_data_layer(tmp_path):
    labelled = preference_rows(PROMPTS, FIRST, SECOND, judge_pairs(longer, PROMPTS, FIRST, SECOND), judge="longer")
    assert (len(labelled.rows), labelled.ties, labelled.failures) == (2, 1, 1)
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in labelled.rows))
    records, report = read_preferences(file)
    assert [(r.prompt, r.chosen, r.rejected) for r in records] == [("p0", "long one", "short"), ("p1", "xyz", "x")]
    assert report.rows_kept == 2
    one, two = labelled.rows
    assert (one["first_order"], one["second_order"], one["judge"]) == ("first", "second", "longer")
    # Both orders: the chosen response has 0.8 where it is shown first and 0.7 where second, whichever it is.
    assert one["probability"] == pytest.approx(0.75)
    assert two["probability"] == pytest.approx(0.75)
    assert two["label_smoothing"] == pytest.approx(0.25)
    assert (one["prompt_tokens"], one["completion_tokens"]) == (10, 4)
    assert one["prompt_hash"] != two["prompt_hash"]


def test_a_label_costs_what_its_answers_did_when_they_were_had():
    def cached(questions):
        return [reply._replace(cached=True) for reply in longer(questions)]

    row = preference_rows(PROMPTS, FIRST, SECOND, judge_pairs(cached, PROMPTS, FIRST, SECOND), judge="x").rows[0]
    assert (row["prompt_tokens"], row["completion_tokens"]) == (10, 4)


def test_one_verdict_for_each_principle_and_a_vote_by_weight():
    principles = load_constitution()
    verdicts = {}
    for principle in principles:
        judged = judge_pairs(longer, PROMPTS[:1], FIRST[:1], SECOND[:1], principles=[principle])
        verdicts[principle.id] = [judged[0].first_order]
    assert verdicts == {"helpful": ["first"], "harmless": ["first"], "honest": ["first"], "brief": ["second"]}
    assert panel_vote(verdicts, {principle.id: principle.weight for principle in principles}) == ["first"]
    assert panel_vote(verdicts, {"helpful": 1, "harmless": 1, "honest": 1, "brief": 9}) == ["second"]


def test_nothing_to_judge():
    assert judge_pairs(longer, [], [], []) == []
    assert preference_rows([], [], [], [], judge="x").rows == []


def test_a_judge_is_a_reward_function():
    def grade(questions):
        return [Reply("Score: 9") if "good" in question[0]["content"] else Reply("Hm.") for question in questions]

    texts, rows = ["good", "bad"], [{}, {}]
    assert compute_rewards(judge_reward(grade, on_failure=0.0), ["p", "p"], texts, rows).tolist() == [0.9, 0.0]
    with pytest.raises(UserError, match="Row 2: the judge gave no score"):
        compute_rewards(judge_reward(grade), ["p", "p"], texts, rows)


class DecodeIds:
    """A tokenizer whose text is the ids."""

    def decode(self, ids, skip_special_tokens=False):
        return " ".join(str(int(i)) for i in ids)


def test_a_judge_scores_the_completion_it_prefers_in_both_orders():
    def judge(questions):
        verdicts = []
        for (message,) in questions:
            first, second = message["content"].split("<response_b>")
            likes = "A" if "7" in first.split("<response_a>")[1] else "B" if "7" in second else "A"
            verdicts.append(Reply(f"Verdict: {likes}"))
        return verdicts

    trees = [Tree.of([3], [[7, 4], [5]]), Tree.of([3], [[5], [7]]), Tree.of([3], [[5], [6]])]
    scores = judge_scorer(judge, DecodeIds())(trees, [{}] * 3)
    assert scores.tolist() == [[1, 0], [0, 1], [0, 0]]  # the last pair: "A" in both orders is not a preference


def test_critique_and_revision_uses_each_critique_once():
    asked = []

    def judge(questions):
        asked.append([question[0]["content"] for question in questions])
        if len(asked) == 1:
            return [Reply("CRIT0"), Reply(None, "500"), Reply("CRIT2"), Reply("CRIT3")]
        return [Reply("Sure: <revision>\nnew0\n</revision>"), Reply("<revision>cut o"), Reply("no tags")]

    rule = Principle("kind", "Be kind.")
    results = critique_and_revise(judge, list("pqrs"), ["d0", "d1", "d2", "d3"], [rule] * 4)
    assert [r.critique for r in results] == ["CRIT0", None, "CRIT2", "CRIT3"]
    assert [r.revision for r in results] == ["new0", None, None, None]
    assert [r.row() for r in results] == [{"prompt": "p", "completion": "new0"}, None, None, None]
    assert len(asked[1]) == 3
    assert all(f"CRIT{i}" in text and f"d{i}" in text for i, text in zip((0, 2, 3), asked[1], strict=True))
    assert all("Be kind." in text for text in asked[0] + asked[1])
