"""Text becomes tokens and tokens text: tokenizer, chat template, prompt, stream."""
