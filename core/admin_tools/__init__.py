"""What every admin page of ours stands on: bounded lists and actions, exact searches, hostile text as text."""
