// A lower bound of the bytes: `zstd -19 --long` over the distinct pages of the guest's memory, plus rewriting. Enters:
// cells and guests. Leaves: megabytes. Always holds: measured once for each content (fill, mix) and stored; the figure
// is for this guest's memory at rest, booted without a migration.

import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { PAGE_BYTES } from '../../wire/types.ts'
import { type Cell, fillBytesOf, GUEST_MEMORY_BYTES, GUESTS, type GuestKind } from './cells.ts'
import { createOracle, memoryPath } from './compress-distinct.ts'
import type { Row } from './summary.ts'

const FILE = fileURLToPath(new URL('../../.cache/bench-wan/oracle.json', import.meta.url))

type Known = Record<string, { compressedBytes: number; distinctBytes: number }>
type Oracle = (cell: Cell, guest: string, rows: readonly Row[]) => number | undefined

const keyOf = (cell: Cell, guest: GuestKind): string => `${fillBytesOf(cell)} ${guest.options.mix?.join('/')}`

/** `isMeasured`: boot and compress unknown contents. */
export async function oracleOf({
  isMeasured,
  cells,
  guests,
}: {
  isMeasured: boolean
  cells: Cell[]
  guests: GuestKind[]
}): Promise<Oracle> {
  const known: Known = existsSync(FILE) ? (JSON.parse(readFileSync(FILE, 'utf8')) as Known) : {}
  if (isMeasured) {
    for (const cell of cells) {
      for (const guest of guests) {
        if (known[keyOf(cell, guest)]) continue
        known[keyOf(cell, guest)] = await measure(cell, guest)
        mkdirSync(dirname(FILE), { recursive: true })
        writeFileSync(FILE, JSON.stringify(known, undefined, 1))
      }
    }
  }
  return (cell, name, rows) => {
    const guest = GUESTS.find(item => item.name === name)
    const found = guest && known[keyOf(cell, guest)]
    const ours = rows.find(row => row.cell === cell.name && row.guest === name && row.variant === 'godwit')
    if (!guest || !found || !ours?.totalMs) return undefined
    const rewritten = (guest.dirtyBytesPerSecond((cell.megabits * 1e6) / 8) * ours.totalMs.median) / 1000
    return (found.compressedBytes + rewritten * (found.compressedBytes / found.distinctBytes)) / 1e6
  }
}

async function measure(cell: Cell, guest: GuestKind): Promise<Known[string]> {
  const { bootAlone } = await import('./boot-alone.ts')
  const dir = await mkdtemp(join(tmpdir(), 'gwb-oracle-'))
  try {
    await using vm = await bootAlone(dir, cell, guest)
    return await compressMemory(await memoryPath(vm.pid))
  } finally {
    await rm(dir, { recursive: true, force: true })
  }
}

async function compressMemory(path: string): Promise<Known[string]> {
  const oracle = createOracle()
  await oracle.addFile(path, GUEST_MEMORY_BYTES, PAGE_BYTES)
  return await oracle.end()
}
