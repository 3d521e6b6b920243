"""Find plans that a machine trains fast under, and prove how near the best they are."""
