// A shared library to link against: it counts, for each thread and for the whole process.
#ifndef TALLY_H
#define TALLY_H

extern int tally_loaded; // what the library's constructor sets
extern long tally_total;
long tally(void); // counts one; how many this thread has counted

#endif
