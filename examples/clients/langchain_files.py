"""Ask over files with LangChain: `pip install langchain-openai`, then give files and a question.

python examples/clients/langchain_files.py FILE... "QUESTION", with a server at LEGOKV_API or
http://127.0.0.1:8080 and, where it asks for one, a key in OPENAI_API_KEY.
"""

import os
import sys
from pathlib import Path

from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from openai import OpenAI

BASE_URL = os.environ.get("LEGOKV_API", "http://127.0.0.1:8080") + "/v1"
API_KEY = os.environ.get("OPENAI_API_KEY", "none")


def main(files: list[str], question: str) -> None:
    """Upload the files, then stream the answer; the files are linked in the order given."""
    client = OpenAI(base_url=BASE_URL, api_key=API_KEY)
    uploads = [client.files.create(file=Path(file), purpose="user_data") for file in files]
    parts: list[str | dict] = [{"type": "file", "file": {"file_id": each.id}} for each in uploads]
    parts.append({"type": "text", "text": question})
    chat = ChatOpenAI(
        base_url=BASE_URL,
        api_key=API_KEY,
        model=client.models.list().data[0].id,
        temperature=0,
        max_tokens=60,
        stream_usage=True,
        extra_body={"link": {"mode": "legolink", "link_tokens": 16}},
    )
    usage = None
    for chunk in chat.stream([HumanMessage(content=parts)]):
        print(chunk.content, end="", flush=True)
        usage = chunk.usage_metadata or usage
    print(f"\n{usage}")


if __name__ == "__main__":
    main(sys.argv[1:-1], sys.argv[-1])
