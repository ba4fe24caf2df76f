// The guest program of tests and demo. It shows from inside the VM whether memory and disk stay correct and how long
// the guest does not run. It fills memory with pages whose content is a pure function of (seed, page, version),
// rewrites some of them and checks all of them all the time, prints beats on the serial line from a process of its own,
// serves the beat over HTTP, and writes to a disk (disk.h).
//
// Enters: godwit.* on the kernel command line, commands on the serial line. Leaves: lines on the serial line
// (guest/beats.ts reads them).
// Always holds: a page that differs from the content of its version is reported (BAD) at once, and in every later pass
// until it is rewritten. A lost write is found too, because the versions are in a table apart from the pages, with a
// running sum of its own. Beats depend only on the timer.
//
// It uses no C library and no header of the host, so any C compiler builds it (Linux on x86-64 only).
#ifndef __x86_64__
#error "the guest program is for x86-64"
#endif

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;
typedef long s64;

// ---- Linux ----

static s64 sys(s64 number, s64 a, s64 b, s64 c, s64 d, s64 e, s64 f) {
  register s64 r10 __asm__("r10") = d;
  register s64 r8 __asm__("r8") = e;
  register s64 r9 __asm__("r9") = f;
  s64 result;
  __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
  return result;
}

enum { SYS_read = 0, SYS_write = 1, SYS_open = 2, SYS_poll = 7, SYS_mmap = 9, SYS_ioctl = 16, SYS_fork = 57, SYS_exit = 60, SYS_fcntl = 72 };
enum { SYS_close = 3, SYS_socket = 41, SYS_accept = 43, SYS_bind = 49, SYS_listen = 50, SYS_setsockopt = 54 };
enum { SYS_iopl = 172, SYS_reboot = 169 };
enum { SYS_sched_setscheduler = 144, SYS_clock_gettime = 228, SYS_clock_nanosleep = 230, SYS_exit_group = 231 };
enum { CLOCK_MONOTONIC = 1, TIMER_ABSTIME = 1, SCHED_FIFO = 1, POLLIN = 1, O_RDWR = 2, O_NOCTTY = 0x100, O_NONBLOCK = 0x800, F_SETFL = 4 };

enum { REBOOT_MAGIC = (int)0xfee1dead, REBOOT_MAGIC2 = 672274793, REBOOT_RESTART = 0x1234567, PVPANIC_PORT = 0x505, PVPANIC_PANICKED = 1 };

struct timespec { s64 seconds; s64 nanoseconds; };
struct pollfd { int fd; short events; short revents; };
struct termios { u32 iflag, oflag, cflag, lflag; u8 line; u8 cc[19]; };
struct input_event { s64 seconds, microseconds; unsigned short type, code; int value; };

static int tty = 1;

static u64 now_ns(void) {
  struct timespec t;
  sys(SYS_clock_gettime, CLOCK_MONOTONIC, (s64)&t, 0, 0, 0, 0);
  return (u64)t.seconds * 1000000000ul + (u64)t.nanoseconds;
}

// The compiler inserts calls of these functions.
void *memset(void *to, int value, u64 count) {
  void *start = to;
  __asm__ volatile("rep stosb" : "+D"(to), "+c"(count) : "a"(value) : "memory");
  return start;
}
void *memcpy(void *to, const void *from, u64 count) {
  void *start = to;
  __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
  return start;
}

// ---- Lines: each is one write, so that lines of different processes never mix ----

static char line[256];
static u32 lineLength;

static void text(const char *s) {
  while (*s && lineLength < sizeof line - 1) line[lineLength++] = *s++;
}
static void number(u64 value) {
  char digits[20];
  u32 count = 0;
  do digits[count++] = (char)('0' + value % 10);
  while ((value /= 10));
  while (count && lineLength < sizeof line - 1) line[lineLength++] = digits[--count];
}
static void field(const char *name, u64 value) {
  text(name);
  number(value);
}
static void send(void) {
  line[lineLength++] = '\n';
  u32 sent = 0;
  while (sent < lineLength) {
    s64 count = sys(SYS_write, tty, (s64)(line + sent), lineLength - sent, 0, 0, 0);
    if (count > 0) sent += (u32)count;
    else if (count != -4) break;
  }
  lineLength = 0;
}

// ---- Parameters ----

static char commandLine[4096];

