"""What runs at the centre: admission, journal, strategies, versions, and the server around them."""
