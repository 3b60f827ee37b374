"""What runs on a device: training in one wing, the network in the other, the client where they meet."""
