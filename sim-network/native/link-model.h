// One direction of a link in virtual time: a copy of sim-network/link.ts for a fast driver. The TypeScript is the
// model; test/sim-network/native-model.test.ts compares both to the last bit.
//
// Always holds: the same IEEE double arithmetic in the same order as the TypeScript (compile with -ffp-contract=off,
// never -ffast-math), the same random numbers (sfc32; its state is given, the seed's text is hashed in TypeScript
// only). Times are ms, sizes are bytes.
#pragma once
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void fail(const char *what) {
  fprintf(stderr, "godwit-link: %s\n", what);
  exit(2);
}

static void *allocate(void *old, size_t bytes) {
  void *at = realloc(old, bytes);
  if (!at && bytes) fail("no memory");
  return at;
}

// ---- Options ----

typedef struct { double startMs, durationMs, everyMs; bool drops; } Blackout;  // everyMs 0: once
typedef struct { double atMs, bitsPerSecond; } Step;
typedef enum { RATE_STEPS, RATE_TRACE } RateKind;
typedef enum { LOSS_NONE, LOSS_RATIO, LOSS_BURST } LossKind;

typedef struct {
  RateKind rateKind;
  Step *steps;  // a constant rate is one step
  size_t stepCount;
  double repeatMs;  // 0: never
  uint32_t *trace;
  size_t traceCount;
  double delayMs, jitterMs, jitterPeriodMs;
  LossKind lossKind;
  double ratio, goodToBad, badToGood, lossGood, lossBad;
  double queueBytes, mtuBytes;  // mtuBytes 0: no limit
  Blackout *blackouts;
  size_t blackoutCount;
} Options;

static void freeOptions(Options *o) {
  free(o->steps);
  free(o->trace);
  free(o->blackouts);
}

// ---- Random numbers (random.ts) ----

typedef struct { uint32_t a, b, c, counter; } Random;

static uint32_t randomUint32(Random *r) {
  uint32_t out = r->a + r->b + r->counter;
  r->counter++;
  r->a = r->b ^ (r->b >> 9);
  r->b = r->c + (r->c << 3);
  r->c = ((r->c << 21) | (r->c >> 11)) + out;
  return out;
}

static Random randomOf(uint32_t a, uint32_t b, uint32_t c) {
  Random r = {a, b, c, 1};
  for (int round = 0; round < 16; round++) randomUint32(&r);
  return r;
}

static bool chance(Random *r, double probability) { return (double)randomUint32(r) / 4294967296.0 < probability; }

// JavaScript's `index | 0` of a whole double.
static uint32_t toInt32(double whole) {
  double rest = fmod(whole, 4294967296.0);
  return (uint32_t)(int64_t)rest;
}

static double randomAt(uint32_t seed, double index) {
  uint32_t x = seed ^ (toInt32(index) * 0x9e3779b1u);
  x = (x ^ (x >> 16)) * 0x85ebca6bu;
  x = (x ^ (x >> 13)) * 0xc2b2ae35u;
  return (double)(x ^ (x >> 16)) / 4294967296.0;
}

// ---- Blackouts (blackout.ts) ----

static bool lastStart(const Blackout *b, double ms, double *start) {
  if (ms < b->startMs) return false;
  *start = b->everyMs == 0 ? b->startMs : b->startMs + floor((ms - b->startMs) / b->everyMs) * b->everyMs;
  return true;
}

static bool blackoutEnd(const Options *o, bool drops, double ms, double *end) {
  bool found = false;
  for (size_t i = 0; i < o->blackoutCount; i++) {
    const Blackout *b = &o->blackouts[i];
    double start;
    if (b->drops != drops || !lastStart(b, ms, &start) || !(ms < start + b->durationMs)) continue;
    *end = fmax(found ? *end : 0, start + b->durationMs);
    found = true;
  }
  return found;
}

static double nextBlackout(const Options *o, bool drops, double ms) {
  double next = INFINITY, start;
  for (size_t i = 0; i < o->blackoutCount; i++) {
    const Blackout *b = &o->blackouts[i];
    if (b->drops != drops) continue;
    if (b->startMs > ms) next = fmin(next, b->startMs);
    else if (b->everyMs != 0 && lastStart(b, ms, &start)) next = fmin(next, start + b->everyMs);
  }
  return next;
}

// ---- The server (server.ts) ----

enum { STEPS_MAX = 1000000, OPPORTUNITY_BYTES = 1500 };
#define TICK_MS 1e-6

typedef struct { double base; size_t at; double bytesLeft; } TraceState;

static void segmentOf(const Options *o, double ms, double *rate, double *untilMs) {
  double base = o->repeatMs == 0 ? 0 : floor(ms / o->repeatMs) * o->repeatMs, inside = ms - base;
  size_t at = 0;
  while (at + 1 < o->stepCount && o->steps[at + 1].atMs <= inside) at++;
  *rate = o->steps[at].bitsPerSecond;
  *untilMs = base + (at + 1 < o->stepCount ? o->steps[at + 1].atMs : o->repeatMs != 0 ? o->repeatMs : INFINITY);
}

