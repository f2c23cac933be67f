"""People are told what has happened, by mail and by webhook, as the rules of the settings say."""
