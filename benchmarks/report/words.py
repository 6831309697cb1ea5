"""The report's prose: what was asked in each section, and what its numbers do not show."""

INTRODUCTION = """# Benchmarks

Written by `python -m benchmarks.report` from `benchmarks/results/*.json`; not edited by hand.
`make bench` measures a little of everything, `make bench-full` all of it; both go on where they
were interrupted. Times are medians with their range, shares and scores means with 95 % bootstrap
intervals."""

SECTIONS = {
    "fidelity": (
        "How near is linking to full recompute?",
        "A model of 135 M parameters, teacher-forced. It shows how far the methods are from full "
        "recompute and from each other, not what a larger model would lose.",
    ),
    "quality": (
        "Are the answers still right?",
        "Easy facts and a small model: a difference between methods is one of this model. Twenty "
        "methods without a difference would still have about one interval that misses 0. "
        "`two-chunk` cuts each fact from the name it belongs to, where reuse is expected to hurt.",
    ),
    "kv_error": (
        "Which tokens of a chunk are wrong, by how much?",
        "A distance of keys and values, which says nothing by itself about answers.",
    ),
    "attention_mass": (
        "Do a chunk's first tokens draw attention that linking takes from them?",
        "Attention averaged over heads; one head may do what the average hides.",
    ),
    "stored_forms": (
        "What does keeping KV as int8 save, cost and change?",
        "The same prompts linked at k = 16 with KV as it was compiled and with it rounded to int8; "
        "KL is of int8 from the model's type; how far linking is from full recompute is another "
        "section. Storing and loading are those of one chunk in memory, checksum included, without "
        "a disk. A small model, which may mind rounding more or less than a larger one.",
    ),
    "cost": (
        "What does each method cost, and how far is it from its limit?",
        "Random tokens, one request at a time. The limit is a prefill of as many tokens with "
        "nothing before them, so attention to the cached tokens is the method's own. `prefix` has "
        "only the first chunk cached, `whole-prefix` all of them in the same order. Lookup, "
        "which is the server's, is in the serving results. Memory is counted pages.",
    ),
    "serving": (
        "What happens when many ask?",
        "Client and server share the same two cores. Times run from when a request was due. "
        "`prefix` is made of what the server has: the first document is sent as system text, "
        "which is kept at position 0, the others as fresh text; a cache of longer prefixes would "
        "reuse what the table of shares says. Such heads are not kept on disk. CacheBlend is not "
        "served: it needs a forward pass of its own, and is timed among the costs.",
    ),
    "peers": (
        "How do other engines fare on the same machine?",
        "The same token ids and threads, each engine in its own process, stopped when it is not "
        "its turn. llama.cpp computes 4-bit weights, the others bfloat16. `documents reordered` "
        "is exact in the peers and LegoLink-16, an approximation, in legokv, whose documents were "
        "compiled before. Decode times are those of 32 tokens after a 4,000-token context.",
    ),
}
PLOTS = {
    "fidelity": ("accuracy_ttft",),
    "kv_error": ("error_by_position", "error_by_layer"),
    "cost": ("ttft_length",),
    "serving": ("throughput_latency",),
}
