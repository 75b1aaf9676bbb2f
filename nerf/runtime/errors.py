"""The one exception that stands for something the user can mend."""


class UserError(Exception):
    """Bad input or a run that cannot go on; `run_nerf.py` prints its one line and exits with code 1.

    The message names the thing (file, flag, value) and says what to do about it. It is made one line of at most 900
    characters here, whatever a file's text brought in.
    """

    def __init__(self, message: str):
        line = ' '.join(message.splitlines())
        super().__init__(line if len(line) <= 900 else f'{line[:600]} ... {line[-290:]}')
