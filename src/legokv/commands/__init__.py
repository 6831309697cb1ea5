"""The `legokv` command's subcommands, one module each, and what they share of printing."""
