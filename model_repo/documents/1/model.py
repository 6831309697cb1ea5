"""The documents model: a JSON text in, a JSON text out. What it does is in legokv.serving."""

import os

from legokv.serving.answering import answer_in_thread
from legokv.serving.documents import document_replies, open_document_service
from legokv.serving.ending import failure_told
from legokv.serving.log import line_for, log_to_server
from legokv.serving.secret import secret_in
from legokv.serving.settings_sources import settings_from
from legokv.serving.triton.call import EngineCaller
from legokv.serving.triton.processes import keep_memory_private
from legokv.serving.triton.tensors import TensorResponder, Tensors


class TritonPythonModel:
    def initialize(self, args):
        self.tensors = Tensors(args["model_config"])
        keep_memory_private()
        with failure_told("documents", os.environ):
            settings = settings_from(None, os.environ, {})
            log_to_server("documents", settings)
            self.service = open_document_service(settings, EngineCaller(secret_in(os.environ)))

    def execute(self, requests):
        for request in requests:
            responder = TensorResponder(self.tensors, request)
            received = self.tensors.received(request)
            line = line_for("documents", received.request_id)
            replies = received.replies(document_replies, self.service, line)
            answer_in_thread(replies, responder, line)
