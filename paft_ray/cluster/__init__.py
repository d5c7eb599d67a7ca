"""The Ray cluster: starting or joining it, access tokens, resources, jobs, the control actor."""