static u64 parseSize(const char *s, const char **rest) {
  u64 value = 0;
  while (*s >= '0' && *s <= '9') value = value * 10 + (u64)(*s++ - '0');
  if (*s == 'K' || *s == 'k') value <<= 10, s++;
  else if (*s == 'M' || *s == 'm') value <<= 20, s++;
  else if (*s == 'G' || *s == 'g') value <<= 30, s++;
  if (rest) *rest = s;
  return value;
}

static const char *parameter(const char *name) {
  for (const char *at = commandLine; *at;) {
    const char *word = at, *wanted = name;
    while (*wanted && *word == *wanted) word++, wanted++;
    if (!*wanted && *word == '=') return word + 1;
    while (*at && *at != ' ' && *at != '\n') at++;
    while (*at == ' ' || *at == '\n') at++;
  }
  return 0;
}

static u64 sizeParameter(const char *name, u64 fallback) {
  const char *value = parameter(name);
  return value ? parseSize(value, 0) : fallback;
}

// ---- Pages ----

enum { PAGE = 4096, WORDS = PAGE / 8, TEMPLATES = 64 };
enum { ZERO, DUPLICATE, TEXT, RANDOM };
#define MAGIC 0x3170746977646f47ul

static u64 seed, pages, hotPages, writes, badEver;
static u32 mix[4] = {20, 10, 45, 25};
static u32 patchWords;   // words that a rewrite changes, beside the page's header; 0: all
enum { PATCHES = 16 };   // after so many patches the whole page is written again
static u64 *memory;      // the pages
static u32 *versions;    // what each page must hold
static u64 versionsSum;  // sum over the table: shows a stale part of the table
static u64 templates[TEMPLATES][WORDS];
static u64 scratch[WORDS];
static u64 dice;

static u64 stir(u64 x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ul;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebul;
  return x ^ (x >> 31);
}
static u64 shift(u64 x) {
  x ^= x << 13;
  x ^= x >> 7;
  return x ^ (x << 17);
}
static u64 hashOf(u64 index, u64 version) { return stir(seed + stir(index * 0x9e3779b97f4a7c15ul + version * 0xd1b54a32d192ed03ul + 1)); }
static u64 tableTerm(u64 index, u32 version) { return stir(index << 32 | version); }

// Some rewrites change the kind of a page. Zero to data and data to zero are the transitions in which a migration may
// fail.
static u32 kindOf(u64 index, u32 version) {
  u32 roll = (u32)(hashOf(index, version / (patchWords ? PATCHES : 4)) % 100);
  for (u32 kind = ZERO; kind < RANDOM; kind++) {
    if (roll < mix[kind]) return kind;
    roll -= mix[kind];
  }
  return RANDOM;
}

static u64 checksum(const u64 *page) {
  u64 sum = MAGIC;
  for (u32 i = 0; i < WORDS; i++)
    if (i != 3) sum = ((sum ^ page[i]) * 0x9e3779b97f4a7c15ul) ^ (sum >> 29);
  return sum;
}

static const char words[32][8] = {"the ",    "of ",    "site ",   "edge ",  "memory ", "page ",  "value=", "true, ", "false,", "null, ", "\"id\": ",
                                  "\"name\" ", "error ", "info ", "GET /v1", " 200 OK", "http://", "user ",  "node-",   "link ",  "queue ", "return ",
                                  "if (x) ",  "{\n  ",  "}\n",     "for ",   "count ",  "packet ", "00000000", "\t\t",    "static ", "packed "};

// Words as in text and logs, with numbers between them. Compresses to about a third.
static void writeText(u64 *page, u64 state) {
  char *at = (char *)page, *end = (char *)page + PAGE;
  while (at < end - 16) {
    state = shift(state);
    u64 bits = state;
    for (u32 i = 0; i < 8 && at < end - 16; i++, bits >>= 7) {
      const char *word = words[bits & 31 & (bits >> 5 & 1 ? 31 : 15)];
      *(u64 *)at = *(const u64 *)word;
      u32 length = 8;
      while (length > 1 && !word[length - 1]) length--;
      at += length;
    }
    for (u32 i = 0; i < 3; i++, bits >>= 4) *at++ = (char)('0' + (bits & 7));
  }
  while (at < end) *at++ = ' ';
}

