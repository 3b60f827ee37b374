"""The fleet under fire: hostile inputs, kills, cuts and bad disks, each reproducible from a seed."""
