"""Three kernels once each, for a profiler to look at: python one_call.py --library SO"""

import argparse
from pathlib import Path

import torch
from attention import Form, kernel_call, make_layer
from measure import open_session
from shape import PAGE_SIZE
from stages import PROFILED
from work import WorkMaker


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    arguments = parser.parse_args()
    session = open_session(arguments.library, arguments.device)
    maker = WorkMaker(session.sizes, PAGE_SIZE, session.model.vocab_size)
    for work in (maker.link(session.sizes.many), maker.decode(session.sizes.many)):
        layer, tables = make_layer(session, work), session.tables(work.batch)
        kernel_call(session, [layer], tables, Form())()
    pool = layer.pool[None]
    num_pages = session.import_pages
    kv = session.normal(1, 2, num_pages * PAGE_SIZE, *pool.shape[4:])
    numbers = torch.arange(num_pages, dtype=torch.int32, device=session.device)
    session.launchers.import_kv(pool, kv, numbers, session.stream())
    if session.device.type == "cuda":
        torch.cuda.synchronize()
    print(f"{', '.join(PROFILED)}: once each")


if __name__ == "__main__":
    main()
