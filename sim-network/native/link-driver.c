// The packet-level driver of the link model: moves IP packets between two TUN devices, each in its own network
// namespace, through one emulated link for each direction, in real time. sim-network/packet-link.ts starts and controls
// it.
//
//   link-driver run NETNS_A DEVICE_A NETNS_B DEVICE_B   stdin: two link descriptions (ab, ba), then commands
//   link-driver replay                                  stdin: one link description, then operations in virtual time
//
// stdout: one JSON line for each answer. Always holds: a packet leaves at the time of the model, or later if the
// machine delays it (counted as lateness), never earlier; memory is bounded by the links' queues and rate x delay; the
// devices disappear with the process. It needs CAP_NET_ADMIN and CAP_SYS_ADMIN (namespaces).
#define _GNU_SOURCE
#include "link-model.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { PACKET_BYTES_MAX = 65536, LINE_BYTES = 4096, READ_BATCH = 64, TRACE_MAX = 10000000, TUN_QUEUE_PACKETS = 10000 };
// Pause after packets have moved: one system call then handles several packets, and the endpoints keep their CPU.
enum { GRAIN_NS = 200000 };
// Limit of one ms, or three times the rate: after a delay of this process, releasing all overdue packets at once would
// overflow a receiver's socket buffer, a loss outside the model.
enum { BURST_BYTES_MIN = 96000 };

// ---- Parsing of stdin ----
// A link description is a list of words that ends with `end`; strtod reads JavaScript's numbers exactly.

static char input[1 << 16];
static size_t inputFrom, inputTo;
static bool inputEnded;

// Blocks if the descriptor blocks.
static int nextByte(void) {
  if (inputFrom == inputTo) {
    ssize_t count = read(0, input, sizeof input);
    if (count <= 0) {
      if (count == 0) inputEnded = true;
      return -1;
    }
    inputFrom = 0;
    inputTo = (size_t)count;
  }
  return (unsigned char)input[inputFrom++];
}

static char word[LINE_BYTES];

static bool readWord(void) {
  size_t length = 0;
  int byte = nextByte();
  while (byte == ' ' || byte == '\n') byte = nextByte();
  for (; byte >= 0 && byte != ' ' && byte != '\n'; byte = nextByte()) {
    if (length + 1 >= sizeof word) fail("a word of stdin is too long");
    word[length++] = (char)byte;
  }
  word[length] = 0;
  return length > 0;
}

static bool is(const char *text) { return strcmp(word, text) == 0; }

static double readNumber(void) {
  char *end;
  if (!readWord()) fail("stdin ended within a link");
  double value = strtod(word, &end);
  if (*end) fail("not a number on stdin");
  return value;
}

static size_t readCount(size_t max) {
  double value = readNumber();
  if (!(value >= 0 && value <= (double)max)) fail("a count on stdin is out of range");
  return (size_t)value;
}

static void readRate(Options *o) {
  readWord();
  if (is("steps")) {
    o->rateKind = RATE_STEPS;
    o->repeatMs = readNumber();
    o->stepCount = readCount(TRACE_MAX);
    o->steps = allocate(NULL, o->stepCount * sizeof *o->steps);
    for (size_t i = 0; i < o->stepCount; i++) {
      double atMs = readNumber();
      o->steps[i] = (Step){atMs, readNumber()};
    }
  } else if (is("trace")) {
    o->rateKind = RATE_TRACE;
    o->traceCount = readCount(TRACE_MAX);
    o->trace = allocate(NULL, o->traceCount * sizeof *o->trace);
    for (size_t i = 0; i < o->traceCount; i++) o->trace[i] = (uint32_t)readNumber();
  } else fail("no such kind of rate");
}

static void readLoss(Options *o) {
  readWord();
  if (is("none")) o->lossKind = LOSS_NONE;
  else if (is("ratio")) {
    o->lossKind = LOSS_RATIO;
    o->ratio = readNumber();
  } else if (is("burst")) {
    o->lossKind = LOSS_BURST;
    o->goodToBad = readNumber();
    o->badToGood = readNumber();
    o->lossGood = readNumber();
    o->lossBad = readNumber();
  } else fail("no such kind of loss");
}

