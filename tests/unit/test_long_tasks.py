# SPDX-License-Identifier: Apache-2.0
"""Every generator of long-context tasks against the definition of its task."""

import random
import re
import uuid
from collections import Counter
from pathlib import Path

import long_tasks
import pytest
from long_tasks import NEW_TOKENS, QUESTION_TASKS, RULER, TASKS, Corpus, Example, Materials, Message, Place
from long_tasks.conversation import NUM_TURNS, conversations
from long_tasks.corpus import NOISE, with_inserted
from long_tasks.example import fit
from long_tasks.needles import NEEDLE_TASKS
from long_tasks.questions import SHIPPED, read_questions
from synthetic import is_one_sentence

TOKENS, COUNT = 4096, 5
NUMBER, KEY = r"\d{7}", r"[a-z]{4,10}-[a-z]{4,10}"
UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"


def words(text: str) -> list[int]:
    """Tokenizer of the tests: four characters a token, about what a real one needs."""
    return [int.from_bytes(text[i : i + 4].encode()[:4].ljust(4), "little") for i in range(0, len(text), 4)]


@pytest.fixture(scope="module")
def materials() -> Materials:
    return Materials.shipped()


@pytest.fixture(scope="module")
def made(materials: Materials) -> dict[str, list[Example]]:
    return {task: long_tasks.examples(task, TOKENS, words, materials, count=COUNT, seed=3) for task in TASKS}


def needles_of(task: str, text: str) -> list[tuple[str, str]]:
    spec = NEEDLE_TASKS[task]
    key, value = (KEY if spec.keys == "words" else UUID), (NUMBER if spec.values == "numbers" else UUID)
    return re.findall(rf"One of the special magic {spec.values} for ({key}) is: ({value})\.", text)


def test_ruler_has_its_thirteen_tasks() -> None:
    assert RULER == (
        "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3",
        "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe", "qa_1", "qa_2",
    )  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_lengths_are_within_bounds(made: dict[str, list[Example]], task: str) -> None:
    limit = TOKENS - NEW_TOKENS[task]
    # A paragraph is a large unit; of all else nearly all of the length is used.
    slack = 400 if task in QUESTION_TASKS else 60
    assert all(limit - slack <= len(each.token_ids) <= limit for each in made[task])
    assert {each.new_tokens for each in made[task]} == {NEW_TOKENS[task]}


@pytest.mark.parametrize("task", TASKS)
def test_examples_are_repeatable_and_differ(made: dict[str, list[Example]], materials: Materials, task: str) -> None:
    assert long_tasks.examples(task, TOKENS, words, materials, count=COUNT, seed=3) == made[task]
    assert len({each.message.text for each in made[task]}) == COUNT
    (other,) = long_tasks.examples(task, TOKENS, words, materials, count=1, seed=4)
    assert other.message.text not in {each.message.text for each in made[task]}


@pytest.mark.parametrize("task", [task for task in TASKS if task not in ("cwe", "fwe")])
def test_answers_stand_in_their_marks_and_nowhere_else(made: dict[str, list[Example]], task: str) -> None:
    for each in made[task]:
        text = each.message.text
        assert all(text.count(mark) == 1 for mark in each.message.marks)
        for mark in each.message.marks:
            text = text.replace(mark, "")
        inside = "\n".join(each.message.marks).lower()
        for answer in each.message.answers:
            assert answer.lower() not in text.lower(), (answer, task)
            assert task in QUESTION_TASKS or answer.lower() in inside
        assert any(answer.lower() in inside for answer in each.message.answers)


@pytest.mark.parametrize("task", [task for task in TASKS if task not in ("cwe", "fwe", "vt")])
def test_depths_are_spread_over_the_text(made: dict[str, list[Example]], task: str) -> None:
    for index, each in enumerate(made[task]):
        text = each.message.text
        depth = text.index(each.message.marks[0]) / len(text)
        # Units differ in length and instructions stand around them.
        assert index / COUNT - 0.15 <= depth <= (index + 1) / COUNT + 0.15


@pytest.mark.parametrize("task", NEEDLE_TASKS)
def test_needles(made: dict[str, list[Example]], task: str) -> None:
    spec = NEEDLE_TASKS[task]
    for each in made[task]:
        text, answers = each.message.text, each.message.answers
        found = needles_of(task, text)
        keys = Counter(key for key, _ in found)
        assert len({value for _, value in found}) == len(found)
        if spec.haystack == "needles":
            assert len(found) > 60
            assert len(text.splitlines()) == len(found) + 2
        else:
            assert len(found) == spec.num_keys * spec.num_values
        assert set(keys.values()) == {spec.num_values}
        assert len(answers) == spec.num_queries * spec.num_values
        question = text.splitlines()[-1]
        asked = [key for key in keys if key in question]
        assert len(asked) == spec.num_queries
        assert sorted(value for key, value in found if key in asked) == sorted(answers)
        assert all(key in each.message.prefix for key in asked)
        if spec.values == "uuids":
            assert all(uuid.UUID(value).version == 4 for _, value in found)


