"""Configuration: defaults <- YAML <- key=value, with errors that name the key and what would be right."""

import dataclasses
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from min_llm.config import UserError, build, dump, fields_help, flatten, load, nearest, option, read, to_yaml
from min_llm.models import preset, presets
from min_llm.models.gpt2 import Config as GPT2Config
from min_llm.models.llama import Config as LlamaConfig
from min_llm.nn.rope import RopeScaling
from min_llm.train.config import RunConfig


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = option(0.1, "a rate")
    kind: Literal["a", "b", 3] = option("a", "one of few")
    names: tuple[str, ...] = option(("x",), "several")


@dataclasses.dataclass(frozen=True)
class Outer:
    steps: int
    inner: Inner = option(Inner(), "")
    window: int | None = option(None, "or none")
    either: int | str = option(1, "")
    on: bool = option(False, "")
    table: dict[str, int] = option({}, "")
    anything: Any = option(None, "")


def file(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# Merging ----------------------------------------------------------------------------------------------------


def test_the_file_overrides_defaults_and_the_command_line_the_file(tmp_path):
    path = file(tmp_path, "steps: 5\ninner: {rate: 0.5, kind: b}\nwindow: 7\n")
    cfg = load(Outer, path, ["inner.rate=2", "window=null", "on=true", "inner.names=[y,z]", "table.q=4"])
    assert cfg == Outer(5, Inner(2.0, "b", ("y", "z")), None, on=True, table={"q": 4})
    assert isinstance(cfg.inner.rate, float)


def test_without_a_file_the_command_line_is_enough():
    assert load(Outer, None, ["steps=3"]) == Outer(3)


def test_references_inside_a_file_are_resolved(tmp_path):
    assert load(Outer, file(tmp_path, "steps: 4\nwindow: ${steps}\n")).window == 4


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("steps: [1", (), "config.yaml is not readable YAML"),
        ("- 1\n- 2\n", (), "must hold sections with keys"),
        ("steps: 1\nwindow: ${nowhere}", (), "cannot be merged"),
        ("steps: 1", ("steps",), "'steps' is not a setting; write key=value"),
        ("steps: 1", ("=3",), "'=3' is not a setting"),
        ("steps: 1", ("inner.rate=[1",), "cannot be merged"),
    ],
)
def test_what_cannot_be_read_is_a_sentence(tmp_path, text, overrides, message):
    with pytest.raises(UserError, match=message):
        load(Outer, file(tmp_path, text), overrides)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="no configuration file '.*absent.yaml'"):
        load(Outer, tmp_path / "absent.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not readable YAML"):
        load(Outer, tmp_path / "bytes.yaml")


def test_an_empty_file_is_a_configuration_of_defaults(tmp_path):
    assert read(file(tmp_path, "")) == {}


# Keys and types ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"step": 1}, "^Unknown configuration key 'step'. Did you mean 'steps'"),
        ({"steps": 1, "inner": {"rat": 1}}, "^Unknown configuration key 'inner.rat'. Did you mean 'rate'"),
        ({"steps": 1, "inner": {"zzz": 1}}, "'inner.zzz'. Valid: kind, names, rate"),
        ({}, "needs 'steps', which has no default"),
        ({"steps": "many"}, r"'steps' is 'many' \(str\); expected int"),
        ({"steps": 1.5}, r"'steps' is 1.5 \(float\); expected int"),
        ({"steps": True}, r"'steps' is True \(bool\); expected int"),
        ({"steps": None}, r"'steps' is None \(NoneType\); expected int"),
        ({"steps": 1, "on": 1}, r"'on' is 1 \(int\); expected bool"),
        ({"steps": 1, "on": "yes"}, "expected bool"),
        ({"steps": 1, "inner": {"rate": "fast"}}, r"'inner.rate' is 'fast' \(str\); expected float"),
        ({"steps": 1, "inner": {"rate": False}}, "expected float"),
        ({"steps": 1, "inner": {"kind": "c"}}, "'inner.kind' is 'c'; it must be one of: a, b, 3"),
        ({"steps": 1, "inner": {"names": "x"}}, r"'inner.names' is 'x' \(str\); expected tuple"),
        ({"steps": 1, "inner": {"names": ["x", 2]}}, r"'inner.names\[1\]' is 2 \(int\); expected str"),
        ({"steps": 1, "inner": 5}, "inner must be a section with keys, but it is 5"),
        ({"steps": 1, "window": "wide"}, r"'window' is 'wide' \(str\); expected int"),
        ({"steps": 1, "either": 1.5}, r"'either' is 1.5 \(float\); expected int or str"),
        ({"steps": 1, "table": {"a": "b"}}, r"'table.a' is 'b' \(str\); expected int"),
        (7, "the configuration must be a section with keys"),
    ],
)
def test_wrong_keys_and_types_say_what_would_be_right(given, message):
    with pytest.raises(UserError, match=message):
        build(Outer, given)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_infinite_number_is_not_an_integer(value):
    with pytest.raises(UserError, match="expected int"):
        build(Outer, {"steps": value})


def test_yaml_s_own_way_with_numbers_is_understood():
    assert build(Outer, {"steps": 1e5}).steps == 100_000  # YAML reads 1e5 as a float
    assert isinstance(build(Outer, {"steps": 1e5}).steps, int)
    assert isinstance(build(Outer, {"steps": 1, "inner": {"rate": 3}}).inner.rate, float)
    assert load(Outer, None, ["steps=1", "inner.rate=3e-4"]).inner.rate == 3e-4


