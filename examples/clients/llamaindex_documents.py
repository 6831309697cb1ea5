"""Ask over texts with LlamaIndex: `pip install llama-index-llms-openai-like`, then as below.

python examples/clients/llamaindex_documents.py FILE... "QUESTION", with a server at LEGOKV_API or
http://127.0.0.1:8080 and, where it asks for one, a key in OPENAI_API_KEY.
"""

import os
import sys
from pathlib import Path

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from openai import OpenAI

BASE_URL = os.environ.get("LEGOKV_API", "http://127.0.0.1:8080") + "/v1"
API_KEY = os.environ.get("OPENAI_API_KEY", "none")


def main(files: list[str], question: str) -> None:
    """Send the texts with the question, as a retriever would; each is linked, none is prefilled."""
    documents = [{"title": Path(file).stem, "text": Path(file).read_text()} for file in files]
    model = OpenAILike(
        api_base=BASE_URL,
        api_key=API_KEY,
        model=OpenAI(base_url=BASE_URL, api_key=API_KEY).models.list().data[0].id,
        is_chat_model=True,
        temperature=0,
        max_tokens=60,
        additional_kwargs={"extra_body": {"documents": documents}},
    )
    for piece in model.stream_chat([ChatMessage(role="user", content=question)]):
        print(piece.delta, end="", flush=True)
    print()


if __name__ == "__main__":
    main(sys.argv[1:-1], sys.argv[-1])
