"""The model against the reference implementation."""

import pytest
import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

from lora_gpt.config import GPTConfig
from lora_gpt.core.model import GPTModel, initialise
from lora_gpt.core.packing import Packing
from lora_gpt.core.weights import read_base

SIZES = [GPTConfig(211, 64, 48, 4, 3), GPTConfig(301, 64, 768, 12, 2)]
LENGTHS = [5, 17, 1, 9]


@pytest.fixture(scope="module", params=SIZES, ids=["narrow", "GPT-2's width"])
def pair(request, tmp_path_factory):
    """(ours, theirs) with the same random weights, and the shape of both."""
    cfg = request.param
    torch.manual_seed(3)
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=cfg.vocab_size,
            n_positions=cfg.context_length,
            n_embd=cfg.emb_dim,
            n_head=cfg.n_heads,
            n_layer=cfg.n_layers,
            # Far from GPT-2's own start, where biases are 0 and attention is nearly even.
            initializer_range=0.1,
        )
    ).eval()
    for parameter in theirs.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 0.5, 0.2)
    path = tmp_path_factory.mktemp("pair") / "model.safetensors"
    tensors = {name: p.detach().clone() for name, p in theirs.named_parameters()}
    save_file(tensors, path)
    return read_base(path, cfg), theirs, cfg


def batch(cfg, lengths=LENGTHS):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(cfg.vocab_size, (length,), generator=generator) for length in lengths]


@torch.no_grad()
def test_hidden_states_and_logits_equal_the_reference_on_a_rectangle(pair):
    """Without pads, hidden states and logits are those of transformers' GPT-2."""
    ours, theirs, cfg = pair
    tokens = torch.stack(batch(cfg, [20, 20, 20]))
    hidden = ours.hidden_states(tokens.flatten(), Packing([20] * 3)).unflatten(0, (3, 20))
    torch.testing.assert_close(
        hidden, theirs.transformer(tokens).last_hidden_state, atol=1e-4, rtol=0
    )
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_packed_rows_equal_the_reference_with_padding(pair):
    """Real positions and last logits are those of a right-padded batch in transformers."""
    ours, theirs, cfg = pair
    sequences = batch(cfg)
    padded = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=7)
    mask = (torch.arange(padded.shape[1]) < torch.tensor(LENGTHS)[:, None]).long()
    expected = theirs.transformer(padded, attention_mask=mask).last_hidden_state
    tokens, packing = torch.cat(sequences), Packing(LENGTHS)
    torch.testing.assert_close(
        ours.hidden_states(tokens, packing), expected[mask.bool()], atol=1e-4, rtol=0
    )
    logits = theirs(padded, attention_mask=mask).logits
    at_last = logits[torch.arange(len(LENGTHS)), torch.tensor(LENGTHS) - 1]
    torch.testing.assert_close(ours.last_logits(tokens, packing), at_last, atol=1e-4, rtol=0)


