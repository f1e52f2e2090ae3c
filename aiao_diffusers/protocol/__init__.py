"""What makes a verdict evidence: commitment, date, beacon, leaves that can be shown, signed reports."""
