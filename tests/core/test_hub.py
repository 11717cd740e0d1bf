"""Downloads, from a small server on this machine that answers as the Hub does."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load, save
from transformers import GPT2Config, GPT2Model

from lora_gpt.config import MODELS, GPTConfig, ModelSpec, RunConfig
from lora_gpt.core import hub as hub_room
from lora_gpt.core.hub import Hub
from lora_gpt.core.weights import WeightsError, check_at_hand, load_base

CFG = GPTConfig(97, 32, 24, 3, 2)
REPOSITORY = "openai-community/gpt2"
RUN = RunConfig(model="gpt2")
STAGE = "downloading the weights of GPT-2 124M"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(ThreadingHTTPServer):
    """Serves `files` ('owner/name/file' -> bytes) under the Hub's addresses."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.status = 0
        self.pause = 0.0
        self.breaks_after = 0
        self.breaks = -1
        """How many answers break; -1: all."""
        self.ranges: list[str] = []
        self.damaged = False

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: FakeHub

    def do_HEAD(self):
        self.head()

    def do_GET(self):
        content = self.head() or b""
        for start in range(0, len(content), 4096):
            if 0 < self.server.breaks_after <= start and self.server.breaks:
                self.server.breaks -= 1
                return
            with suppress(ConnectionError):  # whoever asked may have gone
                self.wfile.write(content[start : start + 4096])
            time.sleep(self.server.pause)

    def head(self):
        self.server.asked.append(f"{self.command} {self.path}")
        repository, _, name = self.path.strip("/").partition("/resolve/main/")
        content = self.server.files.get(f"{repository}/{name}")
        known = any(path.startswith(f"{repository}/") for path in self.server.files)
        status = self.server.status or (200 if content is not None else 404)
        asked, size = self.headers.get("Range", ""), len(content or b"")
        begin = int(asked.removeprefix("bytes=").partition("-")[0]) if asked and content else 0
        if asked:
            self.server.ranges.append(asked)
        self.send_response(206 if begin and status == 200 else status)
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            content = None
        if status == 403:
            self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("X-Repo-Commit", COMMIT)
        if status == 200:
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            if begin:
                self.send_header("Content-Range", f"bytes {begin}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - begin if status == 200 else 0))
        self.end_headers()
        if status != 200:
            return None
        return bytes(size - begin) if self.server.damaged else content[begin:]

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """A Hub on the loopback with a small GPT-2; no proxy, and no waiting before trying again."""
    monkeypatch.setitem(MODELS, "gpt2", ModelSpec("GPT-2 124M", CFG, REPOSITORY))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    at_once = SimpleNamespace(sleep=lambda _: None)
    monkeypatch.setattr("huggingface_hub.utils._http.time", at_once)
    monkeypatch.setattr("huggingface_hub.file_download.time", at_once)
    monkeypatch.setattr(hub_room, "INTERVAL", 0.01)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.close_session()
    fake = FakeHub()
    fake.files[f"{REPOSITORY}/model.safetensors"] = checkpoint()
    fake.files[f"{REPOSITORY}/config.json"] = json.dumps({"model_type": "gpt2"}).encode()
    thread = threading.Thread(target=fake.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield fake
    fake.shutdown()
    fake.server_close()
    thread.join()
    huggingface_hub.close_session()


def checkpoint() -> bytes:
    torch.manual_seed(4)
    model = GPT2Model(GPT2Config(vocab_size=97, n_positions=32, n_embd=24, n_head=3, n_layer=2))
    return save({name: p.detach().clone() for name, p in model.named_parameters()})


def loaded(config, hub):
    said, generator = [], load_base(config, hub=hub)
    while True:
        try:
            said.append(next(generator))
        except StopIteration as end:
            return end.value, said


def refused(config, hub):
    with pytest.raises(WeightsError) as caught:
        loaded(config, hub)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_own_weights_of_a_model_are_downloaded(server, tmp_path):
    """Without 'Weights from' they come from the model's repository, the small config first."""
    model, said = loaded(RUN, Hub(server.endpoint, tmp_path))
    assert model.cfg == CFG
    size = len(server.files[f"{REPOSITORY}/model.safetensors"])
    last = [each for each in said if each.stage == STAGE][-1]
    assert (last.done, last.total, last.seconds_left) == (size, size, 0)
    asked = [line.rpartition("/")[2] for line in server.asked]
    assert asked == ["config.json", "config.json", "model.safetensors", "model.safetensors"]


def test_the_progress_tells_bytes_and_time(server, tmp_path, monkeypatch):
    """On the way, the bytes that are here grow to the whole size, with the seconds left."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    server.pause = 0.02
    _, said = loaded(RUN, Hub(server.endpoint, tmp_path))
    size = len(server.files[f"{REPOSITORY}/model.safetensors"])
    on_the_way = [each for each in said if each.stage == STAGE and 0 < each.done < size]
    assert len({each.done for each in on_the_way}) > 3
    assert [each.done for each in on_the_way] == sorted(each.done for each in on_the_way)
    assert {each.total for each in on_the_way} == {size}
    assert all(0 < each.seconds_left < 60 for each in on_the_way)


def test_what_is_cached_needs_no_network(server, tmp_path):
    """The second time nobody is asked, and nothing is said to be downloaded."""
    hub = Hub(server.endpoint, tmp_path)
    first, _ = loaded(RUN, hub)
    server.asked.clear()
    again, said = loaded(RUN, hub)
    assert server.asked == []
    assert [each.stage for each in said] == ["reading the weights of GPT-2 124M"]
    assert torch.equal(first.tok_emb.weight, again.tok_emb.weight)


def test_another_repository_can_be_named(server, tmp_path):
    """'Weights from' with owner/name; its config may be missing."""
    server.files["someone/tuned/model.safetensors"] = checkpoint()
    model, _ = loaded(RUN.changed(weights="someone/tuned"), Hub(server.endpoint, tmp_path))
    assert model.cfg == CFG


def test_a_repository_of_another_model_is_refused_before_the_download(server, tmp_path):
    """Its config tells; the weights are never asked for."""
    server.files[f"{REPOSITORY}/config.json"] = json.dumps({"model_type": "llama"}).encode()
    message = refused(RUN, Hub(server.endpoint, tmp_path))
    rule = f"{REPOSITORY}/config.json: model_type must be gpt2 for GPT-2 124M; got 'llama'."
    assert message.startswith(rule)
    assert not any("model.safetensors" in line for line in server.asked)


def test_a_repository_without_safetensors_is_refused(server, tmp_path):
    """Older formats can run code."""
    del server.files[f"{REPOSITORY}/model.safetensors"]
    message = refused(RUN, Hub(server.endpoint, tmp_path))
    assert f"{REPOSITORY} must hold a model.safetensors; got a repository without" in message


@pytest.fixture
def in_parts(server):
    """Names of the files into which transformers cuts the checkpoint, served in its place."""
    content = server.files.pop(f"{REPOSITORY}/model.safetensors")
    split = huggingface_hub.split_torch_state_dict_into_shards(load(content), max_shard_size="20KB")
    for name, names in split.filename_to_tensors.items():
        server.files[f"{REPOSITORY}/{name}"] = save({n: load(content)[n] for n in names})
    index = json.dumps({"weight_map": split.tensor_to_filename}).encode()
    server.files[f"{REPOSITORY}/model.safetensors.index.json"] = index
    assert len(split.filename_to_tensors) > 2
    return [*split.filename_to_tensors]


def test_a_model_in_several_files_is_downloaded(server, in_parts, tmp_path):
    """Each file with its place among them; the second time nobody is asked."""
    hub = Hub(server.endpoint, tmp_path)
    model, said = loaded(RUN, hub)
    assert torch.equal(model.tok_emb.weight, load(checkpoint())["wte.weight"])
    stages = {each.stage for each in said}
    assert {f"{STAGE}, file {n + 1} of {len(in_parts)}" for n in range(len(in_parts))} < stages
    server.asked.clear()
    loaded(RUN, hub)
    assert server.asked == []


def test_what_is_there_of_several_files_is_not_asked_for_again(server, in_parts, tmp_path):
    """A download that ended between two files goes on with the next."""
    hub = Hub(server.endpoint, tmp_path)
    last = server.files.pop(f"{REPOSITORY}/{in_parts[-1]}")
    message = refused(RUN, hub)
    assert f"{REPOSITORY} must hold a {in_parts[-1]}; got a repository without" in message
    server.files[f"{REPOSITORY}/{in_parts[-1]}"] = last
    server.asked.clear()
    loaded(RUN, hub)
    assert not any(name in line for line in server.asked for name in in_parts[:-1])


def test_an_index_that_leads_elsewhere_is_refused(server, in_parts, tmp_path):
    """Whoever wrote it."""
    index = json.dumps({"weight_map": {"wte.weight": "../../etc/x.safetensors"}}).encode()
    server.files[f"{REPOSITORY}/model.safetensors.index.json"] = index
    message = refused(RUN, Hub(server.endpoint, tmp_path))
    assert "must be the index of safetensors files beside it" in message
    assert not any("etc" in line for line in server.asked)


def test_a_repository_that_is_not_there_is_named(server, tmp_path):
    """With what to do instead."""
    message = refused(RUN.changed(weights="no/body"), Hub(server.endpoint, tmp_path))
    assert (
        "must be a repository on the Hugging Face Hub that you may read; got 'no/body'" in message
    )
    assert "name a folder that holds" in message


def test_a_name_that_the_hub_would_never_take_is_refused(server, tmp_path):
    """Without asking it."""
    message = refused(RUN.changed(weights="no--body/.."), Hub(server.endpoint, tmp_path))
    assert message.startswith("Weights from: must be a folder or a repository owner/name; got")
    assert server.asked == []


@pytest.mark.parametrize(
    ("status", "why"), [(503, "the Hub answered 503"), (403, "asks for a permission")]
)
def test_a_refusing_hub_is_told_of(server, tmp_path, status, why):
    """A Hub that is down, and a repository that wants an agreement first."""
    server.status = status
    message = refused(RUN, Hub(server.endpoint, tmp_path))
    assert why in message
    assert "choose the bundled mini" in message


def test_without_a_network_there_is_a_sentence(server, tmp_path):
    """Nobody listens there: connect once, name a folder, or take the bundled model."""
    message = refused(RUN, Hub("http://127.0.0.1:1", tmp_path))
    assert "is not on this machine and the Hub could not be reached" in message
    assert "Connect to the internet once" in message
    assert "name a folder that holds" in message
    assert "choose the bundled mini" in message


def test_offline_mode_is_respected(server, tmp_path, monkeypatch):
    """HF_HUB_OFFLINE forbids to ask; the sentence says so."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    message = refused(RUN, Hub(server.endpoint, tmp_path))
    assert "HF_HUB_OFFLINE forbids to download it" in message
    assert server.asked == []


@pytest.mark.parametrize("several", [False, True])
def test_weights_that_can_be_had_are_not_fetched_by_asking(server, tmp_path, request, several):
    """Before a run only a short question is asked, about one file or the index of several."""
    if several:
        request.getfixturevalue("in_parts")
    check_at_hand(RUN, Hub(server.endpoint, tmp_path))
    assert len(server.asked) == 1 + several
    assert all(line.startswith("HEAD ") for line in server.asked)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_here_are_not_asked_for(server, tmp_path):
    """Cached, random, or in a folder: no network is needed."""
    loaded(RUN, Hub(server.endpoint, tmp_path))
    check_at_hand(RUN, Hub("http://127.0.0.1:1", tmp_path))
    (tmp_path / "model.safetensors").write_bytes(checkpoint())
    for config in (RUN.changed(init="random"), RUN.changed(weights=str(tmp_path)), RunConfig()):
        check_at_hand(config, Hub("http://127.0.0.1:1", tmp_path / "empty"))


@pytest.mark.parametrize(
    ("weights", "why"),
    [("", "could not be reached"), ("no/body", "was not found"), ("only/pickles", "must hold a")],
)
def test_weights_that_cannot_be_had_are_refused_by_asking(server, tmp_path, weights, why):
    """In the sentence that the download itself would end with."""
    server.files["only/pickles/pytorch_model.bin"] = b"x"
    endpoint = server.endpoint if weights else "http://127.0.0.1:1"
    with pytest.raises(WeightsError, match=why):
        check_at_hand(RUN.changed(weights=weights), Hub(endpoint, tmp_path))


def test_asking_is_forbidden_offline(server, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE forbids to download it"):
        check_at_hand(RUN, Hub(server.endpoint, tmp_path))
    assert server.asked == []


def test_a_download_goes_on_after_a_cut(server, tmp_path, monkeypatch):
    """Only what is missing is asked for again, and the whole is right."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    server.breaks_after, server.breaks = 8192, 1
    hub = Hub(server.endpoint, tmp_path)
    loaded(RUN, hub)
    assert server.ranges and all(asked != "bytes=0-" for asked in server.ranges)
    kept = hub.cached(REPOSITORY, "model.safetensors")
    assert kept.read_bytes() == server.files[f"{REPOSITORY}/model.safetensors"]


def test_a_damaged_file_is_refused_and_not_kept(server, tmp_path):
    """Of the right length and with the wrong content: the Hub's checksum tells."""
    server.damaged = True
    hub = Hub(server.endpoint, tmp_path)
    server.files["someone/tuned/model.safetensors"] = checkpoint()
    message = refused(RUN.changed(weights="someone/tuned"), hub)
    assert "model.safetensors of someone/tuned must have the checksum" in message
    assert hub.cached("someone/tuned", "model.safetensors") is None
    server.damaged = False
    assert loaded(RUN.changed(weights="someone/tuned"), hub)[0].cfg == CFG


def test_a_full_disk_is_told_of(server, tmp_path, monkeypatch):
    """With where the room is needed."""

    def no_room(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub_room, "hf_hub_download", no_room)
    message = refused(RUN, Hub(server.endpoint, tmp_path))
    assert "does not fit on the disk of the cache. Make room there, let HF_HOME name" in message


def test_the_environment_says_where_from_and_where_to(server, tmp_path):
    """HF_ENDPOINT and HF_HOME, as everywhere; they are read when the library is imported."""
    script = (
        "from lora_gpt.core.hub import Hub\n"
        f"*_, _ = Hub().fetch({REPOSITORY!r}, 'config.json', 'looking')"
    )
    place = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
    unset = {name: v for name, v in os.environ.items() if not name.startswith("HF_")}
    subprocess.run([sys.executable, "-c", script], env=unset | place, check=True, timeout=120)
    assert [found.name for found in tmp_path.rglob("config.json")] == ["config.json"]


def test_a_connection_that_keeps_breaking_is_told_of(server, tmp_path):
    """After a few tries; what had come is not taken for the file."""
    server.breaks_after = 8192
    message = refused(RUN, Hub(server.endpoint, tmp_path))
    assert "model.safetensors" in message
    assert "could not be reached" in message
    assert not list(tmp_path.rglob("*.incomplete"))


def test_closing_the_generator_ends_the_download(server, tmp_path, monkeypatch):
    """Whoever stops waiting does not pay for the rest."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    server.pause = 0.05
    generator = Hub(server.endpoint, tmp_path).fetch(REPOSITORY, "model.safetensors", STAGE)
    while not next(generator).done:
        pass
    generator.close()
    for thread in threading.enumerate():
        if thread.name.startswith("ThreadPoolExecutor"):
            thread.join(5)
            assert not thread.is_alive()
    assert Hub(server.endpoint, tmp_path).cached(REPOSITORY, "model.safetensors") is None
    assert not list(tmp_path.rglob("*.incomplete"))
