"""Documents and chunks that several servers share through Redis or Valkey."""
