"""One server over a tiny engine for most tests; the tests that change a server start their own."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from server import RunningServer, serving
from server_texts import MAX_CHUNK_TOKENS, TEXTS

from legokv import Engine, EngineSettings
from legokv.chunks.chunk import Chunk
from legokv.documents.cut import cut, document_token_ids
from legokv.documents.document import normalise_text
from legokv.text.prompt import build_prompt, prompt_format


@pytest.fixture(scope="session")
def engine_folder(tiny_engine_folder: Callable[[], Path]) -> Path:
    return tiny_engine_folder()


@pytest.fixture(scope="session")
def server(
    engine_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    limits = {"max_document_bytes": 4000, "max_documents": 16, "max_chunk_tokens": MAX_CHUNK_TOKENS}
    with serving(
        engine_folder, tmp_path_factory.mktemp("cache"), pool_tokens=8192, **limits
    ) as one:
        yield one


@pytest.fixture(scope="session")
def documents(server: RunningServer) -> list[str]:
    """Ids of TEXTS."""
    return server.register(*TEXTS)


@pytest.fixture(scope="session")
def library(engine_folder: Path) -> Callable[..., str]:
    """The library's greedy answer to a question over some of TEXTS, by number."""
    engine = Engine.open(engine_folder, settings=EngineSettings(pool_tokens=8192))

    def spans_of(number: int) -> tuple[tuple[int, ...], ...]:
        ids = document_token_ids(normalise_text(TEXTS[number]), engine.tokenizer)
        return cut(ids, MAX_CHUNK_TOKENS, engine.tokenizer)

    def answer(question: str, numbers: list[int], **options: object) -> str:
        documents = [spans_of(number) for number in numbers]
        spans = [span for document in documents for span in document]
        prompt = build_prompt(engine.tokenizer, prompt_format(engine.tokenizer), question, spans)
        segments = list(map(engine.compile, prompt.chunks[: -len(spans) or None]))
        for document in documents:
            behind: Chunk | None = None
            for span in document:
                behind = engine.compile(span, behind=() if behind is None else behind)
                segments.append(behind)
        return "".join(t.text for t in engine.generate([*segments, prompt.tail_ids], **options))

    return answer
