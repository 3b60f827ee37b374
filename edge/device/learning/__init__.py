"""From a version that is offered to an update in the spool: one task after another."""
