"""The report's prose: what each section asks, how it was measured, and what it does not show."""

from dataclasses import dataclass

INTRODUCTION = """# Benchmarks

Written by `python -m benchmarks.report` from `benchmarks/results/*.json`; not edited by hand.
`make bench` measures a little of everything, `make bench-full` all of it; both go on where they
were interrupted. Times are medians with their range, shares and scores means with 95 % bootstrap
intervals over cases; differences of methods are paired case by case. A command is the last call's:
what earlier calls with other arguments measured of the same code stays in its table. Where methods
have different numbers of cases, only the paired column compares them. What holds is told by
medians; their spreads stand below."""

METHODS = """## Methods

All get the same tokens at the same positions, and the question is computed anew in each. The chunk
that stands first is exact as it was compiled, and only `full` computes it.

| method | chunks are compiled | recomputed at request time |
| --- | --- | --- |
| `full` | not reused | everything |
| `prefix` | the first one alone | everything behind it |
| `naive` | alone | nothing |
| `legolink-K` | alone | the first K tokens of every chunk but the first |
| `spread-K` | alone | as many, spread evenly over each chunk |
| `legolink-0` | behind 4 dummy tokens that are not in the prompt | nothing |
| `cacheblend-R` | alone | the R % of tokens whose values in layer 1 differ most from full's |
| `guided-R` | alone | the R % the question attends to most when nothing is recomputed |
| `guided-R+legolink-2` | alone | those, and the first 2 of every chunk but the first |
| `ranked-R` | alone | the R % whose keys move most when the chunk is computed behind foreign text |
| `guided-ranked-R` | alone | the R % with the largest product of both |
| `behind-head` | behind the prompt's own first segment, kept apart from its KV | nothing |
| `behind-head+X` | so | as X |
| `behind-chat-head` | behind the chat template's head, which is not in the prompt | nothing |
| `behind-paragraph` | behind some 100 tokens of plain text, not in the prompt | nothing |
| `behind-sentence` | behind one plain sentence, which is not in the prompt | nothing |
| `guided-drift-K` | alone | K of each, 4 evenly, as `guided`; others [drift](linking.md#drift) |
| `guided-ranked-drift-K` | alone | the same as `guided-ranked` |
| `one-document` | behind all chunks that stand before | nothing |
| `whole` | each behind those before it in its document | nothing |
| `whole+legolink-K` | so | the first K tokens of every document but the first |
| `whole-behind-head` | so, the first one behind the prompt's head | nothing |
| `last-K`, `random-K` | alone | controls: as many as `legolink-K`, the last or at random |
| `no-documents` | there are none | the floor |"""


@dataclass(frozen=True)
class Section:
    """A section's heading, what was done, and where its numbers end."""

    question: str
    how: str
    not_shown: str


