"""How the updates that are left become one step: records of their own numbers."""
