"""The field's metrics: each compared with the results of its public code on real data, and the speed of scoring.

    python -m benchmarks.quality.score

Real data and expected values are in a folder beside the repository (`--data`); without it, only the speed is measured.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common import argument_parser, write_results
from loop.scoring.score import score_files
from policies.answers.normalise import normalise_answer, normalise_answer_m4c
from policies.benchmarks import BENCHMARKS, Document, Prediction, parse_document
from policies.benchmarks.judged.llava_bench import parse_scores, parse_scores_published
from policies.benchmarks.pope import parse_yes_no, parse_yes_no_published
from policies.benchmarks.scienceqa import parse_letter_published
from policies.benchmarks.vqa import soft_accuracy, vqa_accuracy

DATA = Path(__file__).parents[3] / "shared" / "data"
TOLERANCE = 1e-9
NUM_ANNOTATORS = 10
LETTERS = "ABCDE"


@dataclass(frozen=True, slots=True)
class Check:
    """One metric on one set of real data."""

    metric: str
    num_values: int
    """Number of values of the public code that were compared: scores or parsed answers."""
    num_equal: int
    """Those equal to ours with `published`, to 1e-9."""
    num_default: int
    """Those equal to ours by default."""
    published: float | None = None
    """The public code's score, in percent."""
    default: float | None = None
    """Our default score, in percent."""


def checks(data: Path) -> list[Check]:
    """Check all metrics on the folder of real data."""
    found = [_normalisation(data, "official_vqa"), _normalisation(data, "m4c"), _soft_accuracy(data), _m4c_accuracy(data)]
    found += [_okvqa(data), *_aokvqa(data), _yes_no(data), *_pope(data), _letters(data), *_scienceqa(data)]
    return [*found, _reviews(data), *_summaries(data), *_chair(data)]


def _expected(data: Path, name: str) -> Any:
    return json.loads((data / "expected" / name).read_bytes())


def _document(data: Path, name: str) -> Document:
    return parse_document(name, (data / name).read_bytes())


def _scores(data: Path, name: str, file: str | None, predictions: Document, **options: Any) -> dict[str, Any]:
    benchmark = BENCHMARKS.build(name, options)
    questions = benchmark.read([_document(data, file)]) if file else []
    return benchmark.score(questions, benchmark.read_predictions(predictions, questions))


def _made(answers: dict[str, Any]) -> Document:
    return parse_document("predictions.json", json.dumps(answers).encode())


def _near(one: float | None, other: float | None) -> bool:
    return one == other or (one is not None and other is not None and abs(one - other) <= TOLERANCE)


def _read(metric: str, cases: list[tuple[Any, Any, Any]]) -> Check:
    """A check from `(public, ours published, ours default)` of every case."""
    equal, default = (sum(case[0] == case[way] for case in cases) for way in (1, 2))
    return Check(metric, len(cases), equal, default)


def _score(metric: str, wanted: list[float], published: list[float], default: list[float], shown: int = 0) -> Check:
    """A check from lists of scores in percent; the score at index `shown` goes into the table."""
    equal, same = (sum(map(_near, wanted, ours)) for ours in (published, default))
    return Check(metric, len(wanted), equal, same, wanted[shown], default[shown])


def _normalisation(data: Path, style: str) -> Check:
    normalise = {"official_vqa": normalise_answer, "m4c": normalise_answer_m4c}[style]
    cases = _expected(data, "vqa_normalisation.json")["cases"]
    return _read(f"answer normalisation, {style}", [(case[style], *[normalise(case["input"])] * 2) for case in cases])


def _soft_accuracy(data: Path) -> Check:
    expected = _expected(data, "vqa_soft_accuracy.json")
    pairs = [(case["prediction"], case["answers"]) for case in expected["cases"]]
    ours, default = ([100 * vqa_accuracy(*pair, published=published) for pair in pairs] for published in (True, False))
    wanted = [expected["overall"]["official_vqa_percent"], *(case["official_vqa_percent"] for case in expected["cases"])]
    rounded = [round(sum(ours) / len(ours), 2), *(round(one, 2) for one in ours)]  # the public code rounds to two places
    return _score("VQA soft accuracy", wanted, rounded, [round(sum(default) / len(default), 2), *(round(one, 2) for one in default)])


