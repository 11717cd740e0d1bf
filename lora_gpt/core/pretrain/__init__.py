"""How the bundled base model is made: filter -> vocabulary -> train -> pack, one command a step."""
