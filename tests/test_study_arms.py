"""The arms of a study: how they are read, their budgets, and the tables that ship."""

import dataclasses
import importlib
from pathlib import Path

import pytest

from configs import paper
from configs.study import base
from dasm_jax import plan
from dasm_jax.errors import UserError
from dasm_jax.experiments import arms, study
from dasm_jax.experiments.sets import DISTILLED, segment_ends
from dasm_jax.problem import make_problem
from dasm_jax.settings import from_config
from tests.small import small_dataset
from tests.test_study import ARMS, _small_data, settings_with, start  # noqa: F401  (fixtures)

# --- arms -----------------------------------------------------------------------------


def arms_with(*lines, baseline="dasm"):
    return arms.arms_of(settings_with(study__arms=lines, study__baseline=baseline))


def test_arms_are_read_with_the_types_of_their_fields():
    found = arms_with(
        "dasm",
        "random",
        "a_b-1: dasm.rho=1 dasm.segments=2  synthetic.init=noise",
        "turns: matcher.idc.image.class_turns=true",
        "idc: matcher.idc.image.lr=1e-2",
        "as_is:",
    )
    assert [arm.changes for arm in found.values()] == [
        {},
        None,
        {"dasm.rho": 1.0, "dasm.segments": 2, "synthetic.init": "noise"},
        {"matcher.idc.image.class_turns": True},
        {**DISTILLED["idc"], "matcher.idc.image.lr": 0.01},
        {},
    ]
    assert type(found["a_b-1"].changes["dasm.rho"]) is float
    assert found["a_b-1"].text == "dasm.rho=1.0 dasm.segments=2 synthetic.init=noise"


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("x: dasm.rho=2", ("arm 'x'", "config.dasm.rho", "[0, 1]")),
        ("x: dasm.rho=low", ("arm 'x'", "config.dasm.rho", "float", "'low'")),
        ("x: dasm.segments=2.0", ("arm 'x'", "config.dasm.segments", "int")),
        ("x: dasm.rh=0.2", ("arm 'x'", "'config.dasm.rh'", "did you mean 'rho'")),
        ("x: dasm.pool=windw", ("arm 'x'", "dasm.pool", "did you mean 'window'")),
        ("x: dasm=2", ("arm 'x'", "config.dasm is a group")),
        ("x: matcher.idc.image.class_turns=2", ("arm 'x'", "class_turns", "bool")),
        ("x: evaluate.steps=9", ("arm 'x'", "evaluate.steps", "the same for all")),
        ("x: dasm.rho 0.2", ("arm 'x'", "field=value")),
        ("x: dasm.rho=0.2 dasm.rho=0.3", ("arm 'x'", "dasm.rho is there twice")),
        ("herding: dasm.rho=0.2", ("arm 'herding'", "selects real images")),
        ("herdin", ("arm 'herdin'", "did you mean 'herding'")),
        ("a/b: dasm.rho=0.2", ("'a/b: dasm.rho=0.2'", "name")),
        ("Full:", ("'full'", "name")),
        ("x: dasm.segments=__import__('os')", ("arm 'x'", "int")),
    ],
)
def test_a_mistake_in_an_arm_names_it_and_the_field(line, parts):
    with pytest.raises(UserError) as caught:
        arms_with("dasm", line)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_arms_and_baseline_go_together():
    for lines, baseline, message in [
        (("dasm", "x: dasm.rho=0.1", "x: dasm.rho=0.2"), "dasm", "two arms named 'x'"),
        (("dasm",), "das", "did you mean 'dasm'"),
        (("dasm", "random"), "random", "name an arm that is matched"),
        (("dasm", "random"), "random, dasm", "name an arm that is matched first"),
        (("dasm", "idc"), "dasm, ids", "baseline='ids'.*did you mean 'idc'"),
        (("dasm",), "dasm,", "baseline=''"),
    ]:
        with pytest.raises(UserError, match=message):
            arms_with(*lines, baseline=baseline)
    # Real images may stand for what others are held against, once FLOPs are settled.
    arms_with("dasm", "random", baseline="dasm, random")
    several = settings_with(study__baseline=" one,dasm , one").study
    assert several.baselines == ("one", "dasm")


def test_what_does_not_hold_together_names_the_arm(tmp_path):
    with pytest.raises(UserError, match=r"arm 'x' .*quantile window is reversed"):
        start(tmp_path, study__arms=(*ARMS, "x: dasm.rho=0.96"))
    with pytest.raises(UserError, match="leaves tiles of 2 px"):
        start(tmp_path, study__arms=(*ARMS, "x: synthetic.factor=4"))
    assert not (tmp_path / "config.json").exists()


