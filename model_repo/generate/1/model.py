"""The generate model: tensors to fields, replies to tensors. What it does is in legokv.serving."""

import os

from legokv.serving.answering import answer_in_thread
from legokv.serving.ending import failure_told
from legokv.serving.generate import GenerateService
from legokv.serving.log import line_for, log_to_server
from legokv.serving.metrics import Publisher
from legokv.serving.secret import secret_in
from legokv.serving.settings_sources import settings_from
from legokv.serving.triton.call import EngineCaller
from legokv.serving.triton.metrics_port import MetricsPort
from legokv.serving.triton.processes import keep_memory_private
from legokv.serving.triton.tensors import TensorResponder, Tensors


class TritonPythonModel:
    def initialize(self, args):
        self.tensors = Tensors(args["model_config"])
        keep_memory_private()
        with failure_told("generate", os.environ):
            settings = settings_from(None, os.environ, {})
            log_to_server("generate", settings)
            self.service = GenerateService.open(settings, EngineCaller(secret_in(os.environ)))
        self.metrics = Publisher(self.service.samples, MetricsPort())

    def execute(self, requests):
        for request in requests:
            responder = TensorResponder(self.tensors, request)
            received = self.tensors.received(request)
            line = line_for("generate", received.request_id)
            replies = received.replies(self.service.replies, responder.is_cancelled, line)
            answer_in_thread(replies, responder, line)

    def finalize(self):
        self.metrics.close()
        self.service.close()
