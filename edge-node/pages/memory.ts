// The guest's memory at the target, and what is done to it. Enters: batch payloads from the peer, then references.
// Leaves: written pages.
// Always holds: a batch is decoded and checked whole before its first byte is written; adjacent pages are one write; a
// page that is zero already is not written (a fresh memfd stays sparse).
import { readSync, writeSync } from 'node:fs'
import { GodwitError } from '../../wire/errors.ts'
import { PAGE_BYTES } from '../../wire/types.ts'
import { blockOf, PageMap, pageIndexOf } from './address.ts'
import { type BatchDeltas, readBatchBody } from './batch.ts'
import type { BatchBlocks } from './batch-blocks.ts'
import { openBatch } from './compress.ts'
import { type PageHasher, PROOF_BYTES, proofOf } from './hasher.ts'
import { applyPieces } from './patch.ts'
import { VarintReader } from './varint.ts'
import type { Zstd } from './zstd.ts'

/** Memory by page address. `bytes` never crosses the end of a block (addresses are checked before they come here). */
export type GuestMemory = {
  readonly map: PageMap
  read(address: number, bytes: Uint8Array): void
  write(address: number, bytes: Uint8Array): void
}

/**
 * A block of guest memory in a file: `bytes` from `offset` of an open file (a memfd; read and write). Threads of a
 * process share descriptors.
 */
export type MemoryRegion = { block: number; fd: number; bytes: number; offset: number }

export function createFileMemory(regions: readonly MemoryRegion[]): GuestMemory {
  const byBlock = new Map(regions.map(region => [region.block, region]))
  const placeOf = (address: number) => {
    const { fd, offset } = byBlock.get(blockOf(address))!
    return { fd, position: offset + pageIndexOf(address) * PAGE_BYTES }
  }
  return {
    map: new PageMap(regions.map(({ block, bytes }) => ({ id: block, bytes }))),
    read(address, bytes) {
      const { fd, position } = placeOf(address)
      for (let done = 0; done < bytes.length; ) {
        const count = readSync(fd, bytes, done, bytes.length - done, position + done)
        if (count === 0) throw new Error(`guest memory ends at ${position + done}`)
        done += count
      }
    },
    write(address, bytes) {
      const { fd, position } = placeOf(address)
      for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done, bytes.length - done, position + done)
    },
  }
}

/** `bytes` of `input` are a BATCH payload; the buffer comes back with the result. */
type BatchJob = { kind: 'batch'; input: ArrayBuffer; bytes: number }
export type BatchResult = {
  input: ArrayBuffer
  /** [address, holder's address]*, to be resolved at the barrier. */
  references: Float64Array<ArrayBuffer>
  /** Pages that are blocks of disks, to be read there and placed. */
  blocks: BatchBlocks | undefined
  pages: number
  deltas: number
  zeros: number
  /** Zero pages that had to be written. */
  zerosWritten: number
  bodyBytes: number
  decompressMs: number
  writeMs: number
}
type ResolveJob = { kind: 'resolve'; references: Float64Array<ArrayBuffer> }
export type ResolveResult = { busyMs: number }
/**
 * Pages read from disks: `content` has them in the order of their addresses, but for `plain`, which are still to be
 * read: [index, open file, offset]*.
 */
type PlaceJob = { kind: 'place'; content: ArrayBuffer; plain: Float64Array; addresses: Float64Array; proof: Uint8Array }
/** False: the content is not what the proof is of, and nothing was written. */
export type PlaceResult = { content: ArrayBuffer; isRight: boolean; busyMs: number }
export type ApplyJob = BatchJob | ResolveJob | PlaceJob
export type ApplyResult = BatchResult | ResolveResult | PlaceResult

/** Decodes a batch and writes its content and zeros. Throws FRAME_MALFORMED; then nothing of the batch was written. */
export function applyBatch(zstd: Zstd, memory: GuestMemory, { input, bytes }: BatchJob): BatchResult {
  const started = performance.now()
  const { header, body } = openBatch(zstd, new Uint8Array(input, 0, bytes))
  const { content, pages, zeroRuns, references, blocks, deltas } = readBatchBody(header, body, memory.map)
  const opened = performance.now()
  applyDeltas(memory, deltas)
  forEachRun(pages, (first, count) => memory.write(pages[first]!, content.subarray(first * PAGE_BYTES, (first + count) * PAGE_BYTES)))
  let zeros = 0
  let zerosWritten = 0
  for (let i = 0; i < zeroRuns.length; i += 2) {
    zeros += zeroRuns[i + 1]!
    zerosWritten += clear(memory, zeroRuns[i]!, zeroRuns[i + 1]!)
  }
  const done = performance.now()
  const counts = { pages: pages.length, deltas: deltas.addresses.length, zeros, zerosWritten, bodyBytes: header.bodyBytes }
  const later = { references: references as Float64Array<ArrayBuffer>, blocks: blocks && { ...blocks, proof: blocks.proof.slice() } }
  return { input, ...later, ...counts, decompressMs: opened - started, writeMs: done - opened }
}

