/*
 * A kernel that does on its console whatever a test tells it to. It has no memory management, no interrupts and no disk: it
 * reads lines, echoes them as a terminal does, and runs their words. Commands are separated by ` ; `.
 *
 *   say TEXT           print TEXT as a line               print TEXT      … without its line end
 *   pass               PASS                               fail            FAIL: as told
 *   raw HEX…           these bytes, two digits each       nl              a line end
 *   panic [STYLE]      linux, rust, arceos, starry, oops; bare: Linux's without time stamps; short: its first line alone
 *   fault              x86_64: a triple fault; elsewhere a reset
 *   hang               for ever, silently                 spin            … and busy
 *   flood [KIB]        lines of 64 bytes, or for ever     line KIB        one line of x, without its end
 *   garble [KIB]       random bytes and escapes           drip TEXT       a byte every 20 ms
 *   sleep MS           nothing for so long                prompt          its prompt, once more
 *   off                power off                          reboot          reset
 *   echo on|off        of what is typed                   lose N          loses the next line's N-th byte
 *   echo MODE          late: behind the line's end        again: once more behind the line's end
 *                      doubled: each byte twice           upper: in capitals
 *                      lossy: two of three bytes          wrapped: a line end after each 20 bytes
 *                      coloured: an escape for each byte  redrawn: prompt and line anew for each byte
 *   turn [KIB]         a counter that returns to the start of its line, or for ever
 *   key N COMMAND      runs COMMAND when the next line's N-th byte has come; several add up
 *   ahead on|off       echoes what is typed while it sleeps, and reads it later, as a terminal does
 *   out PORT VALUE     x86_64: writes a byte to a port, both in hexadecimal; riscv64 and aarch64 (by
 *                      semihosting): ends QEMU with status VALUE
 *   file MODE PATH     aarch64: opens a file of the host by semihosting, and says how that went
 *   crlf on|off        line ends, CR LF or LF             die MS          prints a dot each 100 ms for MS, then power off
 *
 * `-append "qk=COMMANDS"` runs commands at boot, before the first prompt.
 */
#include "machine.h"

#define PROMPT "qk> "

enum echo { OFF, ON, LATE, AGAIN, DOUBLED, UPPER, LOSSY, WRAPPED, COLOURED, REDRAWN };
static const char *const echo_names[] = {"off", "on", "late", "again", "doubled", "upper", "lossy", "wrapped", "coloured", "redrawn"};

static u64 echoes = ON;
static u64 echoed;
static int ahead;
static int crlf = 1;
static u64 lose;
static u64 seed = 0x9e3779b97f4a7c15;
static u8 typed[1024]; /* ahead */
static u64 typed_from, typed_to;
static struct {
    u64 at;
    char command[128];
} keys[8];
static u64 key_count;

void *memset(void *to, int c, u64 n)
{
    for (u8 *p = to; n--;)
        *p++ = (u8)c;
    return to;
}
void *memcpy(void *to, const void *from, u64 n)
{
    const u8 *q = from;
    for (u8 *p = to; n--;)
        *p++ = *q++;
    return to;
}

static void put(char c)
{
    if (c == '\n' && crlf)
        put_byte('\r');
    put_byte((u8)c);
}
static void print(const char *text)
{
    while (*text)
        put(*text++);
}
static int same(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}
static u64 number(const char *text)
{
    u64 value = 0;
    while (*text >= '0' && *text <= '9')
        value = value * 10 + (u64)(*text++ - '0');
    return value;
}
static u8 dice(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (u8)(seed >> 24);
}
static int digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}
static u64 hexadecimal(const char *text)
{
    u64 value = 0;
    for (; digit(*text) >= 0; text++)
        value = value * 16 + (u64)digit(*text);
    return value;
}

static void echo_byte(char c)
{
    echoed++;
    if (echoes == OFF || echoes == LATE || (echoes == LOSSY && echoed % 3 == 0))
        return;
    if (echoes == COLOURED)
        print(echoed % 2 ? "\x1b[32m" : "\x1b[1;34m");
    put_byte((u8)(echoes == UPPER && c >= 'a' && c <= 'z' ? c - 'a' + 'A' : c));
    if (echoes == DOUBLED)
        put_byte((u8)c);
    if (echoes == COLOURED)
        print("\x1b[0m");
    if (echoes == WRAPPED && echoed % 20 == 0)
        put('\n');
}
static void wait_ms(u64 ms)
{
    if (!ahead) {
        sleep_ms(ms);
        return;
    }
    for (u64 n = 0; n < ms; n += 5) {
        sleep_ms(5);
        for (int c; (c = get_byte()) >= 0;) {
            typed[typed_to++ % sizeof typed] = (u8)c;
            if (c == '\r' || c == '\n')
                put('\n');
            else
                echo_byte((char)c);
        }
    }
}

