"""How the program ends: one line on standard error for what went wrong, and the exit code."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import torch

from nerf.runtime import ranks
from nerf.runtime.errors import UserError
from nerf.runtime.stop_signals import Stopped


def returns_exit_code(program: Callable[..., None]) -> Callable[..., int]:
    """Makes a program return 0 done, 1 it cannot go on (one line says why), 130 and 143 stopped by SIGINT and SIGTERM.

    Wrong flags exit with 2 by themselves. An error that is not the user's keeps its traceback.
    """
    @functools.wraps(program)
    def run(*args) -> int:
        try:
            program(*args)
        except Stopped as stopped:
            print(f'stopped by {stopped}', file=sys.stderr)
            return stopped.exit_code
        except (UserError, OSError) as error:
            ranks.say_error(' '.join(str(error).split()))  # one line, whatever a file's text brought in
            return 1
        except torch.OutOfMemoryError:
            ranks.say_error('out of GPU memory; lower chunk and netchunk, or N_rand')
            return 1
        except RuntimeError as error:
            if not ranks.lost_one(error):
                raise
            ranks.say_error('another process of this run has ended; start the same command again, and it goes on from '
                            'the newest checkpoint')
            return 1
        except KeyboardInterrupt:
            print('interrupted', file=sys.stderr)
            return 130
        return 0
    return run
