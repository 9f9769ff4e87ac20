"""One goal, first to last: submit, publish, claim, work, complete, and the node that repairs what went wrong."""
