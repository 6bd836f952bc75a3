"""What is done with stored runs: the store on disk, comparisons, leaderboards, reports."""
