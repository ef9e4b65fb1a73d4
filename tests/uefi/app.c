// A kernel that is an EFI application: it says so on the firmware's console, by the firmware's calls, and powers off.
// Only what is called of the tables of the UEFI specification (2.10, chapter 4) is named.

typedef unsigned short character;
typedef unsigned long long word;

#ifdef __x86_64__
#define EFIAPI __attribute__((ms_abi))
#define ARCH L"x86_64"
#else
#define EFIAPI
#define ARCH L"aarch64"
#endif

struct text_output {
    void *reset;
    word(EFIAPI *output_string)(struct text_output *, const character *);
};

struct runtime_services {
    char header[24];
    void *before[10];
    void(EFIAPI *reset_system)(int type, word status, word size, void *data);
};

struct system_table {
    char header[24];
    void *vendor;
    unsigned revision;
    void *input_handle, *input, *output_handle;
    struct text_output *output;
    void *error_handle, *error;
    struct runtime_services *runtime;
};

word EFIAPI efi_main(void *handle, struct system_table *system) {
    (void)handle;
    system->output->output_string(system->output, L"\r\nqcase EFI application on " ARCH L"\r\nPASS\r\n");
    system->runtime->reset_system(2, 0, 0, 0); // EfiResetShutdown
    return 0;
}