static void stop(void)
{
    for (;;)
        halt();
}

static const char *const linux_panic =
    "[    1.500000] sysrq: Trigger a crash\n"
    "[    1.500100] Kernel panic - not syncing: as told\n"
    "[    1.500200] CPU: 0 PID: 71 Comm: sh Not tainted 6.18.1 #1\n"
    "[    1.500300] Call Trace:\n"
    "[    1.500400]  panic+0x107/0x2b0\n"
    "[    1.500500]  sysrq_handle_crash+0x16/0x20\n"
    "[    1.500600] ---[ end Kernel panic - not syncing: as told ]---\n";
static const char *const bare_panic =
    "Kernel panic - not syncing: as told\n"
    "CPU: 0 PID: 1 Comm: init Not tainted 6.18.1 #1\n"
    "Call Trace:\n"
    " panic+0x107/0x2b0\n"
    " do_exit+0x9c1/0xa00\n"
    "---[ end Kernel panic - not syncing: as told ]---\n";
static const char *const short_panic = "Kernel panic - not syncing: as told\n";
static const char *const linux_oops =
    "[    1.400000] BUG: kernel NULL pointer dereference, address: 0000000000000000\n"
    "[    1.400100] Oops: 0002 [#1] PREEMPT SMP\n"
    "[    1.400200] RIP: 0010:as_told+0x16/0x20\n"
    "[    1.400300] Call Trace:\n"
    "[    1.400400]  do_syscall_64+0x5f/0x90\n"
    "[    1.500100] Kernel panic - not syncing: Fatal exception\n"
    "[    1.500600] ---[ end Kernel panic - not syncing: Fatal exception ]---\n";
static const char *const rust_panic = "panicked at src/main.rs:42:5:\nas told\n";
static const char *const arceos_panic =
    "\x1b[37m[  0.150000 0:2 axruntime::lang_items:5] \x1b[31mpanicked at modules/axhal/src/lib.rs:10:5:\nas told\x1b[m\n";
static const char *const starry_panic = "[ERROR] [kernel] Panicked at src/trap/mod.rs:75 as told\n";

static void panic(const char *style)
{
    print(same(style, "linux")    ? linux_panic
          : same(style, "bare")   ? bare_panic
          : same(style, "short")  ? short_panic
          : same(style, "oops")   ? linux_oops
          : same(style, "arceos") ? arceos_panic
          : same(style, "starry") ? starry_panic
                                  : rust_panic);
    stop();
}

static void flood(u64 kib)
{
    for (u64 n = 0; !kib || n < kib * 16; n++) {
        for (u64 i = 0, digits = n; i < 62; i++, digits /= 10)
            put_byte(i < 8 ? (u8)('0' + digits % 10) : 'f');
        put_byte('\r');
        put_byte('\n');
    }
}

static void turn(u64 kib)
{
    for (u64 n = 0; !kib || n < kib * 64; n++) {
        print("turn ");
        for (u64 i = 0, digits = n; i < 10; i++, digits /= 10)
            put_byte((u8)('0' + digits % 10));
        put_byte('\r');
    }
}

static void garble(u64 kib)
{
    static const char *const bits[] = {"\x1b[", "\x1b]0;", "\x1b", "\xc3", "\xe2\x82", "\r", "\n", "\x1b[2J", "\xff", "\x1bP"};
    for (u64 n = 0; n < kib * 1024; n++) {
        u8 c = dice();
        if (c < 40)
            for (const char *bit = bits[c % 10]; *bit; bit++)
                put_byte((u8)*bit);
        else
            put_byte(dice());
    }
    put_byte('\n');
}

static void remember_key(const char *rest)
{
    if (key_count == sizeof keys / sizeof *keys)
        return;
    keys[key_count].at = number(rest);
    while (*rest && *rest++ != ' ')
        ;
    u64 n = 0;
    for (; rest[n] && n + 1 < sizeof keys->command; n++)
        keys[key_count].command[n] = rest[n];
    keys[key_count++].command[n] = 0;
}

static void out_port(const char *rest)
{
    u64 port = hexadecimal(rest);
    while (*rest && *rest++ != ' ')
        ;
    out_byte((u32)port, (u8)hexadecimal(rest));
}

static void open_file(const char *rest)
{
#if defined(__aarch64__)
    u64 mode = number(rest), length = 0;
    while (*rest && *rest++ != ' ')
        ;
    while (rest[length])
        length++;
    struct { const char *path; u64 mode, length; } block = {rest, mode, length};
    print((long)semihosting(1, &block) < 0 ? "refused " : "opened "), print(rest), put('\n');
#else
    (void)rest;
#endif
}

