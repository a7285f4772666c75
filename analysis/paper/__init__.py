"""The paper's own tables, with the published figures beside ours."""
