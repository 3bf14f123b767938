"""A whole run: what it writes, that it repeats, and how it refuses."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dasm_jax import device_memory, divergence, run
from dasm_jax.errors import NonFiniteError, UserError
from dasm_jax.experiments import common, distill
from dasm_jax.settings import check_key, from_config
from tests.small import small_config, small_dataset

ROOT = Path(__file__).parent.parent
DIGITS = "--config=configs/digits.py"


@pytest.fixture(autouse=True)
def _small_data(monkeypatch):
    monkeypatch.setattr(common, "load_dataset", lambda *a, **k: small_dataset(2))


def start(workdir, **changes):
    changes = {"network__depth": 1, **changes}  # compiled in half the time
    return run.run(from_config(small_config(**changes)), str(workdir))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "load_dataset", lambda *a, **k: small_dataset(2))
        workdir = tmp_path_factory.mktemp("finished")
        return workdir, start(workdir)


def test_table_and_paths(finished):
    workdir, text = finished
    assert all(len(line) <= 80 for line in text.splitlines()[:8])
    table = json.loads((workdir / "summary.json").read_text())["table"]
    rows = [(row["set"], row["ipc"]) for row in table]
    assert rows == [
        ("DASM", 2),
        ("Random", 2),
        ("DASM", 4),
        ("Random", 4),
        ("Full", 40),
    ]
    for row in table:
        assert len(row["networks"]) == 2
        assert row["mean"] == pytest.approx(np.mean(row["networks"]))
        assert row["std"] == pytest.approx(np.std(row["networks"], ddof=1))
        assert f"{100 * row['mean']:.1f} ± {100 * row['std']:.1f}" in text


def test_a_prefix_has_the_flops_of_its_segments(finished):
    workdir, text = finished
    summary = json.loads((workdir / "summary.json").read_text())
    found = [row.get("matching_flops") for row in summary["table"]]
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    records = [each for each in map(json.loads, lines) if each["kind"] == "segment"]
    first, second = (each["matching_flops"] for each in records)
    assert found == [first, None, first + second, None, None]
    assert summary["matching_flops"] == first + second
    shown = [line.split()[-1] for line in text.splitlines()[2:6]]
    assert shown[:3] == ["FLOPs", f"{first:.3g}", f"{first + second:.3g}"]


def test_synthetic_file_is_complete_and_holds_no_pickle(finished):
    workdir, _ = finished
    with np.load(workdir / "synthetic.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    assert arrays["images"].shape == (8, 8, 8, 1)
    assert arrays["images"].dtype == np.float32
    assert arrays["labels"].tolist() == [0, 0, 1, 1] * 2
    assert arrays["segments"].tolist() == [1] * 4 + [2] * 4
    np.testing.assert_array_equal(
        arrays["images"], arrays["stored_pixels"][arrays["source"]]
    )
    assert arrays["stored_labels"].tolist() == [0, 0, 1, 1] * 2
    assert int(arrays["factor"]) == 1
    assert arrays["class_names"].tolist() == ["0", "1"]
    train = small_dataset(2).train.images / 255
    np.testing.assert_allclose(arrays["mean"], train.mean(), rtol=1e-5)
    np.testing.assert_allclose(arrays["std"], train.std(), rtol=1e-5)


@pytest.mark.slow
def test_the_whitening_goes_with_the_set(finished, tmp_path):
    workdir, _ = finished
    start(tmp_path, data__zca=True, evaluate__networks=1)
    with np.load(workdir / "synthetic.npz") as file:
        assert not [name for name in file.files if "zca" in name]
    with np.load(tmp_path / "synthetic.npz", allow_pickle=False) as file:
        mean, std, images = file["mean"], file["std"], file["images"]
        shift, matrix, inverse = (
            file[f"zca_{name}"] for name in ("mean", "matrix", "inverse")
        )
    assert images.min() >= 0  # the images themselves are as they look
    train = small_dataset(2).train.images / np.float32(255)
    flat = ((train - mean) / std).reshape(len(train), -1)
    seen = (flat - shift) @ matrix
    covariance = np.cov(seen.T)
    # Directions that vary much more than epsilon = 0.1 end up with a variance near 1.
    assert np.linalg.eigvalsh(covariance)[-5:] == pytest.approx(1, abs=0.1)
    np.testing.assert_allclose(seen @ inverse + shift, flat, atol=1e-4)


@pytest.mark.slow
def test_decoded_images_belong_to_their_class_and_segment(tmp_path):
    start(tmp_path, synthetic__factor=2, evaluate__networks=1)
    with np.load(tmp_path / "synthetic.npz") as file:
        assert file["images"].shape == (32, 8, 8, 1)
        source = file["source"]
        for name in ("labels", "segments"):
            np.testing.assert_array_equal(file[name], file[f"stored_{name}"][source])
        assert np.bincount(source).tolist() == [4] * 8


def test_logs_and_pictures(finished):
    workdir, _ = finished
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    kinds = [json.loads(line)["kind"] for line in lines]
    assert kinds.count("outer") == 4
    assert kinds.count("segment") == 2
    assert kinds.count("evaluation") == 5
    manifest = json.loads((workdir / "manifest.json").read_text())
    assert manifest["data_hash"] == "small"
    phases = {"data", "plan", "distill", "measure", "evaluate"}
    assert set(manifest["wall_seconds"]) == phases
    assert manifest["versions"]["jax"]
    assert manifest["peak_memory_bytes"]["process"] > 1e6
    assert json.loads((workdir / "config.json").read_text())["ipc"] == 4
    assert "left" in (workdir / "log.txt").read_text()
    pictures = sorted(path.name for path in (workdir / "images").iterdir())
    assert pictures == ["segment_01.png", "segment_02.png"]


def test_same_seed_same_bytes(finished, tmp_path):
    workdir, _ = finished
    start(tmp_path / "again")
    start(tmp_path / "other", seed=1)
    first, again, other = (
        (folder / "synthetic.npz").read_bytes()
        for folder in (workdir, tmp_path / "again", tmp_path / "other")
    )
    assert first == again
    assert first != other


@pytest.mark.slow
def test_idc_is_named_in_the_table(tmp_path):
    assert "IDC" in start(tmp_path, dasm__segments=1, evaluate__networks=1)


# --- refusals -------------------------------------------------------------------------


def test_workdir_of_another_config(finished):
    workdir, _ = finished
    with pytest.raises(UserError, match=r"differs in matcher\.idc\.image\.lr, seed"):
        start(workdir, seed=5, matcher__idc__image__lr=0.1)


def test_a_finished_run_is_left_as_it_is(finished, monkeypatch):
    workdir, text = finished
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    monkeypatch.setattr(common, "load_dataset", None)  # calling it would fail
    again = start(workdir)
    assert "finished before" in again
    assert again.splitlines()[:8] == text.splitlines()[:8]
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before


def test_a_finished_run_says_which_of_its_files_were_removed(finished):
    workdir, text = finished
    assert "not there any more" not in text
    synthetic = workdir / "synthetic.npz"
    content = synthetic.read_bytes()
    synthetic.unlink()
    try:
        again = start(workdir)
    finally:
        synthetic.write_bytes(content)
    assert again.endswith("\nnot there any more: synthetic.npz")
    assert "wrote" in again
    assert str(synthetic) not in again


def test_a_refused_start_does_not_claim_the_workdir(tmp_path):
    with pytest.raises(UserError, match="larger than the smallest class"):
        start(tmp_path, ipc=41)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("content", ["[]", "{", ""])
def test_a_config_that_cannot_be_read(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match="cannot be read"):
        start(tmp_path)


def test_a_full_disk_is_one_line(tmp_path):
    code = (
        "import resource, signal;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096));"
        "import runpy, sys;"
        f"sys.argv = ['main.py', '{DIGITS}', '--workdir={tmp_path}/run',"
        " '--config.ipc=2', '--config.dasm.segments=1', '--config.network.width=2',"
        " '--config.matcher.idc.loop.niter=1', '--config.matcher.idc.loop.inner=1',"
        " '--config.devices=1'];"
        "runpy.run_path('main.py', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"DASM_CACHE_DIR": str(tmp_path / "cache")},
    )
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "File too large" in lines[0]
    assert "Traceback" not in done.stderr


def test_unwritable_workdir_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "load_dataset", None)  # calling it would fail
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        start(tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ipc": 41}, "larger than the smallest class"),
        ({"synthetic__factor": 3}, "tiles of 3 px"),
        ({"network__depth": 5}, r"network\.depth=5"),
        ({"data__mean": (0.5, 0.5), "data__std": (1.0, 1.0)}, "1 channels"),
    ],
)
def test_settings_that_do_not_fit_the_data(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        start(tmp_path, **changes)


def test_divergence_leaves_the_last_good_set_on_disk(tmp_path):
    with pytest.raises(NonFiniteError):
        start(tmp_path, matcher__idc__image__lr=1e38)
    with np.load(tmp_path / "synthetic.npz") as file:
        assert np.isfinite(file["images"]).all()
        assert len(file["images"])
    assert "not finite" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([DIGITS, "--config.dasm.segmens=3"], "rescore_every, rho"),
        ([DIGITS, "--config.ipc.deeper=3"], "config.ipc is a single value"),
        ([DIGITS, "--config.matcher.idx.image.lr=1"], "did you mean 'idc'?"),
        ([DIGITS, "--config.matcher.dm.metric=l1"], "real_batch, synthetic_batch"),
        (["--config=configs/nothing.py"], "get_config()"),
        ([], "configs/digits.py"),
        ([DIGITS, "--config.ipc=many"], "ipc"),
        ([DIGITS, "--nonsense=1"], "nonsense"),
        ([DIGITS, "--config.dasm.pool=best", "--workdir=never"], "static_filter"),
        ([DIGITS], "--workdir"),
        ([f"{DIGITS}:extra"], "--config: TypeError"),
        (["--flagfile=nothing"], "nothing"),
    ],
)
def test_command_line_mistakes(arguments, message, tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
    assert not (ROOT / "never").exists()


def test_a_workdir_minds_only_what_the_run_reads(finished):
    workdir, _ = finished
    start(workdir, matcher__dm__image__lr=7.0, log__every=9, compare__seeds=(1, 2))
    with pytest.raises(UserError, match=r"differs in matcher\.idc\.image\.momentum"):
        start(workdir, matcher__idc__image__momentum=0.25)


FULL_DEVICE = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 99 TB\nlong trace")


@pytest.mark.parametrize(
    ("error", "name", "first"),
    [
        (FULL_DEVICE, "idc", "idc.real"),
        (FULL_DEVICE, "mtt", "mtt.synth"),
        (MemoryError("Unable to allocate 9 TiB\nfor an array"), "idc", "idc.real"),
    ],
)
def test_out_of_memory_says_what_to_lower(tmp_path, monkeypatch, error, name, first):
    def full(*_):
        raise error

    monkeypatch.setattr(distill, "plan_segments", full)
    with pytest.raises(UserError, match=f"lower config.matcher.{first}") as caught:
        start(tmp_path, matcher__name=name)
    for named in re.findall(r"config\.[\w.]+", str(caught.value)):
        check_key(named)


def test_too_little_memory_is_said_before_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(device_memory, "room", lambda device: (10**6, 10**6 + 1))
    with pytest.raises(UserError, match="the device has too little memory") as caught:
        start(tmp_path)
    said = str(caught.value)
    assert "there are 1.0 MB, of which 1.0 MB are in use; lower config.matcher" in said
    for named in re.findall(r"config\.[\w.]+", said):
        check_key(named)
    assert "outer" not in (tmp_path / "metrics.jsonl").read_text()
    assert "matching needs about" in (tmp_path / "log.txt").read_text()
    needed = json.loads((tmp_path / "manifest.json").read_text())
    needed = needed["estimated_memory_bytes"]
    assert needed["data"] > small_dataset(3).train.images.nbytes
    assert needed["programs"] > 1e4

    # With so much it can begin; where there is less after all, the estimate is told.
    enough = needed["used"] + needed["programs"]
    monkeypatch.setattr(device_memory, "room", lambda device: (needed["used"], enough))

    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 99 TB\nlong trace")

    monkeypatch.setattr(divergence, "trouble", full)
    with pytest.raises(UserError, match="out of memory: matching needs about") as again:
        start(tmp_path)
    assert str(again.value).split("; ")[-1] == said.split("; ")[-1]


def test_what_a_program_takes():
    step = (
        jax.jit(lambda x: jnp.sort(jnp.tanh(x @ x) @ x) @ x)
        .lower(jnp.ones((100, 100)))
        .compile()
    )
    found = device_memory.program_bytes(step)
    assert found is not None
    assert (found["argument"], found["output"]) == (40_000, 40_000)
    assert found["temp"] >= 40_000
    need = device_memory.estimate(jnp.ones(5), [step, step], None)
    assert need is not None
    assert (need.data, need.programs) == (20, found["temp"] + 80_000)
    assert 0 < need.used < need.limit
    assert need.fits == (need.used + need.programs <= need.limit)


def printed_to(out):
    """A process that shows a table and ends as ``main.py`` does."""
    code = """
import sys, main
try:
    main.show("a table")
except Exception as error:
    sys.exit(main.tell(error))
"""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=out,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_table_without_room():
    with open("/dev/full", "w") as full:
        done = printed_to(full)
    assert done.returncode == 2
    assert done.stderr == (
        "error: cannot print the results: No space left on device; they are in "
        "--workdir\n"
    )


def test_a_table_that_nobody_reads():
    reader, writer = os.pipe()
    os.close(reader)
    done = printed_to(writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_nobody_has_to_listen(closed):
    command = f"{sys.executable} main.py --config=none.py --workdir=x {closed}"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    said = "error: --config" if "2>" not in closed else ""
    assert done.stderr.startswith(said)
    assert "Traceback" not in done.stderr


def test_the_folder_one_is_in_may_be_gone(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert common.written(tmp_path / "here" / "run") == "wrote run/report.html"
    (tmp_path / "here").rmdir()
    assert common.written(tmp_path / "run") == f"wrote {tmp_path}/run/report.html"
