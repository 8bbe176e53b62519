# SPDX-License-Identifier: Apache-2.0
"""Training of the long-context model: what is learnt from, and what changes."""

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from long_model.sequences import IGNORED, TRAINED_TASKS, Labelled, Stream, training_texts
from long_model.training import Schedule, mean_loss, text_nll, train, trained_parameters
from test_long_tasks import words
from transformers import LlamaConfig, LlamaForCausalLM

from shplb.texts.library import source_text, sources

SCRIPT = Path(__file__).parents[2] / "bench" / "make_long_model.py"
LONGEST, VOCABULARY, EOS = 8192, 256, 2
# Tasks need some length, but a tiny model need not read it all.
SHORT = 600


def small(text: str) -> list[int]:
    """The tests' tokenizer with few ids."""
    return [token % (VOCABULARY - 3) + 3 for token in words(text)]


@pytest.fixture(scope="module")
def stream() -> Stream:
    texts = [source_text(source.name) for source in sources() if source.split == "calibration"][:2]
    return Stream(texts, small, EOS, LONGEST, seed=1)


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=LONGEST, rope_theta=1.6e6,
        tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).float()


def test_text_and_tasks_take_turns(stream: Stream) -> None:
    assert stream.lengths() == [8192, 4096]
    for index in range(6):
        each = stream.sequence(index)
        assert each == stream.sequence(index)
        assert len(each.labels) == len(each.token_ids) <= LONGEST
        learnt = [token for token in each.labels if token != IGNORED]
        if index % 2 == 0:
            assert each.labels == each.token_ids
        else:
            assert 2 < len(learnt) < 300
            assert each.token_ids[-len(learnt) :] == learnt, "a task's loss is on its answer, which comes last"
            assert learnt[-1] == EOS
    assert "qa_1" not in TRAINED_TASKS
    assert set(map(len, (stream.sequence(i).token_ids for i in range(0, 12, 2)))) == {4096, 8192}


def test_held_out_text_is_not_trained_on() -> None:
    texts = training_texts(None)
    assert sum(map(len, texts)) > 5_000_000
    held_out = [source_text(source.name) for source in sources() if source.split == "held_out"]
    lines = {line for text in held_out for line in text.splitlines() if len(line) > 60}
    seen = {line for text in texts for line in text.splitlines()}
    assert len(lines & seen) < 0.005 * len(lines), "licence headers may be shared, passages not"


def test_the_users_texts_alone(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("some text")
    assert training_texts(tmp_path) == ["some text"]
    with pytest.raises(ValueError, match="expected more than 8192"):
        Stream(["short"], small, EOS, LONGEST, seed=0)


def test_only_attention_and_norms_change(stream: Stream, model: LlamaForCausalLM) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    whole = (stream.sequence(index) for index in itertools.count())
    sequences = (Labelled(each.token_ids[-SHORT:], each.labels[-SHORT:]) for each in whole)
    losses: list[float] = []
    train(model, sequences, Schedule(2, 2 * SHORT, 1e-2), "cpu", lambda step, loss: losses.append(loss))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(trained_parameters(model))
    assert all("self_attn" in name or "norm" in name for name in changed)
    assert len(changed) == 2 * (4 + 2) + 1
    assert len(losses) == 2


def test_training_lowers_the_loss(stream: Stream, model: LlamaForCausalLM) -> None:
    one = stream.sequence(0)
    short = Labelled(one.token_ids[:512], one.labels[:512])
    losses: list[float] = []
    train(model, itertools.repeat(short), Schedule(12, 512, 2e-2), "cpu", lambda step, loss: losses.append(loss))
    assert losses[-1] < losses[0] - 0.03
    assert text_nll(model, [short.token_ids], "cpu") == pytest.approx(losses[-1], abs=0.1)


def test_loss_is_transformers_own(model: LlamaForCausalLM) -> None:
    token_ids = torch.randint(0, VOCABULARY, (300,), generator=torch.Generator().manual_seed(1)).tolist()
    labels = [IGNORED] * 250 + token_ids[250:]
    with torch.no_grad():
        own = mean_loss(model, token_ids, labels, "cpu")
        reference = model(torch.tensor([token_ids]), labels=torch.tensor([labels])).loss
    assert float(own) == pytest.approx(float(reference), abs=0.02)  # bfloat16 against float32


def test_learning_rate_rises_then_falls_to_zero() -> None:
    schedule = Schedule(100, 1, 1.0)
    rates = [schedule.rate(step) for step in range(101)]
    assert max(rates) == rates[4] == 1.0
    assert rates[:5] == sorted(rates[:5])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[100] == pytest.approx(0.0, abs=1e-12)


def test_the_script_writes_a_folder_that_loads(smollm2_short: Path, tmp_path: Path) -> None:
    source, out, texts = tmp_path / "source", tmp_path / "out", tmp_path / "texts"
    config = LlamaConfig(
        vocab_size=49152, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=256, rope_theta=1e5, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(source)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(smollm2_short / name, source)
    texts.mkdir()
    (texts / "one.txt").write_text(source_text("austen_emma")[:20_000])
    command = [sys.executable, str(SCRIPT), "--out", str(out), "--model-path", str(source), "--texts", str(texts)]
    command += ["--steps", "2", "--tokens", "512", "--tokens-per-step", "600", "--workers", "0"]
    run = subprocess.run([*command, "--work", str(tmp_path / "work")], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    facts = json.loads((out / "training.json").read_text())
    assert len(facts["losses"]) == 2
    made = json.loads((out / "config.json").read_text())
    assert (made["max_position_embeddings"], made["rope_theta"], made["dtype"]) == (512, 1.6e6, "bfloat16")
    loaded = LlamaForCausalLM.from_pretrained(out)
    assert loaded.config.rope_parameters["rope_theta"] == 1.6e6
    before = LlamaForCausalLM.from_pretrained(source)
    assert torch.equal(loaded.model.embed_tokens.weight, before.model.embed_tokens.weight.bfloat16())
    changed, old = (each.model.layers[0].self_attn.q_proj.weight for each in (loaded, before))
    assert not torch.equal(changed, old.bfloat16())