// Records of a heap: small counters, flags and pointers into one region.
static void writeRecords(u64 *page, u64 state) {
  u64 base = 0x00007f3a00000000ul | (state & 0xfff00000ul);
  for (u32 i = 0; i < WORDS; i += 4) {
    state = shift(state);
    page[i] = base + (state & 0xfff0);
    page[i + 1] = state >> 56;
    page[i + 2] = i;
    page[i + 3] = state >> 32 & 0xffff;
  }
}

// The version in which the whole page was written last.
static u32 wholeOf(u32 version) { return patchWords ? version / PATCHES * PATCHES : version; }

static void writeHeader(u64 *page, u64 index, u32 version, u32 kind) {
  page[0] = MAGIC;
  page[1] = index << 32 | version;
  page[2] = kind;
  page[3] = checksum(page);
}

// Changes a few adjacent values, as a program that updates a record.
static void writePatch(u64 *page, u64 index, u32 version, u32 kind) {
  u64 state = hashOf(index, version) | 1;
  u64 *at = page + 4 + (state >> 20) % (WORDS - 4 - patchWords);
  for (u32 i = 0; i < patchWords; i++) {
    state = shift(state);
    at[i] = kind == RANDOM ? state : state & 0xffff;
  }
}

static void writePage(u64 *page, u64 index, u32 version) {
  u32 kind = kindOf(index, version);
  u32 whole = wholeOf(version);
  u64 state = hashOf(index, whole) | 1;
  if (kind == ZERO) {
    memset(page, 0, PAGE);
    return;
  }
  if (kind == DUPLICATE) {
    memcpy(page, templates[state >> 32 & (TEMPLATES - 1)], PAGE);
    return;
  }
  if (kind == TEXT && state & 0x100) writeText(page, state);
  else if (kind == TEXT) writeRecords(page, state);
  else
    for (u32 i = 0; i < WORDS; i++) page[i] = state = shift(state);
  while (whole < version) writePatch(page, index, ++whole, kind);
  writeHeader(page, index, version, kind);
}

static int same(const u64 *a, const u64 *b) {
  for (u32 i = 0; i < WORDS; i++)
    if (a[i] != b[i]) return 0;
  return 1;
}

// Why a page is wrong, or 0 when it is right.
static const char *faultOf(const u64 *page, u64 index, u32 version) {
  u32 kind = kindOf(index, version);
  if (kind == ZERO) {
    u64 any = 0;
    for (u32 i = 0; i < WORDS; i++) any |= page[i];
    return any ? "zero" : 0;
  }
  if (kind == DUPLICATE) return same(page, templates[hashOf(index, wholeOf(version)) >> 32 & (TEMPLATES - 1)]) ? 0 : "duplicate";
  if (page[0] != MAGIC) return "magic";
  if (page[1] >> 32 != index) return "index";
  if ((u32)page[1] != version) return "version";
  if (page[2] != kind) return "kind";
  return page[3] == checksum(page) ? 0 : "checksum";
}

static u64 badLines;

static void bad(u64 index, const char *why, u64 have) {
  badEver++;
  if (badLines++ > 200) return;  // Too many lines would delay the beats; the counts continue.
  field("BAD page=", index);
  text(" why=");
  text(why);
  field(" want=", index < pages ? versions[index] : 0);
  field(" have=", have);
  send();
}

static int check(u64 index) {
  const u64 *page = memory + index * WORDS;
  const char *why = faultOf(page, index, versions[index]);
  if (why) bad(index, why, page[1] & 0xffffffff);
  return !why;
}

static int checkTable(void) {
  u64 sum = 0;
  for (u64 i = 0; i < pages; i++) sum ^= tableTerm(i, versions[i]);
  if (sum != versionsSum) bad(pages, "table", sum & 0xffffffff);
  return sum == versionsSum;
}

static void rewrite(u64 index) {
  u32 version = versions[index];
  versionsSum ^= tableTerm(index, version) ^ tableTerm(index, version + 1);
  versions[index] = ++version;
  u64 *page = memory + index * WORDS;
  u32 kind = kindOf(index, version);
  if (patchWords && version % PATCHES && kind >= TEXT) {
    writePatch(page, index, version, kind);
    writeHeader(page, index, version, kind);
  } else writePage(page, index, version);
  writes++;
}

// Three of four rewrites are in the hot part: the working set of a program.
static void rewriteSome(void) {
  dice = shift(dice);
  rewrite((dice >> 8) % (dice & 3 ? hotPages : pages));
}

// ---- The continuous audit, and the full one ----

