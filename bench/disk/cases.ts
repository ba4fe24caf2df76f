// What bench:disk compares: links, guests, and what the target has before the first move. Pure. Enters: values of the
// command line. Leaves: links, VM specifications. Always holds: every mover gets the same disk content, the same
// command line of QEMU and a link with the same options.
import { guestAppend } from '../../guest/image.ts'
import { toYaml } from '../../ops/yaml.ts'
import { MIB } from '../../wire/units.ts'
import { CELLS, type Cell, cellOf, choose } from '../wan/cells.ts'
import { BENCH_VM } from '../wan/spec.ts'

export const DISK_CELLS: readonly Cell[] = [cellOf('100/40', 100, 40), ...choose(CELLS, '25/50,200/150/1%', 'cell')]

/** `nothing`: a blank disk at the target. `image`: the image that the disk stands on. */
export const BASES = [{ name: 'nothing' }, { name: 'image' }] as const
export type Base = (typeof BASES)[number]['name']

export const MOVERS = [{ name: 'godwit' }, { name: 'qemu' }] as const
export type MoverName = (typeof MOVERS)[number]['name']

/** Content of the small guest's disk before it starts, and the disk's size. */
export const CONTENT_BYTES = 64 * MIB
export const DISK_BYTES = 128 * MIB
export const MEMORY_BYTES = 256 * MIB
export const IMAGE = 'bench'

/** The guest rewrites the first 16 MiB of its disk once, and then parts of them all the time. */
const GUEST = {
  ...{ fillBytes: 64 * MIB, dirtyBytesPerSecond: MIB, auditBytesPerSecond: 8 * MIB, workMs: 1000, seed: 11 },
  ...{ diskBytes: 16 * MIB, diskBytesPerSecond: MIB / 8 },
}

export const specOf = (base: Base): string =>
  toYaml({
    ...{ name: BENCH_VM, memory: `${MEMORY_BYTES / MIB}MiB`, kernel: 'vmlinuz', initrd: 'initrd.img', accelerator: 'tcg' },
    append: guestAppend(GUEST),
    disks: [{ mode: 'local', size: `${DISK_BYTES / MIB}MiB`, format: 'qcow2', ...(base === 'image' ? { image: IMAGE } : {}) }],
  })
