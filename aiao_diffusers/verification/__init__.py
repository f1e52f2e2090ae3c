"""From a suspect to a report: open it, read it by a plan that was fixed beforehand, say what follows."""