static u64 pass, passIndex, passBad, audited;

static void auditSome(void) {
  passBad += !check(passIndex);
  audited++;
  if (++passIndex < pages) return;
  int tableBad = !checkTable();
  field("AUDIT ok=", pages - passBad);
  field(" bad=", badEver);
  field(" pass=", ++pass);
  field(" writes=", writes);
  if (tableBad) text(" table=bad");
  send();
  passIndex = passBad = 0;
}

// Prints the work done so far: a reader computes from it how much a migration slows the guest.
static u64 workNs, nextWork;

static void tellWork(u64 now) {
  if (!workNs || now < nextWork) return;
  nextWork = now + workNs;
  field("WORK writes=", writes);
  field(" audited=", audited);
  field(" ms=", now / 1000000);
  send();
}

// Generates every page again from (seed, page, version) and compares all of it, whatever its header contains.
static void auditFull(void) {
  u64 badNow = 0, versionsTotal = 0, digest = 0;
  for (u32 i = 0; i < TEMPLATES; i++) {
    writeText(scratch, stir(seed ^ (i + 1)) | 1);
    if (!same(scratch, templates[i])) bad(pages, "template", i), badNow++;
  }
  for (u64 i = 0; i < pages; i++) {
    writePage(scratch, i, versions[i]);
    const u64 *page = memory + i * WORDS;
    if (!same(scratch, page)) bad(i, "content", page[1] & 0xffffffff), badNow++;
    versionsTotal += versions[i];
    digest = stir(digest ^ tableTerm(i, versions[i]));
  }
  badNow += !checkTable();
  if (versionsTotal != writes) bad(pages, "writes", versionsTotal), badNow++;
  field("AUDIT-FULL pages=", pages);
  field(" bad=", badNow);
  field(" versions=", versionsTotal);
  field(" ever=", badEver);
  field(" digest=", digest);
  send();
}

#include "disk.h"

// ---- Commands ----

static u64 dirtyRate, auditRate;

static const char *after(const char *command, const char *prefix) {
  while (*prefix && *command == *prefix) command++, prefix++;
  return *prefix ? 0 : command;
}

static void obey(const char *command) {
  const char *rest;
  if (after(command, "audit")) auditFull();
  else if (after(command, "disk")) obeyDisk(0);
  else if (after(command, "sum")) obeyDisk(1);
  else if (after(command, "poweroff")) {
    text("POWEROFF");
    send();
    sys(SYS_exit_group, 0, 0, 0, 0, 0, 0);
  } else if (after(command, "reboot")) {
    text("REBOOT");
    send();
    sys(SYS_reboot, REBOOT_MAGIC, REBOOT_MAGIC2, REBOOT_RESTART, 0, 0, 0);
  } else if (after(command, "panic")) {  // the same as the pvpanic driver in a kernel panic
    text("PANIC");
    send();
    sys(SYS_iopl, 3, 0, 0, 0, 0, 0);
    __asm__ volatile("outb %0, %1" : : "a"((u8)PVPANIC_PANICKED), "Nd"((unsigned short)PVPANIC_PORT));
  } else if (after(command, "suspend")) {
    text("SUSPEND");
    send();
    s64 file = sys(SYS_open, (s64) "/sys/power/state", O_RDWR, 0, 0, 0, 0);
    s64 result = sys(SYS_write, file, (s64) "mem", 3, 0, 0, 0);
    sys(SYS_close, file, 0, 0, 0, 0, 0);
    if (result < 0) field("WHAT suspend: error ", (u64)-result);
    else text("AWAKE");
    send();
  } else if ((rest = after(command, "dirty "))) {
    dirtyRate = parseSize(rest, 0);
    field("DIRTY rate=", dirtyRate);
    send();
  } else if (after(command, "touch")) {
    for (u64 i = 0; i < pages; i++) rewrite(i);
    field("TOUCHED pages=", pages);
    field(" writes=", writes);
    send();
  } else if ((rest = after(command, "corrupt "))) {  // a test of the audit: flips one bit of one page
    u64 index = parseSize(rest, 0) % pages;
    memory[index * WORDS + 100] ^= 1;
    field("CORRUPTED page=", index);
    send();
  } else if ((rest = after(command, "forget "))) {
    // The same for a lost write: the version rises, the page keeps its content.
    u64 index = parseSize(rest, 0) % pages;
    rewrite(index);
    writePage(memory + index * WORDS, index, versions[index] - 1);
    field("FORGOTTEN page=", index);
    send();
  } else {
    text("WHAT ");
    text(command);
    send();
  }
}

