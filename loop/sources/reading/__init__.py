"""What sources share: places, JSON, conversations, and records that cannot be used."""
