import inspect
import json
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from msgspec import structs
from typer.testing import CliRunner

from converters.command import unfold
from converters.errors import AdapterError, BaseModelError, UnsupportedAdapter
from converters.formats.detect import detect_format
from converters.formats.load import load_any
from edge.commands import cli
from edge.commands.train import train
from edge.errors import ConfigError, DataError, DiskRefused, StateError
from edge.training.checkpoint import FILE
from edge.training.local_run.run import CHECKPOINT, Run
from edge.training.plan import Plan

SIZES = ("--seq-tokens", "64", "--batch-tokens", "128", "--lr", "0.02")


@pytest.fixture
def command(base, source, tmp_path):
    def command(*options, out="out"):
        return ["train", "--base", base, "--data", source.path, "--out", tmp_path / out, *SIZES, *options]

    return command


def invoke(*arguments):
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_train_writes_an_adapter_and_its_metrics(command, source, tmp_path):
    result = invoke(*command("--steps", 30, "--valid", source.path, "--json"))
    report = json.loads(result.stdout)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    losses, validations = metrics.pop("losses"), metrics.pop("validations")
    assert metrics == report
    assert [validations[0]["step"], validations[-1]["step"]] == [0, 30]
    assert (report["loss_before"], report["loss_after"]) == (losses[0], losses[-1])
    assert len(losses) == report["num_steps"] == 30
    assert report["valid_after"]["loss"] < report["valid_before"]["loss"]
    adapter = load_any(tmp_path / "out")
    assert adapter.max_rank == report["rank"] == 8
    assert sorted(name.rpartition(".")[2] for name in adapter.modules) == ["q_proj", "v_proj"]
    assert not (tmp_path / "out" / CHECKPOINT).exists()


def test_train_names_the_base_and_writes_a_card_beside_its_adapter(command, base, tmp_path):
    invoke(*command("--steps", 2))
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(Path(base).absolute())
    assert "| Trained | 2 steps" in (tmp_path / "out/README.md").read_text()
    config |= {"task_type": "SEQ_CLS", "base_model_name_or_path": "owner/model"}
    (tmp_path / "out/adapter_config.json").write_text(json.dumps(config))
    invoke(*command("--steps", 2, "--adapter", tmp_path / "out", out="on"))
    again = json.loads((tmp_path / "on/adapter_config.json").read_text())
    assert (again["task_type"], again["base_model_name_or_path"]) == ("SEQ_CLS", "owner/model")


def test_progress_is_plain_lines_where_there_is_no_terminal(command):
    result = invoke(*command("--steps", 3))
    lines = result.stderr.splitlines()
    assert any(line.startswith("training with toy in float32 (for a toy model) on ") for line in lines)
    assert any(line.startswith("step 3/3  loss ") for line in lines)
    assert "loss after" in result.stdout


def test_an_adapter_is_trained_on_and_written_in_another_format(command, tmp_path):
    invoke(*command("--steps", 2, "--rank", 4, "--targets", "q_proj, o_proj", out="first"))
    invoke(*command("--steps", 2, "--adapter", tmp_path / "first", "--format", "mlx", out="second"))
    first, second = load_any(tmp_path / "first"), load_any(tmp_path / "second")
    assert detect_format(tmp_path / "second") == "mlx"
    assert second.modules.keys() == first.modules.keys()
    assert second != first


def test_without_a_bound_the_data_is_passed_once(command, source):
    report = json.loads(invoke(*command("--json")).stdout)
    assert report["num_examples"] == len(Path(source.path).read_text().splitlines())


@pytest.mark.llama
def test_a_gguf_file_alone_chooses_llama_cpp_and_its_adapter_can_be_gguf_too(make_gguf, source, tmp_path):
    base = ("--base", make_gguf("llama", "q8_0"))
    train = ("train", *base, "--data", source.path, "--out", tmp_path / "out", *SIZES, "--steps", 30)
    report = json.loads(invoke(*train, "--format", "gguf", "--json").stdout)
    assert (report["backend"], report["loss_after"] < report["loss_before"]) == ("llama_cpp", True)
    assert report["adapter"] == str(tmp_path / "out" / "adapter.gguf")
    score = ("eval", *base, "--data", source.path, "--backend", "llama_cpp", "--json")
    plain, trained = (
        json.loads(invoke(*score, *adapter).stdout) for adapter in ((), ("--adapter", report["adapter"]))
    )
    assert trained["loss"] < plain["loss"]
    said = invoke("generate", *base, "--adapter", report["adapter"], "--max-tokens", 2, "--json", "turn on ")
    assert json.loads(said.stdout)["prompt"] == "turn on "