def test_the_nearest_name_or_all_of_them():
    assert nearest("lamma", ["llama", "gpt2"]) == " Did you mean 'llama'?"
    assert nearest("xyz", ["llama", "gpt2"]) == " Valid: gpt2, llama."


# There and back ---------------------------------------------------------------------------------------------

# texts that YAML or OmegaConf would read as something else
TEXTS = st.text(max_size=5) | st.sampled_from(
    [
        "1e5",
        "null",
        "yes",
        "~",
        "???",
        "${x}",
        "${",
        "\\${x}",
        "a${b\\\\${c}",
        "0x1f",
        "1:30",
        "a: b",
        "#x",
        " x ",
        "\r\n",
    ]
)
INNERS = st.builds(
    Inner,
    rate=st.floats(allow_nan=False),
    kind=st.sampled_from(["a", "b", 3]),
    names=st.lists(TEXTS, max_size=3).map(tuple),
)
OUTERS = st.builds(
    Outer,
    steps=st.integers(-(10**9), 10**9),
    inner=INNERS,
    window=st.none() | st.integers(0, 100),
    either=st.integers(0, 9) | TEXTS,
    on=st.booleans(),
    table=st.dictionaries(st.text(min_size=1, max_size=4), st.integers(0, 9), max_size=2),
)


@settings(max_examples=100, deadline=None)
@given(OUTERS)
def test_a_dump_builds_the_same_configuration(cfg):
    assert build(Outer, dump(cfg)) == cfg


@settings(max_examples=100, deadline=None)
@given(OUTERS)
def test_yaml_carries_every_value(tmp_path_factory, cfg):
    """Strings like "1e5", "null", "yes" or "${x}" come back as the strings they were."""
    path = tmp_path_factory.mktemp("yaml") / "config.yaml"
    path.write_text(to_yaml(cfg), encoding="utf-8")
    assert load(Outer, path) == cfg


RUNS = [
    {},
    {"model": {"family": "gpt2", "bias": False, "dim": 48, "n_heads": 6}},
    {"model": {"preset": "llama3.2-1b", "n_layers": 2, "vocab_size": 300}},
    {"model": {"preset": "gpt2"}, "train": {"steps": 7, "micro_batches": 2}, "optim": {"schedule": "wsd"}},
    {"model": {"rope_scaling": {"factor": 32}, "window": 16}, "sample": {"prompts": ["a: b", "#", "\n", ""]}},
]


@pytest.mark.parametrize("given", RUNS, ids=str)
def test_a_run_s_configuration_is_complete_and_comes_back_from_its_file(tmp_path, given):
    cfg = build(RunConfig, given)
    path = file(tmp_path, to_yaml(cfg))
    assert load(RunConfig, path) == cfg
    assert {"name", "seed", "model.family", "model.dim", "optim.lr", "runtime.dtype"} <= set(
        flatten(read(path))
    )


def test_the_model_section_becomes_the_family_s_own_class():
    assert build(RunConfig, {}).model == LlamaConfig()
    assert type(build(RunConfig, {"model": {"family": "gpt2"}}).model) is GPT2Config
    scaled = build(RunConfig, {"model": {"rope_scaling": {"factor": 32}}}).model
    assert scaled.rope_scaling == RopeScaling(factor=32.0)
    assert build(RunConfig, {"model": {"preset": "llama3-8b"}}).model == preset("llama3-8b")


@pytest.mark.parametrize("name", presets())
def test_a_preset_can_be_given_on_the_command_line(name):
    cfg = load(RunConfig, None, [f"model.preset={name}", "model.vocab_size=300"])
    assert cfg.model == dataclasses.replace(preset(name), vocab_size=300)


def test_overriding_the_preset_of_a_file(tmp_path):
    path = file(tmp_path, "model: {preset: mini-1m, vocab_size: 300}\n")
    assert load(RunConfig, path, ["model.n_layers=2"]).model == dataclasses.replace(
        preset("mini-1m"), vocab_size=300, n_layers=2
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trian.steps=3", "Unknown configuration key 'trian'. Did you mean 'train'"),
        ("train.step=3", "Unknown configuration key 'train.step'. Did you mean 'steps'"),
        ("model.n_head=3", "Unknown configuration key 'model.n_head'. Did you mean 'n_heads'"),
        ("optim.schedule=cosin", "'optim.schedule' is 'cosin'; it must be one of: cosine"),
        ("optim.lr=fast", r"'optim.lr' is 'fast' \(str\); expected float"),
        (
            "optim.decay_roles=[matrices]",
            "'optim.decay_roles\\[0\\]' is 'matrices'; it must be one of: matrix",
        ),
        ("train=3", "train must be a section with keys, but it is 3"),
        ("model=llama", "model must be a section with keys, but it is 'llama'"),
        ("runtime.attention=flash", "'runtime.attention' is 'flash'; it must be one of: auto, reference"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(override, message):
    with pytest.raises(UserError, match=message):
        load(RunConfig, None, [override])


# Help -------------------------------------------------------------------------------------------------------


def test_help_lists_every_setting_with_its_type_and_default():
    rows = {key: (kind, default, text) for key, kind, default, text in fields_help(Outer)}
    assert rows["steps"] == ("int", "", "")
    assert rows["inner.rate"] == ("float", "0.1", "a rate")
    assert rows["inner.kind"] == ("a|b|3", "a", "one of few")
    assert rows["window"] == ("int or null", "null", "or none")


def test_every_setting_of_a_run_is_explained():
    unexplained = [
        key for key, _, _, text in fields_help(RunConfig) if not text and not key.startswith("model.")
    ]
    assert unexplained == []


def test_flattening():
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}
