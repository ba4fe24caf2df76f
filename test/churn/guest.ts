// The guest of the churn: a boot sector that counts timer ticks and sleeps in between, so that many of it need next to
// no processor; 12 MiB of random pages beside it make its migration a few hundred records long. Whether it runs, and
// whether its memory is whole, is read from its memory, not from what an agent reports.

import { randomFillSync } from 'node:crypto'
import { closeSync, readSync, writeSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { bootSectorDisk } from '../../edge-node/vm/accelerators.ts'
import { isAlive, killProcess, openMemoryFd } from '../../edge-node/vm/process.ts'
import { readProcessFile } from '../../edge-node/vm/runtime-folder.ts'
import { eventually } from '../../ops/deadline.ts'
import { toYaml } from '../../ops/yaml.ts'
import { MIB } from '../../wire/units.ts'
import type { LabSite } from '../support/lab-site.ts'

const MEMORY_MIB = 32
/** xor ax,ax; mov ds,ax; sti; then for ever: hlt; inc dword [0x8000]. */
const CODE = Uint8Array.of(0x31, 0xc0, 0x8e, 0xd8, 0xfb, 0xf4, 0x66, 0xff, 0x06, 0x00, 0x80, 0xeb, 0xf8)
const COUNTER_AT = 0x8000
const FILL_AT = 8 * MIB
const COUNTS_MS = 60_000

export type ChurnGuest = {
  readonly name: string
  /** Starts it at a site (again) and fills its memory. */
  boot(site: LabSite): Promise<void>
  /** Throws when it does not count at this site, or its random pages have changed. */
  assertSound(site: LabSite): Promise<void>
  /** kill -9 of its QEMU at a site; false where there is none. */
  kill(site: LabSite): Promise<boolean>
}

/** Before the first guest: a disk that is written to while a VM has it is another disk. */
export async function writeDisks(sites: LabSite[]): Promise<void> {
  for (const { imagesDir } of sites) await writeFile(join(imagesDir, 'count.img'), bootSectorDisk(CODE))
}

export async function createGuest(name: string, first: LabSite): Promise<ChurnGuest> {
  const disk = { file: 'count.img', mode: 'readonly', format: 'raw' }
  const fields = { name, memory: `${MEMORY_MIB}MiB`, machine: 'pc-i440fx-9.0', accelerator: 'tcg', disks: [disk], serial: false }
  await first.api('POST', '/v1/vms', { spec: toYaml(fields) })
  const fill = randomFillSync(Buffer.alloc(12 * MIB))
  const identity = async (site: LabSite) => (await readProcessFile(join(site.dir, 'state', 'vms', name)).catch(() => undefined))?.identity
  const withMemory = async <T>(site: LabSite, use: (fd: number) => T): Promise<T> => {
    const qemu = await identity(site)
    if (!qemu) throw new Error(`${name} has no QEMU at ${site.name}`)
    const fd = await openMemoryFd(qemu, MEMORY_MIB * MIB)
    try {
      return use(fd)
    } finally {
      closeSync(fd)
    }
  }
  const count = (site: LabSite) =>
    withMemory(site, fd => {
      const bytes = Buffer.alloc(4)
      readSync(fd, bytes, 0, 4, COUNTER_AT)
      return bytes.readUInt32LE(0)
    })
  const counting = async (site: LabSite) => {
    const before = await count(site)
    await eventually(async () => ((await count(site)) === before ? undefined : true), {
      ms: COUNTS_MS,
      what: `${name} counts at ${site.name}`,
    })
  }
  return {
    name,
    async boot(site) {
      await site.api('POST', `/v1/vms/${name}/start`, {})
      await counting(site)
      await withMemory(site, fd => writeSync(fd, fill, 0, fill.length, FILL_AT))
    },
    async assertSound(site) {
      await counting(site)
      const found = Buffer.alloc(fill.length)
      await withMemory(site, fd => readSync(fd, found, 0, found.length, FILL_AT))
      if (!found.equals(fill)) throw new Error(`${name} at ${site.name}: its memory is not what it was`)
    },
    async kill(site) {
      const qemu = await identity(site)
      if (!qemu || !isAlive(qemu)) return false
      killProcess(qemu)
      return true
    },
  }
}
