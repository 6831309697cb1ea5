"""The one definition of a Llama-family decoder: its config, its rotation, its layers."""
