"""Who gets in: lists of devices, certificates, and what a broker's configuration lets each of them do."""
