"""The operations this project adds to a Llama: what they mean, in torch. No policy here."""
