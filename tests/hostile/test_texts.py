"""Bad text wherever text goes: into prompts, samples, tables, terminals, exports and MLflow. It is data there, and nothing else."""

# ruff: noqa: PT017 (an input may be refused or not; where it is, the reason is looked at)

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from actors.engines.base import Request, Sampling
from actors.engines.prompting import Prompter
from actors.engines.transformers import TransformersEngine
from actors.processors import SpecialTokens
from actors.training.inputs.encoding import BadSampleError, ConversationEncoder
from loop.cli import PrintableLines, _fail
from loop.config.run_config import EMBEDDED_MODEL, parse_config
from loop.errors import UserError, printable
from loop.export import export
from loop.models.seed.instructblip import build_instructblip_processor
from loop.monitors.progress import RunProgress
from loop.monitors.report import print_results, print_status
from loop.monitors.tracking import Mirror, accuracy_figure, flatten_parameters, mlflow_key, sample_table
from loop.sources.llava_json import LlavaJsonData
from loop.sources.reading.chats import MAX_TEXT_CHARACTERS
from loop.store.commits import Decision, FilterCount, RoundCommit, RoundState
from loop.store.run_store import Store
from policies.records import Reason, Record, from_table, to_table
from tests.actors.engines.family_models import build_qwen
from tests.hostile.fuzz import NASTY_TEXTS, fuzzed, texts
from tests.loop.config.test_config import document
from tests.loop.export.test_export import Pictures, commit

IMAGE = Image.new("RGB", (48, 48), (200, 30, 30))

# ---- prompts


@pytest.fixture(scope="module")
def prompter() -> Prompter:
    return Prompter(EMBEDDED_MODEL)


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return TransformersEngine(EMBEDDED_MODEL)


def special_ids(tokenizer: Any) -> set[int]:
    return set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}


def pieces_of(tokenizer: Any) -> st.SearchStrategy[str]:
    """Texts glued together of special tokens, whole and in parts, and of nasty ones."""
    tokens = sorted({*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())})
    parts = [token[start:end] for token in tokens for start in range(len(token)) for end in range(start + 1, len(token) + 1)]
    return st.lists(st.sampled_from(parts) | st.sampled_from(tokens) | texts, max_size=8).map("".join)


PIECES = pieces_of(Prompter(EMBEDDED_MODEL).tokenizer)


@fuzzed(question=PIECES, said=PIECES, continuation=PIECES)
def test_no_text_adds_a_special_token_to_a_prompt(prompter: Prompter, question: str, said: str, continuation: str) -> None:
    special = special_ids(prompter.tokenizer)

    def specials(text: str) -> list[int]:
        return [one for one in prompter.token_ids(text) if one in special]

    def request(question: str, said: str) -> Request:
        return Request(IMAGE, question, said)

    assert specials(prompter.render(request(question, said))) == specials(prompter.render(request("a", "b" if said else "")))
    plain = prompter.render_answered(request("a", "b"), "c")
    assert specials(prompter.render_answered(request(question, said), continuation)) == specials(plain)
    assert not specials(prompter.spoken(request(question, said)))


@fuzzed(user=PIECES, assistant=PIECES)
def test_no_text_adds_a_special_token_to_a_training_sample(prompter: Prompter, user: str, assistant: str) -> None:
    encoder = ConversationEncoder(prompter.processor, 4096)
    try:
        ids = encoder.encode(((user, assistant),), IMAGE.size).ids.tolist()
    except BadSampleError:
        return
    special = special_ids(prompter.tokenizer)
    plain = encoder.encode((("a", "b"),), IMAGE.size).ids.tolist()
    assert [one for one in ids if one in special] == [one for one in plain if one in special]


