#include "all.h"

unsigned long size_of_stat(void) { return sizeof(struct stat); }
unsigned long size_of_regs(void) { return sizeof(regs); }