// random: the state of the loss's sfc32, the seed of the jitter
typedef struct { Options options; uint32_t random[4]; } Description;

static Description readDescription(void) {
  Description d;
  memset(&d, 0, sizeof d);
  Options *o = &d.options;
  while (readWord() && !is("end")) {
    if (is("rate")) readRate(o);
    else if (is("loss")) readLoss(o);
    else if (is("delay")) o->delayMs = readNumber();
    else if (is("jitter")) {
      o->jitterMs = readNumber();
      o->jitterPeriodMs = readNumber();
    } else if (is("queue")) o->queueBytes = readNumber();
    else if (is("mtu")) o->mtuBytes = readNumber();
    else if (is("blackout")) {
      o->blackouts = allocate(o->blackouts, (o->blackoutCount + 1) * sizeof *o->blackouts);
      Blackout *b = &o->blackouts[o->blackoutCount++];
      b->startMs = readNumber();
      b->durationMs = readNumber();
      b->everyMs = readNumber();
      b->drops = readNumber() != 0;
    } else if (is("random")) {
      for (int i = 0; i < 4; i++) d.random[i] = (uint32_t)readNumber();
    } else fail("no such word in a link");
  }
  if (!is("end")) fail("stdin ended within a link");
  if ((o->rateKind == RATE_STEPS && !o->stepCount) || (o->rateKind == RATE_TRACE && !o->traceCount)) fail("a link without a rate");
  return d;
}

static void linkFrom(Link *l, Description d, void (*release)(void *)) {
  linkInit(l, d.options, randomOf(d.random[0], d.random[1], d.random[2]), d.random[3], release);
}

static void printCounters(const Link *l) {
  const Counters *c = &l->counters;
  printf("{\"enteredPackets\":%lu,\"enteredBytes\":%.17g,\"deliveredPackets\":%lu,\"deliveredBytes\":%.17g", c->enteredPackets, c->enteredBytes,
         c->deliveredPackets, c->deliveredBytes);
  printf(",\"droppedPackets\":{");
  for (int i = 0; i < DROP_CAUSES; i++) printf("%s\"%s\":%lu", i ? "," : "", dropNames[i], c->droppedPackets[i]);
  printf("},\"droppedBytes\":{");
  for (int i = 0; i < DROP_CAUSES; i++) printf("%s\"%s\":%.17g", i ? "," : "", dropNames[i], c->droppedBytes[i]);
  printf("},\"queueBytes\":%.17g,\"queueBytesMax\":%.17g,\"queueDelayMsSum\":%.17g,\"queueDelayMsMax\":%.17g,\"sentPackets\":%lu}", c->queueBytes,
         c->queueBytesMax, c->queueDelayMsSum, c->queueDelayMsMax, c->sentPackets);
}

// ---- replay: e MS BYTES | a MS | n | x MS 0/1 | c MS 0/1 DESCRIPTION | s ----

static int replay(void) {
  Link l;
  linkFrom(&l, readDescription(), NULL);
  for (uintptr_t number = 0; readWord();) {
    if (is("e")) {
      double nowMs = readNumber();
      uint32_t bytes = (uint32_t)readNumber();
      printf("e %d\n", linkEnqueue(&l, nowMs, bytes, (void *)number++));
    } else if (is("a")) {
      double nowMs = readNumber();
      Item item;
      while (linkArrived(&l, nowMs, &item)) printf("d %.17g %u %lu\n", item.ms, item.bytes, (uintptr_t)item.packet);
      printf("a\n");
    } else if (is("n")) printf("n %.17g\n", linkNextMs(&l));
    else if (is("x")) {
      double nowMs = readNumber();
      linkCut(&l, nowMs, readNumber() != 0);
    } else if (is("c")) {
      double nowMs = readNumber();
      bool isLossNew = readNumber() != 0;
      linkChange(&l, nowMs, readDescription().options, isLossNew);
    } else if (is("s")) {
      printCounters(&l);
      printf("\n");
    } else fail("no such operation");
  }
  return 0;
}

