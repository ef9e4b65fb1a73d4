# The library's headers, for the compiler; of the library itself, what the program needs comes into the guest by itself.
apk add lz4-dev
