// The savings of deltas: a guest rewrites memory in several ways; the rounds are sent with and without deltas, and the
// target's memory is compared with the guest's. Enters: nothing. Leaves: wire bytes of the rewritten pages and CPU time
// at the source, for each way of rewriting.
import { createPageHasher } from '../crypto/channel/page-hash.ts'
import { loadSodium } from '../crypto/sodium.ts'
import { createPipeline, type FrameSink } from '../edge-node/pages/pipeline.ts'
import { createRandom } from '../sim-network/random.ts'
import { PAGE_BYTES } from '../wire/types.ts'

const GUEST_PAGES = 4096
const ROUNDS = 6
/** Share of the guest that each round rewrites. */
const SHARE = 0.25

type Rewrite = (page: DataView, random: () => number) => void
const bytesOf = (page: DataView) => new Uint8Array(page.buffer, page.byteOffset, PAGE_BYTES)
const REWRITES: Record<string, Rewrite> = {
  'one counter in a page': page => page.setUint32(64, page.getUint32(64, true) + 1, true),
  'eight records of a page'(page, random) {
    for (let n = 0; n < 8; n++) page.setUint32(32 * Math.floor(random() * 128) + 24, random() * 2 ** 32, true)
  },
  'a counter in every record'(page) {
    for (let at = 24; at < PAGE_BYTES; at += 32) page.setUint32(at, page.getUint32(at, true) + 1, true)
  },
  'a tenth of a page, random'(page, random) {
    const from = Math.floor(random() * (PAGE_BYTES - 410))
    for (let at = from; at < from + 410; at++) page.setUint8(at, random() * 256)
  },
  'whole pages, random'(page, random) {
    for (let at = 0; at < PAGE_BYTES; at += 4) page.setUint32(at, random() * 2 ** 32)
  },
  'whole pages, alike'(page, random) {
    bytesOf(page).fill(0)
    for (let at = 0; at < PAGE_BYTES; at += 32) page.setUint32(at, random() * 1000, true)
  },
}

/** Records with pointers and small numbers, like structures in memory. */
function createGuest(random: () => number): Uint8Array {
  const guest = new Uint8Array(GUEST_PAGES * PAGE_BYTES)
  const view = new DataView(guest.buffer)
  for (let at = 0; at < guest.length; at += 32) {
    view.setUint32(at, random() * 2 ** 32, true)
    view.setUint32(at + 4, 0x7f3a, true)
    view.setUint16(at + 16, random() * 4096, true)
    view.setUint32(at + 24, random() * 100, true)
  }
  return guest
}

type DeltaResult = {
  rewriting: string
  deltas: boolean
  rewrittenBytes: number
  wireBytes: number
  classifyMs: number
  pagesDelta: number
}

async function run(rewriting: string, deltas: boolean): Promise<DeltaResult> {
  const random = createRandom(5).next
  const guest = createGuest(random)
  const sink: FrameSink = { streams: 1, send: async () => {} }
  const pipeline = createPipeline({
    sink,
    blocks: [{ id: 0, bytes: guest.length }],
    hasher: createPageHasher(new Uint8Array(32).fill(9)),
    compression: 'zstd',
    level: 1,
    workers: 1,
    ...(deltas ? {} : { deltaBudgetBytes: 0 }),
  })
  const feed = async (page: number) => {
    pipeline.page(0, page * PAGE_BYTES, guest.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES))
    if (pipeline.saturated) await pipeline.drained()
  }
  for (let page = 0; page < GUEST_PAGES; page++) await feed(page)
  await pipeline.barrier()
  const before = pipeline.stats()
  for (let round = 0; round < ROUNDS; round++) {
    for (let page = 0; page < GUEST_PAGES; page++) {
      if (random() >= SHARE) continue
      REWRITES[rewriting]!(new DataView(guest.buffer, page * PAGE_BYTES, PAGE_BYTES), random)
      await feed(page)
    }
    await pipeline.barrier()
  }
  const after = pipeline.stats()
  await pipeline.finish()
  return {
    rewriting,
    deltas,
    rewrittenBytes: after.guestBytes - before.guestBytes,
    wireBytes: after.bytesOut - before.bytesOut,
    classifyMs: Math.round(after.busyMs.classify - before.busyMs.classify),
    pagesDelta: after.pages.delta,
  }
}

/** Prints a table; it compares bytes, so the machine may be busy. */
export async function benchDelta(): Promise<DeltaResult[]> {
  await loadSodium()
  const results: DeltaResult[] = []
  console.log(`\nwire bytes of rewritten pages, zstd 1, ${ROUNDS} rounds of ${Math.round(SHARE * 100)} % of ${GUEST_PAGES / 256} MiB`)
  for (const rewriting of Object.keys(REWRITES)) {
    const without = await run(rewriting, false)
    const withDeltas = await run(rewriting, true)
    results.push(without, withDeltas)
    const kib = (bytes: number) => `${(bytes / 1024).toFixed(0)} KiB`.padStart(10)
    console.log(
      `  ${rewriting.padEnd(28)} ${kib(without.rewrittenBytes)} rewritten, whole ${kib(without.wireBytes)}, as deltas ${kib(withDeltas.wireBytes)}`,
      ` (factor ${(without.wireBytes / withDeltas.wireBytes).toFixed(1)}; classify ${without.classifyMs} -> ${withDeltas.classifyMs} ms)`,
    )
  }
  return results
}