// ---- run ----

// Packets of one size class on a free list: no allocation once the link has seen its peak.
typedef union Packet { union Packet *next; uint8_t bytes[1]; } Packet;
static Packet *spare;
static size_t packetBytes;

static Packet *takePacket(void) {
  Packet *p = spare;
  if (p) spare = p->next;
  else p = allocate(NULL, packetBytes);
  return p;
}

static void givePacket(void *packet) {
  Packet *p = packet;
  p->next = spare;
  spare = p;
}

typedef struct {
  Link link;
  int from, to;
  uint64_t lateCount[8], writeErrors;  // lateness below 0.1, 0.2, 0.5, 1, 2, 5, 10 ms, and more
  double lateMsMax;
  double burst, burstMax, burstMs;  // bytes that may go now, at most, and when that was counted
} Direction;

static Direction directions[2];
static const double lateBounds[7] = {0.1, 0.2, 0.5, 1, 2, 5, 10};
static struct timespec origin;

static double nowMs(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)(t.tv_sec - origin.tv_sec) * 1e3 + (double)(t.tv_nsec - origin.tv_nsec) / 1e6;
}

// Creates the device `name` in the network namespace at `path`; the caller then returns to its own.
static int openTun(const char *path, const char *name) {
  int home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), away = open(path, O_RDONLY | O_CLOEXEC);
  if (home < 0) fail("/proc/self/ns/net cannot be opened");
  if (away < 0) fail("no such network namespace");
  if (setns(away, CLONE_NEWNET) != 0) fail("the network namespace cannot be entered");
  int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0) fail("/dev/net/tun cannot be opened");
  struct ifreq request;
  memset(&request, 0, sizeof request);
  strncpy(request.ifr_name, name, IFNAMSIZ - 1);
  request.ifr_flags = IFF_TUN | IFF_NO_PI;
  if (ioctl(fd, TUNSETIFF, &request) != 0) fail(errno == EBUSY ? "the device exists in the namespace" : "the TUN device cannot be made");
  if (setns(home, CLONE_NEWNET) != 0) fail("no way back to the own network namespace");
  close(home);
  close(away);
  return fd;
}

// Reads waiting packets of one device into its link. Returns whether there were any.
static bool takeIn(Direction *d) {
  bool any = false;
  for (int i = 0; i < READ_BATCH; i++) {
    Packet *p = takePacket();
    ssize_t count = read(d->from, p->bytes, packetBytes);
    if (count <= 0) {
      givePacket(p);
      break;
    }
    linkEnqueue(&d->link, nowMs(), (uint32_t)count, p);
    any = true;
  }
  return any;
}

static double burstOf(const Options *o) {
  double most = 0;
  for (size_t i = 0; i < o->stepCount; i++) most = fmax(most, o->steps[i].bitsPerSecond);
  return fmax(BURST_BYTES_MIN, 3 * most / 8000);
}

static bool letOut(Direction *d) {
  double now = nowMs();
  Item item;
  bool any = false;
  d->burst = fmin(d->burstMax, d->burst + (now - d->burstMs) * d->burstMax);
  d->burstMs = now;
  for (; d->burst > 0 && linkArrived(&d->link, now, &item); any = true) {
    d->burst -= item.bytes;
    if (write(d->to, ((Packet *)item.packet)->bytes, item.bytes) < 0) d->writeErrors++;
    givePacket(item.packet);
    double late = now - item.ms;
    int bucket = 0;
    while (bucket < 7 && late >= lateBounds[bucket]) bucket++;
    d->lateCount[bucket]++;
    if (late > d->lateMsMax) d->lateMsMax = late;
  }
  return any;
}

static void answer(const char *kind) {
  printf("{\"kind\":\"%s\",\"atMs\":%.3f", kind, nowMs());
  const char *names[2] = {"ab", "ba"};
  for (int i = 0; i < 2; i++) {
    Direction *d = &directions[i];
    printf(",\"%s\":{\"link\":", names[i]);
    printCounters(&d->link);
    printf(",\"lateCount\":[");
    for (int j = 0; j < 8; j++) printf("%s%lu", j ? "," : "", d->lateCount[j]);
    printf("],\"lateMsMax\":%.3f,\"writeErrors\":%lu}", d->lateMsMax, d->writeErrors);
  }
  printf("}\n");
  fflush(stdout);
}

