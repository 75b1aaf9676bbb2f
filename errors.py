"""The one exception that stands for something the user can mend."""


class UserError(Exception):
    """Bad input or a run that cannot go on; `run_nerf.py` prints its one line and exits with code 1.

    The message names the thing (file, flag, value) and says what to do about it.
    """
