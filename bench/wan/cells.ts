// The links and the guests of the benchmark. Pure. Enters: values of the command line. Leaves: link options, guest
// parameters. Always holds: every variant of a cell uses a link with the same options and seed.

import type { GuestOptions } from '../../guest/image.ts'
import { UsageError } from '../../ops/script.ts'
import type { LinkModelOptions } from '../../sim-network/link.ts'
import { MIB } from '../../wire/units.ts'

export type Cell = {
  name: string
  megabits: number
  rttMs: number
  lossRatio: number
  hasBlackout: boolean
  /** Both directions are equal. */
  link: LinkModelOptions
}

/** A queue of one bandwidth-delay product, at least 32 packets, as a well-provisioned router has. */
export function cellOf(name: string, megabits: number, rttMs: number, more: Partial<LinkModelOptions> = {}): Cell {
  const bitsPerSecond = megabits * 1e6
  const link = {
    rate: { bitsPerSecond },
    delayMs: rttMs / 2,
    queueBytes: Math.max(48_000, Math.round((bitsPerSecond / 8000) * rttMs)),
    mtuBytes: 1500,
    ...more,
  }
  const lossRatio = more.loss && 'ratio' in more.loss ? more.loss.ratio : 0
  return { name, megabits, rttMs, lossRatio, hasBlackout: more.blackouts !== undefined, link }
}

/** Loss is in each direction. The blackout begins 4 s after the start of the migration and repeats every 20 s. */
export const CELLS: readonly Cell[] = [
  cellOf('10/50', 10, 50),
  cellOf('25/50', 25, 50),
  cellOf('100/20', 100, 20),
  cellOf('100/80', 100, 80),
  cellOf('50/40/blackout', 50, 40, { jitterMs: 5, blackouts: [{ startMs: 4000, durationMs: 1000, everyMs: 20_000 }] }),
  cellOf('200/150', 200, 150),
  cellOf('200/150/0.1%', 200, 150, { loss: { ratio: 0.001 } }),
  cellOf('200/150/1%', 200, 150, { loss: { ratio: 0.01 } }),
  cellOf('20/600/0.5%', 20, 600, { loss: { ratio: 0.005 } }),
  cellOf('1000/10', 1000, 10),
]

export type GuestKind = {
  name: string
  what: string
  /** Rate of rewriting, bytes a second, on a link of this rate. */
  dirtyBytesPerSecond(linkBytesPerSecond: number): number
  options: Omit<GuestOptions, 'fillBytes' | 'dirtyBytesPerSecond'>
}

const share = (part: number) => (linkBytesPerSecond: number) => Math.round(part * linkBytesPerSecond)
const MIXED = [20, 10, 45, 25] as const

/** All guests fill the same amount of memory; see fillBytesOf. */
export const GUESTS: readonly GuestKind[] = [
  {
    name: 'mixed',
    what: 'mixed content, 4 MB/s rewritten (at most 0.32 of the link), three of four in an eighth of the memory',
    dirtyBytesPerSecond: link => Math.min(4_000_000, Math.round(0.32 * link)),
    options: { mix: MIXED },
  },
  { name: 'idle', what: 'mixed content, nothing rewritten', dirtyBytesPerSecond: () => 0, options: { mix: MIXED } },
  {
    name: 'patches',
    what: 'mixed content, rewritten as `mixed`, but 64 bytes of a page at a time',
    dirtyBytesPerSecond: link => Math.min(4_000_000, Math.round(0.32 * link)),
    options: { mix: MIXED, patchBytes: 64 },
  },
  ...[0.25, 1].flatMap(part => [
    {
      name: `writer-${part}-text`,
      what: `compressible pages rewritten at ${part} of the link's rate`,
      dirtyBytesPerSecond: share(part),
      options: { mix: [10, 10, 80, 0] as const },
    },
    {
      name: `writer-${part}-random`,
      what: `random pages rewritten at ${part} of the link's rate`,
      dirtyBytesPerSecond: share(part),
      options: { mix: [10, 10, 0, 80] as const },
    },
  ]),
  {
    name: 'read-mostly',
    what: 'incompressible memory, mostly read',
    dirtyBytesPerSecond: () => 40_960,
    options: { mix: [10, 0, 0, 90], auditBytesPerSecond: 100 * MIB },
  },
]

export const GUEST_MEMORY_BYTES = 384 * MIB

/** 200 MB; 48 MB on links where 200 MB would take minutes. */
export const fillBytesOf = ({ megabits }: Cell): number => (megabits >= 50 ? 200_000_000 : 48_000_000)

export function guestOptionsOf(guest: GuestKind, cell: Cell): GuestOptions {
  const dirtyBytesPerSecond = guest.dirtyBytesPerSecond((cell.megabits * 1e6) / 8)
  return { auditBytesPerSecond: 20 * MIB, workMs: 100, seed: 11, ...guest.options, fillBytes: fillBytesOf(cell), dirtyBytesPerSecond }
}

/** The entries of a comma-separated list, in its order; a UsageError lists the known ones. */
export function choose<T extends { name: string }>(all: readonly T[], list: string | undefined, what: string): T[] {
  if (list === undefined) return [...all]
  return list.split(',').map(name => {
    const found = all.find(item => item.name === name)
    if (!found) throw new UsageError(`unknown ${what} '${name}'; known are ${all.map(item => item.name).join(', ')}`)
    return found
  })
}
