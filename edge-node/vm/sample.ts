// What a running VM's memory is like, before a migration. Enters: its QEMU, its memory (a memfd). Leaves: how fast it
// is rewritten, how much is zero, how much is there twice, and what compression makes of the rest.
// Always holds: memory is only read, and at most SAMPLE_PAGES of it; a place of the memfd that was never written stays
// a hole.

import { createHash } from 'node:crypto'
import { closeSync, readSync } from 'node:fs'
import { sleep, within } from '../../ops/deadline.ts'
import { PAGE_BYTES } from '../../wire/types.ts'
import { MIB } from '../../wire/units.ts'
import { loadZstd } from '../pages/compress.ts'
import type { Zstd } from '../pages/zstd.ts'
import type { QmpClient } from '../qmp/client.ts'
import type { RunningVm } from './machine.ts'

export type MemorySample = {
  dirtyBytesPerSecond: number
  zeroShare: number
  /** Pages that another one in the sample equals: a lower bound. */
  duplicateShare: number
  /** By zstd 1 in pieces of RUN_PAGES. */
  compressedShare: number
}

const SAMPLE_PAGES = 4096
const RUN_PAGES = 16
const CALC_SECONDS = 1
const CALC_PAGES_PER_GIB = 4096
const CALC_TIMEOUT_MS = 15_000
const POLL_MS = 100

/** Takes about a second. QEMU_*. */
export async function measureMemory(vm: RunningVm): Promise<MemorySample> {
  const zstd = await loadZstd()
  const [dirtyBytesPerSecond, sample] = await Promise.all([
    measureDirtyRate(vm.qmp),
    vm.memoryFd().then(fd => sampleMemory(zstd, fd, vm.memoryBytes)),
  ])
  return { dirtyBytesPerSecond, ...sample }
}

/**
 * Hashes of some pages, a second apart (QEMU's calc-dirty-rate, page-sampling: it needs no KVM). In steps of 1 MiB/s.
 */
export async function measureDirtyRate(qmp: QmpClient, signal?: AbortSignal): Promise<number> {
  const ask = { 'calc-time': CALC_SECONDS, mode: 'page-sampling', 'sample-pages': CALC_PAGES_PER_GIB }
  await qmp.execute('calc-dirty-rate', ask).catch(async error => {
    // Somebody else's measurement is under way: its figure is as good.
    if ((await qmp.execute<{ status?: string }>('query-dirty-rate')).status !== 'measuring') throw error
  })
  const measured = async () => {
    for (;;) {
      await sleep(POLL_MS, signal)
      const answer = await qmp.execute<{ status?: string; 'dirty-rate'?: number }>('query-dirty-rate')
      if (answer.status === 'measured') return Math.max(0, answer['dirty-rate'] ?? 0) * MIB
    }
  }
  return await within(measured(), { ms: CALC_TIMEOUT_MS, what: "QEMU's measuring of the dirty rate", code: 'QEMU_TIMEOUT', signal })
}

/** Reads runs of pages spread evenly over memory. Closes `fd`. */
export function sampleMemory(zstd: Zstd, fd: number, memoryBytes: number): Omit<MemorySample, 'dirtyBytesPerSecond'> {
  const run = Buffer.alloc(RUN_PAGES * PAGE_BYTES)
  const zero = Buffer.alloc(PAGE_BYTES)
  const runs = Math.max(1, Math.min(SAMPLE_PAGES / RUN_PAGES, Math.floor(memoryBytes / run.length)))
  const seen = new Set<string>()
  const counts = { pages: 0, zero: 0, duplicate: 0, content: 0, compressed: 0 }
  try {
    for (let i = 0; i < runs; i++) {
      const at = Math.floor((i * (memoryBytes - run.length)) / Math.max(1, runs - 1) / PAGE_BYTES) * PAGE_BYTES
      const bytes = readSync(fd, run, 0, run.length, at)
      const content: Buffer[] = []
      for (let page = 0; page + PAGE_BYTES <= bytes; page += PAGE_BYTES) {
        const each = run.subarray(page, page + PAGE_BYTES)
        counts.pages++
        if (each.equals(zero)) counts.zero++
        else if (isKnown(seen, each)) counts.duplicate++
        else content.push(each)
      }
      if (content.length === 0) continue
      const all = Buffer.concat(content)
      counts.content += all.length
      counts.compressed += Math.min(all.length, zstd.compress(all, 1).length)
    }
  } finally {
    closeSync(fd)
  }
  const share = (part: number, of: number) => (of === 0 ? 0 : part / of)
  return {
    zeroShare: share(counts.zero, counts.pages),
    duplicateShare: share(counts.duplicate, counts.pages),
    compressedShare: counts.content === 0 ? 1 : counts.compressed / counts.content,
  }
}

function isKnown(seen: Set<string>, page: Uint8Array): boolean {
  const hash = createHash('sha1').update(page).digest('base64')
  if (seen.has(hash)) return true
  seen.add(hash)
  return false
}
