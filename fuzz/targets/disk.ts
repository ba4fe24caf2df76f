// edge-node/disks/batch.ts, receiver.ts: DISK payloads into two disks: raw, correctly compressed, or with malicious
// zstd frames.
import zlib from 'node:zlib'
import { concatBytes } from '../../crypto/bytes.ts'
import { DISK_HEADER_BYTES, type DiskRun, readDiskBody, readDiskHeader, writeDiskBatch } from '../../edge-node/disks/batch.ts'
import { CHUNK_BYTES } from '../../edge-node/disks/chunk-tree.ts'
import { Leaves } from '../../edge-node/disks/leaves.ts'
import { createDiskReceiver } from '../../edge-node/disks/receiver.ts'
import { inflate, loadZstd } from '../../edge-node/pages/compress.ts'
import type { Zstd } from '../../edge-node/pages/zstd.ts'
import { Choices, demand, sameBytes, type Target } from '../target.ts'

/** The second disk ends within a chunk. */
const SIZES = [40 * CHUNK_BYTES, 2 * CHUNK_BYTES + 512]
let zstd: Zstd

/** A disk that detects writes outside its range. */
function fuzzDisk(sizeBytes: number) {
  const check = (offset: number, length: number) =>
    demand(
      Number.isInteger(offset) && offset >= 0 && length >= 0 && offset + length <= sizeBytes,
      `a disk has no ${length} bytes at ${offset}`,
    )
  const writer = {
    write: async (offset: number, bytes: Uint8Array) => check(offset, bytes.length),
    zero: async (offset: number, length: number) => check(offset, length),
    flush: async () => {},
  }
  return { sizeBytes, writer, held: new Leaves(sizeBytes) }
}

function payload(disk: number, runs: DiskRun[], content: Uint8Array[]): Uint8Array {
  const out = new Uint8Array(DISK_HEADER_BYTES + 8 * runs.length + content.reduce((sum, { length }) => sum + length, 0))
  writeDiskBatch(out, disk, runs, content)
  return out
}

/** The body, correctly compressed. */
function compressed(raw: Uint8Array): Uint8Array {
  const body = raw.subarray(DISK_HEADER_BYTES)
  const out = concatBytes(raw.subarray(0, DISK_HEADER_BYTES), new Uint8Array(zlib.zstdCompressSync(body, { pledgedSrcSize: body.length })))
  if (out.length > 1) out[1] = 2
  return out
}

const zeros = (first: number, count: number): DiskRun => ({ first, count, isZero: true })
const data = (first: number, count: number): DiskRun => ({ first, count, isZero: false })
const chunk = (fill: number, bytes = CHUNK_BYTES) => new Uint8Array(bytes).fill(fill)
const small = payload(0, [zeros(0, 2), zeros(5, 30)], [])
const end = payload(1, [zeros(0, 2), data(2, 1)], [chunk(7, 512)])
const whole = compressed(payload(0, [data(1, 2), zeros(4, 1)], [chunk(1), chunk(2)]))

/** Encoding what was decoded must give the same bytes: one payload has one encoding. */
function demandCanonical(raw: Uint8Array): void {
  const header = readDiskHeader(raw)
  const body = raw.subarray(DISK_HEADER_BYTES)
  const { runs, chunks } = readDiskBody(header, body, SIZES[header.disk]!)
  const again = payload(
    header.disk,
    runs,
    chunks.map(({ bytes }) => bytes),
  )
  demand(sameBytes(again, raw), 'one payload has two encodings')
}

export const disk: Target = {
  name: 'disk',
  what: 'edge-node/disks/batch.ts, receiver.ts: chunks of local disks',
  codes: ['FRAME_MALFORMED'],
  testRuns: 2000,
  bytesMax: 8 * 1024,
  memoryBytes: 8 * 1024 * 1024,
  words: [Uint8Array.of(0x28, 0xb5, 0x2f, 0xfd), Uint8Array.of(0x80, 0, 0, 1), Uint8Array.of(0, 0, 0, 39)],
  async setup() {
    zstd = await loadZstd()
  },
  seeds: () => [
    concatBytes(Uint8Array.of(0), small),
    concatBytes(Uint8Array.of(0), end),
    concatBytes(Uint8Array.of(0), whole),
    concatBytes(Uint8Array.of(1), small),
    concatBytes(Uint8Array.of(1), end),
  ],
  hostile: () => ({
    'the most runs': concatBytes(
      Uint8Array.of(0),
      payload(
        0,
        Array.from({ length: 20 }, (_, i) => zeros(2 * i, 1)),
        [],
      ),
    ),
  }),
  async run(input) {
    const choices = new Choices(input)
    const isPacked = choices.number(1) % 2 === 1
    const rest = choices.rest()
    const bytes = isPacked && rest.length >= DISK_HEADER_BYTES ? compressed(rest) : rest
    const disks = SIZES.map(fuzzDisk)
    const receiver = createDiskReceiver(disks, (frame, length) => inflate(zstd, frame, length))
    await receiver.apply(bytes)
    await receiver.flush()
    demand(receiver.writtenBytes <= 16 * CHUNK_BYTES, 'more bytes than a payload may carry')
    if (rest === bytes && rest[1] === 1) demandCanonical(rest)
  },
}