@pytest.mark.llama
def test_a_format_that_the_base_has_no_names_for_is_refused_before_training(command, tmp_path):
    with pytest.raises(BaseModelError, match="for GGUF"):
        invoke(*command("--format", "gguf"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_leaves_a_checkpoint_and_asks_for_resume(command, tmp_path, number):
    options = ["--steps", "20000"]
    line = [sys.executable, "-m", "tunefleet", *map(str, command(*options))]
    with subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        for said in process.stderr:
            if said.startswith("step "):
                break
        process.send_signal(number)
        process.stderr.read()
        assert process.wait(30) != 0
    while not (tmp_path / "out" / CHECKPOINT / FILE).exists():
        time.sleep(0.05)  # the worker of a killed command writes it by itself
    with pytest.raises(StateError, match="--resume"):
        invoke(*command(*options))


def test_a_resumed_run_ends_like_one_that_was_not_interrupted(command, tmp_path, monkeypatch):
    # A time limit on the process would be a race: the checkpoint is left by refusing to write the adapter.
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "adapter_config.json").mkdir()
    with pytest.raises(DiskRefused, match="Is a directory"):
        invoke(*command("--steps", 12))
    (tmp_path / "out" / "adapter_config.json").rmdir()
    invoke(*command("--steps", 12, "--resume"))
    invoke(*command("--steps", 12, "--resume", out="whole"))
    assert load_any(tmp_path / "out") == load_any(tmp_path / "whole")


def test_print_config_shows_every_setting_and_trains_nothing(command, tmp_path):
    settings = tomllib.loads(invoke(*command("--epochs", 2, "--print-config")).stdout)
    assert settings["plan"]["epochs"] == 2
    assert settings["plan"].keys() == set(Plan.__struct_fields__)
    assert settings["targets"] == ["q_proj", "v_proj"]
    assert not (tmp_path / "out").exists()


def test_the_command_line_has_the_defaults_of_the_records():
    options = inspect.signature(unfold(train)).parameters
    records = {
        field.name: field.default
        for kind in (Plan, Run)
        for field in structs.fields(kind)
        if not field.required and not field.name.startswith("example_")  # which fleets ask for
    }
    records["targets"] = ",".join(records["targets"])
    assert {name: options[name].default for name in records} == records


def test_eval_reports_the_adapters_gain(command, base, source, tmp_path):
    invoke(*command("--steps", 30))
    line = ["eval", "--base", base, "--data", source.path, "--json"]
    plain = json.loads(invoke(*line).stdout)
    trained = json.loads(invoke(*line, "--adapter", tmp_path / "out").stdout)
    assert trained["loss"] < plain["loss"]
    assert plain["num_examples"] == 8
    assert plain.keys() >= {"perplexity", "accuracy", "exact_match"}


def test_generate_prints_one_completion_a_line(base):
    lines = invoke("generate", "--base", base, "--max-tokens", 2, "--json", "turn on ", "turn off ").stdout
    assert [json.loads(line)["prompt"] for line in lines.splitlines()] == ["turn on ", "turn off "]


def test_what_cannot_be_trained_is_an_error(command):
    with pytest.raises(UnsupportedAdapter, match="no module is called nothing_proj"):
        invoke(*command("--targets", "nothing_proj"))
    with pytest.raises(ConfigError, match="exactly one of"):
        invoke(*command("--steps", 3, "--epochs", 1))


@pytest.mark.parametrize(
    ("option", "value", "bound"),
    [("--rank", 0, 1), ("--lr", -1, 0), ("--seq-tokens", 1, 2), ("--epochs", -1, 0)],
)
def test_a_number_out_of_bounds_is_told_with_its_bound(command, option, value, bound):
    result = invoke(*command(option, value))
    assert result.exit_code == 2
    told = " ".join(result.stderr.replace("│", " ").split())
    assert f"'{option}'" in told
    assert f"greater than or equal to {bound}" in told


def test_a_rank_no_layer_can_hold_is_refused_with_both_numbers(command, tmp_path):
    with pytest.raises(AdapterError, match=r"rank is 100000, expected 1 to 32: .* 32 inputs and 32 outputs"):
        invoke(*command("--rank", 100000))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--rank", 4),
        ("--scale", 2),
        ("--targets", "q_proj"),
        ("--num-layers", 1),
        ("--rank", 4, "--scale", 2),
    ],
)
def test_the_shape_of_a_new_adapter_beside_another_is_refused(command, tmp_path, options):
    invoke(*command("--steps", 1, out="first"))
    with pytest.raises(ConfigError) as caught:
        invoke(*command("--steps", 1, "--adapter", tmp_path / "first", *options))
    given = [option for option in options if str(option).startswith("--")]
    assert str(caught.value).endswith(f"own shape; leave out {' and '.join(given)}")


