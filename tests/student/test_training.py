import json
import os
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rebase.errors import RebaseError
from rebase.files import write_checksums
from rebase.parameters import ChosenTraining
from rebase.records import Adapter
from rebase.student.handle import Student, float32_logits
from rebase.student.tokenization import TRUNCATED, VALIDATION, tokenize
from rebase.student.training import COMPLETE, _fingerprint, check_disk, last_checkpoint, train_adapter
from tests.damage import damage_file, every_damage, turn
from tests.tiny import train_parameters, training_set


def weights(adapter: Adapter) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(adapter.folder / "adapter_model.safetensors")


def test_adapter_log_counts_and_rerun(fresh: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished run with the same data is not trained again, however often it writes checkpoints."""
    data = training_set(13)
    data.loc[0, "completion"] = "x" * 500
    adapter, log, counts = train_adapter(fresh, data, train_parameters(epochs=4, checkpoint_steps=5))
    assert adapter.base_model == "tiny"
    assert {file.suffix for file in adapter.folder.iterdir()} <= {".safetensors", ".json", ".md"}
    config = (adapter.folder / "adapter_config.json").read_text()
    assert json.loads(config)["base_model_name_or_path"] == "tiny"
    assert str(fresh.model) not in config
    assert (counts["in"], counts["kept"], counts["rejected"]) == (13, 12, {TRUNCATED: 1})
    assert list(log["step"]) == list(range(1, 13))
    assert log["epoch"].iloc[-1] == pytest.approx(4)
    assert log["loss"].iloc[-1] < log["loss"].iloc[0]
    assert not list(fresh.workdir.rglob("checkpoint-*"))
    with fresh.open({"expert": adapter}) as (model, _):
        assert model.peft_config["expert"].r == 2

    expected = weights(adapter)
    monkeypatch.setattr("rebase.student.trainer.make_trainer", None)  # would fail if it were called
    again, same_log, same_counts = train_adapter(fresh, data, train_parameters(epochs=4, checkpoint_steps=7))
    assert same_counts == counts
    pd.testing.assert_frame_equal(same_log, log)
    for name, value in weights(again).items():
        np.testing.assert_array_equal(value, expected[name])


def test_less_than_a_batch(fresh: Student) -> None:
    with pytest.raises(RebaseError, match=r"3 training examples, fewer than one step of 4.*batch_size 2"):
        train_adapter(fresh, training_set(3), train_parameters())


@pytest.mark.filterwarnings("error:Could not find a config file")  # peft would look for the student on the hub
@pytest.mark.parametrize(("keep", "dtype"), [("last", "float32"), ("best", "float32"), ("best", "bfloat16")])
def test_validation_loss_and_the_adapter_that_is_kept(fresh: Student, keep: str, dtype: str) -> None:
    fresh = replace(fresh, dtype=dtype)
    data = pd.concat([training_set(10), training_set(10)], ignore_index=True)
    parameters = train_parameters(validation_share=0.2, epochs=3, keep=keep, learning_rate=0.1)
    adapter, log, counts = train_adapter(fresh, data, parameters)
    assert (counts["in"], counts["kept"], counts["rejected"]) == (20, 16, {VALIDATION: 4})
    measured = log.dropna(subset="validation_loss")
    assert list(measured["step"]) == [4, 8, 12]
    expected = measured["validation_loss"].min() if keep == "best" else measured["validation_loss"].iloc[-1]
    validation = tokenize(fresh, data, parameters).validation
    tolerance = 1e-4 if dtype == "float32" else 2**-8
    assert loss_of(fresh, adapter, validation) == pytest.approx(expected, rel=tolerance)


def loss_of(student: Student, adapter: Adapter, examples: list) -> float:
    """The mean loss over the examples' targets, one example at a time."""
    import torch

    total, count = 0.0, 0
    with student.open({"expert": adapter}) as (model, _), torch.no_grad(), float32_logits(model):
        for example in examples:
            logits, labels = model(torch.tensor([example.input_ids])).logits[0, :-1], torch.tensor(example.labels[1:])
            total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            count += int((labels != -100).sum())
    return total / count


def test_incomplete_checkpoints_are_removed(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    for step in (9, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}" / COMPLETE).touch()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-11").exists()


@every_damage
@pytest.mark.parametrize(
    "name",
    [
        "adapter/adapter_model.safetensors",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("log.parquet", "counts.json", ".checksums.json")),
    ],
)
def test_a_damaged_result_is_trained_again(
    fresh: Student, caplog: pytest.LogCaptureFixture, name: str, damage: Callable[[bytes], bytes]
) -> None:
    adapter, log, counts = train_adapter(fresh, training_set(4), train_parameters())
    weights = (adapter.folder / "adapter_model.safetensors").read_bytes()
    damage_file(adapter.folder.parent / name, damage)
    again, log_again, counts_again = train_adapter(fresh, training_set(4), train_parameters())
    assert f"the result in {adapter.folder.parent} is damaged, so it is trained again" in caplog.text
    assert (again.folder / "adapter_model.safetensors").read_bytes() == weights
    pd.testing.assert_frame_equal(log_again, log)
    assert {**counts_again, "seconds": 0} == {**counts, "seconds": 0}


