// Memory that is on a local disk does not travel: the target reads it from its own copy of the disk.

import { spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { closeSync, readSync, writeSync } from 'node:fs'
import { rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { MIB } from '../../wire/units.ts'
import { beginSoon } from '../support/disk-scene.ts'
import { type Lab, labMissing, openLab } from '../support/lab.ts'
import { compareMemory } from '../support/lab-guest.ts'
import { assert, suite } from '../support/suite.ts'
import { startWriter, type WriterGuest } from '../support/writer-guest.ts'

const test = suite('e2e/disk-pages', { ms: 240_000 })
const skip = labMissing() || (spawnSync('qemu-nbd', ['--version']).status !== 0 && 'qemu-utils is not installed')

/** Where the guest's program has nothing, and where its "page cache" is. */
const CACHE_AT = 16 * MIB
const OWN_AT = 24 * MIB
const OWN_BYTES = 512 * 1024

async function inMemory<T>(lab: Lab, site: string, guest: WriterGuest, work: (fd: number) => T): Promise<T> {
  const fd = await lab.site(site).node.registry.machine(guest.name).memoryFd()
  try {
    return work(fd)
  } finally {
    closeSync(fd)
  }
}

const readMemory = (lab: Lab, site: string, guest: WriterGuest, at: number, bytes: number) =>
  inMemory(lab, site, guest, fd => {
    const content = Buffer.alloc(bytes)
    readSync(fd, content, 0, bytes, at)
    return content
  })

async function move(lab: Lab, guest: WriterGuest, from: string, to: string, method: 'live' | 'cold') {
  let different: unknown
  lab.site(to).onLoaded = async target => {
    different = (await compareMemory(lab.site(from).node.registry.machine(guest.name), target)).different
  }
  const record = await lab.until(await beginSoon(lab, { vm: guest.name, to, method }))
  assert.is(record.outcome, 'completed', `${JSON.stringify(record.error)}\n${lab.logTail()}`)
  assert.equal(different, [], 'pages that are not the same at source and target')
  await guest.assertWrites(to)
  return record.report!
}

for (const format of ['qcow2', 'raw'])
  test(
    `pages with blocks of the image, and with blocks that the guest has written, are read from the ${format} disk at the target`,
    async () => {
      await using lab = await openLab({ sites: ['a', 'b'] })
      const image = randomBytes(4 * MIB)
      for (const site of lab.sites()) {
        const from = join(site.imagesDir, 'data.raw')
        await writeFile(from, image)
        await site.node.registry.images.import({ name: 'data', from, format: 'raw' })
        await rm(from)
      }
      const more = `  - {mode: local, image: data, size: 16MiB, format: ${format}}\n`
      const guest = await startWriter(lab, 'a', { more })
      // What a guest would have: written data on its disk and in its memory, and file content in its page cache.
      const pattern = Buffer.alloc(OWN_BYTES, 0xa7)
      const { qmp } = lab.site('a').node.registry.machine(guest.name)
      const write = `qemu-io -d /machine/peripheral/blk1/virtio-backend "write -P 0xa7 1M ${OWN_BYTES}"`
      await qmp.execute('human-monitor-command', { 'command-line': write })
      await inMemory(lab, 'a', guest, fd => {
        writeSync(fd, image, 0, image.length, CACHE_AT)
        writeSync(fd, pattern, 0, pattern.length, OWN_AT)
      })

      const first = await move(lab, guest, 'a', 'b', 'live')
      // All of the image but what was written over.
      const expected = (image.length - OWN_BYTES) / 4096
      const { pagesFromDisk = 0, wireBytes } = first
      assert.ok(pagesFromDisk >= expected, `${pagesFromDisk} of ${expected} pages`)
      // A raw disk has its own copy of the image, which travels with it.
      const diskBytes = format === 'raw' ? image.length : 0
      assert.ok(wireBytes < diskBytes + 2 * MIB, `${wireBytes} bytes, of 4 MiB of memory that do not compress`)
      const second = await move(lab, guest, 'b', 'a', 'cold')
      assert.ok((second.pagesFromDisk ?? 0) >= expected, `${second.pagesFromDisk} of ${expected} pages`)
      assert.is(Buffer.compare(await readMemory(lab, 'a', guest, CACHE_AT, image.length), image), 0)
      assert.is(Buffer.compare(await readMemory(lab, 'a', guest, OWN_AT, OWN_BYTES), pattern), 0)
      await guest.stopAndCompare('a')
    },
    { skip },
  )

test.run()