@torch.no_grad()
def test_padding_changes_nothing(pair):
    """A sequence among longer ones has the logits that it has alone."""
    ours, _, cfg = pair
    sequences = batch(cfg)
    together = ours.last_logits(torch.cat(sequences), Packing(LENGTHS))
    for sequence, logits in zip(sequences, together, strict=True):
        alone = ours.last_logits(sequence, Packing([len(sequence)]))[0]
        torch.testing.assert_close(alone, logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_token_never_sees_what_comes_after_it(pair):
    """Changing the last token leaves the hidden states of those before as they were."""
    ours, _, cfg = pair
    tokens = batch(cfg, [12])[0]
    changed = tokens.clone()
    changed[-1] = (changed[-1] + 1) % cfg.vocab_size
    before = ours.hidden_states(tokens, Packing([12]))
    after = ours.hidden_states(changed, Packing([12]))
    torch.testing.assert_close(before[:-1], after[:-1], atol=1e-6, rtol=0)
    assert not torch.allclose(before[-1], after[-1])


def test_dropout_speaks_in_training_only():
    """With dropout, two passes differ in training and are equal in evaluation."""
    model = initialise(GPTModel(GPTConfig(97, 32, 24, 3, 2, drop_rate=0.5)), 0)
    tokens = torch.arange(10)[None]
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


def test_a_sequence_longer_than_the_context_is_refused():
    """The sentence names the limit and the length."""
    model = GPTModel(GPTConfig(97, 32, 24, 3, 2))
    with pytest.raises(ValueError, match=r"at most 32 tokens.*got 33"):
        model(torch.zeros(1, 33, dtype=torch.long))


def test_the_whole_context_can_be_read():
    """A sequence exactly as long as the context goes through."""
    model = GPTModel(GPTConfig(97, 32, 24, 3, 2))
    assert model(torch.zeros(1, 32, dtype=torch.long)).shape == (1, 32, 97)


def test_the_same_seed_gives_the_same_weights():
    """Initialising depends on the seed alone, not on what was there or on global randomness."""
    cfg = GPTConfig(97, 32, 24, 3, 2)
    first, second, other = (initialise(GPTModel(cfg), seed) for seed in (5, 5, 6))
    torch.rand(3)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, second.get_parameter(name)), name
    assert not torch.equal(first.tok_emb.weight, other.tok_emb.weight)


def test_the_random_start_has_the_deviations_of_gpt2():
    """0.02, and 0.02 / sqrt(2 n_layers) where a layer writes to the shortcut; biases are 0."""
    model = initialise(GPTModel(GPTConfig(997, 64, 96, 3, 8)), 0)
    block = model.trf_blocks[3]
    assert model.tok_emb.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.att.W_key.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.ff.layers[2].weight.std().item() == pytest.approx(0.005, rel=0.05)
    assert block.att.out_proj.weight.std().item() == pytest.approx(0.005, rel=0.05)
    assert not block.ff.layers[0].bias.any()
    assert (block.norm1.scale == 1).all()


@pytest.mark.parametrize("lengths", [[5, 7, 1], [6, 6], [9]])
@pytest.mark.parametrize("n_layers", [1, 3])
def test_the_last_tokens_alone_give_what_all_tokens_give(lengths, n_layers):
    """What the last block leaves out would not have reached the logits, nor the gradients."""
    model = initialise(GPTModel(GPTConfig(97, 32, 24, 3, n_layers)), 0)
    packing = Packing(lengths)
    tokens = torch.arange(packing.rows) * 7 % 97
    grads = []
    for last_only in (True, False):
        hidden = model.hidden_states(tokens, packing, last_only)
        logits = model.out_head(hidden if last_only else hidden[packing.last])
        logits.square().sum().backward()
        grads.append((logits.detach(), model.trf_blocks[0].att.W_key.weight.grad.clone()))
        model.zero_grad()
    for short, whole in zip(*grads, strict=True):
        torch.testing.assert_close(short, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("lengths", [[5, 7, 1], [32], [16, 16]], ids=str)
def test_filler_changes_nothing(lengths):
    """Rows and columns beyond the messages, to meet fewer shapes, are read by nobody."""
    model = initialise(GPTModel(GPTConfig(97, 64, 24, 3, 3)), 0)
    found = []
    for multiple in (1, 32):
        packing = Packing(lengths, multiple=multiple)
        assert packing.rows % multiple == 0 and packing.width % multiple == 0
        tokens = torch.arange(sum(lengths)) * 7 % 97
        tokens = torch.cat([tokens, torch.full((packing.filler,), 96)])
        logits = model.last_logits(tokens, packing)
        logits.square().sum().backward()
        gradients = [p.grad.clone() for p in model.trf_blocks.parameters()]
        found.append((logits.detach(), *gradients))
        model.zero_grad()
    for plain, rounded in zip(*found, strict=True):
        torch.testing.assert_close(plain, rounded, rtol=1e-4, atol=1e-6)