static void takeInput(void) {
  static char command[64];
  static u32 length;
  char bytes[64];
  s64 count = sys(SYS_read, tty, (s64)bytes, sizeof bytes, 0, 0, 0);
  for (s64 i = 0; i < count; i++) {
    if (bytes[i] != '\n' && bytes[i] != '\r') {
      if (length < sizeof command - 1) command[length++] = bytes[i];
    } else if (length) {
      command[length] = 0;
      length = 0;
      obey(command);
    }
  }
}

// ---- Start ----

// Raw mode: no echo, no translation. An emulated port ignores the speed, but a high one keeps the driver's timeouts
// short.
static void openSerial(void) {
  s64 fd = sys(SYS_open, (s64) "/dev/ttyS0", O_RDWR | O_NOCTTY | O_NONBLOCK, 0, 0, 0, 0);
  if (fd < 0) return;
  struct termios mode;
  sys(SYS_ioctl, fd, 0x5401, (s64)&mode, 0, 0, 0);
  mode.iflag = mode.oflag = mode.lflag = 0;
  mode.cflag = 0x1002 | 0x30 | 0x80 | 0x800;  // B115200 CS8 CREAD CLOCAL
  sys(SYS_ioctl, fd, 0x5402, (s64)&mode, 0, 0, 0);
  sys(SYS_fcntl, fd, F_SETFL, O_RDWR, 0, 0, 0);
  tty = (int)fd;
}

// ---- The service: a page over HTTP, where the machine has a network card ----
//
// busybox's httpd is not enough: its accept queue holds nine connections, and all users who waited during a hand-over
// arrive at once. It also forks for each request, which costs an emulated CPU 4 ms.

enum { WORKERS = 16, BACKLOG = 1024, REQUEST_MAX = 4096, PATIENCE_SECONDS = 2 };

static char *served;  // shared by all processes; each beat rewrites two numbers in it
static char *beatDigits, *uptimeDigits;

static char *placeOf(const char *name) {
  for (char *at = served; *at; at++) {
    char *here = at;
    const char *rest = name;
    while (*rest && *rest == *here) rest++, here++;
    if (!*rest) return here;
  }
  return 0;
}

// Ten digits.
static void showNumber(char *digits, u64 value) {
  if (!digits) return;
  for (u32 i = 10; i-- > 0; value /= 10) digits[i] = (char)('0' + value % 10);
}

static char *append(char *to, const char *s) {
  while (*s) *to++ = *s++;
  *to = 0;
  return to;
}

static void writeServed(void) {
  char boot[64] = "";
  s64 fd = sys(SYS_open, (s64) "/proc/sys/kernel/random/boot_id", 0, 0, 0, 0, 0);
  if (fd >= 0 && sys(SYS_read, fd, (s64)boot, 36, 0, 0, 0) != 36) boot[0] = 0;
  char *end = append(served, "<!doctype html><title>Godwit guest</title><p>boot=");
  end = append(end, boot);
  append(end, " beat=0000000000 uptimeMs=0000000000</p>\n");
  beatDigits = placeOf("beat=");
  uptimeDigits = placeOf("uptimeMs=");
}

// Copies the page until two copies are equal, so a number that is being rewritten is never sent in part.
static u32 copyServed(char *to) {
  u32 length = 0;
  for (int isSame = 0; !isSame;) {
    for (length = 0; served[length]; length++) to[length] = ((volatile char *)served)[length];
    isSame = 1;
    for (u32 i = 0; i < length; i++) isSame &= to[i] == ((volatile char *)served)[i];
  }
  return length;
}

static int isWhole(const char *request, s64 length) {
  const char *end = request + length;
  return length >= 4 && end[-4] == '\r' && end[-3] == '\n' && end[-2] == '\r' && end[-1] == '\n';
}

static void answer(s64 user) {
  static char request[REQUEST_MAX], page[1024], reply[2048];
  s64 length = 0;
  while (!isWhole(request, length)) {
    s64 count = sys(SYS_read, user, (s64)(request + length), REQUEST_MAX - length, 0, 0, 0);
    if (count <= 0) return;
    length += count;
  }
  u32 pageLength = copyServed(page);
  char digits[11] = "";
  showNumber(digits, pageLength);
  char *end = append(reply, "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\nContent-Length: ");
  end = append(append(end, digits), "\r\n\r\n");
  memcpy(end, page, pageLength);
  sys(SYS_write, user, (s64)reply, end - reply + pageLength, 0, 0, 0);
}

