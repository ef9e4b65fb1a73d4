#ifndef TALLY_H
#define TALLY_H

/* Adds to a count, and returns it. */
int tally_add(int more);

#endif