static void run(const char *word, char *rest)
{
    if (same(word, "say"))
        print(rest), put('\n');
    else if (same(word, "print"))
        print(rest);
    else if (same(word, "pass"))
        print("PASS\n");
    else if (same(word, "fail"))
        print("FAIL: as told\n");
    else if (same(word, "nl"))
        put('\n');
    else if (same(word, "raw"))
        for (; digit(rest[0]) >= 0 && digit(rest[1]) >= 0; rest += 2)
            put_byte((u8)(digit(rest[0]) << 4 | digit(rest[1])));
    else if (same(word, "panic"))
        panic(rest);
    else if (same(word, "fault"))
        fault(), stop();
    else if (same(word, "hang"))
        stop();
    else if (same(word, "spin"))
        for (;;)
            relax();
    else if (same(word, "flood"))
        flood(number(rest));
    else if (same(word, "turn"))
        turn(number(rest));
    else if (same(word, "line"))
        for (u64 n = number(rest) * 1024; n--;)
            put_byte('x');
    else if (same(word, "garble"))
        garble(*rest ? number(rest) : 1);
    else if (same(word, "drip"))
        for (; *rest; rest++)
            put(*rest), wait_ms(20);
    else if (same(word, "sleep"))
        wait_ms(number(rest));
    else if (same(word, "prompt"))
        print(PROMPT);
    else if (same(word, "off"))
        power_off(), stop();
    else if (same(word, "reboot"))
        reboot(), stop();
    else if (same(word, "echo")) {
        for (u64 n = 0; n < sizeof echo_names / sizeof *echo_names; n++)
            if (same(rest, echo_names[n]))
                echoes = n;
    } else if (same(word, "key"))
        remember_key(rest);
    else if (same(word, "ahead"))
        ahead = same(rest, "on");
    else if (same(word, "out"))
        out_port(rest);
    else if (same(word, "file"))
        open_file(rest);
    else if (same(word, "crlf"))
        crlf = same(rest, "on");
    else if (same(word, "lose"))
        lose = number(rest);
    else if (same(word, "die")) {
        for (u64 n = number(rest) / 100; n--;)
            put('.'), sleep_ms(100);
        power_off();
    } else if (*word)
        print(word), print(": not a command\n");
}

static void run_line(char *line)
{
    while (*line) {
        char *word = line, *rest;
        while (*line && !(line[0] == ' ' && line[1] == ';' && (line[2] == ' ' || !line[2])))
            line++;
        if (*line) {
            *line = 0;
            line += line[2] ? 3 : 2;
        }
        for (rest = word; *rest && *rest != ' '; rest++)
            ;
        if (*rest)
            *rest++ = 0;
        run(word, rest);
    }
}

static int next_byte(void)
{
    return typed_from < typed_to ? typed[typed_from++ % sizeof typed] : get_byte();
}

/* The commands that a test wants to run at this key. */
static void run_keys(u64 seen)
{
    for (u64 n = 0; n < key_count; n++)
        if (keys[n].at == seen)
            run_line(keys[n].command);
}

static void read_line(char *line, u64 size)
{
    u64 length = 0, seen = 0, lost = lose;
    lose = 0;
    echoed = 0;
    for (;;) {
        int here = typed_from == typed_to; /* what was typed ahead has been echoed */
        int c = next_byte();
        if (c < 0) {
            relax();
            continue;
        }
        if (++seen == lost)
            continue;
        if (c == '\r' || c == '\n') {
            line[length] = 0;
            if (echoes && here)
                put('\n');
            break;
        }
        if (c == 8 || c == 127) {
            if (length) {
                length--;
                if (echoes && here)
                    print("\b \b");
            }
        } else if (c >= ' ' && length + 1 < size) {
            line[length++] = (char)c;
            line[length] = 0;
            if (here && echoes == REDRAWN)
                print("\r" PROMPT), print(line), print("\x1b[K");
            else if (here)
                echo_byte((char)c);
        } else if (c < ' ' && echoes && here) { /* as a terminal shows it; it goes no further */
            put_byte('^');
            put_byte((u8)(c ^ 0x40));
        }
        run_keys(seen);
    }
    key_count = 0;
    if (echoes == LATE)
        sleep_ms(400);
    if (echoes == LATE || echoes == AGAIN)
        print(line), put('\n');
}

/* `-append "qk=COMMANDS"`: run at boot. `where` is the command line, or a device tree that holds it. */
static void run_at_boot(const char *where, char *line)
{
    for (u64 n = 0; n < WHERE_SIZE; n++)
        if (where[n] == 'q' && where[n + 1] == 'k' && where[n + 2] == '=') {
            memcpy(line, where + n + 3, 1024);
            line[1024] = 0;
            run_line(line);
            return;
        }
}

void kernel_main(const char *where)
{
    static char line[4096];
    machine_init();
    print("\nqcase test kernel on " ARCH "\n");
    run_at_boot(where, line);
    for (;;) {
        print(PROMPT);
        read_line(line, sizeof line);
        run_line(line);
    }
}
