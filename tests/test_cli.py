"""Options, messages and exit statuses, as a shell sees them."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from conftest import clusters, write_features, write_photo

from featx.cli import commands
from featx.errors import FeatxError, UsageError
from featx.options.extraction import ExtractConfig
from featx.options.heads import FitConfig
from featx.options.option import Config
from featx.options.training import FinetuneConfig
from featx.runtime.progress import Log, StderrReporter

DOCS = Path(__file__).parents[1]
CODE = DOCS / "featx"
NET = ("-b", "squeezenet1_1", "-l", "classifier.1", "-w", "random:0", "--device", "cpu")


def test_the_whole_story_from_photos_to_predictions(photos, tmp_path, featx):
    features, head = tmp_path / "f.h5", tmp_path / "h.safetensors"
    steps = [
        ("check", photos),
        ("extract", photos, *NET, "-o", features),
        ("extract", photos, *NET, "--shard", "0/1", "-o", tmp_path / "p.h5"),
        ("merge", tmp_path / "p.0-of-1.h5", "-o", tmp_path / "merged.h5"),
        ("inspect", features),
        ("verify", features, "--rows", "2"),
        ("fit-svm", features, "--c", "0.1", "-o", head),
        ("fit-softmax", features, "--c", "1", "--test", "0", "-o", tmp_path / "s.safetensors"),
        ("evaluate", head, features),
        ("predict", head, photos, "-o", tmp_path / "p.csv"),
        ("layers", "alexnet"),
        ("probe", features, "--per-class", "2", "--repeats", "2", "--c", "1", "-o", tmp_path / "probe"),
        ("finetune", photos, "-b", "alexnet-mini", "-w", "random:0", "--epochs", "1", "-o", tmp_path / "run"),
        ("weights",),
        ("report", features, "-o", tmp_path / "report.html"),
        ("export", features, "--overwrite", "-o", tmp_path / "f.npz"),
        ("concat", features, features, "-o", tmp_path / "both.h5"),
    ]
    assert {step[0] for step in steps} == set(commands.commands) - {
        "serve",
        "show",
        "pairs",
        "average",
        "fuse",
        "compare",
        "rdm",
        "similarity",
        "import",
        "suspects",
        "clean",
        "encode",
        "plot",
        "lr-find",
    }  # which have tests of their own
    for step in steps:
        for form in ((), ("--json",)):
            found = featx(*step, *form)
            assert found.status == 0, (step, found.err)
            assert found.out, step
            if form:
                assert isinstance(json.loads(found.out), dict)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("extract", ".", "-o", "f.h5", "--shard", "8/8"), 2, "--shard 8/8 is part 8 of 8; write I/N with I from 0"),
        (("merge", "a.h5", "-o", "f.h5"), 2, "no file a.h5"),
        (("layers", "alexnt"), 2, "no network 'alexnt'. Nearest: 'alexnet'"),
        (("extract", "nowhere", "-o", "f.h5"), 2, "nowhere: No such file or directory"),
        (("extract", ".", "-l", "fc9", "-o", "f.h5", "-w", "random:0"), 2, "no images in ."),
        (("inspect", "missing.h5"), 2, "no file missing.h5"),
        (("verify", "missing.h5"), 2, "no file missing.h5"),
        (("fit-svm", "missing.h5"), 2, "no file missing.h5"),
        (("fit-svm", "f.h5", "--memory", "4X"), 2, "'4X' is no amount of memory; write 4G or 512M"),
        (("probe", "f.h5", "--heads", "tree"), 2, "it can be svm, softmax, mean, knn, ridge, or several"),
        (("probe", "photos"), 2, "say where to: featx probe photos -o FOLDER"),
        (("evaluate", "no.safetensors", "missing.h5"), 2, "no file no.safetensors"),
        (("predict", "no.safetensors", ".", "-o", "p.csv"), 2, "no file no.safetensors"),
        (("extract", ".", "-o", "f.h5", "--batch-size", "0"), 2, "0 is not in the range 1<=x<=4096"),
        (("extract", ".", "-o", "f.h5", "--precision", "fp8"), 2, "'fp8' is not one of"),
        (("extract", ".", "-o", "f.h5", "--max-bad", "7"), 2, "write 0.05 or 5%"),
        (("fit-svm", "f.h5", "--c", "zero"), 2, "must be a number above 0, or auto"),
        (("fit-svm", "f.h5", "--test", "0.5", "--per-class", "3"), 2, "--test and --per-class are different splits"),
        (("fit-svm",), 2, "Missing argument 'FEATURES..."),
        (("extract", "."), 2, "Missing option '-o'"),
    ],
)
def test_bad_requests_get_one_clear_line_and_status_2(tmp_path, monkeypatch, featx, arguments, status, message):
    monkeypatch.chdir(tmp_path)
    found = featx(*arguments)
    assert found.status == status
    assert message in found.err
    assert "Traceback" not in found.err
    assert found.out == ""
    assert found.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_every_error_has_an_exit_status_of_the_list():
    def all_below(kind: type[FeatxError]) -> set[type[FeatxError]]:
        return {kind}.union(*(all_below(child) for child in kind.__subclasses__()))

    found = all_below(FeatxError)
    assert len(found) > 12
    assert {kind.exit_status for kind in found} == {1, 2, 3, 4, 5, 74, 75}


def test_flags_go_before_variables_before_the_file_before_defaults(tmp_path, monkeypatch, featx):
    path = write_features(tmp_path / "f.h5", *clusters(), ("a", "b", "c"))
    config = tmp_path / "run.yaml"
    config.write_text("c: 0.1\nseed: 5\nper-class: 20\n")
    from_file = featx("fit-svm", path, "--config", config, "--json").json
    assert (from_file["c"], from_file["train"], from_file["normalize"]) == (0.1, 60, "l2")
    monkeypatch.setenv("FEATX_C", "0.2")
    monkeypatch.setenv("FEATX_NORMALIZE", "standard")
    by_variable = featx("fit-svm", path, "--config", config, "--json").json
    assert (by_variable["c"], by_variable["train"], by_variable["normalize"]) == (0.2, 60, "standard")
    assert featx("fit-svm", path, "--config", config, "--c", "0.3", "--json").json["c"] == 0.3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "colour: red\n",
            "fit-svm has no option 'colour'; it has c, calibrate, class_weight, device, folds, group_by, keep_products, layer",
        ),
        ("- c\n", "must hold one mapping"),
        ("c: [\n", "cannot be read as YAML"),
        ("!!python/object/apply:os.system ['true']\n", "cannot be read as YAML"),
        ("folds: many\n", "'many' is not a valid integer"),
        ("folds: 2.5\n", "'2.5' is not a valid integer"),
        ("folds: true\n", "folds is True; it must be one number or text"),
        ("split-column: 3\n", "split_column is 3; it must be true or false"),
        ("layer: [fc6, fc7]\n", "it must be one number or text"),
        ("per-class: 3\nper_class: 4\n", "per_class appears twice"),
        ("folds: 3\nfolds: 4\n", "folds appears 2 times"),
    ],
)
def test_a_config_file_with_a_mistake_is_refused(tmp_path, featx, text, message):
    path = write_features(tmp_path / "f.h5", *clusters(), ("a", "b", "c"))
    (tmp_path / "run.yaml").write_text(text)
    found = featx("fit-svm", path, "--config", tmp_path / "run.yaml")
    assert found.status == 2
    assert message in found.err


def test_configs_check_their_ranges_without_the_command_line_too():
    for change, message in (
        ({"batch_size": 0}, "--batch-size is 0; it must be at least 1"),
        ({"precision": "fp8"}, "--precision is 'fp8'; choose from fp32, tf32, bf16, fp16"),
        ({"max_bad": 2}, "is not a share between 0 and 1"),
        ({"backbone": None}, "--backbone needs a value"),
        ({"layers": ["fc6", 7]}, r"--layers is \['fc6', 7\]; it must be text"),
        ({"batch_size": 2.5}, "--batch-size is 2.5; it must be a whole number"),
        ({"batch_size": True}, "--batch-size is True; it must be a whole number"),
        ({"workers": "4"}, "--workers is '4'; it must be a whole number"),
        ({"mirror": 1}, "--mirror is 1; it must be True or False"),
    ):
        with pytest.raises(UsageError, match=message):
            ExtractConfig(**change)
    assert ExtractConfig(max_bad="5%").max_bad == 0.05
    assert FitConfig(c="0.25").c == 0.25
    with pytest.raises(UsageError, match="--momentum is 'much'; it must be a number"):
        FinetuneConfig(momentum="much")


def test_configs_take_what_python_has_at_hand():
    config = ExtractConfig(layers=["fc6", "fc7"], weights=Path("net.pth"), batch_size=np.int64(8))
    assert config == ExtractConfig(layers="fc6,fc7", weights="net.pth", batch_size=8)
    assert type(config.batch_size) is int
    assert FinetuneConfig(momentum=0).momentum == 0


def test_every_command_and_every_option_is_in_the_documents():
    reference = (DOCS / "docs" / "commands.md").read_text()
    pages = [DOCS / "README.md", *(page for page in (DOCS / "docs").rglob("*.md") if page.name != "commands.md")]
    guides = "\n".join(page.read_text() for page in pages)
    options = 0
    inner = {f"show {name}": command for name, command in commands.commands["show"].commands.items()}
    for name, command in (commands.commands | inner).items():
        assert f"## featx {name}\n" in reference
        assert f"featx {name}" in guides, f"{name} is shown neither in the README nor in a guide"
        section = reference.split(f"## featx {name}\n")[1].split("\n## ")[0]
        for parameter in command.params:
            for flag in parameter.opts if parameter.param_type_name == "option" else ():
                assert re.search(rf"(?<![\w-]){flag}(?![\w-])", section), f"{name} {flag}"
                options += 1
    assert options > 60


def test_a_variable_means_the_same_to_every_command():
    """FEATX_WEIGHTS is set once for a job of several commands: of extract, and of predict and verify after it."""
    meanings: dict[str, set[str]] = {}
    for command in commands.commands.values():
        for parameter in command.params:
            if parameter.envvar and not isinstance(parameter.type, click.Choice):  # a choice refuses what it has not
                meanings.setdefault(parameter.envvar, set()).add(parameter.make_metavar(click.Context(command)))
    assert {name: kinds for name, kinds in meanings.items() if len(kinds) > 1} == {}
    assert len(meanings) > 30


def test_no_option_is_without_help_and_no_config_field_without_an_option():
    fields = 0
    for config in Config.__subclasses__():
        for spec in config.__dataclass_fields__.values():
            assert spec.metadata["help"].endswith("."), spec.name
            fields += 1
    assert fields > 30


def test_the_python_of_the_readme_runs_as_it_stands(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "docs" / "python.md").read_text(), flags=re.DOTALL)
    story = next(block for block in blocks if block.startswith("import featx"))
    for digit in range(3):
        for index in range(31):
            write_photo(tmp_path / "demo" / "digits" / str(digit) / f"{index}.png", digit * 100 + index, (20, 20))
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {}
    exec(compile(story, "python.md", "exec"), found)
    assert found["file"]["fc7"].shape == (93, 384)
    assert found["features"]["conv5"].shape == (50, 256, 8, 8)
    assert np.array_equal(found["one"], found["also"])
    assert len(found["scores"]) == 2
    assert found["report"].train == 90


def test_waiting_threads_sleep_unless_the_user_wants_them_to_spin(featx, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    featx("layers", "alexnet")
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    featx("layers", "alexnet")
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_a_variable_that_no_command_reads_is_named_with_the_one_that_was_meant(featx, monkeypatch):
    monkeypatch.setenv("FEATX_BATCHSIZE", "2")
    monkeypatch.setenv("FEATX_COLOUR", "red")
    monkeypatch.setenv("FEATX_BATCH_SIZE", "4")  # of extract, not of layers, and that is all right
    monkeypatch.setenv("FEATX_WEB_PORT_80_TCP_ADDR", "10.0.0.1")  # Kubernetes', for a Service called featx-web
    monkeypatch.setenv("FEATX_SERVICE_HOST", "10.0.0.1")
    found = featx("layers", "alexnet")
    assert found.status == 0
    assert found.err.splitlines() == [
        "note: the variable FEATX_BATCHSIZE is set, and no command of featx reads it; is it FEATX_BATCH_SIZE?",
        "note: the variable FEATX_COLOUR is set, and no command of featx reads it",
    ]
    assert featx("-q", "layers", "alexnet").err == ""


def test_every_variable_that_is_read_is_known(featx, monkeypatch):
    """Those of options, and those that the code asks the system for."""
    named = {name for source in CODE.rglob("*.py") for name in re.findall(r"FEATX_[A-Z][A-Z_]+", source.read_text())}
    for name in named:
        monkeypatch.setenv(name, "")
    assert "FEATX_WEIGHTS_MIRROR" in named
    assert "no command" not in featx("layers", "alexnet").err


def test_the_address_of_a_service_in_kubernetes_is_no_port(featx, monkeypatch):
    """A Service called featx lets every pod beside it have FEATX_PORT=tcp://ADDRESS:PORT."""
    monkeypatch.setenv("FEATX_PORT", "tcp://10.0.0.1:80")
    refused = featx("serve", "-b", "no-such-network")
    assert "no-such-network" in refused.err, refused.err
    monkeypatch.setenv("FEATX_PORT", "80a")
    assert "'80a' is not a valid integer" in featx("serve", "-b", "no-such-network").err


