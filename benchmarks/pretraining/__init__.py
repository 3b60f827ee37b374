"""How the base model that ships with the demo was made: its text, its tokenizer, its training."""
