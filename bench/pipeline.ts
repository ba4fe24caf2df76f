// The speed of the page pipeline on this machine, for each stage and as a whole, without network and QEMU. Enters: a
// seeded guest. Leaves: MB/s of guest memory for each stage, and the slowest stage. Wall time on a shared
// machine is noisy, so whole paths also show the MB for one second of CPU time (all threads).

import { closeSync, ftruncateSync, mkdtempSync, openSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { createPageHasher } from '../crypto/channel/page-hash.ts'
import { createOpener, createSealer, RECORD_DATA_BYTES_MAX, type RecordContext } from '../crypto/channel/record.ts'
import { fastest, loadSodium } from '../crypto/sodium.ts'
import { PageMap } from '../edge-node/pages/address.ts'
import { createApplier } from '../edge-node/pages/apply.ts'
import { batchBufferBytes, decodeBarrier } from '../edge-node/pages/batch.ts'
import { Classifier } from '../edge-node/pages/classify.ts'
import { type CompressJob, type CompressResult, compressBatch, loadZstd, openBatch } from '../edge-node/pages/compress.ts'
import type { PageHasher } from '../edge-node/pages/hasher.ts'
import { type ApplyJob, type ApplyResult, applyBatch, createFileMemory, type MemoryRegion } from '../edge-node/pages/memory.ts'
import { createPipeline, type FrameSink, type PipelineStats } from '../edge-node/pages/pipeline.ts'
import { createThreadPool, type Pool } from '../edge-node/pages/pool.ts'
import type { Zstd } from '../edge-node/pages/zstd.ts'
import { createParser } from '../edge-node/stream/parse.ts'
import { type Token, write } from '../edge-node/stream/write.ts'
import { readArguments, runScript } from '../ops/script.ts'
import { FRAME, PAGE_BYTES } from '../wire/types.ts'
import { MIB } from '../wire/units.ts'

const GUEST_BYTES = 48 * MIB
const LEVELS = [-5, -1, 1, 3] as const
const BATCH_PAGES = 64

type Page = { offset: number; kind: 'zero' | 'duplicate' | 'random' | 'text'; bytes: Uint8Array }
type BenchStage = { stage: string; guestMBPerSecond: number; note: string }
type BenchResult = { guestBytes: number; stages: BenchStage[]; limit: string }

/** mulberry32 */
function seeded(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = Math.imul(state ^ (state >>> 15), state | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

/** 25 % zero, 10 % duplicate, 15 % random, 50 % like text and code; in clusters, as in real guests. */
function createGuest(seed: number): Page[] {
  const random = seeded(seed)
  const text = createText(random)
  const pages: Page[] = []
  const zero = new Uint8Array(PAGE_BYTES)
  const count = GUEST_BYTES / PAGE_BYTES
  while (pages.length < count) {
    const draw = random()
    const kind = draw < 0.25 ? 'zero' : draw < 0.35 ? 'duplicate' : draw < 0.5 ? 'random' : 'text'
    for (let left = 1 + Math.floor(random() * 24); left > 0 && pages.length < count; left--) {
      const offset = pages.length * PAGE_BYTES
      const original = pages[Math.floor(random() * pages.length)]
      if (kind === 'duplicate' && original && original.kind !== 'zero') pages.push({ offset, kind, bytes: original.bytes })
      else if (kind === 'random') pages.push({ offset, kind, bytes: Uint8Array.from({ length: PAGE_BYTES }, () => random() * 256) })
      else if (kind === 'zero') pages.push({ offset, kind, bytes: zero })
      else pages.push({ offset, kind: 'text', bytes: text() })
    }
  }
  return pages
}

/**
 * Half pages of words, half pages of records with pointers and small numbers: zstd 1 compresses them by a factor of 2
 * to 3.
 */
function createText(random: () => number): () => Uint8Array {
  const letters = 'etaoinshrdlucmfwypvbgkqjxz'
  const words = Array.from({ length: 4000 }, () =>
    Array.from({ length: 2 + Math.floor(random() * 9) }, () => letters[Math.floor(random() ** 2 * 26)]).join(''),
  )
  const encoder = new TextEncoder()
  const prose = () => {
    const page = new Uint8Array(PAGE_BYTES)
    for (let at = 0; at < PAGE_BYTES; )
      at += encoder.encodeInto(`${words[Math.floor(random() ** 3 * words.length)]} `, page.subarray(at)).written || PAGE_BYTES
    return page
  }
  const records = () => {
    const page = new Uint8Array(PAGE_BYTES)
    const view = new DataView(page.buffer)
    for (let at = 0; at < PAGE_BYTES; at += 32) {
      view.setUint32(at, random() * 2 ** 32, true)
      view.setUint32(at + 4, 0x7f3a, true)
      view.setUint32(at + 8, random() * 2 ** 32, true)
      view.setUint32(at + 12, 0x7f3a, true)
      view.setUint16(at + 16, random() * 4096, true)
      view.setUint32(at + 24, random() * 100, true)
    }
    return page
  }
  return () => (random() < 0.5 ? prose() : records())
}

/** Guest MB/s of `body`, which processes the whole guest once; repeated for `ms`, at least once after a warm-up. */
function rate(ms: number, body: () => void): number {
  body()
  const started = performance.now()
  let runs = 0
  do {
    body()
    runs++
  } while (performance.now() - started < ms)
  return (runs * GUEST_BYTES) / 1e3 / (performance.now() - started)
}

/** Classifies the whole guest; returns the batches. */
function planGuest(pages: readonly Page[], hasher: PageHasher, keep: boolean): { buffer: ArrayBuffer; bytes: number }[] {
  const batches: { buffer: ArrayBuffer; bytes: number }[] = []
  const bufferBytes = batchBufferBytes(BATCH_PAGES)
  let spare: ArrayBuffer | undefined
  const classifier = new Classifier({
    map: new PageMap([{ id: 0, bytes: GUEST_BYTES }]),
    hasher,
    batchPages: BATCH_PAGES,
    events: {
      takeBuffer: () => spare ?? new ArrayBuffer(bufferBytes),
      batch: ({ buffer, bytes }) => {
        if (keep) batches.push({ buffer, bytes })
        else spare = buffer
      },
      barrier: () => {},
    },
  })
  for (const { offset, kind, bytes } of pages) {
    if (kind === 'zero') classifier.zero(offset / PAGE_BYTES)
    else classifier.page(offset / PAGE_BYTES, bytes)
  }
  classifier.barrier()
  return batches
}

/** The guest as a QEMU stream, in chunks as from a socket. */
function createStream(pages: readonly Page[]): Uint8Array[] {
  const tokens: Token[] = [
    { kind: 'magic', version: 3 },
    { kind: 'start', id: 2, name: 'ram', instance: 0, version: 4 },
    { kind: 'blocks', list: [{ name: 'ram0', usedBytes: GUEST_BYTES }] },
    { kind: 'eos' },
    { kind: 'footer', id: 2 },
    { kind: 'part', id: 2 },
  ]
  for (const [index, { kind, offset, bytes }] of pages.entries()) {
    const name = index === 0 ? { name: 'ram0' } : {}
    tokens.push(kind === 'zero' ? { kind: 'zero', ...name, offset } : { kind: 'page', ...name, offset, bytes })
  }
  tokens.push({ kind: 'eos' }, { kind: 'footer', id: 2 })
  const stream = write(tokens)
  return Array.from({ length: Math.ceil(stream.length / 65536) }, (_, i) => stream.subarray(i * 65536, (i + 1) * 65536))
}

function benchParse(pages: readonly Page[], ms: number): BenchStage {
  const chunks = createStream(pages)
  const nothing = () => {}
  const perSecond = rate(ms, () => {
    const events = { skeleton: nothing, page: nothing, zero: nothing, blocks: nothing, ramEnd: nothing, opaque: nothing }
    const parser = createParser(events, { captures: () => true })
    for (const chunk of chunks) parser.push(chunk)
  })
  return { stage: 'parse', guestMBPerSecond: perSecond, note: '64 KiB chunks' }
}

function benchClassify(pages: readonly Page[], hasher: PageHasher, ms: number): BenchStage[] {
  const out = new Uint8Array(16)
  const content = pages.filter(({ kind }) => kind !== 'zero')
  const hashing = rate(ms, () => {
    for (const { bytes } of content) hasher.hash(bytes, out)
  })
  const known = new Map<Uint8Array, Uint8Array>()
  for (const { bytes } of content) {
    const hash = new Uint8Array(16)
    hasher.hash(bytes, hash)
    known.set(bytes, hash)
  }
  const none = new Uint8Array(16)
  const table: PageHasher = { bytes: 16, hash: (page, into) => into.set(known.get(page) ?? none) }
  const classifying = rate(ms, () => planGuest(pages, table, false))
  return [
    { stage: 'hash', guestMBPerSecond: hashing, note: 'keyed BLAKE2b-128' },
    { stage: 'classify, copy', guestMBPerSecond: classifying, note: 'hashes known before' },
  ]
}

function benchCompress(zstd: Zstd, batches: readonly { buffer: ArrayBuffer; bytes: number }[], ms: number): BenchStage[] {
  const output = new ArrayBuffer(batchBufferBytes(BATCH_PAGES))
  const stages: BenchStage[] = []
  const before = batches.reduce((sum, { bytes }) => sum + bytes, 0)
  for (const level of LEVELS) {
    let after = 0
    const perSecond = rate(ms, () => {
      after = 0
      for (const { buffer, bytes } of batches) after += compressBatch(zstd, { input: buffer, output, bytes, level }).bytes
    })
    const note = `ratio ${(before / after).toFixed(2)} of batches, ${(GUEST_BYTES / after).toFixed(2)} of the guest`
    stages.push({ stage: `compress ${level}`, guestMBPerSecond: perSecond, note })
  }
  return stages
}

/** The payloads at `level`. */
function compressed(zstd: Zstd, batches: readonly { buffer: ArrayBuffer; bytes: number }[], level: number): Uint8Array[] {
  return batches.map(({ buffer, bytes }) => {
    const result = compressBatch(zstd, { input: buffer, output: new ArrayBuffer(buffer.byteLength), bytes, level })
    return new Uint8Array(result.compressed ? result.output : result.input, 0, result.bytes)
  })
}

function benchRecords(payloads: readonly Uint8Array[], ms: number): BenchStage[] {
  const data = Buffer.concat(payloads)
  const pieces = Array.from({ length: Math.ceil(data.length / RECORD_DATA_BYTES_MAX) }, (_, i) =>
    data.subarray(i * RECORD_DATA_BYTES_MAX, (i + 1) * RECORD_DATA_BYTES_MAX),
  )
  const key = new Uint8Array(32).fill(7)
  const context: RecordContext = { migrationId: '0'.repeat(32), epoch: 1, index: 2, direction: 'source-to-target' }
  const sealing = rate(ms, () => {
    const sealer = createSealer({ key, context })
    for (const piece of pieces) sealer.seal(piece)
  })
  const sealer = createSealer({ key, context })
  const records = pieces.map(piece => sealer.seal(piece))
  const opening = rate(ms, () => {
    const opener = createOpener({ key, context, header: sealer.header })
    for (const record of records) opener.open(record)
  })
  const note =
    `${fastest().name ?? ''} records with digest, ${(data.length / MIB).toFixed(1)} MiB for ${GUEST_BYTES / MIB} MiB of guest`.trim()
  return [
    { stage: 'seal', guestMBPerSecond: sealing, note },
    { stage: 'open', guestMBPerSecond: opening, note },
  ]
}

function benchWrite(
  zstd: Zstd,
  batches: readonly { buffer: ArrayBuffer; bytes: number }[],
  payloads: readonly Uint8Array[],
  region: MemoryRegion,
  ms: number,
) {
  const decompressing = rate(ms, () => {
    for (const payload of payloads) openBatch(zstd, payload)
  })
  const memory = createFileMemory([region])
  const writing = rate(ms, () => {
    for (const { buffer, bytes } of batches) applyBatch(zstd, memory, { kind: 'batch', input: buffer, bytes })
  })
  return [
    { stage: 'decompress', guestMBPerSecond: decompressing, note: 'checked' },
    { stage: 'write', guestMBPerSecond: writing, note: 'raw batches, decoded and written; zeros read' },
  ]
}

const keepOpen = <Job, Result>(pool: Pool<Job, Result>): Pool<Job, Result> => ({ ...pool, close: async () => {} })

async function send(
  pages: readonly Page[],
  level: number,
  sink: FrameSink,
  hasher: PageHasher,
  pool: Pool<CompressJob, CompressResult>,
  onBarrier: (n: number) => Promise<void>,
) {
  const blocks = [{ id: 0, bytes: GUEST_BYTES }]
  const pipeline = createPipeline({
    sink,
    blocks,
    hasher,
    compression: 'zstd',
    level,
    workers: pool.size,
    batchPages: BATCH_PAGES,
    onBarrier,
    pool,
  })
  for (const { offset, kind, bytes } of pages) {
    if (kind === 'zero') pipeline.zero(0, offset)
    else pipeline.page(0, offset, bytes)
    if (pipeline.saturated) await pipeline.drained()
  }
  await pipeline.finish()
  return pipeline.stats()
}

/**
 * Whole paths with one worker at each side: the source alone, then source to target, at a low level and at the initial
 * level.
 */
async function benchWhole(pages: readonly Page[], hasher: PageHasher, region: MemoryRegion, ms: number): Promise<BenchStage[]> {
  const source = createThreadPool<CompressJob, CompressResult>(1, { role: 'compress' })
  const target = createThreadPool<ApplyJob, ApplyResult>(1, { role: 'apply', regions: [region] })
  const stages: BenchStage[] = []
  try {
    for (const level of [-5, 1]) {
      const nowhere: FrameSink = { streams: 1, send: async () => {} }
      const alone = await rateOf(ms, () => send(pages, level, nowhere, hasher, keepOpen(source), async () => {}))
      stages.push({ stage: `source, whole (${level})`, guestMBPerSecond: alone.perSecond, note: `hash to sink; ${alone.note}` })
      const both = await rateOf(ms, async () => {
        const applier = createApplier({ streams: 1, memory: [region], workers: 1, pool: keepOpen(target) })
        // As on a network: a barrier is sent at once, and the data after it waits until the target continues to read.
        let passed = Promise.resolve()
        const sink: FrameSink = {
          streams: 1,
          async send(stream, type, payload) {
            await passed
            if (type === FRAME.BATCH) await applier.batch(stream, payload)
            else passed = applier.barrier(stream, decodeBarrier(payload))
          },
        }
        const stats = await send(pages, level, sink, hasher, keepOpen(source), n => applier.barrier('skeleton', n))
        await applier.finish()
        return stats
      })
      stages.push({ stage: `source to target (${level})`, guestMBPerSecond: both.perSecond, note: `hash to memory; ${both.note}` })
    }
    return stages
  } finally {
    await Promise.all([source.close(), target.close()])
  }
}

async function rateOf(ms: number, body: () => Promise<PipelineStats>): Promise<{ perSecond: number; note: string }> {
  await body()
  const started = performance.now()
  const cpu = process.cpuUsage()
  let runs = 0
  let stats: PipelineStats
  do {
    stats = await body()
    runs++
  } while (performance.now() - started < ms)
  const { user, system } = process.cpuUsage(cpu)
  const megabytes = (runs * GUEST_BYTES) / 1e6
  const perCpuSecond = megabytes / ((user + system) / 1e6)
  const note = `${perCpuSecond.toFixed(0)} MB per CPU second, final level ${stats.level}, guest / wire ${(stats.guestBytes / stats.bytesOut).toFixed(2)}`
  return { perSecond: megabytes / ((performance.now() - started) / 1e3), note }
}

/** The slowest stage of a page's path, at the default level of the pipeline. */
function limitOf(stages: readonly BenchStage[]): string {
  const way = stages.filter(({ stage }) => !stage.includes('source') && (!stage.startsWith('compress') || stage === 'compress 1'))
  const slowest = way.reduce((least, stage) => (stage.guestMBPerSecond < least.guestMBPerSecond ? stage : least))
  return `${slowest.stage} (${slowest.guestMBPerSecond.toFixed(0)} MB/s)`
}

/** Runs all stages for about `seconds` in total; prints a table, or JSON. */
export async function benchPipeline({ seconds, json }: { seconds: number; json: boolean }): Promise<BenchResult> {
  await loadSodium()
  const zstd = await loadZstd()
  const hasher = createPageHasher(new Uint8Array(32).fill(9))
  const pages = createGuest(1)
  const ms = (seconds * 1000) / 14
  const folder = mkdtempSync(join(statSync('/dev/shm', { throwIfNoEntry: false })?.isDirectory() ? '/dev/shm' : tmpdir(), 'godwit-bench-'))
  const fd = openSync(join(folder, 'memory'), 'w+')
  try {
    ftruncateSync(fd, GUEST_BYTES)
    const region = { block: 0, fd, bytes: GUEST_BYTES, offset: 0 }
    const batches = planGuest(pages, hasher, true)
    const payloads = compressed(zstd, batches, 1)
    const stages = [
      benchParse(pages, ms),
      ...benchClassify(pages, hasher, ms),
      ...benchCompress(zstd, batches, ms),
      ...benchRecords(payloads, ms),
      ...benchWrite(zstd, batches, payloads, region, ms),
      ...(await benchWhole(pages, hasher, region, 2 * ms)),
    ]
    const result = { guestBytes: GUEST_BYTES, stages, limit: limitOf(stages) }
    print(result, json)
    return result
  } finally {
    closeSync(fd)
    rmSync(folder, { recursive: true })
  }
}

function print(result: BenchResult, json: boolean): void {
  if (json) {
    console.log(JSON.stringify(result))
    return
  }
  for (const { stage, guestMBPerSecond, note } of result.stages)
    console.log(stage.padEnd(26), `${guestMBPerSecond.toFixed(0)} MB/s`.padStart(10), '', note)
  console.log(`the slowest stage is ${result.limit}`)
}

if (process.argv[1] === fileURLToPath(import.meta.url))
  await runScript('Usage: node bin/run.js bench/pipeline.ts [--json]', async () => {
    const { values } = readArguments({ options: { json: { type: 'boolean', default: false } } })
    await benchPipeline({ seconds: 10, json: values.json })
  })
