"""What several servers on several machines share through Redis or Valkey: documents and chunks."""
