// Whatever is chosen of compression, level, batch size, memory for deltas, streams: the target holds the guest at every
// barrier. Over seeds, with memory like a real guest's, real hashes and real memory files; options change while it
// runs. Every batch of every other seed arrives twice, as after a break of the link.
import { createPageHasher } from '../../../crypto/channel/page-hash.ts'
import { loadSodium } from '../../../crypto/sodium.ts'
import { createApplier } from '../../../edge-node/pages/apply.ts'
import { decodeBarrier } from '../../../edge-node/pages/batch.ts'
import { loadZstd } from '../../../edge-node/pages/compress.ts'
import { createApplyPerformer } from '../../../edge-node/pages/perform.ts'
import { createPipeline, type FrameSink } from '../../../edge-node/pages/pipeline.ts'
import { createInlinePool } from '../../../edge-node/pages/pool.ts'
import { FRAME } from '../../../wire/types.ts'
import { assert, suite } from '../../support/suite.ts'
import { ramMemory, regionsOf, seeded } from './support.ts'

const test = suite('pages: compliance')
await loadSodium()
await loadZstd()
const hasher = createPageHasher(new Uint8Array(32).fill(3))
const PAGES = 96
const BLOCKS = [{ id: 0, bytes: PAGES * 4096 }]
const SEEDS = 60

type Guest = { bytes: Uint8Array; page(i: number): Uint8Array }

function createGuest(random: () => number): Guest {
  const bytes = new Uint8Array(PAGES * 4096)
  const words = ['pointer', 'table', 'the', 'kernel', 'of', 'buffer', '\0\0\0\0', 'inode']
  const page = (i: number) => bytes.subarray(i * 4096, (i + 1) * 4096)
  for (let i = 0; i < PAGES; i++) {
    const kind = random()
    if (kind < 0.2) continue
    if (kind < 0.5) for (let at = 0; at < 4096; at++) page(i)[at] = random() * 256
    else Buffer.from(page(i).buffer, i * 4096, 4096).fill(Array.from({ length: 40 }, () => words[Math.floor(random() * 8)]).join(' '))
  }
  return { bytes, page }
}

/** What a guest does to a page between two rounds. */
function rewrite({ page }: Guest, i: number, random: () => number): void {
  const bytes = page(i)
  const below = (n: number) => Math.floor(random() * n)
  const kind = random()
  if (kind < 0.35) bytes[8]!++
  else if (kind < 0.6)
    for (let n = below(12); n >= 0; n--) new DataView(bytes.buffer, bytes.byteOffset).setUint32(4 * below(1023), below(2 ** 32))
  else if (kind < 0.7) bytes.set(page(below(PAGES)))
  else if (kind < 0.8) bytes.fill(0)
  else if (kind < 0.9) bytes.copyWithin(below(2000), below(2000), 2000 + below(2000))
  else for (let at = 0; at < 4096; at++) bytes[at] = below(256)
}

async function migrate(seed: number) {
  const random = seeded(seed)
  const below = (n: number) => Math.floor(random() * n)
  const guest = createGuest(random)
  const memory = ramMemory(BLOCKS)
  memory.bytes.get(0)!.fill(170)
  const streams = 1 + below(3)
  const twice = seed % 2 === 0
  const applier = createApplier({ streams, memory: regionsOf(BLOCKS), workers: 0, pool: createInlinePool(createApplyPerformer(memory)) })
  const sink: FrameSink = {
    streams,
    async send(stream, type, payload) {
      if (type === FRAME.BARRIER) return void applier.barrier(stream, decodeBarrier(payload)).catch(() => {})
      const copy = payload.slice()
      await applier.batch(stream, copy)
      if (twice) await applier.batch(stream, copy)
    },
  }
  const pipeline = createPipeline({
    sink,
    blocks: BLOCKS,
    hasher,
    compression: seed % 5 === 0 ? 'off' : 'zstd',
    level: [-7, -1, 1, 3, 9, 19][below(6)]!,
    workers: 0,
    batchPages: [1, 7, 64, 256][below(4)]!,
    deltaBudgetBytes: [0, 8, 40, PAGES][below(4)]! * 4096,
    references: random() < 0.8,
    onBarrier: n => applier.barrier('skeleton', n),
  })
  for (let round = 0; round < 6; round++) {
    for (let i = 0; i < PAGES; i++) {
      if (round > 0 && random() < 0.4) continue
      if (round > 0) rewrite(guest, i, random)
      pipeline.page(0, i * 4096, guest.page(i).slice())
      if (random() < 0.02) pipeline.setLevel(random() < 0.3 ? 'off' : 1 + below(9))
      if (random() < 0.03) pipeline.setBatching({ pages: 2 ** below(9), batchesMax: 1 + below(12) })
      if (pipeline.saturated) await pipeline.drained()
      if (random() < 0.05) await pipeline.barrier()
    }
    await pipeline.barrier()
    // A page that was not sent since it changed is not the pipeline's: rewrite() copies from pages but changes only the
    // one that is sent.
    assert.is(Buffer.compare(memory.bytes.get(0)!, guest.bytes), 0, `seed ${seed}, round ${round}`)
  }
  await pipeline.finish()
  await applier.finish()
  return pipeline.stats()
}

test(
  'guest memory is the same at every barrier, under every option, and when batches come twice',
  async () => {
    let deltas = 0
    for (let seed = 1; seed <= SEEDS; seed++) deltas += (await migrate(seed)).pages.delta
    assert.ok(deltas > SEEDS * 20, `${deltas} deltas`)
  },
  { ms: 120_000 },
)

test.run()
