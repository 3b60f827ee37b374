"""Which strategy is better: fleets of unlike devices in virtual time, and the tables that come of them."""