def _m4c_accuracy(data: Path) -> Check:
    expected = _expected(data, "vqa_soft_accuracy.json")
    ours = [
        100 * soft_accuracy(normalise_answer_m4c(case["prediction"]), [normalise_answer_m4c(answer) for answer in case["answers"]])
        for case in expected["cases"]
    ]
    ours = [sum(ours) / len(ours), *ours]
    return _score("M4C soft accuracy", [100 * expected["overall"]["m4c"], *(100 * case["m4c"] for case in expected["cases"])], ours, ours)


def _okvqa(data: Path) -> Check:
    expected = _expected(data, "okvqa_soft_accuracy.json")
    made = _made(expected["predictions"])
    published, default = (_scores(data, "okvqa", "okvqa.json", made, published=way)["accuracy"] for way in (True, False))
    return _score("OK-VQA soft labels", [100 * expected["expected"]["soft_accuracy"]], [published], [default])


def _aokvqa(data: Path) -> list[Check]:
    expected = _expected(data, "aokvqa_accuracy.json")
    published, default = (_scores(data, "aokvqa", "aokvqa.json", _made(expected["predictions"]), published=way) for way in (True, False))
    return [_score(f"A-OKVQA {key}", [value], [published[key]], [default[key]]) for key, value in expected["expected"].items()]


def _yes_no(data: Path) -> Check:
    cases = _expected(data, "pope_answer_parsing.json")["cases"]
    texts: list[tuple[Any, Any, Any]] = [
        (case["parsed"], parse_yes_no_published(case["answer"]), parse_yes_no(case["answer"])) for case in cases
    ]
    return _read("POPE, reading yes and no", texts)


def _pope(data: Path) -> list[Check]:
    expected, name = _expected(data, "pope_metrics.json")["expected"], "pope_model_answers.jsonl"
    published, default = (_scores(data, "pope", name, _document(data, name), published=way)["by_split"] for way in (True, False))
    keys = {"accuracy": "accuracy", "precision": "precision", "recall": "recall", "f1": "f1_score", "yes_ratio": "yes_ratio"}
    found = []
    for split, of in expected.items():
        wanted = [100 * of[theirs] for theirs in keys.values()]
        found.append(_score(f"POPE {split}", wanted, [published[split][key] for key in keys], [default[split][key] for key in keys]))
    return found


def _letters(data: Path) -> Check:
    cases = _expected(data, "scienceqa_accuracy.json")["answer_parsing_cases"]
    default, question = BENCHMARKS.build("scienceqa"), BENCHMARKS.build("scienceqa").read([_document(data, "scienceqa.json")])
    four = next(one for one in question if len(one.choices) == 4)
    texts = [
        (case["parsed"], parse_letter_published(case["text"]) or "FAILED", default.parse(four, case["text"]) or "FAILED") for case in cases
    ]
    return _read("ScienceQA, reading a letter", texts)


def _scienceqa(data: Path) -> list[Check]:
    questions = json.loads((data / "scienceqa.json").read_bytes())
    found = []
    for model, of in _expected(data, "scienceqa_accuracy.json")["expected"].items():
        texts = {question["id"]: question["predictions"][model] for question in questions}
        ours = []
        for way in (True, False):
            benchmark = BENCHMARKS.build("scienceqa", {"published": way})
            read = benchmark.read([_document(data, "scienceqa.json")])
            score = benchmark.score(read, [Prediction(*pair) for pair in texts.items()])
            letters = [benchmark.parse(question, texts[question.question_id]) for question in read]
            indices = [LETTERS.index(letter) if letter else -1 for letter in letters]
            ours.append([score["accuracy"], score["image_accuracy"], *map(float, indices)])
        wanted = [of["accuracy"], of["image_accuracy"], *(float(of["predicted_index"][question["id"]]) for question in questions)]
        found.append(_score(f"ScienceQA {model}", wanted, *ours))
    return found


