"""Ray connections, resource plans and placement groups, and cleaning up after dead drivers."""
