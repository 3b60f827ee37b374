"""What is decoded, a file for each room: valid inputs to begin from, and what reads them."""
