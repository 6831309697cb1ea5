"""What the shared server knows: its documents' texts, and how long one chunk of them is."""

TEXTS = (
    "The harbour of Vellin has three lighthouses. The oldest stands on the northern pier. " * 3,
    "The ferry of Vellin leaves at seven and comes back at nine, except on market days. " * 3,
    "Größe und Gewicht: 12 µm, 東京, 👩‍🔬. The keeper of the oldest lighthouse is called Orrin. "
    * 3,
    "On market days the baker of Vellin sells rye bread from a blue cart by the well. " * 3,
)
MAX_CHUNK_TOKENS = 64
