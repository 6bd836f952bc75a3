"""From a run's flips to its row: attack and replay write records, `aggregate` reads them."""
