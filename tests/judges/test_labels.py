"""From a judge's answers to data that the data layer reads, to rewards, and to revised answers."""

import json

import numpy as np
import pytest

from jaxalign.data.kinds import Preference
from jaxalign.data.records import read_records
from jaxalign.data.trees import Tree
from jaxalign.errors import UserError
from jaxalign.judges import (
    Item,
    JudgingTask,
    Principle,
    Rater,
    Reply,
    critique_and_revise,
    judge_items,
    judge_pairs,
    judge_reward,
    judge_scorer,
    label_rows,
    load_constitution,
    panel_vote,
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


def preferences(judge):
    """Returns the rows and counts that a judge's verdicts on the pairs above give."""
    items = [Item.of(*texts) for texts in zip(PROMPTS, FIRST, SECOND, strict=True)]
    lines = judge_items(Rater.of("longer", judge), items, JudgingTask())
    return label_rows(items, [[line] for line in lines], "preference")


def test_rows_are_read_back_by_the_data_layer(tmp_path):
    rows, counts = preferences(longer)
    assert counts == {"labelled": 2, "tied": 1, "failed": 1}
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    records, report = read_records(Preference, file)
    assert [(r.prompt, r.chosen, r.rejected) for r in records] == [("p0", "long one", "short"), ("p1", "xyz", "x")]
    assert report.rows_kept == 2
    one, two = rows
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

    row = preferences(cached)[0][0]
    assert (row["prompt_tokens"], row["completion_tokens"]) == (10, 4)


@pytest.mark.parametrize(("p", "chosen", "smoothing"), [(0.2, "no", 0.2), (0.7, "yes", 0.3)])
def test_both_orders_cancel_a_constant_bias(p, chosen, smoothing):
    def biased(questions):
        shown = [q[0]["content"].split("<response_b>")[0] for q in questions]
        first = [(p if "yes" in text else 1 - p) + 0.2 for text in shown]
        logs = [{"A": np.log(x), "B": np.log(max(1 - x, 1e-9))} for x in first]
        return [Reply(f"Verdict: {max(tokens, key=tokens.get)}", logprobs=(tokens,)) for tokens in logs]

    item = Item.of("Right or wrong, then?", "yes", "no")
    lines = judge_items(Rater.of("biased", biased), [item], JudgingTask())
    (row,), _ = label_rows([item], [lines], "preference", by="probabilities")
    assert row["chosen"] == chosen
    assert row["label_smoothing"] == pytest.approx(smoothing)


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
    assert label_rows([], [], "preference") == ([], {"labelled": 0, "tied": 0, "failed": 0})


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
