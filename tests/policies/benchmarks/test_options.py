"""Which choice an answer names, as a person would read it; what stays ambiguous names none."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from policies.benchmarks.options import read_option
from tests.policies.benchmarks.make import document, score

ANIMALS = ("cat", "dog", "bird", "fish")
CHINESE = ("\u732b", "\u72d7", "\u9e1f", "\u9c7c")
VITAMINS = ("Vitamin A", "Vitamin C", "Vitamin B", "Vitamin D")
SAMPLES = ("sample B", "sample A", "neither; they are equally warm")
NUMBERS = ("3", "30", "13", "2")


def texts_for(choices: Sequence[str], *answers: str) -> list[tuple[Sequence[str], str]]:
    return [(choices, answer) for answer in answers]


@pytest.mark.parametrize("answer", [
    "B", "b", "(B)", "(b)", "B.", "B)", "b. dog", "B) dog", "B: dog", "B - dog", "option B", "Option B.", "The answer is B",
    "The answer is b.",
    "The correct option is (B).", "Answer: B", "Answer: **B**", "**B. dog**", "I would choose B", "I think B", "B is correct, A is wrong",
    "So the answer is B.", '{"answer": "B"}', r"\boxed{B}", r"$\boxed{\text{B}}$", "<answer>B</answer>", "<think>A? C?</think>\nB",
    "A? No.</think>B", "\uff22", "\uff08\uff22\uff09", "\uff22\uff0edog", "\u7b54\u6848\u662fB", "\u7b54\u6848\uff1aB\u3002", "\u9009B",
    "\u9009\u9879B", "\u6211\u9009\u62e9B\u3002", "\u6b63\u786e\u7b54\u6848\u4e3aB\u3002", "B\u9009\u9879\u6b63\u786e",
    "\u7b54\u3048\u306fB\u3067\u3059",
    "\uc815\ub2f5\uc740 B\uc785\ub2c8\ub2e4",
    "\u041e\u0442\u0432\u0435\u0442 \u2014 B, \u043f\u043e\u0442\u043e\u043c\u0443 \u0447\u0442\u043e",
    "\u0627\u0644\u0625\u062c\u0627\u0628\u0629 \u0627\u0644\u0635\u062d\u064a\u062d\u0629 \u0647\u064a B",
    "A. cat\nB. dog\nC. bird\nThe answer is B",
    "Among A, B, C and D, the answer is B.", "Not A but B", "The answer is not A, it's B",
])  # fmt: skip
def test_a_letter_is_read_however_it_is_given(answer: str) -> None:
    assert read_option(answer, ANIMALS) == 1


@pytest.mark.parametrize("answer", [
    "B. A is wrong because there is no cat.", "B. A is wrong, C is wrong, and D is wrong.",
    "B\n\nExplanation: A shows a cat; C is a bird.",
    "B, because the cat is not there", "B. The options A and C do not fit.", "Dog. The cat is sleeping.",
    "It is a dog. The bird is not there.",
    "Option A is wrong. Option B is correct.", "B\u3002A\u9009\u9879\u662f\u9519\u8bef\u7684\u3002",
    "B\uff0c\u56e0\u4e3aA\u548cC\u90fd\u4e0d\u5bf9",
    "\u9009B\u3002A\u662f\u9519\u7684\u3002", "B. dog\n\nA. cat: wrong\nB. dog: right",
])  # fmt: skip
def test_an_answer_is_stated_first_and_explained_afterwards(answer: str) -> None:
    assert read_option(answer, ANIMALS) == 1


@pytest.mark.parametrize(("choices", "answer", "index"), [
    *[(VITAMINS, answer, 1) for answer in ("It shows vitamin C", "Vitamin C", "B. Vitamin C", "Answer: B. Vitamin C",
    "Vitamin C (option B)",
                                           "It is vitamin C, not vitamin A.", "It could be correct to say vitamin C.")],
    (SAMPLES, "Sample B has the higher temperature.", 0), (SAMPLES, "The warmer one is sample A.", 1), (SAMPLES, "Neither.", 2),
    (SAMPLES, "B", 1), (SAMPLES, "B. sample A", 1),
    (("magnet pair B", "magnet pair A"), "It is pair B, since its magnets are closer.", 0),
    (("Solution B", "none", "Solution A"), "Solution B has more particles.", 0),
    (ANIMALS, "A cat", 0), (ANIMALS, "A dog is on the mat", 1), (ANIMALS, "A", 0), (ANIMALS, "I think A.", 0),
    (ANIMALS, "There is no dog; it's a cat", 0), (ANIMALS, "A cat instead of a dog", 0),
    (("bus", "school bus"), "It is a school bus.", 1), (("bus", "school bus"), "It is a bus.", 0),
    (NUMBERS, "There are 30 birds", 1), (NUMBERS, "There are 3.", 0), (NUMBERS, "There are three birds", 0), (NUMBERS, "B. 30", 1),
    (("E. coli", "salmonella"), "E. coli causes it", 0), (("dangerous", "not dangerous"), "It is not dangerous", 1),
    (("yes", "no"), "No, it is not.", 1), (("yes", "no"), "There are no dogs", 1), (("no", "yes"), "A", 0),
    (("yes", "no"), "Yes, no dog is there.", 0),
    (CHINESE, "\u72d7", 1), (CHINESE, "\u56fe\u4e2d\u662f\u4e00\u53ea\u72d7\u3002", 1),
    (CHINESE, "\u8fd9\u662f\u72d7\uff0c\u4e0d\u662f\u732b\u3002", 1),
    (CHINESE, "B\u72d7", 1), (CHINESE, "\u7b54\u6848\u662f\u72d7", 1), (("\u718a\u732b", "\u732b"), "\u718a\u732b", 0),
    (("3", "30"), "\u56fe\u4e2d\u67093\u53ea\u9e1f", 0), (("\u662f", "\u5426"), "\u7b54\u6848\u662fB", 1),
    (("\u662f", "\u4e0d\u662f"), "\u4e0d\u662f", 1),
])  # fmt: skip
def test_a_choice_named_by_its_text_is_that_choice(choices: Sequence[str], answer: str, index: int) -> None:
    assert read_option(answer, choices) == index


@pytest.mark.parametrize(("choices", "answer"), [
    *texts_for(ANIMALS, "", "nan", "N/A", "not A", "Not A.", "A or B", "A and B", "A, B", "A/B", "Either A or B.", "both B and C",
    "B? No, C.",
               "B. cat", "It is a dog, so A.", "B. The answer is C.", "The answer is A. The answer is B.", "cat or dog",
               "It is not a cat.",
               "The dog is wrong", "None of the above", "I don't know", "E", "The answer is E.", "The dog is next to the cat", "<think>B",
               "<think>B</think>", "A T-shirt", "A. cat\nB. dog\nC. bird\nD. fish", "The answer is AB."),
    *texts_for(VITAMINS, "B. Vitamin B", "The answer is B, Vitamin D", "Vitamin C (option A)", "vitamin A or vitamin C"),
    *texts_for(SAMPLES, "B has the higher temperature", "B. sample B", "Sample A is warmer than sample B."),
    *texts_for(NUMBERS, "3.5", "-3", "300", "3 or 30", "B. 3"),
    *texts_for(CHINESE, "\u4e0d\u662f\u732b", "\u732b\u6216\u72d7", "\u4e0d\u9009A", "A\u6216B", "B. \u732b",
    "\u5bcc\u542b\u7ef4\u751f\u7d20C"),
    (("milk", "egg", "fish", "nuts"), "It contains vitamin D"), (("bus", "school bus"), "a bus or a school bus"), (("B", "A"), "B"),
    (("dangerous", "safe"), "It is not dangerous"), (("yes", "no"), "Yes. B"), (("cat", "cat"), "cat"),
])  # fmt: skip
def test_what_is_ambiguous_names_no_choice(choices: Sequence[str], answer: str) -> None:
    assert read_option(answer, choices) is None


def test_a_text_stays_the_same_choice_in_every_rotation() -> None:
    rotations = [VITAMINS[step:] + VITAMINS[:step] for step in range(4)]
    assert [choices[read_option("It shows vitamin C.", choices) or 0] for choices in rotations] == ["Vitamin C"] * 4


def test_every_benchmark_with_choices_reads_so() -> None:
    problems = {"1": {"question": "?", "choices": ["sample B", "sample A"], "answer": 0}}
    found = score("scienceqa", [document(problems)], document({"1": "It is sample B."}))
    assert (found["accuracy"], found["num_unparsable"]) == (100, 0)


@pytest.mark.parametrize("piece", ["\n", "! ", "A ", "B, ", "cat B ", "cat, ", "A. cat\n", "A or ", "not ", "answer is ", "\u9009", "(B) "])
def test_long_answers_are_read_in_bounded_time(piece: str) -> None:
    started = time.process_time()
    read_option(piece * (40_000 // len(piece)), VITAMINS + ANIMALS)
    assert time.process_time() - started < 5