def test_a_result_of_an_earlier_version_has_no_checksums(fresh: Student, caplog: pytest.LogCaptureFixture) -> None:
    adapter, *_ = train_adapter(fresh, training_set(4), train_parameters())
    for file in adapter.folder.parent.rglob(".checksums.json"):
        file.unlink()
    before = adapter.folder.stat().st_ino
    assert train_adapter(fresh, training_set(4), train_parameters())[0].folder.stat().st_ino == before
    (adapter.folder / "adapter_model.safetensors").unlink()
    again, *_ = train_adapter(fresh, training_set(4), train_parameters())
    assert (again.folder / "adapter_model.safetensors").exists()
    assert "is damaged" in caplog.text


def test_the_seconds_of_an_interrupted_run_count(fresh: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object, **settings: object) -> None:
        raise RuntimeError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr("rebase.student.training.save_adapter", interrupt)
        with pytest.raises(RuntimeError, match="interrupted"):
            train_adapter(fresh, training_set(8), train_parameters(checkpoint_steps=1))
    (mark,) = fresh.workdir.glob("*/checkpoint-2/complete")
    assert 0 < float(mark.read_text()) < 1000
    mark.write_text("1000.0")
    _, _, counts = train_adapter(fresh, training_set(8), train_parameters(checkpoint_steps=1))
    assert counts["resumed_from_step"] == 2
    assert counts["seconds"] > 1000


def test_a_damaged_checkpoint_is_not_resumed_from(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"moments")
        write_checksums(tmp_path / f"checkpoint-{step}")
        (tmp_path / f"checkpoint-{step}" / COMPLETE).touch()
    damage_file(tmp_path / "checkpoint-10" / "optimizer.pt", turn)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-9"
    assert not (tmp_path / "checkpoint-10").exists()
    assert "checkpoint-10 is damaged and is removed: optimizer.pt" in caplog.text


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(2**20))
    with pytest.raises(RebaseError, match=r"1 MiB free, and checkpoints need \d+"):
        check_disk(tmp_path / "run", trainable=1000)


SCRIPT = """
import sys, pathlib, resource
from rebase.errors import RebaseError
from rebase.files import write_checksums
from rebase.student.handle import Student
from rebase.student.training import train_adapter
from tests.damage import damage_file, every_damage, turn
from tests.tiny import train_parameters, training_set
student = Student(sys.argv[1], None, pathlib.Path("unused"), pathlib.Path(sys.argv[2]), "float32")
if limit := int(sys.argv[4]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    train_adapter(student, training_set(int(sys.argv[3])), train_parameters(checkpoint_steps=1))
except RebaseError as error:
    print(error)
"""


def start_training(student: Student, count: int, file_size: int = 0) -> subprocess.Popen:
    """Train on ``count`` examples in a process that may write files of ``file_size`` bytes (0: of any size)."""
    root = str(Path(__file__).parents[2])
    arguments = [student.model, str(student.workdir), str(count), str(file_size)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments], cwd=root, env=environment, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_checkpoint_that_cannot_be_written(fresh: Student) -> None:
    output, _ = start_training(fresh, 8, file_size=4000).communicate()
    assert "cannot be written" in output
    assert "Free disk space" in output


@pytest.mark.slow
def test_interrupted_run_resumes_and_ends_the_same(fresh: Student, tmp_path: Path) -> None:
    process = start_training(fresh, 240)
    deadline = time.monotonic() + 300
    while not list(fresh.workdir.rglob("checkpoint-3/complete")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (run,) = fresh.workdir.iterdir()
    (run / "checkpoint-59").mkdir()  # incomplete: without its mark

    resumed, log, counts = train_adapter(fresh, training_set(240), train_parameters())
    straight, straight_log, _ = train_adapter(
        replace(fresh, workdir=tmp_path / "other"), training_set(240), train_parameters()
    )
    assert 3 <= counts["resumed_from_step"] < 59
    assert list(log["step"]) == list(range(1, 61))
    np.testing.assert_allclose(log["loss"], straight_log["loss"], rtol=1e-5)
    expected = weights(straight)
    for name, value in weights(resumed).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-7)


def test_what_is_excluded_changes_no_finished_training_but_by_what_is_left(student: Student) -> None:
    frame = pd.DataFrame({"prompt": ["Q"], "completion": ["A"]})
    plain, other = (
        ChosenTraining.model_validate(train_parameters(exclude={"datasets": names}).model_dump())
        for names in ([], ["never-there"])
    )
    assert _fingerprint(student, frame, plain) == _fingerprint(student, frame, other)
