#include <sys/stat.h>
#include <sys/user.h>
#include <tally.h>

#define STEP 2
typedef struct user_regs_struct regs;
#ifdef __cplusplus
extern "C" {
#endif
unsigned long size_of_stat(void);
unsigned long size_of_regs(void);
int catches(void);
#ifdef __cplusplus
}
#endif
