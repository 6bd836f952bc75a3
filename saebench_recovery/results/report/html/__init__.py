"""Leaderboards as one self-contained page of HTML, and its plots as pictures."""