def run_featx(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "featx", *map(str, words)], check=False, capture_output=True, text=True, **options
    )


def test_a_log_of_json_is_one_object_a_line_and_errors_are_among_them(photos, tmp_path):
    metrics = tmp_path / "featx.prom"
    done = run_featx(
        "--log-format", "json", "--metrics-file", metrics, "extract", photos, *NET, "-o", tmp_path / "f.h5"
    )
    assert done.returncode == 0
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert all({"time", "level", "message"} <= set(line) for line in lines)
    assert [
        line["level"] for line in lines if "random" in line["message"] and line["message"].startswith("note")
    ] == ["warning"]
    values = dict(line.rsplit(" ", 1) for line in metrics.read_text().splitlines() if not line.startswith("#"))
    count = len([path for path in photos.rglob("*") if path.is_file()])
    assert (
        float(values['featx_step_done{step="extract"}']) == float(values['featx_step_total{step="extract"}']) == count
    )
    failed = run_featx("--log-format", "json", "extract", "nowhere", "--json", "-o", tmp_path / "g.h5")
    assert json.loads(failed.stderr)["exit_status"] == failed.returncode == 2
    assert json.loads(failed.stdout) == {"error": "nowhere: No such file or directory", "exit_status": 2}


def test_a_quiet_command_says_only_its_result_and_errors(photos, tmp_path):
    done = run_featx(
        "-q", "extract", photos, *NET, "-o", tmp_path / "f.h5", env={**os.environ, "FEATX_LOG_FORMAT": "time"}
    )
    assert (done.returncode, done.stderr) == (0, "")
    failed = run_featx("-q", "inspect", tmp_path / "no.h5", env={**os.environ, "FEATX_LOG_FORMAT": "time"})
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.+]+ no file .*no\.h5\n", failed.stderr)


