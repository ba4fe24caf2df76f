// The specification of the benchmark's VM. Pure.
import { guestAppend } from '../../guest/image.ts'
import { toYaml } from '../../ops/yaml.ts'
import { type Cell, GUEST_MEMORY_BYTES, type GuestKind, guestOptionsOf } from './cells.ts'

export const BENCH_VM = 'vm'

export const specOf = (guest: GuestKind, cell: Cell): string =>
  toYaml({
    name: BENCH_VM,
    memory: `${GUEST_MEMORY_BYTES / 1024 / 1024}MiB`,
    kernel: 'vmlinuz',
    initrd: 'initrd.img',
    accelerator: 'tcg',
    append: guestAppend(guestOptionsOf(guest, cell)),
  })