def test_haystacks_are_what_the_tasks_say(made: dict[str, list[Example]], materials: Materials) -> None:
    for each in made["niah_single_1"]:
        lines = each.message.text.splitlines()[1:-1]
        (needle,) = each.message.marks
        assert [line for line in lines if line != needle] == [NOISE[i % 5] for i in range(len(lines) - 1)]
    sentences = materials.corpus.sentences
    for task in ("niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multivalue", "niah_multiquery"):
        text = made[task][0].message.text
        assert sum(sentence in text for sentence in sentences if len(sentence) > 60) > 20


def test_variable_tracking(made: dict[str, list[Example]]) -> None:
    for each in made["vt"]:
        example, question = each.message.text.split("\n\nMemorize")
        assert [len(re.findall(r"^VAR ", part, re.M)) for part in (example, question)] == [5, 5]
        value = re.search(r"assigned the value (\d{5}) in", question).group(1)
        follow, chain = {value: None}, []
        for name, source in re.findall(r"^VAR ([A-Z]{5}) = (?:VAR )?(\w+)$", question, re.M):
            assert source in follow, "an assignment stands before what it copies"
            follow[name] = source
            chain.append(name)
        assert chain == list(each.message.answers)
        assert not set(re.findall(r"[A-Z]{5}", example)) & set(chain)
        assert example.endswith(" ".join(re.findall(r"^VAR ([A-Z]{5})", example, re.M)))
        assert f"5 variables are assigned the value {value}" in each.message.prefix
    firsts = [each.message.text.index(each.message.marks[0]) / len(each.message.text) for each in made["vt"]]
    assert firsts == sorted(firsts)
    assert firsts[-1] - firsts[0] > 0.4


def test_common_words(made: dict[str, list[Example]]) -> None:
    for each in made["cwe"]:
        example, question = each.message.text.split("\n\nBelow is")
        listed = re.findall(r"(\d+)\. ([a-z]+)", question)
        assert [int(number) for number, _ in listed] == list(range(1, len(listed) + 1))
        counts = Counter(word for _, word in listed)
        assert sorted(word for word, count in counts.items() if count == 30) == sorted(each.message.answers)
        assert len(each.message.answers) == 10
        assert {count for word, count in counts.items() if word not in each.message.answers} == {3}
        assert not set(re.findall(r"\d+\. ([a-z]+)", example)) & set(counts)
        # Random order: the common words are not all in front, as they would be if unshuffled.
        places = [i for i, (_, word) in enumerate(listed) if word in each.message.answers]
        assert 0.4 < sum(places) / len(places) / len(listed) < 0.6


def test_frequent_words(made: dict[str, list[Example]]) -> None:
    for each in made["fwe"]:
        coded = each.message.text.split("coded words. ")[1].split("\nQuestion")[0].split()
        counts = Counter(coded).most_common()
        assert counts[0][0] == "...."
        assert [word for word, _ in counts[1:4]] == list(each.message.answers)
        assert counts[3][1] > counts[4][1], "the third is a tie"
        assert all(re.fullmatch(r"[a-z]{6}", word) for word, _ in counts[1:])
        # Zeta with exponent 2: the k-th word is k^2 times rarer than the first.
        for rank in (2, 3, 4):
            assert counts[rank - 1][1] == pytest.approx(counts[0][1] / rank**2, abs=1.0)


@pytest.mark.parametrize("task", QUESTION_TASKS)
def test_questions(made: dict[str, list[Example]], task: str) -> None:
    for each in made[task]:
        documents = re.findall(r"^Document (\d+):$", each.message.text, re.M)
        assert documents == [str(number) for number in range(1, len(documents) + 1)]
        assert len(documents) > 10
        assert len(each.message.marks) == QUESTION_TASKS[task]
        assert each.message.text.count("Answer the question based on the given documents.") == 2


def test_shipped_questions_need_their_paragraphs(materials: Materials) -> None:
    asked = read_questions(SHIPPED)
    assert len({each.question for each in asked}) == len(asked) >= 30
    for each in asked:
        assert each.answers[0].lower() not in each.question.lower()
        for paragraph in each.paragraphs:
            assert paragraph == " ".join(paragraph.split())
        # With two hops, only one paragraph holds the answer.
        assert sum(any(a.lower() in p.lower() for a in each.answers) for p in each.paragraphs) == 1