static double serveSteps(const Options *o, double fromMs, double bytes) {
  double at = fromMs, bitsLeft = bytes * 8;
  for (int step = 0; step < STEPS_MAX; step++) {
    double rate, untilMs, held;
    if (blackoutEnd(o, false, at, &held)) {
      rate = 0;
      untilMs = held;
    } else {
      segmentOf(o, at, &rate, &untilMs);
      untilMs = fmin(untilMs, nextBlackout(o, false, at));
    }
    double doneMs = rate > 0 ? at + (bitsLeft / rate) * 1000 : INFINITY;
    if (doneMs <= untilMs) return doneMs;
    if (untilMs == INFINITY) return untilMs;
    bitsLeft -= ((untilMs - at) * rate) / 1000;
    at = fmax(untilMs, at + TICK_MS);
  }
  return INFINITY;
}

static double traceNow(const Options *o, const TraceState *t) { return t->base + o->trace[t->at]; }

static void traceStep(const Options *o, TraceState *t) {
  t->bytesLeft = OPPORTUNITY_BYTES;
  if (++t->at < o->traceCount) return;
  t->at = 0;
  t->base += o->trace[o->traceCount - 1];
}

static bool traceReach(const Options *o, TraceState *t, double ms) {
  double period = o->trace[o->traceCount - 1], end;
  if (ms > t->base + period) {
    t->base = floor(ms / period) * period;
    t->at = 0;
    t->bytesLeft = OPPORTUNITY_BYTES;
  }
  while (traceNow(o, t) < ms) traceStep(o, t);
  for (int tries = 0; tries < STEPS_MAX; tries++) {
    if (!blackoutEnd(o, false, traceNow(o, t), &end)) return true;
    while (traceNow(o, t) < end) traceStep(o, t);
  }
  return false;
}

static double serveTrace(const Options *o, TraceState *t, double fromMs, double bytes) {
  double left = bytes;
  bool isOpen = traceReach(o, t, fromMs);
  while (isOpen && left > t->bytesLeft) {
    left -= t->bytesLeft;
    traceStep(o, t);
    isOpen = traceReach(o, t, traceNow(o, t));
  }
  t->bytesLeft -= left;
  return isOpen ? traceNow(o, t) : INFINITY;
}

// ---- The link (link.ts) ----

typedef struct { double ms; uint32_t bytes; void *packet; } Item;  // waiting: entered; flying: arrives
typedef struct { Item *items; size_t capacity, head, length; } Ring;

static void ringPush(Ring *r, Item item) {
  if (r->length == r->capacity) {
    size_t capacity = r->capacity ? 2 * r->capacity : 256;
    Item *items = allocate(NULL, capacity * sizeof *items);
    for (size_t i = 0; i < r->length; i++) items[i] = r->items[(r->head + i) % r->capacity];
    free(r->items);
    *r = (Ring){items, capacity, 0, r->length};
  }
  r->items[(r->head + r->length++) % r->capacity] = item;
}

static Item ringShift(Ring *r) {
  Item item = r->items[r->head];
  r->head = (r->head + 1) % r->capacity;
  r->length--;
  return item;
}

enum { DROP_QUEUE, DROP_LOSS, DROP_BLACKOUT, DROP_MTU, DROP_CUT, DROP_CAUSES };
static const char *const dropNames[DROP_CAUSES] = {"queue", "loss", "blackout", "mtu", "cut"};

typedef struct {
  uint64_t enteredPackets, deliveredPackets, droppedPackets[DROP_CAUSES], sentPackets;
  double enteredBytes, deliveredBytes, droppedBytes[DROP_CAUSES], queueBytes, queueBytesMax, queueDelayMsSum, queueDelayMsMax;
} Counters;

typedef struct {
  Options options;
  Random lossRandom;
  uint32_t jitterSeed;
  bool isBad;  // the loss chain's state
  TraceState trace;
  Ring queue, flight;
  double nowMs, headDoneMs, lastSentMs, lastArrivalMs;
  bool hasHead, isCut;
  Counters counters;
  void (*release)(void *packet);  // what becomes of a dropped packet
} Link;

static double serve(Link *l, double fromMs, double bytes) {
  return l->options.rateKind == RATE_TRACE ? serveTrace(&l->options, &l->trace, fromMs, bytes) : serveSteps(&l->options, fromMs, bytes);
}

static bool isLost(Link *l) {
  const Options *o = &l->options;
  if (o->lossKind == LOSS_NONE) return false;
  if (o->lossKind == LOSS_RATIO) return chance(&l->lossRandom, o->ratio);
  l->isBad = l->isBad ? !chance(&l->lossRandom, o->badToGood) : chance(&l->lossRandom, o->goodToBad);
  return chance(&l->lossRandom, l->isBad ? o->lossBad : o->lossGood);
}

