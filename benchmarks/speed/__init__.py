"""How fast maskjax is: one question a file, each against the physical limit."""