// A user who sends nothing, or whose connection was cut by a migration, holds one worker for two seconds.
static void serveForEver(s64 listener) {
  int priority = 10;
  sys(SYS_sched_setscheduler, 0, SCHED_FIFO, (s64)&priority, 0, 0, 0);
  s64 patience[2] = {PATIENCE_SECONDS, 0};
  for (;;) {
    s64 user = sys(SYS_accept, listener, 0, 0, 0, 0, 0);
    if (user < 0) continue;
    sys(SYS_setsockopt, user, 1 /* SOL_SOCKET */, 20 /* SO_RCVTIMEO */, (s64)patience, sizeof patience, 0);
    answer(user);
    sys(SYS_close, user, 0, 0, 0, 0, 0);
  }
}

static void openService(void) {
  s64 card = sys(SYS_open, (s64) "/sys/class/net/eth0/address", 0, 0, 0, 0, 0);
  if (card < 0) return;
  sys(SYS_close, card, 0, 0, 0, 0, 0);
  s64 listener = sys(SYS_socket, 2 /* AF_INET */, 1 /* SOCK_STREAM */, 0, 0, 0, 0);
  struct { unsigned short family; u8 port[2]; u32 address; u64 zero; } any = {2, {0, 80}, 0, 0};
  s64 at = sys(SYS_mmap, 0, PAGE, 3 /* read, write */, 0x21 /* shared, anonymous */, -1, 0);
  int isBound = sys(SYS_bind, listener, (s64)&any, sizeof any, 0, 0, 0) == 0 && sys(SYS_listen, listener, BACKLOG, 0, 0, 0, 0) == 0;
  if (!isBound || (at < 0 && at > -4096)) {
    text("BAD guest: no service");
    send();
    return;
  }
  served = (char *)at;
  writeServed();
  for (u32 i = 0; i < WORKERS; i++)
    if (sys(SYS_fork, 0, 0, 0, 0, 0, 0) == 0) serveForEver(listener);
  sys(SYS_close, listener, 0, 0, 0, 0, 0);
}

// A late beat is not sent afterwards: a pause of the guest is a pause for the observer, never a burst.
static void beatForEver(u64 periodNs) {
  int priority = 50;
  sys(SYS_sched_setscheduler, 0, SCHED_FIFO, (s64)&priority, 0, 0, 0);
  u64 next = now_ns();
  for (u64 sequence = 1;; sequence++) {
    u64 guestMs = now_ns() / 1000000;
    showNumber(beatDigits, sequence);
    showNumber(uptimeDigits, guestMs);
    field("BEAT ", sequence);
    field(" ", guestMs);
    send();
    u64 now = now_ns();
    next += periodNs;
    if (next < now) next = now + periodNs;
    struct timespec until = {(s64)(next / 1000000000), (s64)(next % 1000000000)};
    sys(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, (s64)&until, 0, 0, 0);
  }
}

static void *reserve(u64 bytes) {
  s64 at = sys(SYS_mmap, 0, (s64)bytes, 3 /* read, write */, 0x22 /* private, anonymous */, -1, 0);
  if (at < 0 && at > -4096) {
    text("BAD guest: no memory");
    send();
    sys(SYS_exit_group, 1, 0, 0, 0, 0, 0);
  }
  return (void *)at;
}

static void fill(void) {
  u64 kinds[4] = {0, 0, 0, 0};
  for (u32 i = 0; i < TEMPLATES; i++) writeText(templates[i], stir(seed ^ (i + 1)) | 1);
  openDisk();
  for (u64 i = 0; i < pages; i++) {
    writePage(memory + i * WORDS, i, 0);
    versionsSum ^= tableTerm(i, 0);
    versions[i] = 0;
    kinds[kindOf(i, 0)]++;
  }
  field("READY pages=", pages);
  field(" zero=", kinds[ZERO]);
  field(" duplicate=", kinds[DUPLICATE]);
  field(" text=", kinds[TEXT]);
  field(" random=", kinds[RANDOM]);
  field(" seed=", seed);
  field(" ms=", now_ns() / 1000000);
  send();
}