def test_a_finished_adapter_is_not_overwritten_unasked(command, tmp_path):
    invoke(*command("--steps", 1))
    before = load_any(tmp_path / "out")
    for options in ((), ("--resume",)):
        with pytest.raises(StateError, match=r"an adapter already \(adapter_config\.json, .*--overwrite"):
            invoke(*command("--steps", 2, *options))
    assert load_any(tmp_path / "out") == before
    invoke(*command("--steps", 2, "--overwrite", "--format", "mlx"))
    assert load_any(tmp_path / "out") != before
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()  # of the other format


def test_overwriting_begins_an_interrupted_run_anew(command, tmp_path):
    (tmp_path / "out" / "adapter_config.json").mkdir(parents=True)
    with pytest.raises(DiskRefused, match="Is a directory"):
        invoke(*command("--steps", 3))
    (tmp_path / "out" / "adapter_config.json").rmdir()
    with pytest.raises(StateError, match="--resume goes on with it, --overwrite begins anew"):
        invoke(*command("--steps", 5))
    report = json.loads(invoke(*command("--steps", 5, "--overwrite", "--json")).stdout)
    assert report["num_steps"] == 5


def test_all_linear_is_every_layer_but_the_head(command, tmp_path):
    report = json.loads(invoke(*command("--steps", 1, "--targets", "all-linear", "--json")).stdout)
    assert report["num_modules"] == 4
    assert sorted(name.rpartition(".")[2] for name in load_any(tmp_path / "out").modules) == [
        "k_proj", "o_proj", "q_proj", "v_proj",
    ]  # fmt: skip


def test_more_blocks_than_there_are_is_told_with_both_numbers(command):
    with pytest.raises(UnsupportedAdapter, match="num_layers is 3, expected 1 to 1, the model's blocks"):
        invoke(*command("--num-layers", 3))


def test_mlx_lms_names_are_known(base, source, tmp_path):
    line = ["train", "--model", base, "--data", source.path, "--iters", 2, "--learning-rate", 0.01]
    line += ["--max-seq-length", 64, "--num-layers", -1, "--steps-per-eval", 1, "--valid", source.path]
    report = json.loads(invoke(*line, "--batch-tokens", 128, "--out", tmp_path / "out", "--json").stdout)
    assert report["num_steps"] == 2


def test_validation_is_told_while_training_and_kept(command, source, tmp_path):
    result = invoke(*command("--steps", 30, "--valid", source.path, "--valid-every", 10))
    lines = [line for line in result.stderr.splitlines() if "validation loss" in line]
    assert [line.split(":")[0] for line in lines] == ["step 0", "step 10", "step 20", "step 30"]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    curve = {one["step"]: one["evaluation"]["loss"] for one in metrics["validations"]}
    assert list(curve) == [0, 10, 20, 30]
    assert metrics["best_step"] == min(curve, key=curve.get)
    assert metrics["valid_before"]["loss"] == curve[0]
    assert metrics["valid_after"]["loss"] == curve[30]


def test_a_whole_number_beyond_all_bounds_is_refused(command):
    with pytest.raises(ConfigError, match="seed is 10000000000000000000, expected at most"):
        invoke(*command("--steps", 1, "--seed", 10**19))
    with pytest.raises(ConfigError, match=r"scale"):
        invoke(*command("--steps", 1, "--scale", "inf"))
    assert invoke(*command("--steps", 1, "--lr", "nan")).exit_code == 2


def test_an_output_folder_that_cannot_be_made_is_an_error(command, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ConfigError, match="choose another --out"):
        invoke(*command("--steps", 1))


def test_data_that_cannot_be_used_leaves_nothing_to_resume(command, tmp_path):
    with pytest.raises(DataError):
        invoke(*command("--steps", 1, "--data", "nowhere.jsonl"))
    assert invoke(*command("--steps", 1)).exit_code == 0


def test_an_error_is_one_line_and_exit_status_1(command):
    line = [sys.executable, "-m", "tunefleet", *map(str, command("--data", "nowhere.jsonl", "--steps", "1"))]
    process = subprocess.run(line, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    last = process.stderr.splitlines()[-1]
    assert last == "tunefleet: nowhere.jsonl: cannot be read: No such file or directory"
    assert "Traceback" not in process.stderr


def test_files_of_the_users_folder_are_not_taken_for_modules(command, tmp_path):
    for name in ("edge.py", "random.py", "tokenizers.py"):
        (tmp_path / name).write_text("raise SystemExit('imported')")
    line = [sys.executable, "-P", "-m", "tunefleet", *map(str, command("--steps", 1))]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, "imported" in done.stderr) == (0, False), done.stderr