SECTIONS = {
    "fidelity": Section(
        "How near is linking to full recompute?",
        "Two sets. HotpotQA: a question over its ten passages behind a head of two worked "
        "questions, each a chunk. Essays: four chunks of 512 tokens, then 32 tokens as question "
        "and 32 as answer. The gold answer is fed token by token; KL is of a method's next-token "
        "distribution from full recompute's, top-1 agreement how often both have the same most "
        "likely token, each a mean over the answer.",
        "A model of 135 M parameters, teacher-forced. It shows how far the methods are from full "
        "recompute and from each other, not what a larger model would lose.",
    ),
    "heads": Section(
        "What do a head, a choice and drift keep?",
        "The same sets and numbers, for documents compiled behind a head: the prompt's own, the "
        "chat template's, a paragraph or one plain sentence. An essay's prompt has no head: its "
        "first chunk stands alone at its beginning, and `behind-head` is behind that chunk. Gap "
        "closed is what part of naive reuse's KL a method takes away. `X-16` recomputes as many "
        "tokens as legolink-16 where its documents are longer.",
        "The same model of 135 M parameters. Nor does it show what answers are right: KL says how "
        "far they are from full recompute's.",
    ),
    "answers": Section(
        "Are answers over documents behind a head still right?",
        "`facts` and `two-chunk` as in the next but one section. The head that passages are "
        "compiled behind is the prompt's own, two worked questions.",
        "Heads that are not the prompt's. Easy facts and a small model.",
    ),
    "modes": Section(
        "What does each mode take to the first token?",
        "The product's own calls: a head of 32 tokens, eight documents of 512 and a question of "
        "32, all random and in the pool. Modes take turns in one process, and each is compared "
        "with LegoLink-16 of its own round. `guided-16` recomputes as many tokens as LegoLink-16; "
        "behind the prompt's own head the first document is exact, and none of it is computed.",
        "One prompt, one request at a time. Compiling behind a head and ranking are paid before.",
    ),
    "long_documents": Section(
        "What do long documents lose?",
        "One to four documents of 1,500 to 4,000 tokens behind the chat template's head, in chunks "
        "of at most 1,024. `going on`: 32 tokens of what follows the last document as question and "
        "32 as answer. `asked`: the product's own chat prompt, which asks for a fact that one "
        "document tells of a person by a pronoun, in another chunk than the name. Gap closed is "
        "what part of naive reuse's KL a method takes away. `naive` and `legolink` have each chunk "
        "alone, as EPIC does; `whole` is what the product does.",
        "One model of 135 M parameters, teacher-forced, and essays of one author. One document "
        "behind the head is exact: what is left of its KL is bfloat16's rounding in another order.",
    ),
    "quality": Section(
        "Are the answers still right?",
        "Greedy answers of at most 12 tokens, scored against the gold by exact match and by F1 of "
        "words. `facts`: one generated fact in one of 2 to 8 short passages in shuffled order, at "
        "its start, middle or end. `two-chunk`: a fact cut from the name it belongs to, told by a "
        "pronoun in the next chunk, where reuse is expected to hurt. HotpotQA as above.",
        "Easy facts and a small model: a difference between methods is one of this model. Twenty "
        "methods without a difference would still have about one interval that misses 0.",
    ),
    "kv_error": Section(
        "Which tokens of a chunk are wrong, by how much?",
        "The distance of a method's keys and values from full recompute's over the length of "
        "full's, mean over layers and over all chunks but the first, by the token's place in its "
        "chunk. The result file has it layer by layer.",
        "A distance of keys and values, which says nothing by itself about answers.",
    ),
    "attention_mass": Section(
        "Do a chunk's first tokens draw attention that linking takes from them?",
        "The share of the question's attention that falls on the parts of the prompt, mean over "
        "its tokens, heads and layers. The premise of LegoLink is seen where `naive` pays more to "
        "the first tokens of later chunks than `full` does, and a linked prompt does not.",
        "Attention averaged over heads; one head may do what the average hides.",
    ),
    "stored_forms": Section(
        "What does keeping KV as int8 save, cost and change?",
        "The same prompts linked at k = 16 with KV as it was compiled and with it rounded to int8; "
        "KL is of int8 from the model's type. Storing and loading are those of one chunk in "
        "memory, checksum included, without a disk.",
        "How far linking itself is from full recompute is another section. A small model may "
        "mind rounding more or less than a larger one.",
    ),
    "cost": Section(
        "What does each method cost, and how far is it from its limit?",
        "Random tokens, one request at a time, methods interleaved in one process. The limit is a "
        "prefill of as many tokens with nothing before them, so attention to the cached tokens is "
        "the method's own. `prefix` has only the first chunk cached, `whole-prefix` all of them "
        "in the same order. Memory is counted pages.",
        "Lookup, which is the server's, is in the serving results. Waiting for others is too.",
    ),
    "serving": Section(
        "What happens when many ask?",
        "Documents drawn by a Zipf law, in the order they were drawn; Poisson arrivals, seeded; "
        "streamed over gRPC. Client and server share the same two cores. Times run from when a "
        "request was due. `fits`: 48 documents of 512 tokens, six to a question, all in the pool; "
        "the other set has 128 over a pool of 32 and a disk budget of 64, so that what was reused "
        "once may be gone. `prefix` is made of what the server has: the first document is sent as "
        "system text, which is kept at position 0, the others as fresh text. CacheBlend is not "
        "served: it needs a forward pass of its own, and is timed among the costs.",
        "A cache of longer prefixes would reuse what the table of shares says. System texts are "
        "not kept on disk.",
    ),
    "peers": Section(
        "How do other engines fare on the same machine?",
        "The same token ids and threads, each engine in its own process, stopped when it is not "
        "its turn. llama.cpp computes 4-bit weights, the others bfloat16. Decode times are those "
        "of 32 tokens after a 4,000-token context.",
        "`documents reordered` is exact in the peers and LegoLink-16, an approximation, in "
        "legokv, whose documents were compiled before. llama.cpp's weights are not legokv's: "
        "`python -m benchmarks.peers.same_gguf` decodes one Q8_0 file with both.",
    ),
    "askers": Section(
        "And when 32 ask about the same documents?",
        "Eight documents of 512 random tokens, 32 questions of 32 tokens at once, each answered "
        "with 97 tokens: a load that is mostly decoding. Before the clock starts one question is "
        "answered, so vLLM has cached the documents in that question's order, as prefixes, and "
        "legokv has compiled them. vLLM has memory for all 32 at once. The engines are asked as "
        "libraries, without a server.",
        "Answers are exact in vLLM; legokv's are LegoLink-16's. Real questions do not come all at "
        "once.",
    ),
}
PLOTS = {
    "fidelity": {"accuracy_ttft": "KL from full recompute over time to first token, by method"},
    "heads": {"modes_ttft": "KL from full recompute over time to first token, by mode"},
    "kv_error": {
        "error_by_position": "error of keys and values over the token's place in its chunk",
        "error_by_layer": "error of keys and values over layers",
    },
    "cost": {"ttft_length": "time to first token over the prompt's length, by method"},
    "serving": {"throughput_latency": "time to first token over requests a second, by method"},
}
"""Each section's plots, with what they show."""
