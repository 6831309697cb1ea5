"""Log-probabilities against torch's own log_softmax, and the logits that are copied for them."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from legokv import Engine, EngineSettings, SamplingOptions
from legokv.engine.answer import token_log_probs
from legokv.engine.request import AnswerOptions, GenerateRequest
from legokv.runners import packed_weights


def test_log_probs_are_log_softmax_of_the_logits_and_the_likeliest_come_first():
    logits = (
        torch.from_numpy(np.random.Generator(np.random.PCG64(1)).standard_normal(900)).float() * 5
    )
    expected = torch.log_softmax(logits.double(), -1)
    found = token_log_probs(logits, 17, 6)
    assert found.log_prob == pytest.approx(float(expected[17]), abs=1e-9)
    values, ids = expected.topk(6)
    assert [token for token, _ in found.top] == ids.tolist()
    assert [value for _, value in found.top] == pytest.approx(values.tolist(), abs=1e-9)


def test_no_alternatives_are_given_unless_asked_for_and_never_more_than_there_are():
    logits = torch.tensor([1.0, 2.0, 2.0])
    assert token_log_probs(logits, 0, 0).top == ()
    assert [token for token, _ in token_log_probs(logits, 0, 9).top] == [1, 2, 0]


@pytest.mark.parametrize("num_tokens", [5, 64, 1000, 128_256])
def test_the_likeliest_of_equal_logits_are_the_first_in_any_block_on_any_number_of_threads(
    num_tokens, torch_threads
):
    random = np.random.Generator(np.random.PCG64(num_tokens))
    logits = torch.from_numpy(random.standard_normal(num_tokens).round(1)).float()
    order = np.lexsort((np.arange(num_tokens), -logits.numpy()))
    found = []
    for num_threads in (1, 2):
        torch_threads(num_threads)
        found += [token_log_probs(logits, 3, count) for count in (1, 5, 20)]
    assert found[:3] == found[3:]
    for each, count in zip(found, (1, 5, 20), strict=False):
        assert [token for token, _ in each.top] == order[:count].tolist()
        exact = logits.double() - torch.logsumexp(logits.double(), 0)
        wanted = [float(exact[token]) for token in order[:count]]
        assert [value for _, value in each.top] == pytest.approx(wanted, abs=1e-12)


def test_logits_far_from_zero_do_not_overflow():
    found = token_log_probs(torch.tensor([3e4, 3e4, -3e4]), 2, 1)
    assert found.log_prob == pytest.approx(-6e4 - np.log(2))
    assert found.top[0][1] == pytest.approx(-np.log(2))


class LogitsMade(TorchDispatchMode):
    """Keeps whatever torch makes with as many columns as there are tokens: views are the same."""

    def __init__(self, num_tokens):
        super().__init__()
        self.num_tokens = num_tokens
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        # Neither weights nor what is laid out anew of them.
        if isinstance(out, Tensor) and out.dim() and out.shape[-1] == self.num_tokens:
            self.made.append(out)
        return out

    def shapes_beside(self, product):
        """Of what is not in the product's own memory."""
        first = {}
        for each in self.made:
            first.setdefault(each.untyped_storage().data_ptr(), tuple(each.shape))
        del first[product.untyped_storage().data_ptr()]
        return list(first.values())


@pytest.mark.parametrize(
    ("dtype", "by_onednn"), [("float32", False), ("bfloat16", False), ("bfloat16", True)]
)
def test_a_step_makes_its_logits_once_and_copies_rows_that_ask_for_log_probs_alone(
    tiny_engine_folder, monkeypatch, dtype, by_onednn
):
    """oneDNN's product has zeros behind the rows, no copy; some processors have no other."""
    if by_onednn:
        monkeypatch.setattr(packed_weights, "_multiplies", lambda calls, dtype: False)
    settings = EngineSettings(pool_tokens=1024, dtype=dtype, num_threads=1, attention="native")
    engine = Engine.open(tiny_engine_folder(), settings=settings)
    products = []
    engine.runner.decoder.head.register_forward_hook(lambda *given: products.append(given[-1]))
    num_tokens = engine.runner.decoder.config.vocab_size
    drawn = SamplingOptions(temperature=0.8, top_p=0.9, repetition_penalty=1.1, seed=3)
    asked = [AnswerOptions(), AnswerOptions(return_log_probs=True), AnswerOptions()]
    for answering in asked:
        engine.submit(GenerateRequest([[5, 6, 7]], 4, sampling=drawn, answering=answering))
    engine.step()
    products.clear()
    with LogitsMade(num_tokens) as logits:
        engine.step()
    [product] = products
    assert product.shape == (3, num_tokens)
    assert logits.shapes_beside(product) == ([] if dtype == "float32" else [(num_tokens,)])