def test_a_verbose_command_names_each_bad_image_and_where_an_error_happened(featx, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("featx.runtime.progress._log", Log())  # the command sets it for the process
    both = featx("-q", "-v", "inspect", tmp_path / "no.h5")
    assert (both.status, both.err.count("\n")) == (2, 1)
    (photos / "a" / "zz.jpg").write_bytes(b"no image")
    asked = ["extract", photos, *NET, "--max-bad", "1", "-o"]
    assert "failed: a/zz.jpg" not in featx(*asked, tmp_path / "e.h5").err
    done = featx("-v", *asked, tmp_path / "f.h5")
    assert (done.status, "failed: a/zz.jpg: " in done.err) == (0, True)
    failed = featx("-v", "inspect", tmp_path / "no.h5")
    assert "Traceback (most recent call last)" in failed.err
    assert failed.err.splitlines()[-1].startswith("featx: no file ")


def test_progress_in_a_log_has_its_time(monkeypatch):
    monkeypatch.setattr("featx.runtime.progress.LOG_EVERY_S", 0.0)
    stream = io.StringIO()
    reporter = StderrReporter(stream)
    reporter.begin("extract", 10)
    reporter.advance(5)
    assert re.match(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00 extract: 5 of 10 \(50%\)", stream.getvalue())


def test_check_is_strict_where_that_is_asked_for(featx, photos):
    (photos / "a" / "zz.jpg").write_bytes(b"no image")
    asked = ["check", photos, "-b", "alexnet-mini", "--max-bad", "0.5"]
    assert featx(*asked).status == 0
    strict = featx(*asked, "--strict")
    assert (strict.status, "1 of 12 images cannot be used, --max-bad 0 allows 0" in strict.err) == (3, True)
    (photos / "a" / "zz.jpg").unlink()
    assert featx(*asked, "--strict").status == 0