def _reviews(data: Path) -> Check:
    cases = [(case["review"], tuple(map(float, case["score"]))) for case in _expected(data, "judge_score_parsing.json")["cases"]]
    return _read("LLaVA-Bench, reading scores", [(wanted, parse_scores_published(text), parse_scores(text)) for text, wanted in cases])


def _summaries(data: Path) -> list[Check]:
    """Relative scores as printed by the public code, and the effect of unparsable reviews when no score was recorded by hand."""
    expected, wanted, ours = _expected(data, "judge_summary.json")["expected"], [], []
    benchmark, default = BENCHMARKS.build("llava-bench", {"published": True}), BENCHMARKS.build("llava-bench")
    plain: list[float] = []
    by_file: dict[str, list[Prediction]] = {}
    for file, prefix in (("judge_reviews.jsonl", ""), ("judge_reviews_wild.jsonl", "reviews_")):
        for one in benchmark.read_predictions(_document(data, file), []):
            by_file.setdefault(prefix + one.group.removesuffix(".jsonl"), []).append(one)
    for source, categories in expected.items():
        printed = benchmark.score([], by_file[source])["printed"]
        pairs = [(of[key], printed[category][key]) for category, of in categories.items() for key in of]
        wanted += [pair[0] for pair in pairs]
        ours += [pair[1] for pair in pairs]
        scores = default.score([], by_file[source])
        for category, of in categories.items():
            means = scores if category == "all" else scores["by_category"][category]
            first, second = round(means["mean_score_1"], 3), round(means["mean_score_2"], 3)
            rounded = {"relative_score": second / first * 100, "score1_x10": first * 10, "score2_x10": second * 10}
            plain += [round(rounded[key], 1) for key in of]
    found = [_score("LLaVA-Bench, as printed", wanted, ours, plain)]
    for source in (name for name in by_file if not name.startswith("reviews_")):
        unscored = [one._replace(answer={"review": one.answer["review"]}) for one in by_file[source]]
        scores = [BENCHMARKS.build("llava-bench", {"published": way}).score([], unscored)["relative_score"] for way in (True, False)]
        pairs = [parse_scores_published(one.answer["review"]) for one in unscored]
        public = 100 * sum(pair[1] for pair in pairs) / sum(pair[0] for pair in pairs)
        found.append(_score(f"LLaVA-Bench, texts of {source}", [public], scores[:1], scores[1:]))
    return found


def _chair(data: Path) -> list[Check]:
    expected = _expected(data, "chair.json")["expected"]
    synonyms, captions = (data / "chair" / "synonyms.txt").read_text(), _document(data, "chair/model_captions.jsonl")
    ours = [_scores(data, "chair", "chair/ground_truth.jsonl", captions, published=way, synonyms=synonyms) for way in (True, False)]
    own = _scores(data, "chair", "chair/ground_truth.jsonl", captions)
    found = []
    for index, (key, theirs) in enumerate((("chair_i", "CHAIRi"), ("chair_s", "CHAIRs"))):
        wanted = [100 * of[theirs] for of in expected.values()]
        found.append(
            _score(f"CHAIR {key} of 12 sets", wanted, *([one["by_set"][name][key] for name in expected] for one in ours), shown=10)
        )
        mentions = sum(of["n_mentions"] for of in expected.values())
        hallucinated = sum(of["n_hallucinated_mentions"] for of in expected.values())
        total = [100 * hallucinated / mentions, 100 * sum(c["CHAIRs"] for of in expected.values() for c in of["captions"]) / 218][index]
        found.append(_score(f"CHAIR {key}, 218 captions", [total], [ours[0][key]], [ours[1][key]]))
        found.append(Check(f"CHAIR {key}, our own words", 1, 0, int(_near(total, own[key])), total, own[key]))
    return found


# ---- speed


