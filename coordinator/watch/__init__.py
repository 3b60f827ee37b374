"""`tunefleet watch`: what is said over a broker, one line each, without taking part in it."""
