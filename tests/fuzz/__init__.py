"""Random guests, the console's judge, and an oracle that shares nothing with it.

log.py           the log of a guest: each write with its author
serial.py        merges what the actors of a guest write
guest.py         guests that boot, and run a command in a shell
group.py         guests that run a group
words.py, screens.py: what they say, and how programs write a line on a terminal
play.py          plays a guest against the judge in simulated time
screen.py        plays the log on a terminal emulator
oracle.py        says which verdicts a careful person accepts
oracle_group.py  the same for a group, and for each of its commands
shrink.py        makes a small reproduction of a disagreement
__main__.py      `make fuzz`
"""
