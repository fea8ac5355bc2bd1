"""How sites differ beside their patients: what they hold, and how it looks."""
