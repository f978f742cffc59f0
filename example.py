"""Counts the words of a nursery rhyme on a network of volunteers, and shows what it cost and who earned it.

Without EC262_DISCOVERY in the environment the network is started on this machine, for this program alone.
"""

import ec262

RHYME = """\
Humpty Dumpty sat on a wall
Humpty Dumpty had a great fall
All the King's horses and all the King's men
Couldn't put Humpty together again"""


@ec262.mapper
def words(number, line):
    for word in line.lower().split():
        yield word, 1


@ec262.reducer
def total(word, counts):
    return sum(counts)


if __name__ == "__main__":
    job = ec262.submit(dict(enumerate(RHYME.splitlines())))
    for word, count in job.result().items():
        print(f"{count:4}  {word}")

    report = job.report()
    print(f"\n{report.map_tasks} map and {report.reduce_tasks} reduce tasks cost {report.credits_spent} credits")
    for worker, credits in report.earned.items():
        print(f"worker {worker[:8]} earned {credits}")
    print(f"the account that paid had {report.balance_before} credits and has {report.balance_after}")
