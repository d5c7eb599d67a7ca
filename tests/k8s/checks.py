"""All checks by name."""

import policies
import security

CHECKS = {check.__name__: check for check in (*policies.CHECKS, *security.CHECKS)}