@pytest.mark.parametrize("processor", [build_qwen()[1], build_instructblip_processor()], ids=["qwen", "instructblip"])
def test_the_special_tokens_of_other_families_are_broken_up(processor: Any) -> None:
    plain = SpecialTokens(processor).broken_up
    tokenizers = [one for one in (processor.tokenizer, getattr(processor, "qformer_tokenizer", None)) if one is not None]
    for tokenizer in tokenizers:
        for token in tokenizer.all_special_tokens:
            if token != tokenizer.unk_token:
                for text in (token, f"a{token}b", token * 3, f"{token[:1]}{token}{token[1:]}"):
                    for reader in tokenizers:
                        ids = reader(plain(text), add_special_tokens=False)["input_ids"]
                        assert not set(ids) & special_ids(reader), text


def test_special_tokens_of_one_character_or_inside_of_others_are_broken_up() -> None:
    tokenizer = SimpleNamespace(all_special_tokens=["|", "<a>", "<a><a>", "< a>"], added_tokens_decoder={})
    marks = SpecialTokens(SimpleNamespace(tokenizer=tokenizer))
    for text in ("|", "<a>", "<a><a>", "<<a>a>", "<|a>", "< a>", "<a>|<a>"):
        assert marks.first_in(text)
        assert marks.first_in(marks.broken_up(text)) is None
    assert marks.broken_up("a < b") == "a < b"


def test_the_engine_answers_and_scores_whatever_it_is_asked(engine: TransformersEngine) -> None:
    requests = [Request(IMAGE, text, prefix) for text in NASTY_TEXTS for prefix in ("", "Yes.")]
    requests += [Request(IMAGE, "What is it?", text) for text in NASTY_TEXTS]
    completions = engine.complete(requests, Sampling(4))
    scores = engine.score(requests, [NASTY_TEXTS[row % len(NASTY_TEXTS)] for row in range(len(requests))])
    assert len(completions) == len(scores) == len(requests)
    assert all(score.logprob <= 0 for score in scores)


# ---- labelled data


def llava(folder: Path, **changes: Any) -> LlavaJsonData:
    IMAGE.save(folder / "a.png")
    turns = [
        {"from": "human", "value": "<image>\n" + changes.pop("question", "What?")},
        {"from": "gpt", "value": changes.pop("answer", "It.")},
    ]
    (folder / "data.json").write_text(json.dumps([{"id": "1", "image": "a.png", "conversations": turns, **changes}]))
    return LlavaJsonData(folder / "data.json", folder)


@pytest.mark.parametrize("place", ["question", "answer", "id"])
@pytest.mark.parametrize("text", [*NASTY_TEXTS, "\ud800", "x" * 1_000_000], ids=lambda text: ascii(text)[:30])
def test_labelled_data_hold_a_text_verbatim_or_are_refused(tmp_path: Path, place: str, text: str) -> None:
    try:
        (question,) = llava(tmp_path, **{place: text}).questions(1, 0)
    except UserError as error:
        assert "record 0 of" in str(error)
        assert "\ud800" in text or not text.strip() or "<image>" in text or len(text) > MAX_TEXT_CHARACTERS
        return
    found = {"question": question.question, "answer": question.answer, "id": question.question_id.removesuffix("#0")}[place]
    assert found == (text if place == "id" else text.strip())


@pytest.mark.parametrize(
    "content",
    [b"[" * 200_000, b'{"a":' * 200_000, b"[" + b"9" * 5000 + b"]", b"\xef\xbb\xbf[]", b"[NaN]", b"[[[]]]", b"null", b"", b"\0", b'"x"']
)  # fmt: skip
def test_a_labelled_file_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.json").write_bytes(content)
    with pytest.raises(UserError, match=r"data\.json"):
        LlavaJsonData(tmp_path / "data.json", tmp_path)


# ---- terminals

NAMES = [text for text in NASTY_TEXTS if text.strip()]