def test_key_values_are_one_json_object(made: dict[str, list[Example]]) -> None:
    import json

    for each in made["key_values"]:
        data = json.loads(re.search(r"JSON data:\n(\{.*?\})\n", each.message.text, re.S).group(1))
        key = re.search(r'Key: "(.*)"$', each.message.text).group(1)
        assert (data[key],) == each.message.answers
        assert len(data) == len(set(data.values())) > 30


def test_a_needle_is_the_same_at_every_length(materials: Materials) -> None:
    for task in NEEDLE_TASKS:
        short, long = (
            long_tasks.examples(task, tokens, words, materials, count=1, seed=0)[0] for tokens in (2048, 8192)
        )
        assert short.message.marks == long.message.marks
        assert len(long.message.text) > 3 * len(short.message.text)


def test_scores_are_recall_or_any() -> None:
    assert long_tasks.score("niah_multivalue", "12, 34 and 56", ("12", "56", "78", "90")) == 0.5
    assert long_tasks.score("vt", "abcde", ("ABCDE",)) == 1.0
    assert long_tasks.score("qa_1", "it was 30", ("30 megabytes", "30")) == 1.0
    assert long_tasks.score("qa_2", "nobody knows", ("30 megabytes", "30")) == 0.0


def test_conversations(materials: Materials) -> None:
    for index, talk in enumerate(conversations(TOKENS, words, materials.corpus, count=4, seed=1)):
        opening = talk.token_ids(words, [])
        assert TOKENS - 400 < len(opening) <= TOKENS - 200
        assert len(set(talk.answers)) == len(set(talk.questions)) == NUM_TURNS
        places = [talk.opening.index(f"is {answer}.") / len(talk.opening) for answer in talk.answers]
        assert index / 4 - 0.1 <= places[0] <= (index + 1) / 4 + 0.1
        assert max(places) - min(places) > 0.4
        assert all(talk.opening.count(answer) == 1 for answer in talk.answers)
        last = talk.token_ids(words, [" 1.", " 2."])
        assert last[: len(opening) - 1] == opening[:-1], "later turns begin with the earlier ones"
        assert len(last) <= TOKENS


def test_inserted_pieces_are_at_their_depths() -> None:
    units = [str(i) for i in range(10)]
    assert with_inserted(units, ["a", "b", "c"], [1.0, 0.0, 0.5]) == ["b", *units[:5], "c", *units[5:], "a"]
    assert with_inserted(units, ["a", "b"], [0.5, 0.5])[5:7] == ["a", "b"]


def test_corpora_come_round_again(materials: Materials) -> None:
    sentences = materials.corpus.sentences
    num_words = sum(len(sentence.split()) for sentence in sentences)
    prose = materials.corpus.prose(num_words + 30, random.Random(0))
    assert sum(len(sentence.split()) for sentence in prose) == num_words + 30
    assert prose[len(sentences)].startswith(prose[0][:20])
    assert len(materials.corpus.words) == len(set(materials.corpus.words)) > 5000


@pytest.mark.parametrize("limit", [100, 1000, 12345])
def test_fit_finds_a_size_that_fills_the_limit(limit: int) -> None:
    def build(size: int) -> Message:
        return Message("".join("x" * (1 + i % 7) for i in range(size)), "", ())

    message, token_ids = fit(build, lambda text: [0] * len(text), limit, 1)
    assert 0.95 * limit <= len(token_ids) <= limit
    assert len(message.text) + len("\n\nAnswer: ") == len(token_ids)


def test_bad_input_is_one_sentence(materials: Materials, tmp_path: Path) -> None:
    cases = [
        lambda: long_tasks.examples("poems", 4096, words, materials, count=1, seed=0),
        lambda: long_tasks.examples("vt", 4096, words, materials, count=0, seed=0),
        lambda: long_tasks.examples("cwe", 512, words, materials, count=1, seed=0),
        lambda: long_tasks.examples("qa_2", 4096, words, Materials(materials.corpus, []), count=1, seed=0),
        lambda: Corpus(["A b."], ["A b."], ["a b"]),
    ]
    for line in ("{", '{"question": "q", "answers": [], "paragraphs": ["p"]}',
                 '{"question": "q", "answers": ["a"], "paragraphs": ["p", "q", "r"]}',
                 '{"question": "q", "answers": ["a"], "paragraphs": ["none"]}'):  # fmt: skip
        path = tmp_path / "questions.jsonl"
        path.write_text(line)
        cases.append(lambda path=path, text=line: read_questions(path))
    for case in cases:
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            case()
        assert is_one_sentence(caught.value), caught.value


def test_place_is_jittered_inside_its_share() -> None:
    rng = random.Random(0)
    assert all(0.5 <= Place(2, 4).depth(rng) < 0.75 for _ in range(100))
