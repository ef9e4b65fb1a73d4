/* A program that is linked with a shared library from a package: what goes in comes out again, and is smaller in between. */
#include <lz4.h>
#include <stdio.h>
#include <string.h>

#define SIZE 65536

int main(void)
{
    static char text[SIZE], back[SIZE], packed[LZ4_COMPRESSBOUND(SIZE)];
    int length, again;

    for (int i = 0; i < SIZE; i++)
        text[i] = "the quick brown fox jumps over the lazy dog "[i % 44];
    length = LZ4_compress_default(text, packed, SIZE, sizeof packed);
    if (length <= 0 || length > SIZE / 20) {
        printf("FAIL: %d bytes became %d\n", SIZE, length);
        return 1;
    }
    again = LZ4_decompress_safe(packed, back, length, SIZE);
    if (again != SIZE || memcmp(text, back, SIZE) != 0) {
        printf("FAIL: %d bytes came back, and not the same\n", again);
        return 1;
    }
    if (LZ4_decompress_safe(packed, back, length - 1, SIZE) >= 0) {
        puts("FAIL: a block that was cut off was taken for a whole one");
        return 1;
    }
    puts("PASS: lz4");
    return 0;
}
