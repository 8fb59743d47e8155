"""The one exception that is the user's to mend."""


class LopsideError(Exception):
    """A fault in what the user gave: its message names the key or file, the value, and what is allowed.

    Commands print the message alone and exit with 1; anything else that is raised is our fault and keeps its traceback.
    """
