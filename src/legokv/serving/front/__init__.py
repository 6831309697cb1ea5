"""What clients reach in Triton's place: it bounds and checks requests, then passes them on."""
