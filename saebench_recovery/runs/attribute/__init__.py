"""Attribution of stored recoveries to parts of their deltas; see `attribute.attribute`."""