def make_vqa(folder: Path, num: int, seed: int = 0) -> tuple[Path, Path]:
    """Generated annotations in VQA v2's format and predictions for them."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(20_000)]
    texts = [
        *words,
        *(f"the {word}" for word in words[:2000]),
        *(f"{word}-{word}, {word}." for word in words[:2000]),
        "two",
        "1,000",
        "dont",
    ]
    annotations, predictions = [], []
    for question_id in range(num):
        near = draw.choices(texts, k=3)
        given = draw.choices(near, k=NUM_ANNOTATORS)
        answers = [{"answer": one, "answer_confidence": "yes", "answer_id": index} for index, one in enumerate(given, 1)]
        common = {"question_type": "what", "answer_type": "other", "multiple_choice_answer": given[0]}
        annotations.append({"question_id": question_id, "image_id": question_id // 3, "answers": answers, **common})
        predictions.append({"question_id": question_id, "answer": draw.choice(near)})
    data, given_path = folder / "annotations.json", folder / "predictions.jsonl"
    data.write_text(json.dumps({"annotations": annotations}))
    given_path.write_text("\n".join(map(json.dumps, predictions)))
    return data, given_path


def make_chair(folder: Path, num: int, seed: int = 0) -> tuple[Path, Path]:
    """Generated images with objects and five captions each, and a predicted caption of about 100 words per image."""
    draw = random.Random(seed)
    objects = ["person", "dog", "cat", "bus", "dining table", "wine glass", "chair", "umbrella", "kite", "clock", "tv", "bicycle"]
    fill = ["a", "the", "is", "on", "with", "near", "two", "of", "that", "large", "standing", "photo", "street", "grass", "behind", "red"]

    def text(num_words: int) -> str:
        return " ".join(draw.choice(objects) if draw.random() < 0.1 else draw.choice(fill) for _ in range(num_words)) + "."

    data, given = folder / "ground_truth.jsonl", folder / "captions.jsonl"
    images = (
        {"image_id": i, "captions": [text(11) for _ in range(5)], "instance_categories": draw.choices(objects, k=6)} for i in range(num)
    )
    data.write_text(_lines(images))
    given.write_text(_lines({"image_id": image_id, "caption": text(100)} for image_id in range(num)))
    return data, given


def _lines(records: Iterable[dict[str, Any]]) -> str:
    return "\n".join(map(json.dumps, records))


def measure(num_vqa: int, num_captions: int) -> dict[str, dict[str, Any]]:
    """CPU and wall-clock seconds of one process from the files to the scores."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = {
            f"vqa, {num_vqa} predictions": ("vqa", make_vqa(folder, num_vqa), False),
            f"chair, {num_captions} captions": ("chair", make_chair(folder, num_captions), False),
            f"chair, {num_captions} captions, published": ("chair", (folder / "ground_truth.jsonl", folder / "captions.jsonl"), True),
        }
        for what, (benchmark, (data, predictions), published) in runs.items():
            cpu, wall = time.process_time(), time.perf_counter()
            scores = score_files(benchmark, [data], predictions, published=published)
            seconds = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
            key = "accuracy" if benchmark == "vqa" else "chair_i"
            found[what] = {**seconds, key: scores[key]}
    return found


def main() -> None:
    parser = argument_parser(__doc__, "score.json")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of real data with expected values")
    parser.add_argument("--num-vqa", type=int, default=100_000)
    parser.add_argument("--num-captions", type=int, default=10_000)
    arguments = parser.parse_args()
    console = Console(width=140)
    found = checks(arguments.data) if arguments.data.is_dir() else []
    if found:
        table = Table("metric", "values", "equal, published", "equal, default", "public code", "default", box=None)
        for one in found:
            scores = ("" if value is None else f"{value:.2f}" for value in (one.published, one.default))
            table.add_row(one.metric, str(one.num_values), str(one.num_equal), str(one.num_default), *scores)
        console.print(table)
    else:
        console.print(f"no real data in {arguments.data}: nothing compared")
    speed = measure(arguments.num_vqa, arguments.num_captions)
    for what, seconds in speed.items():
        console.print(f"{what}: {seconds['cpu_s']:.2f} s of CPU, {seconds['wall_s']:.2f} s")
    write_results(arguments.out, {"checks": found, "speed": speed})


if __name__ == "__main__":
    main()
