"""The client on a device: it follows the coordinator, trains, and delivers."""
