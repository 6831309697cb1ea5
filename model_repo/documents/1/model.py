"""The documents model: a JSON text in, a JSON text out. What it does is in legokv.serving."""

import os

from legokv.serving.answering import answer_in_thread
from legokv.serving.documents import document_replies, open_document_service
from legokv.serving.log import line_for, log_to_server
from legokv.serving.settings_sources import settings_from
from legokv.serving.triton.call import ask_engine
from legokv.serving.triton.tensors import TensorResponder, Tensors


class TritonPythonModel:
    def initialize(self, args):
        settings = settings_from(None, os.environ, {})
        log_to_server("documents", settings)
        self.tensors = Tensors(args["model_config"])
        self.service = open_document_service(settings, ask_engine)

    def execute(self, requests):
        for request in requests:
            responder = TensorResponder(self.tensors, request)
            fields = self.tensors.fields(request)
            line = line_for("documents", self.tensors.request_id(request))
            answer_in_thread(document_replies(self.service, fields, line), responder, line)
