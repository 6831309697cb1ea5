"""legokv's engine, asked as a library, in the same harness as its peers."""

from collections.abc import Sequence
from dataclasses import replace

from worker import Place, Prompt, serve

import legokv
from legokv import Engine, EngineSettings
from legokv.engine.request import GenerateRequest
from legokv.link.link import Segment

POOL_TOKENS = 49152
LINK_TOKENS = {"documents": 16, "documents-0": 0, "prefix": 0}


class Legokv:
    """An engine whose answers do not end at an end-of-text token, as the peers' do not."""

    def __init__(self, place: Place) -> None:
        self.version = f"legokv {legokv.__version__}"
        self._engine = Engine.open(
            place.engine,
            settings=EngineSettings(num_threads=place.num_threads, pool_tokens=POOL_TOKENS),
        )
        model = replace(self._engine.facts.model, eos_token_ids=())
        self._engine.facts = replace(self._engine.facts, model=model)

    def prepare(self, prompts: Sequence[Prompt], reuse: str) -> None:
        """Compile what will be reused: the documents, or all of them joined."""
        for prompt in prompts:
            for chunk in self._chunks(prompt, reuse):
                self._engine.compile(chunk, persistent=False)

    def generate(self, prompts: Sequence[Prompt], num_tokens: int, reuse: str) -> None:
        requests = [self._request(prompt, num_tokens, reuse) for prompt in prompts]
        jobs = [self._engine.submit(request) for request in requests]
        for job in jobs:
            for _ in self._engine.results(job):
                pass
            assert job.usage.generated_tokens == num_tokens, "an answer ended early"

    def _chunks(self, prompt: Prompt, reuse: str) -> list[tuple[int, ...]]:
        if reuse == "nothing":
            return []
        if reuse == "prefix":
            return [tuple(token for document in prompt.documents for token in document)]
        return list(prompt.documents)

    def _request(self, prompt: Prompt, num_tokens: int, reuse: str) -> GenerateRequest:
        if reuse == "nothing":
            return GenerateRequest([prompt.token_ids], num_tokens)
        chunks: list[Segment] = [
            self._engine.chunk(ids, persistent=False) for ids in self._chunks(prompt, reuse)
        ]
        segments = [*chunks, prompt.question]
        return GenerateRequest(segments, num_tokens, link_tokens=LINK_TOKENS[reuse])


if __name__ == "__main__":
    serve(Legokv)