# --- budgets --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "dasm.segments=2",
        pytest.param("matcher.name=idc", marks=pytest.mark.slow),
        pytest.param("dasm.segments=4", marks=pytest.mark.slow),
    ],
)
def test_a_run_is_as_long_as_the_baseline_costs(text):
    s = settings_with()
    one, other = arms.parse("one: dasm.segments=1"), arms.parse(f"x: {text}")
    base = make_problem(arms.settings_of(one, s, 4, 0), small_dataset(2))
    target = 5 * plan.total_flops(plan.plan_segments(base))
    own = arms.settings_of(other, s, 4, 0)
    problem = make_problem(own, small_dataset(2))
    niter, flops = plan.fitting_niter(problem, target)

    def total(n):
        longer = study.changed(own, {f"matcher.{own.matcher.name}.loop.niter": n})
        return plan.total_flops(plan.plan_segments(problem._replace(settings=longer)))

    assert total(niter) == flops
    others = [total(n) for n in range(1, 3 * niter)]
    assert abs(flops - target) == min(abs(each - target) for each in others)


def test_fitting_a_run_of_nothing_is_one_iteration():
    problem = make_problem(settings_with(ipc=4), small_dataset(2))
    assert plan.fitting_niter(problem, 0.0)[0] == 1


# --- the configs ----------------------------------------------------------------------

TABLES = ("controls", "choices", "levers", "prefixes", "final")


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize(
    "dataset",
    [
        "digits",
        "fashion_mnist_small",
        "fashion_mnist_narrow",
        "cifar10_small",
        "fashion_mnist",
        "cifar10",
    ],
)
def test_every_table_is_valid_on_every_dataset(name, dataset):
    module = importlib.import_module(f"configs.study.{name}")
    s = from_config(module.get_config(dataset))
    assert (s.experiment, s.study.name) == ("study", name)
    assert f"--config=configs/study/{name}.py:digits" in module.__doc__
    assert (s.data.validation == 0) == (name == "final")
    assert len(s.study.seeds) >= 3
    assert s.evaluate.networks >= 3
    small = {
        "cifar10_small": (3, 16),
        "fashion_mnist_narrow": (3, 16),
        "fashion_mnist_small": (2, 32),
        "digits": (2, 32),
    }
    assert (s.network.depth, s.network.width) == small.get(dataset, (3, 128))
    for arm in arms.arms_of(s).values():
        for ipc in s.study.ipcs:
            if not arm.selected:
                arms.settings_of(arm, s, ipc, 0)


@pytest.mark.parametrize(
    ("name", "own"), [("controls", "dasm"), ("final", "grow_strict")]
)
@pytest.mark.parametrize("dataset", base.DATASETS)
def test_a_run_has_prefixes_of_every_size_of_its_table(name, own, dataset):
    module = importlib.import_module(f"configs.study.{name}")
    s = from_config(module.get_config(dataset))
    assert s.study.prefixes
    assert s.study.baselines == ("idc", own)  # made for each size, to be held against
    largest = max(s.study.ipcs)
    made = [a for a in arms.arms_of(s).values() if not a.selected]
    runs = [arms.settings_of(arm, s, largest, 0) for arm in made]
    ends = [segment_ends(largest, run.dasm.segments) for run in runs]
    assert any({*s.study.ipcs} <= {*each} for each in ends)


@pytest.mark.parametrize("dataset", base.DATASETS)
@pytest.mark.parametrize("name", ["levers", "prefixes", "final"])
def test_the_tables_know_the_defaults(name, dataset):
    """They start from the paper's reading, so that defaults are an arm of theirs."""
    module = importlib.import_module(f"configs.study.{name}")
    s = from_config(module.get_config(dataset))
    made = arms.settings_of(arms.arms_of(s)["grow_strict"], s, 50, 0)
    own = from_config(base.DATASETS[dataset][0].get_config())
    # Without a polish its rate and target say nothing.
    assert own.dasm.polish == 0
    says_nothing = ("polish_rate", "polish_target")
    same = {name: getattr(own.dasm, name) for name in says_nothing}
    assert dataclasses.replace(made.dasm, **same) == own.dasm
    assert made.synthetic == own.synthetic
    assert made.dasm != s.dasm == from_config(paper.get_config(dataset)).dasm


def test_choices_are_made_with_other_seeds_than_the_final_table():
    chosen, final = (
        set(
            importlib.import_module(f"configs.study.{n}")
            .get_config("digits")
            .study.seeds
        )
        for n in ("choices", "final")
    )
    assert not chosen & final


def test_a_table_without_a_dataset_says_which_there_are():
    for dataset in ("", "mnist"):
        with pytest.raises(ValueError, match=r"controls\.py:digits, controls\.py:fash"):
            importlib.import_module("configs.study.controls").get_config(dataset)


def test_the_files_of_the_tables_are_short():
    for path in (Path(__file__).parents[1] / "configs" / "study").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 350
        assert path.stem in (*TABLES, "base")
