// The guest program's disk, /dev/vda: a process of its own rewrites blocks of it, durably, at a given rate. A part of
// guest.c, which defines the functions used here.
//
// Enters: godwit.disk (bytes that are filled and rewritten), godwit.diskrate (bytes a second), commands `disk` and
// `sum`. Leaves: AUDIT-DISK; after `sum` a line of sha256sum, and no more writes; with godwit.work, the time that each
// write took.
// Always holds: the expected content of each block is only in memory, so a disk and a memory of different moments are
// detected. The compared blocks are read from the disk, not from the page cache. A write counts when it is durable.

enum { SYS_fsync = 74, SYS_pread = 17, SYS_pwrite = 18, SYS_execve = 59, SYS_wait4 = 61, O_WRONLY = 1, O_DSYNC = 0x1000 };

#define DISK_INDEX (1ul << 31)  // so blocks and pages of memory differ in content

static u64 diskBlocks, diskRate;
static s64 diskFile;
static u32 *diskVersions;  // shared with the writer, as is the rest
static struct { volatile u64 hold, isHeld, writes; } *writer;

static void *share(u64 bytes) {
  s64 at = sys(SYS_mmap, 0, (s64)bytes, 3 /* read, write */, 0x21 /* shared, anonymous */, -1, 0);
  return at < 0 && at > -4096 ? 0 : (void *)at;
}

static void diskFault(const char *why, u64 block) {
  badEver++;
  if (badLines++ > 200) return;
  field("BAD disk block=", block);
  text(" why=");
  text(why);
  field(" want=", diskVersions[block]);
  send();
}

static void putBlock(u64 block, u32 version) {
  writePage(scratch, DISK_INDEX + block, version);
  if (sys(SYS_pwrite, diskFile, (s64)scratch, PAGE, (s64)(block * PAGE), 0, 0) != PAGE) diskFault("write", block);
}

static void writeForEver(void) {
  int priority = 20;
  sys(SYS_sched_setscheduler, 0, SCHED_FIFO, (s64)&priority, 0, 0, 0);
  const u64 periodNs = PAGE * 1000000000ul / diskRate, hot = diskBlocks / 8 ? diskBlocks / 8 : 1;
  u64 state = stir(seed ^ 0xd15c) | 1, next = now_ns();
  for (;;) {
    if (writer->hold) {
      writer->isHeld = 1;
      struct timespec pause = {0, 5000000};
      sys(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, (s64)&pause, 0, 0, 0);
      continue;
    }
    writer->isHeld = 0;
    state = shift(state);
    u64 block = (state >> 8) % (state & 3 ? hot : diskBlocks), began = now_ns();
    putBlock(block, diskVersions[block] + 1);
    diskVersions[block]++;
    writer->writes++;
    u64 now = now_ns();
    if (workNs) {
      field("WROTE us=", (now - began) / 1000);
      send();
    }
    next += periodNs;
    if (next < now) next = now + periodNs;
    struct timespec until = {(s64)(next / 1000000000), (s64)(next % 1000000000)};
    sys(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, (s64)&until, 0, 0, 0);
  }
}

// Returns when the writer is between two writes.
static void holdWriter(void) {
  writer->isHeld = 0;
  writer->hold = 1;
  for (u32 i = 0; i < 6000 && diskRate && !writer->isHeld; i++) {
    struct timespec pause = {0, 5000000};
    sys(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, (s64)&pause, 0, 0, 0);
  }
}

static void forgetCache(void) {
  sys(SYS_fsync, diskFile, 0, 0, 0, 0, 0);
  s64 file = sys(SYS_open, (s64) "/proc/sys/vm/drop_caches", O_WRONLY, 0, 0, 0, 0);
  if (sys(SYS_write, file, (s64) "1", 1, 0, 0, 0) != 1) diskFault("cache", 0);
  sys(SYS_close, file, 0, 0, 0, 0, 0);
}

static void auditDisk(void) {
  static u64 have[WORDS];
  u64 badNow = 0, versionsTotal = 0;
  forgetCache();
  for (u64 block = 0; block < diskBlocks; block++) {
    writePage(scratch, DISK_INDEX + block, diskVersions[block]);
    s64 count = sys(SYS_pread, diskFile, (s64)have, PAGE, (s64)(block * PAGE), 0, 0);
    const char *why = count != PAGE ? "read" : same(scratch, have) ? 0 : "content";
    if (why) diskFault(why, block), badNow++;
    versionsTotal += diskVersions[block];
  }
  if (versionsTotal != writer->writes) diskFault("writes", 0), badNow++;
  field("AUDIT-DISK blocks=", diskBlocks);
  field(" bad=", badNow);
  field(" writes=", versionsTotal);
  send();
}

// Computed by a program that is not part of this project, over the whole disk.
static void sumDisk(void) {
  forgetCache();
  const char *words[] = {"busybox", "sha256sum", "/dev/vda", 0}, *none[] = {0};
  s64 child = sys(SYS_fork, 0, 0, 0, 0, 0, 0);
  if (child == 0) {
    sys(SYS_execve, (s64) "/bin/busybox", (s64)words, (s64)none, 0, 0, 0);
    sys(SYS_exit_group, 1, 0, 0, 0, 0, 0);
  }
  sys(SYS_wait4, child, 0, 0, 0, 0, 0);
}

static void obeyDisk(int isLast) {
  if (!diskBlocks) {
    text("WHAT no disk");
    send();
    return;
  }
  holdWriter();
  auditDisk();
  if (isLast) sumDisk();
  else writer->hold = 0;
}

// Runs before READY is printed: writes every block once.
static void openDisk(void) {
  diskBlocks = sizeParameter("godwit.disk", 0) / PAGE;
  diskRate = sizeParameter("godwit.diskrate", 128ul << 10);
  if (!diskBlocks) return;
  diskVersions = share(diskBlocks * sizeof *diskVersions);
  writer = share(sizeof *writer);
  diskFile = sys(SYS_open, (s64) "/dev/vda", O_RDWR, 0, 0, 0, 0);
  if (diskFile < 0 || !diskVersions || !writer) {
    text("BAD guest: no disk");
    send();
    diskBlocks = 0;
    return;
  }
  for (u64 block = 0; block < diskBlocks; block++) putBlock(block, 0);
  if (sys(SYS_fsync, diskFile, 0, 0, 0, 0, 0) != 0) diskFault("fsync", 0);
  sys(SYS_close, diskFile, 0, 0, 0, 0, 0);
  diskFile = sys(SYS_open, (s64) "/dev/vda", O_RDWR | O_DSYNC, 0, 0, 0, 0);
  if (diskRate && sys(SYS_fork, 0, 0, 0, 0, 0, 0) == 0) writeForEver();
}
