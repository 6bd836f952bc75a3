"""Results: the row's schema, the store on disk, leaderboards."""
