"""llama.cpp through xllamacpp, its prompt cache on. Runs in out/peers/llama_cpp.

Slot 0 answers single prompts; the others one prompt each of several together, so that each keeps
its own.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

import xllamacpp
from worker import Place, Prompt, serve

NUM_SLOTS = 9


class LlamaCpp:
    """llama.cpp's own server inside this process, asked without HTTP."""

    def __init__(self, place: Place) -> None:
        self.version = f"xllamacpp {version('xllamacpp')}"
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(place.gguf)
        parameters.n_ctx = place.context_tokens * NUM_SLOTS
        parameters.n_parallel = NUM_SLOTS
        parameters.cpuparams.n_threads = place.num_threads
        parameters.cpuparams_batch.n_threads = place.num_threads
        parameters.cache_ram_mib = 1024
        self._server = xllamacpp.Server(parameters)

    def prepare(self, prompts: Sequence[Prompt], reuse: str) -> None:
        """Nothing: what it reuses it has kept in its slots."""

    def generate(self, prompts: Sequence[Prompt], num_tokens: int, reuse: str) -> None:
        if len(prompts) == 1:
            self._complete(prompts[0], num_tokens, 0)
            return
        with ThreadPoolExecutor(len(prompts)) as threads:
            slots = range(1, len(prompts) + 1)
            list(threads.map(self._complete, prompts, [num_tokens] * len(prompts), slots))

    def _complete(self, prompt: Prompt, num_tokens: int, slot: int) -> None:
        asked = {
            "prompt": prompt.token_ids,
            "n_predict": num_tokens,
            "id_slot": slot,
            "cache_prompt": True,
            "temperature": 0,
            "ignore_eos": True,
        }
        reply = self._server.handle_completions(asked)
        reply = json.loads(reply) if isinstance(reply, str) else reply
        assert reply["usage"]["completion_tokens"] == num_tokens, f"it answered {reply}"


if __name__ == "__main__":
    serve(LlamaCpp)
