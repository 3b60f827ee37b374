"""What is done to updates before they are merged: records of their own numbers, which are called."""
