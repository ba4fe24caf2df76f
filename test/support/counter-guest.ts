// The smallest guest that can be watched: a boot sector that counts in memory for ever, with random pages beside it so
// that a migration of it is some hundred records long. Enters: a lab. Leaves: its VM at a site. Always holds: whether
// it runs, and whether its memory is whole, is read from the guest's own memory, not from what anybody says.

import { randomFillSync } from 'node:crypto'
import { closeSync, readSync, writeSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { bootSectorDisk } from '../../edge-node/vm/accelerators.ts'
import { eventually } from '../../ops/deadline.ts'
import { MIB } from '../../wire/units.ts'
import type { Lab } from './lab.ts'
import { assert } from './suite.ts'

/** Counts in the u32 at 0x8000, for ever. */
const CODE = Uint8Array.of(0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x66, 0xff, 0x06, 0x00, 0x80, 0xeb, 0xf9)
const COUNTER_AT = 0x8000
const FILL_AT = 8 * MIB

export type CounterGuest = {
  readonly name: string
  readonly epoch: () => number
  /**
   * It counts at this site, at this epoch, with the random pages it had; nothing of it is at any other site of the lab.
   */
  assertRunsOnlyAt(site: string, epoch: number): Promise<void>
  /** How many sites' QEMUs execute it now. */
  copies(): Promise<number>
}

export async function startCounter(lab: Lab, siteName: string, { name = 'counter', fillMiB = 12 } = {}): Promise<CounterGuest> {
  for (const site of lab.sites()) await writeFile(join(site.imagesDir, 'boot.img'), bootSectorDisk(CODE))
  const site = lab.site(siteName)
  const spec = `name: ${name}\nmemory: 32MiB\nmachine: pc-i440fx-9.0\naccelerator: tcg\ndisks: [{ file: boot.img, mode: readonly, format: raw }]\nserial: false\n`
  await site.api('POST', '/v1/vms', { spec })
  await site.api('POST', `/v1/vms/${name}/start`, {})
  const fill = randomFillSync(Buffer.alloc(fillMiB * MIB))
  await counting(lab, siteName, name)
  await withMemory(lab, siteName, name, fd => writeSync(fd, fill, 0, fill.length, FILL_AT))

  const running = async (at: string): Promise<boolean> => {
    const vm = lab
      .site(at)
      .node.registry.list()
      .find(each => each.name === name)
    if (!vm) return false
    try {
      return (await lab.site(at).node.registry.machine(name).commands.queryStatus()).running
    } catch {
      return false // it has no QEMU, or its QEMU ends while it is asked
    }
  }
  const copies = async () => (await Promise.all(lab.sites().map(each => running(each.name)))).filter(Boolean).length
  return {
    name,
    copies,
    epoch: () => lab.site(siteName).node.registry.get(name).epoch,
    async assertRunsOnlyAt(at, epoch) {
      await eventually(() => (lab.sites().every(each => each.name === at || each.node.registry.list().length === 0) ? true : undefined), {
        ms: 10_000,
        what: `nothing of ${name} but at ${at}`,
      })
      const { state, epoch: now } = lab.site(at).node.registry.get(name)
      assert.equal({ state, epoch: now, copies: await copies() }, { state: 'running', epoch, copies: 1 }, lab.logTail())
      await counting(lab, at, name)
      const found = Buffer.alloc(fill.length)
      await withMemory(lab, at, name, fd => readSync(fd, found, 0, found.length, FILL_AT))
      assert.ok(found.equals(fill), 'its memory is what it was')
    },
  }
}

async function withMemory<T>(lab: Lab, site: string, name: string, use: (fd: number) => T): Promise<T> {
  const fd = await lab.site(site).node.registry.machine(name).memoryFd()
  try {
    return use(fd)
  } finally {
    closeSync(fd)
  }
}

/** Resolves when the counter has moved. */
async function counting(lab: Lab, site: string, name: string): Promise<void> {
  const read = () =>
    withMemory(lab, site, name, fd => {
      const bytes = Buffer.alloc(4)
      readSync(fd, bytes, 0, 4, COUNTER_AT)
      return bytes.readUInt32LE(0)
    })
  const before = await read()
  await eventually(async () => ((await read()) === before ? undefined : true), { ms: 15_000, what: `${name} counts at ${site}` })
}
