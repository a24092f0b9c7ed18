"""What many runs say together: their table, the claims, and what runs not made would take."""