/** At most this much is held for reading and writing at once, bytes. */
const CHUNK_PAGES = 64
const chunk = new Uint8Array(CHUNK_PAGES * PAGE_BYTES)
const zeroes = Buffer.alloc(CHUNK_PAGES * PAGE_BYTES)

/** Calls `run(index, count)` for each longest run of consecutive addresses. */
function forEachRun(addresses: Float64Array, run: (index: number, count: number) => void): void {
  for (let i = 0; i < addresses.length; ) {
    let count = 1
    while (addresses[i + count] === addresses[i]! + count) count++
    run(i, count)
    i += count
  }
}

/**
 * Mends pages in place. By the source's rules nothing else of this interval touches them, so they hold what the source
 * says they do.
 */
function applyDeltas(memory: GuestMemory, { addresses, bytes, places, literals }: BatchDeltas): void {
  let at = 0
  forEachRun(addresses, (index, count) => {
    for (let done = 0; done < count; done += CHUNK_PAGES) {
      const first = index + done
      const pages = Math.min(CHUNK_PAGES, count - done)
      const held = chunk.subarray(0, pages * PAGE_BYTES)
      memory.read(addresses[first]!, held)
      for (let i = 0; i < pages; i++) {
        const reader = new VarintReader(bytes, places[2 * (first + i)]!)
        at = applyPieces(reader, literals, at, held.subarray(i * PAGE_BYTES, (i + 1) * PAGE_BYTES))
      }
      memory.write(addresses[first]!, held)
    }
  })
}

/**
 * Makes pages zero that are not; gives how many were not. Reading a hole of a memfd does not fill it; writing zeros
 * would.
 */
function clear(memory: GuestMemory, first: number, pages: number): number {
  let written = 0
  for (let done = 0; done < pages; done += CHUNK_PAGES) {
    const count = Math.min(CHUNK_PAGES, pages - done)
    const bytes = chunk.subarray(0, count * PAGE_BYTES)
    memory.read(first + done, bytes)
    if (isZero(bytes)) continue
    for (let i = 0; i < count; i++) {
      if (isZero(bytes.subarray(i * PAGE_BYTES, (i + 1) * PAGE_BYTES))) continue
      memory.write(first + done + i, zeroes.subarray(0, PAGE_BYTES))
      written++
    }
  }
  return written
}

const isZero = (bytes: Uint8Array): boolean => zeroes.compare(bytes, 0, bytes.length, 0, bytes.length) === 0

function readPlain(pages: Uint8Array, plain: Float64Array): void {
  try {
    for (let i = 0; i < plain.length; i += 3) {
      const at = plain[i]! * PAGE_BYTES
      const bytes = readSync(plain[i + 1]!, pages, at, PAGE_BYTES, plain[i + 2]!)
      // Behind the end of an image its disk has zeros.
      if (bytes < PAGE_BYTES) pages.fill(0, at + bytes, at + PAGE_BYTES)
    }
  } catch (error) {
    throw new GodwitError('DISK_IO', 'an image cannot be read', { cause: error })
  }
}

/** Writes pages that were read from disks, where they are what the source means. DISK_IO. */
export function placePages(memory: GuestMemory, hasher: PageHasher, { content, plain, addresses, proof }: PlaceJob): PlaceResult {
  const started = performance.now()
  const pages = new Uint8Array(content)
  readPlain(pages, plain)
  const at = (i: number) => pages.subarray(i * PAGE_BYTES, (i + 1) * PAGE_BYTES)
  const hashes = new Uint8Array(addresses.length * PROOF_BYTES)
  for (let i = 0; i < addresses.length; i++) hasher.hash(at(i), hashes.subarray(i * PROOF_BYTES, (i + 1) * PROOF_BYTES))
  const isRight = Buffer.compare(proofOf(hasher, hashes), proof) === 0
  if (isRight)
    forEachRun(addresses, (first, count) =>
      memory.write(addresses[first]!, pages.subarray(first * PAGE_BYTES, (first + count) * PAGE_BYTES)),
    )
  return { content, isRight, busyMs: performance.now() - started }
}

/**
 * Gives each page the content of its holder. All content of the interval must have been written; then the order does
 * not matter.
 */
export function resolveReferences(memory: GuestMemory, { references }: ResolveJob): ResolveResult {
  const started = performance.now()
  const count = references.length / 2
  for (let i = 0; i < count; ) {
    const first = references[2 * i]!
    let run = 0
    do {
      readHolder(memory, references, i + run, run)
      run++
    } while (run < CHUNK_PAGES && i + run < count && references[2 * (i + run)] === first + run)
    memory.write(first, chunk.subarray(0, run * PAGE_BYTES))
    i += run
  }
  return { busyMs: performance.now() - started }
}

/**
 * The content of reference `index`'s holder into place `slot` of the chunk: read, or copied from the place before when
 * the holder is the same.
 */
function readHolder(memory: GuestMemory, references: Float64Array, index: number, slot: number): void {
  const holder = references[2 * index + 1]!
  const at = slot * PAGE_BYTES
  if (slot > 0 && holder === references[2 * index - 1]) chunk.copyWithin(at, at - PAGE_BYTES, at)
  else memory.read(holder, chunk.subarray(at, at + PAGE_BYTES))
}
