"""Calls the functions of a driver in a process of its own, which may end by a sanitizer's report. Imports no torch.

Reads pickled (name, order, arguments) from the standard input, an argument being an int, a float or bytes (what a
pointer points to), and answers with (error or None, the bytes afterwards).
"""

import ctypes
import pickle
import sys


def main() -> None:
    driver = ctypes.CDLL(sys.argv[1])
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    answers = sys.stdout.buffer
    while True:
        try:
            name, order, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        values, memory = [], []
        for argument in arguments:
            if isinstance(argument, bytes):
                # Of exactly this size, from the allocator that the address sanitizer watches.
                pointer = libc.malloc(len(argument))
                ctypes.memmove(pointer, argument, len(argument))
                memory.append((pointer, len(argument)))
                values.append(ctypes.c_void_p(pointer))
            else:
                values.append(ctypes.c_double(argument) if isinstance(argument, float) else ctypes.c_longlong(argument))
        driver.emulation_set_order(order)
        function = getattr(driver, name)
        function.restype = ctypes.c_char_p
        error = function(*values)
        pickle.dump((error and error.decode(), [ctypes.string_at(*block) for block in memory]), answers)
        answers.flush()
        for pointer, _ in memory:
            libc.free(pointer)


main()