def nasty_commits() -> list[RoundCommit]:
    metrics = {f"accuracy/{name}": 0.5 for name in NAMES}
    common: dict[str, Any] = {"epoch": 1, "started_at": 0.0, "committed_at": 1.0, "champion_path": "x", "metrics": metrics}
    return [
        RoundCommit(
            run_id="x", round=index, state=RoundState.ACCEPTED, champion=name, filters=[FilterCount(filter=name, seen=2, kept=1)],
            decision=Decision(accepted=True, reason=name), **common,
        )
        for index, name in enumerate(NAMES)
    ]  # fmt: skip


def shown(print_on: Callable[[Console], object], *, terminal: bool) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=terminal, color_system=None)
    print_on(console)
    file: Any = console.file
    return file.getvalue()


def assert_inert(text: str) -> None:
    assert text.strip()
    for line in text.split("\n"):
        assert line.isprintable(), repr(line)


def test_tables_and_states_of_a_run_show_bad_text_without_obeying_it() -> None:
    commits = nasty_commits()
    assert_inert(shown(lambda console: print_results(console, commits, NAMES), terminal=False))
    assert_inert(shown(lambda console: print_status(console, NAMES[0], NAMES[0], commits), terminal=False))
    for name in NAMES:
        assert_inert(shown(lambda console, name=name: print_status(console, name, name, commits[:1]), terminal=False))
    linked = shown(lambda console: print_results(console, commits, NAMES), terminal=True)
    assert "\x1b]" not in linked
    assert "[red]" in linked.replace("\n", "")


def test_progress_shows_bad_text_without_obeying_it() -> None:
    def play(console: Console) -> None:
        with RunProgress(console, line_every_s=0.0) as progress:
            progress.round(1, 2)
            for name in NAMES:
                progress.note(name)
                with progress.stage(name, total=3, unit=name) as stage:
                    stage.advance(1, **{name: 3})
                    stage.reach(2, name)

    assert_inert(shown(play, terminal=False))
    assert "\x1b]8" not in shown(play, terminal=True)


@pytest.mark.parametrize("name", NAMES, ids=lambda text: ascii(text)[:30])
def test_an_error_shows_bad_text_without_obeying_it(capsys: pytest.CaptureFixture[str], name: str) -> None:
    with pytest.raises(SystemExit):
        _fail(f"cannot read {name}\nsecond {name}", 2)
    said = capsys.readouterr().err
    assert_inert(said)
    assert said.count("error: ") >= 2
    record = logging.LogRecord("x", logging.WARNING, "x", 1, "about %s", (name,), None)
    assert_inert(PrintableLines("%(message)s").format(record))


@fuzzed(text=st.text(st.characters()) | texts)
def test_what_is_printable_shows_all_and_hides_nothing(text: str) -> None:
    assert printable(text).isprintable()
    if text.isprintable():
        assert printable(text) == text
    else:
        assert printable(text) != text


@pytest.mark.parametrize("name", NAMES, ids=lambda text: ascii(text)[:30])
def test_names_in_a_config_are_printable_or_refused(name: str) -> None:
    for changes in ({"tracking": {"experiment": name}}, {"held_out": {name: document()["held_out"]["near"]}}):
        try:
            parse_config(document(**changes))
        except UserError:
            assert not name.isprintable() or len(name) > 100
        else:
            assert name.isprintable()


# ---- exports


def nasty_records() -> list[Record]:
    plain = Record("r0-s0-0", 0, 0, "a", "conversation", "Ask.", 3, accepted=True)
    return [
        replace(plain, record_id=f"r0-s0-{index}", image_id=f"image-{index}", question=text, answer=f"{text} {text}", original_answer=text)
        for index, text in enumerate(NASTY_TEXTS)
    ]


def test_records_survive_a_table_verbatim() -> None:
    assert from_table(to_table(nasty_records())) == nasty_records()