static double jitterAt(const Link *l, double ms) {
  const Options *o = &l->options;
  if (o->jitterMs == 0) return 0;
  double turn = floor(ms / o->jitterPeriodMs), part = ms / o->jitterPeriodMs - turn;
  double from = randomAt(l->jitterSeed, turn) * 2 - 1, to = randomAt(l->jitterSeed, turn + 1) * 2 - 1;
  return o->jitterMs * (from + (to - from) * part);
}

static void drop(Link *l, int cause, uint32_t bytes, void *packet) {
  l->counters.droppedPackets[cause]++;
  l->counters.droppedBytes[cause] += bytes;
  if (l->release) l->release(packet);
}

static void startHead(Link *l, double fromMs) {
  l->hasHead = l->queue.length > 0;
  if (l->hasHead) l->headDoneMs = serve(l, fromMs, l->queue.items[l->queue.head].bytes);
}

static void sendHead(Link *l, double sentMs) {
  Item head = ringShift(&l->queue);
  Counters *c = &l->counters;
  double unused;
  c->queueBytes -= head.bytes;
  c->sentPackets++;
  c->queueDelayMsSum += sentMs - head.ms;
  c->queueDelayMsMax = fmax(c->queueDelayMsMax, sentMs - head.ms);
  l->lastSentMs = sentMs;
  bool lost = isLost(l);
  if (blackoutEnd(&l->options, true, sentMs, &unused)) drop(l, DROP_BLACKOUT, head.bytes, head.packet);
  else if (lost) drop(l, DROP_LOSS, head.bytes, head.packet);
  else {
    l->lastArrivalMs = fmax(l->lastArrivalMs, sentMs + l->options.delayMs + jitterAt(l, sentMs));
    ringPush(&l->flight, (Item){l->lastArrivalMs, head.bytes, head.packet});
  }
  startHead(l, sentMs);
}

static void moveTo(Link *l, double nowMs) {
  if (nowMs < l->nowMs) fail("a link cannot go back in time");
  l->nowMs = nowMs;
  while (l->hasHead && l->headDoneMs <= nowMs) sendHead(l, l->headDoneMs);
}

static void linkInit(Link *l, Options options, Random lossRandom, uint32_t jitterSeed, void (*release)(void *)) {
  memset(l, 0, sizeof *l);
  l->options = options;
  l->lossRandom = lossRandom;
  l->jitterSeed = jitterSeed;
  l->release = release;
  l->trace.bytesLeft = OPPORTUNITY_BYTES;
}

static bool linkEnqueue(Link *l, double nowMs, uint32_t bytes, void *packet) {
  moveTo(l, nowMs);
  Counters *c = &l->counters;
  c->enteredPackets++;
  c->enteredBytes += bytes;
  int cause = l->isCut                                                            ? DROP_CUT
              : l->options.mtuBytes != 0 && bytes > l->options.mtuBytes          ? DROP_MTU
              : c->queueBytes + bytes > l->options.queueBytes                    ? DROP_QUEUE
                                                                                 : -1;
  if (cause >= 0) {
    drop(l, cause, bytes, packet);
    return false;
  }
  ringPush(&l->queue, (Item){nowMs, bytes, packet});
  c->queueBytes += bytes;
  c->queueBytesMax = fmax(c->queueBytesMax, c->queueBytes);
  if (!l->hasHead) startHead(l, fmax(nowMs, l->lastSentMs));
  return true;
}

// The next packet that has arrived up to and including `nowMs`; false when there is none.
static bool linkArrived(Link *l, double nowMs, Item *item) {
  moveTo(l, nowMs);
  if (!l->flight.length || l->flight.items[l->flight.head].ms > nowMs) return false;
  *item = ringShift(&l->flight);
  l->counters.deliveredPackets++;
  l->counters.deliveredBytes += item->bytes;
  return true;
}

static double linkNextMs(const Link *l) {
  return l->flight.length ? l->flight.items[l->flight.head].ms : l->hasHead ? l->headDoneMs : INFINITY;
}

static void linkChange(Link *l, double nowMs, Options options, bool isLossNew) {
  moveTo(l, nowMs);
  freeOptions(&l->options);
  l->options = options;
  if (isLossNew) l->isBad = false;
  l->trace = (TraceState){0, 0, OPPORTUNITY_BYTES};
  startHead(l, nowMs);
}

static void linkCut(Link *l, double nowMs, bool isCut) {
  moveTo(l, nowMs);
  l->isCut = isCut;
  if (!isCut) return;
  while (l->queue.length) {
    Item item = ringShift(&l->queue);
    drop(l, DROP_CUT, item.bytes, item.packet);
  }
  while (l->flight.length) {
    Item item = ringShift(&l->flight);
    drop(l, DROP_CUT, item.bytes, item.packet);
  }
  l->counters.queueBytes = 0;
  l->hasHead = false;
}