// stats | cut 0/1 | change ab/ba 0/1 DESCRIPTION. A description follows its command at once, so the wait for it is
// short.
static void obey(void) {
  while (readWord()) {
    if (is("stats")) answer("stats");
    else if (is("cut")) {
      bool isCut = readNumber() != 0;
      for (int i = 0; i < 2; i++) linkCut(&directions[i].link, nowMs(), isCut);
    } else if (is("change")) {
      readWord();
      Direction *d = &directions[is("ba")];
      bool isLossNew = readNumber() != 0;
      Options options = readDescription().options;
      linkChange(&d->link, nowMs(), options, isLossNew);
      d->burstMax = burstOf(&d->link.options);
    } else fail("no such command");
    if (inputFrom == inputTo) return;
  }
}

static volatile sig_atomic_t stopped;
static void stop(int signal) { stopped = signal; }

// Lateness of the driver changes the link: it requests real-time priority from the kernel.
static bool hurry(void) {
  struct sched_param priority = {.sched_priority = 20};
  prctl(PR_SET_TIMERSLACK, 1000);
  mlockall(MCL_CURRENT | MCL_FUTURE);
  return sched_setscheduler(0, SCHED_FIFO, &priority) == 0;
}

static void waitFor(double nextMs, bool wasBusy) {
  double left = nextMs - nowMs();
  if (wasBusy) {
    struct timespec grain = {0, GRAIN_NS};
    nanosleep(&grain, NULL);
    return;
  }
  struct pollfd polled[3] = {{directions[0].from, POLLIN, 0}, {directions[1].from, POLLIN, 0}, {inputEnded ? -1 : 0, POLLIN, 0}};
  if (left < 0) left = 0;
  struct timespec timeout = {(time_t)(left / 1000), (long)(fmod(left, 1000) * 1e6)};
  ppoll(polled, 3, isinf(left) ? NULL : &timeout, NULL);
  if (polled[2].revents & POLLIN) obey();
  else if (polled[2].revents & POLLHUP) inputEnded = true;
}

static int run(char **words) {
  signal(SIGTERM, stop);
  signal(SIGINT, stop);
  signal(SIGPIPE, SIG_IGN);
  linkFrom(&directions[0].link, readDescription(), givePacket);
  linkFrom(&directions[1].link, readDescription(), givePacket);
  packetBytes = (size_t)readCount(PACKET_BYTES_MAX) + sizeof(Packet);
  int a = openTun(words[0], words[1]), b = openTun(words[2], words[3]);
  directions[0].from = directions[1].to = a;
  directions[0].to = directions[1].from = b;
  for (int i = 0; i < 2; i++) directions[i].burstMax = burstOf(&directions[i].link.options);
  bool isFirst = hurry();
  clock_gettime(CLOCK_MONOTONIC, &origin);
  printf("{\"kind\":\"ready\",\"isRealTime\":%s}\n", isFirst ? "true" : "false");
  fflush(stdout);
  int busyTurns = 0;
  while (!stopped && !inputEnded) {
    bool busy = takeIn(&directions[0]) | takeIn(&directions[1]);
    busy |= letOut(&directions[0]) | letOut(&directions[1]);
    double next = fmin(linkNextMs(&directions[0].link), linkNextMs(&directions[1].link));
    // stdin is read at least every 64 grains.
    busyTurns = busy ? busyTurns + 1 : 0;
    waitFor(busyTurns % 64 == 63 ? 0 : next, busy && busyTurns % 64 != 63);
  }
  answer("end");
  return 0;
}

int main(int count, char **words) {
  if (count == 2 && strcmp(words[1], "replay") == 0) return replay();
  if (count == 6 && strcmp(words[1], "run") == 0) return run(words + 2);
  fail("usage: link-driver run NETNS_A DEVICE_A NETNS_B DEVICE_B | link-driver replay");
}
