"""A server without Triton, its documents and its engine, and `legokv cache` run beside it."""

import json

from crash_worker import LIMITS, TEXTS
from engine_chunks import chunks_of, compile_last

from legokv.cli import main
from legokv.documents.compiling import Compiler
from legokv.serving.documents import DocumentService


class Machine:
    """`options` are those of the command that name its engine, its folder and its fleet."""

    def __init__(self, engine, registry, options):
        self.engine, self.registry = engine, registry
        self.options = list(options)
        compiler = Compiler(registry, self._compile, lambda keys: None, LIMITS)
        self.service = DocumentService(registry, engine.tokenizer, compiler, LIMITS)

    def _compile(self, namespace, chunks):
        return compile_last(self.engine, chunks, namespace)

    def register(self, number, **fields):
        request = {"operation": "create", "text": TEXTS[number], **fields}
        return self.service.reply(request)["document"]

    def answer(self, document):
        stored = self.registry.chunks(document["namespace"], document["id"])
        chunks = chunks_of(self.engine, stored, document["namespace"])
        return self.engine.prefill([*chunks, [5, 6]])

    def command(self, capsys, kind, *rest):
        """The status of one command on this machine, and its JSON or its error."""
        capsys.readouterr()
        arguments = ("cache", kind, *self.options, "--format", "json", *rest)
        status = main([str(argument) for argument in arguments])
        out = capsys.readouterr()
        return status, json.loads(out.out) if out.out else out.err
