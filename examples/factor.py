"""Takes numbers apart with a program that is installed on workers, and not in Python: coreutils' factor.

python worker.py --executor examples.factor:Factor      on machines that have the program
python worker.py -P 11236                               an ordinary worker, which reduces
python examples/factor.py 1000                          the job, with EC262_DISCOVERY set: which prime divides
                                                        how many of the numbers up to 1000?
"""

import subprocess
import sys

import ec262


class Factor(ec262.JobExecutor):
    """Runs the program once a task, on all of its numbers."""

    name = "factor"

    def run(self, task):
        numbers = [value for _, value in task.records if type(value) is int and value >= 0]  # from a stranger
        asked = "".join(f"{number}\n" for number in numbers)
        done = subprocess.run(["factor"], input=asked, capture_output=True, text=True, check=True)
        for line in done.stdout.splitlines():
            number, _, factors = line.partition(":")
            for prime in sorted(set(map(int, factors.split()))):
                yield prime, int(number)


def count(prime, numbers):
    return len(numbers)


def main():
    most = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    data = enumerate(range(2, most + 1))
    program = ec262.executor_program("factor", reducer=count)
    divides = ec262.run_job(data, program=program, items_per_task=-(-most // 8))
    for prime in list(divides)[:5]:
        print(f"{prime} divides {divides[prime]} of the numbers from 2 to {most}")


if __name__ == "__main__":
    main()
