"""Config files and overrides: what is refused, and how it is said."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from actors.engines.vllm.options import VllmOptions
from actors.training.job import Lora
from cluster.planning.packing import NodeResources
from cluster.resources.plan import plan_resources
from loop.config import engine_config, training_config
from loop.config import run_config as config_module
from loop.config import sets as sets_module
from loop.config.engine_config import VllmEngineConfig
from loop.config.run_config import EMBEDDED_MODEL, RunConfig, load_config, parse_config
from loop.errors import UserError
from loop.setup.assembly import build_policies, resource_request
from policies.acceptance.rules import Evidence
from policies.generation.instructions import QuestionType
from tests.loop.run.small_run import CONFIG, write_config
from tests.paths import RECIPES

RECIPE = RECIPES / "shapes.yaml"
ON_GPUS = {"kind": "vllm", "device": "cuda"}
FLAT_BACKGROUND = "loop.sources.shapes.views:flat_background"
SHAPES = {"kind": "shapes", "seed": 1, "min_shift": 0.0, "max_shift": 0.1, "num_images": 10}


def document(**changes: Any) -> dict[str, Any]:
    """The least a config must say."""
    held_out = {"data": SHAPES}
    least = {"seed_data": {"data": SHAPES}, "image_sets": [SHAPES], "held_out": {"near": held_out}, "acceptance_sets": {"near": held_out}}
    return {**least, "filters": ["parsable"], **changes}


DPO = {"training": {"objective": "dpo"}}
NEAR = {"near": {"data": SHAPES, "seed_domain": True}}
POPE = {"pope": {"data": {**SHAPES}, "yes_no": True}}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"control": "no_such"}, "control.0: Input should be 'seed_only' or 'no_correction' (given: 'no_such')"),
        ({"control": ["seed_only", "seed_only"]}, "config: control names seed_only, seed_only; name each once"),
        (
            {"control": "no_correction", "correction": "none"},
            "config: control no_correction equals the run itself when correction is none",
        ),
        (
            {"correction": "none", **DPO},
            "config: training.objective dpo has no pairs when correction is none, which changes no answer; set",
        ),
        ({"training": {"objective": "ppo"}}, "training: unknown training objective 'ppo'; expected one of ['dpo', 'sft'] or "),
        (
            {"training": {"objective": {"dpo": {"beta": 0}}}},
            "training: training objective 'dpo' cannot be built from {'beta': 0}: beta is 0; expected a number above 0",
        ),
        (
            {"training": {**DPO["training"], "batch_size": 63}, "cluster": {"trainer_ranks": 3}},
            "config: training.objective.dpo.pairs_per_step 8 cannot be shared by 3 trainer ranks; choose a multiple",
        ),
        (
            {"acceptance_sets": NEAR},
            "config: seed_domain of the acceptance set near does nothing under the policy paired_test; drop it, or ",
        ),
        (
            {"acceptance": {"evidence": {"max_forgetting": 0.1}}},
            "config: max_forgetting does nothing without an acceptance set of the seed ",
        ),
        ({"acceptance_sets": POPE}, "acceptance_sets.pope: yes_no true is for data whose answers begin with yes or no; shapes has whole "),
        ({"held_out": NEAR}, "held_out.near.seed_domain: unknown key; did you mean acceptance_sets.NAME.seed_domain?"),
    ],
)
def test_what_would_do_nothing_is_refused(changes: dict[str, Any], line: str) -> None:
    assert findings(document(**changes))[0].startswith(line)


def test_a_control_is_one_name_or_several() -> None:
    assert parse_config(document()).control == ()
    assert parse_config(document(control="seed_only")).control == ("seed_only",)
    both = parse_config(document(control=["no_correction", "seed_only"]))
    assert parse_config(both.model_dump(mode="json")) == both
    assert both.control == ("no_correction", "seed_only")


def test_evidence_is_given_a_seed_domain() -> None:
    config = parse_config(document(acceptance={"evidence": {"max_forgetting": 0.1, "spending": "equal"}}, acceptance_sets=NEAR))
    assert build_policies(config).acceptance == Evidence(max_forgetting=0.1, spending="equal")


def write(folder: Path, content: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def findings(content: dict[str, Any]) -> list[str]:
    with pytest.raises(UserError) as refused:
        parse_config(content)
    return str(refused.value).splitlines()


WRITTEN = """
name: written
rounds: 3
seed_data: {data: {kind: shapes, seed: 1, min_shift: 0.0, max_shift: 0.1, num_images: 10}}
image_sets:
  - {kind: shapes, seed: 101, min_shift: 0.1, max_shift: 0.5, num_images: 1000}
  - {kind: shapes, seed: 102, min_shift: 0.3, max_shift: 0.7, num_images: 1000}