def test_exports_hold_bad_text_verbatim_and_as_data(store: Store, tmp_path: Path) -> None:
    commit(store, 0, nasty_records())
    export(store, "all", "parquet", tmp_path / "all.parquet", Pictures())
    written = {record.record_id: record for record in from_table(pq.read_table(tmp_path / "all.parquet"))}
    assert [written[one.record_id].question for one in nasty_records()] == list(NASTY_TEXTS)
    export(store, "all", "messages", tmp_path / "messages.parquet", Pictures())
    rows = pq.read_table(tmp_path / "messages.parquet").to_pylist()
    assert [row["messages"][0]["content"][1]["text"] for row in rows] == list(NASTY_TEXTS)
    export(store, "all", "llava", tmp_path / "llava", Pictures())
    entries = json.loads((tmp_path / "llava" / "data.json").read_text())
    for entry, text in zip(entries, NASTY_TEXTS, strict=True):
        question = entry["conversations"][0]["value"]
        assert question.count("<image>") == 1
        assert question == f"<image>\n{text}" or "<image>" in text


def test_an_image_whose_name_cannot_be_written_is_left_out_and_told(store: Store, tmp_path: Path) -> None:
    plain = nasty_records()[0]
    names = ("fine", "x" * 300, "fine.png/inside", "also fine")
    commit(store, 0, [replace(plain, record_id=f"r0-s0-{index}", image_id=name) for index, name in enumerate(names)])
    report = export(store, "all", "llava", tmp_path / "out", Pictures())
    assert report.num_records == 2
    assert [line.split(":")[0] for line in report.bad_images] == [f"{'x' * 300}.png", "fine.png/inside.png"]


def test_an_export_writes_nothing_outside_of_its_folder(store: Store, tmp_path: Path) -> None:
    plain = nasty_records()[0]
    for index, name in enumerate(("../escaped", "/tmp/escaped", "a/../../escaped")):
        commit(store, index, [replace(plain, record_id=f"r{index}-s0-0", round=index, image_id=name)])
        with pytest.raises(Exception, match="leads outside of the export's folder"):
            export(store, index, "llava", tmp_path / f"out{index}", Pictures())
    assert not list(tmp_path.glob("**/escaped*"))


# ---- MLflow


def test_what_goes_to_mlflow_is_data() -> None:
    table = json.loads(json.dumps(sample_table(nasty_records())))
    assert [row[2] for row in table["data"]] == list(NASTY_TEXTS)
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name

    for text in NASTY_TEXTS:
        _validate_metric_name(mlflow_key(f"accuracy/{text}"))
        _validate_param_name(mlflow_key(f"x.{text}"))
    assert flatten_parameters({"a": {"b": NASTY_TEXTS[2]}}) == {"a.b": NASTY_TEXTS[2]}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_figure_is_drawn_whatever_the_sets_are_called() -> None:
    metrics = {f"accuracy/{name}": 0.5 for name in (*NAMES, "$", "$\\frac", "_x", "$x$")}
    accuracy_figure([one.model_copy(update={"metrics": metrics}) for one in nasty_commits()[:2]]).savefig(io.BytesIO(), format="png")


@pytest.mark.slow
def test_mlflow_takes_bad_text_and_gives_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    names = [name for name in NAMES if name.isprintable() and len(name) <= 100]
    records = nasty_records()
    for number, name in enumerate(names[::6]):
        uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # as in the mirror's process: MLflow's registry looks for models there
        commits = [one.model_copy(update={"round": 0, "champion": name}) for one in nasty_commits()[:1]]
        mirror = Mirror(uri, name, "run", f"run-{number}", flatten_parameters({"a": name}))
        assert mirror.log_commits(commits, lambda _: (records, [records[0].rejected(Reason.EMPTY)]), lambda _: tmp_path) == [0]
        mirror.close("FINISHED")
        client = MlflowClient(uri)
        (child,) = client.search_runs([client.get_experiment_by_name(name).experiment_id], "tags.vigc.round = '0'")
        assert child.data.tags["vigc.champion"] == name
