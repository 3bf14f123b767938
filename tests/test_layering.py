"""Imports point one way, and each foreign library stays in its place."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dasm_jax"
LONGEST_FILE = 350

# A module may import from its own row or from rows below it, directly or through
# modules that are not listed.
ROWS = [
    ["main"],
    ["dasm_jax.run"],
    ["dasm_jax.experiments"],
    ["dasm_jax.measures"],
    ["dasm_jax.snapshots"],
    ["dasm_jax.dasm", "dasm_jax.evaluate"],
    ["dasm_jax.polish"],
    ["dasm_jax.segment_setup"],
    ["dasm_jax.progress"],
    [
        "dasm_jax.clusters",
        "dasm_jax.coreset",
        "dasm_jax.covering",
        "dasm_jax.judges",
        "dasm_jax.plan",
        "dasm_jax.pools",
        "dasm_jax.starts",
        "dasm_jax.supply",
    ],
    ["dasm_jax.report"],
    ["dasm_jax.problem", "dasm_jax.run_log", "dasm_jax.workdir"],
    ["dasm_jax.methods", "dasm_jax.recipes", "dasm_jax.settings"],
    ["dasm_jax.hosts"],
    ["dasm_jax.distill", "dasm_jax.schema"],
    ["dasm_jax.experts", "dasm_jax.learners", "dasm_jax.objectives"],
    [
        "dasm_jax.augment",
        "dasm_jax.bootstrap",
        "dasm_jax.budget",
        "dasm_jax.checks",
        "dasm_jax.image_optimizer",
        "dasm_jax.initial",
        "dasm_jax.matching",
        "dasm_jax.parameterization",
        "dasm_jax.recovery",
        "dasm_jax.sampling",
        "dasm_jax.schedule",
        "dasm_jax.scoring",
        "dasm_jax.segment",
        "dasm_jax.selection",
        "dasm_jax.stored_counts",
        "dasm_jax.synthetic_files",
        "dasm_jax.trainers",
        "dasm_jax.training",
        "dasm_jax.whitening",
    ],
    [
        "dasm_jax.numbered",
    ],
    ["dasm_jax.checkpoint"],
    [
        "dasm_jax.data",
        "dasm_jax.device_memory",
        "dasm_jax.errors",
        "dasm_jax.files",
        "dasm_jax.host_memory",
        "dasm_jax.keys",
        "dasm_jax.loops",
        "dasm_jax.memo",
        "dasm_jax.mesh",
        "dasm_jax.nets",
        "dasm_jax.npz",
        "dasm_jax.ranking",
        "dasm_jax.records",
        "dasm_jax.signals",
        "dasm_jax.stored_tree",
        "dasm_jax.plot_style",
        "dasm_jax.plots",
        "dasm_jax.report_parts",
    ],
    ["dasm_jax.types"],
]

# Who may import what; a path that ends in / is a folder.
HOMES = {
    "ml_collections": ["main.py", "configs/", "dasm_jax/settings.py"],
    "absl": ["main.py"],
    "tensorflow_datasets": ["dasm_jax/data/"],
    "tensorflow": [],
    "flax": ["dasm_jax/nets/"],
    "orbax": ["dasm_jax/stored_tree.py"],
    "jinja2": ["dasm_jax/report.py"],
    "matplotlib": ["dasm_jax/plot_style.py", "dasm_jax/plots.py"],
    "random": [],  # randomness is derived from keys
    "torch": [],
}


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    name_of(path): path
    for path in [ROOT / "main.py", *PACKAGE.rglob("*.py"), *ROOT.glob("configs/*.py")]
}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}


def imports(tree):
    """Names that are imported anywhere in a file, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def module_of(target):
    """The file that a name comes from, if it is one of ours."""
    for name in (target, target.rpartition(".")[0]):
        if name in FILES:
            return name
    return None


GRAPH = {
    name: {module_of(target) for target in imports(tree)} - {None, name}
    for name, tree in TREES.items()
}


def reachable(name):
    """Modules that ``name`` needs, with a way to get there."""
    ways, waiting = {}, [(name, (name,))]
    while waiting:
        current, way = waiting.pop()
        for target in GRAPH[current]:
            if target not in ways:
                ways[target] = (*way, target)
                waiting.append((target, ways[target]))
    return ways


def row_of(name):
    for row, members in enumerate(ROWS):
        if any(name == m or name.startswith(f"{m}.") for m in members):
            return row
    return None


def test_imports_are_seen():
    assert "dasm_jax.sampling" in GRAPH["dasm_jax.training"]
    assert "dasm_jax.run" in GRAPH["main"]  # inside a function
    assert "dasm_jax.types" in reachable("dasm_jax.run")
    assert {m for row in ROWS for m in row} - set(FILES) == set()


def test_no_cycle():
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail("imports go round: " + " → ".join(error.args[1]))


def test_imports_point_down():
    wrong = []
    for name in FILES:
        row = row_of(name)
        for target, way in reachable(name).items() if row is not None else ():
            above = row_of(target)
            if above is not None and above < row:
                wrong.append(" → ".join(way))
    assert wrong == []


def test_foreign_libraries_stay_at_home():
    wrong = []
    for name, tree in TREES.items():
        path = str(FILES[name].relative_to(ROOT))
        for target in imports(tree):
            homes = HOMES.get(target.split(".")[0])
            if homes is not None and not any(
                path.startswith(home) if home.endswith("/") else path == home
                for home in homes
            ):
                wrong.append(f"{path} imports {target}")
    assert wrong == []


def test_no_numpy_randomness():
    wrong = []
    for name, tree in TREES.items():
        wrong += [f"{name} imports {t}" for t in imports(tree) if "numpy.random" in t]
        for node in ast.walk(tree):
            if ast.unparse(node) in ("np.random", "numpy.random"):
                wrong.append(f"{name}:{node.lineno}")
    assert wrong == []


def test_files_are_short():
    lengths = {name: len(FILES[name].read_text().splitlines()) for name in FILES}
    assert {n: count for n, count in lengths.items() if count > LONGEST_FILE} == {}