held_out:
  "0-0.15": {data: {kind: shapes, seed: 901, min_shift: 0.0, max_shift: 0.15, num_images: 200}}
  "0.2-0.4": {data: {kind: shapes, seed: 902, min_shift: 0.2, max_shift: 0.4, num_images: 200}}
acceptance_sets:
  near: {data: {kind: shapes, seed: 911, min_shift: 0.0, max_shift: 0.15, num_images: 150}}
correction:
  sentence_by_sentence: {num_views: 2, view_noise: 0.06}
filters:
  - parsable
  - length: {max_question_words: 30}
  - confidence: {min_mean_logprob: -0.05}
mixing:
  replay: {seed_share: 0.4}
training:
  num_steps: 160
"""


def overridden(*overrides: str) -> RunConfig:
    with TemporaryDirectory() as folder:
        return load_config(write(Path(folder), WRITTEN), overrides)


def refused_override(*overrides: str) -> list[str]:
    with pytest.raises(UserError) as refused:
        overridden(*overrides)
    return str(refused.value).splitlines()


def sections() -> list[type[BaseModel]]:
    modules = (config_module, engine_config, sets_module, training_config)
    found = [value for module in modules for value in vars(module).values() if isinstance(value, type) and issubclass(value, BaseModel)]
    return [value for value in dict.fromkeys(found) if value.__module__ in {module.__name__ for module in modules}]


def test_the_recipe_is_a_config_whose_policies_exist() -> None:
    config = load_config(RECIPE)
    assert (config.name, config.model, config.model_path) == ("shapes", "embedded", str(EMBEDDED_MODEL))
    assert {image_set.kind for image_set in config.image_sets} == {"shapes"}
    assert "follows_from_description" in [policy.name for policy in build_policies(config).filters.policies]


def test_a_view_has_a_name_and_its_earlier_name_means_the_same() -> None:
    before, now = (parse_config(document(generation={"view": name})) for name in ("flat_background", FLAT_BACKGROUND))
    assert before == now
    assert now.generation.options.view == FLAT_BACKGROUND
    with pytest.raises(UserError, match=r"^generation\.view: String should match pattern"):
        parse_config(document(generation={"view": "my views:flat"}))


def test_the_resolved_config_parses_again_to_the_same_config() -> None:
    for config in (load_config(RECIPE), parse_config(document()), overridden("engine=transformers", "selection.top_share.share=0.3")):
        dumped = config.model_dump(mode="json")
        assert parse_config(json.loads(json.dumps(dumped))) == config
        assert parse_config(yaml.safe_load(yaml.safe_dump(dumped))) == config


def test_every_field_of_every_section_is_described() -> None:
    assert len(sections()) >= 20
    missing = [
        f"{section.__name__}.{name}" for section in sections() for name, field in section.model_fields.items() if not field.description
    ]
    assert missing == []


def test_every_section_is_frozen_and_refuses_unknown_keys() -> None:
    assert all(section.model_config.get("frozen") and section.model_config.get("extra") == "forbid" for section in sections())


def test_the_least_config_has_every_other_value_by_default() -> None:
    config = parse_config(document())
    assert config.correction.policy == "sentence_by_sentence"
    assert config.engine.kind == "transformers"
    assert config.generation.instructions.policy == "canonical"
    assert config.filters[0].options == {}


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"roundz": 3}, "roundz: unknown key; did you mean rounds?"),
        ({"training": {"steps": 5}}, "training.steps: unknown key; did you mean training.num_steps?"),
        ({"rounds": 0}, "rounds: Input should be greater than or equal to 1 (given: '0')"),
        ({"rounds": "many"}, "rounds: Input should be a valid integer, unable to parse string as an integer (given: 'many')"),
        ({"name": "../x"}, "name: String should match pattern"),
        ({"training": {"learning_rate": float("inf")}}, "training.learning_rate: Input should be a finite number"),
        ({"generation": {"type_mix": {"detail": float("nan")}}}, "generation.type_mix.detail: Input should be a finite number"),
        ({"generation": {"type_mix": {"essay": 1.0}}}, "generation.type_mix.essay.[key]: Input should be 'conversation',"),
        ({"generation": {"type_mix": {"detail": 0.0}}}, "generation: type_mix"),
        ({"image_sets": []}, "image_sets: Tuple should have at least 1 item"),
        ({"image_sets": [{**SHAPES, "min_shift": 0.5}]}, "image_sets.0: min_shift 0.5 is above max_shift 0.1; swap them"),
        ({"image_sets": [{**SHAPES, "max_shift": 1.5}]}, "image_sets.0.max_shift: Input should be less than or equal to 1"),
        ({"image_sets": [{"kind": "video", "path": "x"}]}, "image_sets.0: Input tag 'video' found using 'kind' does not match"),
        ({"held_out": {}}, "held_out: Dictionary should have at least 1 item"),
        ({"engine": "vulkan"}, "engine: Input tag 'vulkan' found using 'kind' does not match any of the expected tags"),
        ({"engine": {"device": "tpu"}}, "engine.device: Input should be 'cpu' or 'cuda' (given: 'tpu')"),
        ({"engine": {"device": "cuda"}}, "config: engine.device cuda does not go with cluster.use_gpus false"),
        ({"cluster": {"use_gpus": True}}, "config: engine.device cpu does not go with cluster.use_gpus true"),
        ({"engine": {"dtype": "bfloat16"}}, "config: training.precision fp32 writes float32 weights"),
        ({"engine": {"kind": "vllm", "tensor_parallel_size": 0}}, "engine.tensor_parallel_size: Input should be greater than"),
        ({"engine": {"tensor_parallel_size": 2}}, "engine.tensor_parallel_size: unknown key"),
        ({"engine": {"kind": "vllm", "attest": "trust"}}, "engine.attest: Input should be 'auto', 'digest' or 'probe' (given: 'trust')"),
        ({"engine": {"kind": "vllm", "tensor_parallel_size": 2}}, "config: an engine of 2 processes with 1 thread(s) needs cluster.cpus"),
        ({"engine": ON_GPUS | {"tensor_parallel_size": 2}, "cluster": {"use_gpus": True}}, "config: an engine with engine.tensor"),
        ({"engine": ON_GPUS, "cluster": {"use_gpus": True}}, "config: engine.gpu_memory_utilization 0.85 leaves a colocated trainer"),
        ({"cluster": {"num_engines": 0}}, "cluster.num_engines: a number of at least 1 is expected, or auto (given: '0')"),
        ({"cluster": {"num_engines": 4, "max_engines": 8}}, "cluster: max_engines 8 does nothing with num_engines 4; set num_engines auto"),
        ({"cluster": {"num_engines": "auto", "min_engines": 9, "max_engines": 8}}, "cluster: min_engines 9 is more than max_engines 8;"),
        ({"cluster": {"sleep_while_training": True, "colocated": False}}, "cluster: sleep_while_training has no effect when"),
        ({"cluster": {"sleep_while_training": True}, "engine": "vllm"}, "config: cluster.sleep_while_training needs vLLM's sleep mode,"),
        ({"cluster": {"sleep_while_training": True}, "transport": "native"}, "config: transport native keeps a copy of the served weights"),
        ({"overlap": 2}, "overlap: Input should be 0 or 1"),
        ({"overlap": 1}, "config: overlap 1 has nothing to gain where engines and trainer ranks take turns on the same devices; give"),
        ({"overlap": 1, "cluster": {"sleep_while_training": True}}, "config: overlap 1 has nothing to gain where engines and trainer"),
        ({"stale_records": "drop"}, "config: stale_records drop does nothing with overlap 0, which leaves no stale records; drop it"),
        (
            {"overlap": 1, "cluster": {"colocated": False}, "stale_records": "correct", "correction": "none"},
            "config: stale_records correct changes nothing when correction is none; set stale_records keep or drop",
        ),
        ({"transport": "adapter"}, "config: transport adapter sends the adapter of training.lora, which is not set; set it, or"),
        (
            {"transport": "adapter", "engine": "vllm", "training": {"frozen": ["language_model"], "lora": {"rank": 600}}},
            "config: vLLM applies adapters up to rank 512, and training.lora.rank is 600; lower it",
        ),
        (
            {
                "transport": "adapter",
                "training": {"frozen": ["language_model"], "lora": {"rank": 4}},
                "generation": {"mean_teacher_decay": 0.7},
            },
            "config: generation.mean_teacher_decay 0.7 averages whole weights, and transport adapter sends adapters alone; set transport ",
        ),
        ({"generation": {"mean_teacher_decay": 0}}, "generation.mean_teacher_decay: Input should be greater than 0 (given: '0')"),
        ({"generation": {"mean_teacher_decay": 1}}, "generation.mean_teacher_decay: Input should be less than 1 (given: '1')"),
        ({"generation": {"structured": True}}, "config: generation.structured needs engine.kind vllm"),
        ({"cluster": {"address": "ray://head:10001"}}, "cluster.address: String should match pattern"),
        ({"cluster": {"address": "head:6379", "num_cpus": 2}}, "cluster: num_cpus can only be set for a local Ray; drop them, or drop"),
        ({"training": {"batch_size": 10, "gradient_accumulation": 3}}, "training: batch_size 10 is not a multiple of gradient_acc"),
        ({"training": {"batch_size": 9}}, "config: training.batch_size / gradient_accumulation = 9 cannot be shared by 2 trainer ranks"),
        ({"training": {"precision": "bf16"}}, "training: bf16 needs zero_stage 1, 2 or 3"),
        ({"training": {"frozen": ["eyes"]}}, "training: unknown parameter groups ['eyes']"),
        ({"training": {"frozen": ["projector"], "learning_rate_groups": {"projector": 0.1}}}, "training: ['projector'] are frozen"),
        ({"training": {"lora": {"rank": 4}}}, "training: lora trains adapters in place of the language model"),
        ({"training": {"lora": {"ranc": 4}, "frozen": ["language_model"]}}, "training.lora.ranc: Unexpected keyword argument"),
        ({"training": {"interpolation": 0}}, "training.interpolation: Input should be greater than 0 (given: '0')"),
        ({"mixing": 7}, "mixing: a policy is expected, as NAME or {NAME: {OPTION: VALUE}} (given: '7')"),
        ({"mixing": None}, "mixing: a policy is expected, as NAME or {NAME: {OPTION: VALUE}} (given: 'None')"),
        ({"mixing": {}}, "mixing: one policy is expected, as NAME or {NAME: {OPTION: VALUE}}, but the keys are []"),
        ({"mixing": {"replay": {}, "other": {}}}, "mixing: one policy is expected, as NAME or {NAME: {OPTION: VALUE}}, but the keys are"),
        ({"mixing": {"replay": 0.5}}, "mixing.options: Input should be a valid dictionary (given: '0.5')"),
        ({"mixing": {"policy": "replay", "seed_share": 1}}, "mixing.seed_share: unknown key"),
        ({"filters": ["parsable", 3]}, "filters.1: a policy is expected"),
        ({"filters": ["parsable", ":Mine"]}, "filters.1.policy: String should match pattern"),
        ({"filters": ["parsable", ".mine:Mine"]}, "filters.1.policy: String should match pattern"),
        ({"filters": ["parsable", ""]}, "filters.1.policy: String should match pattern"),
    ],
)  # fmt: skip
def test_a_bad_value_is_one_clear_line(change: dict[str, Any], finding: str) -> None:
    (line,) = findings(document(**change))
    assert line.startswith(finding)
    assert len(line) < 400


def test_a_missing_key_is_named() -> None:
    content = document()
    del content["filters"]
    assert findings(content) == ["filters: Field required"]


def test_several_findings_are_several_lines() -> None:
    assert [line.partition(":")[0] for line in findings(document(rounds=0, roundz=1, transport="pigeon"))] == [
        "rounds",
        "transport",
        "roundz",
    ]


@pytest.mark.parametrize(
    ("section", "name"),
    [
        ("mixing", "bootstrap"),
        ("correction", "second_thoughts"),
        ("selection", "best"),
        ("schedule", "backwards"),
        ("start", "nowhere"),
        ("acceptance", "never"),
        ("stop", "whenever"),
    ],
)
def test_a_policy_that_does_not_exist_is_named_with_those_that_do(section: str, name: str) -> None:
    with pytest.raises(UserError, match=rf"^unknown \w+ policy '{name}'; expected one of \[.*\] or your own as module:Name$"):
        build_policies(parse_config(document(**{section: name})))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"filters": ["parsabel"]}, "unknown filter policy 'parsabel'; expected one of "),
        ({"generation": {"instructions": "loud"}}, "unknown instruction policy 'loud'; expected one of "),
        ({"filters": ["my_filters:Mine"]}, "cannot load filter policy 'my_filters:Mine': No module named 'my_filters'; is its module on"),
        ({"generation": {"view": "flat"}}, "unknown view 'flat'; expected one of ['raw'] or your own as module:Name"),
        ({"generation": {"view": "my_views:mine"}}, "cannot load view 'my_views:mine': No module named 'my_views'; is its module on"),
        ({"mixing": {"replay": {"seed_share": 1.5}}}, "mixing policy 'replay' cannot be built from {'seed_share': 1.5}: seed_share is 1.5"),
        ({"mixing": {"replay": {"seed_part": 0.5}}}, "mixing policy 'replay' cannot be built from {'seed_part': 0.5}: "),
        ({"mixing": {"replay": {"seed_share": "half"}}}, "mixing policy 'replay' cannot be built from {'seed_share': 'half'}: "),
        ({"correction": "none", "filters": ["agreement"]}, "filter 'agreement' needs "),
        (
            {"control": "no_correction", "filters": ["agreement"], "correction": {"sentence_by_sentence": {"num_views": 1}}},
            "control no_correction would learn what the candidate learns: the filter agreement keeps only records whose answer correction",
        ),
        (
            {**DPO, "filters": ["agreement"]},
            "training.objective dpo has no pairs: the filter agreement keeps only records whose answer correction did not change; give it ",
        ),
        (
            {**DPO, "correction": {"sentence_by_sentence": {"num_views": 0}}},
            "training.objective dpo needs correction num_views of 1 or more (or its own min_agreement_gain null)",
        ),
    ],
)  # fmt: skip
def test_a_policy_that_cannot_work_is_one_clear_line(change: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as refused:
        build_policies(parse_config(document(**change)))
    assert str(refused.value).startswith(line)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("", "is not a mapping; expected keys such as those in"),
        ("- a\n- b\n", "is not a mapping; expected keys such as those in"),
        ("name: {a: [1\nb: }", "cannot read the config"),
        ("a: b: c\n", "cannot read the config"),
    ],
)
def test_a_file_that_is_no_config_is_one_clear_line(tmp_path: Path, content: str, line: str) -> None:
    with pytest.raises(UserError) as refused:
        load_config(write(tmp_path, content))
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00name")
    for path in (tmp_path / "missing.yaml", tmp_path, binary):
        with pytest.raises(UserError, match=f"^cannot read the config {path}: "):
            load_config(path)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="could not determine a constructor"):
        load_config(write(tmp_path, f"name: !!python/object/apply:os.mkdir [{tmp_path / 'made'}]\n"))
    assert not (tmp_path / "made").exists()


def test_overrides_reach_every_depth() -> None:
    config = overridden(
        "rounds=1", "training.num_steps=50", "image_sets.1.num_images=7", "generation.type_mix={detail: 1.0}", "model=org/name"
    )
    assert (config.rounds, config.training.num_steps, config.training.batch_size) == (1, 50, 64)
    assert [image_set.num_images for image_set in config.image_sets] == [1000, 7]
    assert config.generation.type_mix == {QuestionType.DETAIL: 1.0}
    assert config.model_path == "org/name"


def test_of_two_overrides_of_a_key_none_wins() -> None:
    assert overridden("rounds=2", "rounds=2").rounds == 2
    with pytest.raises(UserError, match="override rounds is given twice, as '1' and '2'"):
        overridden("rounds=1", "rounds=2")


def test_an_override_may_replace_a_list_or_an_entry_of_one() -> None:
    assert [one.policy for one in overridden("filters=[parsable, {length: {max_answer_words: 9}}]").filters] == ["parsable", "length"]
    config = overridden("filters.1=parsable", "filters.2.confidence.min_mean_logprob=-0.5")
    assert config.filters[1].policy == "parsable"
    assert config.filters[2].options == {"min_mean_logprob": -0.5}


def test_an_override_reaches_keys_that_hold_dots() -> None:
    config = overridden("held_out.0-0.15.num_questions=5", "held_out.0.2-0.4.data.num_images=6")
    assert config.held_out["0-0.15"].num_questions == 5
    assert config.held_out["0.2-0.4"].data.num_images == 6  # pyright: ignore[reportAttributeAccessIssue]
    assert (config.held_out["0.2-0.4"].num_questions, len(config.held_out)) == (200, 2)


def test_an_engine_that_sleeps_may_take_all_of_a_gpu_and_is_made_for_it() -> None:
    asleep = parse_config(document(engine=ON_GPUS, cluster={"use_gpus": True, "sleep_while_training": True}))
    assert VllmOptions(**asleep.engine_options) == VllmOptions(device="cuda", sleeps=True)
    awake = parse_config(document(engine=ON_GPUS, cluster={"use_gpus": True, "colocated": False}))
    assert VllmOptions(**awake.engine_options) == VllmOptions(device="cuda")
    on_cpu = parse_config(document(cluster={"sleep_while_training": True}))
    assert on_cpu.engine_options == on_cpu.engine.options, "the transformers engine need not be made for it"


def test_a_vllm_engine_is_one_word() -> None:
    config = overridden("engine=vllm")
    assert isinstance(config.engine, VllmEngineConfig)
    assert VllmOptions(**config.engine.options) == VllmOptions()
    assert config.engine.probed == "first"
    assert overridden("engine.kind=vllm", "engine.batch_size=8", "engine.attest=digest").engine.probed == "first"
    assert overridden("engine.kind=vllm", "engine.tensor_parallel_size=2", "cluster.cpus_per_actor=2").engine.probed == "always"


def test_tensor_parallel_engines_take_their_gpus() -> None:
    given = ("engine.kind=vllm", "engine.device=cuda", "cluster.use_gpus=true", "engine.tensor_parallel_size=4", "cluster.colocated=false")
    plan = plan_resources([NodeResources("node", 64, 16)], resource_request(overridden(*given)))
    assert [bundle.get("GPU", 0) for bundle in plan.bundles] == [4, 4, 1, 1, 0]


def test_an_engine_may_be_given_by_its_name() -> None:
    assert overridden("engine=transformers").engine == overridden().engine
    assert overridden("engine=transformers", "engine.batch_size=8").engine.batch_size == 8
    assert overridden("engine.batch_size=8").engine.kind == "transformers"


@pytest.mark.parametrize(
    "overrides",
    [
        ["mixing.replay.seed_share=0.7"],
        ["mixing.options.seed_share=0.7"],
        ["mixing={replay: {seed_share: 0.7}}"],
        ["mixing={policy: replay, options: {seed_share: 0.7}}"],
        ["mixing=replay", "mixing.replay.seed_share=0.7"],
        ["mixing=replay", "mixing.options.seed_share=0.7"],
        ["mixing={policy: replay}", "mixing.replay={seed_share: 0.7}"],
        ["mixing=null", "mixing.replay.seed_share=0.7"],
    ],
    ids=" ".join,
)
def test_a_policys_options_may_be_overridden_in_either_form(overrides: list[str]) -> None:
    mixing = overridden(*overrides).mixing
    assert (mixing.policy, mixing.options) == ("replay", {"seed_share": 0.7})


def test_a_policy_by_name_alone_has_no_options() -> None:
    assert (overridden("mixing=replay").mixing.options, overridden("selection=top_share").selection.policy) == ({}, "top_share")
    assert overridden("generation.instructions=varied").generation.instructions.policy == "varied"
    assert overridden("mixing.policy=other").mixing.policy == "other"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("rounds", "override 'rounds' is not of the form key=value, such as training.num_steps=50"),
        ("=3", "override '=3' is not of the form key=value, such as training.num_steps=50"),
        ("rounds=[1", "override 'rounds=[1' has a value that is not YAML: "),
        ("rounds=many", "rounds: Input should be a valid integer"),
        ("training.num_stepz=5", "training.num_stepz: unknown key; did you mean training.num_steps?"),
        ("trainings.num_steps=5", "trainings: unknown key; did you mean training?"),
        ("rounds.of.what=5", "override 'rounds.of.what': 'of' is not inside a mapping or list of the config"),
        ("image_sets.2.seed=5", "override 'image_sets.2.seed': '2' is not inside a mapping or list of the config"),
        ("image_sets.-1.seed=5", "override 'image_sets.-1.seed': '-1' is not inside a mapping or list of the config"),
        ("image_sets.first=5", "override 'image_sets.first': 'first' is not inside a mapping or list of the config"),
        ("correction.num_views=3", "correction: one policy is expected, as NAME or {NAME: {OPTION: VALUE}}, but the keys are"),
    ],
)
def test_a_bad_override_is_one_clear_line(override: str, line: str) -> None:
    (found,) = refused_override(override)
    assert found.startswith(line)


def test_a_model_folder_is_absolute_so_that_actors_find_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my-model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse_config(document(model="my-model")).model_path == str(tmp_path / "my-model")
    assert parse_config(document(model="org/my-model")).model_path == "org/my-model"


def test_the_trainer_and_the_engine_are_given_what_the_config_says() -> None:
    threads = "engine.num_threads=2", "engine.image_workers=3"
    config = overridden("training.frozen=[vision_tower]", "training.learning_rate_groups.projector=0.01", *threads)
    hyper = config.training.hyperparameters(num_samples=1)
    assert (hyper.num_steps, hyper.frozen, hyper.learning_rate_groups) == (160, ("vision_tower",), {"projector": 0.01})
    assert config.engine.options == {"batch_size": 64, "dtype": "float32", "device": "cpu", "num_threads": 2, "image_workers": 3}
    assert config.generation.options.max_new_tokens == 96


def test_epochs_reach_the_trainer_as_steps() -> None:
    text = {"num_steps": None, "num_epochs": 2, "batch_size": 64, "betas": [0.9, 0.999], "activation_checkpointing": True}
    hyper = parse_config(document(training=text)).training.hyperparameters(num_samples=640)
    assert (hyper.num_steps, hyper.betas, hyper.activation_checkpointing) == (20, (0.9, 0.999), True)


def test_adapters_reach_the_trainer() -> None:
    adapters = {"rank": 4, "targets": ["q_proj"]}
    config = parse_config(document(training={"frozen": ["vision_tower", "language_model"], "lora": adapters}))
    assert config.training.hyperparameters(num_samples=1).lora == Lora(rank=4, targets=("q_proj",))
    assert parse_config(config.model_dump(mode="json")) == config


def test_engines_are_told_what_adapters_to_expect() -> None:
    adapters = {"frozen": ["vision_tower", "language_model"], "lora": {"rank": 4, "targets": ["q_proj"]}}
    told = {"adapter_rank": 4, "adapter_targets": ("q_proj",)}
    for transport, kind in (("adapter", "vllm"), ("adapter", "transformers"), ("checkpoint", "vllm")):
        options = parse_config(document(transport=transport, engine=kind, training=adapters)).engine_options
        assert {key: options[key] for key in told.keys() & options} == (told if (transport, kind) == ("adapter", "vllm") else {})


@pytest.mark.parametrize("other", ["a_b", "a@b", "a  b", "a b ", "\uff41 b"])
def test_names_of_sets_that_mlflow_or_a_table_shows_as_one_are_refused(tmp_path: Path, other: str) -> None:
    one = CONFIG["held_out"]["near"]
    for kind in ("held_out", "acceptance_sets"):
        with pytest.raises(UserError, match=f"config: {kind} has .*MLflow and tables show as one") as refused:
            load_config(write_config(tmp_path, **{kind: {"a b": one, other: one}}))
        assert "'a b'" in str(refused.value)
        assert repr(other) in str(refused.value)
    assert load_config(write_config(tmp_path, held_out={"a b": one, "a.b": one, "测试": one, "考试": one}))
