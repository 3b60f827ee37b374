"""What a person chooses among; it imports nothing, since `tunefleet --help` reads it."""

from typing import Literal

Format = Literal["peft", "mlx", "gguf"]  # of an adapter's files
Trains = Literal["both", "a", "b"]  # the factors that a recipe lets a device change
LogLevel = Literal["debug", "info", "warning", "error"]  # error: nothing but what ends the program
