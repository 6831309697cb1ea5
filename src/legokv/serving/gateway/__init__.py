"""OpenAI's and Anthropic's API over Triton's models; what stands before Triton is `front`'s."""
