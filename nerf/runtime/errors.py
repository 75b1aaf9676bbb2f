"""Errors that the user can mend, and the exit code with which the program ends."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import torch

from nerf.runtime import ranks
from nerf.runtime.stop_signals import Stopped
from nerf.runtime.terminal import lasting_streams


def one_line(message: str, longest: int = 900) -> str:
    """Message on one line, whose middle is left out if it is longer than that, because it can quote a file's text."""
    line = ' '.join(message.splitlines())
    return line if len(line) <= longest else f'{line[:longest - 300]} ... {line[-290:]}'


class UserError(Exception):
    """Bad input, or a run that cannot go on. The message is `one_line`: it names the file, flag or value, and what to
    do about it."""

    def __init__(self, message: str):
        super().__init__(one_line(message))


def returns_exit_code(program: Callable[..., None]) -> Callable[..., int]:
    """Program that returns its exit code: 0 done, 1 failed (one line on standard error says why), 129, 130 and 143
    stopped by SIGHUP, SIGINT and SIGTERM. Wrong flags exit with 2 in argparse. An error of the program itself keeps its
    traceback. Text that cannot be printed is no error."""
    @functools.wraps(program)
    @lasting_streams()
    def run(*args) -> int:
        try:
            program(*args)
            return 0
        except Stopped as stopped:
            print(f'stopped by {stopped}', file=sys.stderr)
            return stopped.exit_code
        except KeyboardInterrupt:
            print('interrupted', file=sys.stderr)
            return 130
        except (UserError, OSError) as error:
            line = ' '.join(str(error).split())  # an OSError can quote a file's text too
        except torch.OutOfMemoryError:
            line = 'out of GPU memory; lower chunk and netchunk, or N_rand'
        except RuntimeError as error:
            if not ranks.lost_one(error):
                raise
            line = ('another process of this run has ended; start the same command again, and it goes on from the '
                    'newest checkpoint')
        ranks.say_error(line)
        return 1
    return run
