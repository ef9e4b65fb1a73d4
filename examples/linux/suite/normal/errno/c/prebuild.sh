# Makes cases.h of errno.txt: for each line "ERROR  CALL" a line `EXPECT(ERROR, CALL)`.
sed -n 's/^\(E[A-Z0-9]*\)  *\(.*\)$/EXPECT(\1, \2);/p' errno.txt >"$QCASE_CASE_C_DIR/cases.h"
