"""People who label in Label Studio: the annotator, its HTTP client, projects, tasks, editor, masks, a local server."""
