"""What privacy costs in loss, and what an attacker still finds out (`__main__.py`)."""
