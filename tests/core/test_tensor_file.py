"""Safetensors files as they are written; how they are read stands in the tests of weights."""

import errno

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from lora_gpt.core import tensor_file


def test_what_is_written_comes_back(tmp_path):
    """Every kind and layout that training has, bit for bit, readable by whom a new file is."""
    across = torch.arange(6.0).reshape(2, 3).T
    tensors = {"one": torch.tensor(3.5), "across": across, "half": torch.ones(3).bfloat16()}
    path, plain = tmp_path / "some.safetensors", tmp_path / "plain"
    tensor_file.write(path, tensors | {"trained": torch.ones(2, requires_grad=True)}, {"k": "v"})
    plain.touch()
    found = load_file(path)
    assert found.keys() == {"one", "across", "half", "trained"}
    assert all(torch.equal(found[name], value) for name, value in tensors.items())
    assert path.stat().st_mode == plain.stat().st_mode
    with tensor_file.opened(path) as file:
        assert file.metadata() == {"k": "v"}


@pytest.mark.parametrize(("words", "number"), [("(os error 28)", 28), ("torn", errno.EIO)])
def test_a_full_disk_is_the_fault_that_the_system_told(tmp_path, monkeypatch, words, number):
    """Its number decides what people read."""

    def full(*_):
        raise SafetensorError(f"I/O error: {words}")

    monkeypatch.setattr(tensor_file, "save_file", full)
    with pytest.raises(OSError) as caught:
        tensor_file.write(tmp_path / "some.safetensors", {"one": torch.ones(1)}, {})
    assert caught.value.errno == number