static u64 readParameters(void) {
  s64 fd = sys(SYS_open, (s64) "/proc/cmdline", 0, 0, 0, 0, 0);
  if (fd >= 0) sys(SYS_read, fd, (s64)commandLine, sizeof commandLine - 1, 0, 0, 0);
  const char *shares = parameter("godwit.mix");
  for (u32 i = 0; shares && i < 4; i++) {
    mix[i] = (u32)parseSize(shares, &shares);
    if (*shares == ',' || *shares == '/') shares++;
  }
  seed = sizeParameter("godwit.seed", 1);
  pages = sizeParameter("godwit.fill", 64ul << 20) / PAGE;
  if (!pages) pages = 1;
  hotPages = sizeParameter("godwit.hot", pages * PAGE / 8) / PAGE;
  if (!hotPages || hotPages > pages) hotPages = pages;
  dirtyRate = sizeParameter("godwit.dirty", 4ul << 20);
  auditRate = sizeParameter("godwit.audit", 100ul << 20);
  patchWords = (u32)sizeParameter("godwit.patch", 0) / 8;
  if (patchWords > WORDS / 2) patchWords = WORDS / 2;
  workNs = sizeParameter("godwit.work", 0) * 1000000;
  dice = stir(seed ^ 0x5eed) | 1;
  u64 beatMs = sizeParameter("godwit.beat", 10);
  return beatMs ? beatMs : 10;
}

static struct pollfd polled[5];  // the serial line, then input devices
static u32 buttons;

// Runs before READY is printed: a press of the power button is lost if no process has opened the input device.
static void openInputs(void) {
  polled[0] = (struct pollfd){tty, POLLIN, 0};
  for (char path[] = "/dev/input/event0"; buttons < 4; path[sizeof path - 2]++) {
    s64 fd = sys(SYS_open, (s64)path, O_NONBLOCK, 0, 0, 0, 0);
    if (fd < 0) break;
    polled[++buttons] = (struct pollfd){(int)fd, POLLIN, 0};
  }
}

static void workForEver(void) {
  // Budgets are in byte-nanoseconds, so that slow rates are exact. They are capped: a rate that the CPU cannot reach
  // must not accumulate.
  u64 last = now_ns(), dirtyBudget = 0, auditBudget = 0;
  const u64 cost = PAGE * 1000000000ul;
  for (;;) {
    u64 now = now_ns(), elapsed = now - last;
    last = now;
    tellWork(now);
    if (elapsed > 100000000) elapsed = 100000000;
    dirtyBudget += dirtyRate * elapsed;
    auditBudget += auditRate * elapsed;
    u64 until = now + 20000000;
    while ((dirtyBudget >= cost || auditBudget >= cost) && now_ns() < until) {
      for (u32 i = 0; i < 8 && dirtyBudget >= cost; i++, dirtyBudget -= cost) rewriteSome();
      for (u32 i = 0; i < 8 && auditBudget >= cost; i++, auditBudget -= cost) auditSome();
    }
    if (dirtyBudget > dirtyRate * 100000000 + cost) dirtyBudget = dirtyRate * 100000000 + cost;
    if (auditBudget > auditRate * 100000000 + cost) auditBudget = auditRate * 100000000 + cost;
    int busy = dirtyBudget >= cost || auditBudget >= cost;
    if (sys(SYS_poll, (s64)polled, buttons + 1, busy ? 0 : 5, 0, 0, 0) <= 0) continue;
    if (polled[0].revents) takeInput();
    for (u32 i = 1; i <= buttons; i++) {
      struct input_event event;
      if (!polled[i].revents || sys(SYS_read, polled[i].fd, (s64)&event, sizeof event, 0, 0, 0) != sizeof event) continue;
      if (event.type == 1 && event.code == 116 && event.value == 1) obey("poweroff");
    }
  }
}

__attribute__((used)) static void start(void) {
  openSerial();
  openInputs();
  u64 beatMs = readParameters();
  openService();
  if (sys(SYS_fork, 0, 0, 0, 0, 0, 0) == 0) beatForEver(beatMs * 1000000);
  memory = reserve(pages * PAGE);
  versions = reserve(pages * sizeof *versions);
  fill();
  workForEver();
}

__attribute__((naked)) void _start(void) { __asm__ volatile("xor %ebp, %ebp\n and $-16, %rsp\n call start\n hlt"); }
