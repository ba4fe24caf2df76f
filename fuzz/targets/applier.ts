// edge-node/pages/apply.ts: batches and barriers of several streams in any order. Whatever the source sends, every wait
// ends with the applier.

import { concatBytes } from '../../crypto/bytes.ts'
import { createApplier } from '../../edge-node/pages/apply.ts'
import { decodeBarrier, encodeBarrier } from '../../edge-node/pages/batch.ts'
import { type PageHasher, PROOF_BYTES } from '../../edge-node/pages/hasher.ts'
import { createApplyPerformer } from '../../edge-node/pages/perform.ts'
import type { DiskBlocks } from '../../edge-node/pages/place.ts'
import { createInlinePool } from '../../edge-node/pages/pool.ts'
import { GodwitError } from '../../wire/errors.ts'
import { PAGE_BYTES } from '../../wire/types.ts'
import { attemptAsync, Choices, demand, type Target } from '../target.ts'
import { fuzzMemory, rawBatch } from './batch.ts'

const STREAMS = 2
const REGIONS = [
  { block: 0, fd: -1, bytes: 64 * PAGE_BYTES, offset: 0 },
  { block: 3, fd: -1, bytes: 16 * PAGE_BYTES, offset: 0 },
]
const step = (stream: number, isBarrier: boolean, payload: Uint8Array) =>
  concatBytes(Uint8Array.of((isBarrier ? 16 : 0) + stream, payload.length >> 8, payload.length & 255), payload)
const batches = [rawBatch({ zeros: [1, 2], references: [5, 6] }), rawBatch({ references: [1, 6, 7, 3 * 2 ** 32] })]
/** A disk of 16 blocks; no proof holds by chance. */
const disk: DiskBlocks = { has: place => place < 16, read: async () => new Float64Array(0) }
const proofHasher: PageHasher = { bytes: 16, hash: (page, out) => void out.fill(1 + (page[0] ?? 0)) }
const blocks: [number, number][] = [
  [3, 2],
  [4, 15],
]
const named = rawBatch({ zeros: [1], blocks })
/** With the proof of pages of zeros. */
const proven = named.slice()
proven.fill(1, proven.length - PROOF_BYTES)
const barrier = (n: number) => [0, 1, 2].map(stream => step(stream, true, encodeBarrier(n)))

export const applier: Target = {
  name: 'applier',
  what: 'edge-node/pages/apply.ts, place.ts: batches and barriers of several streams, in any order; pages from disks',
  codes: ['FRAME_MALFORMED', 'CONNECTION_LOST', 'DISK_MISMATCH'],
  testRuns: 1500,
  bytesMax: 4096,
  seeds: () => [
    concatBytes(step(0, false, batches[0]!), ...barrier(1), step(1, false, batches[1]!), ...barrier(2)),
    concatBytes(...barrier(1), step(1, false, batches[0]!)),
    concatBytes(step(0, false, named), ...barrier(1)),
    concatBytes(step(0, false, proven), ...barrier(1), step(1, false, batches[1]!), ...barrier(2)),
    concatBytes(step(0, true, encodeBarrier(1)), step(1, false, batches[0]!)),
  ],
  async run(input) {
    const choices = new Choices(input)
    const memory = fuzzMemory()
    const pool = createInlinePool(createApplyPerformer(memory, proofHasher))
    const disks = { blocks: disk, proofKey: new Uint8Array(32) }
    const target = createApplier({ streams: STREAMS, memory: REGIONS, workers: 0, disks, pool: pool as never })
    // Each stream is read in order, as its reader does: the next step begins after the previous one.
    const order = Array.from({ length: STREAMS + 1 }, () => Promise.resolve())
    const failures: unknown[] = []
    while (choices.left > 0) {
      const head = choices.number(1)
      const member = (head & 15) % (STREAMS + 1)
      const payload = choices.take(choices.number(2))
      const isBarrier = head >= 16 || member === STREAMS
      order[member] = order[member]!.then(() =>
        isBarrier ? target.barrier(member === STREAMS ? 'skeleton' : member, decodeBarrier(payload)) : target.batch(member, payload),
      )
      order[member]!.catch(error => failures.push(error))
    }
    for (let turn = 0; turn < 4; turn++) await new Promise<void>(resolve => setImmediate(resolve))
    const ended = await attemptAsync(() =>
      Promise.race([
        Promise.all(order),
        new Promise<never>((_, reject) => setImmediate(() => reject(new GodwitError('CONNECTION_LOST', 'streams wait for each other')))),
      ]),
    )
    const finished = ended.error ? ended : await attemptAsync(() => target.finish())
    await target.abort(new GodwitError('CONNECTION_LOST', 'given up'))
    await Promise.allSettled(order)
    for (const failure of failures) demand(failure instanceof GodwitError, `a stream fails with ${failure}`)
    if (finished.error) throw finished.error
  },
}
